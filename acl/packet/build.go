package packet

import "encoding/binary"

// Tuple names a flow by the packets that go in one direction.
type Tuple struct {
	Source, Destination Address
	// SourcePort and DestinationPort are those of TCP, UDP and SCTP. For an
	// echo the first is the identifier and the second 0, for every other
	// protocol both are 0.
	SourcePort, DestinationPort uint16
	Protocol                    uint8
}

// Reverse returns the tuple of the packets that go the other way.
func (t Tuple) Reverse() Tuple {
	t.Source, t.Destination = t.Destination, t.Source
	if t.Protocol != ICMP && t.Protocol != ICMPv6 {
		t.SourcePort, t.DestinationPort = t.DestinationPort, t.SourcePort
	}
	return t
}

// hopLimit is the hop limit of every packet that is built here (RFC 1700).
const hopLimit = 64

// appendIP appends the IP header of a packet with size bytes behind it.
func appendIP(dst []byte, source, destination Address, protocol uint8, size int) []byte {
	if !source.Is4() {
		dst = append(dst, 0x60, 0, 0, 0, byte(size>>8), byte(size), protocol, hopLimit)
		dst = appendAddress6(dst, source)
		return appendAddress6(dst, destination)
	}
	start := len(dst)
	size += header4
	// Don't fragment: an atomic datagram needs no identification (RFC 6864).
	dst = append(dst, 0x45, 0, byte(size>>8), byte(size), 0, 0, 0x40, 0, hopLimit, protocol, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, uint32(source.Lo))
	dst = binary.BigEndian.AppendUint32(dst, uint32(destination.Lo))
	binary.BigEndian.PutUint16(dst[start+10:], ^fold(sum(0, dst[start:])))
	return dst
}

func appendAddress6(dst []byte, a Address) []byte {
	dst = binary.BigEndian.AppendUint64(dst, a.Hi)
	return binary.BigEndian.AppendUint64(dst, a.Lo)
}

// sum adds b to a one's-complement sum in network byte order (RFC 1071).
func sum(s uint64, b []byte) uint64 {
	for len(b) >= 4 {
		s += uint64(binary.BigEndian.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		s += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		s += uint64(b[0]) << 8
	}
	return s
}

func fold(s uint64) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// transportChecksum returns the checksum of segment, whose own checksum field
// is zero: over the pseudo-header too, but for ICMP in IPv4.
func transportChecksum(source, destination Address, protocol uint8, segment []byte) uint16 {
	s := sum(0, segment)
	if protocol != ICMP {
		s += uint64(len(segment)) + uint64(protocol)
		for _, a := range [2]Address{source, destination} {
			if a.Is4() {
				s += a.Lo & 0xffffffff
				continue
			}
			s += a.Hi>>32 + a.Hi&0xffffffff + a.Lo>>32 + a.Lo&0xffffffff
		}
	}
	return ^fold(s)
}
