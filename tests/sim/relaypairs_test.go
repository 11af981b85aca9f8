package sim

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/simnet"
)

// TestTwentyPairs is F06 in its full size: one relay carries twenty pairs and is
// killed, then both relays are away for a minute. Each pair is over the second
// relay within 5 s, and a direct pair loses nothing. After the minute both sides of
// every pair have handshakes under way, which cross when the relays are back: every
// pair is back within 5 s all the same. With -short there are six pairs.
func TestTwentyPairs(t *testing.T) {
	t.Parallel()
	run(t, 6, func(s *sim) {
		r1, r2 := s.addRelay("fra-1", 11), s.addRelay("ams-1", 12)
		s.world.Do(func(*simnet.Network) { s.server.SetDown(true) })
		var all []*node
		var pairs []*talk
		for i := range sized(20, 6) {
			a, b := s.secluded(fmt.Sprintf("a%d", i), byte(20+2*i)), s.secluded(fmt.Sprintf("b%d", i), byte(21+2*i))
			all = append(all, a, b)
			pairs = append(pairs, &talk{a: a, b: b})
		}
		c, d := s.start("c", s.public("c", 3), nil), s.start("d", s.public("d", 4), nil)
		direct := &talk{a: c, b: d}
		s.know(c, d)
		for _, p := range pairs {
			s.know(p.a, p.b)
		}
		for _, n := range all {
			n.connected()
		}
		for _, p := range pairs {
			s.know(p.a, p.b)
			if !p.a.passes(p.b, failover) {
				s.Fatalf("nothing arrives: %+v", p.a.engine.Status())
			}
		}
		c.until(d, 15*time.Second, "direct", func() bool { return c.path(d).Kind == engine.PathDirect && d.path(c).Kind == engine.PathDirect })
		s.talk(10*time.Second, append(pairs, direct)...)
		first := s.carrier(pairs[0].a, pairs[0].b)
		for _, p := range pairs {
			if p.gap > 500*time.Millisecond || s.carrier(p.a, p.b) != first {
				s.Fatalf("a gap of %v before anything failed, and the path %v", p.gap, p.a.path(p.b))
			}
		}
		worst := func(what string, from, to time.Duration) {
			s.Helper()
			var slowest time.Duration
			for _, p := range pairs {
				if slowest = max(slowest, p.gap); p.gap < from || p.gap > to {
					s.Errorf("%s: a gap of %v from %s, want %v to %v", what, p.gap, p.a.Certificate.Name, from, to)
				}
			}
			s.Logf("%s: the longest gap of %d pairs is %v", what, len(pairs), slowest)
			if direct.lost > 0 {
				s.Errorf("%s: the direct pair lost %d packets", what, direct.lost)
			}
		}

		first.kill()
		s.talk(20*time.Second, append(pairs, direct)...)
		worst("one killed", 0, failover)
		for _, r := range []*relaySite{r1, r2} {
			if r != first {
				r.kill()
			}
		}
		s.talk(time.Minute, append(pairs, direct)...)
		worst("both away", 55*time.Second, time.Minute)
		r1.start()
		r2.start()
		s.talk(15*time.Second, append(pairs, direct)...)
		worst("both back", 0, failover)
	})
}

// maxQueued is what may wait for a relay (F06: no send queue grows by more than
// 1 MiB for each peer). It is of all peers together.
const maxQueued = 1 << 20

// TestRelayQueueIsBounded sends much to a relay that has vanished without a word,
// until that is noticed: what waits is bounded, and the rest is counted as lost.
func TestRelayQueueIsBounded(t *testing.T) {
	t.Parallel()
	run(t, 1, func(s *sim) {
		r := s.addRelay("fra-1", 11)
		a, b := s.secludedPair()
		s.world.Do(func(*simnet.Network) { r.host.SetDown(true) })
		most, payload := 0, strings.Repeat("x", 1000)
		for range 100 {
			for range 100 {
				a.tun.Send(a.udp(b, payload))
			}
			time.Sleep(20 * time.Millisecond)
			for _, status := range a.engine.Status().Relays {
				most = max(most, status.Queued)
			}
		}
		s.Logf("at most %d bytes waited", most)
		if most < maxQueued/8 || most > maxQueued {
			s.Errorf("%d bytes waited, want some and %d at most", most, maxQueued)
		}
		if lost := a.engine.Status().Drops["relay_queue"]; lost == 0 {
			s.Errorf("no packet was counted as lost: %v", a.engine.Status().Drops)
		}
	})
}
