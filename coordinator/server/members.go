package server

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/registry"
)

// ErrNotMember means a node key that no device has, or has no more, or that of a
// suspended user's device.
var ErrNotMember = errors.New("server: the key is no member's")

// Members says who may use the relay beside the coordinator. It knows of a
// revocation, and of a suspension, before anyone is told of it. It is safe for concurrent use and
// never waits for the loop.
type Members struct {
	genesis *authority.Genesis
	network string
	relay   string // the name of the relay, as tokens name it

	mu sync.RWMutex // protects all below
	// keyOf is the present node key of each device, byKey the other way round.
	keyOf map[ident.NodeID]ident.NodeKey
	byKey map[ident.NodeKey]ident.NodeID
	// gone are the keys that ceased to be members', the last one at the end.
	gone []goneKey
	// signed is what was last told to relays, at signedAt.
	signed   []byte
	signedAt time.Time
	fresh    bool // whether nothing happened since
}

// goneKey is a key that ceased to be a member's.
type goneKey struct {
	key ident.NodeKey
	at  time.Time
}

const (
	// goneLife is how long relays are told of a key.
	goneLife = registry.FormerKeyLife
	// signInterval is how often the time of the record is renewed. Relays want it
	// to be no older than minutes; whoever asks in between gets the same bytes.
	signInterval = time.Second
)

// newMembers begins with what relays were told before the coordinator started:
// devices that were revoked lately, keys that their devices gave up lately, and
// devices of suspended users, whenever that was. A relay that starts after the
// coordinator knows of nothing else. relay is the name of the one beside the
// coordinator; without one, Admit refuses everybody.
func newMembers(g *authority.Genesis, relay string, state *registry.State, now time.Time) *Members {
	m := &Members{
		genesis: g, network: g.Fingerprint().String(), relay: relay,
		keyOf: make(map[ident.NodeID]ident.NodeKey), byKey: make(map[ident.NodeKey]ident.NodeID),
	}
	// Each key is told of once: whoever is resumed is taken from the list once. Earlier
	// releases kept the records of former keys that devices have again.
	named := make(map[ident.NodeKey]bool)
	for _, d := range state.Devices() {
		named[d.NodeKey] = true
		if state.Suspended(d.Owner) {
			m.gone = append(m.gone, goneKey{d.NodeKey, now})
			continue
		}
		m.keyOf[d.ID], m.byKey[d.NodeKey] = d.NodeKey, d.ID
	}
	ended := func(key ident.NodeKey, at time.Time) {
		if !named[key] && now.Sub(at) < goneLife {
			named[key] = true
			m.gone = append(m.gone, goneKey{key, at})
		}
	}
	for _, r := range state.Revocations() {
		ended(r.NodeKey, r.Revoked)
	}
	for _, k := range state.FormerKeys() {
		ended(k.NodeKey, k.Ended)
	}
	slices.SortStableFunc(m.gone, func(a, b goneKey) int { return a.at.Compare(b.at) })
	m.forgetLocked(now) // nobody else has m yet
	return m
}

// Network returns the name under which relays know the network.
func (m *Members) Network() string { return m.network }

// Admit returns the network that the token admits the key to, until it is
// revoked. The token must name the relay beside the coordinator: one that was given
// for others is none for this one. The error wraps ErrNotMember or is authority.VerifyRelayToken's.
func (m *Members) Admit(node ident.NodeKey, token []byte, now time.Time) (network string, until time.Time, err error) {
	m.mu.RLock()
	_, member := m.byKey[node]
	m.mu.RUnlock()
	if !member {
		return "", time.Time{}, fmt.Errorf("%w: %s", ErrNotMember, node.Short())
	}
	if _, err := authority.VerifyRelayToken(m.genesis, token, node, m.relay, now); err != nil {
		return "", time.Time{}, err
	}
	return m.network, time.Time{}, nil
}

// Extend reports whether the key is a member's. What Admit returns does not end,
// so nobody needs to ask.
func (m *Members) Extend(network string, node ident.NodeKey, _ time.Time) (until time.Time, ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	_, member := m.byKey[node]
	return time.Time{}, member && network == m.network
}

// follow takes over changes that were just applied to the state.
func (m *Members) follow(state *registry.State, c *registry.Changes, now time.Time) {
	if len(c.Devices) == 0 && len(c.Removed) == 0 && len(c.Users) == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	set := func(id ident.NodeID) {
		d := state.Device(id)
		member := d != nil && !state.Suspended(d.Owner)
		if key, known := m.keyOf[id]; known && (!member || d.NodeKey != key) {
			m.gone, m.fresh = append(m.gone, goneKey{key, now}), false
		}
		if member {
			m.resumedLocked(d.NodeKey)
		}
		delete(m.byKey, m.keyOf[id])
		delete(m.keyOf, id)
		if member {
			m.keyOf[id], m.byKey[d.NodeKey] = d.NodeKey, id
		}
	}
	for _, u := range c.Users {
		for _, d := range state.DevicesOf(u.ID) {
			set(d.ID)
		}
	}
	for _, id := range c.Removed {
		set(id)
	}
	for _, d := range c.Devices {
		set(d.ID)
	}
	m.forgetLocked(now)
}

// resumedLocked has relays not be told of a key any more that is a member's
// again; m.mu is held.
func (m *Members) resumedLocked(key ident.NodeKey) {
	if i := slices.IndexFunc(m.gone, func(g goneKey) bool { return g.key == key }); i >= 0 {
		m.gone, m.fresh = slices.Delete(m.gone, i, i+1), false
	}
}

// forgetLocked drops the keys that relays need not be told of any more, and the
// oldest over what a record can name; m.mu is held.
func (m *Members) forgetLocked(now time.Time) {
	old := max(0, len(m.gone)-authority.MaxRelayRevocations)
	for old < len(m.gone) && now.Sub(m.gone[old].at) >= goneLife {
		old++
	}
	m.gone = slices.Delete(m.gone, 0, old)
}

// Revocations returns what relays elsewhere are told, signed: the keys that
// ceased to be members' lately. The error is authority.IssueRelayRevocations's.
func (m *Members) Revocations(signer ident.SignerPrivate, now time.Time) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fresh && now.Sub(m.signedAt) < signInterval {
		return m.signed, nil
	}
	m.forgetLocked(now)
	out := authority.RelayRevocations{Time: now.UTC().Truncate(time.Second)}
	for _, g := range m.gone {
		out.Keys = append(out.Keys, g.key)
	}
	signed, err := authority.IssueRelayRevocations(m.genesis, out, signer)
	if err != nil {
		return nil, err
	}
	m.signed, m.signedAt, m.fresh = signed, now, true
	return signed, nil
}
