package ruleset

import (
	"net/netip"
	"slices"
)

// public is every public address.
var public = publicPrefixes()

// Public returns the public addresses, by prefixes in ascending order: IPv4
// without the ranges of RFC 6890 that are private, shared, local, for multicast
// or reserved, and IPv6 global unicast (RFC 4291 2.4). The slice is the
// caller's.
func Public() []netip.Prefix { return slices.Clone(public) }

// Covered returns what a device with the routes may stand for in rules: each
// route as it is, but a default route only for the public addresses of its
// family. Whoever routes everything offers the internet; to speak for private
// addresses, or to be the way to them, a device needs a route that says so. The
// result may be the argument itself.
func Covered(routes []netip.Prefix) []netip.Prefix {
	if !slices.ContainsFunc(routes, func(p netip.Prefix) bool { return p.Bits() == 0 }) {
		return routes
	}
	var out []netip.Prefix
	for _, route := range routes {
		if route.Bits() != 0 {
			out = append(out, route)
			continue
		}
		for _, p := range public {
			if p.Addr().Is4() == route.Addr().Is4() {
				out = append(out, p)
			}
		}
	}
	return out
}

func publicPrefixes() []netip.Prefix {
	out := []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0)}
	for _, text := range []string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
		"192.168.0.0/16", "224.0.0.0/3",
	} {
		hole := netip.MustParsePrefix(text)
		var next []netip.Prefix
		for _, p := range out {
			next = append(next, subtract(p, hole)...)
		}
		out = next
	}
	return append(out, netip.MustParsePrefix("2000::/3"))
}

// subtract returns p without the addresses of hole.
func subtract(p, hole netip.Prefix) []netip.Prefix {
	switch {
	case !p.Overlaps(hole):
		return []netip.Prefix{p}
	case hole.Bits() <= p.Bits():
		return nil
	}
	low := netip.PrefixFrom(p.Addr(), p.Bits()+1)
	bytes := p.Addr().AsSlice()
	bytes[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	middle, _ := netip.AddrFromSlice(bytes)
	return append(subtract(low, hole), subtract(netip.PrefixFrom(middle, p.Bits()+1), hole)...)
}
