//go:build linux

package netns

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/client/localapi"
	"github.com/warren-overlay/warren/tests/lab"
)

// TestRelayByHTTPS has a warren-relay on port 443 with a certificate of its name, and
// nodes of which two get nothing out but that: one by a firewall, one by a proxy. All
// reach each other, those two by TLS only. Under a name that the certificate does not
// bear, the same relay is used by nobody, near as it is, and netcheck says why.
func TestRelayByHTTPS(t *testing.T) {
	t.Parallel()
	const relayName, otherName = "fra-1.example.com", "ams-1.example.com"
	internet := lab.NewInternet(t)
	hub := internet.Public("hub")
	internet.Name(hub, hubName)
	host, cfg := internet.Public("relay"), lab.RelayConfig{Name: "fra-1", Datagrams: true}
	internet.Name(host, otherName)
	internet.Name(host, relayName)
	c := hub.CoordinatorTLS(t, "--builtin-relay=false", "--relay", host.RelayEntry(cfg), "--relay", "name=ams-1,url=wss://"+otherName+",stun="+otherName+":3478")
	relay := host.Relay(t, c, cfg)
	c.SetPolicy(`{"tagOwners": {"tag:a": ["alice@example.com"]}, "grants": [{"src": ["tag:a"], "dst": ["tag:a"], "ip": ["tcp:7000"]}]}`)
	key := c.Key("--tags", "tag:a", "--reusable")
	var nodes []*lab.Node
	for _, restriction := range []lab.Restriction{lab.Unrestricted, lab.HTTPSOnly, lab.ProxyOnly} {
		g := internet.Gateway(fmt.Sprint("gateway", len(nodes)), lab.GatewayConfig{NAT: lab.PortRestricted, Restrict: restriction, NoIPv6: true})
		n := g.Join(fmt.Sprint("node", len(nodes))).Daemon(t)
		n.Up(c, key)
		lab.ServeTCP(t, n.Host, address(n, "-4", echoPort))
		nodes = append(nodes, n)
	}
	frames := func() float64 {
		return metricAt(t, host, lab.RelayMetricsPort, "warren_relay_packets_total", `"out"`) -
			metricAt(t, host, lab.RelayMetricsPort, "warren_relay_datagram_packets_total")
	}
	for i, n := range nodes {
		to := nodes[(i+1)%len(nodes)]
		before := frames()
		lab.Eventually(t, 30*time.Second, func() error {
			return lab.EchoTCP(within(t, 10*time.Second), n.Host, address(to, "-4", echoPort))
		})
		if name := relayTo(t, n, to.Host.Name); name != relay.Name {
			t.Errorf("%s reaches %s over %q", n.Host.Name, to.Host.Name, name)
		}
		// At least one end of each pair has no UDP: a megabyte, and its echo, goes there
		// inside HTTPS.
		if carried := frames() - before; carried < 1<<20/1500 {
			t.Errorf("%s to %s: the relay sent %v packets inside HTTPS", n.Host.Name, to.Host.Name, carried)
		}
	}
	for i, n := range nodes {
		byDatagrams(t, n, i == 0, 30*time.Second)
		lab.Eventually(t, 30*time.Second, func() error {
			s, err := n.API().Status(t.Context())
			if err != nil {
				return err
			}
			if s.Relay == nil || s.Relay.Name != relay.Name || s.Relay.URL != "wss://"+relayName+relayPath {
				return fmt.Errorf("%s: its relay is %+v", n.Host.Name, s.Relay)
			}
			other := slices.IndexFunc(s.Relays, func(r localapi.Relay) bool { return r.Name == "ams-1" })
			if other < 0 || s.Relays[other].Connected || !strings.Contains(s.Relays[other].Error, "certificate is valid for "+relayName) {
				return fmt.Errorf("%s: of a relay with another's certificate it says %+v", n.Host.Name, s.Relays)
			}
			return nil
		})
	}
	if out := nodes[0].CLI("netcheck"); !strings.Contains(out, "- ams-1: no connection: ") || !strings.Contains(out, "certificate is valid for "+relayName) {
		t.Errorf("netcheck does not say what is the matter with ams-1:\n%s", out)
	}
}
