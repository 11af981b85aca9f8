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

// relayFlaps returns how often a node has gone over to the relay for a peer.
func relayFlaps(from, to *lab.Node) (n int) {
	for line := range strings.Lines(from.Log()) {
		if strings.Contains(line, `msg="path changed"`) && strings.Contains(line, " peer="+to.Host.Name+" path=relay ") {
			n++
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
// makes others, again and again, an easy NAT and a hard one in turns, and has another
// public address at last. The node exchanges packets with one peer and only gets them
// from another.
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
	t.Logf("%d changes to the relay, the first ones included, in %d events at %d ends; %d and %d bytes arrived as they were sent", total, events, len(ends), upload.Finish(t), download.Finish(t))
}

// rebindIdleLimit is REBIND of reliability.md where no packets go, idle for how long
// none have gone then: for longer than a path is watched (45 s).
const (
	rebindIdleLimit = 25 * time.Second
	idle            = 50 * time.Second
)

// TestRebindingWhileIdle is fault F08 for nodes that say nothing: the NAT in front of
// one forgets its mappings, that of another has another public address. A peer that
// sends to them from that moment on reaches them.
func TestRebindingWhileIdle(t *testing.T) {
	t.Parallel()
	n := newTravellers(t)
	peer := n.join(t, n.internet.Public("peer"))
	sleepers := []struct {
		name    string
		gateway *lab.Gateway
		node    *lab.Node
	}{{name: "forgotten"}, {name: "moved"}}
	for i := range sleepers {
		s := &sleepers[i]
		s.gateway = n.internet.Gateway(s.name+"-gateway", lab.GatewayConfig{NAT: lab.PortRestricted, NoIPv6: true})
		s.node = n.join(t, s.gateway.Join(s.name))
		lab.ServeUDP(t, s.node.Host, address(s.node, "-4", 7000))
		lab.Eventually(t, 30*time.Second, func() error {
			if err := lab.EchoUDP(within(t, 2*time.Second), peer.Host, address(s.node, "-4", 7000)); err != nil {
				return err
			}
			if kind := pathKind(t, peer, s.node); kind != "direct" {
				return fmt.Errorf("%s is reached by %s", s.name, kind)
			}
			return nil
		})
	}
	quiet := time.NewTimer(idle)
	defer quiet.Stop()
	<-quiet.C
	begin := time.Now()
	sleepers[0].gateway.Rebind(lab.PortRestricted, 41000)
	sleepers[1].gateway.Readdress()
	took := make(chan error)
	for _, s := range sleepers {
		to := address(s.node, "-4", 7000)
		ctx := within(t, 2*rebindIdleLimit)
		go func() {
			err := lab.EchoUDP(ctx, peer.Host, to)
			if after := time.Since(begin); err == nil {
				t.Logf("%s: reached %v after the event", s.name, after)
				if after > rebindIdleLimit {
					err = fmt.Errorf("reached after %v", after)
				}
			}
			if err != nil {
				err = fmt.Errorf("%s: %w", s.name, err)
			}
			took <- err
		}()
	}
	for range sleepers {
		if err := <-took; err != nil {
			t.Error(err)
		}
	}
}
