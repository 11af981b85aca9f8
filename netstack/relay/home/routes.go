package home

import (
	"io"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/disco"
)

const (
	// restAfter is after how long without use a peer is not asked any more.
	restAfter = 10 * time.Second
	// restart is after how long without use the route to a peer is chosen anew: the
	// peer may have left a relay that is not its home (idleClose).
	restart = 30 * time.Second
	// checkInterval is how often a peer that is used is asked over its relay, and
	// checkSpacing the time between the questions of one check, of which there are
	// checkTries. With them a relay that carries nothing is left after 2.8 s, which
	// leaves 2.2 of the 5 s that a failover may take (F06, F20) to find another, and
	// one more where that one is in vain. They cost 150 bytes each way in a second.
	checkInterval = time.Second
	checkSpacing  = 600 * time.Millisecond
	checkTries    = 3
	// hurrySpacing takes checkSpacing's place where a relay was left and the next is
	// not proved yet, so that two that fail together are left in time.
	hurrySpacing = 400 * time.Millisecond
	// heardFor is how long an answer over a relay recommends it.
	heardFor = 15 * time.Second
	// lostFor is how long a relay on which a peer was not found is tried after
	// others.
	lostFor = 3 * time.Minute
	// arrival is for how long after a route was chosen the relay's word that the peer
	// is not there is passed over: where both have lost a relay at one moment, the
	// other is on its way.
	arrival = 400 * time.Millisecond
	// minStay is the least time between two changes of a route to relays that
	// failed before, so that a peer that is nowhere costs little.
	minStay = time.Second

	// A peer's pings are answered at answerInterval in the mean; its checks come at
	// a third of that rate, or the whole while they are not answered.
	answerInterval = 350 * time.Millisecond
	answerBurst    = 8
)

// question is a ping that was not answered yet.
type question struct {
	id  disco.TxID
	via *relay
	at  time.Time // when it was sent
}

// mark is a time noted for a relay.
type mark struct {
	relay *relay
	at    time.Time
}

// peer is one peer.
type peer struct {
	key  ident.NodeKey
	home string

	via    *relay    // where packets go; nil for no relay
	chosen time.Time // since when
	active bool
	used   time.Time

	// asked is when the check began that is not answered, zero for none; tries is
	// how many of its questions were sent.
	asked     time.Time
	tries     int
	hurry     bool       // another relay was left, and via is not proved yet
	proved    time.Time  // last answer over via, or when it was chosen
	questions []question // at most maxQuestions, the oldest makes room
	lost      []mark     // relays where it was not found, at most one each
	heard     mark       // where it answered last

	inTunnel bool // its last answer said that it answers inside the tunnel, too
	tunnel   tunnelCheck
	carried  bool          // via carried an answer inside it since it was chosen
	took     time.Duration // of the last answer inside it, zero for none yet
	followed time.Time     // when via was last chosen since the peer asked over it
	bars     []bar         // relays that carried no tunnel to it, at most one each

	answers  int       // pings of it that may be answered now
	answered time.Time // since when the next one grows
}

// maxQuestions bounds the questions whose answers are awaited: those of two
// checks.
const maxQuestions = 2 * checkTries

func (p *peer) mayAnswer(now time.Time) bool {
	if n := now.Sub(p.answered) / answerInterval; n > 0 {
		p.answers = int(min(answerBurst, time.Duration(p.answers)+n))
		p.answered = p.answered.Add(n * answerInterval)
	}
	if p.answers == 0 {
		return false
	}
	p.answers--
	return true
}

// takeAnswer returns when the question was sent that is answered, and whether there
// is one.
func (p *peer) takeAnswer(via *relay, id disco.TxID) (asked time.Time, ok bool) {
	i := slices.IndexFunc(p.questions, func(q question) bool { return q.id == id && q.via == via })
	if i < 0 {
		return time.Time{}, false
	}
	asked = p.questions[i].at
	p.questions = slices.Delete(p.questions, i, i+1)
	return asked, true
}

// lostAt returns when the peer was not found at r, or r was found to carry no tunnel
// to it; zero for not lately.
func (p *peer) lostAt(r *relay, now time.Time) time.Time {
	for _, l := range p.lost {
		if l.relay == r && now.Sub(l.at) < lostFor {
			return later(l.at, p.barredAt(r, now))
		}
	}
	return p.barredAt(r, now)
}

