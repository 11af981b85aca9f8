//go:build linux

package netns

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/tests/lab"
)

const (
	year = 365 * 24 * time.Hour
	// rekeyEvery is WireGuard's REKEY_AFTER_TIME, rekeyWithin what a rekey may take
	// when a clock was set (F11).
	rekeyEvery  = 120 * time.Second
	rekeyWithin = 15 * time.Second
	// steady is the longest gap in a stream that nothing interrupts: the machine
	// may be slow, and is shared.
	steady = 2 * time.Second
)

// clockPolicy lets engineers reach the database by TCP, and by UDP until end.
func clockPolicy(end time.Time) string {
	return fmt.Sprintf(`{
	"groups": {"group:eng": ["alice@example.com"]},
	"tagOwners": {"tag:db": ["alice@example.com"], "tag:web": ["alice@example.com"]},
	"grants": [{"src": ["group:eng"], "dst": ["tag:db", "tag:web"], "ip": ["tcp:5400-5499"]}],
	"acls": [{"id": "until", "action": "accept", "src": ["group:eng"], "proto": "udp", "dst": ["tag:db:5400-5499"], "notAfter": %q}],
}`, end.UTC().Format(time.RFC3339))
}

// handshake returns when a node last had a handshake with a peer, by the node's
// clock.
func handshake(t *testing.T, n *lab.Node, peer string) time.Time {
	t.Helper()
	peers, _ := n.Status()["peers"].([]any)
	for _, p := range peers {
		if p, _ := p.(map[string]any); p["name"] == peer {
			text, _ := p["last_handshake"].(string)
			at, err := time.Parse(time.RFC3339Nano, text)
			if err != nil {
				t.Fatalf("%s: the last handshake with %s was at %q", n.Host.Name, peer, text)
			}
			return at
		}
	}
	t.Fatalf("%s does not see %s", n.Host.Name, peer)
	return time.Time{}
}

// TestClocks is fault F11 at the nodes: each has a wall clock of its own, which may
// be wrong when it joins, and is set to something else while connections go on and
// while a handshake is under way. Nothing ends for that and nothing lasts longer,
// handshakes succeed, and a restart comes back.
func TestClocks(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	coordinator := l.Host("hub").Coordinator(t)
	coordinator.Admin("users", "create", "alice@example.com")
	coordinator.SetPolicy(clockPolicy(time.Now().Add(time.Hour)))
	join := func(name string, ahead time.Duration, key ...string) *lab.Node {
		h := l.Host(name)
		h.OwnClock(t, ahead)
		n := h.Daemon(t)
		n.Up(coordinator, coordinator.Key(key...))
		return n
	}
	// The database's clock is wrong all the time.
	db := join("db", -time.Hour, "--tags", "tag:db")
	web := join("web", 0, "--tags", "tag:web")
	lab.ServeTCP(t, web.Host, address(web, "-4", 5400))
	lab.ServeTCP(t, db.Host, address(db, "-4", 5400))
	cases := []struct {
		name       string
		at, to     time.Duration // the clock when it joins, and what it is set to
		relayed    bool
		node       *lab.Node
		tcp, until *lab.Stream
	}{
		{name: "right", to: -time.Hour},
		{name: "past", at: -10 * year, to: year, relayed: true},
		{name: "future", at: year, to: -10 * year},
	}
	for i := range cases {
		c := &cases[i]
		c.node = join(c.name, c.at, "--user", "alice@example.com")
		if c.relayed {
			c.node.Host.BlockUDP(db.Host)
			db.Host.BlockUDP(c.node.Host)
		}
		c.tcp = lab.StartTCP(t, c.node.Host, db.Host, address(db, "-4", 5410+i))
		c.until = lab.StartUDP(t, c.node.Host, db.Host, address(db, "-4", 5410+i))
	}

	// The clocks are set, in the middle of a first handshake with the web server.
	for i := range cases {
		c := &cases[i]
		c.tcp.LongestGap()
		c.until.LongestGap()
		first := make(chan error, 1)
		target, ctx := address(web, "-4", 5400), within(t, rekeyWithin)
		go func() { first <- lab.EchoTCP(ctx, c.node.Host, target) }()
		c.node.Host.SetClock(c.to)
		if err := <-first; err != nil {
			t.Errorf("%s: a handshake during which the clock was set: %v", c.name, err)
		}
	}

	// A rule ends when it does by the coordinator's clock, which is right.
	end := time.Now().Add(12 * time.Second).Truncate(time.Second)
	coordinator.SetPolicy(clockPolicy(end))
	ended := time.NewTimer(time.Until(end.Add(2*time.Second + lab.Quiet)))
	defer ended.Stop()
	<-ended.C
	for i := range cases {
		c := &cases[i]
		last := c.until.Last().Sub(end)
		t.Logf("%s: the last packet came %v after the end of its rule", c.name, last)
		if last < -steady || last > 2*time.Second {
			t.Errorf("%s: the last packet came %v after the end of its rule", c.name, last)
		}
	}

	// The handshakes after that.
	for i := range cases {
		c := &cases[i]
		before := handshake(t, db, c.name)
		lab.Eventually(t, rekeyEvery+2*rekeyWithin, func() error {
			if !handshake(t, db, c.name).After(before) {
				return fmt.Errorf("%s: the last handshake was at %v", c.name, before)
			}
			return nil
		})
		took := handshake(t, db, c.name).Sub(before)
		t.Logf("%s: the next handshake came after %v", c.name, took)
		if took > rekeyEvery+rekeyWithin {
			t.Errorf("%s: the next handshake came after %v", c.name, took)
		}
	}
	for i := range cases {
		c := &cases[i]
		c.tcp.Alive(t)
		if gap := c.tcp.LongestGap(); gap > steady {
			t.Errorf("%s: a gap of %v in a connection", c.name, gap)
		}
		c.node.Stop()
		c.node.Start()
		begin, target := time.Now(), address(db, "-4", 5400)
		lab.Eventually(t, rekeyWithin, func() error { return lab.EchoTCP(within(t, rekeyWithin), c.node.Host, target) })
		t.Logf("%s: back %v after a restart", c.name, time.Since(begin))
		lab.Eventually(t, rekeyWithin, func() error {
			if health := fmt.Sprint(c.node.Status()["health"]); !strings.Contains(health, "clock-skew") {
				return fmt.Errorf("%s: nothing is said of the wrong clock: %s", c.name, health)
			}
			return nil
		})
	}
}

