package path

import (
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/disco"
)

// answering uses a until the given time, while home answers every challenge and
// the tunnel complains every 5 s if it is broken. It returns when the primary
// first was no longer what it was.
func answering(a *Agent, now, until time.Time, broken bool) (changed time.Time) {
	before := a.Primary()
	for i := 1; now.Before(until); i++ {
		now = now.Add(100 * time.Millisecond)
		a.HandleOutboundUse(now)
		if broken && i%50 == 0 {
			a.HandleDistress(now)
		}
		for tr, ok := a.NextTransmit(); ok; tr, ok = a.NextTransmit() {
			if p, ok := tr.Message.(disco.Ping); ok && tr.To.Addr == home {
				_ = a.HandlePong(home, disco.Pong{TxID: p.TxID, Observed: lan}, now)
			}
		}
		if changed.IsZero() && a.Primary() != before {
			changed = now
		}
	}
	return changed
}

// TestPathThatCarriesNothing: a direct path that answers challenges while the
// tunnel gets no answer gives way to the relay, each time for longer.
func TestPathThatCarriesNothing(t *testing.T) {
	a := direct(t, 1)
	now := epoch.Add(time.Second)
	for i, barred := range []time.Duration{barTime, 2 * barTime, 4 * barTime} {
		until := now.Add(20 * time.Second)
		left := answering(a, now, until, true)
		if left.IsZero() || a.Primary() != viaRelay {
			t.Fatalf("%d: after 20 s of distress: %v", i, a.Primary())
		}
		if left.Sub(now) < distressPatience {
			t.Fatalf("%d: left after %v", i, left.Sub(now))
		}
		now, until = until, left.Add(barred-time.Second)
		if back := answering(a, now, until, false); !back.IsZero() {
			t.Fatalf("%d: used again after %v, before its time", i, back.Sub(left))
		}
		now, until = until, until.Add(3*time.Second)
		answering(a, now, until, false)
		if now = until; a.Primary() != DirectTo(home) {
			t.Fatalf("%d: not used again: %v", i, a.Primary())
		}
	}
	if n := a.Snapshot().Stats.Barred; n != 3 {
		t.Errorf("%d bars counted", n)
	}
	// Data that comes by the path says that it works: all is forgiven.
	now = now.Add(time.Second)
	answering(a, now, now.Add(20*time.Second), true)
	if now = now.Add(20 * time.Second); a.Primary() != viaRelay {
		t.Fatalf("primary %v", a.Primary())
	}
	a.HandleInbound(DirectTo(home), Data, now, now)
	if c := a.Snapshot().Candidates[0]; !c.Barred.IsZero() {
		t.Errorf("barred until %v after data", c.Barred)
	}
	answering(a, now, now.Add(15*time.Second), false)
	if a.Primary() != DirectTo(home) {
		t.Errorf("after data: %v", a.Primary())
	}
}

// TestDistressKeepsTheOnlyPath: where there is no other way, and where the
// tunnel complains now and then only, the path stays.
func TestDistressKeepsTheOnlyPath(t *testing.T) {
	a := direct(t, 1)
	a.HandleRelayState(false, epoch.Add(time.Second))
	if left := answering(a, epoch.Add(time.Second), epoch.Add(time.Minute), true); !left.IsZero() {
		t.Errorf("the only path was left: %v", a.Primary())
	}

	a = direct(t, 1)
	now := epoch.Add(time.Second)
	for range 10 {
		a.HandleDistress(now)
		next := now.Add(distressGap + time.Second)
		answering(a, now, next, false)
		now = next
	}
	if a.Primary() != DirectTo(home) {
		t.Errorf("single complaints moved the path: %v", a.Primary())
	}
}

// TestReplaysLeaveThePeerAlone: captured pings of old sessions, replayed from
// anywhere, neither use up what the peer's own pings need nor make this node
// forget which of those it answered.
func TestReplaysLeaveThePeerAlone(t *testing.T) {
	a := direct(t, 1)
	now := epoch.Add(time.Second)
	const captures = maxSessions + 1
	answered, asked := 0, 0
	// The peer answers whatever it is asked.
	answer := func() {
		for tr, ok := a.NextTransmit(); ok; tr, ok = a.NextTransmit() {
			if p, ok := tr.Message.(disco.Ping); ok && tr.To.Addr == home {
				_ = a.HandlePong(home, disco.Pong{TxID: p.TxID, Observed: lan}, now)
			}
		}
	}
	for i := range 4000 {
		now = now.Add(5 * time.Millisecond)
		_ = a.HandlePing(rogue, disco.Ping{Session: uint64(i%captures + 1), Seq: 7}, now)
		if i%20 == 0 {
			a.HandleOutboundUse(now)
		}
		answer()
		if i%100 != 50 {
			continue
		}
		asked++
		ping := disco.Ping{Session: 99, Seq: uint64(i)}
		if a.HandlePing(home, ping, now) == nil {
			answered++
		}
		for range captures {
			_ = a.HandlePing(rogue, disco.Ping{Session: uint64(i + 1000), Seq: 7}, now)
		}
		if a.HandlePing(home, ping, now) == nil {
			t.Fatal("a ping was answered twice")
		}
	}
	if answered != asked {
		t.Errorf("%d of %d pings of the peer were answered; %+v", answered, asked, a.stats)
	}
}

// TestUnknownSessionsKeepTheLiveOne: what is not known never pushes out the
// live session, wherever that stands.
func TestUnknownSessionsKeepTheLiveOne(t *testing.T) {
	var s sessions
	if !s.fresh(99, 5) {
		t.Fatal("the first ping is refused")
	}
	s.keep(99)
	for session := range uint64(100) {
		if session != 99 && !s.fresh(session, 1) {
			t.Fatalf("session %d is refused", session)
		}
		if s.fresh(99, 5) {
			t.Fatalf("the live session was forgotten for %d", session)
		}
	}
}
