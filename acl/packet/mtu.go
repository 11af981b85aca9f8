package packet

import (
	"encoding/binary"
	"math/bits"
)

// Whole reports whether b, a packet that Parse accepts, must reach its receiver
// in one piece: IPv6, and IPv4 with "don't fragment".
func Whole(b []byte) bool { return b[0]>>4 == 6 || b[6]&0x40 != 0 }

// AppendTooBig appends the packet that tells the sender of b that b is longer
// than mtu, the MTU of the path to its destination: ICMP type 3 code 4, ICMPv6
// type 2 (RFC 1191 4, RFC 8201 4), sent in the name of b's destination. It
// returns the extended slice. Where no answer may be given, dst comes back as it
// was: b does not parse, is a later fragment or an ICMP message other than an
// echo, or its source or destination is not one host. b must not overlap the
// room behind dst.
func AppendTooBig(dst, b []byte, mtu uint16) []byte {
	var i Info
	if Parse(b, &i) != None || !i.Source.host() || !i.Destination.host() {
		return dst
	}
	switch i.Kind {
	case LaterFragment, ICMPError, ICMPOther:
		return dst
	case Other:
		if i.PayloadLength < quoteTransport {
			return dst // too little for an ICMP error to send back
		}
	default:
	}
	if i.Version == 4 {
		return appendError(dst, i.Destination, i.Source, [2]byte{3, 4}, uint32(mtu), b[:i.Length])
	}
	return appendError(dst, i.Destination, i.Source, [2]byte{2, 0}, uint32(mtu), b[:i.Length])
}

// ClampMSS lowers the maximum segment size that the TCP segment b names to what
// fits into packets of mtu bytes, and corrects the checksum. i is what Parse read
// from b. It changes nothing where b is no SYN, names no size, or names less:
// without the option a sender takes 536 or 1220 bytes (RFC 9293 3.7.1).
func ClampMSS(b []byte, i *Info, mtu int) {
	if i.Kind != TCPSegment || i.Flags&SYN == 0 {
		return
	}
	size := mtu - header4 - headerTCP
	if i.Version == 6 {
		size = mtu - header6 - headerTCP
	}
	segment := b[i.HeaderLength:i.Length]
	for at, option := range tcpOptions(segment) {
		if option[0] != maximumSegmentSize || len(option) != 4 {
			continue
		}
		// Of several some receivers take the first, some the last.
		if old := binary.BigEndian.Uint16(option[2:]); size > 0 && int(old) > size {
			binary.BigEndian.PutUint16(option[2:], uint16(size))
			updateChecksum(segment[16:18], old, uint16(size), at%2 == 1)
		}
	}
}

// updateChecksum corrects a checksum for 16 bits that changed (RFC 1624 3, eqn.
// 3), which begin at an odd offset or not.
func updateChecksum(checksum []byte, from, to uint16, odd bool) {
	if odd {
		from, to = bits.ReverseBytes16(from), bits.ReverseBytes16(to)
	}
	s := uint64(^binary.BigEndian.Uint16(checksum)) + uint64(^from) + uint64(to)
	binary.BigEndian.PutUint16(checksum, ^fold(s))
}
