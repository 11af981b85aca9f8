package packet

import "encoding/binary"

// The IPv6 extension headers, by next-header value. Every other value is a
// transport protocol's number.
const (
	hopByHop   = 0
	routing    = 43
	fragment   = 44
	esp        = 50
	authHeader = 51
	noNext     = 59
	destOpts   = 60
	mobility   = 135
	hip        = 139
	shim6      = 140
)

const (
	header4      = 20
	header6      = 40
	headerFrag6  = 8
	headerTCP    = 20
	headerUDP    = 8
	headerICMP   = 8
	headerSCTP   = 12
	chunkHeader  = 4
	chunkInit    = 1
	minInitChunk = 20
	// quoteTransport is how much of the quoted packet's transport header an
	// ICMP error must send back (RFC 792).
	quoteTransport = 8
)

// Parse reads the packet that begins at b[0] into i and returns None, or says
// why it refuses it; then only i.Version has a meaning, 4 or 6 where b says so
// and else 0. Bytes of b behind the packet's own length are ignored (see
// Info.Length). Checksums are not verified: packets come out of an
// authenticated tunnel or from the local stack. It does not allocate and does
// not keep b.
func Parse(b []byte, i *Info) Fault {
	*i = Info{}
	if len(b) == 0 {
		return Truncated
	}
	var fault Fault
	switch b[0] >> 4 {
	case 4:
		i.Version = 4
		fault = parse4(b, i)
	case 6:
		i.Version = 6
		fault = parse6(b, i)
	default:
		return Version
	}
	if fault != None {
		return fault
	}
	return parseTransport(b[i.HeaderLength:i.Length], i)
}

func parse4(b []byte, i *Info) Fault {
	if len(b) < header4 {
		return Truncated
	}
	if b[0] != 0x45 {
		return Options
	}
	length := binary.BigEndian.Uint16(b[2:])
	if int(length) > len(b) || length < header4 {
		return Truncated
	}
	offset := binary.BigEndian.Uint16(b[6:])
	i.Length = uint32(length)
	i.HeaderLength = header4
	i.Protocol = b[9]
	i.Source = address4(b[12:])
	i.Destination = address4(b[16:])
	if offset&0x3fff != 0 {
		const dontFragment, moreFragments = 0x4000, 0x2000
		if offset&(dontFragment|moreFragments) == dontFragment|moreFragments {
			return Fragmented
		}
		i.MoreFragments = offset&moreFragments != 0
		i.FragmentOffset = offset << 3
		i.FragmentID = uint32(binary.BigEndian.Uint16(b[4:]))
	}
	if i.Protocol == ICMPv6 {
		return Version
	}
	return None
}

func parse6(b []byte, i *Info) Fault {
	if len(b) < header6 {
		return Truncated
	}
	length := header6 + int(binary.BigEndian.Uint16(b[4:]))
	if length > len(b) {
		return Truncated
	}
	i.Length = uint32(length)
	i.HeaderLength = header6
	i.Source = address6(b[8:])
	i.Destination = address6(b[24:])
	if i.Source.embeds4() || i.Destination.embeds4() {
		return Embedded4
	}
	i.Protocol = b[6]
	if i.Protocol == fragment {
		if length < header6+headerFrag6 {
			return Truncated
		}
		h := b[header6 : header6+headerFrag6]
		offset := binary.BigEndian.Uint16(h[2:])
		i.Protocol = h[0]
		i.MoreFragments = offset&1 != 0
		i.FragmentOffset = offset &^ 7
		i.FragmentID = binary.BigEndian.Uint32(h[4:])
		i.HeaderLength = header6 + headerFrag6
	}
	if extension6(i.Protocol) {
		return Extension
	}
	if i.Protocol == ICMP {
		return Version
	}
	return None
}

func extension6(next uint8) bool {
	switch next {
	case hopByHop, routing, fragment, esp, authHeader, noNext, destOpts, mobility, hip, shim6:
		return true
	}
	return false
}

