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
	return newTravellersAt(t, i, i.Public("hub"), flags...)
}

// newTravellersAt is newTravellersOn with the coordinator on a host that there is.
func newTravellersAt(t *testing.T, i *lab.Internet, hub *lab.Host, flags ...string) *travellers {
	t.Helper()
	n := &travellers{internet: i, coordinator: hub.Coordinator(t, flags...)}
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

// eventuallyRouted waits until what each of the nodes' hosts sends to the others goes by
// their devices: a node learns of another a moment after that has joined, and a socket
// that was opened before has another address.
func eventuallyRouted(t *testing.T, nodes ...*lab.Node) {
	t.Helper()
	for _, from := range nodes {
		for _, to := range nodes {
			if from == to {
				continue
			}
			for _, family := range families {
				lab.Eventually(t, 30*time.Second, func() error {
					// Where there is no way at all yet, it fails.
					out, err := from.Host.Run(t.Context(), "ip", "route", "get", to.IP(family))
					if err == nil && !strings.Contains(out, "dev warren0") {
						err = fmt.Errorf("%s does not send to %s by its device: %s", from.Host.Name, to.Host.Name, out)
					}
					return err
				})
			}
		}
	}
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

// relayFlaps returns how often a node has gone over to the relay for a peer.
func relayFlaps(from, to *lab.Node) (n int) {
	for line := range strings.Lines(from.Log()) {
		if strings.Contains(line, `msg="path changed"`) && strings.Contains(line, " peer="+to.Host.Name+" path=relay ") {
			n++
		}
	}
	return n
}

// REBIND of reliability.md: with packets going out, with packets coming in only, and
// without any.
const (
	rebindLimit        = time.Second
	rebindInboundLimit = 5 * time.Second
	rebindIdleLimit    = 25 * time.Second
)

// idleFor is longer than a path is watched after its last packet (45 s).
const idleFor = 50 * time.Second

// TestRebinding is fault F08: the NAT in front of a node forgets its mappings and
// makes others, again and again, an easy NAT and a hard one in turns, and has another
// public address at last. The node exchanges packets with one peer and only gets them
// from another. At the end the same happens to nodes that have said nothing for a while.
func TestRebinding(t *testing.T) {
	t.Parallel()
	n := newTravellers(t)
	asleep := n.sleepers(t)
	g := n.internet.Gateway("gateway", lab.GatewayConfig{NAT: lab.PortRestricted, NoIPv6: true})
	laptop, db, feed := n.join(t, g.Join("laptop")), n.join(t, n.internet.Public("db")), n.join(t, n.internet.Public("feed"))
	eventuallyRouted(t, laptop, db, feed)
	upload := lab.StartTransfer(t, laptop.Host, db.Host, address(db, "-4", 7000))
	download := lab.StartTransfer(t, db.Host, laptop.Host, address(laptop, "-4", 7001))
	up := lab.StartPulse(t, laptop.Host, db.Host, address(db, "-4", 7002))
	down := lab.StartPulse(t, db.Host, laptop.Host, address(laptop, "-4", 7003))
	inbound := lab.StartPulse(t, feed.Host, laptop.Host, address(laptop, "-6", 7004))
	ends := [][2]*lab.Node{{laptop, db}, {db, laptop}, {laptop, feed}, {feed, laptop}}
	eventuallyDirect(t, laptop, db)
	eventuallyDirect(t, laptop, feed)
	every := time.NewTicker(time.Duration(times(5, 20)) * time.Second)
	defer every.Stop()
	events := times(5, 30)
	for i := range events {
		<-every.C
		var before []int
		for _, e := range ends {
			before = append(before, relayFlaps(e[0], e[1]))
		}
		name, event := "port-restricted", func() { g.Rebind(lab.PortRestricted, uint16(40000+i)) }
		switch {
		case i == events-1:
			name, event = "another address", g.Readdress
		case i%2 == 1:
			name, event = "symmetric", func() { g.Rebind(lab.Symmetric, 0) }
		}
		begin := time.Now()
		event()
		for _, p := range []*lab.Pulse{up, down, inbound} {
			p.Steady(t, 15*time.Second)
		}
		t.Logf("%-15s out %v, back %v, only in %v; TCP out %v, in %v", name, up.Gap(begin), down.Gap(begin), inbound.Gap(begin), upload.Gap(begin), download.Gap(begin))
		if gap := max(up.Gap(begin), down.Gap(begin)); gap > rebindLimit {
			t.Errorf("%s: packets stopped for %v", name, gap)
		}
		if gap := inbound.Gap(begin); gap > rebindInboundLimit {
			t.Errorf("%s: packets that only come in stopped for %v", name, gap)
		}
		// What follows belongs to the next event.
		eventuallyDirect(t, laptop, db)
		eventuallyDirect(t, laptop, feed)
		for j, e := range ends {
			if flaps := relayFlaps(e[0], e[1]) - before[j]; flaps > 1 {
				t.Errorf("%s: %s went over to the relay for %s %d times", name, e[0].Host.Name, e[1].Host.Name, flaps)
			}
		}
	}
	nobodyStrays(t, laptop, db, feed)
	total := 0
	for _, e := range ends {
		total += relayFlaps(e[0], e[1])
		if relayFlaps(e[0], e[1]) == 0 {
			t.Errorf("%s does not log that it began by the relay to %s", e[0].Host.Name, e[1].Host.Name)
		}
	}
	asleep.rebind(t)
	t.Logf("%d changes to the relay, the first ones included, in %d events at %d ends; %d and %d bytes arrived as they were sent", total, events, len(ends), upload.Finish(t), download.Finish(t))
}

// sleepers are two nodes, each behind a gateway, that have exchanged packets with a peer
// and say nothing to anybody since.
type sleepers struct {
	peer     *lab.Node
	nodes    []*lab.Node
	gateways []*lab.Gateway
	since    time.Time
}

// sleepers joins them and lets them reach the peer directly.
func (n *travellers) sleepers(t *testing.T) *sleepers {
	t.Helper()
	s := &sleepers{peer: n.join(t, n.internet.Public("peer"))}
	for _, name := range []string{"forgotten", "moved"} {
		g := n.internet.Gateway(name+"-gateway", lab.GatewayConfig{NAT: lab.PortRestricted, NoIPv6: true})
		node := n.join(t, g.Join(name))
		lab.ServeUDP(t, node.Host, address(node, "-4", 7000))
		lab.Eventually(t, 30*time.Second, func() error {
			if err := lab.EchoUDP(within(t, 2*time.Second), s.peer.Host, address(node, "-4", 7000)); err != nil {
				return err
			}
			if kind := pathKind(t, s.peer, node); kind != "direct" {
				return fmt.Errorf("%s is reached by %s", name, kind)
			}
			return nil
		})
		s.nodes, s.gateways = append(s.nodes, node), append(s.gateways, g)
	}
	s.since = time.Now()
	return s
}

// rebind lets them sleep for long enough, and has the one's NAT forget its mappings and
// the other's get another public address. The peer sends to both from that moment on.
func (s *sleepers) rebind(t *testing.T) {
	t.Helper()
	quiet := time.NewTimer(time.Until(s.since.Add(idleFor)))
	defer quiet.Stop()
	<-quiet.C
	begin := time.Now()
	s.gateways[0].Rebind(lab.PortRestricted, 41000)
	s.gateways[1].Readdress()
	took := make(chan time.Duration)
	for _, node := range s.nodes {
		to, ctx := address(node, "-4", 7000), within(t, 2*rebindIdleLimit)
		go func() {
			if err := lab.EchoUDP(ctx, s.peer.Host, to); err != nil {
				t.Errorf("%s: %v", node.Host.Name, err)
			}
			took <- time.Since(begin)
		}()
	}
	longest := max(<-took, <-took)
	t.Logf("idle for %v: reached %v after the event", begin.Sub(s.since).Round(time.Second), longest)
	if longest > rebindIdleLimit {
		t.Errorf("idle nodes are reached %v after the event", longest)
	}
}
