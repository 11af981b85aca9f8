package home

import (
	"errors"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/disco"
)

// failover is what a relay's failure may cost (FAILOVER, F06).
const failover = 5 * time.Second

// TestHomeIsTheNearest measures three relays, by STUN and by connections.
func TestHomeIsTheNearest(t *testing.T) {
	for _, stun := range []bool{true, false} {
		l := newLab(t, 1, 3, 1)
		n := l.nodes[0]
		for i, s := range l.sites {
			s.stun = stun
			s.links[n].rtt = []time.Duration{90, 20, 60}[i] * time.Millisecond
		}
		l.configure()
		l.pass(10*time.Second, nil)
		if n.m.Home() != "r1" {
			t.Errorf("with STUN %v: home %q, %+v", stun, n.m.Home(), n.m.Snapshot().Relays)
		}
		if len(n.conns) != 1 {
			t.Errorf("with STUN %v: %d connections of an idle node", stun, len(n.conns))
		}
	}
}

// TestHomeDoesNotFlap gives two relays round trips that differ by less than
// their jitter, for a day; then one of them becomes nearer for good.
func TestHomeDoesNotFlap(t *testing.T) {
	seeds := uint64(5)
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		l := newLab(t, seed, 3, 1)
		n := l.nodes[0]
		for i, s := range l.sites {
			*s.links[n] = link{rtt: time.Duration(40+4*i) * time.Millisecond, jitter: 30 * time.Millisecond}
		}
		l.configure()
		l.pass(time.Minute, nil)
		before := n.homes
		l.pass(3*time.Hour, nil)
		if n.homes != before {
			t.Errorf("seed %d: %d changes of the home", seed, n.homes-before)
		}
		home := n.m.Home()
		for _, s := range l.sites {
			if s.name != home {
				s.links[n].rtt = 10 * time.Millisecond
				break
			}
		}
		l.pass(10*time.Minute, nil)
		if n.homes != before+1 || n.m.Home() == home {
			t.Errorf("seed %d: %d changes towards a relay that is much nearer", seed, n.homes-before)
		}
	}
}

// TestFailover takes relays away from two nodes that talk, in every way and
// without a coordinator that tells of new homes, as long as one relay is left
// that both reach.
func TestFailover(t *testing.T) {
	seeds := uint64(200)
	if testing.Short() {
		seeds = 40
	}
	for seed := range seeds {
		l, a, b := newPair(t, seed, 2+int(seed%4))
		if gap := l.talk(a, b, 20*time.Second); gap > time.Second {
			t.Errorf("seed %d: a gap of %v at first contact", seed, gap)
		}
		// What carries the traffic fails, and perhaps others with it.
		survivor := l.sites[l.r.IntN(len(l.sites))]
		for round := range 3 {
			how := l.r.IntN(4)
			s := l.site(a.via[b.key])
			if s == survivor {
				break
			}
			switch how {
			case 0:
				s.alive = false
			case 1:
				s.links[a].cut = true
			case 2:
				s.links[b].cut = true
			default:
				s.drops = true
			}
			if gap := l.talk(a, b, 30*time.Second); gap > failover {
				t.Errorf("seed %d, round %d: a gap of %v after failure %d of %s", seed, round, gap, how, s.name)
			}
		}
	}
}

// TestBothAvoidWhatFailed has the relay that carries the traffic fail: one of the two
// notices first, the other follows it, and both know afterwards that it failed. If one
// did not, they would look for each other at different relays the next time.
func TestBothAvoidWhatFailed(t *testing.T) {
	together := 0
	for seed := range uint64(50) {
		l, a, b := newPair(t, seed, 4)
		l.talk(a, b, 20*time.Second)
		s := l.site(a.via[b.key])
		if b.via[a.key] != s.name {
			continue
		}
		together++
		s.drops = true
		l.talk(a, b, 10*time.Second)
		for _, n := range []*node{a, b} {
			for _, p := range n.m.peers {
				if p.via.name == s.name || p.lostAt(n.m.find(s.name), l.now).IsZero() {
					t.Errorf("seed %d: a node goes over %s, and does not know that %s failed", seed, p.via.name, s.name)
				}
			}
		}
	}
	if together < 40 {
		t.Errorf("only %d of 50 pairs sent over one relay both", together)
	}
}

// TestLeaving has the relay that carries the traffic say that it stops, and stop
// a second later (F07).
func TestLeaving(t *testing.T) {
	for seed := range uint64(50) {
		l, a, b := newPair(t, seed, 3)
		l.talk(a, b, 20*time.Second)
		s := l.site(a.via[b.key])
		s.leave = true
		gap := l.talk(a, b, time.Second)
		s.alive = false
		if gap = max(gap, l.talk(a, b, 20*time.Second)); gap > time.Second {
			t.Errorf("seed %d: a gap of %v", seed, gap)
		}
		if a.m.Home() == s.name || b.m.Home() == s.name {
			t.Errorf("seed %d: a relay that stopped is still home", seed)
		}
	}
}

