package authority

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// Peer is a member whose certificate was verified. Only an Authority makes
// one; the zero value is nobody. A Peer is immutable.
type Peer struct {
	certificate Certificate
	identity    ident.Identity
	signed      []byte
}

// Identity returns what rules may know of the peer. The caller must not write
// to it.
func (p *Peer) Identity() *ident.Identity { return &p.identity }

// Node returns the peer's id.
func (p *Peer) Node() ident.NodeID { return p.certificate.Node }

// NodeKey returns the peer's WireGuard key.
func (p *Peer) NodeKey() ident.NodeKey { return p.certificate.NodeKey }

// Name returns the peer's name, one DNS label.
func (p *Peer) Name() string { return p.certificate.Name }

// Serial returns the serial of the certificate.
func (p *Peer) Serial() uint64 { return p.certificate.Serial }

// NotAfter returns when the peer stops being a member unless a newer
// certificate is admitted.
func (p *Peer) NotAfter() time.Time { return p.certificate.NotAfter }

// Signed returns the certificate as it was signed, to keep or to pass on. The
// caller must not write to it.
func (p *Peer) Signed() []byte { return p.signed }

// AllowedIPs returns the prefixes that packets of this peer may come from and
// go to: its own addresses as host prefixes, and its approved routes. The
// caller owns the slice.
func (p *Peer) AllowedIPs() []netip.Prefix {
	out := make([]netip.Prefix, 0, len(p.identity.Addresses)+len(p.identity.Routes))
	for _, a := range p.identity.Addresses {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return append(out, p.identity.Routes...)
}

// State is what an Authority has to remember across restarts so that nobody
// can take it back to the past. The zero value is that of a new device.
type State struct {
	// Epoch is the highest policy epoch admitted.
	Epoch ruleset.Epoch `json:"epoch"`
	// Serials holds, for every device ever admitted, the highest serial.
	Serials map[ident.NodeID]uint64 `json:"serials,omitempty"`
}

// maxSerials bounds State.Serials at twice the 65,536 peers that a WireGuard
// device can have. Beyond it devices that were never seen before are refused,
// which is the safe direction.
const maxSerials = 1 << 17

// Authority verifies on behalf of one device.
type Authority struct {
	genesis Genesis
	network ident.Fingerprint
	self    ident.NodeKey
	state   State
}

// New returns an Authority for the device whose node key is self. It takes
// over a copy of state. The error wraps ErrMalformed for a genesis record that
// is not sound.
func New(g *Genesis, self ident.NodeKey, state State) (*Authority, error) {
	if err := g.Validate(); err != nil {
		return nil, err
	}
	state.Serials = maps.Clone(state.Serials)
	if state.Serials == nil {
		state.Serials = make(map[ident.NodeID]uint64)
	}
	genesis := *g
	genesis.Signers = slices.Clone(g.Signers)
	return &Authority{genesis: genesis, network: g.Fingerprint(), self: self, state: state}, nil
}

// Network returns the fingerprint of the network.
func (a *Authority) Network() ident.Fingerprint { return a.network }

// Genesis returns the network's genesis record. The caller must not write to
// it.
func (a *Authority) Genesis() *Genesis { return &a.genesis }

// SetSelf tells the Authority that this device now has another node key.
func (a *Authority) SetSelf(key ident.NodeKey) { a.self = key }

// State returns a copy of what must be remembered.
func (a *Authority) State() State {
	return State{Epoch: a.state.Epoch, Serials: maps.Clone(a.state.Serials)}
}

// Admit verifies the signed certificate of another device and makes it a Peer.
// Nothing changes where it returns an error, which wraps ErrMalformed,
// ErrSigner, ErrSignature, ErrOutOfBounds, ErrExpired, ErrRollback, or
// ErrNotOurs for this device's own certificate. The slice is not kept.
func (a *Authority) Admit(signed []byte, now time.Time) (*Peer, error) {
	p, err := a.verify(signed, now)
	if err != nil {
		return nil, err
	}
	if p.NodeKey() == a.self {
		return nil, fmt.Errorf("%w: a device is not its own peer", ErrNotOurs)
	}
	a.remember(p)
	return p, nil
}

// AdmitSelf verifies this device's own certificate: Admit, but for the one
// certificate that must carry this device's key.
func (a *Authority) AdmitSelf(signed []byte, now time.Time) (*Peer, error) {
	p, err := a.verify(signed, now)
	if err != nil {
		return nil, err
	}
	if p.NodeKey() != a.self {
		return nil, fmt.Errorf("%w: a certificate for %v", ErrNotOurs, p.NodeKey().Short())
	}
	a.remember(p)
	return p, nil
}

func (a *Authority) remember(p *Peer) {
	if a.state.Serials[p.Node()] < p.Serial() {
		a.state.Serials[p.Node()] = p.Serial()
	}
}

func (a *Authority) verify(signed []byte, now time.Time) (*Peer, error) {
	body, err := a.genesis.open(kindDevice, a.network, signed)
	if err != nil {
		return nil, err
	}
	c, err := decodeCertificate(body)
	if err != nil {
		return nil, err
	}
	if err := c.check(&a.genesis); err != nil {
		return nil, err
	}
	if now.Add(clockSkew).Before(c.NotBefore) || !now.Before(c.NotAfter) {
		return nil, fmt.Errorf("%w: the certificate of %s holds from %v to %v", ErrExpired, c.Name,
			c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339))
	}
	seen, known := a.state.Serials[c.Node]
	if c.Serial < seen {
		return nil, fmt.Errorf("%w: certificate %d of %s, after %d", ErrRollback, c.Serial, c.Name, seen)
	}
	if !known && len(a.state.Serials) >= maxSerials {
		return nil, fmt.Errorf("%w: more than %d devices", ErrOutOfBounds, maxSerials)
	}
	return &Peer{
		certificate: *c,
		identity: ident.Identity{
			Node: c.Node, Owner: c.Owner, Labels: c.Labels, Addresses: c.Addresses, Routes: c.Routes,
		},
		signed: slices.Clone(signed),
	}, nil
}

// AdmitRules verifies rules that were made for the device named node, which is
// the one in this device's own certificate. Rules of a lower epoch than was
// ever admitted are a rollback. Nothing changes where it returns an error,
// which wraps ErrMalformed, ErrSigner, ErrSignature, ErrNotOurs or ErrRollback.
func (a *Authority) AdmitRules(signed []byte, node ident.NodeID) (*Rules, error) {
	body, err := a.genesis.open(kindRules, a.network, signed)
	if err != nil {
		return nil, err
	}
	r, err := decodeRules(body)
	if err != nil {
		return nil, err
	}
	if r.node != node {
		return nil, fmt.Errorf("%w: rules for %v", ErrNotOurs, r.node)
	}
	if r.set.Epoch < a.state.Epoch {
		return nil, fmt.Errorf("%w: policy epoch %d, after %d", ErrRollback, r.set.Epoch, a.state.Epoch)
	}
	a.state.Epoch = r.set.Epoch
	return r, nil
}
