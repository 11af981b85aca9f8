//go:build linux

package netns

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/warren-overlay/warren/client/localapi"
	"github.com/warren-overlay/warren/tests/lab"
)

// failover is what the failure of a relay may cost (F06), restart what its
// restart may (F07).
const (
	failover = 5 * time.Second
	restart  = time.Second
)

// relayTo returns the name of the relay by which a node reaches a peer now, empty
// where it is reached in another way.
func relayTo(t *testing.T, from *lab.Node, peer string) string {
	t.Helper()
	s, err := from.API().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(s.Peers, func(n localapi.Node) bool { return n.Name == peer })
	if i < 0 {
		t.Fatalf("%s does not see %s: %+v", from.Host.Name, peer, s.Peers)
	}
	return s.Peers[i].Path.Relay
}

// carrier returns the relay that carries packets from a node to a peer.
func carrier(t *testing.T, from *lab.Node, peer string, relays []*lab.Relay) *lab.Relay {
	t.Helper()
	name := relayTo(t, from, peer)
	for _, r := range relays {
		if r.Name == name {
			return r
		}
	}
	t.Fatalf("no relay carries the packets from %s to %s: %q", from.Host.Name, peer, name)
	return nil
}

// after watches a stream for a while and returns its longest gap.
func after(s *lab.Stream, d time.Duration) time.Duration {
	<-time.After(d)
	return s.LongestGap()
}

// relayedPair is a node that reaches another through relays only.
type relayedPair struct {
	name     string
	from, to *lab.Node
	// datagrams says that both reach their relays by UDP; else inside HTTPS only.
	datagrams bool
	udp, tcp  *lab.Stream
}

// start opens the pair's flows.
func (p *relayedPair) start(t *testing.T) {
	t.Helper()
	p.udp = lab.StartUDP(t, p.from.Host, p.to.Host, address(p.to, "-4", 5353))
	p.tcp = lab.StartTCP(t, p.from.Host, p.to.Host, address(p.to, "-6", 5432))
}

// carriedBy waits until a relay carries the pair's packets in the pair's way, by both
// ends' status, and by what the relay counts.
func (p *relayedPair) carriedBy(t *testing.T, r *lab.Relay) {
	t.Helper()
	lab.Eventually(t, 30*time.Second, func() error {
		for _, n := range []*lab.Node{p.from, p.to} {
			s, err := n.API().Status(t.Context())
			if err != nil {
				return err
			}
			i := slices.IndexFunc(s.Relays, func(x localapi.Relay) bool { return x.Name == r.Name })
			if i < 0 || !s.Relays[i].Connected || s.Relays[i].Datagrams != p.datagrams || s.Relays[i].URL != "wss://"+r.Host.V4.String()+relayPath {
				return fmt.Errorf("%s, %s: %+v, want datagrams %v", p.name, n.Host.Name, s.Relays, p.datagrams)
			}
		}
		return nil
	})
	count := func() (datagrams, frames float64) {
		datagrams = metricAt(t, r.Host, lab.RelayMetricsPort, "warren_relay_datagram_packets_total")
		return datagrams, metricAt(t, r.Host, lab.RelayMetricsPort, "warren_relay_packets_total", `"out"`) - datagrams
	}
	datagrams, frames := count()
	lab.Eventually(t, 10*time.Second, func() error {
		d, f := count()
		if more := map[bool]float64{true: d - datagrams, false: f - frames}[p.datagrams]; more < 100 {
			return fmt.Errorf("%s: %s carried %v datagrams and %v frames", p.name, r.Name, d-datagrams, f-frames)
		}
		return nil
	})
}

// relayPath is where relays serve.
const relayPath = "/warren/v1/relay"

// connectedTo waits until nodes are connected to so many relays, and have one home.
func connectedTo(t *testing.T, relays float64, nodes ...*lab.Node) {
	t.Helper()
	lab.Eventually(t, time.Minute, func() error {
		for _, n := range nodes {
			if got := metric(t, n, "warren_relay_connected"); got != relays {
				return fmt.Errorf("%s is connected to %v relays", n.Host.Name, got)
			}
			if got := metric(t, n, "warren_relay_home"); got != 1 {
				return fmt.Errorf("%s has %v homes", n.Host.Name, got)
			}
		}
		return nil
	})
}

