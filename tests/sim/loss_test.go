package sim

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-overlay/warren/netstack/simnet"
)

// TestHandshakesUnderLoss is fault F13: on a network that loses a fifth of all
// packets, sends one in twenty twice and one in ten late, and changes one in a
// hundred, 999 of 1,000 handshakes succeed within 15 seconds. There is no relay,
// whose TCP would repeat what is lost. Nothing that was changed on the way
// arrives.
func TestHandshakesUnderLoss(t *testing.T) {
	t.Parallel()
	const (
		n     = 24
		limit = 15 * time.Second
	)
	rounds := sized(4, 1) // of n*(n-1)/2 handshakes each: 1,104
	var took []time.Duration
	failed := 0
	for round := range rounds {
		run(t, uint64(70+round), func(s *sim) {
			nodes := make([]*node, n)
			for i := range nodes {
				name := fmt.Sprint("n", i)
				nodes[i] = s.start(name, s.public(name, byte(i+1)), nil)
			}
			s.know(nodes...)
			s.world.Do(func(w *simnet.Network) {
				s.server.SetDown(true)
				w.SetPath(simnet.Path{
					Delay: 20 * time.Millisecond, Jitter: 50 * time.Millisecond,
					Loss: 0.2, Duplicate: 0.05, Reorder: 0.1, Corrupt: 0.01,
				})
			})
			time.Sleep(30 * time.Second) // until the relay is given up
			began := time.Now()
			waits := make(map[[2]int]bool)
			for i, a := range nodes {
				for j, b := range nodes[i+1:] {
					waits[[2]int{i, i + 1 + j}] = true
					a.tun.Send(a.udp(b, "whole"))
				}
			}
			for len(waits) > 0 && time.Since(began) < limit {
				time.Sleep(500 * time.Millisecond)
				synctest.Wait()
				for i, a := range nodes {
					for _, p := range a.engine.Status().Peers {
						j := slices.IndexFunc(nodes, func(b *node) bool { return b.Key == p.Key })
						if k := [2]int{i, j}; waits[k] && !p.LastHandshake.IsZero() {
							delete(waits, k)
							took = append(took, time.Since(began))
						}
					}
				}
			}
			for k := range waits {
				s.Logf("round %d: no handshake between %d and %d within %v", round, k[0], k[1], limit)
			}
			failed += len(waits)
			for i, b := range nodes {
				for len(b.tun.Received()) > 0 {
					got := <-b.tun.Received()
					if len(got) < 28 || string(got[28:]) != "whole" {
						s.Errorf("round %d: node %d was given % x", round, i, got)
					}
				}
			}
			s.world.Do(func(w *simnet.Network) {
				if c := w.Stats().Corrupted; c < 10 {
					s.Errorf("round %d: %d packets were changed", round, c)
				}
			})
		})
	}
	slices.Sort(took)
	all := len(took) + failed
	t.Logf("%d of %d within %v; median %v, 99 %% %v, last %v", len(took), all, limit, took[len(took)/2], took[len(took)*99/100], took[len(took)-1])
	if want := rounds * n * (n - 1) / 2; all != want || failed > max(all/1000, 1) {
		t.Errorf("%d of %d handshakes failed", failed, all)
	}
}
