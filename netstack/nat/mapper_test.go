package nat

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

var (
	overlay = netip.MustParsePrefix("100.64.0.0/16")
	gateway = netip.MustParseAddr("192.168.1.1")
	outside = at("5.5.0.1:41641")
	errMute = errors.New("the gateway is mute")
)

func newMapper() *Mapper { return NewMapper(overlay.Contains, epoch) }

func granted(external netip.AddrPort, lifetime time.Duration) Grant {
	return Grant{Protocol: MapPCP, Gateway: gateway, Port: 41641, External: external, Lifetime: lifetime}
}

// request expects the next request to be due and returns it.
func request(t *testing.T, m *Mapper) MapRequest {
	t.Helper()
	r, ok := m.NextRequest()
	if !ok {
		t.Fatal("nothing is asked")
	}
	if r.Port != 41641 || r.Lifetime != mapLifetime {
		t.Fatalf("request %+v", r)
	}
	if _, ok := m.NextRequest(); ok {
		t.Fatal("asked twice")
	}
	return r
}

// wake drains events, lets the machine's next deadline come, and returns how
// far away it was.
func wake(t *testing.T, m *Mapper, now *time.Time) time.Duration {
	t.Helper()
	m.NextEvent()
	next, ok := m.NextTimeout()
	if !ok || next.Before(*now) {
		t.Fatalf("next %v at %v", next, *now)
	}
	waited := next.Sub(*now)
	*now = next
	m.HandleTimeout(next)
	return waited
}

// TestMappingIsKept: it is asked for at once, renewed at half its life with the
// same wish, kept while a renewal fails, and given up when it has ended.
func TestMappingIsKept(t *testing.T) {
	m, now := newMapper(), epoch
	if _, ok := m.NextTimeout(); ok || m.Mapping().State != MappingOff {
		t.Fatal("something to do before it is wanted")
	}
	m.Set(true, 41641, now)
	if e, ok := m.NextEvent(); !ok || e.State != MappingAsking {
		t.Errorf("event %+v", e)
	}
	r := request(t, m)
	if r.Wish.IsValid() {
		t.Errorf("wish %v", r.Wish)
	}
	if _, ok := m.NextTimeout(); ok {
		t.Error("a deadline while the gateway is asked")
	}
	if err := m.HandleGrant(r.ID, granted(outside, time.Hour), nil, now); err != nil {
		t.Fatal(err)
	}
	if e, ok := m.NextEvent(); !ok || e.State != MappingActive || e.External != outside || e.Until != now.Add(time.Hour) || e.Protocol != MapPCP || e.Gateway != gateway {
		t.Errorf("event %+v", e)
	}
	if d := wake(t, m, &now); d != 30*time.Minute {
		t.Errorf("renewed after %v", d)
	}
	if r = request(t, m); r.Wish != outside {
		t.Errorf("wish %v", r.Wish)
	}
	if err := m.HandleGrant(r.ID, granted(outside, time.Hour), nil, now); err != nil {
		t.Fatal(err)
	}
	if _, ok := m.NextEvent(); ok {
		t.Error("a renewal is no change")
	}
	// From here on the gateway is mute.
	for _, want := range []time.Duration{30 * time.Minute, 15 * time.Minute, 7*time.Minute + 30*time.Second} {
		if d := wake(t, m, &now); d != want || m.Mapping().State != MappingActive {
			t.Errorf("asked again after %v, want %v: %+v", d, want, m.Mapping())
		}
		m.HandleGrant(request(t, m).ID, Grant{}, errMute, now)
	}
	asked := m.Stats().Requests
	for m.Mapping().State == MappingActive {
		if d := wake(t, m, &now); d < minRenewal && m.Mapping().State == MappingActive {
			t.Fatalf("asked again after %v", d)
		}
		if r, ok := m.NextRequest(); ok {
			m.HandleGrant(r.ID, Grant{}, errMute, now)
		}
	}
	if n := m.Stats().Requests - asked; n > 8 || now != epoch.Add(90*time.Minute) || m.Stats().Lost != 1 {
		t.Errorf("given up at %v after %d more requests", now.Sub(epoch), n)
	}
	if got := m.Mapping(); !errors.Is(got.Error, errMute) || got.External.IsValid() {
		t.Errorf("%+v", got)
	}
}

