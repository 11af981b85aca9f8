package home

import (
	"errors"
	"testing"
	"time"
)

// talking is two nodes of a lab that have talked for a while.
func talking(t *testing.T, seed uint64, relays int) (l *lab, a, b *node) {
	l = newLab(t, seed, relays, 2)
	l.configure()
	l.pass(10*time.Second, nil)
	l.tellHomes()
	l.talk(l.nodes[0], l.nodes[1], 20*time.Second)
	return l, l.nodes[0], l.nodes[1]
}

func (n *node) barred() uint64 { return n.m.Snapshot().Stats.RoutesBarred }

// TestDroppedTunnel is F20 with a relay that carries all questions beside the tunnel
// and drops what is the tunnel's, both ways or one: the traffic goes on over another
// within the bound, and stays there though the one goes on to answer.
func TestDroppedTunnel(t *testing.T) {
	for how, takes := range map[string]func(a *node) func(m message) bool{
		"all":       func(*node) func(message) bool { return func(message) bool { return false } },
		"one way":   func(a *node) func(message) bool { return func(m message) bool { return m.from != a } },
		"the other": func(a *node) func(message) bool { return func(m message) bool { return m.to != a } },
	} {
		worst := time.Duration(0)
		for seed := range uint64(10) {
			l, a, b := talking(t, seed, 2+int(seed%3))
			evil := l.site(a.via[b.key])
			evil.takes = takes(a)
			gap := l.talk(a, b, 20*time.Second)
			worst = max(worst, gap)
			if gap > failover {
				t.Errorf("%s, seed %d: a gap of %v", how, seed, gap)
			}
			changes := a.m.Snapshot().Stats.RouteChanges + b.m.Snapshot().Stats.RouteChanges
			if gap := l.talk(a, b, time.Minute); gap > time.Second {
				t.Errorf("%s, seed %d: a gap of %v afterwards", how, seed, gap)
			}
			if a.via[b.key] == evil.name {
				t.Errorf("%s, seed %d: the relay is in use again", how, seed)
			}
			if n := a.m.Snapshot().Stats.RouteChanges + b.m.Snapshot().Stats.RouteChanges - changes; n > 2 {
				t.Errorf("%s, seed %d: %d changes of routes afterwards", how, seed, n)
			}
			if bars := a.m.Barred(b.key, l.now); len(bars) != 1 || bars[0].Relay != evil.name || !bars[0].Until.After(l.now) {
				t.Errorf("%s, seed %d: barred are %+v", how, seed, bars)
			}
		}
		t.Logf("%s: a gap of %v at the worst", how, worst)
	}
}

// listenApart makes the homes of two nodes that talk different relays, each of which
// carries one direction.
func (l *lab) listenApart(a, b *node) {
	for i, n := range []*node{a, b} {
		for j, s := range l.sites {
			s.links[n].rtt = time.Duration(10+50*((i+j)%2)) * time.Millisecond
		}
	}
	l.configure()
	l.pass(10*time.Second, nil)
	l.tellHomes()
	l.talk(a, b, 10*time.Second)
	// They have met at one of the two, and then one lost sight of the other there.
	b.m.setRoute(b.m.peers[a.key], b.m.find(a.m.Home()))
	a.m.setRoute(a.m.peers[b.key], a.m.find(b.m.Home()))
	l.talk(a, b, 10*time.Second)
	if a.via[b.key] == b.via[a.key] {
		l.Fatalf("both directions go over %s", a.via[b.key])
	}
}

// TestDroppedTunnelWithTwoHomes: the nodes listen at different relays, each of which
// carries one direction. The hostile one is left, and the other not.
func TestDroppedTunnelWithTwoHomes(t *testing.T) {
	for seed := range uint64(15) {
		l := newLab(t, seed, 2, 2)
		a, b := l.nodes[0], l.nodes[1]
		l.listenApart(a, b)
		evil := l.site(a.via[b.key])
		evil.takes = func(message) bool { return false }
		if gap := l.talk(a, b, 20*time.Second); gap > failover {
			t.Errorf("seed %d: a gap of %v", seed, gap)
		}
		if a.barred() == 0 || b.barred() > 0 {
			t.Errorf("seed %d: %d relays barred by who sent over the hostile one, %d by the other", seed, a.barred(), b.barred())
		}
	}
}

