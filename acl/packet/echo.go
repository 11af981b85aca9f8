package packet

import (
	"encoding/binary"
	"net/netip"
)

// Echo is the message of an echo request or reply.
type Echo struct {
	Source, Destination  netip.Addr
	Identifier, Sequence uint16
	Data                 []byte
}

// AppendEchoRequest appends an echo request ("ping") of the family of e's
// addresses and returns the extended slice. Where the addresses are invalid or
// of two families, or Data is longer than 65,000 bytes, dst comes back as it
// was.
func AppendEchoRequest(dst []byte, e Echo) []byte {
	if !e.Source.IsValid() || !e.Destination.IsValid() || len(e.Data) > 65_000 ||
		e.Source.Is4() != e.Destination.Is4() || e.Source.Is4In6() || e.Destination.Is4In6() {
		return dst
	}
	source, destination := AddressOf(e.Source), AddressOf(e.Destination)
	protocol, request := ICMP, byte(8)
	if e.Source.Is6() {
		protocol, request = ICMPv6, 128
	}
	dst = appendIP(dst, source, destination, protocol, headerICMP+len(e.Data))
	start := len(dst)
	dst = append(dst, request, 0, 0, 0)
	dst = binary.BigEndian.AppendUint16(dst, e.Identifier)
	dst = binary.BigEndian.AppendUint16(dst, e.Sequence)
	dst = append(dst, e.Data...)
	binary.BigEndian.PutUint16(dst[start+2:], transportChecksum(source, destination, protocol, dst[start:]))
	return dst
}

// ParseEchoReply reads the packet that begins at b[0] if it is a whole echo
// reply with a correct checksum, and says whether it is one. Data aliases b.
func ParseEchoReply(b []byte) (Echo, bool) {
	var i Info
	if Parse(b, &i) != None || i.Kind != EchoReply || i.Fragment() {
		return Echo{}, false
	}
	message := b[i.HeaderLength:i.Length]
	if transportChecksum(i.Source, i.Destination, i.Protocol, message) != 0 {
		return Echo{}, false
	}
	return Echo{
		Source: i.Source.Addr(), Destination: i.Destination.Addr(),
		Identifier: i.Identifier, Sequence: binary.BigEndian.Uint16(message[6:]),
		Data: message[headerICMP:],
	}, true
}
