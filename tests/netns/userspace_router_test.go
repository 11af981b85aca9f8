//go:build linux

package netns

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/tests/lab"
)

// pings reports whether the host answers within a second or two.
func pings(t *testing.T, from *lab.Host, to string) error {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err := from.Run(ctx, "ping", "-n", "-c", "1", "-W", "2", to)
	return err
}

// TestUserspaceRouter serves a network from a daemon without a TUN device: what
// rules allow reaches its hosts in the router's name, over both families, and
// nothing else does; nothing is opened from there, and what was open ends when
// the route is taken back.
func TestUserspaceRouter(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	gw := o.router(t, "gw", 1, "tag:router", userspace, "--advertise-routes", "10.20.0.0/24,fd20::/64")
	o.coordinator.Admin("devices", "approve-routes", "gw", "10.20.0.0/24,fd20::/64")
	o.laptop.CLI("set", "--accept-routes")
	eventuallySeenAs(t, o.laptop.Host, o.host, "10.20.0.10:5432", "10.20.0.1")
	eventuallySeenAs(t, o.laptop.Host, o.host, "[fd20::10]:5432", "fd20::1")
	if tables := gw.Host.Tables(); len(tables) != 0 {
		t.Errorf("tables %v without a TUN device", tables)
	}
	for _, address := range []string{"10.20.0.10:5353", "[fd20::10]:5353"} {
		lab.ServeUDP(t, o.host, address)
		if err := lab.EchoUDP(within(t, 5*time.Second), o.laptop.Host, address); err != nil {
			t.Errorf("allowed UDP to %s: %v", address, err)
		}
	}
	for _, host := range []string{"10.20.0.10", "fd20::10"} {
		if err := pings(t, o.laptop.Host, host); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if err := pings(t, o.laptop.Host, "10.20.0.99"); err == nil {
		t.Error("a host that is not there answers")
	}

	// Ports, where a router's own sockets could reach anything.
	const inbound, outbound = "warren_inbound_dropped_packets_total", "warren_outbound_dropped_packets_total"
	before := metric(t, o.laptop, outbound, `reason="drop_no_rule"`)
	noneSeen(t, "no rule", o.laptop.Host, o.host, "10.20.0.10:22")
	noneSeen(t, "no rule", o.laptop.Host, o.host, "[fd20::10]:22")
	if after := metric(t, o.laptop, outbound, `reason="drop_no_rule"`); after < before+2 {
		t.Errorf("drop_no_rule went from %v to %v over two denied flows", before, after)
	}
	before = metric(t, gw, inbound, `reason="drop_destination"`)
	noneSeen(t, "the router's own address in the office", o.laptop.Host, gw.Host, "10.20.0.1:5432")
	noneSeen(t, "the router's own address in the office", o.laptop.Host, gw.Host, "[fd20::1]:5432")
	if after := metric(t, gw, inbound, `reason="drop_destination"`); after < before+2 {
		t.Errorf("drop_destination of the router went from %v to %v", before, after)
	}
	before = metric(t, gw, inbound, `reason="drop_multicast"`)
	broadcast := lab.ServeUDP(t, o.host, "10.20.0.255:5353")
	if err := lab.EchoUDP(within(t, time.Second), o.laptop.Host, "10.20.0.255:5353"); err == nil || broadcast.Load() != 0 {
		t.Errorf("a broadcast reached the office: %v, %d", err, broadcast.Load())
	}
	if after := metric(t, gw, inbound, `reason="drop_multicast"`); after <= before {
		t.Errorf("drop_multicast of the router went from %v to %v", before, after)
	}

	// Nothing leads from the office into the overlay.
	o.host.Route("100.64.0.0/10", "10.20.0.1")
	noneSeen(t, "unsolicited", o.host, o.laptop.Host, o.laptop.IP("-4")+":8080")

	stream := lab.StartTCP(t, o.laptop.Host, o.host, "10.20.0.10:5432")
	begin := time.Now()
	o.coordinator.Admin("devices", "remove-routes", "gw", "10.20.0.0/24")
	if took := stream.CutAfter(t, begin); took > cutLimit {
		t.Errorf("a flow went on for %v after its route was taken back", took)
	}
	noneSeen(t, "taken back", o.laptop.Host, o.host, "10.20.0.11:5432")
	eventuallySeenAs(t, o.laptop.Host, o.host, "[fd20::10]:5432", "fd20::1")
	if text := fmt.Sprint(gw.Status()["health"]); strings.Contains(text, "userspace") {
		t.Errorf("health: %s", text)
	}
}

// TestUserspaceExitNode sends the rest through a daemon without a TUN device: the
// internet is reached in its name, by the ports of the rules, and neither the
// networks that it is connected to nor its own addresses are.
func TestUserspaceExitNode(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	gw := o.router(t, "gw", 1, "tag:router", userspace, "--advertise-exit-node")
	internet := o.lab.Bare("internet")
	lab.Wire(gw.Host, internet, "wan0", "eth0")
	gw.Host.Address("wan0", "203.0.113.1/30")
	gw.Host.Route("0.0.0.0/0", "203.0.113.2")
	internet.Address("eth0", "203.0.113.2/30")
	internet.Address("lo", "198.51.100.80/32")
	o.coordinator.Admin("devices", "approve-routes", "gw", "exit-node")
	lab.Eventually(t, 10*time.Second, func() error {
		_, err := o.laptop.Try("set", "--exit-node", "gw", "--exit-node-allow-lan-access")
		return err
	})
	eventuallySeenAs(t, o.laptop.Host, internet, "198.51.100.80:443", "203.0.113.1")
	noneSeen(t, "no rule for the port", o.laptop.Host, internet, "198.51.100.80:80")
	noneSeen(t, "the exit node's own network", o.laptop.Host, o.host, "10.20.0.10:443")
	noneSeen(t, "the exit node itself", o.laptop.Host, gw.Host, "203.0.113.1:443")
	gw.Stop()
	noneSeen(t, "the exit node is gone", o.laptop.Host, internet, "198.51.100.80:443")
}
