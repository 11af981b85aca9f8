package home

import (
	"time"
)

// RelayState is what is known of one relay.
type RelayState struct {
	Name string
	Home bool
	// Standby means that the node listens there for peers that lost its home.
	Standby bool
	// Connected means that the relay admitted this node.
	Connected bool
	// Down means that the last attempt failed, or the connection ended, and none
	// was admitted since.
	Down bool
	// RTT is the least of the recent round trips, zero where none is known.
	RTT time.Duration
}

// Snapshot is the state of a Machine for people. It shares nothing with the
// Machine.
type Snapshot struct {
	Relays []RelayState // in the order of the configuration
	Stats  Stats
}

// Snapshot returns the state for people.
func (m *Machine) Snapshot() Snapshot {
	s := Snapshot{Relays: make([]RelayState, 0, len(m.relays)), Stats: m.stats}
	standby := m.standby()
	for _, r := range m.relays {
		s.Relays = append(s.Relays, RelayState{
			Name: r.name, Home: r == m.home, Standby: r == standby && r.state == ready, Connected: r.state == ready,
			Down: m.down(r), RTT: r.rtt(),
		})
	}
	return s
}