// parseTransport reads p, what stands behind the IP headers.
func parseTransport(p []byte, i *Info) Fault {
	i.PayloadLength = uint16(len(p))
	cutOff := Transport
	if i.FragmentOffset > 0 {
		if len(p) == 0 {
			return Fragmented
		}
		i.Kind = LaterFragment
		return None
	}
	if i.MoreFragments {
		if len(p) == 0 || len(p)%8 != 0 {
			return Fragmented
		}
		cutOff = Fragmented
	}
	switch i.Protocol {
	case TCP:
		if len(p) < headerTCP {
			return cutOff
		}
		size := int(p[12]>>4) * 4
		if size < headerTCP || size > len(p) {
			return cutOff
		}
		i.Kind = TCPSegment
		i.SourcePort = binary.BigEndian.Uint16(p)
		i.DestinationPort = binary.BigEndian.Uint16(p[2:])
		i.Sequence = binary.BigEndian.Uint32(p[4:])
		i.Acknowledgment = binary.BigEndian.Uint32(p[8:])
		i.Flags = TCPFlags(p[13])
		i.PayloadLength = uint16(len(p) - size)
	case UDP:
		if len(p) < headerUDP {
			return cutOff
		}
		size := int(binary.BigEndian.Uint16(p[4:]))
		if size < headerUDP || size > len(p) && !i.MoreFragments {
			return Transport
		}
		i.Kind = Datagram
		i.SourcePort = binary.BigEndian.Uint16(p)
		i.DestinationPort = binary.BigEndian.Uint16(p[2:])
	case ICMP, ICMPv6:
		if len(p) < headerICMP {
			return cutOff
		}
		return parseICMP(p, i)
	case SCTP:
		if len(p) < headerSCTP+chunkHeader {
			return cutOff
		}
		i.Kind = SCTPPacket
		if loneInit(p) && !i.MoreFragments {
			i.Kind = SCTPInit
		}
		i.SourcePort = binary.BigEndian.Uint16(p)
		i.DestinationPort = binary.BigEndian.Uint16(p[2:])
	}
	return None
}

// loneInit reports whether the SCTP packet p is one INIT chunk and nothing
// else, with the verification tag 0.
func loneInit(p []byte) bool {
	chunk := int(binary.BigEndian.Uint16(p[headerSCTP+2:]))
	padded := (chunk + 3) &^ 3
	return binary.BigEndian.Uint32(p[4:]) == 0 && p[headerSCTP] == chunkInit &&
		chunk >= minInitChunk && padded == len(p)-headerSCTP
}

func parseICMP(p []byte, i *Info) Fault {
	i.Type, i.Code = p[0], p[1]
	i.Kind = icmpKind(i.Version, i.Type)
	switch i.Kind {
	case EchoRequest, EchoReply:
		i.Identifier = binary.BigEndian.Uint16(p[4:])
	case ICMPError:
		if i.MoreFragments {
			return Fragmented
		}
		if i.TooBig() && i.Version == 4 {
			i.MTU = uint32(binary.BigEndian.Uint16(p[6:]))
		} else if i.TooBig() {
			i.MTU = binary.BigEndian.Uint32(p[4:])
		}
		if !parseQuote(p[headerICMP:], i.Version, &i.Quoted) {
			return Quoted
		}
	default:
	}
	return None
}

func icmpKind(version, icmpType uint8) Kind {
	if version == 4 {
		switch icmpType {
		case 8:
			return EchoRequest
		case 0:
			return EchoReply
		case 3, 11, 12:
			return ICMPError
		}
		return ICMPOther
	}
	switch icmpType {
	case 128:
		return EchoRequest
	case 129:
		return EchoReply
	case 1, 2, 3, 4:
		return ICMPError
	}
	return ICMPOther
}

// parseQuote reads the packet that an ICMP error sends back, of which there may
// be no more than the IP header and 8 bytes. It refuses what Parse would refuse
// in the part that is there, a later fragment, and an ICMP message other than
// echo: nothing is ever said about an error.
func parseQuote(b []byte, version uint8, q *Quote) bool {
	var p []byte
	switch {
	case version == 4 && len(b) >= header4+quoteTransport && b[0] == 0x45:
		if binary.BigEndian.Uint16(b[2:]) < header4+quoteTransport || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
			return false
		}
		q.Protocol = b[9]
		q.Source, q.Destination = address4(b[12:]), address4(b[16:])
		p = b[header4:]
		if q.Protocol == ICMPv6 {
			return false
		}
	case version == 6 && len(b) >= header6+quoteTransport && b[0]>>4 == 6:
		q.Protocol = b[6]
		q.Source, q.Destination = address6(b[8:]), address6(b[24:])
		p = b[header6:]
		size := int(binary.BigEndian.Uint16(b[4:]))
		if q.Protocol == fragment {
			if len(p) < headerFrag6+quoteTransport || binary.BigEndian.Uint16(p[2:])&^7 != 0 {
				return false
			}
			q.Protocol = p[0]
			p = p[headerFrag6:]
			size -= headerFrag6
		}
		if size < quoteTransport || extension6(q.Protocol) || q.Protocol == ICMP ||
			q.Source.embeds4() || q.Destination.embeds4() {
			return false
		}
	default:
		return false
	}
	switch q.Protocol {
	case TCP:
		q.Kind = TCPSegment
	case UDP:
		q.Kind = Datagram
	case SCTP:
		q.Kind = SCTPPacket
	case ICMP, ICMPv6:
		q.Kind = icmpKind(version, p[0])
		q.Identifier = binary.BigEndian.Uint16(p[4:])
		return q.Kind == EchoRequest || q.Kind == EchoReply
	default:
		return true
	}
	q.SourcePort = binary.BigEndian.Uint16(p)
	q.DestinationPort = binary.BigEndian.Uint16(p[2:])
	return true
}
