package home

import (
	"fmt"
	"testing"
	"time"
)

// states returns what a node knows of the relays, by their names.
func (n *node) states() map[string]RelayState {
	out := make(map[string]RelayState)
	for _, r := range n.m.Snapshot().Relays {
		out[r.Name] = r
	}
	return out
}

// newGraded returns a lab of one node, to which each relay is 20 ms farther than the
// one before.
func newGraded(t testing.TB, seed uint64, relays int) (*lab, *node) {
	l := newLab(t, seed, relays, 1)
	n := l.nodes[0]
	for i, s := range l.sites {
		s.links[n].rtt = time.Duration(20+20*i) * time.Millisecond
	}
	return l, n
}

// measure asks for a measurement and returns how long it took.
func (n *node) measure() time.Duration {
	l := n.lab
	began := l.now
	n.m.HandleMeasure(l.now)
	n.drain()
	for n.m.Measuring() {
		if l.now.Sub(began) > 2*measureWait {
			l.Fatalf("it is not over after %v: %+v", l.now.Sub(began), n.m.Snapshot())
		}
		l.step()
	}
	return l.now.Sub(began)
}

// TestMeasure: who asks is told the round trips of now, with and without STUN
// servers, also of relays that are not connected to, or failed before.
func TestMeasure(t *testing.T) {
	for _, stun := range []bool{true, false} {
		l, n := newGraded(t, 1, 4)
		for _, s := range l.sites {
			s.stun = stun
		}
		down, back := l.sites[2], l.sites[3]
		back.alive = false
		l.configure()
		l.pass(6*time.Minute, nil)
		back.alive, down.alive = true, false
		for _, s := range l.sites {
			s.links[n].rtt += 100 * time.Millisecond
		}
		took := n.measure()
		if limit := 2 * time.Second; !stun && took > limit {
			t.Errorf("with STUN %v: it took %v", stun, took)
		}
		for i, s := range l.sites {
			got := n.states()[s.name]
			switch age := l.now.Sub(got.Measured); {
			case s == down && got.RTT > 0 && age <= took:
				t.Errorf("with STUN %v: measured a relay that is gone: %+v", stun, got)
			case s != down && (age > took+askSpacing || got.RTT == 0):
				t.Errorf("with STUN %v: relay %d was not measured: %+v", stun, i, got)
			case s != down && !stun && s != l.sites[0] && got.RTT < 100*time.Millisecond:
				t.Errorf("relay %d is told as it was: %+v", i, got)
			}
		}
		l.pass(time.Second, nil)
		if len(n.conns) != 1 {
			t.Errorf("with STUN %v: %d connections of an idle node", stun, len(n.conns))
		}
	}
}

// TestMeasureIsBounded: of many relays without STUN servers, all are measured and
// never more connected to at once than there may be; who asks over and over causes
// no more, and one relay that does not answer keeps nobody waiting for ever.
func TestMeasureIsBounded(t *testing.T) {
	const relays = 3 * maxConnections
	l := newLab(t, 2, relays, 1)
	n := l.nodes[0]
	for i, s := range l.sites {
		s.name, s.stun, s.links[n].rtt = fmt.Sprintf("r%d", i), false, 20*time.Millisecond
	}
	l.configure()
	l.pass(6*time.Minute, nil)
	asked, most := l.now, 0
	n.m.HandleMeasure(l.now)
	n.drain()
	for n.m.Measuring() {
		l.step()
		most = max(most, len(n.conns))
	}
	if most != maxConnections {
		t.Errorf("%d connections at once, at most %d are allowed", most, maxConnections)
	}
	for name, r := range n.states() {
		if r.Measured.Before(asked.Add(-askSpacing)) {
			t.Errorf("relay %s was not measured: %+v", name, r)
		}
	}
	l.pass(time.Second, nil)
	n.m.HandleMeasure(l.now)
	n.drain()
	if len(n.conns) != 1 {
		t.Errorf("measured again after a second: %d connections", len(n.conns))
	}
	l.pass(askSpacing, nil)
	l.sites[7].links[n].cut = true
	// Its home answers at once.
	if took := n.measure(); took < measureWait-tick || took > measureWait+tick {
		t.Errorf("over after %v", took)
	}
}

// TestOldRoundTripsAreForgotten: a way that became longer shows at the next
// measurement, however seldom that is.
func TestOldRoundTripsAreForgotten(t *testing.T) {
	l, n := newGraded(t, 1, 2)
	for _, s := range l.sites {
		s.stun = false
	}
	l.configure()
	l.pass(10*time.Second, nil)
	l.sites[1].links[n].rtt = 200 * time.Millisecond
	l.pass(measureInterval, nil)
	if got := n.states()["r1"].RTT; got != 200*time.Millisecond {
		t.Errorf("round trip %v, of 200 ms", got)
	}
}

