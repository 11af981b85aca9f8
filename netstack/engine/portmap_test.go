package engine

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/enginetest"
	"github.com/warren-overlay/warren/netstack/nat"
	"github.com/warren-overlay/warren/netstack/simnet"
)

// gateway is a PortMapper that grants what it is told to.
type gateway struct {
	mu       sync.Mutex // protects the rest
	external netip.AddrPort
	err      error
	asked    []nat.MapRequest
	released []nat.Grant
	// hold has requests wait for a value, or for their end; nil for no wait.
	hold  chan struct{}
	ended int // requests that nobody waited for any more
}

func (g *gateway) Map(ctx context.Context, r nat.MapRequest) (nat.Grant, error) {
	g.mu.Lock()
	g.asked = append(g.asked, r)
	hold := g.hold
	g.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			g.mu.Lock()
			defer g.mu.Unlock()
			g.ended++
			return nat.Grant{}, context.Cause(ctx)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	external := g.external
	if r.Internal.IsValid() && !external.Addr().Is6() {
		external = netip.AddrPortFrom(r.Internal, r.Port)
	}
	return nat.Grant{Protocol: nat.MapPCP, Gateway: loopback, Internal: r.Internal, Port: r.Port, External: external, Lifetime: r.Lifetime}, g.err
}

func (g *gateway) Release(_ context.Context, grant nat.Grant) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.released = append(g.released, grant)
	return nil
}

func (g *gateway) set(external netip.AddrPort, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.external, g.err = external, err
}

// waiter returns a function that waits until the engine's status is as wanted.
func waiter(t *testing.T, e *Engine) func(what string, ok func(Status) bool) {
	return func(what string, ok func(Status) bool) {
		t.Helper()
		for deadline := time.Now().Add(patience); ; {
			s := e.Status()
			if ok(s) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %+v, %+v, endpoints %v", what, s.Pinholes, s.Mapping, s.Endpoints)
			}
			runtime.Gosched()
		}
	}
}

// TestPortMapping: a mapping is an endpoint for peers while it is wanted, is
// asked for again when the network changes, and deleted when it is not wanted
// any more, and when the engine ends.
func TestPortMapping(t *testing.T) {
	t.Parallel()
	network := enginetest.NewNetwork(t, 1, time.Now())
	member := network.Join("laptop", nil)
	router := &gateway{external: netip.MustParseAddrPort("5.5.0.1:7000")}
	e, err := New(onLoopback(Config{
		TUN: simnet.NewTUN(0), PortMapper: router,
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}))
	if err != nil {
		t.Fatal(err)
	}
	stop := background(t, e.Run)
	until := waiter(t, e)
	apply := func(on bool, endpoints ...netip.AddrPort) {
		t.Helper()
		cfg := member.Config(time.Now(), nil)
		cfg.PortMapping, cfg.Endpoints = on, endpoints
		if err := e.Apply(cfg); err != nil {
			t.Fatal(err)
		}
	}
	manual := netip.MustParseAddrPort("5.5.9.9:1")
	apply(false, manual)
	until("off", func(s Status) bool {
		return s.Mapping.State == nat.MappingOff && slices.Contains(s.Endpoints, manual)
	})
	apply(true, manual)
	until("mapped", func(s Status) bool {
		return s.Mapping.State == nat.MappingActive && slices.Contains(s.Endpoints, router.external) && slices.Contains(s.Endpoints, manual)
	})
	if r := router.asked[0]; len(router.asked) != 1 || r.Port != e.Status().Port {
		t.Errorf("asked %+v", router.asked)
	}
	moved := netip.MustParseAddrPort("5.5.0.2:7001")
	router.set(moved, nil)
	e.HandleNetworkChange()
	until("another network", func(s Status) bool {
		return s.Mapping.External == moved && slices.Contains(s.Endpoints, moved) && !slices.Contains(s.Endpoints, netip.MustParseAddrPort("5.5.0.1:7000"))
	})
	router.set(netip.AddrPort{}, errors.New("mute"))
	e.HandleNetworkChange()
	until("no mapping there", func(s Status) bool {
		return s.Mapping.State == nat.MappingNone && s.Mapping.Error != nil && !slices.Contains(s.Endpoints, moved)
	})
	router.set(moved, nil)
	apply(false)
	apply(true)
	until("mapped again", func(s Status) bool { return s.Mapping.External == moved })
	apply(false)
	until("released", func(s Status) bool {
		router.mu.Lock()
		defer router.mu.Unlock()
		return len(router.released) == 1 && router.released[0].External == moved && !slices.Contains(s.Endpoints, moved)
	})
	apply(true)
	until("mapped at the end", func(s Status) bool { return s.Mapping.External == moved })
	stop()
	if len(router.released) != 2 {
		t.Errorf("released %+v", router.released)
	}
}

