//go:build linux

package netns

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/warren-overlay/warren/tests/lab"
)

// roamLimit is ROAM of reliability.md.
const roamLimit = 3 * time.Second

// TestRoaming is fault F09: a laptop goes from network to network, by another
// address, another interface, and a network without IPv4, and loses its way out
// for a while. The same TCP connections go on, and every byte arrives.
func TestRoaming(t *testing.T) {
	t.Parallel()
	n := newTravellers(t)
	home := n.internet.Gateway("home", lab.GatewayConfig{NAT: lab.PortRestricted, NoIPv6: true})
	office := n.internet.Gateway("office", lab.GatewayConfig{NAT: lab.Symmetric, NoIPv6: true})
	mobile := n.internet.Gateway("mobile", lab.GatewayConfig{NoIPv4: true})
	host := home.Join("laptop")
	laptop, db := n.join(t, host), n.join(t, n.internet.Public("db"))
	eventuallyRouted(t, laptop, db)
	upload := lab.StartTransfer(t, laptop.Host, db.Host, address(db, "-4", 7000))
	download := lab.StartTransfer(t, db.Host, laptop.Host, address(laptop, "-4", 7001))
	up := lab.StartPulse(t, laptop.Host, db.Host, address(db, "-4", 7002))
	down := lab.StartPulse(t, db.Host, laptop.Host, address(laptop, "-4", 7003))

	at, number := "eth0", 0
	move := func(to *lab.Gateway) func() time.Time {
		return func() time.Time {
			host.Unplug(at)
			number++
			at = fmt.Sprintf("eth%d", number)
			to.Attach(host, at)
			return time.Now()
		}
	}
	events := []struct {
		name string
		do   func() time.Time // returns when there was a way again
	}{
		{"another address", func() time.Time {
			number++
			host.Renumber(at, fmt.Sprintf("192.168.1.%d/24", 100+number%100))
			return time.Now()
		}},
		{"another network, symmetric", move(office)},
		{"the default route lost", func() time.Time {
			host.Unroute("0.0.0.0/0")
			lost := time.NewTimer(10 * time.Second)
			defer lost.Stop()
			<-lost.C
			host.Route("0.0.0.0/0", "192.168.1.1")
			return time.Now()
		}},
		{"another network, IPv6 only", move(mobile)},
		{"another network, port-restricted", move(home)},
	}
	var gaps []time.Duration
	for i := range times(len(events), 50) {
		event := events[i%len(events)]
		back := event.do()
		up.Steady(t, 30*time.Second)
		down.Steady(t, 30*time.Second)
		gap := max(up.Gap(back), down.Gap(back))
		gaps = append(gaps, gap)
		t.Logf("%-34s up %v, down %v; TCP %v, %v", event.name, up.Gap(back), down.Gap(back), upload.Gap(back), download.Gap(back))
	}
	nobodyStrays(t, laptop, db)
	slices.Sort(gaps)
	if p95 := gaps[len(gaps)*95/100]; p95 > roamLimit {
		t.Errorf("of %d events, 95 of 100 took %v or less", len(gaps), p95)
	}
	t.Logf("%d and %d bytes arrived as they were sent", upload.Finish(t), download.Finish(t))
}

// rejectAfter is WireGuard's REJECT_AFTER_TIME, in seconds.
const rejectAfter = 180

// stoppedPolicy is pathsPolicy, and a rule for further ports that ends.
func stoppedPolicy(end time.Time) string {
	return fmt.Sprintf(`{
	"tagOwners": {"tag:node": ["alice@example.com"]},
	"grants": [{"src": ["tag:node"], "dst": ["tag:node"], "ip": ["tcp:7000-7049", "udp:7000-7049", "icmp:*", "ipv6-icmp:*"]}],
	"acls": [{"id": "until", "action": "accept", "src": ["tag:node"], "proto": "udp", "dst": ["tag:node:7050-7099"], "notAfter": %q}],
}`, end.UTC().Format(time.RFC3339))
}

