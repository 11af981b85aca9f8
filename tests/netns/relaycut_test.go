//go:build linux

package netns

import (
	"fmt"
	"testing"
	"time"

	"github.com/warren-overlay/warren/tests/lab"
)

// TestRelayPartitions is fault F10 between a relay and half of those whom it serves:
// two nodes that no UDP joins have two relays, and the one that carries their packets
// is out of one node's reach, then of the other's, and then all relays of one node's.
// While there is a relay that both reach nothing stops for more than 5 s; and 5 s
// after the end everything is as it was.
func TestRelayPartitions(t *testing.T) {
	t.Parallel()
	i := lab.NewInternet(t)
	flags := []string{"--builtin-relay=false"}
	var hosts []*lab.Host
	configs := []lab.RelayConfig{{Name: "fra-1", Datagrams: true}, {Name: "ams-1", Datagrams: true}}
	for _, cfg := range configs {
		h := i.Public(cfg.Name)
		hosts, flags = append(hosts, h), append(flags, "--relay", h.RelayEntry(cfg))
	}
	n := newTravellersOn(t, i, flags...)
	var relays []*lab.Relay
	for j, cfg := range configs {
		relays = append(relays, hosts[j].Relay(t, n.coordinator, cfg))
	}
	laptop, db := i.Public("laptop"), i.Public("db")
	laptop.BlockUDP(db)
	db.BlockUDP(laptop)
	a, b := n.join(t, laptop), n.join(t, db)
	there := lab.StartPulse(t, a.Host, b.Host, address(b, "-4", 7000))
	back := lab.StartPulse(t, b.Host, a.Host, address(a, "-6", 7001))
	stream := lab.StartTransfer(t, a.Host, b.Host, address(b, "-4", 7002))
	connected := func() error {
		for _, node := range []*lab.Node{a, b} {
			if got := metric(t, node, "warren_relay_connected"); got != 2 {
				return fmt.Errorf("%s is connected to %v relays", node.Host.Name, got)
			}
		}
		return nil
	}
	for _, c := range []struct {
		name string
		from *lab.Node
		all  bool
	}{
		{"cut from a", a, false}, {"cut from b", b, false}, {"all cut from a", a, true},
	} {
		lab.Eventually(t, 30*time.Second, connected)
		cut := carrier(t, a, b.Host.Name, relays)
		rules := ""
		for _, r := range relays {
			if r == cut || c.all {
				rules += fmt.Sprintf("ip saddr { %v, %v } ip daddr { %v, %v } drop\n", r.Host.V4, c.from.Host.V4, c.from.Host.V4, r.Host.V4)
			}
		}
		begin := time.Now()
		n.internet.Core.Nft("table inet partition { chain forward { type filter hook forward priority filter\n" + rules + "}\n}\n")
		<-time.After(time.Duration(times(6, 600)) * time.Second)
		stopped := max(there.Gap(begin), back.Gap(begin))
		if !c.all {
			if stopped > failover {
				t.Errorf("%s: nothing arrived for %v", c.name, stopped)
			}
			if now := carrier(t, a, b.Host.Name, relays); now == cut {
				t.Errorf("%s: %s is still said to carry the packets", c.name, cut.Name)
			}
		}
		healed := time.Now()
		n.internet.Core.Nft("delete table inet partition")
		there.Steady(t, 30*time.Second)
		back.Steady(t, 30*time.Second)
		again := max(there.Gap(healed), back.Gap(healed))
		lab.Eventually(t, 30*time.Second, connected)
		converged := time.Since(healed)
		t.Logf("%-14s nothing for %v; both relays %v after the end, nothing for %v", c.name, stopped, converged, again)
		if again > failover || converged > failover {
			t.Errorf("%s: after the end nothing arrived for %v, and both relays had both nodes after %v", c.name, again, converged)
		}
	}
	stream.Finish(t)
}