// TestNoGateway: the wait grows to an hour; a change of the network begins anew
// at once, but not more often than every two seconds.
func TestNoGateway(t *testing.T) {
	m, now := newMapper(), epoch
	m.Set(true, 41641, now)
	m.HandleGrant(request(t, m).ID, Grant{}, errMute, now)
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
		if d := wake(t, m, &now); d != want*time.Minute {
			t.Errorf("asked again after %v, want %v", d, want*time.Minute)
		}
		m.HandleGrant(request(t, m).ID, Grant{}, errMute, now)
	}
	now = now.Add(time.Minute)
	m.HandleNetworkChange(now)
	request(t, m) // at once
	m.HandleNetworkChange(now)
	before := m.Stats().Requests
	for range 100 { // a network that changes ten times a second
		now = now.Add(100 * time.Millisecond)
		m.HandleNetworkChange(now)
		m.NextRequest()
	}
	if n := m.Stats().Requests - before; n < 3 || n > 5 {
		t.Errorf("%d requests in 10 s", n)
	}
}

// TestGrantsThatCannotBe: what no gateway can grant is refused, counted, and
// told to nobody.
func TestGrantsThatCannotBe(t *testing.T) {
	for _, c := range []struct {
		name     string
		external string
		change   func(*Grant)
		seen     string
		ok       bool
	}{
		{"public", "5.5.0.1:41641", nil, "", true},
		{"public, another port", "5.5.0.1:1", nil, "9.9.9.9", true},
		{"private, and seen", "10.0.0.1:41641", nil, "10.0.0.1", true},
		{"private", "10.0.0.1:41641", nil, "", false},
		{"private, another is seen", "192.168.7.7:41641", nil, "5.5.0.1", false},
		{"carrier-grade NAT", "100.127.0.1:41641", nil, "5.5.0.1", false},
		{"the overlay's", "100.64.0.9:41641", nil, "100.64.0.9", false},
		{"loopback", "127.0.0.1:41641", nil, "", false},
		{"unspecified", "0.0.0.0:41641", nil, "", false},
		{"this network", "0.1.2.3:41641", nil, "", false},
		{"multicast", "224.0.0.1:41641", nil, "", false},
		{"broadcast", "255.255.255.255:41641", nil, "", false},
		{"reserved", "240.0.0.1:41641", nil, "", false},
		{"link-local", "169.254.169.254:41641", nil, "", false},
		{"benchmarks", "198.19.0.1:41641", nil, "", false},
		{"port 0", "5.5.0.1:0", nil, "", false},
		{"IPv6", "[2001:db8::1]:41641", nil, "", false},
		{"another port inside", "5.5.0.1:41641", func(g *Grant) { g.Port = 22 }, "", false},
		{"no address", "5.5.0.1:41641", func(g *Grant) { g.External = netip.AddrPort{} }, "", false},
		{"ended before it began", "5.5.0.1:41641", func(g *Grant) { g.Lifetime = -1 }, "", false},
	} {
		m := newMapper()
		if c.seen != "" {
			m.SetSeen(netip.MustParseAddr(c.seen), epoch)
		}
		m.Set(true, 41641, epoch)
		g := granted(at(c.external), time.Hour)
		if c.change != nil {
			c.change(&g)
		}
		err := m.HandleGrant(request(t, m).ID, g, nil, epoch)
		mapping := m.Mapping()
		if c.ok {
			if err != nil || mapping.State != MappingActive || mapping.External != g.External {
				t.Errorf("%s: %v, %+v", c.name, err, mapping)
			}
			continue
		}
		if !errors.Is(err, ErrGrant) || mapping.State != MappingNone || mapping.External.IsValid() || m.Stats().Refused != 1 || !errors.Is(mapping.Error, ErrGrant) {
			t.Errorf("%s: %v, %+v", c.name, err, mapping)
		}
		if next, ok := m.NextTimeout(); !ok || m.stats.Requests != 1 {
			t.Errorf("%s: next %v", c.name, next)
		}
	}
}

