package path

import (
	"net/netip"
	"time"
)

// Snapshot is the state of an Agent for people. It shares nothing with the
// Agent.
type Snapshot struct {
	Primary Path
	// Active means that the peer is used: paths are probed and watched.
	Active bool
	// Relay means that the relay can carry packets.
	Relay      bool
	Candidates []CandidateState // in order of arrival
	Stats      Stats
}

// CandidateState is what is known of one address of the peer.
type CandidateState struct {
	Addr    netip.AddrPort
	Sources Source
	Class   Class
	// RTT is the least of the recent round trips, zero where none was measured.
	RTT time.Duration
	// Proved is the time of the last answer, zero for none.
	Proved time.Time
	// Lost means that it was primary and stopped answering.
	Lost bool
	// Barred is until when it is not used since it carried no tunnel, zero for
	// never.
	Barred time.Time
}

// Snapshot returns the state for people. It costs one allocation for the list.
func (a *Agent) Snapshot() Snapshot {
	s := Snapshot{
		Primary: a.primary, Active: a.active, Relay: a.relay, Stats: a.stats,
		Candidates: make([]CandidateState, len(a.candidates)),
	}
	for i, c := range a.candidates {
		s.Candidates[i] = CandidateState{
			Addr: c.addr, Sources: c.sources, Class: ClassOf(c.addr.Addr()),
			RTT: c.rtt(), Proved: c.proved, Lost: c.lost, Barred: c.barred,
		}
	}
	return s
}
