package ruleset

import (
	"net/netip"
	"slices"

	"github.com/warren-overlay/warren/acl/ident"
)

// devices is what conditions are asked about where there are no classes.
type devices struct {
	self, peer ident.Identity
	all        []int32 // every scope
}

func newDevices(self, peer *ident.Identity, scopes int) *devices {
	d := &devices{self: addressesOf(self), peer: addressesOf(peer), all: make([]int32, scopes)}
	for n := range d.all {
		d.all[n] = int32(n)
	}
	return d
}

// addressesOf copies the part of an identity that conditions speak of.
func addressesOf(id *ident.Identity) ident.Identity {
	return ident.Identity{Addresses: slices.Clone(id.Addresses), Routes: slices.Clone(id.Routes)}
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
func (c *condition) concerns(device *ident.Identity, a netip.Addr) bool {
	if device.OwnsAddress(a) {
		return c.own || inAny(c.prefixes, a)
	}
	return inAny(c.prefixes, a) && device.RoutesAddress(a) ||
		c.subnets && slices.ContainsFunc(device.Routes, func(p netip.Prefix) bool { return p.Bits() > 0 && p.Contains(a) })
}