// relaysPolicy is policy with all ports of the databases.
const relaysPolicy = `{
	"groups": {"group:eng": ["alice@example.com"]},
	"tagOwners": {"tag:db": ["alice@example.com"], "tag:web": ["alice@example.com"]},
	"grants": [
		{"src": ["group:eng"], "dst": ["tag:db"], "ip": ["*"]},
		{"src": ["group:eng"], "dst": ["tag:web"], "ip": ["udp:8080"]},
	],
}`

// TestRelays has two relays, and none beside the coordinator. Four devices reach five
// servers through them only, by datagrams or, who gets no UDP to a relay, inside HTTPS;
// of one such pair of either kind there are more flows. The web server is reached
// directly. For each of the two the relay that carries its packets is killed while the
// coordinator is down, at first the one that carries all twenty; then the one that does
// is stopped for a while, and then restarted in order; then both are away for a minute
// (F06, F07).
func TestRelays(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	var entries []string
	var hosts []*lab.Host
	configs := []lab.RelayConfig{{Name: "fra-1", Datagrams: true}, {Name: "ams-1", Datagrams: true}}
	for _, cfg := range configs {
		h := l.Host(cfg.Name)
		hosts, entries = append(hosts, h), append(entries, "--relay", h.RelayEntry(cfg))
	}
	coordinator := l.Host("hub").Coordinator(t, append(entries, "--builtin-relay=false")...)
	var relays []*lab.Relay
	for i, cfg := range configs {
		relays = append(relays, hosts[i].Relay(t, coordinator, cfg))
	}
	coordinator.Admin("users", "create", "alice@example.com")
	coordinator.Admin("users", "create", "bob@example.com")
	coordinator.SetPolicy(relaysPolicy)
	daemon := func(name string) *lab.Node {
		return l.Host(name).Daemon(t, "--metrics-listen", "127.0.0.1:"+metricsPort)
	}
	pairs := []*relayedPair{
		{name: "by datagrams", from: daemon("laptop"), to: daemon("db"), datagrams: true},
		{name: "inside HTTPS", from: daemon("desk"), to: daemon("archive")},
	}
	web, tablet, wiki := daemon("web"), daemon("tablet"), daemon("wiki")
	devices := []*lab.Node{pairs[0].from, pairs[1].from, daemon("phone"), tablet}
	servers := []*lab.Node{pairs[0].to, pairs[1].to, daemon("mail"), wiki, daemon("git")}
	nodes := slices.Concat(devices, servers) // those that are reached through relays
	for _, n := range []*lab.Node{pairs[1].from, pairs[1].to, tablet, wiki} {
		for _, h := range hosts {
			n.Host.BlockUDP(h)
		}
	}
	for _, n := range nodes {
		for _, other := range nodes {
			if other != n {
				n.Host.BlockUDP(other.Host)
			}
		}
	}
	relays[1].Kill() // so that the other is everybody's home
	person, server := coordinator.Key("--user", "alice@example.com", "--reusable"), coordinator.Key("--tags", "tag:db", "--reusable")
	all(t, len(devices), func(k int) error { return devices[k].TryUp(coordinator, person) })
	all(t, len(servers), func(k int) error { return servers[k].TryUp(coordinator, server) })
	web.Up(coordinator, coordinator.Key("--tags", "tag:web"))
	everybody := startMesh(t, devices, servers)
	for _, p := range pairs {
		p.start(t)
	}
	laptop := pairs[0].from
	direct := lab.StartUDP(t, laptop.Host, web.Host, address(web, "-4", 8080))
	lab.Eventually(t, 30*time.Second, func() error {
		if line := path(t, laptop, "web"); !strings.Contains(line, "direct") {
			return fmt.Errorf("the web server is not reached directly: %q", line)
		}
		return nil
	})
	relays[1].Start()
	connectedTo(t, 2, nodes...) // they listen at a second relay by then
	for _, n := range devices {
		for _, to := range servers {
			if r := carrier(t, n, to.Host.Name, relays); r != relays[0] {
				t.Errorf("%s carries the packets from %s to %s", r.Name, n.Host.Name, to.Host.Name)
			}
		}
	}
	// gaps returns the longest gap of the pairs since it was called last, and requires
	// that none is over the limit.
	gaps := func(limit time.Duration, after string) (longest time.Duration) {
		for _, p := range pairs {
			gap := p.udp.LongestGap()
			if longest = max(longest, gap); limit > 0 && gap > limit {
				t.Errorf("%s: a gap of %v after %s", p.name, gap, after)
			}
		}
		return longest
	}

	for _, p := range pairs {
		killed := carrier(t, p.from, p.to.Host.Name, relays)
		p.carriedBy(t, killed)
		coordinator.Kill()
		gaps(0, "")
		direct.LongestGap()
		begin := time.Now()
		killed.Kill()
		<-time.After(8 * time.Second)
		t.Logf("%s: %s killed, the coordinator away: a gap of %v, of all pairs %v", p.name, killed.Name,
			gaps(failover, "the relay was killed"), everybody.gap(t, begin, failover, "the relay was killed"))
		now := carrier(t, p.from, p.to.Host.Name, relays)
		if now == killed {
			t.Errorf("%s: %s is killed and said to carry the packets", p.name, now.Name)
		}
		p.carriedBy(t, now)
		for _, other := range pairs {
			other.tcp.Alive(t)
		}
		coordinator.Start()
		killed.Start()
		connectedTo(t, 2, nodes...)
	}

	// One that is stopped ends no connection and refuses no datagram: it is silent.
	for _, p := range pairs {
		silent := carrier(t, p.from, p.to.Host.Name, relays)
		p.carriedBy(t, silent)
		gaps(0, "")
		begin := time.Now()
		silent.Signal(syscall.SIGSTOP)
		queued := mostQueued(t, p.from, 8*time.Second)
		t.Logf("%s: %s is silent: a gap of %v, of all pairs %v, at most %v bytes queued", p.name, silent.Name,
			gaps(failover, "the relay was silent"), everybody.gap(t, begin, failover, "the relay was silent"), queued)
		if limit := float64(len(servers) * maxQueued); queued > limit {
			t.Errorf("%s: %v bytes were queued for a relay that is silent, at most %v", p.name, queued, limit)
		}
		now := carrier(t, p.from, p.to.Host.Name, relays)
		if now == silent {
			t.Errorf("%s: %s is silent and said to carry the packets", p.name, now.Name)
		}
		p.carriedBy(t, now)
		silent.Signal(syscall.SIGCONT)
		connectedTo(t, 2, nodes...)
	}

	for _, p := range pairs {
		restarted := carrier(t, p.from, p.to.Host.Name, relays)
		p.carriedBy(t, restarted)
		gaps(0, "")
		restarted.Terminate()
		<-restarted.Ended()
		<-time.After(3 * time.Second)
		t.Logf("%s: %s restarted in order: a gap of %v", p.name, restarted.Name, gaps(restart, "a restart in order"))
		p.carriedBy(t, carrier(t, p.from, p.to.Host.Name, relays))
		restarted.Start()
		connectedTo(t, 2, nodes...)
	}

	gaps(0, "")
	direct.LongestGap()
	for _, r := range relays {
		r.Kill()
	}
	lost := make(map[*lab.Node]float64)
	for _, p := range pairs {
		lost[p.from] = metric(t, p.from, "warren_lost_packets_total", "no_path")
	}
	<-time.After(time.Minute)
	if gap := direct.LongestGap(); gap > failover {
		t.Errorf("without relays a direct path has a gap of %v", gap)
	}
	before := make(map[*relayedPair]int64)
	for _, p := range pairs {
		if gap := p.udp.LongestGap(); gap < 55*time.Second {
			t.Errorf("%s: without relays the longest gap is %v", p.name, gap)
		}
		if got := metric(t, p.from, "warren_lost_packets_total", "no_path"); got <= lost[p.from] {
			t.Errorf("%s: without relays %v packets were counted as lost for want of a path", p.name, got-lost[p.from])
		}
		before[p] = p.udp.Lines()
	}
	everybody.mark()
	for _, r := range relays {
		r.Start()
	}
	begin := time.Now()
	for _, p := range pairs {
		lab.Eventually(t, 30*time.Second, func() error {
			if p.udp.Lines() == before[p] {
				return fmt.Errorf("nothing arrives yet")
			}
			return nil
		})
		took := time.Since(begin)
		t.Logf("%s: back %v after both relays", p.name, took)
		if took > failover {
			t.Errorf("%s: back %v after both relays", p.name, took)
		}
	}
	lab.Eventually(t, 30*time.Second, func() error { return everybody.arrived(1) })
	took := time.Since(begin)
	t.Logf("all pairs back %v after both relays", took)
	if took > failover {
		t.Errorf("all pairs back %v after both relays", took)
	}
	connectedTo(t, 2, nodes...)
	for _, p := range pairs {
		p.carriedBy(t, carrier(t, p.from, p.to.Host.Name, relays))
	}
}

