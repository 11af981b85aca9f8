//go:build linux

package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/warren-overlay/warren/client/localapi"
	"github.com/warren-overlay/warren/tests/lab"
)

// site is a kind of place that a node can be at.
type site struct {
	name string
	join func(i *lab.Internet, host string) *lab.Host
	// https says that nothing gets out but TCP to port 443.
	https bool
}

// hubName is the name of the coordinator with the relay beside it.
const hubName = "warren.example.com"

// sites are the kinds of the matrix, in the order of its rows and columns.
var sites = []site{
	{name: "public", join: func(i *lab.Internet, host string) *lab.Host { return i.Public(host) }},
	{name: "full-cone", join: homeOf(lab.GatewayConfig{NAT: lab.FullCone, NoIPv6: true})},
	{name: "address-restricted", join: homeOf(lab.GatewayConfig{NAT: lab.AddressRestricted, NoIPv6: true})},
	{name: "port-restricted", join: homeOf(lab.GatewayConfig{NAT: lab.PortRestricted, NoIPv6: true})},
	{name: "symmetric", join: homeOf(lab.GatewayConfig{NAT: lab.Symmetric, NoIPv6: true})},
	{name: "carrier-grade", join: func(i *lab.Internet, host string) *lab.Host {
		carrier := i.Gateway(host+"-carrier", lab.GatewayConfig{NAT: lab.PortRestricted, NoIPv4: true, NoIPv6: true})
		return carrier.Behind(host+"-home", lab.GatewayConfig{NAT: lab.PortRestricted}).Join(host)
	}},
	{name: "udp-blocked", join: homeOf(lab.GatewayConfig{NAT: lab.PortRestricted, Restrict: lab.HTTPSOnly, NoIPv6: true}), https: true},
	{name: "http-proxy", join: homeOf(lab.GatewayConfig{NAT: lab.PortRestricted, Restrict: lab.ProxyOnly, NoIPv6: true}), https: true},
	{name: "dual-stack", join: homeOf(lab.GatewayConfig{NAT: lab.PortRestricted})},
	{name: "ipv6-only", join: homeOf(lab.GatewayConfig{NoIPv4: true})},
}

func homeOf(config lab.GatewayConfig) func(*lab.Internet, string) *lab.Host {
	return func(i *lab.Internet, host string) *lab.Host { return i.Gateway(host+"-gateway", config).Join(host) }
}

// expected says for every pair of kinds how their nodes reach each other: D is
// direct, r is the relay. Only one half is written: the matrix is symmetric.
const expected = `
public             D D D D D D r r D D
full-cone            D D D D D r r D r
address-restricted     D D D D r r D r
port-restricted          D D D r r D r
symmetric                  r D r r D r
carrier-grade                D r r D r
udp-blocked                    r r r r
http-proxy                       r r r
dual-stack                         D D
ipv6-only                            D
`

// expectations returns the table by the indexes of the kinds, row first.
func expectations(t *testing.T) map[[2]int]string {
	t.Helper()
	want := make(map[[2]int]string)
	for row, line := range strings.Split(strings.TrimSpace(expected), "\n") {
		fields := strings.Fields(line)
		if fields[0] != sites[row].name || len(fields) != 1+len(sites)-row {
			t.Fatalf("row %d of the table is %q", row, line)
		}
		for i, cell := range fields[1:] {
			if cell != "D" && cell != "r" {
				t.Fatalf("cell %q of %s", cell, fields[0])
			}
			want[[2]int{row, row + i}] = cell
		}
	}
	return want
}

// cell is what was measured of a pair.
type cell struct {
	// first is how long the first datagram took, there and back.
	first time.Duration
	// direct is how long after it both ends had a direct path; zero for never.
	direct time.Duration
	// sent and echoed count the datagrams that followed.
	sent, echoed atomic.Int64
	err          error
}

