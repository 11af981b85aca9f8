//go:build linux

package netns

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/tests/lab"
)

// maxTurnOff is how long it may take until devices have deleted what was forwarded,
// after the administrator turned port mapping off.
const maxTurnOff = 5 * time.Second

// openNetwork returns an internet with a coordinator, and the key of a network in
// which everybody may do everything.
func openNetwork(t *testing.T) (internet *lab.Internet, coordinator *lab.Coordinator, key string) {
	t.Helper()
	internet = lab.NewInternet(t)
	coordinator = internet.Public("hub").Coordinator(t)
	coordinator.SetPolicy(`{
	"tagOwners": {"tag:a": ["alice@example.com"]},
	"grants": [{"src": ["tag:a"], "dst": ["tag:a"], "ip": ["*"]}],
}`)
	return internet, coordinator, coordinator.Key("--tags", "tag:a", "--reusable")
}

// TestPortMapping has two nodes behind NATs that take another port for each
// destination, so that neither can be told where the other is: the relay
// carries. Where the router of one forwards a port, they are direct, without
// anybody's help. The mapping goes when the administrator says so, and when the
// node does.
//
//	node a --- symmetric NAT, miniupnpd --- core --- symmetric NAT --- node b
//	                                         |
//	                                        hub
func TestPortMapping(t *testing.T) {
	for _, c := range []struct {
		name      string
		pcp, upnp bool
	}{{"PCP", true, false}, {"UPnP", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			internet, coordinator, key := openNetwork(t)
			router := internet.Gateway("router", lab.GatewayConfig{NAT: lab.Symmetric, NoIPv6: true})
			outside := router.MapsPorts(t, c.pcp, c.upnp)
			a := router.Join("a").Daemon(t)
			b := internet.Gateway("other", lab.GatewayConfig{NAT: lab.Symmetric, NoIPv6: true}).Join("b").Daemon(t)
			a.CLI("up", "--login-server", coordinator.URL(), "--auth-key", key, "--hostname", "a", "--port-mapping=false")
			b.Up(coordinator, key)

			// Without a mapping the relay is the way, and the node says so. The other
			// router maps nothing, and its node says that.
			if out, err := a.Try("ping", "--until-direct", "-c", "3", "b"); err == nil || !strings.Contains(out, "via relay ") || !strings.Contains(err.Error(), "no direct path to b after 3 pings") {
				t.Fatalf("without a mapping: %v\n%s", err, out)
			}
			if out := a.CLI("netcheck"); !strings.Contains(out, "PortMapping: off") {
				t.Errorf("netcheck of a:\n%s", out)
			}
			if rules := router.Forwarded(); len(rules) != 0 {
				t.Fatalf("forwarded without being asked: %q", rules)
			}
			lab.Eventually(t, 30*time.Second, func() error {
				if out := b.CLI("netcheck"); !strings.Contains(out, "PortMapping: none: ") {
					return fmt.Errorf("netcheck of b:\n%s", out)
				}
				return nil
			})

			a.CLI("set", "--port-mapping")
			mapped := regexp.MustCompile(fmt.Sprintf(`PortMapping: %s, %s:(\d+)\n`, c.name, regexp.QuoteMeta(outside.String())))
			lab.Eventually(t, 30*time.Second, func() error {
				if out := a.CLI("netcheck"); !mapped.MatchString(out) {
					return fmt.Errorf("netcheck of a:\n%s", out)
				}
				return nil
			})
			port := mapped.FindStringSubmatch(a.CLI("netcheck"))[1]
			if rules := router.Forwarded(); len(rules) != 1 || !strings.Contains(rules[0], port) || !strings.Contains(rules[0], a.Host.V4.String()) {
				t.Errorf("forwarded: %q, want port %s to %v", rules, port, a.Host.V4)
			}
			if out, err := b.Try("ping", "--until-direct", "-c", "30", "a"); err != nil || !strings.Contains(out, "via "+outside.String()+":"+port) {
				t.Fatalf("with a mapping: %v\n%s\n%s", err, out, b.CLI("debug", "paths", "a"))
			}
			if out, err := a.Try("ping", "--until-direct", "-c", "30", "b"); err != nil {
				t.Fatalf("with a mapping, from its side: %v\n%s", err, out)
			}

			// The administrator turns it off for all devices, and on again.
			coordinator.Admin("settings", "set", "port-mapping", "off")
			began := time.Now()
			lab.Eventually(t, 30*time.Second, func() error {
				if rules := router.Forwarded(); len(rules) != 0 {
					return fmt.Errorf("still forwarded: %q", rules)
				}
				return nil
			})
			took := time.Since(began)
			t.Logf("turned off: deleted after %v", took)
			if took > maxTurnOff {
				t.Errorf("turned off: deleted after %v, at most %v", took, maxTurnOff)
			}
			if out := a.CLI("netcheck"); !strings.Contains(out, "PortMapping: off: turned off for all devices by the administrator\n") {
				t.Errorf("turned off: netcheck of a:\n%s", out)
			}
			coordinator.Admin("settings", "set", "port-mapping", "on")
			lab.Eventually(t, 30*time.Second, func() error {
				if out := a.CLI("netcheck"); !mapped.MatchString(out) || len(router.Forwarded()) != 1 {
					return fmt.Errorf("on again: netcheck of a:\n%s\nforwarded %q", out, router.Forwarded())
				}
				return nil
			})
			a.Stop()
			if rules := router.Forwarded(); len(rules) != 0 {
				t.Errorf("still forwarded after the node has ended: %q", rules)
			}
			if tables := router.Host.Tables(); !slices.Contains(tables, "upnp") {
				t.Errorf("tables %v", tables)
			}
		})
	}
}
