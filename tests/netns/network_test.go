//go:build linux

package netns

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/tests/lab"
)

// policy lets engineers reach the database on one TCP and one UDP port, and the
// web server's; the web server reaches the database, too.
const policy = `{
	"groups": {"group:eng": ["alice@example.com"]},
	"tagOwners": {"tag:db": ["alice@example.com"], "tag:web": ["alice@example.com"]},
	"grants": [
		{"src": ["group:eng"], "dst": ["tag:db"], "ip": ["tcp:5432", "udp:5353"]},
		{"src": ["group:eng", "bob@example.com"], "dst": ["tag:web"], "ip": ["tcp:8080", "udp:8080"]},
		{"src": ["tag:web"], "dst": ["tag:db"], "ip": ["tcp:5432"]},
	],
}`

// policyWithoutDatabase is policy after somebody took the first grant away.
const policyWithoutDatabase = `{
	"groups": {"group:eng": ["alice@example.com"]},
	"tagOwners": {"tag:db": ["alice@example.com"], "tag:web": ["alice@example.com"]},
	"grants": [
		{"src": ["group:eng", "bob@example.com"], "dst": ["tag:web"], "ip": ["tcp:8080", "udp:8080"]},
		{"src": ["tag:web"], "dst": ["tag:db"], "ip": ["tcp:5432"]},
	],
}`

const metricsPort = "9190"

// network is a coordinator and three nodes on one LAN: alice's laptop and a
// database server with TUN devices, and a web server with the given device.
type network struct {
	lab             *lab.Lab
	coordinator     *lab.Coordinator
	laptop, db, web *lab.Node
}

func newNetwork(t *testing.T, webDevice ...string) *network {
	t.Helper()
	l := lab.New(t)
	n := &network{lab: l, coordinator: l.Host("hub").Coordinator(t)}
	n.coordinator.Admin("users", "create", "alice@example.com")
	n.coordinator.Admin("users", "create", "bob@example.com")
	n.coordinator.SetPolicy(policy)
	metrics := []string{"--metrics-listen", "127.0.0.1:" + metricsPort}
	n.laptop = l.Host("laptop").Daemon(t, metrics...)
	n.db = l.Host("db").Daemon(t, metrics...)
	n.web = l.Host("web").Daemon(t, append(webDevice, metrics...)...)
	n.laptop.Up(n.coordinator, n.coordinator.Key("--user", "alice@example.com"))
	n.db.Up(n.coordinator, n.coordinator.Key("--tags", "tag:db"))
	n.web.Up(n.coordinator, n.coordinator.Key("--tags", "tag:web"))
	return n
}

// address returns a node's overlay address with a port.
func address(n *lab.Node, family string, port int) string {
	return net.JoinHostPort(n.IP(family), strconv.Itoa(port))
}

var families = []string{"-4", "-6"}

// metric returns the sum of a node's counters whose line begins with name and
// contains every one of the labels.
func metric(t *testing.T, n *lab.Node, name string, labels ...string) float64 {
	t.Helper()
	return metricAt(t, n.Host, metricsPort, name, labels...)
}

// metricAt is metric of a program that serves its metrics on a port of the host.
func metricAt(t *testing.T, h *lab.Host, port, name string, labels ...string) float64 {
	t.Helper()
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DialContext: h.Dial, DisableKeepAlives: true,
	}}
	response, err := client.Get("http://127.0.0.1:" + port + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var sum float64
lines:
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, name) {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(line, label) {
				continue lines
			}
		}
		fields := strings.Fields(line)
		value, err := strconv.ParseFloat(fields[len(fields)-1], 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		sum += value
	}
	return sum
}

// within returns a context for one exchange.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, fmt.Errorf("nothing came within %v", d))
	t.Cleanup(cancel)
	return ctx
}
