package home

import (
	"encoding/binary"
	"io"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

// A relay can tell a disco.Ping from the tunnel's packets, and may carry the one and
// drop the others. So a peer that says it answers there (disco.Pong.InTunnel) is
// asked inside the tunnel, too, in packets that a relay cannot tell from data. Its
// silence there means something only while it answers beside the tunnel: a peer that
// is not there at all is silent everywhere.
const (
	// tunnelInterval is the longest time from an answer to the next check. Each wait
	// is drawn from its upper half: in a fixed beat questions could be told from data.
	tunnelInterval = time.Second
	// tunnelTries is how many questions one check has, and tunnelSpacing the longest
	// time between two of them, drawn likewise. Where a tenth of all packets is lost on
	// the way there, and on the way back, one check in 110,000 is in vain, and where it
	// is a fifth one in 1,300; with three questions it would be one in 150 and in 20. With
	// them, a relay that drops what is the tunnel's is left 1.2 s after it begins at
	// the earliest, and after 3.3 s and two round trips at the latest, of the 5 s of F20.
	tunnelTries   = 7
	tunnelSpacing = 280 * time.Millisecond
	// renewEvery is after how many questions without an answer a session is made, and
	// again: the peer may have been started again, and not know the one that there is,
	// or there is none, and what was said of one was lost on the way. Where the relay
	// carries handshakes, the session comes in time for the questions that wait for it.
	// The first of them must be older than an answer took last.
	renewEvery = 2
	// tunnelGrace is how much longer an answer inside the tunnel may take than one
	// beside it: it goes through WireGuard's queues at both ends.
	tunnelGrace = 250 * time.Millisecond
	// barTime is for how long a relay that carried no tunnel is used only where there
	// is no other; it doubles up to maxBarTime for one that is barred again before
	// as long has gone by. A new attempt costs the traffic some three seconds.
	barTime    = 5 * time.Minute
	maxBarTime = 80 * time.Minute
	// barredSpacing takes tunnelSpacing's place over a relay that is barred and has
	// to be used all the same.
	barredSpacing = 2 * time.Second
	// barredStay is the least time between two attempts to find the peer at a relay
	// where it was not found, while another carries no tunnel to it.
	barredStay = time.Minute
	// followFor is for how long after a route was chosen a question of the peer's that
	// came inside the tunnel over another relay is reason enough to take that one,
	// where nothing else is known of the first; followOverdue is how many questions
	// without an answer make it so later. followGap is the least time between two such
	// changes, since both ends may follow each other at one moment.
	followFor     = time.Second
	followOverdue = 2
	followGap     = 30 * time.Second
)

// tunnelQuestion is a question inside the tunnel that was not answered yet.
type tunnelQuestion struct {
	nonce uint64
	at    time.Time // when it was sent
}

// tunnelCheck is the check whether a peer is reached inside the tunnel over its relay.
// The zero value is none under way, and the next at once.
type tunnelCheck struct {
	next      time.Time        // when the next question is due
	questions []tunnelQuestion // without an answer, at most tunnelTries
	draw      byte             // of the check under way
	// overdue is how many of them were sent before something that the peer was asked
	// beside the tunnel, and has answered; alive is since when they are all of them,
	// zero for not yet. prompted says that the peer was asked for that.
	overdue  int
	alive    time.Time
	prompted bool
}

// answeredBeside notes that the peer answered beside the tunnel what it was asked at a
// time.
func (t *tunnelCheck) answeredBeside(asked, now time.Time) {
	for t.overdue < len(t.questions) && t.questions[t.overdue].at.Before(asked) {
		t.overdue++
	}
	if t.overdue == tunnelTries && t.alive.IsZero() {
		t.alive = now
	}
}

// bar notes a relay that carried no tunnel to a peer.
type bar struct {
	relay *relay
	at    time.Time // when that was found last
	until time.Time
	times int // in a row
}

// barredAt returns when r was found not to carry the tunnel, zero where it is not
// barred.
func (p *peer) barredAt(r *relay, now time.Time) time.Time {
	for _, b := range p.bars {
		if b.relay == r && now.Before(b.until) {
			return b.at
		}
	}
	return time.Time{}
}

func (p *peer) barred(r *relay, now time.Time) bool { return !p.barredAt(r, now).IsZero() }

// bar bars p's relay.
func (p *peer) bar(now time.Time) {
	i := slices.IndexFunc(p.bars, func(b bar) bool { return b.relay == p.via })
	if i < 0 {
		p.bars = append(p.bars, bar{relay: p.via})
		i = len(p.bars) - 1
	}
	b := &p.bars[i]
	switch {
	case b.times == 0, now.Sub(b.until) >= maxBarTime:
		b.times = 1
	case !now.Before(b.until):
		b.times++
	}
	b.at, b.until = now, now.Add(min(barTime<<min(b.times-1, 8), maxBarTime))
}

// unbar ends the bar of p's relay, which carries the tunnel.
func (p *peer) unbar(now time.Time) {
	for i := range p.bars {
		if b := &p.bars[i]; b.relay == p.via && now.Before(b.until) {
			b.until = now
		}
	}
}

// tunnelTime returns when the check of p's tunnel goes on, zero for not by itself.
func (m *Machine) tunnelTime(p *peer) time.Time {
	t := &p.tunnel
	switch {
	case !m.tunnelCounts(p):
		return time.Time{}
	case !t.alive.IsZero():
		return later(t.alive.Add(tunnelGrace), m.now)
	case t.prompted:
		return time.Time{}
	}
	return later(t.next, m.now)
}

// tunnelCounts reports whether p answers inside the tunnel, as far as it said, and
// has answered lately beside it over its relay.
func (m *Machine) tunnelCounts(p *peer) bool {
	return p.inTunnel && p.via != nil && p.via.state == ready && p.heard.relay == p.via &&
		!p.heard.at.Before(p.chosen) && m.now.Sub(p.heard.at) < checkInterval+checkTries*checkSpacing
}

// checkTunnel asks p inside the tunnel where it is time, and bars a relay over which
// it answers nowhere but beside it.
func (m *Machine) checkTunnel(p *peer) {
	t := &p.tunnel
	due := m.tunnelTime(p)
	if due.IsZero() || m.now.Before(due) {
		return
	}
	switch {
	case len(t.questions) < tunnelTries:
		m.askInTunnel(p)
	case t.alive.IsZero():
		t.prompted = true
		m.ask(p)
	default:
		m.barRoute(p)
	}
}

// askInTunnel sends one question inside the tunnel over p's relay.
func (m *Machine) askInTunnel(p *peer) {
	t := &p.tunnel
	spacing := tunnelSpacing
	if p.barred(p.via, m.now) {
		spacing = barredSpacing
	}
	t.next = m.now.Add(m.jittered(spacing))
	var raw [9]byte
	if _, err := io.ReadFull(m.cfg.Rand, raw[:]); err != nil {
		m.stats.RandFailed++
		return
	}
	if len(t.questions) == 0 {
		t.draw = raw[8]
	} else if len(t.questions)%renewEvery == 0 && m.now.Sub(t.questions[0].at) >= p.took+tunnelGrace {
		m.emit(Output{Kind: Handshake, Peer: p.key})
	}
	nonce := binary.BigEndian.Uint64(raw[:])
	t.questions = append(t.questions, tunnelQuestion{nonce, m.now})
	m.stats.TunnelAsked++
	m.emit(Output{Kind: AskInTunnel, Relay: p.via.name, Peer: p.key, Nonce: nonce, Draw: t.draw})
}

// HandleTunnelAnswer says that an answer of a peer's came inside the tunnel. The
// error is ErrUnsolicited.
func (m *Machine) HandleTunnelAnswer(key ident.NodeKey, nonce uint64, now time.Time) error {
	m.begin(now)
	defer m.settle()
	p := m.peers[key]
	i := -1
	if p != nil && p.via != nil {
		i = p.tunnel.index(nonce)
	}
	if i < 0 {
		m.stats.TunnelUnsolicited++
		return ErrUnsolicited
	}
	p.took = m.now.Sub(p.tunnel.questions[i].at)
	p.unbar(m.now)
	p.carried = true
	p.tunnel = tunnelCheck{next: m.now.Add(m.jittered(tunnelInterval))}
	return nil
}

// index returns which question has a nonce, -1 for none.
func (t *tunnelCheck) index(nonce uint64) int {
	return slices.IndexFunc(t.questions, func(q tunnelQuestion) bool { return q.nonce == nonce })
}

// HandleTunnelAsk says that a question of a peer's came inside the tunnel over a relay.
// That one carries the tunnel, in this direction: it is better than one of which
// nothing is known, or nothing good.
func (m *Machine) HandleTunnelAsk(name string, key ident.NodeKey, now time.Time) {
	m.begin(now)
	if p, r := m.peers[key], m.find(name); p != nil && r != nil && m.follows(p, r) {
		p.followed = m.now
		m.setRoute(p, r)
		p.heard = mark{r, m.now}
	}
	m.settle()
}

// follows reports whether p's route becomes r, since p asks over it.
func (m *Machine) follows(p *peer, r *relay) bool {
	if r.state != ready || p.via == r || p.barred(r, m.now) {
		return false
	}
	p.unmark(r)
	switch {
	case p.via == nil, p.via.state != ready, !p.lostAt(p.via, m.now).IsZero():
		return true
	case p.carried && p.active, m.now.Sub(p.followed) < followGap:
		return false
	}
	return !p.active || m.now.Sub(p.chosen) < followFor || p.tunnel.overdue >= followOverdue
}

// barRoute leaves p's relay, which carries no tunnel. Where no other is known to be
// better it stays: what is wrong may be the tunnel, and not the relays.
func (m *Machine) barRoute(p *peer) {
	again := p.barred(p.via, m.now)
	p.bar(m.now)
	if !again {
		m.stats.RoutesBarred++
		m.emit(Output{Kind: RouteBarred, Relay: p.via.name, Peer: p.key})
	}
	p.tunnel = tunnelCheck{next: m.now.Add(barredSpacing)}
	best := m.bestRoute(p)
	if best == nil || best == p.via || p.barred(best, m.now) || again && m.now.Sub(p.lostAt(best, m.now)) < barredStay {
		return
	}
	p.hurry = true
	m.setRoute(p, best)
}

// Barred is a relay that is not used for a peer where there is another: it carried
// the questions beside the tunnel, and not the tunnel.
type Barred struct {
	Relay        string
	Since, Until time.Time
}

// Barred returns the relays that are barred for a peer, in the order in which that
// was found first.
func (m *Machine) Barred(key ident.NodeKey, now time.Time) []Barred {
	p := m.peers[key]
	if p == nil {
		return nil
	}
	var out []Barred
	for _, b := range p.bars {
		if now.Before(b.until) {
			out = append(out, Barred{b.relay.name, b.at, b.until})
		}
	}
	return out
}
