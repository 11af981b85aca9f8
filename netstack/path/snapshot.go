package path

import (
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/netstack/disco"
)

// Snapshot is the state of an Agent for people. It shares nothing with the
// Agent.
type Snapshot struct {
	Primary Path
	// Why is why the primary became it, and Since when; zero where there never
	// was one.
	Why   Reason
	Since time.Time
	// Active means that the peer is used: paths are probed and watched.
	Active bool
	// MTU is that of the primary path, inside the tunnel.
	MTU int
	// Relay means that the relay can carry packets.
	Relay      bool
	Candidates []CandidateState // in order of arrival
	Birthday   BirthdayState
	Stats      Stats
}

// BirthdayState is how far the guessing of ports has come.
type BirthdayState struct {
	// Role is what this node does in the attempt that is under way, which began at
	// Began and has sent Sent probes of at most Most; Most is 0 for the opener,
	// who goes on until the attempt ends.
	Role       BirthdayRole
	Began      time.Time
	Sent, Most int
	// Local and Remote say for this node and the peer whether its NAT gives every
	// destination another port; MappingUnknown where nobody said.
	Local, Remote MappingKind
	// Failures is how many attempts in a row came to nothing, and Next when the
	// next one may begin, zero where none waits.
	Failures int
	Next     time.Time
}

// MappingKind is what is known of how a NAT maps.
type MappingKind uint8

const (
	// MappingUnknown means that it is not known.
	MappingUnknown MappingKind = iota
	// MappingEasy means that all destinations see one port.
	MappingEasy
	// MappingHard means that each destination sees another one.
	MappingHard
)

func kindOf(m disco.Mapping) MappingKind {
	switch {
	case !m.Public.IsValid():
		return MappingUnknown
	case m.Varies:
		return MappingHard
	}
	return MappingEasy
}

// snapshot returns the state for people.
func (b *birthday) snapshot() BirthdayState {
	s := BirthdayState{Role: b.role, Local: kindOf(b.mine), Remote: kindOf(b.theirs), Failures: b.failures}
	if b.role == BirthdayNone {
		s.Next = b.next
		return s
	}
	if s.Began, s.Sent = b.began, b.sent; b.role == BirthdayGuesser {
		s.Most = maxGuesses
	}
	return s
}

// Standing says what an address of the peer is worth at the moment.
type Standing uint8

const (
	// StandingPrimary: packets go there.
	StandingPrimary Standing = iota + 1
	// StandingWorks: it answers, and is not so much better than the primary that
	// it is worth to change (Better).
	StandingWorks
	// StandingProbing: it is being asked, and has not answered yet.
	StandingProbing
	// StandingSilent: it was asked again and again, and has not answered.
	StandingSilent
	// StandingStale: it answered once, too long ago to count.
	StandingStale
	// StandingLost: it was primary and stopped answering.
	StandingLost
	// StandingBarred: it answers, but carried no tunnel.
	StandingBarred
	// StandingIdle: it is not asked, since the peer is not used.
	StandingIdle
)

// String returns the standing in one word, which never changes.
func (s Standing) String() string {
	switch s {
	case StandingPrimary:
		return "primary"
	case StandingWorks:
		return "works"
	case StandingProbing:
		return "probing"
	case StandingSilent:
		return "silent"
	case StandingStale:
		return "stale"
	case StandingLost:
		return "lost"
	case StandingBarred:
		return "barred"
	case StandingIdle:
		return "idle"
	}
	return "unknown"
}

// CandidateState is what is known of one address of the peer.
type CandidateState struct {
	Addr netip.AddrPort
	// Socket is the number of the further socket that it is reached from, 0 for
	// the node's own port.
	Socket   uint32
	Sources  Source
	Standing Standing
	Class    Class
	// RTT is the least of the recent round trips, zero where none was measured.
	RTT time.Duration
	// Observed is the address at which the peer says that it saw this node when it
	// answered last, the zero value for none. It proves nothing.
	Observed netip.AddrPort
	// Cost is what candidates that work are compared by, less being better; zero
	// where no round trip was measured.
	Cost time.Duration
	// Proved is the time of the last answer, zero for none.
	Proved time.Time
	// Heard is when anything authentic came from there last, zero for never.
	Heard time.Time
	// Next is when it is asked next, zero for not.
	Next time.Time
	// Lost means that it was primary and stopped answering.
	Lost bool
	// Barred is until when it is not used since it carried no tunnel, zero for
	// never.
	Barred time.Time
	// MTU is the length of the longest packet of the tunnel's that was proved to
	// pass there, 0 where that was not asked or not answered: it is used with
	// BaseMTU then.
	MTU int
}

// Stats returns the counters.
func (a *Agent) Stats() Stats { return a.stats }

// Snapshot returns the state for people. It costs one allocation for the list.
func (a *Agent) Snapshot() Snapshot {
	s := Snapshot{
		Primary: a.primary, Why: a.why, Since: a.since, MTU: a.MTU(), Active: a.active, Relay: a.relay, Stats: a.stats,
		Birthday:   a.birthday.snapshot(),
		Candidates: make([]CandidateState, len(a.candidates)),
	}
	for i, c := range a.candidates {
		s.Candidates[i] = CandidateState{
			Addr: c.addr, Socket: c.socket, Sources: c.sources, Standing: a.standing(c), Class: ClassOf(c.addr.Addr()),
			RTT: c.rtt(), Proved: c.proved, Heard: c.heard, Next: c.next, Lost: c.lost, Barred: c.barred,
			MTU: c.sizes.proved, Observed: c.observed,
		}
		if len(c.samples) > 0 {
			s.Candidates[i].Cost = c.score().cost()
		}
	}
	return s
}

// standing returns what c is worth at a.now.
func (a *Agent) standing(c *candidate) Standing {
	switch {
	case c.path() == a.primary:
		return StandingPrimary
	case a.now.Before(c.barred):
		return StandingBarred
	case c.lost:
		return StandingLost
	case a.alive(c):
		return StandingWorks
	case !c.proved.IsZero():
		return StandingStale
	case c.next.IsZero() && (!a.active || c.step == 0):
		return StandingIdle
	case c.step < len(probeDelays):
		return StandingProbing
	}
	return StandingSilent
}
