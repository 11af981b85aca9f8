package path

import (
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/disco"
)

var moved = at("1.1.1.1:2000")

// exchange drives an agent in steps of 50 ms, in which the peer's packets come
// from an address, and challenges are answered by the others. It returns when
// the primary was another for the first time, zero for never.
func exchange(a *Agent, from netip.AddrPort, now, until time.Time, answering ...netip.AddrPort) (changed time.Time) {
	before := a.Primary()
	for ; now.Before(until); now = now.Add(50 * time.Millisecond) {
		a.HandleOutboundUse(now)
		a.HandleInbound(DirectTo(from), Data, now, now)
		ids := pings(a)
		for _, where := range answering {
			if id, ok := ids[where]; ok {
				_ = a.HandlePong(where, disco.Pong{TxID: id, Observed: lan}, now.Add(20*time.Millisecond))
			}
		}
		if changed.IsZero() && a.Primary() != before {
			changed = now
		}
	}
	return changed
}

// TestMoved: where the peer's packets come from another address, which answers,
// while the primary does not any more, packets go there within REBIND, and by no
// relay in between.
func TestMoved(t *testing.T) {
	for _, after := range []time.Duration{100 * time.Millisecond, time.Second, 3100 * time.Millisecond} {
		a := direct(t, 1)
		now := epoch.Add(20 * time.Millisecond)
		exchange(a, home, now, now.Add(after), home)
		now = now.Add(after)
		drainEvents(a)
		left := exchange(a, moved, now, now.Add(5*time.Second), moved)
		if took := left.Sub(now); left.IsZero() || took > time.Second {
			t.Errorf("moved %v after the last answer: left after %v", after, took)
		}
		events := drainEvents(a)
		if len(events) != 1 || events[0].Primary != DirectTo(moved) {
			t.Errorf("moved %v after the last answer: %+v", after, events)
		}
	}
}

// TestSentOnFromElsewhere is fault F19: somebody on the way sends the peer's
// packets on from his own address, and answers nothing, or by the peer's hand.
// The primary, which answers, stays; and what he gets is a few challenges.
func TestSentOnFromElsewhere(t *testing.T) {
	for _, answering := range [][]netip.AddrPort{{home}, {home, rogue}} {
		a := direct(t, 1)
		now := epoch.Add(20 * time.Millisecond)
		sent := a.Snapshot().Stats.PingsSent
		if left := exchange(a, rogue, now, now.Add(10*time.Second), answering...); !left.IsZero() {
			t.Errorf("left for %v after %v", a.Primary(), left.Sub(now))
		}
		if n := a.Snapshot().Stats.PingsSent - sent; n > 80 {
			t.Errorf("%d challenges in 10 s", n)
		}
	}
}

// TestOneWay is fault F10: our packets do not arrive any more, while the peer's,
// its challenges among them, do. The path is left in FAILOVER all the same.
func TestOneWay(t *testing.T) {
	a := direct(t, 1)
	begin := epoch.Add(20 * time.Millisecond)
	seq := uint64(0)
	for now := begin; a.Primary() == DirectTo(home); now = now.Add(100 * time.Millisecond) {
		if took := now.Sub(begin); took > 3*time.Second {
			t.Fatalf("not left after %v", took)
		}
		seq++
		if err := a.HandlePing(home, disco.Ping{TxID: disco.TxID{byte(seq)}, Session: 7, Seq: seq}, now); err != nil {
			t.Fatal(err)
		}
		a.HandleOutboundUse(now)
		pings(a)
	}
	if a.Primary() != viaRelay {
		t.Errorf("primary %v", a.Primary())
	}
}

// TestFlapping: a peer whose packets come from two addresses by turns, both of
// which answer and neither for long, is told of once, and is over after a minute.
func TestFlapping(t *testing.T) {
	a := direct(t, 1)
	now := epoch.Add(20 * time.Millisecond)
	begins := 0
	for i := range 3 * flapLimit {
		from := []netip.AddrPort{home, moved}[i%2]
		exchange(a, from, now, now.Add(4*time.Second), from)
		now = now.Add(4 * time.Second)
		for _, e := range drainEvents(a) {
			if e.FlapsBegin {
				begins++
			}
		}
	}
	if changes := a.Stats().PrimaryChanges; changes < flapLimit || begins != 1 || a.Stats().Flaps != 1 || !a.Flapping(now) {
		t.Errorf("after %d changes it was told %d times, flapping: %v", changes, begins, a.Flapping(now))
	}
	if a.Flapping(now.Add(flapWindow)) {
		t.Error("it still is after a minute")
	}
}

// TestRestarted: a peer that has started again is told of once, by its first ping from
// a path that works; what others send in its name is not.
func TestRestarted(t *testing.T) {
	a := direct(t, 1)
	now := epoch.Add(20 * time.Millisecond)
	restarts := func(from netip.AddrPort, session, seq uint64) (n int) {
		t.Helper()
		now = now.Add(200 * time.Millisecond)
		a.HandleOutboundUse(now)
		if id, ok := pings(a)[home]; ok {
			_ = a.HandlePong(home, disco.Pong{TxID: id, Observed: lan}, now)
		}
		if err := a.HandlePing(from, disco.Ping{TxID: disco.TxID{byte(session), byte(seq)}, Session: session, Seq: seq}, now); err != nil {
			t.Fatal(err)
		}
		for _, e := range drainEvents(a) {
			if e.Restarted {
				n++
			}
			if e.Primary != DirectTo(home) {
				t.Errorf("session %d: %+v", session, e)
			}
		}
		return n
	}
	for i, c := range []struct {
		from         netip.AddrPort
		session, seq uint64
		want         int
	}{
		{home, 7, 1, 0}, // the first that is heard of it
		{home, 7, 2, 0},
		{rogue, 8, 1, 0}, // not from a path that works
		{home, 9, 1, 1},
		{home, 9, 2, 0},
		{home, 10, 1, 1},
	} {
		if n := restarts(c.from, c.session, c.seq); n != c.want {
			t.Errorf("ping %d of session %d: %d restarts, want %d", i, c.session, n, c.want)
		}
	}
}
