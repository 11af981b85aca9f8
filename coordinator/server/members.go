package server

import (
	"errors"
	"fmt"
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

	mu sync.RWMutex // protects all below
	// keyOf is the present node key of each device, byKey the other way round.
	keyOf map[ident.NodeID]ident.NodeKey
	byKey map[ident.NodeKey]ident.NodeID
}

func newMembers(g *authority.Genesis, state *registry.State) *Members {
	m := &Members{
		genesis: g, network: g.Fingerprint().String(),
		keyOf: make(map[ident.NodeID]ident.NodeKey), byKey: make(map[ident.NodeKey]ident.NodeID),
	}
	for _, d := range state.Devices() {
		if !state.Suspended(d.Owner) {
			m.keyOf[d.ID], m.byKey[d.NodeKey] = d.NodeKey, d.ID
		}
	}
	return m
}

// Network returns the name under which relays know the network.
func (m *Members) Network() string { return m.network }

// Admit returns the network that the token admits the key to. The error wraps
// ErrNotMember or is authority.VerifyRelayToken's.
func (m *Members) Admit(node ident.NodeKey, token []byte, now time.Time) (network string, err error) {
	m.mu.RLock()
	_, member := m.byKey[node]
	m.mu.RUnlock()
	if !member {
		return "", fmt.Errorf("%w: %s", ErrNotMember, node.Short())
	}
	if err := authority.VerifyRelayToken(m.genesis, token, node, now); err != nil {
		return "", err
	}
	return m.network, nil
}

// follow takes over changes that were just applied to the state.
func (m *Members) follow(state *registry.State, c *registry.Changes) {
	if len(c.Devices) == 0 && len(c.Removed) == 0 && len(c.Users) == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	set := func(id ident.NodeID) {
		delete(m.byKey, m.keyOf[id])
		delete(m.keyOf, id)
		if d := state.Device(id); d != nil && !state.Suspended(d.Owner) {
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
}