// maxQueued is how many bytes for one peer may wait for a relay (F06).
const maxQueued = 1 << 20

// mostQueued watches for a while, and returns the most bytes that waited for a node's
// relays.
func mostQueued(t *testing.T, n *lab.Node, d time.Duration) (most float64) {
	t.Helper()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(d); time.Now().Before(end); <-tick.C {
		most = max(most, metric(t, n, "warren_relay_queued_bytes"))
	}
	return most
}

// TestBuiltinRelayRestart has the packets carried by the relay beside the
// coordinator, and another relay. The coordinator is stopped in order (F07).
func TestBuiltinRelayRestart(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	host, cfg := l.Host("fra-1"), lab.RelayConfig{Name: "fra-1", Datagrams: true}
	coordinator := l.Host("hub").Coordinator(t, "--relay", host.RelayEntry(cfg))
	other := host.Relay(t, coordinator, cfg)
	other.Kill() // so that the built-in one is everybody's home
	coordinator.Admin("users", "create", "alice@example.com")
	coordinator.SetPolicy(policy)
	metrics := []string{"--metrics-listen", "127.0.0.1:" + metricsPort}
	laptop, db := l.Host("laptop").Daemon(t, metrics...), l.Host("db").Daemon(t, metrics...)
	laptop.Host.BlockUDP(db.Host)
	db.Host.BlockUDP(laptop.Host)
	laptop.Up(coordinator, coordinator.Key("--user", "alice@example.com"))
	db.Up(coordinator, coordinator.Key("--tags", "tag:db"))
	relayed := lab.StartUDP(t, laptop.Host, db.Host, address(db, "-4", 5353))
	stream := lab.StartTCP(t, laptop.Host, db.Host, address(db, "-6", 5432))
	if name := relayTo(t, laptop, "db"); name != "default" {
		t.Fatalf("with one relay: %q", name)
	}
	other.Start()
	connectedTo(t, 2, laptop, db)
	for _, n := range []*lab.Node{laptop, db} {
		byDatagrams(t, n, true, 30*time.Second)
	}
	if name := relayTo(t, laptop, "db"); name != "default" {
		t.Fatalf("with two relays: %q", name)
	}
	relayed.LongestGap()
	coordinator.Terminate()
	<-coordinator.Ended()
	gap := after(relayed, 3*time.Second)
	t.Logf("the coordinator stopped in order: a gap of %v", gap)
	if gap > restart {
		t.Errorf("a gap of %v when the coordinator stopped in order", gap)
	}
	if name := relayTo(t, laptop, "db"); name != "fra-1" {
		t.Errorf("with the coordinator stopped: %q", name)
	}
	coordinator.Start()
	stream.Alive(t)
}
