package netmap

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/registry"
)

// maxRenewals bounds how many certificates one call of Renewals signs: a
// signature takes some 30 µs, and the loop that calls must not be held up.
const maxRenewals = 1024

// Failure is a device that could not be given a certificate.
type Failure struct {
	Node ident.NodeID
	Err  error
}

// Renewals signs the certificates that are due: for devices whose certificate
// no longer says what is so, or with HandleTimeout's help for those of which
// half the life is over. They hold once they were recorded by
// registry.RenewCertificates and come back through HandleChanges. It signs at
// most 1,024; call it until it returns none. A device whose certificate cannot
// be made is left out, named, and does not keep others waiting.
func (n *Network) Renewals(now time.Time) ([]registry.Certificate, []Failure) {
	var out []registry.Certificate
	var failures []Failure
	serial := n.state.Counters().Serial
	for _, id := range n.staleDevices() {
		d := n.member(id)
		if d == nil || n.upToDate(d, now) {
			delete(n.stale, id)
			continue
		}
		if n.claimsTooMuch(id) {
			n.excessive[id] = true
		}
		if len(out) == maxRenewals {
			continue
		}
		identity, ok := n.policy.Identity(id)
		if !ok {
			delete(n.stale, id) // HandleTimeout asks again
			failures = append(failures, Failure{id, fmt.Errorf("%w: the policy does not know it", ErrNoView)})
			continue
		}
		begin := now.Add(-backdate).UTC().Truncate(time.Second)
		c := authority.Certificate{
			Serial: serial + 1, Node: id, NodeKey: d.NodeKey, Name: d.Name, Owner: d.Owner, Labels: identity.Labels,
			Addresses: []netip.Addr{d.IPv4, d.IPv6}, Routes: n.routes(d),
			NotBefore: begin, NotAfter: begin.Add(backdate + n.cfg.Validity),
		}
		signed, err := authority.IssueCertificate(n.cfg.Genesis, &c, n.cfg.Signer)
		if err != nil {
			delete(n.stale, id)
			failures = append(failures, Failure{id, fmt.Errorf("%w: %w", ErrNoView, err)})
			continue
		}
		serial++
		out = append(out, registry.Certificate{Node: id, Serial: serial, NotBefore: c.NotBefore, NotAfter: c.NotAfter, Signed: signed})
	}
	return out, failures
}

// upToDate reports whether the device's certificate says what is so, and more
// than half of its life is left.
func (n *Network) upToDate(d *registry.Device, now time.Time) bool {
	peer := n.issued[d.ID]
	if peer == nil || !now.Before(peer.NotAfter().Add(-n.cfg.Validity/2)) {
		return false
	}
	identity, ok := n.policy.Identity(d.ID)
	have := peer.Identity()
	return ok && peer.NodeKey() == d.NodeKey && peer.Name() == d.Name && have.Owner == d.Owner &&
		have.Labels.Equal(identity.Labels) && slices.Equal(have.Addresses, []netip.Addr{d.IPv4, d.IPv6}) &&
		slices.Equal(have.Routes, n.routes(d))
}

// claimsTooMuch reports whether the device's certificate gives it an owner, a
// node key, a label, an address or a route that is not its own at present.
func (n *Network) claimsTooMuch(id ident.NodeID) bool {
	peer, d := n.issued[id], n.member(id)
	if peer == nil || d == nil {
		return false
	}
	identity, ok := n.policy.Identity(id)
	have := peer.Identity()
	within := func(claimed, own []netip.Prefix) bool {
		return !slices.ContainsFunc(claimed, func(p netip.Prefix) bool { return !slices.Contains(own, p) })
	}
	return !ok || have.Owner != d.Owner || peer.NodeKey() != d.NodeKey || !identity.Labels.HasAll(have.Labels) ||
		slices.ContainsFunc(have.Addresses, func(a netip.Addr) bool { return a != d.IPv4 && a != d.IPv6 }) ||
		!within(have.Routes, n.routes(d))
}

// Withhold returns the views that change because a certificate that claims more
// than is so could not be replaced, or because one is right again. It is to be
// called when no more can be done, after Renewals and what comes of them.
func (n *Network) Withhold() []Touch {
	var out []Touch
	tell := func(id ident.NodeID) {
		for _, viewer := range n.policy.Peers(id) {
			out = append(out, Touch{Viewer: viewer})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(n.withheld)) {
		if !n.claimsTooMuch(id) {
			delete(n.withheld, id)
			tell(id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(n.excessive)) {
		if n.claimsTooMuch(id) && !n.withheld[id] {
			n.withheld[id] = true
			tell(id)
		}
	}
	clear(n.excessive)
	return out
}

// HandleTimeout looks for certificates of which half the life is over, so that
// the next Renewals signs them anew. It is meant for every minute or so.
func (n *Network) HandleTimeout(now time.Time) {
	for _, d := range n.members() {
		if !n.upToDate(d, now) {
			n.stale[d.ID] = true
		}
	}
}
