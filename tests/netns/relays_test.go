//go:build linux

package netns

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/tests/lab"
)

// failover is what the failure of a relay may cost (F06), restart what its
// restart may (F07).
const (
	failover = 5 * time.Second
	restart  = time.Second
)

// carrier returns the relay that carries packets from a node to a peer.
func carrier(t *testing.T, from *lab.Node, peer string, relays []*lab.Relay) *lab.Relay {
	t.Helper()
	line := path(t, from, peer)
	for _, r := range relays {
		if strings.Contains(line, fmt.Sprintf("relay %q", r.Name)) {
			return r
		}
	}
	t.Fatalf("no relay carries the packets: %q", line)
	return nil
}

// after watches a stream for a while and returns its longest gap.
func after(s *lab.Stream, d time.Duration) time.Duration {
	<-time.After(d)
	return s.LongestGap()
}

// TestRelays has two relays, and none beside the coordinator. The database is
// reached through them only, the web server directly. The one that carries the
// packets is killed while the coordinator is down, then one is restarted in order,
// then both are away for a minute (F06, F07).
func TestRelays(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	hosts := map[string]*lab.Host{"fra-1": l.Host("fra-1"), "ams-1": l.Host("ams-1")}
	coordinator := l.Host("hub").Coordinator(t, "--builtin-relay=false",
		"--relay", "name=fra-1,url="+hosts["fra-1"].RelayURL(), "--relay", "name=ams-1,url="+hosts["ams-1"].RelayURL())
	relays := []*lab.Relay{hosts["fra-1"].Relay(t, coordinator, "fra-1"), hosts["ams-1"].Relay(t, coordinator, "ams-1")}
	coordinator.Admin("users", "create", "alice@example.com")
	coordinator.Admin("users", "create", "bob@example.com")
	coordinator.SetPolicy(policy)
	metrics := []string{"--metrics-listen", "127.0.0.1:" + metricsPort}
	laptop, db, web := l.Host("laptop").Daemon(t, metrics...), l.Host("db").Daemon(t, metrics...), l.Host("web").Daemon(t, metrics...)
	laptop.Host.BlockUDP(db.Host)
	db.Host.BlockUDP(laptop.Host)
	laptop.Up(coordinator, coordinator.Key("--user", "alice@example.com"))
	db.Up(coordinator, coordinator.Key("--tags", "tag:db"))
	web.Up(coordinator, coordinator.Key("--tags", "tag:web"))
	relayed := lab.StartUDP(t, laptop.Host, db.Host, address(db, "-4", 5353))
	stream := lab.StartTCP(t, laptop.Host, db.Host, address(db, "-6", 5432))
	direct := lab.StartUDP(t, laptop.Host, web.Host, address(web, "-4", 8080))
	lab.Eventually(t, 30*time.Second, func() error {
		if line := path(t, laptop, "web"); !strings.Contains(line, "direct") {
			return fmt.Errorf("the web server is not reached directly: %q", line)
		}
		return nil
	})

	// Both nodes listen at a second relay by then.
	lab.Eventually(t, 30*time.Second, func() error {
		for _, n := range []*lab.Node{laptop, db} {
			if got := metric(t, n, "warren_relay_connected"); got != 2 {
				return fmt.Errorf("%s is connected to %v relays", n.Host.Name, got)
			}
			if got := metric(t, n, "warren_relay_home"); got != 1 {
				return fmt.Errorf("%s has %v homes", n.Host.Name, got)
			}
		}
		return nil
	})
	coordinator.Kill()
	killed := carrier(t, laptop, "db", relays)
	relayed.LongestGap()
	direct.LongestGap()
	killed.Kill()
	gap := after(relayed, 8*time.Second)
	t.Logf("%s killed, the coordinator away: a gap of %v", killed.Name, gap)
	if gap > failover {
		t.Errorf("a gap of %v after the relay was killed", gap)
	}
	if now := carrier(t, laptop, "db", relays); now == killed {
		t.Errorf("%s is killed and said to carry the packets", now.Name)
	}
	stream.Alive(t)

	coordinator.Start()
	killed.Start()
	lab.Eventually(t, 30*time.Second, func() error {
		for _, n := range []*lab.Node{laptop, db} {
			if got := metric(t, n, "warren_relay_connected"); got != 2 {
				return fmt.Errorf("%s is connected to %v relays", n.Host.Name, got)
			}
		}
		return nil
	})
	restarted := carrier(t, laptop, "db", relays)
	relayed.LongestGap()
	restarted.Terminate()
	<-restarted.Ended()
	gap = after(relayed, 3*time.Second)
	t.Logf("%s restarted in order: a gap of %v", restarted.Name, gap)
	if gap > restart {
		t.Errorf("a gap of %v at a restart in order", gap)
	}
	restarted.Start()

	direct.LongestGap()
	for _, r := range relays {
		r.Kill()
	}
	lost := metric(t, laptop, "warren_lost_packets_total", "no_path")
	if gap := after(relayed, time.Minute); gap < 55*time.Second {
		t.Errorf("without relays the longest gap is %v", gap)
	}
	if gap := direct.LongestGap(); gap > failover {
		t.Errorf("without relays a direct path has a gap of %v", gap)
	}
	if got := metric(t, laptop, "warren_lost_packets_total", "no_path"); got <= lost {
		t.Errorf("without relays %v packets were counted as lost for want of a path", got-lost)
	}
	before := relayed.Lines()
	for _, r := range relays {
		r.Start()
	}
	begin := time.Now()
	lab.Eventually(t, 30*time.Second, func() error {
		if relayed.Lines() == before {
			return fmt.Errorf("nothing arrives yet")
		}
		return nil
	})
	took := time.Since(begin)
	t.Logf("back %v after both relays", took)
	if took > failover {
		t.Errorf("back %v after both relays", took)
	}
	lab.Eventually(t, 30*time.Second, func() error {
		if metric(t, laptop, "warren_relay_home") != 1 {
			return fmt.Errorf("no home")
		}
		return nil
	})
}

