package engine

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/enginetest"
	"github.com/warren-overlay/warren/netstack/path"
	"github.com/warren-overlay/warren/netstack/sock"
	"github.com/warren-overlay/warren/netstack/stun"
	"github.com/warren-overlay/warren/netstack/stun/stunserver"
)

// TestPaths: what is said of the ways to a peer is what its agent knows.
func TestPaths(t *testing.T) {
	_, a, b := two(t)
	now := time.Now()
	if _, err := a.engine.Paths(b.Addr4()); !errors.Is(err, ErrStopped) && !errors.Is(err, ErrNoPeer) {
		t.Errorf("before there are peers: %v", err)
	}
	a.apply(t, a.Config(now, enginetest.AllowAll(b.Member), b.Member))
	b.apply(t, b.Config(now, enginetest.AllowAll(a.Member), a.Member))
	before, err := a.engine.Paths(b.Addr4())
	if err != nil || before.Path.Kind != PathNone || before.Paths.Active || len(before.Paths.Candidates) != 1 ||
		before.Paths.Candidates[0].Standing != path.StandingIdle {
		t.Errorf("unused: %+v, %v", before, err)
	}
	go func() {
		request := <-b.tun.Received()
		b.tun.Send(enginetest.EchoReply(request))
	}()
	if _, err := a.ping(t, b.Addr4()); err != nil {
		t.Fatal(err)
	}
	got, err := a.engine.Paths(b.Addr6())
	if err != nil {
		t.Fatal(err)
	}
	c := got.Paths.Candidates[0]
	if got.Name != "db" || got.Path.Addr != b.Endpoints[0] || got.LastHandshake.IsZero() || got.Unanswered != 0 ||
		got.Paths.Why != path.ReasonProved || c.Standing != path.StandingPrimary || c.RTT <= 0 || c.Heard.IsZero() || got.Now.Before(c.Heard) {
		t.Errorf("%+v", got)
	}
	if _, err := a.engine.Paths(netip.MustParseAddr("100.64.9.9")); !errors.Is(err, ErrNoPeer) {
		t.Errorf("of nobody: %v", err)
	}
}

// TestCheckNetwork: it ends when the servers have answered, and when they are
// given up.
func TestCheckNetwork(t *testing.T) {
	t.Parallel()
	network := enginetest.NewNetwork(t, 1, time.Now())
	a := newNode(t, network.Join("laptop", nil))
	check := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := a.engine.CheckNetwork(ctx); err != nil {
			t.Fatal(err)
		}
	}
	check() // nobody to ask
	conn, err := sock.Listen(sock.Config{Addresses: []netip.Addr{loopback}})
	if err != nil {
		t.Fatal(err)
	}
	server := stunserver.New(conn)
	stop := background(t, server.Run)
	cfg := a.Config(time.Now(), nil)
	cfg.STUN = []string{netip.AddrPortFrom(loopback, server.Port()).String()}
	a.apply(t, cfg)
	for !a.engine.Status().NAT.UDP { // the name is looked up meanwhile
		check()
	}
	if report := a.engine.Status().NAT; report.Public4 != a.Endpoints[0] {
		t.Errorf("report %v", report)
	}
	stop()
	check()
	if report := a.engine.Status().NAT; report.UDP {
		t.Errorf("the server is gone, and the report is %v", report)
	}
}

// TestMovedAddress: where a STUN server sees this device elsewhere than before,
// it is told of, and what went out by the old address is made anew.
func TestMovedAddress(t *testing.T) {
	network := enginetest.NewNetwork(t, 1, time.Now())
	a := newNode(t, network.Join("laptop", nil))
	conn, err := sock.Listen(sock.Config{Addresses: []netip.Addr{loopback}})
	if err != nil {
		t.Fatal(err)
	}
	var seen atomic.Pointer[netip.AddrPort]
	show := func(text string) { addr := netip.MustParseAddrPort(text); seen.Store(&addr) }
	show("5.5.0.1:4000")
	done := make(chan struct{})
	t.Cleanup(func() { conn.Close(); <-done })
	go func() {
		defer close(done)
		bufs, sizes, from := [][]byte{make([]byte, 1500)}, make([]int, 1), make([]netip.AddrPort, 1)
		for {
			if _, err := conn.Readers()[0].ReadBatch(bufs, sizes, from); err != nil {
				return
			}
			if m, err := stun.Parse(bufs[0][:sizes[0]]); err == nil {
				conn.WriteBatch([][]byte{stun.AppendResponse(nil, m.TxID, *seen.Load(), false)}, from[0])
			}
		}
	}()
	cfg := a.Config(time.Now(), nil)
	cfg.STUN = []string{netip.AddrPortFrom(loopback, conn.LocalPort()).String()}
	a.apply(t, cfg)
	until := func(ok func(Reach) bool) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		for {
			select {
			case r := <-a.engine.Reach():
				if ok(r) {
					return
				}
			case <-ctx.Done():
				t.Fatalf("status %+v", a.engine.Status().NAT)
			}
		}
	}
	until(func(r Reach) bool { return slices.Contains(r.Endpoints, *seen.Load()) && r.Moves == 0 })
	show("5.5.0.2:4000")
	if err := a.engine.CheckNetwork(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(func(r Reach) bool { return slices.Contains(r.Endpoints, *seen.Load()) && r.Moves == 1 })
}
