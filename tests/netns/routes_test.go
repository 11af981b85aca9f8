//go:build linux

package netns

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/warren-overlay/warren/tests/lab"
)

// routedPolicy lets engineers reach one TCP and one UDP port of the office, and
// the internet through exit nodes. Routers may open connections to engineers,
// so that only the guard is between the office and the engineers' devices.
const routedPolicy = `{
	"groups": {"group:eng": ["alice@example.com"]},
	"tagOwners": {"tag:router": ["alice@example.com"], "tag:auto": ["alice@example.com"]},
	"autoApprovers": {"routes": {"10.20.0.0/16": ["tag:auto"], "fd20::/32": ["tag:auto"]}},
	"grants": [
		{"src": ["group:eng"], "dst": ["10.20.0.0/24", "fd20::/64", "10.77.0.0/24"], "ip": ["tcp:5432", "udp:5353"]},
		{"src": ["group:eng"], "dst": ["autogroup:internet"], "ip": ["tcp:443"]},
		{"src": ["tag:router"], "dst": ["group:eng"], "ip": ["*"]},
		{"src": ["group:eng"], "dst": ["tag:router"], "ip": ["icmp:*"]},
	],
}`

// office is a network behind routers, and a laptop that uses it.
type office struct {
	lab         *lab.Lab
	coordinator *lab.Coordinator
	laptop      *lab.Node
	// host is a host of the office.
	host *lab.Host
}

func newOffice(t *testing.T) *office {
	t.Helper()
	l := lab.New(t)
	o := &office{lab: l, coordinator: l.Host("hub").Coordinator(t), host: l.Bare("office")}
	o.host.Bridge("office0")
	o.host.Address("office0", "10.20.0.10/24", "10.20.0.11/24", "fd20::10/64")
	o.coordinator.Admin("users", "create", "alice@example.com")
	o.coordinator.SetPolicy(routedPolicy)
	o.laptop = l.Host("laptop").Daemon(t, "--metrics-listen", "127.0.0.1:"+metricsPort)
	o.laptop.Up(o.coordinator, o.coordinator.Key("--user", "alice@example.com"))
	return o
}

// userspace among a router's flags gives it no TUN device.
const userspace = "userspace"

// router adds a device that is connected to the office by a cable, with the
// given host part of its address there.
func (o *office) router(t *testing.T, name string, number int, tag string, flags ...string) *lab.Node {
	t.Helper()
	h := o.lab.Host(name)
	port := fmt.Sprintf("port%d", number)
	lab.Wire(h, o.host, "office0", port)
	o.host.Enslave("office0", port)
	h.Address("office0", fmt.Sprintf("10.20.0.%d/24", number), fmt.Sprintf("fd20::%d/64", number))
	device := "warren0"
	if i := slices.Index(flags, userspace); i >= 0 {
		device, flags = userspace, slices.Delete(slices.Clone(flags), i, i+1)
	}
	n := h.Daemon(t, "--metrics-listen", "127.0.0.1:"+metricsPort, "--tun", device)
	n.CLI(append([]string{
		"up", "--login-server", o.coordinator.URL(), "--auth-key", o.coordinator.Key("--tags", tag), "--hostname", name,
	}, flags...)...)
	return n
}

// eventuallySeenAs waits until connections come from the address.
func eventuallySeenAs(t *testing.T, from, to *lab.Host, address, want string) {
	t.Helper()
	lab.Eventually(t, 15*time.Second, func() error {
		got, err := from.SeenAs(t, to, address, time.Second)
		if got != want {
			return fmt.Errorf("%s: seen as %q, want %q: %w", address, got, want, err)
		}
		return nil
	})
}

func noneSeen(t *testing.T, what string, from, to *lab.Host, address string) {
	t.Helper()
	if got, err := from.SeenAs(t, to, address, time.Second); err == nil {
		t.Errorf("%s: %s was reached, seen as %s", what, address, got)
	}
}

