package pcapng

import (
	"encoding/binary"
	"math"
	"time"
)

// Block types and options (draft-ietf-opsawg-pcapng-04, 4 and 3.5).
const (
	blockSection    = 0x0a0d0d0a
	blockInterface  = 1
	blockStatistics = 5
	blockPacket     = 6 // enhanced

	byteOrderMagic = 0x1a2b3c4d

	optionEnd              = 0
	optionComment          = 1
	optionApplication      = 4 // of a section: shb_userappl
	optionInterface        = 2 // of an interface: if_name
	optionResolution       = 9 // of an interface: if_tsresol
	optionFlags            = 2 // of a packet: epb_flags
	optionReceived         = 4 // of statistics: isb_ifrecv
	optionDropped          = 5 // of statistics: isb_ifdrop
	nanoseconds       byte = 9 // if_tsresol: 10^-9 s

	// linkRaw is LINKTYPE_RAW: a packet begins with its IPv4 or IPv6 header.
	linkRaw = 101
)

// maxComment is the longest comment that AppendPacket writes, in bytes. An
// option's length has 16 bits.
const maxComment = 4096

// AppendHeader appends what a file begins with: the section, written by the
// named program, and the description of the one interface.
func AppendHeader(b []byte, application, interfaceName string) []byte {
	at := len(b)
	b = begin(b, blockSection)
	b = le32(b, byteOrderMagic)
	b = le16(le16(b, 1), 0)                             // version 1.0
	b = binary.LittleEndian.AppendUint64(b, 1<<64-1)    // length of the section: not said
	b = appendOption(b, optionApplication, application) // a text, not ended by zero
	b = end(appendOption(b, optionEnd, ""), at)

	at = len(b)
	b = begin(b, blockInterface)
	b = le16(le16(b, linkRaw), 0)
	b = le32(b, 0) // packets are whole
	b = appendOption(b, optionInterface, interfaceName)
	b = appendOption(b, optionResolution, string([]byte{nanoseconds}))
	return end(appendOption(b, optionEnd, ""), at)
}

// Packet is one packet of a capture.
type Packet struct {
	Time time.Time
	// Inbound is set for packets that came in; the others went out.
	Inbound bool
	// Data is the packet from its IP header on.
	Data []byte
	// Comment is shown beside the packet; of a long one the end is left out.
	Comment string
}

// AppendPacket appends a packet.
func AppendPacket(b []byte, p *Packet) []byte {
	at := len(b)
	b = begin(b, blockPacket)
	b = le32(b, 0) // the one interface
	b = appendTime(b, p.Time)
	b = le32(le32(b, uint32(len(p.Data))), uint32(len(p.Data)))
	b = pad(append(b, p.Data...), len(p.Data))
	direction := byte(2)
	if p.Inbound {
		direction = 1
	}
	b = appendOption(b, optionFlags, string([]byte{direction, 0, 0, 0}))
	if p.Comment != "" {
		b = appendOption(b, optionComment, p.Comment[:min(len(p.Comment), maxComment)])
	}
	return end(appendOption(b, optionEnd, ""), at)
}

// AppendStatistics appends what a capture ends with: how many packets there
// were to capture, and how many of them are missing in it.
func AppendStatistics(b []byte, at time.Time, received, dropped uint64) []byte {
	from := len(b)
	b = begin(b, blockStatistics)
	b = le32(b, 0)
	b = appendTime(b, at)
	b = appendOption(b, optionReceived, string(binary.LittleEndian.AppendUint64(nil, received)))
	b = appendOption(b, optionDropped, string(binary.LittleEndian.AppendUint64(nil, dropped)))
	return end(appendOption(b, optionEnd, ""), from)
}

// begin appends the type of a block and room for its length.
func begin(b []byte, kind uint32) []byte { return le32(le32(b, kind), 0) }

// end completes the block that began at a place.
func end(b []byte, at int) []byte {
	length := uint32(len(b) - at + 4)
	binary.LittleEndian.PutUint32(b[at+4:], length)
	return le32(b, length)
}

func appendOption(b []byte, code uint16, value string) []byte {
	value = value[:min(len(value), math.MaxUint16)]
	b = le16(le16(b, code), uint16(len(value)))
	return pad(append(b, value...), len(value))
}

// appendTime appends a time since 1970 in nanoseconds, its upper half first.
func appendTime(b []byte, t time.Time) []byte {
	n := uint64(t.UnixNano())
	return le32(le32(b, uint32(n>>32)), uint32(n))
}

// pad fills up to 32 bits what n bytes were appended of.
func pad(b []byte, n int) []byte { return append(b, make([]byte, -n&3)...) }

func le16(b []byte, v uint16) []byte { return binary.LittleEndian.AppendUint16(b, v) }
func le32(b []byte, v uint32) []byte { return binary.LittleEndian.AppendUint32(b, v) }
