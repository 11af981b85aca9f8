//go:build linux

package netns

import (
	"fmt"
	"slices"
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

// TestStopped is fault F12: the daemon does nothing for a while, as on a machine
// that sleeps. When it goes on, so does the traffic, and what has ended in the
// meantime lets not one packet pass.
func TestStopped(t *testing.T) {
	t.Parallel()
	n := newTravellers(t)
	g := n.internet.Gateway("gateway", lab.GatewayConfig{NAT: lab.PortRestricted, NoIPv6: true})
	laptop, db := n.join(t, g.Join("laptop")), n.join(t, n.internet.Public("db"))
	upload := lab.StartTransfer(t, laptop.Host, db.Host, address(db, "-4", 7000))
	up := lab.StartPulse(t, laptop.Host, db.Host, address(db, "-4", 7002))
	down := lab.StartPulse(t, db.Host, laptop.Host, address(laptop, "-4", 7003))
	eventuallyDirect(t, laptop, db)

	longest := 0
	for _, wait := range stops() {
		longest = max(longest, wait)
		laptop.Signal(syscall.SIGSTOP)
		asleep := time.NewTimer(time.Duration(wait) * time.Second)
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
	}
	nobodyStrays(t, laptop, db)
	// TCP has doubled the time between its repetitions all the while.
	upload.Steady(t, time.Duration(longest+30)*time.Second)
	upload.Finish(t)
}