// TestSubnetRouter reaches a host behind a router: what a rule allows, port by
// port, in the router's name, and nothing the other way round.
func TestSubnetRouter(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	gw := o.router(t, "gw", 1, "tag:router", "--advertise-routes", "10.20.0.0/24,fd20::/64")

	// Neither an offer nor an approval nor the wish to use it is enough alone.
	noneSeen(t, "not approved", o.laptop.Host, o.host, "10.20.0.10:5432")
	o.laptop.CLI("set", "--accept-routes")
	noneSeen(t, "not approved", o.laptop.Host, o.host, "10.20.0.10:5432")
	if out := o.coordinator.Admin("devices", "routes"); !strings.Contains(out, "10.20.0.0/24") {
		t.Errorf("devices routes: %s", out)
	}
	o.coordinator.Admin("devices", "approve-routes", "gw", "10.20.0.0/24,fd20::/64")
	eventuallySeenAs(t, o.laptop.Host, o.host, "10.20.0.10:5432", "10.20.0.1")
	eventuallySeenAs(t, o.laptop.Host, o.host, "[fd20::10]:5432", "fd20::1")
	lab.ServeUDP(t, o.host, "10.20.0.10:5353")
	if err := lab.EchoUDP(within(t, 5*time.Second), o.laptop.Host, "10.20.0.10:5353"); err != nil {
		t.Errorf("allowed UDP: %v", err)
	}

	const outbound = "warren_outbound_dropped_packets_total"
	before := metric(t, o.laptop, outbound)
	noneSeen(t, "no rule", o.laptop.Host, o.host, "10.20.0.10:22")
	noneSeen(t, "no rule", o.laptop.Host, o.host, "[fd20::10]:22")
	if after := metric(t, o.laptop, outbound); after < before+2 {
		t.Errorf("%s went from %v to %v over two denied flows", outbound, before, after)
	}
	noneSeen(t, "the router's own address in the office", o.laptop.Host, gw.Host, "10.20.0.1:5432")

	// The office opens nothing towards the overlay, whatever other
	// programs do to addresses.
	o.host.Route("100.64.0.0/10", "10.20.0.1")
	eventuallySeenAs(t, gw.Host, o.laptop.Host, o.laptop.IP("-4")+":8080", gw.IP("-4"))
	for _, careless := range []bool{false, true} {
		if careless {
			gw.Host.Masquerade()
		}
		datagrams := lab.ServeUDP(t, o.laptop.Host, fmt.Sprintf("%s:%d", o.laptop.IP("-4"), map[bool]int{false: 9000, true: 9001}[careless]))
		noneSeen(t, fmt.Sprint("unsolicited, with MASQUERADE ", careless), o.host, o.laptop.Host, o.laptop.IP("-4")+":8080")
		noneSeen(t, fmt.Sprint("the router's overlay address, with MASQUERADE ", careless), o.host, gw.Host, gw.IP("-4")+":8080")
		if err := lab.EchoUDP(within(t, time.Second), o.host, fmt.Sprintf("%s:%d", o.laptop.IP("-4"), map[bool]int{false: 9000, true: 9001}[careless])); err == nil || datagrams.Load() != 0 {
			t.Errorf("unsolicited UDP came through: %v, %d datagrams", err, datagrams.Load())
		}
		eventuallySeenAs(t, o.laptop.Host, o.host, "10.20.0.10:5432", "10.20.0.1")
	}

	// Taken back, it ends, established flows too.
	stream := lab.StartTCP(t, o.laptop.Host, o.host, "10.20.0.10:5432")
	begin := time.Now()
	o.coordinator.Admin("devices", "remove-routes", "gw", "10.20.0.0/24")
	if took := stream.CutAfter(t, begin); took > cutLimit {
		t.Errorf("a flow went on for %v after its route was taken back", took)
	} else {
		t.Logf("the flow ended %v after its route was taken back", took)
	}
	noneSeen(t, "taken back", o.laptop.Host, o.host, "10.20.0.11:5432")
	eventuallySeenAs(t, o.laptop.Host, o.host, "[fd20::10]:5432", "fd20::1")

	// What a crash leaves behind ends with the next start.
	if !slices.ContainsFunc(gw.Host.Tables(), ours) {
		t.Fatalf("tables %v", gw.Host.Tables())
	}
	gw.Kill()
	if tables := gw.Host.Tables(); !slices.ContainsFunc(tables, ours) {
		t.Fatalf("tables %v after a crash: nothing is left to remove", tables)
	}
	gw.Start()
	lab.Eventually(t, 5*time.Second, func() error {
		n := 0
		tables := gw.Host.Tables()
		for _, table := range tables {
			if ours(table) {
				n++
			}
		}
		if n != 1 {
			return fmt.Errorf("tables %v after the next start", tables)
		}
		return nil
	})
	gw.CLI("down")
	if tables := gw.Host.Tables(); slices.ContainsFunc(tables, ours) {
		t.Errorf("tables %v are left", tables)
	}
	o.laptop.Kill()
	o.laptop.Start()
	o.laptop.CLI("down")
	if rules := o.laptop.Host.Rules(); slices.Max(rules) != 32767 || len(rules) != 5 {
		t.Errorf("rules %v are left", rules)
	}
}

