package engine

import (
	"sync"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/flowlog"
)

// collectInterval is for how long a filter's events wait until they are taken:
// short enough to follow them, and long enough that a flood costs the control
// goroutine no more than five visits a second to each peer.
const collectInterval = 200 * time.Millisecond

// flowLog is a flowlog.Log that readers can wait for.
type flowLog struct {
	mu      sync.Mutex    // protects the rest
	log     *flowlog.Log  // replaced before the first event
	changed chan struct{} // closed and replaced when there is something new
}

// update changes the log and wakes the readers where something is new.
func (l *flowLog) update(change func(*flowlog.Log)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	sequence, lost := l.log.Sequence(), l.log.Lost()
	change(l.log)
	if l.log.Sequence() != sequence || l.log.Lost() != lost {
		close(l.changed)
		l.changed = make(chan struct{})
	}
}

func (l *flowLog) nextTimeout() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, _ := l.log.NextTimeout()
	return at
}

// Flows is a part of the records of what the filters decided.
type Flows struct {
	// Records began or changed since; the oldest change comes first.
	Records []flowlog.Record
	// Next is what to ask for the records after these.
	Next uint64
	// Gap says that records in between were pushed out by newer ones.
	Gap bool
	// Lost is how many events never became records, since the engine was made.
	Lost uint64
	// Changed is closed when there is something new.
	Changed <-chan struct{}
}

// Flows returns the records that began or changed after the change with the
// given number, limit at most. 0 asks from the beginning. It may be called at
// any time.
func (e *Engine) Flows(after uint64, limit int) Flows {
	l := e.flows
	l.mu.Lock()
	defer l.mu.Unlock()
	f := Flows{Next: after, Lost: l.log.Lost(), Changed: l.changed}
	f.Records, f.Gap = l.log.Since(after, limit)
	if n := len(f.Records); n > 0 {
		f.Next = f.Records[n-1].Sequence
	}
	return f
}

// Denials returns the records of the latest denials, n at most, the newest
// first. It may be called at any time.
func (e *Engine) Denials(n int) []flowlog.Record {
	e.flows.mu.Lock()
	defer e.flows.mu.Unlock()
	return e.flows.log.Denials(n)
}

// note tells the control goroutine that p's filter has events.
func (e *Engine) note(p *peer) {
	if p.noted.Load() || !p.noted.CompareAndSwap(false, true) {
		return
	}
	select {
	case e.noted <- p:
	default:
		p.noted.Store(false) // the next one tries again
	}
}

// handleNote takes the peer's events soon.
func (c *control) handleNote(p *peer) {
	if c.peers[p.key] != p {
		return
	}
	if p.collect.IsZero() {
		p.collect = c.now().Add(collectInterval)
		c.schedule(p)
	}
}

// collect makes records of what p's filter decided.
func (c *control) collect(p *peer, now time.Time) {
	p.collect = time.Time{}
	p.noted.Store(false)
	c.events = c.events[:0]
	p.mu.Lock()
	for e, ok := p.filter.NextEvent(); ok; e, ok = p.filter.NextEvent() {
		c.events = append(c.events, e)
	}
	lost := p.filter.LostEvents()
	p.mu.Unlock()
	if len(c.events) == 0 && lost == 0 || c.cfg == nil {
		return
	}
	sides := flowlog.Sides{Self: partyOf(c.cfg.Self), Peer: partyOf(p.member)}
	c.e.flows.update(func(l *flowlog.Log) {
		for i := range c.events {
			l.Add(&sides, &c.events[i], now)
		}
		l.Lose(lost)
	})
	clear(c.events) // their texts
}

// collectAll takes the events of all peers, before something changes that is
// written into their records.
func (c *control) collectAll(now time.Time) {
	for _, p := range c.peers {
		c.collect(p, now)
	}
}

func partyOf(m *authority.Peer) flowlog.Party {
	return flowlog.Party{
		Node: m.Node(), Name: m.Name(), User: m.Identity().Owner, Certificate: m.Serial(),
	}
}
