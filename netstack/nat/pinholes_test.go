package nat

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

var gateway6 = netip.MustParseAddr("fe80::1%eth0")

// own returns a global address of this device.
func own(n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%x", n)) }

func newPinholes() *Pinholes {
	return NewPinholes(netip.MustParsePrefix("2001:db8:77::/48").Contains, epoch)
}

// opened is what a firewall grants to r.
func opened(r MapRequest, lifetime time.Duration) Grant {
	return Grant{Protocol: MapPCP, Gateway: gateway6, Internal: r.Internal, Port: r.Port, External: netip.AddrPortFrom(r.Internal, r.Port), Lifetime: lifetime}
}

// openAll answers every request that is due, and returns the addresses that were
// asked for.
func openAll(t *testing.T, p *Pinholes, lifetime time.Duration, now time.Time) (asked []netip.Addr) {
	t.Helper()
	for {
		r, ok := p.NextRequest()
		if !ok {
			return asked
		}
		if _, twice := p.NextRequest(); twice {
			t.Fatal("two requests at a time")
		}
		if err := p.HandleGrant(r.ID, opened(r, lifetime), nil, now); err != nil {
			t.Fatal(err)
		}
		asked = append(asked, r.Internal)
	}
}

// released drains what is to be deleted.
func released(p *Pinholes) (out []netip.Addr) {
	for {
		g, ok := p.NextRelease()
		if !ok {
			return out
		}
		out = append(out, g.Internal)
	}
}

// TestPinholes: each global address is asked for once, one after the other, and
// renewed at half its life; an address that comes is added, one that goes is
// forgotten, and all are deleted when they are not wanted any more.
func TestPinholes(t *testing.T) {
	p, now := newPinholes(), epoch
	addrs := []netip.Addr{own(1), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("192.168.1.2"), netip.MustParseAddr("::ffff:5.5.0.1"), netip.MustParseAddr("fe80::2"), netip.MustParseAddr("2001:db8:77::1"), netip.MustParseAddr("::1"), own(2), own(1)}
	p.Set(false, 41641, addrs, now)
	if _, ok := p.NextTimeout(); ok || p.NextEvent() || p.Mappings() != nil {
		t.Fatal("something to do before it is wanted")
	}
	p.Set(true, 41641, addrs, now)
	if m := p.Mappings(); len(m) != 2 || m[0].State != MappingAsking || m[0].Internal != own(1) || m[1].Internal != own(2) || !p.NextEvent() {
		t.Fatalf("%+v", m)
	}
	if asked := openAll(t, p, time.Hour, now); !slices.Equal(asked, []netip.Addr{own(1), own(2)}) {
		t.Errorf("asked for %v", asked)
	}
	for _, m := range p.Mappings() {
		if m.State != MappingActive || m.External != netip.AddrPortFrom(m.Internal, 41641) || m.Gateway != gateway6 || m.Until != now.Add(time.Hour) {
			t.Errorf("%+v", m)
		}
	}
	if !p.NextEvent() || p.NextEvent() {
		t.Error("a change is told once")
	}
	if next, ok := p.NextTimeout(); !ok || next != now.Add(30*time.Minute) {
		t.Errorf("next at %v, %v", next, ok)
	}
	now = now.Add(30 * time.Minute)
	p.HandleTimeout(now)
	if asked := openAll(t, p, time.Hour, now); len(asked) != 2 || p.NextEvent() {
		t.Errorf("renewed %v", asked)
	}
	now = now.Add(time.Minute)
	p.Set(true, 41641, []netip.Addr{own(2), own(3)}, now)
	if asked := openAll(t, p, time.Hour, now); !slices.Equal(asked, []netip.Addr{own(3)}) || !p.NextEvent() {
		t.Errorf("asked for %v", asked)
	}
	if gone := released(p); gone != nil {
		t.Errorf("released %v, which is not this device's any more", gone)
	}
	p.Set(false, 41641, []netip.Addr{own(2), own(3)}, now)
	if gone := released(p); !slices.Equal(gone, []netip.Addr{own(2), own(3)}) || p.Mappings() != nil || !p.NextEvent() {
		t.Errorf("released %v", gone)
	}
	if next, ok := p.NextTimeout(); ok {
		t.Errorf("something to do at %v though it is off", next)
	}
	if s := p.Stats(); s.Requests != 5 || s.Grants != 5 {
		t.Errorf("%+v", s)
	}
}

// TestPinholesPort: another port is another pinhole, and the one before is
// deleted.
func TestPinholesPort(t *testing.T) {
	p, now := newPinholes(), epoch
	p.Set(true, 41641, []netip.Addr{own(1)}, now)
	openAll(t, p, time.Hour, now)
	now = now.Add(time.Minute)
	p.Set(true, 7000, []netip.Addr{own(1)}, now)
	g, ok := p.NextRelease()
	if !ok || g.Port != 41641 {
		t.Errorf("released %+v, %v", g, ok)
	}
	r, ok := p.NextRequest()
	if !ok || r.Port != 7000 || r.Wish.IsValid() {
		t.Errorf("asked for %+v, %v", r, ok)
	}
}

// TestPinholesCap: what a gateway is asked for is bounded, and those of before
// keep their place whatever comes first now.
func TestPinholesCap(t *testing.T) {
	p, now := newPinholes(), epoch
	var addrs []netip.Addr
	for i := range MaxPinholes {
		addrs = append(addrs, own(i+10))
	}
	p.Set(true, 41641, addrs, now)
	if asked := openAll(t, p, time.Hour, now); len(asked) != MaxPinholes || p.Stats().OverCap != 0 {
		t.Fatalf("asked for %v", asked)
	}
	now = now.Add(time.Minute)
	p.Set(true, 41641, append([]netip.Addr{own(1)}, addrs...), now)
	if asked := openAll(t, p, time.Hour, now); asked != nil || p.Stats().OverCap != 1 {
		t.Errorf("asked for %v, %d over the cap", asked, p.Stats().OverCap)
	}
}

// TestPinholesThatCannotBe: a gateway cannot have this device tell peers of
// another address than a global one outside of the overlay, nor answer for one
// address with another.
func TestPinholesThatCannotBe(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Grant)
		ok     bool
	}{
		{"its own", func(*Grant) {}, true},
		{"its own, another port", func(g *Grant) { g.External = netip.AddrPortFrom(g.Internal, 7) }, true},
		{"another prefix", func(g *Grant) { g.External = at("[2001:db8:2::1]:41641") }, true},
		{"the overlay's", func(g *Grant) { g.External = at("[2001:db8:77::1]:41641") }, false},
		{"unique local", func(g *Grant) { g.External = at("[fd00::1]:41641") }, false},
		{"link-local", func(g *Grant) { g.External = at("[fe80::1]:41641") }, false},
		{"multicast", func(g *Grant) { g.External = at("[ff02::1]:41641") }, false},
		{"loopback", func(g *Grant) { g.External = at("[::1]:41641") }, false},
		{"unspecified", func(g *Grant) { g.External = at("[::]:41641") }, false},
		{"IPv4", func(g *Grant) { g.External = at("5.5.0.1:41641") }, false},
		{"port 0", func(g *Grant) { g.External = netip.AddrPortFrom(g.Internal, 0) }, false},
		{"another address of ours", func(g *Grant) { g.Internal = own(2) }, false},
		{"IPv4 inside", func(g *Grant) { g.Internal = netip.Addr{} }, false},
		{"another port inside", func(g *Grant) { g.Port = 22 }, false},
	} {
		p := newPinholes()
		p.Set(true, 41641, []netip.Addr{own(1)}, epoch)
		r, _ := p.NextRequest()
		g := opened(r, time.Hour)
		c.change(&g)
		err := p.HandleGrant(r.ID, g, nil, epoch)
		m := p.Mappings()[0]
		if c.ok != (err == nil) || c.ok != (m.State == MappingActive) || !c.ok && (!errors.Is(err, ErrGrant) || m.External.IsValid() || p.Stats().Refused != 1) {
			t.Errorf("%s: %v, %+v", c.name, err, m)
		}
	}
}

