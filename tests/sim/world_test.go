package sim

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/netstack/alarm"
	"github.com/warren-overlay/warren/netstack/config"
	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/enginetest"
	"github.com/warren-overlay/warren/netstack/relay"
	"github.com/warren-overlay/warren/netstack/relay/relayhttp"
	"github.com/warren-overlay/warren/netstack/simnet"
	"github.com/warren-overlay/warren/netstack/sock"
	"github.com/warren-overlay/warren/netstack/stun/stunserver"
)

// retained keeps what must outlive its bubble; see package wg.
var retained struct {
	mu      sync.Mutex
	objects []any // protected by mu
}

func retain(object any) {
	retained.mu.Lock()
	defer retained.mu.Unlock()
	retained.objects = append(retained.objects, object)
}

var (
	serverAddr = netip.MustParseAddr("203.0.113.1")
	relayURL   = "ws://203.0.113.1:80" + relayhttp.Path
	stunAddr   = "203.0.113.1:3478"

	// serverAddr6 is the other address of what serves the nodes, and serverName the
	// name of both, where the world is dualStack.
	serverAddr6 = netip.MustParseAddr("2001:db8:ffff::1")
	serverName  = "server.example"

	// bubbleStart is when every bubble begins.
	bubbleStart = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
)

// firstPort is the UDP port of a node that was not given another.
const firstPort = 41641

// idleTime is how long an HTTP connection to the relay lives unused.
const idleTime = 10 * time.Second

// sim is one simulated internet with a relay and a STUN server, and the network
// of engines on it. All times are simulated.
type sim struct {
	*testing.T
	*enginetest.Network
	world  *simnet.World
	server *simnet.Host
	more   []*relaySite // beside it
	url    string       // of the relay of the server
	stun   []string     // servers that the nodes are told of
	taps   bool         // whether what nodes send is kept
	// skew is how far the clocks of nodes are ahead that are started from now on.
	skew    time.Duration
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// node is an engine, the host that it runs on, and the host's applications.
type node struct {
	*enginetest.Member
	sim    *sim
	host   *simnet.Host
	tun    *simnet.TUN
	engine *engine.Engine
	rules  *ruleset.RuleSet
	peers  []*node
	port   uint16
	home   string // the relay at which it was said to listen last
	skew   time.Duration
	// slept is for how long, in nanoseconds, the machine was suspended: its timers
	// stood still, and its clock has gone on.
	slept *atomic.Int64
	tap   *tap   // the engine's socket, where sim.taps is set
	stop  func() // ends the engine
}

// sized returns how large a test is: full, or with -short, which the race detector
// is run with because it takes eight times as long, short.
func sized[T any](full, short T) T {
	if testing.Short() {
		return short
	}
	return full
}

// run runs a test in a bubble of its own.
func run(t *testing.T, seed uint64, test func(s *sim)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		s := &sim{
			T: t, Network: enginetest.NewNetwork(t, byte(seed), time.Now()),
			world: simnet.NewWorld(seed), ctx: ctx, cancel: cancel,
			url: relayURL, stun: []string{stunAddr},
		}
		// Connections that came when nobody wanted them any more end by their
		// idle time.
		defer time.Sleep(2 * idleTime)
		defer s.running.Wait()
		defer cancel()
		s.world.Do(func(n *simnet.Network) {
			n.SetPath(simnet.Path{Delay: 20 * time.Millisecond})
			s.server = n.Internet().NewHost("server", serverAddr)
		})
		s.serveRelay(ctx, "home", s.server, func(net.Conn) {})
		s.startSTUN(s.server)
		test(s)
	})
}

type admitMembers struct {
	genesis *authority.Genesis
	relay   string
}

func (a admitMembers) Admit(node ident.NodeKey, token []byte, now time.Time) (string, time.Time, error) {
	if _, err := authority.VerifyRelayToken(a.genesis, token, node, a.relay, now); err != nil {
		return "", time.Time{}, err
	}
	return a.genesis.Fingerprint().String(), time.Time{}, nil
}

func (admitMembers) Extend(string, ident.NodeKey, time.Time) (time.Time, bool) {
	return time.Time{}, false
}