func ours(table string) bool { return strings.HasPrefix(table, "warren") }

// TestAutoApprovers uses a route that nobody had to approve by hand.
func TestAutoApprovers(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.router(t, "gw", 1, "tag:auto", "--advertise-routes", "10.20.0.0/24")
	o.laptop.CLI("set", "--accept-routes")
	eventuallySeenAs(t, o.laptop.Host, o.host, "10.20.0.10:5432", "10.20.0.1")
	o.laptop.CLI("set", "--accept-routes=false")
	noneSeen(t, "not wanted any more", o.laptop.Host, o.host, "10.20.0.10:5432")
}

// TestUserspaceRoutes uses the routes of others from a node without a TUN device,
// through its proxy.
func TestUserspaceRoutes(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.router(t, "gw", 1, "tag:auto", "--advertise-routes", "10.20.0.0/24")
	phone := o.lab.Host("phone").Daemon(t, "--tun", userspace, "--socks5", "127.0.0.1:1080")
	phone.Up(o.coordinator, o.coordinator.Key("--user", "alice@example.com"))
	lab.ServeTCP(t, o.host, "10.20.0.10:5432")
	if err := echoSOCKS(within(t, time.Second), phone.Host, "127.0.0.1:1080", "10.20.0.10:5432"); err == nil {
		t.Error("a route was used that was not accepted")
	}
	phone.CLI("set", "--accept-routes")
	lab.Eventually(t, 10*time.Second, func() error {
		return echoSOCKS(within(t, 3*time.Second), phone.Host, "127.0.0.1:1080", "10.20.0.10:5432")
	})
}

// TestRouteKeepsTheLAN accepts a route that is the laptop's own network, and one
// that is a part of it.
func TestRouteKeepsTheLAN(t *testing.T) {
	o := newOffice(t)
	printer := o.lab.Host("printer")
	o.router(t, "gw", 1, "tag:router", "--advertise-routes", "10.20.0.0/24,10.77.0.0/24,"+netip.PrefixFrom(printer.V4, 32).String())
	o.coordinator.Admin("devices", "approve-routes", "gw", "10.20.0.0/24", "10.77.0.0/24", netip.PrefixFrom(printer.V4, 32).String())
	o.laptop.CLI("set", "--accept-routes")
	eventuallySeenAs(t, o.laptop.Host, o.host, "10.20.0.10:5432", "10.20.0.1")
	for _, port := range []string{":5432", ":631"} {
		if got, err := o.laptop.Host.SeenAs(t, printer, printer.V4.String()+port, time.Second); got != o.laptop.Host.V4.String() {
			t.Errorf("the printer sees %q, want the laptop itself, %v: %v", got, o.laptop.Host.V4, err)
		}
	}
	if s := o.laptop.Status(); s["state"] != "connected" {
		t.Errorf("state %v", s["state"])
	}
}

