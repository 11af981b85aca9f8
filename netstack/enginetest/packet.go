package enginetest

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"github.com/warren-overlay/warren/acl/packet"
)

// UDP returns a datagram with correct checksums.
func UDP(from, to netip.AddrPort, payload string) []byte {
	segment := binary.BigEndian.AppendUint16(nil, from.Port())
	segment = binary.BigEndian.AppendUint16(segment, to.Port())
	segment = binary.BigEndian.AppendUint16(segment, uint16(8+len(payload)))
	segment = append(append(segment, 0, 0), payload...)
	return finish(from.Addr(), to.Addr(), packet.UDP, segment, 6)
}

// TCP returns a segment without options, with correct checksums.
func TCP(from, to netip.AddrPort, flags packet.TCPFlags, sequence, acknowledgment uint32, payload string) []byte {
	segment := binary.BigEndian.AppendUint16(nil, from.Port())
	segment = binary.BigEndian.AppendUint16(segment, to.Port())
	segment = binary.BigEndian.AppendUint32(segment, sequence)
	segment = binary.BigEndian.AppendUint32(segment, acknowledgment)
	segment = append(segment, 5<<4, byte(flags), 0xff, 0xff, 0, 0, 0, 0)
	return finish(from.Addr(), to.Addr(), packet.TCP, append(segment, payload...), 16)
}

// TCPWithOptions returns a segment without payload, with correct checksums. The
// options are whole words.
func TCPWithOptions(from, to netip.AddrPort, flags packet.TCPFlags, options []byte) []byte {
	segment := binary.BigEndian.AppendUint16(nil, from.Port())
	segment = binary.BigEndian.AppendUint16(segment, to.Port())
	segment = append(segment, 0, 0, 0, 1, 0, 0, 0, 0, byte(20+len(options))/4<<4, byte(flags), 0xff, 0xff, 0, 0, 0, 0)
	return finish(from.Addr(), to.Addr(), packet.TCP, append(segment, options...), 16)
}

// Echo returns an echo request without data, with correct checksums.
func Echo(from, to netip.Addr, identifier, sequence uint16) []byte {
	message := []byte{8, 0, 0, 0}
	message = binary.BigEndian.AppendUint16(message, identifier)
	message = binary.BigEndian.AppendUint16(message, sequence)
	if from.Is6() {
		message[0] = 128
		return finish(from, to, packet.ICMPv6, message, 2)
	}
	binary.BigEndian.PutUint16(message[2:], checksum(message))
	b := finish(from, to, packet.ICMP, message, 2)
	// ICMP for IPv4 has no pseudo-header in its checksum (RFC 792).
	copy(b[20:], message)
	return b
}

// EchoReply returns the reply to an echo request, nil for anything else.
func EchoReply(request []byte) []byte {
	b := bytes.Clone(request)
	var info packet.Info
	if packet.Parse(b, &info) != packet.None || info.Kind != packet.EchoRequest {
		return nil
	}
	source, destination := info.Source.Addr().AsSlice(), info.Destination.Addr().AsSlice()
	typeDelta := uint32(8 << 8) // of the checksum: 8 becomes 0
	if info.Version == 4 {
		copy(b[12:], destination)
		copy(b[16:], source)
		b[info.HeaderLength] = 0
	} else {
		copy(b[8:], destination)
		copy(b[24:], source)
		b[info.HeaderLength] = 129
		typeDelta = 0xffff - 1<<8 // 128 becomes 129
	}
	at := int(info.HeaderLength) + 2
	sum := uint32(b[at])<<8 + uint32(b[at+1]) + typeDelta
	sum = sum>>16 + sum&0xffff
	b[at], b[at+1] = byte(sum>>8), byte(sum)
	return b
}

// finish adds the IP header and the checksum at the given place of the segment.
func finish(from, to netip.Addr, protocol uint8, segment []byte, at int) []byte {
	pseudo := append(from.AsSlice(), to.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(segment)))
	pseudo = append(pseudo, 0, 0, 0, protocol)
	binary.BigEndian.PutUint16(segment[at:], checksum(append(pseudo, segment...)))
	var header []byte
	if from.Is4() {
		header = make([]byte, 20)
		header[0], header[8], header[9] = 0x45, 64, protocol
		binary.BigEndian.PutUint16(header[2:], uint16(20+len(segment)))
		copy(header[12:], from.AsSlice())
		copy(header[16:], to.AsSlice())
		binary.BigEndian.PutUint16(header[10:], checksum(header))
	} else {
		header = make([]byte, 40)
		header[0], header[6], header[7] = 0x60, protocol, 64
		binary.BigEndian.PutUint16(header[4:], uint16(len(segment)))
		copy(header[8:], from.AsSlice())
		copy(header[24:], to.AsSlice())
	}
	return append(header, segment...)
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i, c := range b {
		if i%2 == 0 {
			sum += uint32(c) << 8
		} else {
			sum += uint32(c)
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
