package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/netstack/config"
	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/tun"
	"github.com/warren-overlay/warren/tests/lab"
)

// engineVariable in the environment turns this test binary into an engine with
// a fixed configuration, without a coordinator.
const engineVariable = "WARREN_BENCH_ENGINE"

const (
	enginePort = 41641
	engineRule = ident.Label(1)
)

// runEngine runs the engine of one of two nodes. The first line on in says
// which one, and where the other is; it ends when in does.
func runEngine(in io.Reader, out io.Writer) error {
	var self int
	var other string
	if _, err := fmt.Fscanln(in, &self, &other); err != nil {
		return err
	}
	at, err := netip.ParseAddrPort(other)
	if err != nil {
		return err
	}
	device, err := tun.Open(tun.Config{Name: "warren0"})
	if err != nil {
		return err
	}
	e, err := engine.New(engine.Config{
		TUN: device, ManageDevice: true, Port: enginePort,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- e.Run(ctx) }()
	c, err := engineConfig(self, at)
	if err == nil {
		err = e.Apply(c)
	}
	if err != nil {
		cancel()
		<-ended
		return err
	}
	fmt.Fprintln(out, "ready", c.Self.Identity().Addresses[0])
	_, err = io.Copy(io.Discard, in)
	cancel()
	if ended := <-ended; ended != nil {
		return ended
	}
	return err
}

// engineConfig is the configuration of one of two nodes, which make the same
// network from the same seed, each for itself.
func engineConfig(self int, other netip.AddrPort) (*config.Config, error) {
	now := time.Now()
	network := acltest.NewNetwork(1, now)
	var keys [2]ident.NodePrivate
	var signed [2][]byte
	for i := range keys {
		keys[i] = network.NodeKey()
		certificate := network.Certificate(ident.NodeID(i+1), keys[i].Public(), fmt.Sprint("node", i), engineRule)
		signed[i] = network.Issue(certificate)
	}
	a, err := authority.New(network.Genesis, keys[self].Public(), authority.State{})
	if err != nil {
		return nil, err
	}
	own, err := a.AdmitSelf(signed[self], now)
	if err != nil {
		return nil, err
	}
	peer, err := a.Admit(signed[1-self], now)
	if err != nil {
		return nil, err
	}
	all := []ruleset.Rule{{
		ID: "all", Peers: []ruleset.Selector{{Labels: ident.NewLabelSet(engineRule)}},
		Services: []ruleset.Service{{Protocol: ruleset.AnyProtocol, Last: 1<<16 - 1}},
	}}
	rules, err := a.AdmitRules(network.IssueRules(own.Node(), &ruleset.RuleSet{Epoch: 1, In: all, Out: all}), own.Node())
	if err != nil {
		return nil, err
	}
	return &config.Config{
		PrivateKey: keys[self], Self: own, Rules: rules,
		Peers: []config.Peer{{Member: peer, Endpoints: []netip.AddrPort{other}}},
	}, nil
}

// engineTunnel joins two hosts by two engines.
func engineTunnel(b *testing.B, from, to *lab.Host) *tunnel {
	b.Helper()
	program, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	return engineTunnelOf(b, "engine", program, from, to)
}

// engineTunnelOf is engineTunnel with engines of the given build of this test
// binary.
func engineTunnelOf(b *testing.B, name, program string, from, to *lab.Host) *tunnel {
	b.Helper()
	t := &tunnel{name: name, from: from, to: to}
	hosts := [2]*lab.Host{from, to}
	for i, h := range hosts {
		in, out, pid := startChild(b, h, program, engineVariable)
		fmt.Fprintf(in, "%d %v:%d\n", i, hosts[1-i].V4, enginePort)
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			b.Fatalf("the engine did not start: %v", err)
		}
		var address string
		if _, err := fmt.Sscanf(line, "ready %s", &address); err != nil {
			b.Fatalf("the engine said %q", line)
		}
		if t.address, err = netip.ParseAddr(address); err != nil {
			b.Fatal(err)
		}
		t.pids[i] = pid
	}
	return t
}

// BenchmarkEngine is BenchmarkTunnel without the programs around the data
// plane.
func BenchmarkEngine(b *testing.B) {
	l := lab.New(b)
	from, to := l.Host("a"), l.Host("b")
	compare(b, [2]*tunnel{bareTunnel(b, from, to), engineTunnel(b, from, to)})
}

// BenchmarkFilter measures what the filter costs: two engines against two whose
// build lets every packet pass unseen. Each pair has hosts of its own.
func BenchmarkFilter(b *testing.B) {
	program := filepath.Join(b.TempDir(), "unfiltered")
	build := exec.Command("go", "test", "-c", "-tags", "warren_unfiltered", "-o", program, ".")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	l := lab.New(b)
	off := engineTunnelOf(b, "filter off", program, l.Host("a"), l.Host("b"))
	on := engineTunnel(b, l.Host("c"), l.Host("d"))
	on.name = "filter on"
	compare(b, [2]*tunnel{off, on})
}

// BenchmarkEngineLatency measures round trips of small messages on one TCP
// connection, against bare wireguard-go, and the memory of an engine that has
// done nothing but that.
func BenchmarkEngineLatency(b *testing.B) {
	const exchanges = 1000
	l := lab.New(b)
	from, to := l.Host("a"), l.Host("b")
	tunnels := [2]*tunnel{bareTunnel(b, from, to), engineTunnel(b, from, to)}
	var medians [2][]float64
	for round := 0; b.Loop(); round++ {
		for i := range tunnels {
			i = (i + round) % 2
			medians[i] = append(medians[i], median(tunnels[i].roundTrips(b, exchanges)))
		}
	}
	b.ReportMetric(median(medians[0]), "bare-µs")
	b.ReportMetric(median(medians[1]), "engine-µs")
	b.ReportMetric(float64(residentMemory(b, tunnels[1].pids[0]))/1e6, "engine-MB")
	b.ReportMetric(0, "ns/op")
}

// roundTrips exchanges messages and returns the time of each in µs.
func (t *tunnel) roundTrips(b *testing.B, n int) []float64 {
	b.Helper()
	l := t.to.Listen(b, netip.AddrPortFrom(t.address, 0).String())
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.Copy(c, c)
	}()
	c, err := t.from.Dial(b.Context(), "tcp", l.Addr().String())
	if err != nil {
		b.Fatalf("%s: %v", t.name, err)
	}
	defer c.Close()
	message := make([]byte, 64)
	var times []float64
	for range n {
		begin := time.Now()
		if _, err := c.Write(message); err != nil {
			b.Fatalf("%s: %v", t.name, err)
		}
		if _, err := io.ReadFull(c, message); err != nil {
			b.Fatalf("%s: %v", t.name, err)
		}
		times = append(times, float64(time.Since(begin).Nanoseconds())/1000)
	}
	return times
}

// residentMemory returns the resident set of a process in bytes (proc_pid_statm,
// field 2).
func residentMemory(b *testing.B, pid int) int64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		b.Fatal(err)
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
		b.Fatal(err)
	}
	return resident * int64(os.Getpagesize())
}