// TestDroppedTunnelFromTheStart: the home of a peer that was idle until now drops what
// is the tunnel's from the first packet on. The peer has nothing to send itself.
func TestDroppedTunnelFromTheStart(t *testing.T) {
	for seed := range uint64(20) {
		l := newLab(t, seed, 3, 2)
		a, b := l.nodes[0], l.nodes[1]
		l.configure()
		l.pass(10*time.Second, nil)
		l.tellHomes()
		l.pass(2*time.Minute, nil)
		l.site(b.m.Home()).takes = func(message) bool { return false }
		if took := l.untilFound(a, b); took > failover {
			t.Errorf("seed %d: found after %v", seed, took)
		}
	}
}

// TestHalfOfTheTunnel: a relay that drops half of the tunnel's packets is found out,
// later.
func TestHalfOfTheTunnel(t *testing.T) {
	const within = time.Minute
	var sum time.Duration
	const seeds = 15
	for seed := range uint64(seeds) {
		l, a, b := talking(t, seed, 3)
		evil := l.site(a.via[b.key])
		evil.takes = func(message) bool { return l.r.IntN(2) == 0 }
		began, n := l.now, 0
		for a.via[b.key] == evil.name && l.now.Sub(began) < within {
			if n++; n%10 == 0 {
				a.data(b)
				b.data(a)
			}
			l.step()
		}
		took := l.now.Sub(began)
		sum += took
		if took >= within {
			t.Errorf("seed %d: the relay is in use after %v", seed, took)
		}
	}
	t.Logf("left after %v in the mean", sum/seeds)
}

// TestLossBarsNoRelay: a tenth of all packets is lost on each way, at every relay, for
// half an hour.
func TestLossBarsNoRelay(t *testing.T) {
	l, a, b := talking(t, 1, 2)
	for _, s := range l.sites {
		s.takes = func(message) bool { return l.r.IntN(10) > 0 }
	}
	l.talk(a, b, 30*time.Minute)
	if n := a.barred() + b.barred(); n > 0 {
		t.Errorf("%d relays barred", n)
	}
}

// TestLongWayRenewsNothing: over a relay so far away that answers take longer than the
// questions are apart no session is made anew, but for one before the first answer.
func TestLongWayRenewsNothing(t *testing.T) {
	l := newLab(t, 1, 1, 2)
	a, b := l.nodes[0], l.nodes[1]
	for _, n := range l.nodes {
		l.sites[0].links[n].rtt = 300 * time.Millisecond
	}
	l.configure()
	l.pass(10*time.Second, nil)
	l.tellHomes()
	l.talk(a, b, 20*time.Second)
	before := [2]int{a.renewed, b.renewed}
	l.talk(a, b, 10*time.Minute)
	if now := [2]int{a.renewed, b.renewed}; now != before || before[0] > 1 || before[1] > 1 {
		t.Errorf("%v sessions were made in ten minutes, %v before", now, before)
	}
	if a.asked < 300 || b.asked < 300 {
		t.Errorf("%d and %d questions", a.asked, b.asked)
	}
}

// TestPeerAsleep: a peer that is not there for some minutes has no relay barred, is
// asked next to nothing inside the tunnel, and is looked for no more than by nodes that
// do not ask there. When it is back, so is the traffic.
func TestPeerAsleep(t *testing.T) {
	for seed := range uint64(6) {
		changes := make(map[bool]uint64)
		for _, older := range []bool{true, false} {
			l, a, b := talking(t, seed, 3)
			a.older, b.older = older, older
			l.talk(a, b, 10*time.Second)
			b.off = true
			asked, before := a.asked, a.m.Snapshot().Stats
			n := 0
			l.pass(3*time.Minute, func() {
				if n++; n%10 == 0 {
					a.data(b)
				}
			})
			after := a.m.Snapshot().Stats
			changes[older] = after.RouteChanges - before.RouteChanges
			if n := a.asked - asked; n > tunnelTries {
				t.Errorf("seed %d: %d questions to a peer that is not there", seed, n)
			}
			b.off = false
			if gap := l.talk(a, b, 20*time.Second); gap > failover {
				t.Errorf("seed %d: back after %v", seed, gap)
			}
			if n := a.barred() + b.barred(); n > 0 {
				t.Errorf("seed %d: %d relays barred for a peer that slept", seed, n)
			}
		}
		if changes[false] > changes[true]+2 {
			t.Errorf("seed %d: %d changes of the route, %d without questions inside the tunnel", seed, changes[false], changes[true])
		}
	}
}

