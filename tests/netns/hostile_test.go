//go:build linux

package netns

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/tests/lab"
)

// hostilePolicy lets everybody reach the database, and the web server.
const hostilePolicy = `{
	"tagOwners": {"tag:db": ["alice@example.com"], "tag:web": ["alice@example.com"]},
	"grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}],
}`

// TestHostileRelay is fault F20: one of two relays, which the coordinator's
// configuration names and which admits nodes as it should, does to packets what its
// operator likes. Nothing that nobody sent, or that was delivered before, is
// delivered, connections carry what was sent, and where the relay does not carry
// packets any more the nodes are at the other within 5 s. It does so to datagrams,
// which two of the nodes have with it, and to what goes inside HTTPS, as all that the
// others have.
//
// One that carries the nodes' questions whether it works, and drops what is the
// tunnel's, or one direction of it, is found out as well, and both ends say so; one that
// drops long packets only, by who sends some.
func TestHostileRelay(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	evilHost, goodHost := l.Host("evil"), l.Host("good")
	evilConfig, goodConfig := lab.RelayConfig{Name: "evil", Datagrams: true}, lab.RelayConfig{Name: "good", Datagrams: true}
	coordinator := l.Host("hub").Coordinator(t, "--builtin-relay=false",
		"--relay", evilHost.RelayEntry(evilConfig), "--relay", goodHost.RelayEntry(goodConfig))
	evil := evilHost.HostileRelay(t, coordinator, evilConfig)
	good := goodHost.Relay(t, coordinator, goodConfig)
	coordinator.Admin("users", "create", "alice@example.com")
	coordinator.SetPolicy(hostilePolicy)
	var nodes []*lab.Node
	datagrams := map[*lab.Node]bool{}
	for _, name := range []string{"laptop", "db", "web", "box"} {
		n := l.Host(name).Daemon(t, "--metrics-listen", "127.0.0.1:"+metricsPort)
		for _, other := range nodes {
			n.Host.BlockUDP(other.Host)
			other.Host.BlockUDP(n.Host)
		}
		if datagrams[n] = len(nodes) < 2; !datagrams[n] {
			n.Host.BlockUDP(evilHost)
			n.Host.BlockUDP(goodHost)
		}
		n.Up(coordinator, coordinator.Key("--user", "alice@example.com"))
		nodes = append(nodes, n)
	}
	laptop, db, web, box := nodes[0], nodes[1], nodes[2], nodes[3]
	up := lab.StartPulse(t, laptop.Host, db.Host, address(db, "-4", 7002))
	down := lab.StartPulse(t, db.Host, laptop.Host, address(laptop, "-4", 7003))
	// All four have traffic with each other, so that they are at one relay.
	other := lab.StartPulse(t, laptop.Host, web.Host, address(web, "-4", 7004))
	foreign := lab.StartPulse(t, web.Host, db.Host, address(db, "-4", 7005))
	framed := lab.StartPulse(t, web.Host, box.Host, address(box, "-4", 7006))
	pulses := map[string]*lab.Pulse{
		"laptop to db": up, "db to laptop": down, "laptop to web": other, "web to db": foreign, "web to box": framed,
	}
	stream := lab.StartTransfer(t, laptop.Host, db.Host, address(db, "-4", 7000))
	framedStream := lab.StartTransfer(t, web.Host, box.Host, address(box, "-4", 7001))

	on := func(name string) func() error {
		return func() error {
			for _, pair := range [][2]*lab.Node{{laptop, db}, {db, laptop}, {laptop, web}, {web, db}, {web, box}, {box, web}} {
				if over := relayTo(t, pair[0], pair[1].Host.Name); over != name {
					return fmt.Errorf("%s reaches %s over %q", pair[0].Host.Name, pair[1].Host.Name, over)
				}
			}
			return nil
		}
	}
	for _, mischief := range []lab.Mischief{
		lab.Reorder, lab.Duplicate, lab.Replay, lab.SwapSource, lab.WrongPeer, lab.Corrupt, lab.Drop, lab.DropData,
		lab.DropDataOneWay, lab.DropLong,
	} {
		evil.Do(lab.Honest)
		good.Kill()
		lab.Eventually(t, 30*time.Second, on("evil"))
		good.Start()
		connectedTo(t, 2, nodes...)
		for _, n := range nodes {
			byDatagrams(t, n, datagrams[n], 30*time.Second)
		}
		for _, p := range pulses {
			p.Steady(t, 30*time.Second)
		}
		received := metric(t, db, "warren_inbound_packets_total", `path="relay"`)

		begin := time.Now()
		evil.Do(mischief)
		mean := time.NewTimer(8 * time.Second)
		<-mean.C
		done, frames := evil.Datagrams.Load(), evil.Frames.Load()
		var gap time.Duration
		for _, p := range pulses {
			p.Steady(t, 30*time.Second)
			gap = max(gap, p.Gap(begin))
		}
		t.Logf("%-12v %5d datagrams, %5d frames; gaps of %v out, %v back, %v and %v of others, %v of frames only, %v and %v of TCP; now %s", mischief, done, frames,
			up.Gap(begin), down.Gap(begin), other.Gap(begin), foreign.Gap(begin), framed.Gap(begin), stream.Gap(begin), framedStream.Gap(begin),
			strings.Join(strings.Fields(path(t, laptop, "db"))[1:], " "))
		if gap > failover {
			t.Errorf("%v: a gap of %v", mischief, gap)
		}
		for way, n := range map[string]int64{"datagrams": done, "frames": frames} {
			if n < 20 && mischief != lab.DropLong || n == 0 {
				t.Errorf("%v: done to %d %s only", mischief, n, way)
			}
		}
		if got := metric(t, db, "warren_inbound_packets_total", `path="relay"`); got <= received {
			t.Errorf("%v: no packets came over relays", mischief)
		}
		for name, p := range pulses {
			if repeated, wrong := p.Faults(); repeated != 0 || wrong != 0 {
				t.Errorf("%v: %s: %d datagrams were delivered twice, and %d that nobody sent", mischief, name, repeated, wrong)
			}
		}
		switch mischief {
		case lab.WrongPeer, lab.Corrupt, lab.Drop:
			if err := on("good")(); err != nil {
				t.Errorf("%v: the relay is not left: %v", mischief, err)
			}
		case lab.DropData, lab.DropDataOneWay:
			if err := on("good")(); err != nil {
				t.Errorf("%v: the relay is not left: %v", mischief, err)
			}
			for _, pair := range [][2]*lab.Node{{laptop, db}, {db, laptop}, {web, box}, {box, web}} {
				out := pair[0].CLI("debug", "paths", pair[1].Host.Name)
				if !strings.Contains(out, "carries no data to this device") {
					t.Errorf("%v: %s says of its paths:\n%s", mischief, pair[0].Host.Name, out)
				}
			}
		case lab.DropLong:
			// A check is as long as such packets every other time.
			lab.Eventually(t, 30*time.Second, func() error {
				for _, pair := range [][2]*lab.Node{{laptop, db}, {web, box}} {
					if name := relayTo(t, pair[0], pair[1].Host.Name); name != "good" {
						return fmt.Errorf("%v: %s reaches %s over %q", mischief, pair[0].Host.Name, pair[1].Host.Name, name)
					}
				}
				return nil
			})
		}
	}
	t.Logf("%d bytes by datagrams and %d inside HTTPS arrived as they were sent", stream.Finish(t), framedStream.Finish(t))
}