// TestStopped is fault F12: the daemon does nothing for a while, as on a machine
// that sleeps. When it goes on, so does the traffic; and of what a rule allowed that
// has ended in the meantime it lets not one packet pass, though hundreds that were sent
// before the end wait for it, both those of its own host and those of its peer.
func TestStopped(t *testing.T) {
	t.Parallel()
	n := newTravellers(t)
	g := n.internet.Gateway("gateway", lab.GatewayConfig{NAT: lab.PortRestricted, NoIPv6: true})
	laptop, db := n.join(t, g.Join("laptop")), n.join(t, n.internet.Public("db"))
	eventuallyRouted(t, laptop, db)
	upload := lab.StartTransfer(t, laptop.Host, db.Host, address(db, "-4", 7000))
	up := lab.StartPulse(t, laptop.Host, db.Host, address(db, "-4", 7002))
	down := lab.StartPulse(t, db.Host, laptop.Host, address(laptop, "-4", 7003))
	eventuallyDirect(t, laptop, db)
	refused := func(at *lab.Node, direction string) float64 {
		return metric(t, at, "warren_"+direction+"_dropped_packets_total", `reason="drop_no_rule"`)
	}

	longest := 0
	for i, wait := range stops() {
		longest = max(longest, wait)
		// It ends while the daemon is stopped, as long as that needs to begin.
		end := time.Now().Add(25 * time.Second).Truncate(time.Second)
		n.coordinator.SetPolicy(stoppedPolicy(end))
		ending := map[string]*lab.Pulse{
			"up":   lab.StartPulse(t, laptop.Host, db.Host, address(db, "-4", 7050+i)),
			"down": lab.StartPulse(t, db.Host, laptop.Host, address(laptop, "-4", 7060+i)),
		}
		out, in, late := refused(laptop, "outbound"), refused(laptop, "inbound"), refused(db, "inbound")
		laptop.Signal(syscall.SIGSTOP)
		lab.Eventually(t, 10*time.Second, func() error {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", laptop.Pid()))
			if err == nil && !strings.Contains(string(text), "State:\tT") {
				err = errors.New("the daemon is not stopped")
			}
			return err
		})
		if now := time.Now(); !now.Before(end.Add(-time.Second)) {
			t.Fatalf("the rule ended %v before the daemon was stopped", now.Sub(end))
		}
		sent := map[string]uint64{"up": ending["up"].Sent(), "down": ending["down"].Sent()}
		asleep := time.NewTimer(max(time.Duration(wait)*time.Second, time.Until(end.Add(2*time.Second))))
		defer asleep.Stop()
		<-asleep.C
		back := time.Now()
		laptop.Signal(syscall.SIGCONT)
		up.Steady(t, 30*time.Second)
		down.Steady(t, 30*time.Second)
		t.Logf("after %d s: up %v, down %v, TCP %v", wait, up.Gap(back), down.Gap(back), upload.Gap(back))
		if gap := max(up.Gap(back), down.Gap(back)); gap > 3*time.Second {
			t.Errorf("traffic was back after %v", gap)
		}

		// Everything that waited has come to the filter; but WireGuard opens nothing any
		// more that was sealed with keys of so long ago.
		least := 10.0
		if wait >= rejectAfter {
			least = 0
		}
		lab.Eventually(t, 30*time.Second, func() error {
			if o, i := refused(laptop, "outbound")-out, refused(laptop, "inbound")-in; o < 10 || i < least {
				return fmt.Errorf("of what waited while the daemon was stopped, %v were refused on their way out and %v on their way in", o, i)
			}
			return nil
		})
		for name, p := range ending {
			p.Stop()
			if last := p.Highest(); last > sent[name] {
				t.Errorf("%s: datagrams up to %d of those that waited passed after their rule had ended; the last before was %d", name, last, sent[name])
			}
		}
		// The database must not be what saves the laptop.
		if got := refused(db, "inbound") - late; got != 0 {
			t.Errorf("the laptop sent %v packets whose rule had ended", got)
		}
		t.Logf("refused after their rule had ended: %v on their way out, %v on their way in", refused(laptop, "outbound")-out, refused(laptop, "inbound")-in)
	}
	nobodyStrays(t, laptop, db)
	// TCP has doubled the time between its repetitions all the while.
	upload.Steady(t, time.Duration(longest+30)*time.Second)
	upload.Finish(t)
}
