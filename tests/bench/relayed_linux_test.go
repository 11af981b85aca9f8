package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/warren-overlay/warren/tests/lab"
)

// loaded is a tunnel with what was measured of it while one TCP stream used it.
type loaded struct {
	*tunnel
	kind  string // of its path, as warren status names it
	node  *lab.Node
	rates []float64 // Gbit/s
	costs []float64 // CPU seconds per GB of both ends
	trips []time.Duration
}

// BenchmarkRelayed measures one TCP stream between two TUN devices whose hosts
// may send each other no UDP, through the relay beside the coordinator, and
// round trips of 64 bytes meanwhile. It takes turns with the same from a third
// host on a direct path to the same node, so that a reader can tell a slow relay
// from a slow machine: the ratios are what counts.
func BenchmarkRelayed(b *testing.B) {
	l := lab.New(b)
	c, db, host := pairOn(b, l)
	address, err := netip.ParseAddr(db.IP("-4"))
	if err != nil {
		b.Fatal(err)
	}
	ways := [2]*loaded{{kind: "direct"}, {kind: "relay"}}
	for i, h := range []*lab.Host{l.Host("neighbour"), host} {
		if ways[i].kind == "relay" {
			h.BlockUDP(db.Host)
			db.Host.BlockUDP(h)
		}
		node := h.Daemon(b)
		node.Up(c, c.Key("--user", "alice@example.com"))
		node.CLI("ping", "db")
		ways[i].node = node
		ways[i].tunnel = &tunnel{name: ways[i].kind, from: h, to: db.Host, address: address, pids: [2]int{node.Pid(), db.Pid()}}
	}
	ways[0].node.CLI("ping", "--until-direct", "db")
	eachCongestionControl(b, func(b *testing.B, use func(net.Conn)) { compareWays(b, c, ways, use) })
}

func compareWays(b *testing.B, c *lab.Coordinator, ways [2]*loaded, use func(net.Conn)) {
	b.Helper()
	for _, w := range ways {
		w.measure(b, use) // the numbers of the relay are known after this
		w.rates, w.costs, w.trips = nil, nil, nil
	}
	var relayCosts []float64
	for round := 1; b.Loop(); round++ {
		for i := range ways {
			w := ways[(i+round)%2] // the one that goes first changes, so that neither gains
			before := processorTime(b, [2]int{c.Pid(), c.Pid()}) / 2
			gigabytes := w.load(b, use)
			if w.kind == "relay" {
				used := processorTime(b, [2]int{c.Pid(), c.Pid()})/2 - before
				relayCosts = append(relayCosts, used.Seconds()/gigabytes)
			}
		}
	}
	for _, w := range ways {
		w.check(b)
	}
	direct, relayed := ways[0], ways[1]
	report(b, relayed.trips)
	b.ReportMetric(at(direct.trips, 0.5), "direct-ms/median")
	b.ReportMetric(at(direct.trips, 0.95), "direct-ms/p95")
	b.ReportMetric(at(direct.trips, 0.99), "direct-ms/p99")
	b.ReportMetric(median(relayed.rates), "Gbit/s")
	b.ReportMetric(median(direct.rates), "direct-Gbit/s")
	b.ReportMetric(median(ratios(relayed.rates, direct.rates)), "throughput-ratio")
	b.ReportMetric(median(ratios(relayed.costs, direct.costs)), "CPU-ratio")
	b.ReportMetric(median(relayed.costs), "CPU-s/GB")
	b.ReportMetric(median(relayCosts), "relay-CPU-s/GB")
}

// load sends one TCP stream and round trips, notes the figures, and returns how
// many gigabytes were carried.
func (w *loaded) load(b *testing.B, use func(net.Conn)) (gigabytes float64) {
	b.Helper()
	stop := make(chan struct{})
	done := make(chan []time.Duration)
	go func() { done <- roundTrips(b, w.tunnel, stop) }()
	gigabits, seconds := w.measure(b, use)
	close(stop)
	trips := <-done
	if len(trips) == 0 {
		b.Fatal("no round trip under load")
	}
	w.trips = append(w.trips, trips...)
	w.rates, w.costs = append(w.rates, gigabits), append(w.costs, seconds)
	slices.Sort(trips)
	b.Logf("%-6s %.2f Gbit/s, %.2f CPU s/GB of both ends, round trip median %.1f ms, p95 %.1f ms, p99 %.1f ms",
		w.kind, gigabits, seconds, at(trips, 0.5), at(trips, 0.95), at(trips, 0.99))
	return gigabits / 8 * roundTime.Seconds()
}

// check fails the benchmark where the tunnel did not go the way that was meant.
func (w *loaded) check(b *testing.B) {
	b.Helper()
	var status struct {
		Peers []struct {
			Name string
			Path struct{ Kind string }
		}
	}
	if err := json.Unmarshal([]byte(w.node.CLI("status", "--json")), &status); err != nil {
		b.Fatal(err)
	}
	for _, p := range status.Peers {
		if p.Name == "db" && p.Path.Kind == w.kind {
			return
		}
	}
	b.Fatal(fmt.Errorf("not on a path of kind %s: %+v", w.kind, status))
}

// ratios returns the quotients of what was measured in the same rounds.
func ratios(of, to []float64) (out []float64) {
	for i := range of {
		out = append(out, of[i]/to[i])
	}
	return out
}

// roundTrips sends 64 bytes and waits for them, again and again until stop.
func roundTrips(b *testing.B, t *tunnel, stop <-chan struct{}) (trips []time.Duration) {
	l := t.to.Listen(b, netip.AddrPortFrom(t.address, 0).String())
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(c, c)
	}()
	c, err := t.from.Dial(b.Context(), "tcp", l.Addr().String())
	if err != nil {
		b.Error(err)
		return nil
	}
	defer c.Close()
	message := make([]byte, 64)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return trips
		case <-tick.C:
		}
		began := time.Now()
		if _, err := c.Write(message); err != nil {
			b.Error(err)
			return trips
		}
		if _, err := io.ReadFull(c, message); err != nil {
			b.Error(err)
			return trips
		}
		trips = append(trips, time.Since(began))
	}
}
