package netmap

import (
	"fmt"
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
		if len(out) == maxRenewals {
			break
		}
		delete(n.stale, id)
		d := n.state.Device(id)
		if d == nil || n.upToDate(d, now) {
			continue
		}
		identity, ok := n.policy.Identity(id)
		if !ok {
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

// HandleTimeout looks for certificates of which half the life is over, so that
// the next Renewals signs them anew. It is meant for every minute or so.
func (n *Network) HandleTimeout(now time.Time) {
	for _, d := range n.state.Devices() {
		if !n.upToDate(d, now) {
			n.stale[d.ID] = true
		}
	}
}
