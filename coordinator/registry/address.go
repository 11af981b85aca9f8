package registry

import (
	"encoding/binary"
	"net/netip"
)

// reserved4 are ranges of 100.64.0.0/10 that devices are never given: the
// service addresses of this and other overlays, 100.100.100.100 among them, and
// what ChromeOS uses for its own virtual machines.
var reserved4 = []netip.Prefix{
	netip.MustParsePrefix("100.100.0.0/24"),
	netip.MustParsePrefix("100.100.100.0/24"),
	netip.MustParsePrefix("100.115.92.0/23"),
}

// allocate returns the next free pair of addresses and its offset in the IPv4
// range, searching from the one after last and around. The error wraps ErrFull.
func (s *State) allocate(last uint64) (v4, v6 netip.Addr, host uint64, err error) {
	size := uint64(1) << (32 - s.network.Prefix4.Bits())
	host = last % size
	for range size {
		host = (host + 1) % size
		if host == 0 || host == size-1 {
			continue // the network's own and its broadcast address
		}
		v4 = addressAt(s.network.Prefix4, host)
		if _, taken := s.byAddr[v4]; taken || isReserved(v4) {
			continue
		}
		return v4, derive6(s.network.Prefix6, v4), host, nil
	}
	return netip.Addr{}, netip.Addr{}, 0, refuse(ErrFull, "every address of %v is taken", s.network.Prefix4)
}

func addressAt(p netip.Prefix, host uint64) netip.Addr {
	b := p.Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(host))
	return netip.AddrFrom4(b)
}

func isReserved(a netip.Addr) bool {
	for _, p := range reserved4 {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// derive6 puts the IPv4 address into the last 32 bits of the IPv6 range, so
// that one free IPv4 address is a free pair.
func derive6(p netip.Prefix, v4 netip.Addr) netip.Addr {
	b, low := p.Addr().As16(), v4.As4()
	copy(b[12:], low[:])
	return netip.AddrFrom16(b)
}
