//go:build linux

package netns

import (
	"fmt"
	"testing"
	"time"

	"github.com/warren-overlay/warren/tests/lab"
)

// upgradeStall is how long a stream's bytes may stay out at an upgrade: what goes
// directly overtakes what is on its way over the relay, for which the receiver waits
// as long as that is, 40 ms here. 200 ms is the least time-out of Linux (RFC 6298
// with its own minimum): a stall of as long would be one. It comes on top of what
// datagrams wait for.
const upgradeStall = 200 * time.Millisecond

// TestUpgrade has a pair begin on a relay that is 40 ms away, under TCP and numbered
// datagrams in both directions, and lets it find a direct path then, which is some
// hundred times as fast: not one datagram is lost, every byte of TCP arrives as it was
// sent, and its reader never waits for a time-out.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	i := lab.NewInternet(t)
	hub, line := i.PublicByLine("hub", 3)
	n := newTravellersAt(t, i, hub)
	hosts := [2]*lab.Host{i.Public("a"), i.Public("b")}
	hosts[0].BlockUDP(hosts[1])
	hosts[1].BlockUDP(hosts[0])
	a, b := n.join(t, hosts[0]), n.join(t, hosts[1])
	line.Impair(lab.Impairment{Delay: 20 * time.Millisecond})
	pulses := []*lab.Pulse{
		lab.StartPulse(t, a.Host, b.Host, address(b, "-4", 7000)),
		lab.StartPulse(t, b.Host, a.Host, address(a, "-6", 7001)),
	}
	streams := []*lab.Transfer{
		lab.StartBulk(t, a.Host, b.Host, address(b, "-6", 7002)),
		lab.StartBulk(t, b.Host, a.Host, address(a, "-4", 7003)),
	}
	if there, back := pathKind(t, a, b), pathKind(t, b, a); there != "relay" || back != "relay" {
		t.Fatalf("before the upgrade: %s there, %s back", there, back)
	}

	type mark struct {
		sent             uint64
		overtaken        int
		resent, timeouts uint32
	}
	begin := time.Now()
	marks := make([]mark, len(pulses))
	for j := range marks {
		info := streams[j].Info(t)
		marks[j] = mark{pulses[j].Sent(), pulses[j].Overtaken(), info.Total_retrans, uint32(info.Total_rto)}
	}
	for _, h := range hosts {
		h.UnblockUDP()
	}
	eventuallyDirect(t, a, b)
	t.Logf("direct %v after nothing was in the way any more", time.Since(begin))
	for j, p := range pulses {
		p.Steady(t, 30*time.Second)
		end := p.Sent()
		lab.Eventually(t, 10*time.Second, func() error {
			if lost := p.Missing(marks[j].sent, end); lost > 0 {
				return fmt.Errorf("%d of %d datagrams have not arrived", lost, end-marks[j].sent)
			}
			return nil
		})
		info := streams[j].Info(t)
		// Nothing holds datagrams back: what they wait for is the machine, and TCP with them.
		stall, pause := streams[j].Gap(begin), p.Gap(begin)
		t.Logf("direction %d: 0 of %d datagrams lost, %d overtaken, nothing for %v; TCP stood still for %v, with %d time-outs, and sent %d segments again, of which it learnt that %d were needless; reordering %d",
			j, end-marks[j].sent, p.Overtaken()-marks[j].overtaken, pause, stall, uint32(info.Total_rto)-marks[j].timeouts, info.Total_retrans-marks[j].resent, info.Dsack_dups, info.Reordering)
		if pause > rebindLimit || stall > pause+upgradeStall {
			t.Errorf("direction %d: datagrams stood still for %v, TCP for %v", j, pause, stall)
		}
		if repeated, wrong := p.Faults(); repeated+wrong > 0 {
			t.Errorf("direction %d: %d datagrams arrived twice, %d that nobody sent", j, repeated, wrong)
		}
	}
	for j, x := range streams {
		t.Logf("direction %d: %d bytes arrived as they were sent", j, x.Finish(t))
	}
}