// TestExitNode sends everything through an exit node: nothing goes around it,
// also when it is gone, and what carries the overlay does not go through it.
func TestExitNode(t *testing.T) {
	o := newOffice(t)
	gw := o.router(t, "gw", 1, "tag:router", "--advertise-exit-node")
	internet, printer := o.lab.Bare("internet"), o.lab.Host("printer")
	lab.Wire(gw.Host, internet, "wan0", "eth0")
	gw.Host.Address("wan0", "203.0.113.1/30")
	gw.Host.Route("0.0.0.0/0", "203.0.113.2")
	internet.Address("eth0", "203.0.113.2/30")
	internet.Address("lo", "198.51.100.80/32")
	// The laptop has a way out of its own, by which it must not go.
	lab.Wire(o.laptop.Host, internet, "wan0", "eth1")
	o.laptop.Host.Address("wan0", "192.0.2.1/30")
	internet.Address("eth1", "192.0.2.2/30")
	o.laptop.Host.Route("0.0.0.0/0", "192.0.2.2")
	eventuallySeenAs(t, o.laptop.Host, internet, "198.51.100.80:443", "192.0.2.1")

	if _, err := o.laptop.Try("set", "--exit-node", "gw"); err == nil {
		t.Error("an exit node that nobody approved was taken")
	}
	o.coordinator.Admin("devices", "approve-routes", "gw", "exit-node")
	lab.Eventually(t, 10*time.Second, func() error {
		_, err := o.laptop.Try("set", "--exit-node", "gw", "--exit-node-allow-lan-access")
		return err
	})
	eventuallySeenAs(t, o.laptop.Host, internet, "198.51.100.80:443", "203.0.113.1")
	noneSeen(t, "no rule for the port", o.laptop.Host, internet, "198.51.100.80:80")
	if got, err := o.laptop.Host.SeenAs(t, printer, printer.V4.String()+":631", time.Second); got != o.laptop.Host.V4.String() {
		t.Errorf("with LAN access the printer sees %q: %v", got, err)
	}
	noneSeen(t, "the exit node's own network", o.laptop.Host, o.host, "10.20.0.10:443")
	lab.Eventually(t, 5*time.Second, func() error { // it joined that network only just now
		if got, err := o.laptop.Host.SeenAs(t, internet, "203.0.113.2:443", time.Second); err == nil {
			return fmt.Errorf("the exit node's gateway, to which it is connected, was reached, seen as %s", got)
		}
		return nil
	})

	o.laptop.CLI("set", "--exit-node-allow-lan-access=false")
	noneSeen(t, "without LAN access", o.laptop.Host, printer, printer.V4.String()+":631")
	eventuallySeenAs(t, o.laptop.Host, internet, "198.51.100.80:443", "203.0.113.1")
	if out := o.laptop.CLI("exit-node", "list"); !strings.Contains(out, "gw") {
		t.Errorf("exit-node list: %s", out)
	}

	// The overlay itself does not depend on the exit node, and nothing leaks
	// when that goes.
	gw.Kill()
	noneSeen(t, "the exit node is dead", o.laptop.Host, internet, "198.51.100.80:443")
	o.coordinator.Admin("devices", "revoke", "gw")
	lab.Eventually(t, 10*time.Second, func() error {
		s := o.laptop.Status()
		if text := fmt.Sprint(s["health"]); !strings.Contains(text, "exit-node-unavailable") || s["state"] != "connected" {
			return fmt.Errorf("%v, health %s", s["state"], text)
		}
		return nil
	})
	noneSeen(t, "the exit node is revoked", o.laptop.Host, internet, "198.51.100.80:443")
	o.laptop.CLI("set", "--exit-node=")
	eventuallySeenAs(t, o.laptop.Host, internet, "198.51.100.80:443", "192.0.2.1")
}

// failoverLimit is the published bound: from a router's last breath to the first
// connection through the other.
const failoverLimit = 5 * time.Second

// twoRouters starts two routers for the office's network, 10.20.0.1 and 10.20.0.2,
// and returns when both are approved and the first one carries.
func (o *office) twoRouters(t *testing.T) (first, second *lab.Node) {
	t.Helper()
	first = o.router(t, "gw1", 1, "tag:auto", "--advertise-routes", "10.20.0.0/24")
	second = o.router(t, "gw2", 2, "tag:auto", "--advertise-routes", "10.20.0.0/24")
	o.laptop.CLI("set", "--accept-routes")
	eventuallySeenAs(t, o.laptop.Host, o.host, "10.20.0.10:5432", "10.20.0.1")
	lab.Eventually(t, 10*time.Second, func() error {
		if n := strings.Count(o.coordinator.Admin("devices", "routes"), "policy"); n != 2 {
			return fmt.Errorf("%d routers are approved", n)
		}
		return nil
	})
	return first, second
}

