package path

import (
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/disco"
)

// TestStandings follows the addresses of a peer through all that they can be.
func TestStandings(t *testing.T) {
	a := newAgent(t, 1)
	a.HandleRelayState(true, epoch)
	a.SetRemoteCandidates([]netip.AddrPort{home, lan, v6}, epoch)
	now := epoch
	// answering lets time pass while the given addresses answer at once.
	answering := func(d time.Duration, addrs ...netip.AddrPort) {
		t.Helper()
		for end := now.Add(d); now.Before(end); now = now.Add(10 * time.Millisecond) {
			a.HandleTimeout(now)
			a.HandleOutboundUse(now)
			for addr, id := range pings(a) {
				if !slices.Contains(addrs, addr) {
					continue
				}
				if err := a.HandlePong(addr, disco.Pong{TxID: id}, now.Add(time.Millisecond)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	want := func(want map[netip.AddrPort]Standing, why Reason) {
		t.Helper()
		s := a.Snapshot()
		got := make(map[netip.AddrPort]Standing)
		for _, c := range s.Candidates {
			got[c.Addr] = c.Standing
		}
		if !maps.Equal(got, want) || s.Why != why {
			t.Errorf("after %v: %v because of %v, want %v because of %v", now.Sub(epoch), got, s.Why, want, why)
		}
	}
	want(map[netip.AddrPort]Standing{home: StandingIdle, lan: StandingIdle, v6: StandingIdle}, ReasonRelay)
	answering(time.Second)
	want(map[netip.AddrPort]Standing{home: StandingProbing, lan: StandingProbing, v6: StandingProbing}, ReasonRelay)
	answering(2*time.Second, home)
	if s := a.Snapshot(); s.Primary != DirectTo(home) || s.Since.Before(epoch.Add(time.Second)) {
		t.Errorf("%+v", s)
	}
	answering(7*time.Second, home)
	want(map[netip.AddrPort]Standing{home: StandingPrimary, lan: StandingSilent, v6: StandingSilent}, ReasonProved)
	a.HandleNetworkChange(now) // everything is asked again, and both answer
	answering(time.Second, home, lan)
	want(map[netip.AddrPort]Standing{home: StandingWorks, lan: StandingPrimary, v6: StandingProbing}, ReasonProved)
	for _, c := range a.Snapshot().Candidates {
		if heard := !c.Heard.IsZero(); heard != (c.Addr != v6) || (c.Cost > 0) != heard || c.Next.IsZero() {
			t.Errorf("%+v", c)
		}
	}
	answering(9*time.Second, lan)
	want(map[netip.AddrPort]Standing{home: StandingStale, lan: StandingPrimary, v6: StandingSilent}, ReasonProved)
	answering(6 * time.Second)
	if s := a.Snapshot(); s.Why != ReasonLost || s.Primary != viaRelay || s.Candidates[1].Standing != StandingLost {
		t.Errorf("%+v", s)
	}
	a.HandleTimeout(now.Add(2 * idleAfter))
	for _, c := range a.Snapshot().Candidates {
		if c.Addr == v6 && c.Standing != StandingIdle || !c.Next.IsZero() {
			t.Errorf("idle: %+v", c)
		}
	}
}

// TestStandingOfABarredPath: it answers, and is not used.
func TestStandingOfABarredPath(t *testing.T) {
	a := direct(t, 1)
	now := epoch.Add(time.Second)
	left := answering(a, now, now.Add(20*time.Second), true)
	if c := a.Snapshot().Candidates[0]; left.IsZero() || c.Standing != StandingBarred {
		t.Errorf("left %v, %+v", left, c)
	}
}
