package path

import (
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/disco"
)

// told is what an agent says of strays that it is told of.
type told struct {
	begins int
	last   netip.AddrPort
	lasts  bool // at the end
}

// bring tells a of n packets from each address every 250 ms for a while, and has the
// given addresses answer challenges. Opened packets are told of as well, as the driver
// does.
func bring(a *Agent, now time.Time, d time.Duration, n uint64, from []netip.AddrPort, answering ...netip.AddrPort) (out told) {
	for end := now.Add(d); now.Before(end); now = now.Add(250 * time.Millisecond) {
		a.HandleOutboundUse(now)
		var packets []Stray
		for _, addr := range from {
			a.HandleInbound(DirectTo(addr), Data, now, now)
			packets = append(packets, Stray{DirectTo(addr), n})
		}
		if a.HandleStrays(packets, 0, now) {
			out.begins++
		}
		ids := pings(a)
		for _, where := range answering {
			if id, ok := ids[where]; ok {
				_ = a.HandlePong(where, disco.Pong{TxID: id, Observed: lan}, now.Add(20*time.Millisecond))
			}
		}
	}
	out.last, out.lasts = a.Strayed(now)
	return out
}

// TestPacketsFromElsewhere is fault F19: packets that go on to come from where the peer
// does not prove to be raise one alarm, which is over after a minute without, and is
// raised anew by the next. A peer that moves raises none, however much it sends until
// that is proved, and neither do a few packets.
func TestPacketsFromElsewhere(t *testing.T) {
	at := func(n int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{9, 9, 9, byte(n)}), 9)
	}
	for name, test := range map[string]struct {
		bring func(a *Agent, now time.Time) told
		want  told
	}{
		"somebody on the way": {func(a *Agent, now time.Time) told {
			return bring(a, now, time.Minute, 10, []netip.AddrPort{rogue}, home)
		}, told{1, rogue, true}},
		"for as long as a peer may take": {func(a *Agent, now time.Time) told {
			return bring(a, now, strayProof-100*time.Millisecond, 1000, []netip.AddrPort{rogue}, home)
		}, told{}},
		"as many as are allowed": {func(a *Agent, now time.Time) told {
			return bring(a, now, strayProof+(strayLimit-1)*250*time.Millisecond, 1, []netip.AddrPort{rogue}, home)
		}, told{0, rogue, false}},
		"one more": {func(a *Agent, now time.Time) told {
			return bring(a, now, strayProof+strayLimit*250*time.Millisecond, 1, []netip.AddrPort{rogue}, home)
		}, told{1, rogue, true}},
		"now and then": {func(a *Agent, now time.Time) (out told) {
			for range 60 {
				out = bring(a, now, time.Second, 10, []netip.AddrPort{rogue}, home)
				now = now.Add(strayGap + 2*time.Second)
				a.HandleTimeout(now)
			}
			return out
		}, told{}},
		"from many addresses": {func(a *Agent, now time.Time) told {
			var from []netip.AddrPort
			for i := range maxStrays + 1 {
				from = append(from, at(i))
			}
			return bring(a, now, 2*time.Second, strayLimit, from, home)
		}, told{1, at(maxStrays), true}},
		"from more than are told apart": {func(a *Agent, now time.Time) (out told) {
			if a.HandleStrays(nil, strayLimit, now) {
				out.begins++
			}
			out.last, out.lasts = a.Strayed(now)
			return out
		}, told{1, netip.AddrPort{}, true}},
		"over after a minute": {func(a *Agent, now time.Time) told {
			out := bring(a, now, time.Minute, 10, []netip.AddrPort{rogue}, home)
			_, out.lasts = a.Strayed(now.Add(2*time.Minute - 250*time.Millisecond))
			return out
		}, told{1, rogue, false}},
		"again": {func(a *Agent, now time.Time) told {
			out := bring(a, now, time.Minute, 10, []netip.AddrPort{rogue}, home)
			again := bring(a, now.Add(3*time.Minute), time.Minute, 10, []netip.AddrPort{rogue}, home)
			again.begins += out.begins
			return again
		}, told{2, rogue, true}},
		"a peer that moves each 20 s": {func(a *Agent, now time.Time) (out told) {
			seq := uint64(0)
			for i := range 30 {
				// It takes 5 s to be proved, as long as it ever may. Its beats come meanwhile.
				for step := range 20 * time.Second / beat {
					seq++
					if err := a.HandlePing(at(i), disco.Ping{TxID: disco.TxID{byte(seq)}, Session: 7, Seq: seq}, now); err != nil {
						t.Errorf("beat %d: %v", seq, err)
					}
					var answering []netip.AddrPort
					if step*beat > 5*time.Second {
						answering = append(answering, at(i))
					}
					out = bring(a, now, beat, 10_000, []netip.AddrPort{at(i)}, answering...)
					now = now.Add(beat)
				}
			}
			return out
		}, told{}},
		"a peer that sends from where its path is, and ours is another": {func(a *Agent, now time.Time) told {
			bring(a, now, time.Second, 10, []netip.AddrPort{moved}, home, moved)
			return bring(a, now.Add(time.Second), time.Minute, 10, []netip.AddrPort{moved}, home)
		}, told{}},
	} {
		t.Run(name, func(t *testing.T) {
			a := direct(t, 1)
			got := test.bring(a, epoch.Add(20*time.Millisecond))
			if got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			if n := a.Stats().StrayAlarms; n != uint64(test.want.begins) {
				t.Errorf("%d alarms are counted", n)
			}
		})
	}
}

// TestOldStraysAreNotNamed: an alarm for packets from more places than are told apart
// names none, also where there was an alarm for one place before.
func TestOldStraysAreNotNamed(t *testing.T) {
	a := direct(t, 1)
	now := epoch.Add(20 * time.Millisecond)
	if got := bring(a, now, time.Minute, 10, []netip.AddrPort{rogue}, home); got != (told{1, rogue, true}) {
		t.Fatalf("got %+v", got)
	}
	now = now.Add(time.Minute + 2*strayWindow)
	if _, lasts := a.Strayed(now); lasts {
		t.Fatal("it is not over")
	}
	begins := a.HandleStrays(nil, strayLimit, now)
	if from, lasts := a.Strayed(now); !begins || !lasts || from.IsValid() {
		t.Errorf("begins %v, lasts %v, from %v", begins, lasts, from)
	}
}

// TestStraysHaveNothingSent: they need not be authentic, so nobody is sent anything
// for them, and nothing changes (F16, F18).
func TestStraysHaveNothingSent(t *testing.T) {
	a := direct(t, 1)
	now := epoch.Add(50 * time.Millisecond)
	before := a.Snapshot()
	for range 100 {
		now = now.Add(time.Millisecond)
		a.HandleStrays([]Stray{{DirectTo(rogue), 1}}, 1, now)
	}
	if _, asked := pings(a)[rogue]; asked {
		t.Error("a challenge is sent there")
	}
	if after := a.Snapshot(); after.Primary != before.Primary || len(after.Candidates) != len(before.Candidates) {
		t.Errorf("from %+v to %+v", before, after)
	}
	if n := a.Stats().Strays; n != 200 {
		t.Errorf("%d packets are counted, want 200", n)
	}
}
