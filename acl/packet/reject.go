package packet

import "encoding/binary"

const (
	// An ICMP error sends back as much of the packet as fits into what every
	// path carries (RFC 1812 4.3.2.3, RFC 4443 2.4).
	maxError4 = 576
	maxError6 = 1280
)

// AppendReject appends the packet that tells the sender of b that b was refused
// by policy, and returns the extended slice: for a TCP segment a reset, for
// anything else ICMP "communication administratively prohibited" (type 3 code
// 13, ICMPv6 type 1 code 1), sent in the name of b's destination. Where no
// answer may be given, dst comes back as it was: b does not parse, is a reset,
// a fragment, an ICMP message other than an echo request, or shorter than the 8
// bytes that an ICMP error must send back, or its source or destination is not
// one host. b must not overlap the room behind dst.
func AppendReject(dst, b []byte) []byte {
	var i Info
	if Parse(b, &i) != None || i.Fragment() || !i.Source.host() || !i.Destination.host() {
		return dst
	}
	switch i.Kind {
	case TCPSegment:
		if i.Flags&RST != 0 {
			return dst
		}
		t := Tuple{i.Destination, i.Source, i.DestinationPort, i.SourcePort, TCP}
		if i.Flags&ACK != 0 {
			return appendReset(dst, t, RST, i.Acknowledgment, 0)
		}
		return appendReset(dst, t, RST|ACK, 0, i.SequenceEnd())
	case EchoReply, ICMPError, ICMPOther:
		return dst
	case Other:
		if i.PayloadLength < quoteTransport {
			return dst // too little for an ICMP error to send back
		}
	default:
	}
	return appendProhibited(dst, i.Destination, i.Source, b[:i.Length])
}

// host reports whether a can be the address of one host.
func (a Address) host() bool {
	n := a.Addr()
	return !n.IsUnspecified() && !n.IsMulticast() && a.Lo != mapped4|0xffffffff
}

// SequenceEnd returns the sequence number that follows the segment: SYN and FIN
// count as one each.
func (i *Info) SequenceEnd() uint32 {
	end := i.Sequence + uint32(i.PayloadLength)
	if i.Flags&SYN != 0 {
		end++
	}
	if i.Flags&FIN != 0 {
		end++
	}
	return end
}

// AppendReset appends a TCP reset in the direction of t and returns the
// extended slice. sequence must be what the receiver expects next, and
// acknowledgment the end of what it has sent, so that it is believed in every
// state (RFC 9293 3.10.7, RFC 5961 3.2).
func AppendReset(dst []byte, t Tuple, sequence, acknowledgment uint32) []byte {
	return appendReset(dst, t, RST|ACK, sequence, acknowledgment)
}

func appendReset(dst []byte, t Tuple, flags TCPFlags, sequence, acknowledgment uint32) []byte {
	dst = appendIP(dst, t.Source, t.Destination, TCP, headerTCP)
	start := len(dst)
	dst = binary.BigEndian.AppendUint16(dst, t.SourcePort)
	dst = binary.BigEndian.AppendUint16(dst, t.DestinationPort)
	dst = binary.BigEndian.AppendUint32(dst, sequence)
	dst = binary.BigEndian.AppendUint32(dst, acknowledgment)
	dst = append(dst, headerTCP/4<<4, byte(flags), 0, 0, 0, 0, 0, 0)
	binary.BigEndian.PutUint16(dst[start+16:], transportChecksum(t.Source, t.Destination, TCP, dst[start:]))
	return dst
}

// AppendProhibited appends ICMP "communication administratively prohibited"
// about a packet of the flow t, without having one, and returns the extended
// slice: from t's destination to t's source. The receiver knows the flow by the
// first 8 bytes of the transport header, which are made up from t.
func AppendProhibited(dst []byte, t Tuple) []byte {
	var room [header6 + quoteTransport]byte
	quote := appendIP(room[:0], t.Source, t.Destination, t.Protocol, quoteTransport)
	transport := len(quote)
	switch t.Protocol {
	case ICMP, ICMPv6:
		request := byte(8)
		if t.Protocol == ICMPv6 {
			request = 128
		}
		quote = append(quote, request, 0, 0, 0)
		quote = binary.BigEndian.AppendUint16(quote, t.SourcePort)
		quote = append(quote, 0, 0)
		binary.BigEndian.PutUint16(quote[transport+2:],
			transportChecksum(t.Source, t.Destination, t.Protocol, quote[transport:]))
	default:
		quote = binary.BigEndian.AppendUint16(quote, t.SourcePort)
		quote = binary.BigEndian.AppendUint16(quote, t.DestinationPort)
		// For UDP this is the length of an empty datagram, without a checksum.
		quote = append(quote, 0, headerUDP, 0, 0)
	}
	return appendProhibited(dst, t.Destination, t.Source, quote)
}

func appendProhibited(dst []byte, source, destination Address, quote []byte) []byte {
	header := [2]byte{3, 13}
	if !source.Is4() {
		header = [2]byte{1, 1}
	}
	return appendError(dst, source, destination, header, 0, quote)
}

// appendError appends an ICMP error with type and code header, the given second
// word, and as much of quote as may be sent back.
func appendError(dst []byte, source, destination Address, header [2]byte, word uint32, quote []byte) []byte {
	protocol, limit := ICMP, maxError4-header4-headerICMP
	if !source.Is4() {
		protocol, limit = ICMPv6, maxError6-header6-headerICMP
	}
	quote = quote[:min(len(quote), limit)]
	dst = appendIP(dst, source, destination, protocol, headerICMP+len(quote))
	start := len(dst)
	dst = append(dst, header[0], header[1], 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, word)
	dst = append(dst, quote...)
	binary.BigEndian.PutUint16(dst[start+2:], transportChecksum(source, destination, protocol, dst[start:]))
	return dst
}

// SetMTU writes mtu into the "packet too big" b and corrects its checksum. It
// changes nothing where b is none, or where it names mtu or more already.
func SetMTU(b []byte, mtu uint16) {
	var i Info
	if Parse(b, &i) != None || !i.TooBig() || i.MTU >= uint32(mtu) {
		return
	}
	message := b[i.HeaderLength:i.Length]
	if i.Version == 4 {
		binary.BigEndian.PutUint16(message[6:], mtu)
	} else {
		binary.BigEndian.PutUint32(message[4:], uint32(mtu))
	}
	message[2], message[3] = 0, 0
	binary.BigEndian.PutUint16(message[2:], transportChecksum(i.Source, i.Destination, i.Protocol, message))
}