// TestMutePeer: nothing is answered inside the tunnel, over any relay, though the peer
// says that it answers there. It is not the relays, and the route does not flap; when
// it answers again no relay is barred that is in use.
func TestMutePeer(t *testing.T) {
	for seed := range uint64(4) {
		l, a, b := talking(t, seed, 3)
		b.mute = true
		before, asked := a.m.Snapshot().Stats, a.asked
		if gap := l.talk(a, b, 10*time.Minute); gap > 2*failover {
			t.Errorf("seed %d: a gap of %v of what was never dropped", seed, gap)
		}
		after := a.m.Snapshot().Stats
		if n := after.RouteChanges - before.RouteChanges; n > 15 {
			t.Errorf("seed %d: %d changes of the route in ten minutes", seed, n)
		}
		if n := a.asked - asked; n < 60 || n > 600 {
			t.Errorf("seed %d: %d questions in ten minutes", seed, n)
		}
		if n := after.RoutesBarred - before.RoutesBarred; n < 2 || n > 6 {
			t.Errorf("seed %d: %d bars in ten minutes", seed, n)
		}
		if a.renewed == 0 {
			t.Errorf("seed %d: no new session was tried", seed)
		}
		b.mute = false
		l.talk(a, b, 30*time.Second)
		for _, r := range a.m.Barred(b.key, l.now) {
			if r.Relay == a.via[b.key] {
				t.Errorf("seed %d: the relay in use is barred: %+v", seed, r)
			}
		}
	}
}

// TestOlderPeer: a peer that does not say that it answers inside the tunnel is not
// asked there, and no relay is held responsible.
func TestOlderPeer(t *testing.T) {
	l, a, b := talking(t, 1, 2)
	b.older = true
	l.talk(a, b, 5*time.Second) // one that became older says so with its next answer
	asked := a.asked
	l.site(a.via[b.key]).takes = func(message) bool { return false }
	l.talk(a, b, time.Minute)
	if a.asked != asked || a.barred() > 0 {
		t.Errorf("%d questions, %d relays barred", a.asked-asked, a.barred())
	}
}

// TestBarsGrow bars a relay again and again, and then after a long time.
func TestBarsGrow(t *testing.T) {
	p, now := &peer{via: &relay{name: "r"}}, start
	for _, want := range []time.Duration{5, 10, 20, 40, 80, 80} {
		p.bar(now)
		p.bar(now.Add(time.Second)) // while it is barred it is one and the same time
		if got := p.bars[0].until.Sub(now.Add(time.Second)); got != want*time.Minute {
			t.Errorf("barred for %v, want %v minutes", got, want)
		}
		now = p.bars[0].until
		if p.barred(p.via, now) {
			t.Error("barred when the time is over")
		}
	}
	now = now.Add(maxBarTime)
	p.bar(now)
	if got := p.bars[0].until.Sub(now); got != barTime || len(p.bars) != 1 {
		t.Errorf("barred for %v after a long time, %d notes", got, len(p.bars))
	}
	p.unbar(now)
	if p.barred(p.via, now) {
		t.Error("barred after an answer")
	}
}

// TestTunnelLies: made-up answers count for nothing, and those of before a change of
// the route neither.
func TestTunnelLies(t *testing.T) {
	l, a, b := talking(t, 1, 2)
	for _, nonce := range []uint64{0, 1, ^uint64(0)} {
		if err := a.m.HandleTunnelAnswer(b.key, nonce, l.now); !errors.Is(err, ErrUnsolicited) {
			t.Errorf("nonce %x: %v", nonce, err)
		}
	}
	if err := a.m.HandleTunnelAnswer(a.key, 1, l.now); !errors.Is(err, ErrUnsolicited) {
		t.Errorf("of nobody: %v", err)
	}
	if n := a.m.Snapshot().Stats.TunnelUnsolicited; n != 4 {
		t.Errorf("%d counted", n)
	}
	for len(a.m.peers[b.key].tunnel.questions) == 0 {
		a.data(b)
		l.step()
	}
	nonce := a.m.peers[b.key].tunnel.questions[0].nonce
	l.site(a.via[b.key]).alive = false
	before := a.via[b.key]
	for a.via[b.key] == before {
		l.step()
	}
	if err := a.m.HandleTunnelAnswer(b.key, nonce, l.now); !errors.Is(err, ErrUnsolicited) {
		t.Errorf("an answer to what was asked over another relay: %v", err)
	}
}
