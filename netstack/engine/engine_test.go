package engine

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/netstack/config"
	"github.com/warren-overlay/warren/netstack/enginetest"
	"github.com/warren-overlay/warren/netstack/relay"
	"github.com/warren-overlay/warren/netstack/relay/relayhttp"
	"github.com/warren-overlay/warren/netstack/simnet"
	"github.com/warren-overlay/warren/netstack/sock"
)

var loopback = netip.MustParseAddr("127.0.0.1")

const patience = 20 * time.Second

// node is an engine on the loopback interface, and its host.
type node struct {
	*enginetest.Member
	engine *Engine
	tun    *simnet.TUN
}

// background runs what ends with its context, an engine or a server, until stop is
// called or the test ends, and reports its error. stop returns when it has ended.
func background(t *testing.T, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// onLoopback lets an engine have the loopback interface only.
func onLoopback(cfg Config) Config {
	cfg.Listen = func(port uint16) (sock.Conn, error) {
		return sock.Listen(sock.Config{Port: port, Addresses: []netip.Addr{loopback}})
	}
	cfg.LocalAddresses = func() ([]netip.Addr, error) { return []netip.Addr{loopback}, nil }
	return cfg
}

func newNode(t *testing.T, m *enginetest.Member) *node {
	t.Helper()
	return newNodeOn(t, m, func(c sock.Conn) sock.Conn { return c })
}

// newNodeOn is newNode for one whose port is wrapped.
func newNodeOn(t *testing.T, m *enginetest.Member, wrap func(sock.Conn) sock.Conn) *node {
	t.Helper()
	n := &node{Member: m, tun: simnet.NewTUN(0)}
	var err error
	cfg := onLoopback(Config{
		TUN: n.tun, ManageDevice: false,
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	listen := cfg.Listen
	cfg.Listen = func(port uint16) (sock.Conn, error) {
		c, err := listen(port)
		if err != nil {
			return nil, err
		}
		return wrap(c), nil
	}
	if n.engine, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	background(t, n.engine.Run)
	if err := n.engine.Apply(nil); err != nil { // it runs
		t.Fatal(err)
	}
	m.Endpoints = []netip.AddrPort{netip.AddrPortFrom(loopback, n.engine.Status().Port)}
	return n
}

func (n *node) apply(t *testing.T, c *config.Config) {
	t.Helper()
	if err := n.engine.Apply(c); err != nil {
		t.Fatal(err)
	}
}

func (n *node) receive(t *testing.T) []byte {
	t.Helper()
	select {
	case b := <-n.tun.Received():
		return b
	case <-time.After(patience):
		t.Fatalf("%s received nothing", n.Certificate.Name)
		return nil
	}
}

func (n *node) ping(t *testing.T, to netip.Addr) (PingReply, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return n.engine.Ping(ctx, to)
}

// send sends a datagram and waits until it arrives.
func (n *node) send(t *testing.T, to *node, port uint16, payload string) {
	t.Helper()
	b := enginetest.UDP(netip.AddrPortFrom(n.Addr4(), 5000), netip.AddrPortFrom(to.Addr4(), port), payload)
	n.tun.Send(b)
	if got := to.receive(t); !bytes.Equal(got, b) {
		t.Fatalf("got % x, want % x", got, b)
	}
}

func two(t *testing.T) (*enginetest.Network, *node, *node) {
	t.Helper()
	network := enginetest.NewNetwork(t, 1, time.Now())
	a := newNode(t, network.Join("laptop", nil))
	b := newNode(t, network.Join("db", nil))
	return network, a, b
}

func TestPingFindsTheDirectPath(t *testing.T) {
	_, a, b := two(t)
	now := time.Now()
	a.apply(t, a.Config(now, enginetest.AllowAll(b.Member), b.Member))
	b.apply(t, b.Config(now, enginetest.AllowAll(a.Member), a.Member))
	for _, to := range []netip.Addr{b.Addr4(), b.Addr6()} {
		// Nobody answers for b's host but this test.
		go func() {
			request := <-b.tun.Received()
			b.tun.Send(enginetest.EchoReply(request))
		}()
		got, err := a.ping(t, to)
		if err != nil {
			t.Fatal(err)
		}
		if got.Peer != "db" || got.Path.Kind != PathDirect || got.Path.Addr != b.Endpoints[0] || got.RTT <= 0 {
			t.Fatalf("reply %+v", got)
		}
	}
	if n := len(a.tun.Received()); n != 0 {
		t.Fatalf("%d packets reached the host", n)
	}
	status := a.engine.Status()
	if !status.Running || !status.Configured || status.Epoch == 0 || len(status.Peers) != 1 {
		t.Fatalf("status %+v", status)
	}
	p := status.Peers[0]
	if p.Name != "db" || p.Path.Kind != PathDirect || p.LastHandshake.IsZero() || p.TxBytes == 0 || p.RxBytes == 0 || !p.Active {
		t.Fatalf("peer %+v", p)
	}
}

func TestDeniedFlowsAreDroppedAndCounted(t *testing.T) {
	_, a, b := two(t)
	now := time.Now()
	a.apply(t, a.Config(now, enginetest.AllowAll(b.Member), b.Member))
	b.apply(t, b.Config(now, &ruleset.RuleSet{In: []ruleset.Rule{enginetest.Allow("dns", a.Member, packet.UDP, 53)}}, a.Member))
	denied := enginetest.UDP(netip.AddrPortFrom(a.Addr4(), 5000), netip.AddrPortFrom(b.Addr4(), 54), "no")
	a.tun.Send(denied)
	a.send(t, b, 53, "yes")
	if drops := b.engine.Status().Drops; drops["drop_no_rule"] != 1 {
		t.Fatalf("drops %v", drops)
	}
	// b may open nothing: its own host is told.
	b.tun.Send(enginetest.UDP(netip.AddrPortFrom(b.Addr4(), 5000), netip.AddrPortFrom(a.Addr4(), 53), "no"))
	var info packet.Info
	if fault := packet.Parse(b.receive(t), &info); fault != packet.None || info.Kind != packet.ICMPError || info.Code != 13 {
		t.Fatalf("%v, %+v: want ICMP prohibited", fault, info)
	}
	_, err := b.ping(t, a.Addr4())
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Peer != "laptop" {
		t.Fatalf("ping: %v", err)
	}
	if _, err := b.ping(t, netip.MustParseAddr("100.64.9.9")); !errors.Is(err, ErrNoPeer) {
		t.Fatalf("ping of nobody: %v", err)
	}
}

func TestRulesAndMembershipCutFlows(t *testing.T) {
	_, a, b := two(t)
	now := time.Now()
	all := func(n, peer *node) { n.apply(t, n.Config(time.Now(), enginetest.AllowAll(peer.Member), peer.Member)) }
	all(a, b)
	all(b, a)
	ours, theirs := netip.AddrPortFrom(a.Addr4(), 6000), netip.AddrPortFrom(b.Addr4(), 80)
	for _, step := range []struct {
		from, to *node
		packet   []byte
	}{
		{a, b, enginetest.TCP(ours, theirs, packet.SYN, 100, 0, "")},
		{b, a, enginetest.TCP(theirs, ours, packet.SYN|packet.ACK, 500, 101, "")},
		{a, b, enginetest.TCP(ours, theirs, packet.ACK, 101, 501, "hello")},
	} {
		step.from.tun.Send(step.packet)
		if got := step.to.receive(t); !bytes.Equal(got, step.packet) {
			t.Fatalf("got % x, want % x", got, step.packet)
		}
	}
	// The rule goes on b alone: both sides of the flow are told.
	b.apply(t, b.Config(now, &ruleset.RuleSet{}, a.Member))
	for _, n := range []*node{b, a} {
		var info packet.Info
		if fault := packet.Parse(n.receive(t), &info); fault != packet.None || info.Flags&packet.RST == 0 {
			t.Fatalf("%s: %v, %+v: want a reset", n.Certificate.Name, fault, info)
		}
	}
	all(b, a)
	a.send(t, b, 53, "again")

	// a is no member for b any longer.
	b.apply(t, b.Config(now, enginetest.AllowAll()))
	if peers := b.engine.Status().Peers; len(peers) != 0 {
		t.Fatalf("peers %v", peers)
	}
	for len(b.tun.Received()) > 0 { // the host was told of the flow's end
		<-b.tun.Received()
	}
	before := b.engine.Status().Drops["unknown_receiver"]
	a.tun.Send(enginetest.UDP(netip.AddrPortFrom(a.Addr4(), 5000), netip.AddrPortFrom(b.Addr4(), 53), "no"))
	start := time.Now()
	for b.engine.Status().Drops["unknown_receiver"] == before {
		if time.Since(start) > patience {
			t.Fatal("the packet of a removed peer was not dropped")
		}
	}
	if n := len(b.tun.Received()); n != 0 {
		t.Fatalf("%d packets of a removed peer arrived", n)
	}
}

type admitAll struct{}

func (admitAll) Admit(ident.NodeKey, []byte, time.Time) (string, time.Time, error) {
	return "test", time.Time{}, nil
}

func (admitAll) Extend(string, ident.NodeKey, time.Time) (time.Time, bool) { return time.Time{}, false }

// serveRelay runs a relay that admits everybody until the test ends; datagrams is
// the port at which it takes datagrams, nil for none.
func serveRelay(t *testing.T, datagrams sock.Conn) (server *relayhttp.Server, url string) {
	t.Helper()
	server, err := relayhttp.NewServer(relayhttp.ServerConfig{
		ServerConfig: relay.ServerConfig{Name: "home", Admitter: admitAll{}, Rand: rand.Reader},
		Datagrams:    datagrams, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	h := httptest.NewServer(server)
	t.Cleanup(h.Close)
	background(t, server.Run)
	return server, h.URL
}

func TestRelayCarriesWhatHasNoDirectPath(t *testing.T) {
	_, a, b := two(t)
	server, url := serveRelay(t, nil)
	now := time.Now()
	for _, n := range []struct{ n, peer *node }{{a, b}, {b, a}} {
		c := n.n.Config(now, enginetest.AllowAll(n.peer.Member), n.peer.Member)
		c.Peers[0].Endpoints = nil // nobody says where the other is
		c.Relays = []config.Relay{{Name: "home", URL: url}}
		n.n.apply(t, c)
	}
	for _, n := range []*node{a, b} {
		start := time.Now()
		for s := n.engine.Status().Relay; s == nil || !s.Connected; s = n.engine.Status().Relay {
			if time.Since(start) > patience {
				t.Fatalf("relay %+v", s)
			}
		}
	}
	a.send(t, b, 53, "over the relay")
	b.send(t, a, 53, "and back")
	// The relay also carries the call that finds the direct path.
	start := time.Now()
	for a.engine.Status().Peers[0].Path.Kind != PathDirect {
		if time.Since(start) > patience {
			t.Fatalf("peers %+v", a.engine.Status().Peers)
		}
	}
	a.send(t, b, 53, "directly")
	if got := server.Snapshot().Stats.PacketsOut; got == 0 {
		t.Fatal("nothing went over the relay")
	}
}

func TestApplyRefusesWhatCanNotBe(t *testing.T) {
	_, a, b := two(t)
	now := time.Now()
	good := a.Config(now, enginetest.AllowAll(b.Member), b.Member)
	a.apply(t, good)
	bad := *good
	bad.PrivateKey = b.Private
	if err := a.engine.Apply(&bad); !errors.Is(err, config.ErrInvalid) {
		t.Fatalf("applied another device's key: %v", err)
	}
	if got := len(a.engine.Status().Peers); got != 1 {
		t.Fatalf("%d peers after a refused configuration", got)
	}
}

func TestStoppedEngineSaysSo(t *testing.T) {
	e, err := New(Config{TUN: simnet.NewTUN(0), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if err := e.Apply(nil); !errors.Is(err, ErrStopped) {
		t.Fatalf("Apply: %v", err)
	}
	if s := e.Status(); s.Running {
		t.Fatalf("status %+v", s)
	}
	e.HandleNetworkChange()
}
