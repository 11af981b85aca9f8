package path

import (
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/disco"
)

// until lets the agent do what is due up to a time, and returns the events.
func until(a *Agent, now time.Time) (events []Event) {
	for t, ok := a.NextTimeout(); ok && !t.After(now); t, ok = a.NextTimeout() {
		a.HandleTimeout(t)
		events = append(events, drainEvents(a)...)
		pings(a)
	}
	return events
}

// TestDoubtSendsBothWays: packets that leave by a primary that is quiet go over
// the relay as well from the first challenge on that is not answered, until the
// path answers or is left; not while it carries data to us, unless the peer asks
// again and again, and never where there is no relay.
func TestDoubtSendsBothWays(t *testing.T) {
	begin := epoch.Add(20 * time.Millisecond)
	use := begin.Add(quiet)
	for name, c := range map[string]struct {
		meanwhile func(a *Agent) // right after the check began
		both      bool
	}{
		"silence":   {func(*Agent) {}, true},
		"carries":   {func(a *Agent) { a.HandleInbound(DirectTo(home), Data, use.Add(1), use.Add(1)) }, false},
		"keepalive": {func(a *Agent) { a.HandleInbound(DirectTo(home), Keepalive, use.Add(1), use.Add(1)) }, true},
		"no relay":  {func(a *Agent) { a.HandleRelayState(false, use) }, false},
		"unheard": {func(a *Agent) {
			a.HandleInbound(DirectTo(home), Data, use.Add(1), use.Add(1))
			for i := range uint64(2) {
				if err := a.HandlePing(home, disco.Ping{Session: 5, Seq: i + 1}, use.Add(2)); err != nil {
					t.Error(err)
				}
			}
		}, true},
	} {
		a := direct(t, 1)
		a.HandleOutboundUse(use)
		c.meanwhile(a)
		drainEvents(a)
		pings(a)
		events := until(a, use.Add(minSpacing+50*time.Millisecond))
		both := len(events) == 1 && events[0].Both && events[0].Primary == DirectTo(home)
		if both != c.both || !both && len(events) > 0 {
			t.Errorf("%s: %+v", name, events)
		}
		if !c.both {
			continue
		}
		// It ends with an answer, or with the path.
		left := until(a, use.Add(2*time.Second))
		if last := left[len(left)-1]; last.Both || last.Primary != viaRelay || last.Why != ReasonLost {
			t.Errorf("%s: %+v", name, left)
		}
	}

	a := direct(t, 1)
	a.HandleOutboundUse(use)
	asked := pings(a)[home]
	until(a, use.Add(minSpacing))
	if err := a.HandlePong(home, disco.Pong{TxID: asked, Observed: lan}, use.Add(minSpacing+10*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if events := drainEvents(a); len(events) != 1 || events[0].Both || events[0].Primary != DirectTo(home) {
		t.Errorf("after a late answer: %+v", events)
	}
}

// TestMovedPeer: when the peer's packets come from a new address and the old one
// is silent, the new one is asked at once, and taken as soon as it has answered
// and the old one is in doubt.
func TestMovedPeer(t *testing.T) {
	a := direct(t, 1)
	moved := at("7.7.7.7:7")
	now := epoch.Add(20*time.Millisecond + quiet)
	a.HandleInbound(DirectTo(moved), Data, now, now)
	asked, ok := pings(a)[moved]
	if !ok || a.Primary() != DirectTo(home) {
		t.Fatalf("not asked, or believed unasked: %v", a.Primary())
	}
	now = now.Add(20 * time.Millisecond)
	if err := a.HandlePong(moved, disco.Pong{TxID: asked, Observed: lan}, now); err != nil {
		t.Fatal(err)
	}
	if a.Primary() != DirectTo(home) {
		t.Fatal("the primary was left without a doubt about it")
	}
	until(a, now.Add(minSpacing))
	if a.Primary() != DirectTo(moved) {
		t.Errorf("primary %v", a.Primary())
	}
}
