package filter

import (
	"net/netip"
	"slices"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
)

// place is where an address lies, seen from one device.
type place uint8

const (
	// nowhere: the device may not use the address.
	nowhere place = iota
	// owned: one of the device's own.
	owned
	// routed: in one of its approved routes.
	routed
	// beyond: in nothing but a default route.
	beyond
)

// side is what the filter knows of one device: its addresses in the form that
// packets are compared with.
type side struct {
	own                []packet.Address
	routes             ranges
	default4, default6 bool
}

// newSides reads the identities of both devices. A certificate that names an
// address which nobody can own does not make it usable, nor does the peer's make
// one of ours the peer's.
func newSides(self, peer *ident.Identity) (ours, theirs side) {
	ours, theirs = newSide(self), newSide(peer)
	theirs.own = slices.DeleteFunc(theirs.own, ours.owns)
	return ours, theirs
}

func newSide(id *ident.Identity) side {
	var s side
	for _, a := range id.Addresses {
		if own := packet.AddressOf(a); !unusable(own) {
			s.own = append(s.own, own)
		}
	}
	s.routes = newRanges(id.Routes)
	for _, p := range id.Routes {
		switch {
		case p.Bits() != 0:
		case p.Addr().Is4():
			s.default4 = true
		default:
			s.default6 = true
		}
	}
	return s
}

func (s *side) owns(a packet.Address) bool {
	for i := range s.own {
		if s.own[i] == a {
			return true
		}
	}
	return false
}

func (s *side) place(a packet.Address) place {
	if s.owns(a) {
		return owned
	}
	if s.routes.contain(a) {
		return routed
	}
	if s.default4 && a.Is4() || s.default6 && !a.Is4() {
		return beyond
	}
	return nowhere
}

// ranges is a set of addresses: ascending ranges that do not touch. It answers
// in the logarithm of its length, because a router may have many routes.
type ranges []addressRange

type addressRange struct{ first, last packet.Address }

func less(a, b packet.Address) bool {
	return a.Hi < b.Hi || a.Hi == b.Hi && a.Lo < b.Lo
}

// newRanges returns what the prefixes cover, default routes left out.
func newRanges(prefixes []netip.Prefix) ranges {
	var all ranges
	for _, p := range prefixes {
		if p.IsValid() && p.Bits() > 0 {
			all = append(all, rangeOf(p))
		}
	}
	slices.SortFunc(all, func(a, b addressRange) int {
		switch {
		case less(a.first, b.first):
			return -1
		case less(b.first, a.first):
			return 1
		}
		return 0
	})
	// Prefixes nest or are disjoint: one that begins within its predecessor
	// lies within it.
	var merged ranges
	for _, r := range all {
		last := len(merged) - 1
		switch {
		case last < 0 || less(merged[last].last, r.first):
			merged = append(merged, r)
		case less(merged[last].last, r.last):
			merged[last].last = r.last
		}
	}
	return slices.Clip(merged)
}

func rangeOf(p netip.Prefix) addressRange {
	first := packet.AddressOf(p.Masked().Addr())
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	host := packet.Address{Hi: ^uint64(0), Lo: ^uint64(0)}
	if bits >= 64 {
		host.Hi, host.Lo = 0, host.Lo>>(bits-64)
	} else {
		host.Hi >>= bits
	}
	return addressRange{first, packet.Address{Hi: first.Hi | host.Hi, Lo: first.Lo | host.Lo}}
}

func (r ranges) contain(a packet.Address) bool {
	low, high := 0, len(r)
	for low < high {
		middle := (low + high) / 2
		switch {
		case less(a, r[middle].first):
			high = middle
		case less(r[middle].last, a):
			low = middle + 1
		default:
			return true
		}
	}
	return false
}

// unusable reports whether a can be neither the source nor the destination of a
// packet between two hosts: unspecified, loopback, link-local (which includes
// the cloud metadata service), multicast or limited broadcast.
func unusable(a packet.Address) bool {
	if a.Is4() {
		v4 := uint32(a.Lo)
		return v4>>24 == 0 || v4>>24 == 127 || v4>>16 == 0xa9fe || v4>>28 == 0xe || v4 == 0xffffffff
	}
	return a.Hi == 0 && a.Lo <= 1 || a.Hi>>54 == 0xfe80>>6 || a.Hi>>56 == 0xff
}

// undirected reports whether a is multicast, broadcast or link-local (P4).
func (p *Peer) undirected(a packet.Address) bool {
	if a.Is4() {
		v4 := uint32(a.Lo)
		return v4>>28 == 0xe || v4>>16 == 0xa9fe || v4 == 0xffffffff || p.broadcast(a)
	}
	return a.Hi>>54 == 0xfe80>>6 || a.Hi>>56 == 0xff
}

// broadcast reports whether a is the broadcast address of a subnet that this
// machine is connected to. A router is the only one who can know: elsewhere the
// last address of a route may be a host's.
func (p *Peer) broadcast(a packet.Address) bool { return slices.Contains(p.shared.broadcasts, a) }

// metadata6 is where one cloud serves machines their credentials in unique local
// addresses (fd00:ec2::254).
var metadata6 = packet.AddressOf(netip.MustParseAddr("fd00:ec2::254"))

// metadata reports whether a is where a cloud serves machines their credentials
// outside of the link-local addresses: Azure, Oracle, Alibaba, and Amazon over
// IPv6. Unlike unusable ones these can be addresses of devices, where the
// network's own ranges hold them.
func metadata(a packet.Address) bool {
	if !a.Is4() {
		return a == metadata6
	}
	switch uint32(a.Lo) {
	case 168<<24 | 63<<16 | 129<<8 | 16, 192<<24 | 192, 100<<24 | 100<<16 | 100<<8 | 200:
		return true
	}
	return false
}

// unreachable reports whether a may be neither source nor destination of a
// packet that a router forwards, whatever its routes are: an address that no
// host has, a metadata service, one of the network's own, one that is protected, or an IPv6 address
// that some translator on the way would turn into such a one (P2, P3).
func (p *Peer) unreachable(a packet.Address) bool {
	if p.forbidden(a) {
		return true
	}
	if a.Is4() {
		return false
	}
	if inner, ok := embedded4(a); ok {
		return p.forbidden(inner)
	}
	return false
}

func (p *Peer) forbidden(a packet.Address) bool {
	return unusable(a) || metadata(a) || p.broadcast(a) || p.self.owns(a) || p.shared.overlay.contain(a) || p.shared.protected.contain(a)
}

// embedded4 returns the IPv4 address inside a 6to4 (2002::/16, RFC 3056) or a
// NAT64 (64:ff9b::/96, RFC 6052, and 64:ff9b:1::/48, RFC 8215) address.
func embedded4(a packet.Address) (packet.Address, bool) {
	const mapped = 0xffff << 32
	switch {
	case a.Hi>>48 == 0x2002:
		return packet.Address{Lo: mapped | a.Hi>>16&0xffffffff}, true
	case a.Hi == 0x0064ff9b<<32 && a.Lo>>32 == 0, a.Hi>>16 == 0x0064ff9b0001:
		return packet.Address{Lo: mapped | a.Lo&0xffffffff}, true
	}
	return packet.Address{}, false
}