// TestOneWay sends only from one node to the other, whose way to the relay is
// cut: the receiver has nothing to send by which it could be found.
func TestOneWay(t *testing.T) {
	for seed := range uint64(50) {
		l, a, b := newPair(t, seed, 3)
		gap, n := time.Duration(0), 0
		stream := func() {
			if n++; n%10 == 0 {
				a.data(b)
			}
			gap = max(gap, l.now.Sub(b.got[a.key]))
		}
		b.got[a.key] = l.now
		l.pass(20*time.Second, stream)
		gap = 0
		l.site(a.via[b.key]).links[b].cut = true
		l.pass(30*time.Second, stream)
		if gap > failover {
			t.Errorf("seed %d: a gap of %v", seed, gap)
		}
	}
}

// TestNoRelay takes all relays away for a minute from nodes that talk.
func TestNoRelay(t *testing.T) {
	for seed := range uint64(50) {
		l, a, b := newPair(t, seed, 2)
		l.talk(a, b, 20*time.Second)
		for _, s := range l.sites {
			s.alive = false
		}
		l.talk(a, b, time.Minute)
		for _, c := range a.conns {
			if c.ready { // else it is an attempt of this very moment
				t.Errorf("seed %d: it takes itself for connected", seed)
			}
		}
		if a.m.Online() {
			t.Errorf("seed %d: it takes itself for online", seed)
		}
		for _, s := range l.sites {
			s.alive = true
		}
		if gap := l.talk(a, b, 20*time.Second); gap > failover {
			t.Errorf("seed %d: back after %v", seed, gap)
		}
	}
}

// TestIdleNode loses its home while nobody talks: it is found at another relay
// all the same, without the coordinator.
func TestIdleNode(t *testing.T) {
	for seed := range uint64(50) {
		l, a, b := newPair(t, seed, 3)
		l.site(b.m.Home()).alive = false
		l.pass(30*time.Second, nil)
		b.got[a.key] = time.Time{}
		if took := l.untilFound(a, b); took > failover {
			t.Errorf("seed %d: found after %v", seed, took)
		}
	}
}

// TestStandby talks while the first relay of the configuration is cut off: the
// node listens at its home and at one other that works, and lets the first be
// most of the time.
func TestStandby(t *testing.T) {
	for seed := range uint64(20) {
		l := newLab(t, seed, 3, 2)
		a, b := l.nodes[0], l.nodes[1]
		for _, n := range l.nodes {
			l.sites[0].links[n].cut = true
		}
		l.configure()
		l.pass(15*time.Second, nil)
		l.tellHomes()
		l.talk(a, b, 10*time.Second)
		before, changes := a.m.Snapshot().Stats.ConnectFailures, a.m.Snapshot().Stats.RouteChanges
		l.talk(a, b, time.Minute)
		after := a.m.Snapshot()
		connected := 0
		for _, r := range after.Relays {
			if r.Connected {
				connected++
			}
		}
		if connected != 2 {
			t.Errorf("seed %d: connected to %d relays: %+v", seed, connected, after.Relays)
		}
		if got := after.Stats.ConnectFailures - before; got > 20 {
			t.Errorf("seed %d: %d attempts in a minute", seed, got)
		}
		if got := after.Stats.RouteChanges - changes; got > 0 {
			t.Errorf("seed %d: the route changed %d times", seed, got)
		}
	}
}

// TestBackOff counts the attempts of an idle node at a relay that is gone.
func TestBackOff(t *testing.T) {
	l := newLab(t, 1, 1, 1)
	n := l.nodes[0]
	l.configure()
	l.pass(20*time.Second, nil)
	if !n.m.Online() {
		t.Fatal("it is not connected")
	}
	l.sites[0].alive = false
	l.pass(10*time.Minute, nil)
	failures := n.m.Snapshot().Stats.ConnectFailures
	if failures < 40 || failures > 90 {
		t.Errorf("%d attempts in ten minutes", failures)
	}
	l.sites[0].alive = true
	began := l.now
	for !n.m.Online() {
		l.step()
	}
	if took := l.now.Sub(began); took > idleBackoff+time.Second {
		t.Errorf("back after %v", took)
	}
}

