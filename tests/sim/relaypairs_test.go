package sim

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/simnet"
)

// TestTwentyPairs is F06 in its full size: one relay carries twenty pairs and is
// killed, then the other's machine vanishes without a word, so that both are away for a
// minute. Each pair is over the second relay within 5 s, and direct pairs lose nothing.
// After the minute both sides of every pair have handshakes under way, which cross when
// the relays are back: every pair is back within 5 s all the same. All the minute the
// pairs send, first of all much more than may wait for a relay, which does not wait but
// is lost and counted. With -short there are six pairs.
func TestTwentyPairs(t *testing.T) {
	t.Parallel()
	run(t, 6, func(s *sim) {
		s.twoServers() // of which one stays
		r1, r2 := s.addRelay("fra-1", 11), s.addRelay("ams-1", 12)
		s.world.Do(func(*simnet.Network) { s.server.SetDown(true) })
		var all []*node
		var pairs []*talk
		for i := range sized(20, 6) {
			a, b := s.secluded(fmt.Sprintf("a%d", i), byte(20+2*i)), s.secluded(fmt.Sprintf("b%d", i), byte(21+2*i))
			all = append(all, a, b)
			pairs = append(pairs, &talk{a: a, b: b})
		}
		// One direct pair on the internet, and one whose NATs must be kept open.
		direct := []*talk{{a: s.start("c", s.public("c", 3), nil), b: s.start("d", s.public("d", 4), nil)}}
		e, _ := s.behind("e", simnet.PortRestricted, 5)
		f, _ := s.behind("f", simnet.PortRestricted, 6)
		direct = append(direct, &talk{a: s.start("e", e, nil), b: s.start("f", f, nil)})
		everybody := slices.Concat(pairs, direct)
		for _, p := range everybody {
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
		for _, p := range direct {
			p.a.until(p.b, 15*time.Second, "direct", func() bool {
				return p.a.path(p.b).Kind == engine.PathDirect && p.b.path(p.a).Kind == engine.PathDirect
			})
		}
		s.talk(10*time.Second, everybody...)
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
			for _, p := range direct {
				if p.lost > 0 {
					s.Errorf("%s: the direct pair of %s lost %d packets", what, p.a.Certificate.Name, p.lost)
				}
			}
		}

		first.kill()
		s.talk(20*time.Second, everybody...)
		worst("one killed", 0, failover)
		second := r1
		if first == r1 {
			second = r2
		}
		s.world.Do(func(*simnet.Network) { second.host.SetDown(true) })
		// Each node has one peer on a relay, so that what waits is of that one.
		const (
			flood, steady = 1200, 40 // packets a second
			flooded       = 3 * time.Second
		)
		most, before := make(map[*node]int), make(map[*node]uint64)
		for _, n := range all {
			drops := n.engine.Status().Drops
			before[n] = drops["no_path"] + drops["relay_queue"]
		}
		for _, p := range pairs {
			p.size, p.burst = 1300, flood/10
			p.sample = func() {
				for _, n := range []*node{p.a, p.b} {
					waits := 0
					for _, r := range n.engine.Status().Relays {
						waits += r.Queued
					}
					most[n] = max(most[n], waits)
				}
			}
		}
		s.talk(flooded, everybody...)
		worst("both away, flooded", 0, flooded)
		for _, p := range pairs {
			p.burst = steady / 10
		}
		s.talk(time.Minute-flooded, everybody...)
		worst("both away", time.Minute-flooded-time.Second, time.Minute-flooded)
		least, longest := maxQueued, 0
		for _, n := range all {
			least, longest = min(least, most[n]), max(longest, most[n])
			drops := n.engine.Status().Drops
			lost := drops["no_path"] + drops["relay_queue"] - before[n]
			if most[n] == 0 || most[n] > maxQueued || lost < 50*steady {
				s.Errorf("both away: at most %d bytes of %s's waited, want some and %d at most; %d packets were counted as lost",
					most[n], n.Certificate.Name, maxQueued, lost)
			}
		}
		s.Logf("both away: of 5 MB that each node sent, %d to %d bytes waited at most", least, longest)
		for _, p := range pairs {
			p.size, p.burst, p.sample = 0, 0, nil
		}
		first.start()
		s.world.Do(func(*simnet.Network) { second.host.SetDown(false) })
		s.talk(15*time.Second, everybody...)
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