// TestSeenAddress: what was not believed is asked for again when STUN servers
// see the device under it, and a mapping when they see it elsewhere.
func TestSeenAddress(t *testing.T) {
	m, now := newMapper(), epoch
	m.Set(true, 41641, now)
	inner := at("10.0.0.1:41641")
	if err := m.HandleGrant(request(t, m).ID, granted(inner, time.Hour), nil, now); !errors.Is(err, ErrGrant) {
		t.Fatal(err)
	}
	now = now.Add(5 * time.Second)
	m.SetSeen(inner.Addr(), now)
	if err := m.HandleGrant(request(t, m).ID, granted(inner, time.Hour), nil, now); err != nil {
		t.Fatal(err)
	}
	now = now.Add(5 * time.Second)
	m.SetSeen(inner.Addr(), now)
	if _, ok := m.NextRequest(); ok {
		t.Error("asked though nothing changed")
	}
	m.SetSeen(netip.Addr{}, now) // servers are away
	if _, ok := m.NextRequest(); ok || m.Mapping().State != MappingActive {
		t.Error("asked because servers are away")
	}
	m.SetSeen(outside.Addr(), now) // the gateway has a new address
	if err := m.HandleGrant(request(t, m).ID, granted(outside, time.Hour), nil, now); err != nil || m.Mapping().External != outside {
		t.Errorf("%v, %+v", err, m.Mapping())
	}
}

// TestRelease: what is not wanted any more is deleted, and what comes too late.
func TestRelease(t *testing.T) {
	m, now := newMapper(), epoch
	m.Set(true, 41641, now)
	if err := m.HandleGrant(request(t, m).ID, granted(outside, time.Hour), nil, now); err != nil {
		t.Fatal(err)
	}
	m.NextEvent()
	m.Set(false, 41641, now)
	if g, ok := m.NextRelease(); !ok || g.External != outside {
		t.Errorf("release %+v, %v", g, ok)
	}
	if e, ok := m.NextEvent(); !ok || e.State != MappingOff || e.External.IsValid() {
		t.Errorf("event %+v, %v", e, ok)
	}
	if next, ok := m.NextTimeout(); ok {
		t.Errorf("something to do at %v though it is off", next)
	}
	now = now.Add(time.Minute)
	m.Set(true, 41641, now)
	r := request(t, m)
	m.Set(false, 0, now)
	if err := m.HandleGrant(r.ID, granted(outside, time.Hour), nil, now); !errors.Is(err, ErrStaleGrant) {
		t.Error(err)
	}
	if g, ok := m.NextRelease(); !ok || g.External != outside || m.Stats().Stale != 1 {
		t.Errorf("release %+v, %v", g, ok)
	}
	m.NextEvent()
	now = now.Add(time.Minute)
	m.Set(true, 41641, now)
	r = request(t, m)
	m.HandleNetworkChange(now)
	if err := m.HandleGrant(r.ID, granted(outside, time.Hour), nil, now); !errors.Is(err, ErrStaleGrant) || m.Mapping().State != MappingAsking {
		t.Errorf("an answer of the old network: %v, %+v", err, m.Mapping())
	}
}

// TestLifetimes: however short, long or endless what is granted, it is renewed
// within an hour and not more often than twice a minute.
func TestLifetimes(t *testing.T) {
	for _, c := range []struct{ granted, renewed time.Duration }{
		{0, time.Hour},
		{1, 30 * time.Second},
		{time.Second, 30 * time.Second},
		{10 * time.Minute, 5 * time.Minute},
		{2 * time.Hour, time.Hour},
		{24 * 365 * time.Hour, time.Hour},
	} {
		m, now := newMapper(), epoch
		m.Set(true, 41641, now)
		if err := m.HandleGrant(request(t, m).ID, granted(outside, c.granted), nil, now); err != nil {
			t.Fatal(err)
		}
		if d := wake(t, m, &now); d != c.renewed {
			t.Errorf("%v: renewed after %v, want %v", c.granted, d, c.renewed)
		}
		request(t, m)
	}
}

