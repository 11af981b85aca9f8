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
		{"corrupt", Impairment{Corrupt: 0.2}, func(p *Pulse) error {
			_, wrong := p.Faults()
			return counted("arrived otherwise", int64(wrong))
		}},
	} {
		line.Impair(Impairment{})
		p := StartPulse(t, far, near, netip.AddrPortFrom(near.V4, 0).String())
		if repeated, wrong := p.Faults(); repeated+wrong > 0 {
			t.Errorf("%s: %d repeated and %d wrong without impairment", c.name, repeated, wrong)
		}
		line.Impair(c.m)
		Eventually(t, 10*time.Second, func() error { return c.want(p) })
	}
}

func counted(what string, n int64) error {
	if n < 5 {
		return fmt.Errorf("%d packets %s", n, what)
	}
	return nil
}