// TestHomeReturns: a relay that failed and works again becomes the home of nodes that
// it is nearest to, also of one that has nobody to talk to.
func TestHomeReturns(t *testing.T) {
	for _, stun := range []bool{true, false} {
		l := newLab(t, 1, 3, 1)
		n := l.nodes[0]
		for i, s := range l.sites {
			s.stun, s.links[n].rtt = stun, time.Duration(20+100*i)*time.Millisecond
		}
		l.configure()
		l.pass(time.Minute, nil)
		if n.m.Home() != "r0" {
			t.Fatalf("with STUN %v: home %q", stun, n.m.Home())
		}
		l.sites[0].alive = false
		l.pass(2*time.Minute, nil)
		if n.m.Home() != "r1" {
			t.Fatalf("with STUN %v: home %q while r0 is gone", stun, n.m.Home())
		}
		l.sites[0].alive = true
		l.pass(2*measureInterval, nil)
		if n.m.Home() != "r0" {
			t.Errorf("with STUN %v: home %q, half an hour after r0 is back: %+v", stun, n.m.Home(), n.m.Snapshot().Relays)
		}
	}
}

// TestHomeWithoutUDP: where no STUN server answers, such as in a network that lets no
// UDP out, relays are measured by connecting to them, and the nearest is the home; who
// asks gets the round trips of now; and where UDP passes again, nobody connects to
// relays for that any more.
func TestHomeWithoutUDP(t *testing.T) {
	l := newLab(t, 1, 3, 1)
	n := l.nodes[0]
	for i, s := range l.sites {
		s.mute, s.links[n].rtt = true, []time.Duration{90, 20, 60}[i]*time.Millisecond
	}
	l.configure()
	l.pass(3*time.Minute, nil)
	if n.m.Home() != "r1" || len(n.conns) != 1 {
		t.Errorf("home %q, %d connections: %+v", n.m.Home(), len(n.conns), n.m.Snapshot().Relays)
	}
	l.pass(2*measureInterval, nil)
	asked := l.now
	took := n.measure()
	for name, r := range n.states() {
		if r.RTT == 0 || asked.Sub(r.Measured) > askSpacing {
			t.Errorf("%s, asked for %v ago: %+v", name, took, r)
		}
	}
	for _, s := range l.sites {
		s.mute = false
	}
	l.pass(2*time.Minute, nil)
	visits := 0
	l.pass(2*measureInterval, func() { visits += len(n.conns) - 1 })
	if visits != 0 {
		t.Errorf("connections beside the home for %d ticks", visits)
	}
}

// TestSlowIsNotFailed: a first attempt that takes long is not told as one that failed,
// until it has had its time.
func TestSlowIsNotFailed(t *testing.T) {
	l := newLab(t, 1, 1, 1)
	n := l.nodes[0]
	l.sites[0].hangs = true
	l.configure()
	l.pass(2*suspectAfter, nil)
	if n.conns[l.sites[0]] == nil || n.states()["r0"].Down {
		t.Errorf("while it is connected to: %+v", n.states()["r0"])
	}
	l.pass(connectTimeout, nil)
	if !n.states()["r0"].Down {
		t.Errorf("after its time: %+v", n.states()["r0"])
	}
}

// TestMeasureTriesAgain: who asks is told whether a relay that took no connection takes
// one now, though its STUN server answered all the time.
func TestMeasureTriesAgain(t *testing.T) {
	l, n := newGraded(t, 1, 2)
	l.sites[0].refuses = true
	l.configure()
	l.pass(30*time.Second, nil)
	if !n.states()["r0"].Down || n.m.Home() != "r1" {
		t.Fatalf("home %q: %+v", n.m.Home(), n.states()["r0"])
	}
	for _, works := range []bool{false, true} {
		l.sites[0].refuses = !works
		l.pass(askSpacing, nil)
		before := len(n.attempts)
		n.measure()
		if n.states()["r0"].Down == works || len(n.attempts) == before {
			t.Errorf("it works: %v; after %d attempts: %+v", works, len(n.attempts)-before, n.states()["r0"])
		}
	}
}

// TestHangingRelayIsRevisitedSeldom: a relay whose STUN server answers, and to which no
// connection comes about, is not connected to more often for being measured meanwhile.
func TestHangingRelayIsRevisitedSeldom(t *testing.T) {
	for seed := range uint64(20) {
		l, n := newGraded(t, seed, 2)
		l.sites[0].hangs = true
		l.configure()
		l.pass(2*time.Minute, nil)
		n.attempts = nil
		l.pass(time.Hour, nil)
		for i, a := range n.attempts[1:] {
			if gap := a.at.Sub(n.attempts[i].at); a.to != l.sites[0] || gap < revisitInterval/2 {
				t.Errorf("seed %d: %s again after %v", seed, a.to.name, gap)
			}
		}
	}
}

// TestMeasureAfterNetworkChange: what was measured in another network is not what is
// asked for.
func TestMeasureAfterNetworkChange(t *testing.T) {
	l := newLab(t, 1, 3, 1)
	n := l.nodes[0]
	for _, s := range l.sites {
		s.stun = false
	}
	l.configure()
	l.pass(6*time.Minute, nil)
	n.measure()
	n.m.HandleNetworkChange(l.now)
	n.drain()
	n.measure()
	for name, r := range n.states() {
		if r.RTT == 0 {
			t.Errorf("%s is not measured: %+v", name, r)
		}
	}
}
