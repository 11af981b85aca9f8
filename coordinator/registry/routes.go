package registry

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/warren-overlay/warren/acl/authority"
)

// maxRoutes is how many prefixes a device may offer, and be approved for: each
// that is approved is in every certificate of its.
const maxRoutes = 256

// Exit are the prefixes that an exit node offers: everything, in both families.
// One of them is never approved without the other, so that a user of the exit
// node does not go out directly in the family that was forgotten.
func Exit() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
}

// unroutable are ranges that no router can stand for: no host has an address in
// them that means the same elsewhere.
var unroutable = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/3"), netip.MustParsePrefix("::/127"), netip.MustParsePrefix("::ffff:0:0/96"),
	netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

// normalRoutes returns the prefixes in the order of a certificate, without
// repeats. It refuses those that no device can route.
func (s *State) normalRoutes(routes []netip.Prefix) ([]netip.Prefix, error) {
	for _, p := range routes {
		switch {
		case !p.IsValid() || p != p.Masked() || p.Addr().Is4In6():
			return nil, refuse(ErrInvalid, "%v is not a prefix such as 10.1.0.0/24", p)
		case p.Bits() == 0:
			continue
		case p.Overlaps(s.network.Prefix4) || p.Overlaps(s.network.Prefix6):
			return nil, refuse(ErrInvalid, "the route %v overlaps the network's own addresses, %v and %v", p, s.network.Prefix4, s.network.Prefix6)
		case slices.ContainsFunc(unroutable, p.Overlaps):
			return nil, refuse(ErrInvalid, "%v is not a range that can be routed", p)
		}
	}
	out := authority.SortRoutes(slices.Clone(routes))
	if len(out) > maxRoutes {
		return nil, refuse(ErrInvalid, "%d routes; at most %d are allowed", len(out), maxRoutes)
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, nil
}

// withExit adds the default route of the other family where there is one.
func withExit(routes []netip.Prefix) []netip.Prefix {
	if slices.ContainsFunc(routes, func(p netip.Prefix) bool { return p.Bits() == 0 }) {
		return append(slices.Clone(routes), Exit()...)
	}
	return routes
}

func (d *decision) advertiseRoutes(c AdvertiseRoutes) error {
	old, err := d.device(c.Node)
	if err != nil {
		return err
	}
	routes, err := d.state.normalRoutes(c.Routes)
	if err != nil {
		return err
	}
	d.result.Device = old
	if slices.Equal(routes, old.Advertised) {
		return nil
	}
	device := *old
	device.Advertised = routes
	d.changeRoutes(&device, "device.advertise-routes", routes)
	return nil
}

func (d *decision) approveRoutes(c ApproveRoutes) error {
	old, err := d.device(c.Node)
	if err != nil {
		return err
	}
	wanted, err := d.state.normalRoutes(withExit(c.Routes))
	if err != nil {
		return err
	}
	if len(wanted) == 0 {
		return refuse(ErrInvalid, "name at least one route")
	}
	approved, err := d.state.normalRoutes(append(slices.Clone(old.Approved), wanted...))
	if err != nil {
		return err
	}
	d.result.Device = old
	if slices.Equal(approved, old.Approved) {
		return nil
	}
	device := *old
	device.Approved = approved
	d.changeRoutes(&device, "device.approve-routes", wanted)
	return nil
}

func (d *decision) removeRoutes(c RemoveRoutes) error {
	old, err := d.device(c.Node)
	if err != nil {
		return err
	}
	unwanted := withExit(c.Routes)
	for _, p := range unwanted {
		if p.Bits() > 0 && !slices.Contains(old.Approved, p) {
			return refuse(ErrNotFound, "%s has no approval for %v", old.Name, p)
		}
	}
	device := *old
	device.Approved = nil
	for _, p := range old.Approved {
		if !slices.Contains(unwanted, p) {
			device.Approved = append(device.Approved, p)
		}
	}
	d.result.Device = old
	if len(device.Approved) == len(old.Approved) {
		return refuse(ErrNotFound, "%s has no such approval", old.Name)
	}
	d.changeRoutes(&device, "device.remove-routes", unwanted)
	return nil
}

func (d *decision) changeRoutes(device *Device, action string, routes []netip.Prefix) {
	d.changes.Devices = []Device{*device}
	d.result.Device = device
	d.tell(action, device.ID.String())
	d.detail("name", device.Name)
	d.detail("routes", prefixTexts(routes))
}

func prefixTexts(routes []netip.Prefix) string {
	texts := make([]string, 0, len(routes))
	for _, p := range routes {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ",")
}