// TestFailover has two routers for one network. A lost coordinator moves nothing;
// a lost router does, in time.
func TestFailover(t *testing.T) {
	o := newOffice(t)
	first, second := o.twoRouters(t)

	visits := watch(t, o)
	lab.Eventually(t, 5*time.Second, func() error { return visits.from("10.20.0.1", 10) })
	o.coordinator.Kill()
	lab.Eventually(t, 10*time.Second, func() error { return visits.from("10.20.0.1", 40) })
	if others := visits.count("10.20.0.2"); others != 0 {
		t.Errorf("%d connections went by the other router because the coordinator is gone", others)
	}

	// The coordinator is still gone when the router goes.
	begin := time.Now()
	first.Kill()
	lab.Eventually(t, 15*time.Second, func() error { return visits.from("10.20.0.2", 10) })
	gap := visits.first("10.20.0.2").Sub(begin)
	if gap > failoverLimit {
		t.Errorf("failover took %v", gap)
	} else {
		t.Logf("the first connection through the other router came %v after the first was killed", gap)
	}

	// It does not go back by itself, and goes when it must.
	first.Start()
	begin = time.Now()
	second.Kill()
	before := visits.count("10.20.0.1")
	lab.Eventually(t, 20*time.Second, func() error { return visits.from("10.20.0.1", before+5) })
	t.Logf("back through the first router %v after the second was killed", visits.last("10.20.0.1").Sub(begin))
}

// TestFailoverFromABlackHole stops the process of a router: what is sent to it
// vanishes, while its connection to the coordinator stands and the coordinator
// holds it for present. The other router takes over in time all the same.
func TestFailoverFromABlackHole(t *testing.T) {
	o := newOffice(t)
	first, _ := o.twoRouters(t)
	visits := watch(t, o)
	lab.Eventually(t, 10*time.Second, func() error { return visits.from("10.20.0.1", 10) })

	t.Cleanup(func() { syscall.Kill(first.Pid(), syscall.SIGCONT) }) // so that it can end
	begin := time.Now()
	if err := syscall.Kill(first.Pid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, 15*time.Second, func() error { return visits.from("10.20.0.2", 1) })
	gap := visits.first("10.20.0.2").Sub(begin)
	if gap > failoverLimit {
		t.Errorf("failover took %v", gap)
	}
	t.Logf("the first connection through the other router came %v after the first was stopped", gap)
	if online := present(t, o.coordinator, "gw1"); !online {
		t.Error("the coordinator holds the first router for gone: its stream was not alive")
	}
	lab.Eventually(t, 10*time.Second, func() error { return visits.from("10.20.0.2", 20) })
}

// present reports whether the coordinator holds a device for connected.
func present(t *testing.T, c *lab.Coordinator, name string) bool {
	t.Helper()
	var devices []map[string]any
	if err := json.Unmarshal([]byte(c.Admin("devices", "list", "--json")), &devices); err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		if d["name"] == name {
			online, _ := d["online"].(bool)
			return online
		}
	}
	t.Fatalf("no device %s: %v", name, devices)
	return false
}

// visits are connections by the address that they came from.
type visits struct {
	mu   sync.Mutex
	seen map[string][]time.Time
}

// watch opens a connection from the laptop to the office every 50 ms.
func watch(t *testing.T, o *office) *visits {
	t.Helper()
	v := &visits{seen: make(map[string][]time.Time)}
	l := o.host.Listen(t, "10.20.0.10:5432")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			v.mu.Lock()
			v.seen[host] = append(v.seen[host], time.Now())
			v.mu.Unlock()
			c.Close()
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for range tick.C {
			if ctx.Err() != nil {
				return
			}
			go func() {
				attempt, stop := context.WithTimeout(ctx, 500*time.Millisecond)
				defer stop()
				if c, err := o.laptop.Host.Dial(attempt, "tcp", l.Addr().String()); err == nil {
					c.Close()
				}
			}()
		}
	}()
	return v
}

func (v *visits) count(from string) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.seen[from])
}

func (v *visits) from(from string, n int) error {
	if have := v.count(from); have < n {
		return fmt.Errorf("%d connections from %s, want %d", have, from, n)
	}
	return nil
}

func (v *visits) first(from string) time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.seen[from][0]
}

func (v *visits) last(from string) time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.seen[from][len(v.seen[from])-1]
}
