package reconcile

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/client/control"
	"github.com/warren-overlay/warren/client/health"
	"github.com/warren-overlay/warren/netstack/config"
)

// DefaultRoutes are what an exit node offers: everything, in both families.
func DefaultRoutes() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
}

// Advertised returns all that a device with the preferences offers to route.
func Advertised(p Preferences) []netip.Prefix {
	out := slices.Clone(p.AdvertiseRoutes)
	if p.AdvertiseExitNode {
		out = append(out, DefaultRoutes()...)
	}
	return out
}

// routes says in c what this device routes for others and what it sends to
// which peer.
func routes(c *config.Config, view *control.View, p Preferences, now time.Time) []health.Fact {
	var facts []health.Fact
	own := view.Self.Identity().Routes
	for _, r := range Advertised(p) {
		if slices.Contains(own, r) {
			c.Forward = append(c.Forward, r)
			continue
		}
		facts = append(facts, health.Fact{
			Code: health.RouteNotApproved, Severity: health.Info, Subject: r.String(), Since: now,
			Text: fmt.Sprintf("This device offers to route %v, which nobody has approved. An administrator can: warren-coordinator devices approve-routes %s %v", r, view.Self.Name(), r),
		})
	}
	c.Forward = authority.SortRoutes(c.Forward)
	for i := range c.Peers {
		peer := &c.Peers[i]
		for _, r := range peer.Member.Identity().Routes {
			switch {
			case r.Bits() == 0:
				if peer.Member.Node() == p.ExitNodeID {
					peer.Routes = append(peer.Routes, r)
				}
			// What this device serves itself it reaches itself, also where
			// another one serves it too.
			case p.AcceptRoutes && !slices.Contains(c.Forward, r):
				peer.Routes = append(peer.Routes, r)
				facts = append(facts, hidden(r, peer.Member.Name(), p.Connected, now)...)
			}
		}
	}
	if p.ExitNode == "" {
		return facts
	}
	c.Exit = config.ExitTunnel
	if p.ExitNodeAllowLAN {
		c.Exit = config.ExitTunnelButLAN
	}
	if why := unavailable(view, p.ExitNodeID); why != "" {
		facts = append(facts, health.Fact{
			Code: health.ExitNodeUnavailable, Severity: health.Error, Since: now,
			Text: fmt.Sprintf("The exit node %q %s, so nothing leaves this machine for the internet. Choose another one, or none: warren set --exit-node=", p.ExitNode, why),
		})
	}
	return facts
}

// hidden tells of a route of which a network that this machine is connected to
// takes a part, or all.
func hidden(r netip.Prefix, router string, connected []netip.Prefix, now time.Time) []health.Fact {
	for _, local := range connected {
		if local = local.Masked(); !local.Overlaps(r) {
			continue
		}
		f := health.Fact{
			Code: health.RouteIgnored, Severity: health.Info, Subject: r.String() + " " + router, Since: now,
			Text: fmt.Sprintf("Of the route %v of %s the part %v is not used: this machine is connected to such a network itself, which goes first.", r, router, local),
		}
		if local.Bits() <= r.Bits() {
			f.Severity = health.Warning
			f.Text = fmt.Sprintf("The route %v of %s is not used: this machine is connected to %v itself, which goes first.", r, router, local)
		}
		return []health.Fact{f}
	}
	return nil
}

// unavailable says why the device is no exit node for this one, "" where it is.
func unavailable(view *control.View, id ident.NodeID) string {
	for _, peer := range view.Peers {
		if peer.Member.Node() != id {
			continue
		}
		if slices.ContainsFunc(peer.Member.Identity().Routes, func(r netip.Prefix) bool { return r.Bits() == 0 }) {
			return ""
		}
		return "does not offer to be one, or was not approved"
	}
	return "is no device that this one may see"
}

// underlay notes the host of a URL as one that is reached outside the tunnel.
func underlay(c *config.Config, address string) {
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "" {
		return
	}
	port := u.Port()
	switch {
	case port != "":
	case u.Scheme == "https" || u.Scheme == "wss":
		port = "443"
	default:
		port = "80"
	}
	if host := joinHostPort(u.Hostname(), port); !slices.Contains(c.Underlay, host) {
		c.Underlay = append(c.Underlay, host)
	}
}