// TestMapperSleeps: after a month there is one request, whatever was missed, and
// a mapping that has ended is told to nobody.
func TestMapperSleeps(t *testing.T) {
	m, now := newMapper(), epoch
	m.Set(true, 41641, now)
	if err := m.HandleGrant(request(t, m).ID, granted(outside, time.Hour), nil, now); err != nil {
		t.Fatal(err)
	}
	now = now.Add(30 * 24 * time.Hour)
	m.HandleTimeout(now)
	if m.Mapping().State == MappingActive || m.Mapping().External.IsValid() {
		t.Errorf("%+v", m.Mapping())
	}
	if r := request(t, m); r.Wish.IsValid() {
		t.Errorf("wish %v", r.Wish)
	}
	m.HandleTimeout(epoch)
	if m.Stats().ClockBack != 1 {
		t.Error("a clock that went back was not counted")
	}
}

// FuzzMapper has a gateway and a network do anything: the machine asks within
// its budget, believes nothing that cannot be, and always has a next step while
// it is on and not waiting for an answer.
func FuzzMapper(f *testing.F) {
	f.Add(uint64(1), []byte{0, 3, 1, 7, 2, 9, 4, 1, 5, 200, 6, 3})
	f.Add(uint64(2), []byte{0, 0, 1, 0, 3, 0, 1, 1, 1, 2, 4, 0, 0, 1, 2, 2})
	f.Fuzz(func(t *testing.T, seed uint64, steps []byte) {
		rng := rand.New(rand.NewPCG(seed, 1))
		m, now := newMapper(), epoch
		var outstanding []uint64
		var asked []time.Time
		for i := 0; i+1 < len(steps) && i < 2000; i += 2 {
			now = now.Add(time.Duration(steps[i+1]) * time.Duration(steps[i+1]) * 100 * time.Millisecond)
			switch steps[i] % 7 {
			case 0:
				m.Set(rng.IntN(4) > 0, uint16(rng.IntN(2))*41641, now)
			case 1, 2:
				if len(outstanding) == 0 {
					continue
				}
				id := outstanding[rng.IntN(len(outstanding))]
				g := granted(netip.AddrPortFrom(netip.AddrFrom4([4]byte{byte(rng.IntN(256)), byte(rng.IntN(256)), 1, 1}), uint16(rng.IntN(3))), time.Duration(rng.Int64N(int64(3*time.Hour))-int64(time.Minute)))
				if rng.IntN(5) == 0 {
					g.Port++
				}
				var failure error
				if steps[i]%7 == 2 {
					failure = errMute
				}
				err := m.HandleGrant(id, g, failure, now)
				if e := m.Mapping(); err == nil && failure == nil && (e.State != MappingActive || e.External != g.External) {
					t.Fatalf("granted %+v, and it is %+v", g, e)
				}
			case 3:
				m.HandleNetworkChange(now)
			case 4:
				m.SetSeen(netip.AddrFrom4([4]byte{byte(rng.IntN(256)), 5, 1, 1}), now)
			case 5:
				m.HandleTimeout(now)
			case 6:
				if next, ok := m.NextTimeout(); ok && next.After(now) {
					now = next
				}
				m.HandleTimeout(now)
			}
			if r, ok := m.NextRequest(); ok {
				if r.Port == 0 || r.Port != m.port {
					t.Fatalf("request %+v", r)
				}
				outstanding = append(outstanding, r.ID)
				asked = append(asked, now)
			}
			m.NextRelease()
			m.NextEvent()
			e := m.Mapping()
			if valid := e.External.IsValid(); valid != (e.State == MappingActive) || valid && (overlay.Contains(e.External.Addr()) || e.External.Port() == 0 || !e.Until.After(now)) {
				t.Fatalf("at %v: %+v", now, e)
			}
			if _, ok := m.NextTimeout(); ok != (m.on && !m.asking || e.State == MappingActive) {
				t.Fatalf("on %v, asking %v, and a deadline %v", m.on, m.asking, ok)
			}
		}
		for i := 1; i < len(asked); i++ {
			if d := asked[i].Sub(asked[i-1]); d < minAsking && m.Stats().ClockBack == 0 {
				t.Fatalf("asked again after %v", d)
			}
		}
	})
}