// TestBuiltinRelayRestart has the packets carried by the relay beside the
// coordinator, and another relay. The coordinator is stopped in order (F07).
func TestBuiltinRelayRestart(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	host := l.Host("fra-1")
	coordinator := l.Host("hub").Coordinator(t, "--relay", "name=fra-1,url="+host.RelayURL())
	other := host.Relay(t, coordinator, "fra-1")
	other.Kill() // so that the built-in one is everybody's home
	coordinator.Admin("users", "create", "alice@example.com")
	coordinator.SetPolicy(policy)
	metrics := []string{"--metrics-listen", "127.0.0.1:" + metricsPort}
	laptop, db := l.Host("laptop").Daemon(t, metrics...), l.Host("db").Daemon(t, metrics...)
	laptop.Host.BlockUDP(db.Host)
	db.Host.BlockUDP(laptop.Host)
	laptop.Up(coordinator, coordinator.Key("--user", "alice@example.com"))
	db.Up(coordinator, coordinator.Key("--tags", "tag:db"))
	relayed := lab.StartUDP(t, laptop.Host, db.Host, address(db, "-4", 5353))
	stream := lab.StartTCP(t, laptop.Host, db.Host, address(db, "-6", 5432))
	if line := path(t, laptop, "db"); !strings.Contains(line, `relay "default"`) {
		t.Fatalf("with one relay: %q", line)
	}
	other.Start()
	lab.Eventually(t, time.Minute, func() error {
		for _, n := range []*lab.Node{laptop, db} {
			if got := metric(t, n, "warren_relay_connected"); got != 2 {
				return fmt.Errorf("%s is connected to %v relays", n.Host.Name, got)
			}
		}
		return nil
	})
	if line := path(t, laptop, "db"); !strings.Contains(line, `relay "default"`) {
		t.Fatalf("with two relays: %q", line)
	}
	relayed.LongestGap()
	coordinator.Terminate()
	<-coordinator.Ended()
	gap := after(relayed, 3*time.Second)
	t.Logf("the coordinator stopped in order: a gap of %v", gap)
	if gap > restart {
		t.Errorf("a gap of %v when the coordinator stopped in order", gap)
	}
	if line := path(t, laptop, "db"); !strings.Contains(line, `relay "fra-1"`) {
		t.Errorf("with the coordinator stopped: %q", line)
	}
	coordinator.Start()
	stream.Alive(t)
}