const (
	// firstLimit bounds the first datagram's round trip. A WireGuard handshake
	// that lost a message takes 5 s more.
	firstLimit = 4500 * time.Millisecond
	// directLimit bounds the wait for direct paths, of all pairs at once on a busy
	// machine. What the simulation promises for one pair is 10 s.
	directLimit = 40 * time.Second
	// echoPort is where the second node of every pair echoes.
	echoPort = 7000
)

// TestMatrix joins two nodes of every kind of site to one network and lets the
// first of each kind speak to the second of every other kind, all pairs at
// once. In every cell the first datagram must arrive, with no retransmission
// above it: by the relay, since no path is known yet. Then the pairs that can
// be direct must become so at both ends, and the others must stay on the relay
// and work. The topology is in README.md.
func TestMatrix(t *testing.T) {
	want := expectations(t)
	internet := lab.NewInternet(t)
	// A second STUN server shows which NATs give each destination another port.
	second := lab.ServeSTUN(t, internet.Public("stun"))
	hub := internet.Public("hub")
	internet.Name(hub, hubName)
	c := hub.CoordinatorTLS(t, "--stun", second)
	c.SetPolicy(`{
	"tagOwners": {"tag:a": ["alice@example.com"], "tag:b": ["alice@example.com"]},
	"grants": [{"src": ["tag:a"], "dst": ["tag:b"], "ip": ["tcp:7000", "udp:7000"]}],
}`)
	ends := [2][]*lab.Node{}
	for i, tag := range []string{"a", "b"} {
		key := c.Key("--tags", "tag:"+tag, "--reusable")
		ends[i] = make([]*lab.Node, len(sites))
		for k, s := range sites {
			ends[i][k] = s.join(internet, s.name+"-"+tag).Daemon(t)
		}
		all(t, len(sites), func(k int) error { return ends[i][k].TryUp(c, key) })
	}
	echoes := make([]string, len(sites))
	for k, b := range ends[1] {
		echoes[k] = address(b, "-4", echoPort)
		lab.ServeUDP(t, b.Host, echoes[k])
		lab.ServeTCP(t, b.Host, echoes[k])
	}
	all(t, len(sites), func(k int) error { return knows(t.Context(), ends[0][k], ends[1]) })

	cells := make(map[[2]int]*cell, len(want))
	var speaking sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer speaking.Wait()
	defer cancel()
	begin := time.Now()
	for at := range want {
		x := &cell{}
		cells[at] = x
		speaking.Go(func() { x.speak(ctx, ends[0][at[0]].Host, echoes[at[1]]) })
	}
	lab.Eventually(t, directLimit, func() error { return settle(t, want, cells, ends, begin) })
	for at, x := range cells { // those on the relay must be alive now, too
		echoed := x.echoed.Load()
		lab.Eventually(t, 10*time.Second, func() error {
			if x.echoed.Load() < echoed+3 {
				return fmt.Errorf("%s to %s: nothing is echoed any more", sites[at[0]].name, sites[at[1]].name)
			}
			return nil
		})
	}
	took := time.Since(begin)
	for _, side := range ends {
		for k, n := range side {
			byHTTPS(t, n, sites[k].https)
		}
	}
	cancel()
	speaking.Wait()
	var sent, echoed int64
	for at, x := range cells {
		sent, echoed = sent+x.sent.Load(), echoed+x.echoed.Load()
		name := sites[at[0]].name + " to " + sites[at[1]].name
		if x.err != nil {
			t.Errorf("%s: %v", name, x.err)
		}
		if err := lab.EchoTCP(within(t, 30*time.Second), ends[0][at[0]].Host, echoes[at[1]]); err != nil {
			t.Errorf("%s: a megabyte of TCP: %v", name, err)
		}
		if want[at] == "r" && x.direct != 0 {
			t.Errorf("%s is direct: the table expects the relay", name)
		}
	}
	text := table(cells)
	report(t, fmt.Sprintf("first datagram there and back, and when both ends were direct; all pairs at once, %v; %d of %d datagrams were not echoed:\n\n%s",
		took.Round(time.Second), sent-echoed, sent, text))
	checkReadme(t, text)
}

