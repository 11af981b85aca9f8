//go:build linux

package netns

import (
	"fmt"
	"testing"
	"time"

	"github.com/warren-overlay/warren/tests/lab"
)

// TestImpairments is fault F13: lines that lose, repeat, reorder, delay and
// corrupt packets. Every tunnel comes to be, a TCP connection passes every byte,
// nothing is delivered twice, and nothing that was not sent. The handshakes of
// TestSeeds in tests/sim are more; here the programs and the kernel are real.
func TestImpairments(t *testing.T) {
	t.Parallel()
	n := newTravellers(t)
	host, line := n.internet.PublicByLine("laptop", 13)
	laptop := n.join(t, host)
	for _, loss := range []float64{0.01, 0.05, 0.20} {
		name := fmt.Sprintf("loss of %v %%", 100*loss)
		line.Impair(lab.Impairment{})
		db := n.join(t, n.internet.Public(fmt.Sprintf("db%d", int(100*loss))))
		target := address(db, "-4", 7000)
		datagrams := address(db, "-4", 7002)
		line.Impair(lab.Impairment{Loss: loss, Duplicate: 0.05, Reorder: 0.1, Corrupt: 0.01, Jitter: 50 * time.Millisecond})

		begin := time.Now()
		p := lab.StartLossyPulse(t, host, db.Host, datagrams)
		lab.Eventually(t, 15*time.Second, func() error {
			if p.Count() == 0 {
				return fmt.Errorf("%s: nothing has arrived", name)
			}
			return nil
		})
		first := time.Since(begin)
		x := lab.StartTransfer(t, host, db.Host, target)
		eventuallyDirect(t, laptop, db)
		line.Corrupted.Store(0)
		line.Duplicated.Store(0)
		lab.Eventually(t, 30*time.Second, func() error {
			if c, d := line.Corrupted.Load(), line.Duplicated.Load(); c < 10 || d < 20 {
				return fmt.Errorf("%s: only %d packets corrupted and %d repeated", name, c, d)
			}
			return nil
		})
		bytes := x.Finish(t)
		repeated, wrong := p.Faults()
		if repeated != 0 || wrong != 0 {
			t.Errorf("%s: %d datagrams were delivered twice, and %d that nobody sent", name, repeated, wrong)
		}
		t.Logf("%-12s first packet after %v; %d bytes of TCP; %d packets lost, %d repeated, %d reordered, %d corrupted",
			name, first.Round(time.Millisecond), bytes, line.Lost.Swap(0), line.Duplicated.Load(), line.Reordered.Swap(0), line.Corrupted.Load())
	}
}

// TestPartitions is fault F10: between two nodes packets go one way only, or the
// coordinator and the relay are out of one's reach. Where there is a way, nothing
// stops for more than 5 s, and the pair is as it was 5 s after the end.
func TestPartitions(t *testing.T) {
	t.Parallel()
	const limit = 5 * time.Second
	n := newTravellers(t)
	a, b := n.join(t, n.internet.Public("a")), n.join(t, n.internet.Public("b"))
	hub := n.coordinator.Host
	x := lab.StartTransfer(t, a.Host, b.Host, address(b, "-4", 7000))
	there := lab.StartPulse(t, a.Host, b.Host, address(b, "-4", 7002))
	back := lab.StartPulse(t, b.Host, a.Host, address(a, "-4", 7003))
	eventuallyDirect(t, a, b)
	apart := fmt.Sprintf("ip saddr %v ip daddr %v drop\nip6 saddr %v ip6 daddr %v drop", a.Host.V4, b.Host.V4, a.Host.V6, b.Host.V6)
	for _, c := range []struct {
		name, rules string
		kind        string // of the path meanwhile
	}{
		{"a to b only is cut", apart, "relay"},
		{"coordinator and relay are cut from a", fmt.Sprintf("ip saddr { %v, %v } ip daddr { %v, %v } drop", a.Host.V4, hub.V4, hub.V4, a.Host.V4), "direct"},
	} {
		begin := time.Now()
		n.internet.Core.Nft("table inet partition { chain forward { type filter hook forward priority filter\n" + c.rules + "\n}\n}\n")
		lasts := time.Duration(times(8, 600)) * time.Second
		lab.Eventually(t, lasts+30*time.Second, func() error {
			if since := time.Since(begin); since < lasts {
				return fmt.Errorf("%s for %v", c.name, since)
			}
			if k := pathKind(t, a, b); k != c.kind {
				return fmt.Errorf("%s: the path is %s", c.name, k)
			}
			return nil
		})
		there.Steady(t, 5*time.Second)
		back.Steady(t, 5*time.Second)
		stopped := max(there.Gap(begin), back.Gap(begin))
		healed := time.Now()
		n.internet.Core.Nft("delete table inet partition")
		eventuallyDirect(t, a, b)
		converged := time.Since(healed)
		there.Steady(t, 5*time.Second)
		back.Steady(t, 5*time.Second)
		t.Logf("%-38s nothing for %v; direct %v after the end, nothing for %v", c.name, stopped, converged, max(there.Gap(healed), back.Gap(healed)))
		if stopped > limit {
			t.Errorf("%s: nothing arrived for %v", c.name, stopped)
		}
		if converged > limit {
			t.Errorf("%s: direct %v after the end", c.name, converged)
		}
	}
	x.Finish(t)
}
