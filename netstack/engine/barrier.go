package engine

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/warren-overlay/warren/acl/ident"
)

// The data path knows by two tables whose an address is: by forwarding, which
// says whose filter decides, and by WireGuard's own, which says whose session
// seals. They do not change at one time, and WireGuard's changes prefix by
// prefix, with moments in which a list is empty. An address that has left one
// peer's list, and is not in another's yet, then belongs to whoever holds a
// wider prefix: an exit node would be sent what another peer's filter let out.
//
// So addresses that may be in doubt belong to nobody while the tables change
// (contested, publishTable), and no packet that was let out before is still on
// its way to WireGuard's table (settle). That is for outbound packets; inbound
// ones are checked against the session that opened them (filterInbound).
//
// Only a prefix that lies in another peer's can be in doubt: all others are
// either in their peer's list or in none, and what WireGuard finds in none it
// drops. In a network without routers all prefixes are single addresses and
// nothing is contested: no packet is held up or lost.

// contested returns the prefixes, old and new ones, that may be in doubt while
// peers get the prefixes of claims instead of those that they have. All that is
// a peer's is replaced where part of it is. ended says which peers are removed
// even though they have claims.
func (c *control) contested(claims map[ident.NodeKey][]netip.Prefix, ended func(ident.NodeKey) bool) []netip.Prefix {
	held := make(map[netip.Prefix][]ident.NodeKey) // before or after
	hold := func(key ident.NodeKey, prefixes []netip.Prefix) {
		for _, p := range prefixes {
			if !slices.Contains(held[p], key) {
				held[p] = append(held[p], key)
			}
		}
	}
	changing := make(map[netip.Prefix]bool)
	change := func(prefixes []netip.Prefix) {
		for _, p := range prefixes {
			changing[p] = true
		}
	}
	for key, p := range c.peers {
		hold(key, p.allowed)
		if ended(key) || !slices.Equal(p.allowed, claims[key]) {
			change(p.allowed)
			change(claims[key])
		}
	}
	for key, prefixes := range claims {
		hold(key, prefixes)
		if c.peers[key] == nil {
			change(prefixes)
		}
	}
	var lengths [2][]int // of held prefixes, by family
	for p := range held {
		if f := family(p); !slices.Contains(lengths[f], p.Bits()) {
			lengths[f] = append(lengths[f], p.Bits())
		}
	}
	var contested []netip.Prefix
	for p := range changing {
		for _, bits := range lengths[family(p)] {
			if bits > p.Bits() {
				continue
			}
			wider := netip.PrefixFrom(p.Addr(), bits).Masked()
			if keys := held[wider]; len(keys) > 1 || len(keys) == 1 && !slices.Equal(keys, held[p]) {
				contested = append(contested, p)
				break
			}
		}
	}
	slices.SortFunc(contested, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return contested
}

func family(p netip.Prefix) int {
	if p.Addr().Is4() {
		return 0
	}
	return 1
}

// suspend makes contested prefixes nobody's, and returns when no packet is on
// its way any more that was let out before.
func (c *control) suspend(contested []netip.Prefix) error {
	if len(contested) == 0 {
		return nil
	}
	err := c.publishTable(c.cfg, contested)
	c.e.host.settle()
	if c.e.suspended != nil {
		c.e.suspended()
	}
	return err
}

// claimsWithout returns the prefixes that the peers have now, but for one peer's.
func (c *control) claimsWithout(p *peer) map[ident.NodeKey][]netip.Prefix {
	claims := make(map[ident.NodeKey][]netip.Prefix, len(c.peers))
	for key, other := range c.peers {
		if other != p {
			claims[key] = other.allowed
		}
	}
	return claims
}
