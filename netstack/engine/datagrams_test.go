package engine

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/config"
	"github.com/warren-overlay/warren/netstack/enginetest"
	"github.com/warren-overlay/warren/netstack/relay"
	"github.com/warren-overlay/warren/netstack/simnet"
	"github.com/warren-overlay/warren/netstack/sock"
)

// onlyTo lets datagrams out to one address, while open.
type onlyTo struct {
	sock.Conn
	to   netip.AddrPort
	open *atomic.Bool
}

func (c onlyTo) WriteBatch(bufs [][]byte, to netip.AddrPort) error {
	if to != c.to || !c.open.Load() {
		return nil
	}
	return c.Conn.WriteBatch(bufs, to)
}

// TestRelayedDatagrams: two devices that may only send to a relay exchange
// packets as datagrams; when those arrive nowhere any more, by the connection, and
// as datagrams again when they do.
func TestRelayedDatagrams(t *testing.T) {
	t.Parallel()
	port, err := sock.Listen(sock.Config{Addresses: []netip.Addr{loopback}})
	if err != nil {
		t.Fatal(err)
	}
	server, url := serveRelay(t, port)
	at := netip.AddrPortFrom(loopback, port.LocalPort())
	var open atomic.Bool
	open.Store(true)
	wrap := func(c sock.Conn) sock.Conn { return onlyTo{c, at, &open} }
	network := enginetest.NewNetwork(t, 1, time.Now())
	a, b := newNodeOn(t, network.Join("laptop", nil), wrap), newNodeOn(t, network.Join("db", nil), wrap)
	for _, n := range []struct{ n, peer *node }{{a, b}, {b, a}} {
		c := n.n.Config(time.Now(), enginetest.AllowAll(n.peer.Member), n.peer.Member)
		c.Relays = []config.Relay{{Name: "home", URL: url, UDP: at.String()}}
		n.n.apply(t, c)
	}
	// exchange sends one packet each way until both arrived, whatever is lost.
	round := 0
	exchange := func() {
		t.Helper()
		round++
		for _, way := range []struct{ from, to *node }{{a, b}, {b, a}} {
			packet := enginetest.UDP(netip.AddrPortFrom(way.from.Addr4(), 5000), netip.AddrPortFrom(way.to.Addr4(), 53), fmt.Sprint(round))
			resend := time.NewTicker(100 * time.Millisecond)
			defer resend.Stop()
			way.from.tun.Send(packet)
			deadline := time.After(patience)
			for arrived := false; !arrived; {
				select {
				case got := <-way.to.tun.Received():
					arrived = string(got) == string(packet)
				case <-resend.C:
					way.from.tun.Send(packet)
				case <-deadline:
					t.Fatalf("round %d: nothing arrived; %+v", round, server.Snapshot().Stats)
				}
			}
		}
	}
	// until exchanges until what the relay counted has grown by some.
	until := func(what string, count func(relay.ServerStats) uint64) {
		t.Helper()
		before := count(server.Snapshot().Stats)
		for began := time.Now(); count(server.Snapshot().Stats) < before+20; {
			exchange()
			if time.Since(began) > patience {
				t.Fatalf("%s: %+v", what, server.Snapshot().Stats)
			}
		}
	}
	asDatagrams := func(s relay.ServerStats) uint64 { return s.DatagramsForwarded }
	byConnection := func(s relay.ServerStats) uint64 { return s.PacketsOut - s.DatagramsForwarded }
	until("as datagrams", asDatagrams)
	if s := a.engine.Status().Relay; s == nil || !s.Datagrams {
		t.Errorf("status %+v", s)
	}
	if p := a.engine.Status().Peers[0]; p.Path.Kind != PathRelay {
		t.Errorf("path %+v", p.Path)
	}
	open.Store(false)
	until("by the connection", byConnection)
	open.Store(true)
	until("as datagrams again", asDatagrams)
}

// TestDatagramsGoByAFamilyThatIsThere: of a relay with addresses of both families, a
// machine takes the IPv4 one, and the IPv6 one while it has no IPv4 address itself.
func TestDatagramsGoByAFamilyThatIsThere(t *testing.T) {
	t.Parallel()
	four, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	names := map[string][]netip.Addr{"both.example.com": {six, four}, "four.example.com": {four}, "six.example.com": {six}}
	var local atomic.Pointer[[]netip.Addr]
	cfg := onLoopback(Config{
		TUN: simnet.NewTUN(0), Logger: slog.New(slog.DiscardHandler),
		LookupHost: func(_ context.Context, host string) ([]netip.Addr, error) { return names[host], nil },
	})
	cfg.LocalAddresses = func() ([]netip.Addr, error) { return slices.Clone(*local.Load()), nil }
	mine4, mine6 := netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8:7::7")
	local.Store(&[]netip.Addr{mine4, mine6})
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	background(t, e.Run)
	for _, c := range []struct {
		local []netip.Addr
		both  netip.Addr
	}{
		{[]netip.Addr{mine4, mine6}, four},
		{[]netip.Addr{mine6}, six},
		{[]netip.Addr{mine6, mine4}, four},
		{[]netip.Addr{mine4}, four},
		{nil, four}, // nothing is known
	} {
		local.Store(&c.local)
		e.HandleNetworkChange()
		var got netip.AddrPort
		for deadline := time.Now().Add(patience); got != netip.AddrPortFrom(c.both, 3478) && time.Now().Before(deadline); runtime.Gosched() {
			got = e.datagramsOf(t.Context(), "both.example.com:3478")
		}
		if got != netip.AddrPortFrom(c.both, 3478) {
			t.Errorf("with the addresses %v datagrams go to %v", c.local, got)
		}
		for name, want := range map[string]netip.Addr{"four": four, "six": six} {
			if got := e.datagramsOf(t.Context(), name+".example.com:1"); got != netip.AddrPortFrom(want, 1) {
				t.Errorf("with the addresses %v, to a relay with one address only they go to %v", c.local, got)
			}
		}
	}
}

// TestEarlyDatagramsAreBounded: packets that come before the news of whose they are
// wait for it, but neither many nor for long.
func TestEarlyDatagramsAreBounded(t *testing.T) {
	e := &Engine{}
	timer := make(chan struct{}, 1)
	d := newRelayDatagrams(&relayConn{e: e}, timer, func(ident.NodeKey, []byte) bool { return false })
	handled := 0
	handle := func(ident.NodeKey, []byte) { handled++ }
	packet := append(make([]byte, relay.DatagramHeader), "sealed"...)
	packet[0] = 0xe0
	for !relay.IsDatagramPacket(packet) { // whatever the first kind is
		packet[0]++
	}
	for range maxEarly + 3 {
		if _, p, ok := d.open(packet); !ok || p != nil {
			t.Fatal("it does not wait")
		}
	}
	if n := e.relayDrops.Load(); n != 3 {
		t.Errorf("%d dropped at once, want 3", n)
	}
	if len(timer) != 1 {
		t.Error("the session is not told")
	}
	now := time.Unix(1_800_000_000, 0)
	d.late(now, handle)
	d.open(packet)
	d.late(now.Add(earlyFor-1), handle)
	if n := e.relayDrops.Load(); n != 4 || len(d.waiting) != maxEarly {
		t.Errorf("%d dropped, %d wait", n, len(d.waiting))
	}
	d.late(now.Add(earlyFor), handle)
	if n := e.relayDrops.Load(); n != 4+maxEarly || len(d.waiting) != 0 || handled != 0 {
		t.Errorf("%d dropped, %d wait, %d handled", n, len(d.waiting), handled)
	}
}
