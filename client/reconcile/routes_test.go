package reconcile_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/client/health"
	"github.com/warren-overlay/warren/client/reconcile"
	"github.com/warren-overlay/warren/netstack/config"
)

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func TestRoutes(t *testing.T) {
	exit := prefixes("0.0.0.0/0", "::/0")
	all := prefixes("0.0.0.0/0", "10.1.0.0/16", "10.2.0.0/16", "::/0")
	const peer = ident.NodeID(2)
	for _, c := range []struct {
		name       string
		own, peers []netip.Prefix // approved
		wish       reconcile.Preferences
		accepted   []netip.Prefix
		forward    []netip.Prefix
		exit       config.Exit
		facts      []health.Code
	}{
		{name: "nothing is taken unasked", peers: all},
		{name: "accepted", peers: all, wish: reconcile.Preferences{AcceptRoutes: true}, accepted: prefixes("10.1.0.0/16", "10.2.0.0/16")},
		{
			name: "the local network goes first", peers: all,
			wish:     reconcile.Preferences{AcceptRoutes: true, Connected: prefixes("10.1.7.9/24", "10.0.0.9/14")},
			accepted: prefixes("10.1.0.0/16", "10.2.0.0/16"), facts: []health.Code{health.RouteIgnored, health.RouteIgnored},
		},
		{
			name: "served by both", own: prefixes("10.1.0.0/16"), peers: all,
			wish:     reconcile.Preferences{AcceptRoutes: true, AdvertiseRoutes: prefixes("10.1.0.0/16")},
			accepted: prefixes("10.2.0.0/16"), forward: prefixes("10.1.0.0/16"),
		},
		{
			name: "exit node", peers: all, wish: reconcile.Preferences{ExitNode: "gw", ExitNodeID: peer},
			accepted: exit, exit: config.ExitTunnel,
		},
		{
			name: "exit node, LAN access", peers: all, wish: reconcile.Preferences{ExitNode: "gw", ExitNodeID: peer, ExitNodeAllowLAN: true},
			accepted: exit, exit: config.ExitTunnelButLAN,
		},
		{
			name: "exit node that is none", peers: prefixes("10.1.0.0/16"), wish: reconcile.Preferences{ExitNode: "gw", ExitNodeID: peer},
			exit: config.ExitTunnel, facts: []health.Code{health.ExitNodeUnavailable},
		},
		{
			name: "exit node that is not there", peers: all, wish: reconcile.Preferences{ExitNode: "gw", ExitNodeID: 9},
			exit: config.ExitTunnel, facts: []health.Code{health.ExitNodeUnavailable},
		},
		{
			name: "offered and not approved", own: prefixes("10.3.0.0/16"),
			wish:    reconcile.Preferences{AdvertiseRoutes: prefixes("10.3.0.0/16", "10.4.0.0/16"), AdvertiseExitNode: true},
			forward: prefixes("10.3.0.0/16"),
			facts:   []health.Code{health.RouteNotApproved, health.RouteNotApproved, health.RouteNotApproved},
		},
		{
			name: "in the order of a certificate", own: all,
			wish:    reconcile.Preferences{AdvertiseRoutes: prefixes("10.1.0.0/16", "10.2.0.0/16"), AdvertiseExitNode: true},
			forward: all,
		},
		{name: "approved and not offered any more", own: all},
	} {
		v, key := routedView(t, c.own, c.peers)
		v.Settings.Relays, v.Settings.STUN = v.Settings.Relays[:1], nil
		c.wish.WantRunning = true
		got, facts := reconcile.Desired(v, key, "https://10.0.0.1", c.wish, now)
		if err := got.Validate(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if !slices.Equal(got.Peers[0].Routes, c.accepted) || !slices.Equal(got.Forward, c.forward) || got.Exit != c.exit {
			t.Errorf("%s: accepted %v, forward %v, exit %v", c.name, got.Peers[0].Routes, got.Forward, got.Exit)
		}
		var codes []health.Code
		for _, f := range facts {
			codes = append(codes, f.Code)
		}
		if !slices.Equal(codes, c.facts) {
			t.Errorf("%s: facts %v", c.name, facts)
		}
		if !slices.Equal(got.Overlay, v.Overlay) || !slices.Equal(got.Underlay, []string{"10.0.0.1:443"}) {
			t.Errorf("%s: overlay %v, underlay %v", c.name, got.Overlay, got.Underlay)
		}
	}
}

// TestValidateKnowsRoutes: a configuration cannot give a peer what its
// certificate does not have, nor serve what its own does not.
func TestValidateKnowsRoutes(t *testing.T) {
	v, key := routedView(t, prefixes("10.3.0.0/16"), prefixes("10.1.0.0/16"))
	for name, change := range map[string]func(*config.Config){
		"a peer's":    func(c *config.Config) { c.Peers[0].Routes = prefixes("10.2.0.0/16") },
		"a part of a": func(c *config.Config) { c.Peers[0].Routes = prefixes("10.1.1.0/24") },
		"one's own":   func(c *config.Config) { c.Forward = prefixes("10.1.0.0/16") },
	} {
		c, _ := reconcile.Desired(v, key, "http://c", reconcile.Preferences{WantRunning: true}, now)
		change(c)
		if err := c.Validate(); err == nil {
			t.Errorf("%s route that was not approved is taken", name)
		}
	}
}