// markLost notes that the peer was not found at r.
func (p *peer) markLost(r *relay, now time.Time) {
	p.unmark(r)
	p.lost = append(p.lost, mark{r, now})
}

func (p *peer) unmark(r *relay) {
	p.lost = slices.DeleteFunc(p.lost, func(l mark) bool { return l.relay == r })
}

// forget drops what is known of a relay that is gone.
func (p *peer) forget(r *relay) {
	p.unmark(r)
	p.questions = slices.DeleteFunc(p.questions, func(q question) bool { return q.via == r })
	p.bars = slices.DeleteFunc(p.bars, func(b bar) bool { return b.relay == r })
	if p.heard.relay == r {
		p.heard = mark{}
	}
}

// spacing is the time between two questions.
func (p *peer) spacing() time.Duration {
	if p.hurry {
		return hurrySpacing
	}
	return checkSpacing
}

// settleAnew begins to wait for answers anew.
func (p *peer) settleAnew(now time.Time) { p.asked, p.tries, p.proved = time.Time{}, 0, now }

// use makes p active; fresh says that it was lately.
func (m *Machine) use(p *peer, fresh bool) {
	if !p.active {
		p.active = true
		p.proved = m.now.Add(-checkInterval) // ask at once
		p.asked, p.tries = time.Time{}, 0
		m.active = append(m.active, p)
		if !fresh {
			m.setRoute(p, m.bestRoute(p))
		}
	}
	m.route(p)
	if p.via != nil {
		p.via.used = m.now
	}
}

// rest ends the activity of peers that are not used.
func (m *Machine) rest() {
	m.active = slices.DeleteFunc(m.active, func(p *peer) bool {
		if m.now.Sub(p.used) < restAfter {
			if p.via != nil {
				p.via.used = later(p.via.used, p.used)
			}
			return false
		}
		p.active, p.asked, p.tries, p.questions, p.tunnel = false, time.Time{}, 0, nil, tunnelCheck{}
		return true
	})
}

// checkTime returns when p is to be asked next, or its route given up.
func (m *Machine) checkTime(p *peer) time.Time {
	next := p.used.Add(restAfter)
	switch {
	case p.via == nil || p.via.state != ready:
		return next
	case p.asked.IsZero():
		return earlier(next, later(p.proved.Add(checkInterval), m.now))
	}
	return earlier(next, later(p.asked.Add(time.Duration(p.tries)*p.spacing()), m.now))
}

// check asks p over its relay where it is time, and leaves a relay on which
// nothing is answered.
func (m *Machine) check(p *peer) {
	if barred := p.via != nil && p.barred(p.via, m.now); barred || p.via == nil || m.down(p.via) {
		best := m.bestRoute(p)
		if best != nil && (!m.down(best) || p.via == nil) && (!barred || m.down(p.via) || p.lostAt(best, m.now).IsZero()) {
			m.setRoute(p, best)
		}
	}
	if p.via == nil || p.via.state != ready {
		return
	}
	if p.asked.IsZero() {
		if m.now.Before(p.proved.Add(checkInterval)) {
			return
		}
		p.asked, p.tries = m.now, 0
	}
	if m.now.Before(p.asked.Add(time.Duration(p.tries) * p.spacing())) {
		return
	}
	if p.tries == checkTries {
		m.stats.RoutesLost++
		m.lose(p, p.via)
		if p.via == nil || p.via.state != ready {
			return
		}
		p.asked, p.tries = m.now, 0
	}
	p.tries++
	m.ask(p)
}

// ask sends one question over p's relay.
func (m *Machine) ask(p *peer) {
	var id disco.TxID
	if _, err := io.ReadFull(m.cfg.Rand, id[:]); err != nil {
		m.stats.RandFailed++
		return
	}
	if len(p.questions) == maxQuestions {
		p.questions = slices.Delete(p.questions, 0, 1)
	}
	p.questions = append(p.questions, question{id, p.via, m.now})
	m.stats.ChecksSent++
	m.emit(Output{Kind: Check, Relay: p.via.name, Peer: p.key, TxID: id})
}

// proved notes that p answered over r what it was asked at a time.
func (m *Machine) proved(p *peer, r *relay, asked time.Time) {
	p.heard = mark{r, m.now}
	p.unmark(r)
	if p.via == r {
		p.hurry = false
		p.tunnel.answeredBeside(asked, m.now)
		p.settleAnew(m.now)
	}
}

