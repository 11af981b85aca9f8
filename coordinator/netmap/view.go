package netmap

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/registry"
	"github.com/warren-overlay/warren/coordinator/wire"
)

// Map returns the whole view of a device, with neither sequence nor relay
// token. The error wraps ErrNoView.
func (n *Network) Map(id ident.NodeID) (*wire.Map, error) {
	own := n.issued[id]
	if own == nil || n.member(id) == nil {
		return nil, fmt.Errorf("%w: %v has no certificate", ErrNoView, id)
	}
	rules, err := n.signedRules(id, own.Serial())
	if err != nil {
		return nil, err
	}
	m := &wire.Map{
		Self: own.Signed(), Rules: rules, Peers: make(map[ident.NodeID]wire.Peer),
		Candidate: n.signedCandidate(id),
		Settings:  wire.Settings{Relays: n.cfg.Relays, STUN: n.cfg.STUN, Off: n.off()},
	}
	owners := make(map[ident.UserID]bool)
	owners[own.Identity().Owner] = true
	for _, peer := range n.policy.Peers(id) {
		p, ok := n.Peer(peer)
		if !ok {
			continue
		}
		m.Peers[peer] = p
		owners[n.issued[peer].Identity().Owner] = true
	}
	for _, owner := range slices.Sorted(maps.Keys(owners)) {
		if u := n.state.User(owner); u != nil {
			m.Settings.Users = append(m.Settings.Users, wire.User{ID: u.ID, Login: u.Login})
		}
	}
	return m, nil
}

// features are the features of the registry in the words of the protocol, by
// ascending number.
var features = []struct {
	name   registry.Feature
	number wire.Feature
}{{registry.FeaturePortMapping, wire.FeaturePortMapping}}

// off returns what is turned off for all devices; coordinator/DESIGN.md says why it
// is not signed.
func (n *Network) off() []wire.Feature {
	var out []wire.Feature
	for _, f := range features {
		if !n.state.Off(f.name).IsZero() {
			out = append(out, f.number)
		}
	}
	return out
}

// Peer returns what is told of a device to those that may see it, and whether
// there is anything. It does not say who may. A certificate that claims more
// than is so, because the one that replaces it could not be recorded yet, is
// told to nobody: without it there is one peer less, with it a peer may do what
// it was forbidden.
func (n *Network) Peer(id ident.NodeID) (wire.Peer, bool) {
	cert := n.issued[id]
	if cert == nil || n.claimsTooMuch(id) {
		return wire.Peer{}, false
	}
	p := n.presence[id]
	return wire.Peer{
		Certificate: cert.Signed(),
		State:       wire.PeerState{Endpoints: p.Endpoints, Online: p.Online, OS: p.OS, HomeRelay: p.HomeRelay},
	}, true
}

// signedRules returns the rules of a device under a serial. At one epoch they
// change only with what the device's certificate says, so that its serial makes
// rules of before recognisable, and is the same after a restart.
func (n *Network) signedRules(id ident.NodeID, serial uint64) ([]byte, error) {
	if signed := n.rules[id]; signed != nil {
		return signed, nil
	}
	set := n.policy.RuleSet(id)
	if set == nil {
		return nil, fmt.Errorf("%w: the policy does not know %v", ErrNoView, id)
	}
	signed, err := authority.IssueRules(n.cfg.Genesis, id, serial, set, n.cfg.Signer)
	if err != nil {
		return nil, fmt.Errorf("%w: rules of %v: %w", ErrNoView, id, err)
	}
	n.rules[id] = signed
	return signed, nil
}

// tokenValidity leaves room for the clock of a relay that is ahead.
const tokenValidity = authority.RelayTokenValidity - time.Minute

// RelayToken returns an admission to the relays for a device's present key,
// and when the next one is due: before half of its life. The error wraps
// ErrNoView.
func (n *Network) RelayToken(id ident.NodeID, now time.Time) (token []byte, renew time.Time, err error) {
	d := n.member(id)
	if d == nil {
		return nil, time.Time{}, fmt.Errorf("%w: there is no device %v", ErrNoView, id)
	}
	t := authority.RelayToken{NodeKey: d.NodeKey, NotAfter: now.Add(tokenValidity).UTC().Truncate(time.Second)}
	for _, r := range n.cfg.Relays {
		t.Relays = append(t.Relays, r.Name)
	}
	token, err = authority.IssueRelayToken(n.cfg.Genesis, t, n.cfg.Signer)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("%w: relay token of %v: %w", ErrNoView, id, err)
	}
	return token, now.Add(tokenValidity * 2 / 5), nil
}
