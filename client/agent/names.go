package agent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/client/control"
	"github.com/warren-overlay/warren/client/localapi"
	"github.com/warren-overlay/warren/coordinator/wire"
	"github.com/warren-overlay/warren/netstack/config"
	"github.com/warren-overlay/warren/netstack/engine"
)

// Domain is the domain of every network's names: NAME.warren.internal is the
// device NAME. ".internal" is reserved for private use, so no name of the
// Internet is hidden.
const Domain = "warren.internal"

// find returns the member of that name or address, this device included, or
// nil.
func find(v *control.View, target string) *control.Peer {
	if v.Self == nil {
		return nil
	}
	all := append([]control.Peer{{Member: v.Self}}, v.Peers...)
	if addr, err := netip.ParseAddr(target); err == nil {
		for i := range all {
			if all[i].Member.Identity().OwnsAddress(addr.Unmap()) {
				return &all[i]
			}
		}
		return nil
	}
	name := strings.ToLower(strings.TrimSuffix(target, "."))
	name = strings.TrimSuffix(name, "."+Domain)
	// What reads as an id is one: a device must not be able to stand for
	// another by its name. The coordinator gives no such names.
	id, err := ident.ParseNodeID(name)
	for i := range all {
		if err == nil && all[i].Member.Node() == id || err != nil && all[i].Member.Name() == name {
			return &all[i]
		}
	}
	return nil
}

// Resolve returns the addresses of the device that target names: its name,
// with or without Domain, its id, or an address in the overlay. The order is
// that of its certificate. It returns a *localapi.Error with CodeNotFound where
// there is none, or ErrStopped.
func (a *Agent) Resolve(ctx context.Context, target string) ([]netip.Addr, error) {
	v, err := ask(ctx, a, func(l *loop) *control.View { return l.view })
	if err != nil {
		return nil, err
	}
	if p := find(v, target); p != nil {
		if addr, err := netip.ParseAddr(target); err == nil {
			return []netip.Addr{addr.Unmap()}, nil
		}
		return p.Member.Identity().Addresses, nil
	}
	if addr, err := netip.ParseAddr(target); err == nil {
		if a.routed(addr.Unmap()) {
			return []netip.Addr{addr.Unmap()}, nil
		}
	}
	return nil, localapi.Errorf(localapi.CodeNotFound, "%q is no device that this one may see; `warren status` lists them", target)
}

// routed reports whether this device sends packets for addr to a peer that
// routes it.
func (a *Agent) routed(addr netip.Addr) bool {
	c := a.desired.Load()
	return c != nil && slices.ContainsFunc(c.Peers, func(p config.Peer) bool {
		return slices.ContainsFunc(p.Routes, func(r netip.Prefix) bool { return r.Contains(addr) })
	})
}

// routes returns whether a peer has an approved route to addr.
func routes(addr netip.Addr) func(control.Peer) bool {
	return func(p control.Peer) bool { return p.Member.Identity().RoutesAddress(addr) }
}

// Ping sends one ping inside the tunnel.
func (a *Agent) Ping(ctx context.Context, r localapi.PingRequest) (localapi.PingReply, error) {
	s, err := ask(ctx, a, (*loop).standing)
	if err != nil {
		return localapi.PingReply{}, err
	}
	p, addr, err := reachable(s, r.Target)
	if err != nil {
		return localapi.PingReply{}, err
	}
	reply := localapi.PingReply{Name: p.Member.Name(), Addr: addr}
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	answer, err := a.cfg.DataPlane.Ping(ctx, addr)
	if err != nil {
		return reply, pingError(err, p, r.Timeout)
	}
	reply.RTT, reply.Path = answer.RTT, pathOf(answer.Path)
	for _, other := range answer.Others {
		reply.Others = append(reply.Others, pathOf(other))
	}
	return reply, nil
}

// pingError says in a user's terms why there was no answer.
func pingError(err error, p *control.Peer, waited time.Duration) error {
	var refused *engine.RefusedError
	switch {
	case errors.As(err, &refused):
		return localapi.Errorf(localapi.CodeDenied, "refused: %v. Your administrator can allow it: warren-coordinator policy set", refused)
	case errors.Is(err, context.DeadlineExceeded):
		return localapi.Errorf(localapi.CodeNoAnswer, "no answer from %s within %v: %s", p.Member.Name(), waited, silence(p.State))
	}
	return err
}

// silence guesses why a device does not answer.
func silence(s wire.PeerState) string {
	if !s.Online {
		return "it is not connected to the coordinator, so it is probably off"
	}
	return "its rules may not allow pings from here, or no path to it works at present"
}
