package acltest

import (
	"encoding/binary"
	"net/netip"

	"github.com/warren-overlay/warren/acl/packet"
)

// Packet describes an IP packet to be built. The family is that of Source.
type Packet struct {
	Source, Destination         netip.Addr
	SourcePort, DestinationPort uint16
	Protocol                    uint8
	// Flags, Sequence and Acknowledgment are for TCP.
	Flags                    packet.TCPFlags
	Sequence, Acknowledgment uint32
	// Init makes an SCTP packet a lone INIT chunk, else it is a DATA chunk.
	Init bool
	// Type, Code, Identifier and MTU are for ICMP; About is what an ICMP error
	// sends back, Keep how many of its bytes (0 is all).
	Type, Code uint8
	Identifier uint16
	MTU        uint32
	About      *Packet
	Keep       int
	// Length is how many bytes follow the transport header, or the IP header
	// where there is none.
	Length int
	// Fragmented gives the packet the fragment fields (for IPv6 the fragment
	// header) below; with an Offset above 0 it has Length bytes of data and no
	// transport header.
	Fragmented bool
	FragmentID uint32
	Offset     int
	More       bool
}

// Bytes builds the packet. All checksums are right but for those of quoted
// packets' transport headers.
func (p *Packet) Bytes() []byte {
	var transport []byte
	if p.Offset > 0 {
		transport = make([]byte, p.Length)
	} else {
		transport = p.transport()
	}
	if p.Source.Is4() {
		b := make([]byte, 20, 20+len(transport))
		b[0], b[8], b[9] = 0x45, 64, p.Protocol
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(transport)))
		if p.Fragmented {
			binary.BigEndian.PutUint16(b[4:], uint16(p.FragmentID))
			binary.BigEndian.PutUint16(b[6:], uint16(p.Offset/8))
			if p.More {
				b[6] |= 0x20
			}
		} else {
			b[6] = 0x40
		}
		copy(b[12:], p.Source.AsSlice())
		copy(b[16:], p.Destination.AsSlice())
		binary.BigEndian.PutUint16(b[10:], ^onesSum(b))
		return append(b, transport...)
	}
	b := make([]byte, 40, 48+len(transport))
	b[0], b[6], b[7] = 0x60, p.Protocol, 64
	copy(b[8:], p.Source.AsSlice())
	copy(b[24:], p.Destination.AsSlice())
	if p.Fragmented {
		b[6] = 44
		b = append(b, p.Protocol, 0)
		field := uint16(p.Offset)
		if p.More {
			field |= 1
		}
		b = binary.BigEndian.AppendUint16(b, field)
		b = binary.BigEndian.AppendUint32(b, p.FragmentID)
	}
	b = append(b, transport...)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	return b
}

func (p *Packet) transport() []byte {
	var b []byte
	checksum := -1 // where the checksum is
	switch p.Protocol {
	case packet.TCP:
		b = make([]byte, 20)
		binary.BigEndian.PutUint32(b[4:], p.Sequence)
		binary.BigEndian.PutUint32(b[8:], p.Acknowledgment)
		b[12], b[13], b[14], b[15] = 0x50, byte(p.Flags), 0xff, 0xff
		checksum = 16
	case packet.UDP:
		b = make([]byte, 8)
		binary.BigEndian.PutUint16(b[4:], uint16(8+p.Length))
		checksum = 6
	case packet.SCTP:
		b = make([]byte, 32)
		b[12], b[15] = 1, 20
		if !p.Init {
			b[12] = 0
			binary.BigEndian.PutUint32(b[4:], 0x01020304)
		}
	case packet.ICMP, packet.ICMPv6:
		b = make([]byte, 8)
		b[0], b[1] = p.Type, p.Code
		binary.BigEndian.PutUint16(b[4:], p.Identifier)
		if p.MTU > 0 {
			binary.BigEndian.PutUint32(b[4:], p.MTU)
		}
		if p.About != nil {
			about := p.About.Bytes()
			if p.Keep > 0 {
				about = about[:min(p.Keep, len(about))]
			}
			b = append(b, about...)
		}
		checksum = 2
	}
	switch p.Protocol {
	case packet.TCP, packet.UDP, packet.SCTP:
		binary.BigEndian.PutUint16(b, p.SourcePort)
		binary.BigEndian.PutUint16(b[2:], p.DestinationPort)
	}
	b = append(b, make([]byte, p.Length)...)
	if checksum >= 0 {
		binary.BigEndian.PutUint16(b[checksum:], ^onesSum(append(p.pseudoHeader(len(b)), b...)))
	}
	return b
}

func (p *Packet) pseudoHeader(length int) []byte {
	if p.Protocol == packet.ICMP {
		return nil
	}
	b := append(p.Source.AsSlice(), p.Destination.AsSlice()...)
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	return append(b, 0, 0, 0, p.Protocol)
}

// onesSum is the one's-complement sum of RFC 1071.
func onesSum(b []byte) uint16 {
	total := uint32(0)
	for i := range b {
		if i%2 == 0 {
			total += uint32(b[i]) << 8
		} else {
			total += uint32(b[i])
		}
		total = total&0xffff + total>>16
	}
	return uint16(total)
}

// Reply returns the packet that answers p: addresses and ports exchanged, the
// rest zero but for the protocol, the identifier, and an echo reply's type for
// an echo request.
func (p *Packet) Reply() Packet {
	r := Packet{
		Source: p.Destination, Destination: p.Source, SourcePort: p.DestinationPort, DestinationPort: p.SourcePort,
		Protocol: p.Protocol, Identifier: p.Identifier,
	}
	if p.Protocol == packet.ICMPv6 {
		r.Type = 129
	}
	return r
}
