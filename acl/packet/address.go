package packet

import (
	"encoding/binary"
	"net/netip"
)

// Address is an IP address in a form that is cheap to compare and to hash: 16
// bytes as two big-endian words, an IPv4 address as ::ffff:a.b.c.d. Parse
// refuses IPv6 packets that carry such an address, so the two families never
// meet. The zero Address is "::".
type Address struct{ Hi, Lo uint64 }

// mapped4 is the upper half of Lo of every IPv4 address.
const mapped4 = 0xffff << 32

// AddressOf returns a as an Address. The zone is left out; the zero Addr gives
// the zero Address.
func AddressOf(a netip.Addr) Address {
	if !a.IsValid() {
		return Address{}
	}
	b := a.As16()
	return Address{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func address4(b []byte) Address {
	return Address{0, mapped4 | uint64(binary.BigEndian.Uint32(b))}
}

func address6(b []byte) Address {
	_ = b[15]
	return Address{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
}

// Is4 reports whether a is an IPv4 address.
func (a Address) Is4() bool { return a.Hi == 0 && a.Lo>>32 == 0xffff }

// Addr returns a as a netip.Addr: an IPv4 address as a plain one, never as an
// IPv4-mapped one.
func (a Address) Addr() netip.Addr {
	if a.Is4() {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(a.Lo))
		return netip.AddrFrom4(b)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], a.Hi)
	binary.BigEndian.PutUint64(b[8:], a.Lo)
	return netip.AddrFrom16(b)
}

// String returns the usual text of the address.
func (a Address) String() string { return a.Addr().String() }

// embeds4 reports whether a, an address of an IPv6 packet, is IPv4-mapped
// (::ffff:0:0/96) or IPv4-compatible (::/96 without :: and ::1). Neither is
// ever on a wire (RFC 4291, 2.5.5), and a stack that takes one for the IPv4
// address inside would undo every check of the outer one.
func (a Address) embeds4() bool {
	return a.Hi == 0 && (a.Lo>>32 == 0xffff || a.Lo>>32 == 0 && a.Lo > 1)
}
