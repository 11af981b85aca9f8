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
	// Measured is when the last of them was taken, zero for none.
	Measured time.Time
	// Barred is for how many peers the relay is barred at present.
	Barred int
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
	barred := make(map[*relay]int)
	for _, p := range m.ordered() {
		for _, b := range p.bars {
			if m.now.Before(b.until) {
				barred[b.relay]++
			}
		}
	}
	for _, r := range m.relays {
		state := RelayState{
			Name: r.name, Home: r == m.home, Standby: r == standby && r.state == ready, Connected: r.state == ready,
			Down: r.failures > 0 && r.state != ready, RTT: r.rtt(), Barred: barred[r],
		}
		if len(r.samples) > 0 {
			state.Measured = r.measured
		}
		s.Relays = append(s.Relays, state)
	}
	return s
}
