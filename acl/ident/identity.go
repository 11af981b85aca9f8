package ident

import "net/netip"

// Identity is what rules can know of a device: who it is and which addresses
// are its own. It is what a signed certificate vouches for, and nothing else.
// The slices are owned by the value and never written to after it was made.
type Identity struct {
	Node   NodeID
	Owner  UserID // zero for a tagged device
	Labels LabelSet
	// Addresses are the device's own overlay addresses.
	Addresses []netip.Addr
	// Routes are the prefixes behind the device that were approved, sorted,
	// without the device's own addresses.
	Routes []netip.Prefix
}

// OwnsAddress reports whether a is one of the device's own addresses.
func (i *Identity) OwnsAddress(a netip.Addr) bool {
	for _, own := range i.Addresses {
		if own == a {
			return true
		}
	}
	return false
}

// RoutesAddress reports whether a lies in one of the device's approved routes.
func (i *Identity) RoutesAddress(a netip.Addr) bool {
	for _, p := range i.Routes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
