//go:build linux

package netns

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/tests/lab"
)

// pathsPolicy lets the nodes of the faults on paths reach each other.
const pathsPolicy = `{
	"tagOwners": {"tag:node": ["alice@example.com"]},
	"grants": [{"src": ["tag:node"], "dst": ["tag:node"], "ip": ["tcp:7000-7099", "udp:7000-7099", "icmp:*", "ipv6-icmp:*"]}],
}`

// travellers is an internet with a coordinator and nodes that may all speak to
// each other.
type travellers struct {
	internet    *lab.Internet
	coordinator *lab.Coordinator
	key         string
}

func newTravellers(t *testing.T) *travellers {
	t.Helper()
	return newTravellersOn(t, lab.NewInternet(t))
}

// newTravellersOn is newTravellers on an internet that there is, with flags of the
// coordinator's.
func newTravellersOn(t *testing.T, i *lab.Internet, flags ...string) *travellers {
	t.Helper()
	n := &travellers{internet: i, coordinator: i.Public("hub").Coordinator(t, flags...)}
	n.coordinator.SetPolicy(pathsPolicy)
	n.key = n.coordinator.Key("--tags", "tag:node", "--reusable")
	return n
}

// join starts a daemon on the host and joins it.
func (n *travellers) join(t *testing.T, h *lab.Host, flags ...string) *lab.Node {
	t.Helper()
	node := h.Daemon(t, append([]string{"--metrics-listen", "127.0.0.1:" + metricsPort}, flags...)...)
	node.Up(n.coordinator, n.key)
	return node
}

// pathKind returns how a node reaches another: "direct", "relay" or "none".
func pathKind(t *testing.T, from, to *lab.Node) string {
	t.Helper()
	s, err := from.API().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range s.Peers {
		if p.Name == to.Host.Name {
			return p.Path.Kind
		}
	}
	return "unknown"
}

// eventuallyDirect waits until two nodes are direct at both ends.
func eventuallyDirect(t *testing.T, a, b *lab.Node) {
	t.Helper()
	lab.Eventually(t, 30*time.Second, func() error {
		if there, back := pathKind(t, a, b), pathKind(t, b, a); there != "direct" || back != "direct" {
			return fmt.Errorf("%s there, %s back", there, back)
		}
		return nil
	})
}

// relayFlaps returns how often a node has gone over to the relay.
func relayFlaps(nodes ...*lab.Node) (n int) {
	for _, node := range nodes {
		for line := range strings.Lines(node.Log()) {
			if strings.Contains(line, `msg="path changed"`) && strings.Contains(line, " path=relay ") {
				n++
			}
		}
	}
	return n
}

// REBIND of reliability.md: with packets going out, and with packets coming in
// only.
const (
	rebindLimit        = time.Second
	rebindInboundLimit = 5 * time.Second
)

// TestRebinding is fault F08: the NAT in front of a node forgets its mappings and
// makes others, again and again, an easy NAT and a hard one in turns. The node
// exchanges packets with one peer and only gets them from another.
func TestRebinding(t *testing.T) {
	t.Parallel()
	n := newTravellers(t)
	g := n.internet.Gateway("gateway", lab.GatewayConfig{NAT: lab.PortRestricted, NoIPv6: true})
	laptop, db, feed := n.join(t, g.Join("laptop")), n.join(t, n.internet.Public("db")), n.join(t, n.internet.Public("feed"))
	upload := lab.StartTransfer(t, laptop.Host, db.Host, address(db, "-4", 7000))
	download := lab.StartTransfer(t, db.Host, laptop.Host, address(laptop, "-4", 7001))
	up := lab.StartPulse(t, laptop.Host, db.Host, address(db, "-4", 7002))
	down := lab.StartPulse(t, db.Host, laptop.Host, address(laptop, "-4", 7003))
	inbound := lab.StartPulse(t, feed.Host, laptop.Host, address(laptop, "-6", 7004))
	eventuallyDirect(t, laptop, db)
	eventuallyDirect(t, laptop, feed)
	every := time.NewTicker(time.Duration(times(5, 20)) * time.Second)
	defer every.Stop()
	before := relayFlaps(laptop, db, feed)
	events := times(4, 30)
	for i := range events {
		<-every.C
		nat, port := lab.PortRestricted, uint16(40000+i)
		if i%2 == 1 {
			nat, port = lab.Symmetric, 0
		}
		begin := time.Now()
		g.Rebind(nat, port)
		for _, p := range []*lab.Pulse{up, down, inbound} {
			p.Steady(t, 15*time.Second)
		}
		t.Logf("%-15v out %v, back %v, only in %v; TCP out %v, in %v", nat, up.Gap(begin), down.Gap(begin), inbound.Gap(begin), upload.Gap(begin), download.Gap(begin))
		if gap := max(up.Gap(begin), down.Gap(begin)); gap > rebindLimit {
			t.Errorf("%v: packets stopped for %v", nat, gap)
		}
		if gap := inbound.Gap(begin); gap > rebindInboundLimit {
			t.Errorf("%v: packets that only come in stopped for %v", nat, gap)
		}
	}
	eventuallyDirect(t, laptop, db)
	eventuallyDirect(t, laptop, feed)
	nobodyStrays(t, laptop, db, feed)
	// Two pairs, and both ends of each may go by the relay once.
	if flaps := relayFlaps(laptop, db, feed) - before; flaps > 2*2*events {
		t.Errorf("%d changes to the relay in %d events", flaps, events)
	}
	t.Logf("%d changes to the relay in %d events; %d and %d bytes arrived as they were sent", relayFlaps(laptop, db, feed)-before, events, upload.Finish(t), download.Finish(t))
}
