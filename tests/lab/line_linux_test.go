package lab

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// TestLine: a line passes both families, TCP and UDP, and each impairment does
// what it says and is counted.
func TestLine(t *testing.T) {
	internet := NewInternet(t)
	near := internet.Public("near")
	far, line := internet.PublicByLine("far", 1)
	for _, at := range []netip.Addr{near.V4, near.V6} {
		to := netip.AddrPortFrom(at, 7).String()
		ServeTCP(t, near, to)
		if err := EchoTCP(within(t), far, to); err != nil {
			t.Errorf("%v: %v", at, err)
		}
	}
	for _, c := range []struct {
		name string
		m    Impairment
		want func(p *Pulse) error
	}{
		{"loss", Impairment{Loss: 0.2}, func(*Pulse) error { return counted("lost", line.Lost.Load()) }},
		{"duplicate", Impairment{Duplicate: 0.2}, func(p *Pulse) error {
			repeated, _ := p.Faults()
			return counted("arrived twice", int64(repeated))
		}},
		{"reorder", Impairment{Reorder: 0.2, Jitter: time.Millisecond}, func(*Pulse) error { return counted("reordered", line.Reordered.Load()) }},
	} {
		line.Impair(Impairment{})
		p := startClean(t, far, near, near.V4)
		line.Impair(c.m)
		Eventually(t, 10*time.Second, func() error { return c.want(p) })
		if repeated, wrong := p.Faults(); wrong > 0 || repeated > 0 && c.m.Duplicate == 0 {
			t.Errorf("%s: %d repeated and %d wrong", c.name, repeated, wrong)
		}
	}
}

// TestCorruptingLine: what a line corrupts arrives, over both families, and it counts
// that and nothing else. TCP passes.
func TestCorruptingLine(t *testing.T) {
	internet := NewInternet(t)
	near := internet.Public("near")
	far, line := internet.PublicByLine("far", 1)
	for _, at := range []netip.Addr{near.V4, near.V6} {
		p := startClean(t, far, near, at)
		line.Corrupted.Store(0)
		line.Impair(Impairment{Corrupt: 0.2})
		Eventually(t, 10*time.Second, func() error {
			_, wrong := p.Faults()
			return counted("arrived otherwise", int64(wrong))
		})
		line.Impair(Impairment{})
		p.Stop()
		Eventually(t, 10*time.Second, func() error {
			if _, wrong := p.Faults(); int64(wrong) != line.Corrupted.Load() {
				return fmt.Errorf("%d packets corrupted, %d arrived so", line.Corrupted.Load(), wrong)
			}
			return nil
		})

		line.Corrupted.Store(0)
		line.Impair(Impairment{Corrupt: 1})
		to := netip.AddrPortFrom(at, 7).String()
		ServeTCP(t, near, to)
		if err := EchoTCP(within(t), far, to); err != nil {
			t.Errorf("%v: %v", at, err)
		}
		if n := line.Corrupted.Swap(0); n != 0 {
			t.Errorf("%d packets of TCP are counted", n)
		}
		line.Impair(Impairment{})
	}
}

// startClean starts a Pulse over a line that does nothing to it.
func startClean(t *testing.T, from, to *Host, at netip.Addr) *Pulse {
	t.Helper()
	p := StartPulse(t, from, to, netip.AddrPortFrom(at, 0).String())
	if repeated, wrong := p.Faults(); repeated+wrong > 0 {
		t.Errorf("%d repeated and %d wrong without impairment", repeated, wrong)
	}
	return p
}

// TestLineDelays: a delay is that of each direction, and packets stay in order.
func TestLineDelays(t *testing.T) {
	internet := NewInternet(t)
	near := internet.Public("near")
	far, line := internet.PublicByLine("far", 1)
	to := netip.AddrPortFrom(near.V4, 7).String()
	ServeUDP(t, near, to)
	const delay = 30 * time.Millisecond
	line.Impair(Impairment{Delay: delay})
	begin := time.Now()
	if err := EchoUDP(within(t), far, to); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < 2*delay {
		t.Errorf("an echo takes %v by a line of %v", took, delay)
	}
	p := StartPulse(t, far, near, netip.AddrPortFrom(near.V4, 0).String())
	if n := p.Overtaken(); n > 0 {
		t.Errorf("%d packets were overtaken", n)
	}
	if n := p.Missing(0, p.Highest()); n > 0 {
		t.Errorf("%d packets of %d are missing", n, p.Highest())
	}
}

func counted(what string, n int64) error {
	if n < 5 {
		return fmt.Errorf("%d packets %s", n, what)
	}
	return nil
}
