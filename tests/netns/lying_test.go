//go:build linux

package netns

import (
	"fmt"
	"testing"
	"time"

	"github.com/warren-overlay/warren/tests/lab"
)

// TestLyingRelay is fault F17 at the relay: one of two says of members who are connected
// that they are gone, or that a node's admission is revoked. What it carried goes on,
// over it where there is no other, and over the other within 5 s; a direct path does not
// notice.
func TestLyingRelay(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	evilHost, goodHost := l.Host("evil"), l.Host("good")
	evilConfig, goodConfig := lab.RelayConfig{Name: "evil", Datagrams: true}, lab.RelayConfig{Name: "good", Datagrams: true}
	coordinator := l.Host("hub").Coordinator(t, "--builtin-relay=false",
		"--relay", evilHost.RelayEntry(evilConfig), "--relay", goodHost.RelayEntry(goodConfig))
	evil, good := evilHost.HostileRelay(t, coordinator, evilConfig), goodHost.Relay(t, coordinator, goodConfig)
	coordinator.Admin("users", "create", "alice@example.com")
	coordinator.SetPolicy(hostilePolicy)
	var nodes []*lab.Node
	for _, name := range []string{"laptop", "db", "web"} {
		h := l.Host(name)
		if name == "db" {
			h.BlockUDP(nodes[0].Host)
			nodes[0].Host.BlockUDP(h)
		}
		n := h.Daemon(t, "--metrics-listen", "127.0.0.1:"+metricsPort)
		n.Up(coordinator, coordinator.Key("--user", "alice@example.com"))
		nodes = append(nodes, n)
	}
	laptop, db, web := nodes[0], nodes[1], nodes[2]
	up := lab.StartPulse(t, laptop.Host, db.Host, address(db, "-4", 7002))
	down := lab.StartPulse(t, db.Host, laptop.Host, address(laptop, "-4", 7003))
	stream := lab.StartTransfer(t, laptop.Host, db.Host, address(db, "-4", 7000))
	straight := lab.StartPulse(t, laptop.Host, web.Host, address(web, "-4", 7004))
	eventuallyDirect(t, laptop, web)
	on := func(name string) error {
		for _, pair := range [][2]*lab.Node{{laptop, db}, {db, laptop}} {
			if over := relayTo(t, pair[0], pair[1].Host.Name); over != name {
				return fmt.Errorf("%s reaches %s over %q", pair[0].Host.Name, pair[1].Host.Name, over)
			}
		}
		return nil
	}
	steady := func() {
		for _, p := range []*lab.Pulse{up, down, straight} {
			p.Steady(t, 30*time.Second)
		}
	}
	events := func(event string) float64 {
		return metric(t, laptop, "warren_relay_events_total", fmt.Sprintf("event=%q", event)) + metric(t, db, "warren_relay_events_total", fmt.Sprintf("event=%q", event))
	}
	for _, c := range []struct {
		name     string
		mischief lab.Mischief
		good     bool   // whether the other relay is there
		counted  string // what of
	}{
		{"without another relay", lab.SayGone, false, "peer_gone"},
		{"and there is another", lab.SayGone, true, "peer_gone"},
		{"with another relay", lab.SayRevoked, true, "connection_lost"},
	} {
		name := fmt.Sprintf("%v, %s", c.mischief, c.name)
		if c.mischief != lab.SayGone || !c.good { // else the lies only go on
			evil.Do(lab.Honest)
			good.Kill()
			lab.Eventually(t, 30*time.Second, func() error { return on("evil") })
		}
		steady()
		flaps, before, begin := relayFlaps(laptop, web)+relayFlaps(web, laptop), events(c.counted), time.Now()
		if c.good {
			good.Start()
			connectedTo(t, 2, laptop, db)
		}
		evil.Do(c.mischief)
		lies := time.NewTimer(failover)
		<-lies.C
		steady()
		relayed, direct := max(up.Gap(begin), down.Gap(begin)), straight.Gap(begin)
		t.Logf("%-32s %d datagrams and %d frames; nothing for %v, TCP %v, and directly for %v", name, evil.Datagrams.Load(), evil.Frames.Load(), relayed, stream.Gap(begin), direct)
		if relayed > failover {
			t.Errorf("%s: nothing for %v", name, relayed)
		}
		if direct > time.Second {
			t.Errorf("%s: nothing by the direct path for %v", name, direct)
		}
		if got := relayFlaps(laptop, web) + relayFlaps(web, laptop) - flaps; got != 0 {
			t.Errorf("%s: the direct path was left %d times", name, got)
		}
		if events(c.counted) == before {
			t.Errorf("%s: nothing is counted as %s", name, c.counted)
		}
		want := "evil"
		if c.good {
			want = "good"
		}
		if err := on(want); err != nil {
			t.Errorf("%s: it does not go by the relay %q: %v", name, want, err)
		}
	}
	checkFaults(t, "a lying relay", map[string]*lab.Pulse{"up": up, "down": down, "straight": straight})
	t.Logf("%d bytes arrived as they were sent", stream.Finish(t))
}
