package agent

import (
	"net/netip"
	"slices"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/client/localapi"
	"github.com/warren-overlay/warren/client/reconcile"
	"github.com/warren-overlay/warren/client/statefile"
	"github.com/warren-overlay/warren/coordinator/wire"
)

// resetRouting puts the settings of localapi.Routing back to their defaults.
func resetRouting(p *statefile.Preferences) {
	p.AdvertiseRoutes, p.AdvertiseExitNode, p.AcceptRoutes = nil, false, false
	p.ExitNode, p.ExitNodeID, p.ExitNodeAllowLAN = "", 0, false
}

// routing carries the settings of r into p.
func (l *loop) routing(p *statefile.Preferences, r localapi.Routing) error {
	if r.AdvertiseRoutes != nil {
		routes, err := l.offered(*r.AdvertiseRoutes)
		if err != nil {
			return err
		}
		p.AdvertiseRoutes = routes
	}
	for _, s := range []struct {
		from *bool
		to   *bool
	}{
		{r.AdvertiseExitNode, &p.AdvertiseExitNode}, {r.AcceptRoutes, &p.AcceptRoutes}, {r.ExitNodeAllowLAN, &p.ExitNodeAllowLAN},
	} {
		if s.from != nil {
			*s.to = *s.from
		}
	}
	if r.ExitNode != nil {
		p.ExitNode, p.ExitNodeID = *r.ExitNode, 0
		if err := l.chooseExitNode(p); err != nil {
			return err
		}
	}
	if p.ExitNode != "" && p.AdvertiseExitNode {
		return localapi.Errorf(localapi.CodeConflict, "a device cannot be an exit node (--advertise-exit-node) and use one (--exit-node) at once")
	}
	return nil
}

// offered checks what the user wants to advertise and brings it into order.
func (l *loop) offered(routes []netip.Prefix) ([]netip.Prefix, error) {
	for _, r := range routes {
		switch {
		case !r.IsValid() || r.Addr().Is4In6():
			return nil, localapi.Errorf(localapi.CodeBadRequest, "--advertise-routes: %v is not a prefix such as 10.1.0.0/24", r)
		case r != r.Masked():
			return nil, localapi.Errorf(localapi.CodeBadRequest, "--advertise-routes: %v has bits beyond its length; did you mean %v?", r, r.Masked())
		case r.Bits() == 0:
			return nil, localapi.Errorf(localapi.CodeBadRequest, "--advertise-routes: to route everything, use --advertise-exit-node")
		case slices.ContainsFunc(l.view.Overlay, r.Overlaps):
			return nil, localapi.Errorf(localapi.CodeBadRequest, "--advertise-routes: %v overlaps the network's own addresses", r)
		}
	}
	out := authority.SortRoutes(slices.Clone(routes))
	if len(out) > wire.MaxRoutes-len(reconcile.DefaultRoutes()) {
		return nil, localapi.Errorf(localapi.CodeBadRequest, "--advertise-routes: %d prefixes are too many", len(out))
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, nil
}

// chooseExitNode finds the device that p.ExitNode names. Before the node knows
// of any device it is found later.
func (l *loop) chooseExitNode(p *statefile.Preferences) error {
	if p.ExitNode == "" || l.view.Self == nil {
		return nil
	}
	peer := find(l.view, p.ExitNode)
	switch {
	case peer == nil:
		return localapi.Errorf(localapi.CodeNotFound, "--exit-node: %q is no device that this one may see; `warren exit-node list` shows what there is", p.ExitNode)
	case peer.Member == l.view.Self:
		return localapi.Errorf(localapi.CodeBadRequest, "--exit-node: %s is this device", p.ExitNode)
	case !slices.ContainsFunc(peer.Member.Identity().Routes, func(r netip.Prefix) bool { return r.Bits() == 0 }):
		return localapi.Errorf(localapi.CodeNotFound, "--exit-node: %s does not offer to be an exit node, or was not approved; `warren exit-node list` shows what there is", p.ExitNode)
	}
	p.ExitNodeID = peer.Member.Node()
	return nil
}

// findExitNode finds an exit node that was chosen before devices were known.
func (l *loop) findExitNode() {
	if l.preferences.ExitNode == "" || l.preferences.ExitNodeID != 0 {
		return
	}
	if l.chooseExitNode(&l.preferences) == nil && l.preferences.ExitNodeID != 0 {
		l.save(l.cfg.State.SavePreferences(l.preferences))
	}
}

// connected returns the networks that the machine is connected to, without the
// overlay's own.
func (l *loop) connected() []netip.Prefix {
	if l.cfg.Connected == nil {
		return nil
	}
	all, err := l.cfg.Connected()
	if err != nil {
		l.log.Warn("listing the machine's networks", "error", err)
	}
	return slices.DeleteFunc(all, func(p netip.Prefix) bool {
		return l.view.Self != nil && slices.Contains(l.view.Self.Identity().Addresses, p.Addr())
	})
}

// offer tells the machine what this device offers to route.
func (l *loop) offer() {
	if l.machine != nil {
		l.machine.HandleRoutes(reconcile.Advertised(reconcile.Preferences{
			AdvertiseRoutes: l.preferences.AdvertiseRoutes, AdvertiseExitNode: l.preferences.AdvertiseExitNode,
		}), l.cfg.Now())
	}
}