// TestConnectionsAreCapped talks to more peers with homes of their own than there
// may be connections; they end when nobody uses them.
func TestConnectionsAreCapped(t *testing.T) {
	const others = maxConnections + 4
	l := newLab(t, 3, others, others+1)
	n := l.nodes[0]
	for i, s := range l.sites {
		for _, other := range l.nodes {
			s.links[other].rtt = 50 * time.Millisecond
		}
		s.links[l.nodes[i+1]].rtt = 5 * time.Millisecond
	}
	l.configure()
	l.pass(10*time.Second, nil)
	l.tellHomes()
	ticks := 0
	l.pass(20*time.Second, func() {
		if ticks++; ticks%10 == 0 {
			for _, other := range l.nodes[1:] {
				n.data(other)
			}
		}
	})
	reached := 0
	for _, other := range l.nodes[1:] {
		if l.now.Sub(other.got[n.key]) < 10*time.Second {
			reached++
		}
	}
	if reached < maxConnections-1 {
		t.Errorf("%d peers are reached", reached)
	}
	if len(n.conns) != maxConnections || n.m.Snapshot().Stats.OverCap < others-maxConnections {
		t.Errorf("%d connections, stats %+v", len(n.conns), n.m.Snapshot().Stats)
	}
	l.pass(2*idleClose, nil)
	if len(n.conns) != 1 {
		t.Errorf("%d connections of an idle node", len(n.conns))
	}
}

// TestLies has a relay answer in the name of a peer: nothing is proved by it.
func TestLies(t *testing.T) {
	l := newLab(t, 1, 2, 2)
	a, b := l.nodes[0], l.nodes[1]
	l.configure()
	l.pass(10*time.Second, nil)
	l.tellHomes()
	l.talk(a, b, 5*time.Second)
	via := a.via[b.key]
	if err := a.m.HandlePong(via, b.key, disco.Pong{TxID: disco.TxID{1}}, l.now); !errors.Is(err, ErrUnsolicited) {
		t.Errorf("a made-up pong: %v", err)
	}
	s := l.site(via)
	s.drops = true
	began := l.now
	for a.via[b.key] == via && l.now.Sub(began) < time.Minute {
		a.m.HandleInbound(via, b.key, l.now) // as if packets came
		a.data(b)
		l.step()
	}
	if took := l.now.Sub(began); took > failover {
		t.Errorf("a relay that drops and lies is left after %v", took)
	}
	for range 100 {
		a.m.HandlePing(via, b.key, l.now)
	}
	if got := a.m.Snapshot().Stats.PingsOverBudget; got < 100-answerBurst {
		t.Errorf("%d pings over the budget", got)
	}
}

// TestReconfigured removes the home, and everything.
func TestReconfigured(t *testing.T) {
	l := newLab(t, 1, 3, 2)
	a, b := l.nodes[0], l.nodes[1]
	l.configure()
	l.pass(10*time.Second, nil)
	l.tellHomes()
	l.talk(a, b, 5*time.Second)
	home := a.m.Home()
	var rest []*site
	for _, s := range l.sites {
		if s.name != home {
			rest = append(rest, s)
		}
	}
	all := l.sites
	for _, n := range l.nodes {
		var relays []Relay
		for _, s := range rest {
			relays = append(relays, Relay{Name: s.name, STUN: true})
		}
		n.m.SetRelays(relays, l.now)
		n.drain()
	}
	if gap := l.talk(a, b, 20*time.Second); gap > time.Second {
		t.Errorf("a gap of %v", gap)
	}
	if a.m.Home() == home || a.m.Home() == "" {
		t.Errorf("home %q", a.m.Home())
	}
	a.m.SetRelays(nil, l.now)
	a.drain()
	if a.m.Home() != "" || a.via[b.key] != "" || len(a.conns) > 0 || a.m.Online() {
		t.Errorf("without relays: home %q, route %q, %d connections of %d", a.m.Home(), a.via[b.key], len(a.conns), len(all))
	}
	if _, ok := a.m.NextTimeout(); ok {
		l.pass(time.Minute, nil)
		if at, ok := a.m.NextTimeout(); ok {
			t.Errorf("without relays it waits for %v", at)
		}
	}
	a.m.SetPeers(nil, l.now)
	if a.m.Route(b.key) != "" || len(a.m.active) > 0 {
		t.Error("a peer that is gone has a route")
	}
}

// TestClockBack is a clock that was set back.
func TestClockBack(t *testing.T) {
	l := newLab(t, 1, 1, 1)
	l.configure()
	l.pass(time.Second, nil)
	m := l.nodes[0].m
	m.HandleTimeout(start.Add(-time.Hour))
	if at, ok := m.NextTimeout(); m.Snapshot().Stats.ClockBack != 1 || !ok || at.Before(start) {
		t.Errorf("%v, %+v", at, m.Snapshot().Stats)
	}
}