// report has the step that runs the test print text at its end (tests/steps).
func report(t *testing.T, text string) {
	for line := range strings.Lines(text) {
		t.Attr("report", strings.TrimSuffix(line, "\n"))
	}
}

// byHTTPS waits until a node's relay is the one of the matrix, which is reached on
// port 443 by TLS, and its packets go there in no other way where onlyHTTPS, else as
// datagrams.
func byHTTPS(t *testing.T, n *lab.Node, onlyHTTPS bool) {
	t.Helper()
	byDatagrams(t, n, !onlyHTTPS, 30*time.Second)
	s, err := n.API().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Relay == nil || s.Relay.URL != "wss://"+hubName+relayPath || len(s.Relays) != 1 || s.LoginServer != "https://"+hubName {
		t.Errorf("%s is connected to %s, with the relays %+v", n.Host.Name, s.LoginServer, s.Relays)
	}
}

// all runs f for every number below n at once.
func all(t *testing.T, n int, f func(k int) error) {
	t.Helper()
	errs := make([]error, n)
	var running sync.WaitGroup
	for k := range n {
		running.Go(func() { errs[k] = f(k) })
	}
	running.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// knows waits until a node is connected to the relay and knows all the others.
func knows(ctx context.Context, n *lab.Node, others []*lab.Node) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var s localapi.Status
	for generation := uint64(0); ; {
		var err error
		if s, err = n.API().StatusAfter(ctx, generation); err != nil {
			return fmt.Errorf("%s knows %d of %d peers: %w", n.Host.Name, len(s.Peers), len(others), err)
		}
		if len(s.Peers) == len(others) {
			return nil
		}
		generation = s.Generation
	}
}

// speak sends one datagram, waits for its echo, and goes on until the end.
func (x *cell) speak(ctx context.Context, from *lab.Host, to string) {
	c, err := from.Dial(ctx, "udp", to)
	if err != nil {
		x.err = err
		return
	}
	defer c.Close()
	begin := time.Now()
	c.SetDeadline(begin.Add(firstLimit))
	buffer := make([]byte, 64)
	if _, err = c.Write([]byte("first")); err == nil {
		_, err = c.Read(buffer)
	}
	if err != nil {
		x.err = fmt.Errorf("the first datagram: %w", err)
	}
	x.first = time.Since(begin)
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Now()) })
	defer stop()
	c.SetDeadline(time.Time{})
	go func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for range tick.C {
			if _, err := c.Write([]byte("more")); err != nil {
				return
			}
			x.sent.Add(1)
		}
	}()
	for {
		if _, err := c.Read(buffer); err != nil {
			return
		}
		x.echoed.Add(1)
	}
}

// settle notes which pairs are direct and returns which of those that must be
// are not yet.
func settle(t *testing.T, want map[[2]int]string, cells map[[2]int]*cell, ends [2][]*lab.Node, begin time.Time) error {
	paths := make(map[string]string) // by "from to"
	for _, side := range ends {
		for _, n := range side {
			s, err := n.API().Status(t.Context())
			if err != nil {
				return err
			}
			for _, p := range s.Peers {
				paths[n.Host.Name+" "+p.Name] = p.Path.Kind
			}
		}
	}
	var waiting []string
	for at, x := range cells {
		a, b := ends[0][at[0]].Host.Name, ends[1][at[1]].Host.Name
		there, back := paths[a+" "+b], paths[b+" "+a]
		direct := there == "direct" && back == "direct"
		if direct && x.direct == 0 {
			x.direct = time.Since(begin)
		}
		if want[at] == "D" && !direct {
			waiting = append(waiting, fmt.Sprintf("%s to %s: %s there, %s back", a, b, there, back))
		}
	}
	if len(waiting) > 0 {
		return fmt.Errorf("not direct:\n%s", strings.Join(waiting, "\n"))
	}
	return nil
}