// TestPinholes: the port is opened at every global IPv6 address, also at one that
// comes later, and closed when that is not wanted any more and when the engine
// ends. Where the gateway translates addresses, peers are told the other one.
func TestPinholes(t *testing.T) {
	network := enginetest.NewNetwork(t, 1, time.Now())
	member := network.Join("laptop", nil)
	router := &gateway{external: netip.MustParseAddrPort("5.5.0.1:7000")}
	var mu sync.Mutex
	first, second := netip.MustParseAddr("2001:db8:5::1"), netip.MustParseAddr("2001:db8:5::2")
	local := []netip.Addr{loopback, first, netip.MustParseAddr("fd00::1")}
	cfg := onLoopback(Config{
		TUN: simnet.NewTUN(0), PortMapper: router,
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	cfg.LocalAddresses = func() ([]netip.Addr, error) {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(local), nil
	}
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	stop := background(t, e.Run)
	until := waiter(t, e)
	apply := func(on bool) {
		t.Helper()
		cfg := member.Config(time.Now(), nil)
		cfg.PortMapping = on
		if err := e.Apply(cfg); err != nil {
			t.Fatal(err)
		}
	}
	open := func(s Status, addrs ...netip.Addr) bool {
		if len(s.Pinholes) != len(addrs) {
			return false
		}
		for i, m := range s.Pinholes {
			if m.Internal != addrs[i] || m.State != nat.MappingActive {
				return false
			}
		}
		return true
	}
	released := func() (out []netip.Addr) {
		router.mu.Lock()
		defer router.mu.Unlock()
		for _, g := range router.released {
			if g.Internal.IsValid() {
				out = append(out, g.Internal)
			}
		}
		return out
	}
	apply(false)
	until("off", func(s Status) bool { return s.Configured && s.Pinholes == nil })
	apply(true)
	var opened Status
	until("open", func(s Status) bool {
		opened = s
		return open(s, first) && s.Pinholes[0].External == netip.AddrPortFrom(first, s.Port) &&
			s.Mapping.State == nat.MappingActive && slices.Contains(s.Endpoints, router.external) // asked for at the same time
	})
	if n := slices.IndexFunc(opened.Endpoints, func(a netip.AddrPort) bool { return a.Addr() == first }); n < 0 || len(opened.Endpoints) != len(local)+1 {
		t.Errorf("endpoints %v: the pinhole's is told twice, or not", opened.Endpoints)
	}
	mu.Lock()
	local = append(local, second)
	mu.Unlock()
	e.HandleNetworkChange()
	until("open at both", func(s Status) bool { return open(s, first, second) })
	translated := netip.MustParseAddrPort("[2001:db8:6::1]:7000")
	router.set(translated, nil)
	e.HandleNetworkChange()
	until("translated", func(s Status) bool {
		return open(s, first, second) && s.Pinholes[0].External == translated && slices.Contains(s.Endpoints, translated)
	})
	apply(false)
	until("closed", func(s Status) bool {
		return s.Pinholes == nil && len(released()) == 2 && !slices.Contains(s.Endpoints, translated)
	})
	apply(true)
	until("open again", func(s Status) bool { return open(s, first, second) })
	stop()
	if got := released(); len(got) != 4 || !slices.Contains(got[2:], first) || !slices.Contains(got[2:], second) {
		t.Errorf("released %v", got)
	}
}

// TestPortMappingOffWhileAsking: what a gateway grants to a request that was under
// way when mapping was switched off is deleted, and a gateway that does not answer
// is not waited for.
func TestPortMappingOffWhileAsking(t *testing.T) {
	t.Parallel()
	network := enginetest.NewNetwork(t, 1, time.Now())
	member := network.Join("laptop", nil)
	router := &gateway{external: netip.MustParseAddrPort("5.5.0.1:7000"), hold: make(chan struct{})}
	e, err := New(onLoopback(Config{
		TUN: simnet.NewTUN(0), PortMapper: router, Logger: slog.New(slog.DiscardHandler),
	}))
	if err != nil {
		t.Fatal(err)
	}
	background(t, e.Run)
	apply := func(on bool) {
		t.Helper()
		cfg := member.Config(time.Now(), nil)
		cfg.PortMapping = on
		if err := e.Apply(cfg); err != nil {
			t.Fatal(err)
		}
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(patience); ; {
			router.mu.Lock()
			met := ok()
			router.mu.Unlock()
			if met {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("not: %s; asked %d, released %v, ended %d", what, len(router.asked), router.released, router.ended)
			}
			runtime.Gosched()
		}
	}
	apply(true)
	until("asked", func() bool { return len(router.asked) == 1 })
	apply(false)
	router.hold <- struct{}{} // within the grace
	until("released", func() bool { return len(router.released) == 1 })
	if g := router.released[0]; g.External != router.external || e.Status().Mapping.State != nat.MappingOff {
		t.Errorf("released %+v, now %+v", g, e.Status().Mapping)
	}
	apply(true)
	until("asked again", func() bool { return len(router.asked) == 2 })
	apply(false)
	until("not waited for", func() bool { return router.ended == 1 })
}
