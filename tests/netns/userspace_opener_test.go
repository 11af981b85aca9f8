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

// TestUserspaceOpener opens flows from a node without a TUN device, by each of
// its proxies, to one with a TUN device and to one without: what rules allow
// passes both filters, and what they do not is refused by the opener's own
// filter, counted, and explained to the program.
func TestUserspaceOpener(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	c := l.Host("hub").Coordinator(t)
	c.Admin("users", "create", "alice@example.com")
	c.Admin("users", "create", "bob@example.com")
	c.SetPolicy(policy)
	flags := []string{"--metrics-listen", "127.0.0.1:" + metricsPort}
	user := append([]string{"--tun", userspace}, flags...)
	laptop := l.Host("laptop").Daemon(t, append([]string{"--socks5", "127.0.0.1:1080", "--http-proxy", "127.0.0.1:1081"}, user...)...)
	db, web := l.Host("db").Daemon(t, flags...), l.Host("web").Daemon(t, user...)
	laptop.Up(c, c.Key("--user", "alice@example.com"))
	db.Up(c, c.Key("--tags", "tag:db"))
	web.Up(c, c.Key("--tags", "tag:web"))

	openers := map[string]func(ctx context.Context, address string) error{
		"SOCKS5": func(ctx context.Context, address string) error {
			return echoSOCKS(ctx, laptop.Host, "127.0.0.1:1080", address)
		},
		"HTTP CONNECT": func(ctx context.Context, address string) error {
			return echoCONNECT(ctx, laptop.Host, "127.0.0.1:1081", address)
		},
	}
	for _, family := range families {
		local := map[string]string{"-4": "127.0.0.1", "-6": "::1"}[family]
		lab.ServeTCP(t, db.Host, address(db, family, 5432))
		lab.ServeTCP(t, web.Host, joined(local, 8080))
		secrets := []interface{ Load() int64 }{
			lab.ServeTCP(t, db.Host, address(db, family, 22)), lab.ServeTCP(t, web.Host, joined(local, 22)),
		}
		for name, open := range openers {
			for to, ports := range map[*lab.Node]int{db: 5432, web: 8080} {
				what := fmt.Sprintf("%s to %s, %s", name, to.Host.Name, family)
				if err := open(within(t, 15*time.Second), address(to, family, ports)); err != nil {
					t.Errorf("%s: %v", what, err)
				}
				const counter = "warren_outbound_dropped_packets_total"
				before := metric(t, laptop, counter, `reason="drop_no_rule"`)
				err := open(within(t, 15*time.Second), address(to, family, 22))
				if err == nil {
					t.Errorf("%s: a denied port was reached", what)
				}
				if name == "HTTP CONNECT" && !strings.Contains(fmt.Sprint(err), "no rule lets this device open tcp:22 to "+to.Host.Name) {
					t.Errorf("%s: the program is told %v", what, err)
				}
				if after := metric(t, laptop, counter, `reason="drop_no_rule"`); after <= before {
					t.Errorf("%s: drop_no_rule went from %v to %v", what, before, after)
				}
			}
		}
		for _, secret := range secrets {
			if n := secret.Load(); n != 0 {
				t.Errorf("%d connections to a denied port, %s", n, family)
			}
		}
	}
	// What a person sees of it.
	if out := laptop.CLI("status"); !strings.Contains(out, "Denied lately") || !strings.Contains(out, "no rule (drop_no_rule)") {
		t.Errorf("status:\n%s", out)
	}
	if out, err := laptop.Try("debug", "why", "db", "tcp:22"); err == nil || !strings.Contains(out, "no rule lets this device open tcp:22 to db") {
		t.Errorf("debug why: %v: %s", err, out)
	}
}