// table writes the matrix for people.
func table(cells map[[2]int]*cell) string {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	for _, s := range sites {
		fmt.Fprintf(w, "\t%s", s.name)
	}
	fmt.Fprintln(w)
	for row, s := range sites {
		fmt.Fprint(w, s.name)
		for column := range sites {
			fmt.Fprint(w, "\t")
			x := cells[[2]int{row, column}]
			switch {
			case x == nil:
			case x.direct != 0:
				fmt.Fprintf(w, "direct %d ms, %.1f s", x.first.Milliseconds(), x.direct.Seconds())
			default:
				fmt.Fprintf(w, "relay %d ms", x.first.Milliseconds())
			}
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	return text.String()
}

// readme is the page that shows the matrix, and lastRun how its paragraph about a
// run of it begins, which a fenced block follows.
const (
	readme  = "README.md"
	lastRun = "\nA run of it"
	fence   = "\n```\n"
)

// checkReadme requires that the page shows the table as it is expected, and a run
// with the same cells as this one. With -readme it is given this run before.
func checkReadme(t *testing.T, measured string) {
	t.Helper()
	text, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), lastRun)
	about, rest, opened := strings.Cut(rest, fence)
	shown, after, closed := strings.Cut(rest, fence)
	if !found || !opened || !closed {
		t.Fatalf("%s has no fenced block after %q", readme, lastRun)
	}
	if *writeReadme && !t.Failed() {
		shown = strings.TrimSuffix(measured, "\n")
		if err := os.WriteFile(readme, []byte(before+lastRun+about+fence+shown+fence+after), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(before, strings.Trim(expected, "\n")) {
		t.Errorf("%s does not show the table of this test", readme)
	}
	if !t.Failed() && kinds(shown) != kinds(measured) {
		t.Errorf("%s shows a run with other cells; go test ./tests/netns -run TestMatrix -args -readme writes this one", readme)
	}
}

// kinds reduces what table wrote to the names and to how each pair went.
func kinds(table string) string {
	return strings.Join(strings.Fields(figures.ReplaceAllString(table, "")), " ")
}

var figures = regexp.MustCompile(`\d+(\.\d+)? m?s,?`)

// TestOneLAN: nodes behind one gateway reach each other by their LAN, whatever
// the gateway's NAT is.
func TestOneLAN(t *testing.T) {
	internet := lab.NewInternet(t)
	c := internet.Public("hub").Coordinator(t)
	c.SetPolicy(`{"tagOwners": {"tag:a": ["alice@example.com"]}, "grants": [{"src": ["tag:a"], "dst": ["tag:a"], "ip": ["udp:7000"]}]}`)
	g := internet.Gateway("gateway", lab.GatewayConfig{NAT: lab.Symmetric})
	key := c.Key("--tags", "tag:a", "--reusable")
	a, b := g.Join("one").Daemon(t), g.Join("two").Daemon(t)
	a.Up(c, key)
	b.Up(c, key)
	lab.ServeUDP(t, b.Host, address(b, "-4", echoPort))
	lab.Eventually(t, 30*time.Second, func() error {
		if err := lab.EchoUDP(within(t, 5*time.Second), a.Host, address(b, "-4", echoPort)); err != nil {
			return err
		}
		for _, n := range []*lab.Node{a, b} {
			s, err := n.API().Status(t.Context())
			if err != nil {
				return err
			}
			if len(s.Peers) != 1 || s.Peers[0].Path.Kind != "direct" || !onLAN(s.Peers[0].Path.Addr.Addr(), a, b) {
				return fmt.Errorf("%s: %+v", n.Host.Name, s.Peers)
			}
		}
		return nil
	})
}

func onLAN(addr netip.Addr, nodes ...*lab.Node) bool {
	for _, n := range nodes {
		if addr == n.Host.V4 || addr == n.Host.V6 {
			return true
		}
	}
	return false
}