// TestPinholesLate: an answer that comes after pinholes were switched off, or the
// network changed, opens nothing that stays.
func TestPinholesLate(t *testing.T) {
	p, now := newPinholes(), epoch
	p.Set(true, 41641, []netip.Addr{own(1), own(2)}, now)
	r, _ := p.NextRequest()
	if next, ok := p.NextTimeout(); p.NextEvent() && ok && next.After(now) {
		t.Errorf("next at %v", next)
	}
	if next, ok := p.NextTimeout(); ok {
		t.Errorf("wants to be called at %v while the gateway is asked", next)
	}
	p.HandleNetworkChange(now)
	if err := p.HandleGrant(r.ID, opened(r, time.Hour), nil, now); !errors.Is(err, ErrStaleGrant) || p.Mappings()[0].State != MappingAsking || released(p) != nil {
		t.Errorf("of another network: %v, %+v", err, p.Mappings())
	}
	now = now.Add(minAsking)
	p.HandleTimeout(now)
	r, _ = p.NextRequest()
	p.Set(false, 0, nil, now)
	if err := p.HandleGrant(r.ID, opened(r, time.Hour), nil, now); !errors.Is(err, ErrStaleGrant) || !slices.Equal(released(p), []netip.Addr{r.Internal}) {
		t.Errorf("after it was switched off: %v", err)
	}
	for range 2 * maxReleases {
		p.HandleGrant(r.ID, opened(r, time.Hour), nil, now)
	}
	if n := len(released(p)); n != maxReleases || p.Stats().Stale != 2+2*maxReleases {
		t.Errorf("%d are to be deleted, %+v", n, p.Stats())
	}
}