// TestCoordinatorClock is fault F11 at the coordinator, whose relay goes by the
// same clock: connections go on, over the relay too, and devices join.
func TestCoordinatorClock(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	hub := l.Host("hub")
	hub.OwnClock(t, 0)
	coordinator := hub.Coordinator(t)
	coordinator.Admin("users", "create", "alice@example.com")
	coordinator.SetPolicy(clockPolicy(time.Now().Add(24 * time.Hour)))
	join := func(name string, key ...string) *lab.Node {
		n := l.Host(name).Daemon(t)
		n.Up(coordinator, coordinator.Key(key...))
		return n
	}
	db := join("db", "--tags", "tag:db")
	lab.ServeTCP(t, db.Host, address(db, "-4", 5400))
	laptop, far := join("laptop", "--user", "alice@example.com"), join("far", "--user", "alice@example.com")
	far.Host.BlockUDP(db.Host)
	db.Host.BlockUDP(far.Host)
	streams := map[string]*lab.Stream{
		"directly": lab.StartTCP(t, laptop.Host, db.Host, address(db, "-4", 5410)), "over the relay": lab.StartTCP(t, far.Host, db.Host, address(db, "-4", 5411)),
	}
	for i, ahead := range []time.Duration{time.Hour, 0, -time.Hour} {
		for _, s := range streams {
			s.LongestGap()
		}
		hub.SetClock(ahead)
		relayed := after(streams["over the relay"], 20*time.Second)
		direct := streams["directly"].LongestGap()
		t.Logf("the coordinator's clock set to %v: a gap of %v over the relay, %v directly", ahead, relayed, direct)
		if relayed > failover || direct > steady {
			t.Errorf("the coordinator's clock set to %v: a gap of %v over the relay, %v directly", ahead, relayed, direct)
		}
		for _, s := range streams {
			s.Alive(t)
		}
		guest := join(fmt.Sprintf("guest%d", i), "--user", "alice@example.com")
		lab.Eventually(t, 30*time.Second, func() error {
			return lab.EchoTCP(within(t, rekeyWithin), guest.Host, address(db, "-4", 5400))
		})
		if health := fmt.Sprint(guest.Status()["health"]); strings.Contains(health, "clock-skew") != (ahead != 0) {
			t.Errorf("the coordinator's clock set to %v, and a new device says: %s", ahead, health)
		}
	}
}
