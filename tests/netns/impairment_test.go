//go:build linux

package netns

import (
	"fmt"
	"net/netip"
	"sync/atomic"
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

// TestCorruption is the part of fault F13 that only WireGuard and the seal of probes
// stand against: bits of packets between two nodes are flipped, whose UDP checksum
// is right. Each of them arrives, is dropped and counted, and what the programs get is
// what was sent, over both families and in both directions.
func TestCorruption(t *testing.T) {
	t.Parallel()
	n := newTravellers(t)
	host, line := n.internet.PublicByLine("laptop", 13)
	laptop, db := n.join(t, host), n.join(t, n.internet.Public("db"))
	echo := address(db, "-4", 7000)
	lab.ServeUDP(t, db.Host, echo)
	for i, family := range []string{"IPv6", "IPv4"} {
		from, to := host.V6, db.Host.V6
		if family == "IPv4" {
			n.internet.Core.Nft("table ip6 none { chain forward { type filter hook forward priority filter\ndrop\n}\n}\n")
			from, to = host.V4, db.Host.V4
		}
		lab.Eventually(t, 30*time.Second, func() error {
			return lab.EchoUDP(within(t, 2*time.Second), host, echo)
		})
		eventuallyAt(t, laptop, db, to)
		eventuallyAt(t, db, laptop, from)
		receivers := map[lab.Direction]*lab.Node{lab.Outbound: db, lab.Inbound: laptop}
		before := make(map[lab.Direction]float64)
		for d, receiver := range receivers {
			before[d] = unopened(t, receiver)
		}
		stream := lab.StartTransfer(t, laptop.Host, db.Host, address(db, "-4", 7010+i))
		up := lab.StartPulse(t, laptop.Host, db.Host, address(db, "-4", 7020+i))
		down := lab.StartPulse(t, db.Host, laptop.Host, address(laptop, "-4", 7030+i))

		// What the tunnel carries, every twentieth. Not its header: that says whose
		// packet it is, and another counter counts what is nobody's.
		altered := alter(line, from, to, func(payload []byte, number int64) bool {
			const header = 16
			return payload[0] == transport && number%20 == 0 && flip(payload[header:], number)
		})
		lab.Eventually(t, 30*time.Second, func() error {
			for d := range receivers {
				if got := altered[d].packets.Load(); got < 20 {
					return fmt.Errorf("%s: %d packets altered in direction %v", family, got, d)
				}
			}
			return nil
		})
		line.Watch(nil)
		bytes := stream.Finish(t)
		checkFaults(t, family, map[string]*lab.Pulse{"up": up, "down": down})
		for d, receiver := range receivers { // nothing is on its way any more
			lab.Eventually(t, 30*time.Second, func() error {
				if got, want := unopened(t, receiver)-before[d], float64(altered[d].bytes.Load()); got != want {
					return fmt.Errorf("%s: %s was sent %v altered bytes, and %v bytes were not opened", family, receiver.Host.Name, want, got)
				}
				return nil
			})
			t.Logf("%s to %s: %d altered packets, %d bytes, none opened", family, receiver.Host.Name, altered[d].packets.Load(), altered[d].bytes.Load())
		}
		t.Logf("%s: %d bytes of TCP arrived as they were sent", family, bytes)

		// The probes, all of them.
		up = lab.StartPulse(t, laptop.Host, db.Host, address(db, "-4", 7040+i))
		down = lab.StartPulse(t, db.Host, laptop.Host, address(laptop, "-4", 7050+i))
		for d, receiver := range receivers {
			before[d] = metric(t, receiver, "warren_lost_packets_total", `reason="forged_probe"`)
		}
		altered = alter(line, from, to, func(payload []byte, number int64) bool {
			const header = 12 // what says whose probe it is
			return payload[0] == probeMagic && len(payload) > header && flip(payload[header:], number)
		})
		lab.Eventually(t, 30*time.Second, func() error {
			for d := range receivers {
				if got := altered[d].packets.Load(); got < 2 {
					return fmt.Errorf("%s: %d probes altered in direction %v", family, got, d)
				}
			}
			return nil
		})
		line.Watch(nil)
		for d, receiver := range receivers {
			lab.Eventually(t, 30*time.Second, func() error {
				got := metric(t, receiver, "warren_lost_packets_total", `reason="forged_probe"`) - before[d]
				if want := float64(altered[d].packets.Load()); got != want {
					return fmt.Errorf("%s: %s was sent %v altered probes, and counted %v", family, receiver.Host.Name, want, got)
				}
				return nil
			})
		}
		checkFaults(t, family, map[string]*lab.Pulse{"up": up, "down": down})
	}
}

// checkFaults stops pulses and reports what arrived of them that should not have.
func checkFaults(t *testing.T, during string, pulses map[string]*lab.Pulse) {
	t.Helper()
	for name, p := range pulses {
		p.Stop()
		if repeated, wrong := p.Faults(); repeated != 0 || wrong != 0 {
			t.Errorf("%s, %s: %d datagrams were delivered twice, and %d that nobody sent", during, name, repeated, wrong)
		}
	}
}

// probeMagic is the first byte of probes between nodes (package disco).
const probeMagic = 0xf7

// eventuallyAt waits until a node reaches another directly at an address.
func eventuallyAt(t *testing.T, from, to *lab.Node, at netip.Addr) {
	t.Helper()
	lab.Eventually(t, 30*time.Second, func() error {
		s, err := from.API().Status(t.Context())
		if err != nil {
			return err
		}
		for _, p := range s.Peers {
			if p.Name != to.Host.Name {
				continue
			}
			if got := p.Path.Addr; p.Path.Kind != "direct" || got.Addr() != at {
				return fmt.Errorf("%s reaches %s by %s %v, not at %v", from.Host.Name, p.Name, p.Path.Kind, got, at)
			}
			return nil
		}
		return fmt.Errorf("%s does not see %s", from.Host.Name, to.Host.Name)
	})
}

// altered counts what was altered in one direction, and the bytes of UDP payload of
// these packets.
type altered struct{ packets, bytes atomic.Int64 }

// alter has f see the UDP payload of the datagrams between two addresses, numbered from
// one in each direction, and counts those that f says it has altered.
func alter(line *lab.Line, a, b netip.Addr, f func(payload []byte, number int64) bool) map[lab.Direction]*altered {
	counts := map[lab.Direction]*altered{lab.Outbound: {}, lab.Inbound: {}}
	numbers := map[lab.Direction]*atomic.Int64{lab.Outbound: {}, lab.Inbound: {}}
	line.Watch(func(d lab.Direction, packet []byte) bool {
		payload, ok := lab.UDPPayload(packet)
		from, to := lab.Endpoints(packet)
		if !ok || len(payload) == 0 || (from.Addr() != a || to.Addr() != b) && (from.Addr() != b || to.Addr() != a) {
			return true
		}
		if f(payload, numbers[d].Add(1)) {
			lab.FixUDPChecksum(packet)
			counts[d].packets.Add(1)
			counts[d].bytes.Add(int64(len(payload)))
		}
		return true
	})
	return counts
}

// flip flips one bit, another one with every number.
func flip(b []byte, number int64) bool {
	b[number%int64(len(b))] ^= 1 << (number % 8)
	return true
}

// unopened returns how many bytes came to a node as the packets of a peer's tunnel
// and were not opened: they were altered, or came before, or are on their way to
// WireGuard.
func unopened(t *testing.T, n *lab.Node) float64 {
	t.Helper()
	bytes := metric(t, n, "warren_inbound_bytes_total")
	s, err := n.API().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range s.Peers {
		bytes -= float64(p.RxBytes)
	}
	return bytes
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