// serveRelay runs a relay on a host until ctx ends, and tells opened of each
// connection to it.
func (s *sim) serveRelay(ctx context.Context, name string, on *simnet.Host, opened func(net.Conn)) *relayhttp.Server {
	s.Helper()
	server, err := relayhttp.NewServer(relayhttp.ServerConfig{
		ServerConfig: relay.ServerConfig{Name: name, Admitter: admitMembers{s.Genesis, name}, Rand: rand.Reader},
		Logger:       slog.New(slog.DiscardHandler),
	})
	if err != nil {
		s.Fatal(err)
	}
	listener, err := s.world.Listen(on, 80)
	if err != nil {
		s.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc(relayhttp.Path, func(w http.ResponseWriter, r *http.Request) {
		s.running.Add(1)
		defer s.running.Done()
		server.ServeHTTP(w, r)
	})
	web := &http.Server{Handler: mux, ConnContext: func(ctx context.Context, c net.Conn) context.Context {
		opened(c)
		return ctx
	}}
	s.running.Go(func() {
		if err := server.Run(ctx); err != nil {
			s.Error(err)
		}
	})
	s.running.Go(func() {
		if err := web.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.Error(err)
		}
	})
	context.AfterFunc(ctx, func() { web.Close() })
	return server
}

func (s *sim) startSTUN(on *simnet.Host) {
	conn, err := s.world.ListenUDP(on, 3478)
	if err != nil {
		s.Fatal(err)
	}
	s.running.Go(func() {
		if err := stunserver.New(conn).Run(s.ctx); err != nil {
			s.Error(err)
		}
	})
}

// dualStack gives the nodes two STUN servers, which show how a NAT's ports differ,
// and the relay and both servers to nodes that have IPv6 only.
func (s *sim) dualStack() {
	s.twoServers()
	s.world.Do(func(n *simnet.Network) { s.server.Move(n.Internet(), serverAddr, serverAddr6) })
	s.stun = append(s.stun, netip.AddrPortFrom(serverAddr6, 3478).String())
	s.url = "ws://" + serverName + ":80" + relayhttp.Path
}

// start starts an engine on a host.
func (s *sim) start(name string, host *simnet.Host, change func(*authority.Certificate)) *node {
	s.Helper()
	return s.startAt(name, host, firstPort, change)
}

// startAt starts an engine at a port of a host.
func (s *sim) startAt(name string, host *simnet.Host, port uint16, change func(*authority.Certificate)) *node {
	s.Helper()
	n := &node{Member: s.Join(name, change), sim: s, host: host, port: port, skew: s.skew, slept: new(atomic.Int64)}
	n.begin()
	return n
}

// restart ends the engine and starts another in its place, which remembers
// nothing.
func (n *node) restart() {
	n.sim.Helper()
	n.stop()
	n.begin()
}

// httpClient is for what runs on a host.
func (s *sim) httpClient(host *simnet.Host) *http.Client {
	return &http.Client{Transport: &http.Transport{
		IdleConnTimeout: idleTime,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			to, err := s.resolve(host, address)
			if err != nil {
				return nil, err
			}
			// The client goes on to dial when nobody waits any more.
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			defer context.AfterFunc(s.ctx, cancel)()
			return s.world.Dial(ctx, host, to)
		},
	}}
}

// resolve returns an address that a host can reach of one with the server's name,
// as a system's resolver would, and any other as it is.
func (s *sim) resolve(host *simnet.Host, address string) (netip.AddrPort, error) {
	port, named := strings.CutPrefix(address, serverName)
	if !named {
		return netip.ParseAddrPort(address)
	}
	four := false
	s.world.Do(func(*simnet.Network) { four = slices.ContainsFunc(host.Addrs(), netip.Addr.Is4) })
	if four {
		return netip.ParseAddrPort(serverAddr.String() + port)
	}
	return netip.ParseAddrPort("[" + serverAddr6.String() + "]" + port)
}

// begin starts an engine.
func (n *node) begin() {
	s, host, skew, slept := n.sim, n.host, n.skew, n.slept
	s.Helper()
	n.tun = simnet.NewTUN(0)
	client := s.httpClient(host)
	var err error
	n.engine, err = engine.New(engine.Config{
		TUN: n.tun, ManageDevice: false, Port: n.port,
		Listen: func(port uint16) (sock.Conn, error) {
			conn, err := s.world.ListenUDP(host, port)
			if err != nil || !s.taps {
				return conn, err
			}
			n.tap = &tap{Conn: conn, sent: make(map[netip.AddrPort]map[int][][]byte)}
			return n.tap, nil
		},
		LocalAddresses: func() (addrs []netip.Addr, err error) {
			s.world.Do(func(*simnet.Network) { addrs = append(addrs, host.Addrs()...) })
			return addrs, nil
		},
		DialRelay: func(ctx context.Context, url string) (relayhttp.Conn, error) {
			conn, err := relayhttp.Dialer{Client: client}.Dial(ctx, url)
			return n.hostile(conn, url), err
		},
		Now:    func() time.Time { return time.Now().Round(0).Add(skew + time.Duration(slept.Load())) },
		Logger: slog.New(slog.NewTextHandler(s.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", n.Certificate.Name),
		Retain: retain,
	})
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	ended := make(chan struct{})
	n.stop = func() {
		cancel()
		<-ended
	}
	running := n.engine
	s.running.Go(func() {
		defer close(ended)
		if err := running.Run(ctx); err != nil {
			s.Errorf("%s: %v", n.Certificate.Name, err)
		}
	})
	// The coordinator's part: what the engine knows of itself reaches the others
	// with the next configuration.
	s.running.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-running.Reach():
			}
		}
	})
}

