package admin

import (
	"cmp"
	"net/http"
	"net/netip"
	"slices"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/registry"
)

// describeRoutes lists what a device offers or is approved for, by address.
func describeRoutes(v *View, d *registry.Device) []Route {
	var out []Route
	active := v.Network.Routes(d.ID)
	all := slices.Concat(d.Advertised, d.Approved)
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), a.Bits()-b.Bits())
	})
	for _, p := range slices.Compact(all) {
		r := Route{Prefix: p, Advertised: slices.Contains(d.Advertised, p), Active: slices.Contains(active, p)}
		switch {
		case slices.Contains(d.Approved, p):
			r.Approved = "admin"
		case v.Network.Policy().AutoApproved(d.ID, p):
			r.Approved = "policy"
		}
		out = append(out, r)
	}
	return out
}

func (h *Handler) approveRoutes(r *http.Request) (Device, error) {
	return h.changeRoutes(r, func(id ident.NodeID, routes []netip.Prefix) registry.Command {
		return registry.ApproveRoutes{Node: id, Routes: routes}
	})
}

func (h *Handler) removeRoutes(r *http.Request) (Device, error) {
	return h.changeRoutes(r, func(id ident.NodeID, routes []netip.Prefix) registry.Command {
		return registry.RemoveRoutes{Node: id, Routes: routes}
	})
}

// changeRoutes runs a command about a device's routes and returns the device
// as it is then.
func (h *Handler) changeRoutes(r *http.Request, command func(ident.NodeID, []netip.Prefix) registry.Command) (Device, error) {
	var body ChangeRoutes
	if err := decode(r, &body); err != nil {
		return Device{}, err
	}
	return h.changeDevice(r, func(id ident.NodeID) registry.Command { return command(id, body.Routes) })
}
