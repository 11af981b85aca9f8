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
	// Epoch is the highest policy epoch admitted, Rules the highest serial of
	// rules.
	Epoch ruleset.Epoch `json:"epoch"`
	Rules uint64        `json:"rules,omitempty"`
	// Candidate is the highest epoch of candidates admitted.
	Candidate ruleset.Epoch `json:"candidate,omitempty"`
	// Devices holds what is known of every device whose certificates may still
	// be used against this one.
	Devices map[ident.NodeID]Seen `json:"devices,omitempty"`
}

// Seen is what is remembered of a device's certificates: the highest serial,
// and when the last of them ends. After that nothing needs to be remembered: a
// certificate that comes back has ended as well.
type Seen struct {
	Serial   uint64    `json:"serial"`
	NotAfter time.Time `json:"not_after"`
}

const (
	// maxDevices bounds State.Devices at twice the 65,536 peers that a
	// WireGuard device can have. Beyond it devices that were never seen before
	// are refused, which is the safe direction.
	maxDevices = 1 << 17
	// forgetAfter is how long after the end of its last certificate a device is
	// remembered: certificates that were never shown to this device may end
	// later than those that were, where a coordinator shortened their life.
	forgetAfter = 30 * 24 * time.Hour
	// forgetWhenFull is how long where there is no room.
	forgetWhenFull = 24 * time.Hour
)

// Authority verifies on behalf of one device.
type Authority struct {
	genesis Genesis
	network ident.Fingerprint
	self    ident.NodeKey
	state   State
	// crowded is how many devices State.Devices may hold before it is looked
	// through for those to forget, so that looking costs little for each.
	crowded int
}

// leastCrowded keeps small networks from looking at all.
const leastCrowded = 1024

// New returns an Authority for the device whose node key is self. It takes
// over a copy of state. The error wraps ErrMalformed for a genesis record that
// is not sound.
func New(g *Genesis, self ident.NodeKey, state State) (*Authority, error) {
	if err := g.Validate(); err != nil {
		return nil, err
	}
	state.Devices = maps.Clone(state.Devices)
	if state.Devices == nil {
		state.Devices = make(map[ident.NodeID]Seen)
	}
	genesis := *g
	genesis.Signers = slices.Clone(g.Signers)
	return &Authority{genesis: genesis, network: g.Fingerprint(), self: self, state: state, crowded: leastCrowded}, nil
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
	state := a.state
	state.Devices = maps.Clone(state.Devices)
	return state
}

// ValidityError is why a certificate does not hold at present. It is
// ErrExpired, before its beginning too.
type ValidityError struct {
	// Name is the device's.
	Name string
	// Begin is when the certificate is first admitted, End when it no longer is.
	Begin, End time.Time
}

// Error says from when to when the certificate holds.
func (e *ValidityError) Error() string {
	return fmt.Sprintf("%v: the certificate of %s holds from %v to %v", ErrExpired, e.Name,
		e.Begin.Add(clockSkew).Format(time.RFC3339), e.End.Format(time.RFC3339))
}

// Unwrap returns ErrExpired.
func (e *ValidityError) Unwrap() error { return ErrExpired }

// Admit verifies the signed certificate of another device and makes it a Peer.
// Nothing changes where it returns an error, which wraps ErrMalformed,
// ErrSigner, ErrSignature, ErrOutOfBounds, ErrExpired (as a *ValidityError),
// ErrRollback, or ErrNotOurs for this device's own certificate. The slice is not kept.
func (a *Authority) Admit(signed []byte, now time.Time) (*Peer, error) {
	p, err := a.verify(signed, now)
	if err != nil {
		return nil, err
	}
	if p.NodeKey() == a.self {
		return nil, fmt.Errorf("%w: a device is not its own peer", ErrNotOurs)
	}
	if _, known := a.state.Devices[p.Node()]; !known && !a.room(now) {
		return nil, fmt.Errorf("%w: more than %d devices", ErrOutOfBounds, maxDevices)
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
	seen := a.state.Devices[p.Node()]
	seen.Serial = max(seen.Serial, p.Serial())
	if seen.NotAfter.Before(p.NotAfter()) {
		seen.NotAfter = p.NotAfter()
	}
	a.state.Devices[p.Node()] = seen
}

// room forgets devices that need not be remembered, now and then, and reports
// whether there is room for another.
func (a *Authority) room(now time.Time) bool {
	if len(a.state.Devices) >= a.crowded {
		a.forget(now.Add(-forgetAfter))
		a.crowded = min(max(leastCrowded, 2*len(a.state.Devices)), maxDevices)
	}
	if len(a.state.Devices) >= maxDevices {
		a.forget(now.Add(-forgetWhenFull))
	}
	return len(a.state.Devices) < maxDevices
}

// forget drops the devices whose last certificate ended before a time.
func (a *Authority) forget(before time.Time) {
	maps.DeleteFunc(a.state.Devices, func(_ ident.NodeID, s Seen) bool { return s.NotAfter.Before(before) })
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
	if begin := c.NotBefore.Add(-clockSkew); now.Before(begin) || !now.Before(c.NotAfter) {
		return nil, &ValidityError{Name: c.Name, Begin: begin, End: c.NotAfter}
	}
	if seen := a.state.Devices[c.Node].Serial; c.Serial < seen {
		return nil, fmt.Errorf("%w: certificate %d of %s, after %d", ErrRollback, c.Serial, c.Name, seen)
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
// the one in this device's own certificate. Rules of a lower epoch or serial
// than was ever admitted are a rollback. Nothing changes where it returns an
// error, which wraps ErrMalformed, ErrSigner, ErrSignature, ErrNotOurs or
// ErrRollback; or ErrUnreadable, for rules that are sound and newer and that
// this program cannot read. Then older ones must not stay in force, because the
// new ones may take access away, and they are refused from then on.
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
	if r.epoch < a.state.Epoch {
		return nil, fmt.Errorf("%w: policy epoch %d, after %d", ErrRollback, r.epoch, a.state.Epoch)
	}
	if r.serial < a.state.Rules {
		return nil, fmt.Errorf("%w: rules %d, after %d", ErrRollback, r.serial, a.state.Rules)
	}
	set, err := r.read()
	if err != nil && r.epoch == a.state.Epoch && r.serial == a.state.Rules {
		// Nothing says that these are newer.
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	a.state.Epoch, a.state.Rules = r.epoch, r.serial
	if err != nil {
		return nil, err
	}
	return &Rules{set: set, node: r.node, serial: r.serial}, nil
}