// FuzzPinholes has addresses come and go and a gateway answer anything: there is
// one request at a time, none is for an address that is not this device's, nothing
// is believed that cannot be, and what counts never shrinks.
func FuzzPinholes(f *testing.F) {
	f.Add(uint64(1), []byte{0, 3, 1, 7, 2, 9, 4, 1, 5, 200, 6, 3})
	f.Add(uint64(2), []byte{0, 0, 1, 0, 0, 0, 1, 1, 1, 2, 3, 0, 0, 1, 1, 2})
	f.Fuzz(func(t *testing.T, seed uint64, steps []byte) {
		rng := rand.New(rand.NewPCG(seed, 2))
		p, now := newPinholes(), epoch
		var outstanding MapRequest
		var addrs []netip.Addr
		on, before := false, uint64(0)
		for i := 0; i+1 < len(steps) && i < 2000; i += 2 {
			now = now.Add(time.Duration(steps[i+1]) * time.Duration(steps[i+1]) * 100 * time.Millisecond)
			switch steps[i] % 5 {
			case 0:
				on, addrs = rng.IntN(4) > 0, nil
				for range rng.IntN(2 * MaxPinholes) {
					addrs = append(addrs, own(rng.IntN(2*MaxPinholes)))
				}
				p.Set(on, uint16(1+rng.IntN(2)), addrs, now)
			case 1:
				if outstanding.ID == 0 {
					continue
				}
				g := opened(outstanding, time.Duration(rng.Int64N(int64(3*time.Hour))-int64(time.Minute)))
				if rng.IntN(5) == 0 {
					g.Internal = own(rng.IntN(2 * MaxPinholes))
				}
				if rng.IntN(5) == 0 {
					g.External = netip.AddrPortFrom(netip.MustParseAddr("2001:db8:77::5"), 1)
				}
				var failure error
				if rng.IntN(3) == 0 {
					failure = errMute
				}
				p.HandleGrant(outstanding.ID, g, failure, now)
			case 2:
				p.HandleNetworkChange(now)
			case 3:
				p.HandleTimeout(now)
			case 4:
				if next, ok := p.NextTimeout(); ok && next.After(now) {
					now = next
				}
				p.HandleTimeout(now)
			}
			if r, ok := p.NextRequest(); ok {
				if !on || !slices.Contains(addrs, r.Internal) || r.Port != p.port {
					t.Fatalf("on %v, addresses %v: request %+v", on, addrs, r)
				}
				outstanding = r
			}
			if _, ok := p.NextRequest(); ok {
				t.Fatal("two requests at a time")
			}
			released(p)
			p.NextEvent()
			seen := map[netip.Addr]bool{}
			for _, m := range p.Mappings() {
				if valid := m.External.IsValid(); seen[m.Internal] || !on || !slices.Contains(addrs, m.Internal) || valid != (m.State == MappingActive) || valid && (m.External.Addr() != m.Internal || !m.Until.After(now)) {
					t.Fatalf("at %v: %+v", now, m)
				}
				seen[m.Internal] = true
			}
			if len(seen) > MaxPinholes {
				t.Fatalf("%d pinholes", len(seen))
			}
			if next, ok := p.NextTimeout(); ok && !next.After(now) && p.asked != nil {
				t.Fatalf("wants to be called at %v, now %v, and the gateway is asked", next, now)
			} else if !ok && p.asked == nil && len(seen) > 0 {
				t.Fatal("no next step")
			}
			s := p.Stats()
			if total := s.Requests + s.Grants + s.Failures + s.Refused + s.Lost; total < before {
				t.Fatalf("%+v counts less than before", s)
			} else {
				before = total
			}
		}
	})
}
