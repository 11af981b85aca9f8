package ruleset

import (
	"net/netip"
	"slices"

	"github.com/warren-overlay/warren/acl/ident"
)

// devices is what conditions are asked about where there are no classes.
type devices struct {
	self, peer reachable
	all        []int32 // every scope
}

// reachable is what one device stands for.
type reachable struct {
	own             []netip.Addr
	routes, subnets []netip.Prefix
}

func newDevices(self, peer *ident.Identity, scopes int) *devices {
	d := &devices{self: addressesOf(self), peer: addressesOf(peer), all: make([]int32, scopes)}
	for n := range d.all {
		d.all[n] = int32(n)
	}
	return d
}

// addressesOf copies the part of an identity that conditions speak of: its own
// addresses, and the routes as rules may speak of them.
func addressesOf(id *ident.Identity) reachable {
	r := reachable{own: slices.Clone(id.Addresses), routes: slices.Clone(Covered(id.Routes))}
	for _, p := range id.Routes {
		if p.Bits() > 0 {
			r.subnets = append(r.subnets, p)
		}
	}
	return r
}

// question is which scopes speak of two addresses.
type question struct {
	index        *index
	theirs, ours netip.Addr
}

func (q *question) concerns(n int32) bool {
	s, d := &q.index.scopes[n], q.index.devices
	return s.theirs.concerns(&d.peer, q.theirs) && s.ours.concerns(&d.self, q.ours)
}

// concerns reports whether the condition speaks of an address of the device's.
func (c *condition) concerns(device *reachable, a netip.Addr) bool {
	if slices.Contains(device.own, a) {
		return c.own || inAny(c.prefixes, a)
	}
	return inAny(c.prefixes, a) && inAny(device.routes, a) || c.subnets && inAny(device.subnets, a)
}