// know gives the nodes a configuration in which they know each other and where
// they are, with rules that allow everything.
func (s *sim) know(nodes ...*node) {
	s.Helper()
	for _, n := range nodes {
		n.peers = nil
		var members []*enginetest.Member
		for _, other := range nodes {
			if other != n {
				n.peers = append(n.peers, other)
				members = append(members, other.Member)
			}
		}
		n.apply(enginetest.AllowAll(members...))
	}
	// What STUN says comes a little later, and is told as a coordinator would.
	time.Sleep(time.Second)
	synctest.Wait()
	for _, n := range nodes {
		status := n.engine.Status()
		n.Endpoints = status.Endpoints
		if status.Relay != nil {
			n.home = status.Relay.Name
		}
	}
	for _, n := range nodes {
		n.apply(n.rules)
	}
	synctest.Wait()
}

// apply gives n its configuration with the given rules.
func (n *node) apply(rules *ruleset.RuleSet) {
	n.sim.Helper()
	n.rules = rules
	c := n.config(rules)
	if err := n.engine.Apply(c); err != nil {
		n.sim.Fatal(err)
	}
}

func (n *node) config(rules *ruleset.RuleSet) *config.Config {
	var members []*enginetest.Member
	for _, p := range n.peers {
		members = append(members, p.Member)
	}
	c := n.Config(time.Now(), rules, members...)
	c.Lead = n.skew
	c.Relays = []config.Relay{{Name: "home", URL: n.sim.url}}
	for _, r := range n.sim.more {
		c.Relays = append(c.Relays, config.Relay{Name: r.name, URL: r.url})
	}
	for i, p := range n.peers {
		c.Peers[i].HomeRelay = p.home
	}
	c.STUN = n.sim.stun
	admitted := authority.RelayToken{NodeKey: n.Key, NotAfter: time.Now().Add(authority.RelayTokenValidity).Truncate(time.Second)}
	for _, r := range c.Relays {
		admitted.Relays = append(admitted.Relays, r.Name)
	}
	token, err := authority.IssueRelayToken(n.sim.Genesis, admitted, n.sim.Signer)
	if err != nil {
		n.sim.Fatal(err)
	}
	c.RelayToken = token
	return c
}

func (n *node) udp(to *node, payload string) []byte {
	return enginetest.UDP(netip.AddrPortFrom(n.Addr4(), 5000), netip.AddrPortFrom(to.Addr4(), 53), payload)
}

// passes sends one datagram and reports whether it arrives within the time.
func (n *node) passes(to *node, within time.Duration) bool {
	n.sim.Helper()
	b := n.udp(to, fmt.Sprint(time.Now().UnixNano()))
	n.tun.Send(b)
	timeout := alarm.New(within)
	defer timeout.Stop()
	for {
		select {
		case got := <-to.tun.Received():
			if bytes.Equal(got, b) {
				return true
			}
		case <-timeout.C:
			return false
		}
	}
}

// until sends a datagram every interval until cond holds, and returns how long
// it took. It fails after the given time.
func (n *node) until(to *node, within time.Duration, what string, cond func() bool) time.Duration {
	n.sim.Helper()
	start := time.Now()
	for !cond() {
		if time.Since(start) > within {
			n.sim.Fatalf("not within %v: %s; %+v", within, what, n.engine.Status())
		}
		n.passes(to, 200*time.Millisecond)
	}
	return time.Since(start)
}

// path returns how n reaches the peer.
func (n *node) path(to *node) engine.Path {
	for _, p := range n.engine.Status().Peers {
		if p.Key == to.Key {
			return p.Path
		}
	}
	return engine.Path{}
}

// connected waits until the relay has admitted n.
func (n *node) connected() {
	n.sim.Helper()
	for range 100 {
		synctest.Wait()
		if s := n.engine.Status().Relay; s != nil && s.Connected {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	n.sim.Fatalf("no relay: %+v", n.engine.Status().Relay)
}

// parsed returns what a packet says.
func parsed(t testing.TB, b []byte) packet.Info {
	t.Helper()
	var info packet.Info
	if fault := packet.Parse(b, &info); fault != packet.None {
		t.Fatalf("% x: %v", b, fault)
	}
	return info
}
