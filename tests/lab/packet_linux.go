package lab

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// udpHeader returns where the header of a UDP datagram begins that is no fragment and, over
// IPv6, has no extension header, and whether the packet is one.
func udpHeader(packet []byte) (header int, ok bool) {
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4:
		header = int(packet[0]&15) * 4
		ok = packet[9] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(packet[6:])&0x3fff == 0
	case len(packet) >= 40 && packet[0]>>4 == 6:
		header, ok = 40, packet[6] == unix.IPPROTO_UDP
	}
	return header, ok && len(packet) >= header+8
}

// UDPPayload returns the payload of a UDP datagram of either family that is no
// fragment, and whether the packet is one. It aliases the packet.
func UDPPayload(packet []byte) ([]byte, bool) {
	header, ok := udpHeader(packet)
	if !ok {
		return nil, false
	}
	return packet[header+8:], true
}

// Endpoints returns from where a UDP datagram comes and where it goes, zero where the
// packet is none.
func Endpoints(packet []byte) (from, to netip.AddrPort) {
	header, ok := udpHeader(packet)
	if !ok {
		return from, to
	}
	at, size := 12, 4
	if packet[0]>>4 == 6 {
		at, size = 8, 16
	}
	source, _ := netip.AddrFromSlice(packet[at : at+size])
	destination, _ := netip.AddrFromSlice(packet[at+size : at+2*size])
	return netip.AddrPortFrom(source, binary.BigEndian.Uint16(packet[header:])),
		netip.AddrPortFrom(destination, binary.BigEndian.Uint16(packet[header+2:]))
}

// FixUDPChecksum sets the checksum of a UDP datagram of either family to what it must
// be (RFC 768; RFC 8200, section 8.1). The packet must be one, see UDPPayload.
func FixUDPChecksum(packet []byte) {
	header, ok := udpHeader(packet)
	if !ok {
		panic("BUG: lab: no UDP datagram")
	}
	from, to := Endpoints(packet)
	datagram := packet[header:]
	binary.BigEndian.PutUint16(datagram[6:], 0)
	sum := TransportChecksum(from.Addr(), to.Addr(), unix.IPPROTO_UDP, datagram)
	if sum == 0 {
		sum = 0xffff // zero says that there is none
	}
	binary.BigEndian.PutUint16(datagram[6:], sum)
}

// TransportChecksum returns the checksum of a transport header and what follows,
// whose checksum field is zero, with the pseudo-header of the addresses' family
// (RFC 8200, section 8.1).
func TransportChecksum(from, to netip.Addr, protocol byte, segment []byte) uint16 {
	pseudo := append(from.AsSlice(), to.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(segment)))
	return Checksum(append(append(pseudo, 0, 0, 0, protocol), segment...))
}

// Checksum is the Internet checksum (RFC 1071).
func Checksum(b []byte) uint16 {
	sum := uint64(0)
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint64(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint64(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// PacketFrom returns a copy of a UDP datagram over IPv4 with another source.
func PacketFrom(packet []byte, address [4]byte, port uint16) []byte {
	p := append([]byte(nil), packet...)
	header := int(p[0]&15) * 4
	copy(p[12:16], address[:])
	binary.BigEndian.PutUint16(p[header:], port)
	binary.BigEndian.PutUint16(p[10:], 0)
	binary.BigEndian.PutUint16(p[10:], Checksum(p[:header]))
	FixUDPChecksum(p)
	return p
}