// hint takes for possible that p is found at r.
func (m *Machine) hint(p *peer, r *relay) {
	if r.state != ready || p.via == r {
		return
	}
	p.unmark(r)
	if p.barred(r, m.now) && p.via != nil && !m.down(p.via) {
		return // what comes so is no sign of the tunnel
	}
	if p.via == nil || p.via.state != ready || p.lostAt(p.via, m.now) != (time.Time{}) || p.tries > 1 {
		if p.via != nil && p.tries > 1 {
			// The peer was quicker to leave it. Were that forgotten, the two would look for
			// each other at different relays when the next one fails, too.
			p.markLost(p.via, m.now)
		}
		m.setRoute(p, r)
	}
}

// gone notes that p is not at r.
func (m *Machine) gone(p *peer, r *relay) {
	if p.via != r || !p.active || m.now.Sub(p.chosen) < arrival {
		return
	}
	m.lose(p, r)
}

// lose leaves r, where p was not found.
func (m *Machine) lose(p *peer, r *relay) {
	p.markLost(r, m.now)
	if p.heard.relay == r {
		p.heard = mark{}
	}
	p.hurry = true
	m.leave(p)
	if p.via == r {
		p.settleAnew(m.now)
	}
}

// leave gives p the best route that there is now.
func (m *Machine) leave(p *peer) {
	best := m.bestRoute(p)
	if best != nil && p.lostAt(best, m.now) != (time.Time{}) && m.now.Sub(p.chosen) < minStay && p.via != nil && !m.down(p.via) {
		return
	}
	m.setRoute(p, best)
}

// handleHome notices that p is said to listen elsewhere: what the coordinator
// says of the peer is newer than that it was not found there, and goes before a
// route that is not proved at present.
func (m *Machine) handleHome(p *peer) {
	r := m.find(p.home)
	if r == nil {
		m.route(p)
		return
	}
	p.unmark(r)
	if p.barred(r, m.now) && p.via != nil {
		return
	}
	if p.via == nil || !p.active || p.heard.relay != p.via || m.now.Sub(p.heard.at) >= heardFor {
		m.setRoute(p, r)
	}
}

// route gives p a route where it has none.
func (m *Machine) route(p *peer) {
	if p.via == nil {
		m.setRoute(p, m.bestRoute(p))
	}
}

func (m *Machine) setRoute(p *peer, r *relay) {
	if p.via == r {
		return
	}
	p.via, p.chosen, p.tunnel, p.carried, p.took = r, m.now, tunnelCheck{}, false, 0
	p.settleAnew(m.now)
	if p.active && r != nil {
		r.used = m.now
		p.proved = m.now.Add(-checkInterval) // ask at once
	}
	m.stats.RouteChanges++
	o := Output{Kind: RouteChanged, Peer: p.key}
	if r != nil {
		o.Relay = r.name
	}
	m.emit(o)
}

// bestRoute returns the relay to try for p: one that works, where it was not in
// vain lately, where p answered, then its home, then one that is connected, then
// in the order of the configuration; of those in vain, the one longest ago.
func (m *Machine) bestRoute(p *peer) *relay {
	var best *relay
	for _, r := range m.relays {
		if best == nil || m.compareRoutes(p, r, best) < 0 {
			best = r
		}
	}
	return best
}

func (m *Machine) compareRoutes(p *peer, a, b *relay) int {
	// One that failed before is worth another attempt when its wait is over.
	failed := func(r *relay) bool { return m.down(r) && (r.state != idle || m.now.Before(m.attempt(r))) }
	if failed(a) != failed(b) {
		return order(failed(b))
	}
	la, lb := p.lostAt(a, m.now), p.lostAt(b, m.now)
	switch {
	case la.IsZero() != lb.IsZero():
		return order(la.IsZero())
	case !la.IsZero() && !la.Equal(lb):
		return order(la.Before(lb))
	}
	heard := func(r *relay) bool { return p.heard.relay == r && m.now.Sub(p.heard.at) < heardFor }
	switch {
	case heard(a) != heard(b):
		return order(heard(a))
	case (a.name == p.home) != (b.name == p.home):
		return order(a.name == p.home)
	case (a.state == ready) != (b.state == ready):
		return order(a.state == ready)
	}
	return 0
}
