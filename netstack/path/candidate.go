package path

import (
	"net/netip"
	"slices"
	"time"

	"github.com/warren-overlay/warren/netstack/disco"
)

// Source says who named a candidate; a candidate can have several.
type Source uint8

const (
	// SourceListed is what SetRemoteCandidates was given.
	SourceListed Source = 1 << iota
	// SourceCalled is what the peer's last CallMe named.
	SourceCalled
	// SourceObserved is where an authentic ping came from.
	SourceObserved
	// SourceProved is a path that works: it outlives those who named it, so that
	// a list that changes does not cut it.
	SourceProved
	// SourceGuessed is where a guess was right: the two found each other by the
	// birthday method, whichever of them this one is.
	SourceGuessed
)

const (
	// maxListed bounds each of the two lists that others write: what one CallMe
	// can hold. A peer that lists more gets the first of them probed.
	maxListed = disco.MaxEndpoints
	// maxObserved bounds the addresses that pings came from: an enrolled peer
	// can forge any number of sources, and each would cost probes to a stranger.
	// The one heard longest ago makes room.
	maxObserved = 8
	// maxOutstanding is how many unanswered challenges to one candidate are
	// remembered: all of a burst (probeDelays) or a check.
	maxOutstanding = 8
	// answerAge is how late an answer may come. Longer than any path that is of
	// use, short enough that an answer proves the present.
	answerAge = 5 * time.Second
	// maxSamples is how many round trips a candidate's RTT is the least of.
	maxSamples = 4
)

type challenge struct {
	id disco.TxID
	at time.Time
}

// candidate is one address of the peer.
type candidate struct {
	addr    netip.AddrPort
	socket  uint32 // that it is reached from, 0 for the node's own port
	sources Source

	proved  time.Time // last answer, zero for never or since the network changed
	lost    bool      // was primary and stopped answering; until the next answer
	doubted bool      // has not answered since the primary was found lost
	barred  time.Time // until when it is not used, since it carries no tunnel
	bars    int       // how often in a row it was barred
	heard   time.Time // last ping, pong or data from there
	carried time.Time // last data from there
	pinged  time.Time // last ping from there
	guessed time.Time // when it was found by a guess, zero for never
	// observed is where the peer saw this node in the last ping that it answered, for
	// people: it is the peer's word, and nothing is decided by it.
	observed netip.AddrPort
	samples  []time.Duration

	outstanding []challenge // oldest first
	wanted      time.Time   // when the last challenge fell due
	sizes       sizes       // what the path carries

	step int       // next delay of its schedule
	next time.Time // when to probe; zero for not scheduled
	due  time.Time // when a probe fell due that was not sent yet; zero for none
}

// path is the path there.
func (c *candidate) path() Path { return Path{Direct, c.addr, c.socket} }

func (c *candidate) rtt() time.Duration {
	if len(c.samples) == 0 {
		return 0
	}
	return slices.Min(c.samples)
}

// stray reports whether nothing is known of an address but that a ping came from
// there.
func (c *candidate) stray() bool { return c.sources == SourceObserved && c.proved.IsZero() }

func (c *candidate) score() Score {
	return Score{Kind: Direct, Class: ClassOf(c.addr.Addr()), RTT: c.rtt()}
}

// answer takes a pong and reports whether it answers a challenge that was sent
// to this candidate.
func (c *candidate) answer(id disco.TxID, now time.Time) bool {
	for i, o := range c.outstanding {
		if o.id != id {
			continue
		}
		// Each challenge is answered once. Older ones may still be on their way.
		c.outstanding = slices.Delete(c.outstanding, i, i+1)
		took := now.Sub(o.at)
		if took > answerAge {
			return false
		}
		if len(c.samples) == maxSamples {
			c.samples = slices.Delete(c.samples, 0, 1)
		}
		c.samples = append(c.samples, took)
		c.prove(now)
		return true
	}
	return false
}

// prove notes that a challenge was answered.
func (c *candidate) prove(now time.Time) {
	c.proved, c.heard, c.lost, c.doubted = now, now, false, false
	c.sources |= SourceProved
}

// find returns the candidate that a direct path goes to, nil for none.
func (a *Agent) find(p Path) *candidate {
	for _, c := range a.candidates {
		if c.path() == p {
			return c
		}
	}
	return nil
}

// add returns the candidate of a direct path after adding a source to it.
func (a *Agent) add(p Path, source Source) *candidate {
	c := a.find(p)
	if c == nil {
		c = &candidate{addr: p.Addr, socket: p.Socket}
		a.candidates = append(a.candidates, c)
	}
	c.sources |= source
	return c
}

// replace makes addrs the candidates of a source and returns those that are
// new. Addresses that can not be probed are left out, and so is what is over
// the cap.
func (a *Agent) replace(addrs []netip.AddrPort, source Source) (added []*candidate) {
	for _, c := range a.candidates {
		c.sources &^= source
	}
	kept := 0
	for _, addr := range addrs {
		addr = unmap(addr)
		if !a.usable(addr) {
			a.stats.RefusedCandidates++
			continue
		}
		if kept == maxListed {
			a.stats.CandidatesOverCap++
			continue
		}
		kept++
		known := a.find(DirectTo(addr)) != nil
		if c := a.add(DirectTo(addr), source); !known {
			added = append(added, c)
		}
	}
	a.prune()
	return added
}

// observe adds the source of an authentic ping.
func (a *Agent) observe(p Path) *candidate {
	if c := a.find(p); c != nil {
		return c
	}
	var oldest *candidate
	count := 0
	for _, c := range a.candidates {
		if c.sources != SourceObserved || c.path() == a.primary {
			continue
		}
		count++
		if oldest == nil || c.heard.Before(oldest.heard) {
			oldest = c
		}
	}
	if count >= maxObserved {
		a.stats.CandidatesOverCap++
		oldest.sources = 0
		a.prune()
	}
	return a.add(p, SourceObserved)
}

// prune removes candidates that nobody names any more, but never the primary,
// which is in the list for as long as it is primary.
func (a *Agent) prune() {
	a.candidates = slices.DeleteFunc(a.candidates, func(c *candidate) bool {
		if c.sources == 0 && c.path() == a.primary {
			c.sources = SourceObserved
		}
		return c.sources == 0
	})
}

// usable reports whether an address may be probed.
func (a *Agent) usable(p netip.AddrPort) bool {
	addr := p.Addr()
	switch {
	case !p.IsValid(), p.Port() == 0, addr.Zone() != "",
		addr.IsUnspecified(), addr.IsMulticast(), addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}),
		addr.Is6() && addr.IsLinkLocalUnicast(),
		addr.IsLoopback() && !a.cfg.Loopback:
		return false
	}
	return a.cfg.Refuse == nil || !a.cfg.Refuse(addr)
}
