package agent_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/client/agent"
	"github.com/warren-overlay/warren/client/health"
	"github.com/warren-overlay/warren/client/localapi"
	"github.com/warren-overlay/warren/client/statefile"
	"github.com/warren-overlay/warren/coordinator/wire"
	"github.com/warren-overlay/warren/netstack/config"
	"github.com/warren-overlay/warren/netstack/engine"
)

// plane is a DataPlane that notes what it was given.
type plane struct {
	endpoints chan []netip.AddrPort

	mu      sync.Mutex // protects the rest
	applied []*config.Config
	changes int
}

func (p *plane) Apply(c *config.Config) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.applied = append(p.applied, c)
	if c != nil {
		return c.Validate()
	}
	return nil
}

func (p *plane) last() *config.Config {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.applied) == 0 {
		return nil
	}
	return p.applied[len(p.applied)-1]
}

func (p *plane) Status() engine.Status { return engine.Status{Running: true, Device: "test"} }

func (p *plane) Ping(ctx context.Context, to netip.Addr) (engine.PingReply, error) {
	if to == netip.MustParseAddr("100.64.0.2") {
		return engine.PingReply{Peer: "node2", RTT: time.Millisecond, Path: engine.Path{Kind: engine.PathRelay, Relay: "default"}}, nil
	}
	if to == netip.MustParseAddr("100.64.0.3") {
		return engine.PingReply{}, &engine.RefusedError{Peer: "node3"}
	}
	<-ctx.Done()
	return engine.PingReply{}, ctx.Err()
}

// Why knows node2, where SSH is allowed.
func (p *plane) Why(q engine.Question) (engine.Answer, error) {
	a := engine.Answer{Peer: "node2", Node: 2}
	a.Epoch, a.Services = 7, []ruleset.Service{{Protocol: packet.TCP, First: 22, Last: 22}, {Protocol: packet.UDP, First: 1000, Last: 2000}}
	switch {
	case q.Remote != netip.MustParseAddr("100.64.0.2"):
		return engine.Answer{}, engine.ErrNoPeer
	case q.Port == 22:
		a.Verdict = ruleset.Verdict{Allowed: true, Rule: "ssh"}
	case q.Port == 23:
		a.Reason, a.Verdict = filter.DropDenied, ruleset.Verdict{Rule: "no-telnet"}
	default:
		a.Reason = filter.DropNoRule
	}
	return a, nil
}

func (p *plane) Endpoints() <-chan []netip.AddrPort { return p.endpoints }
func (p *plane) HandleNetworkChange() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changes++
}

// pipe is a Channel to the test, which is the coordinator.
type pipe struct {
	toNode, fromNode chan []byte
	closed           chan struct{}
	once             sync.Once
}

func newPipe() *pipe {
	return &pipe{toNode: make(chan []byte, 16), fromNode: make(chan []byte, 16), closed: make(chan struct{})}
}

func (p *pipe) Send(m []byte) error {
	select {
	case p.fromNode <- m:
		return nil
	case <-p.closed:
		return io.ErrClosedPipe
	}
}

func (p *pipe) Receive() ([]byte, error) {
	select {
	case m := <-p.toNode:
		return m, nil
	case <-p.closed:
		return nil, io.EOF
	}
}
func (p *pipe) SetWriteDeadline(time.Time) error { return nil }
func (p *pipe) Close() error                     { p.once.Do(func() { close(p.closed) }); return nil }

// coordinator is a Coordinator whose channels end in the test.
type coordinator struct {
	t       *testing.T
	genesis *authority.Genesis
	signer  ident.SignerPrivate
	peers   map[ident.NodeID]ident.NodePrivate

	mu    sync.Mutex // protects down and dials
	down  bool
	dials []agent.Dial
	// accepted gives each new channel to the test.
	accepted chan *pipe
}

func newCoordinator(t *testing.T) *coordinator {
	t.Helper()
	c := &coordinator{t: t, peers: map[ident.NodeID]ident.NodePrivate{}, accepted: make(chan *pipe, 8)}
	signer, err1 := ident.NewSignerPrivate(rand.Reader)
	channel, err2 := ident.NewChannelPrivate(rand.Reader)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	c.signer = signer
	c.genesis = &authority.Genesis{
		Created: time.Now(), Channel: channel.Public(),
		Signers: []authority.Signer{{Key: signer.Public(), Roles: authority.SignDevices | authority.SignRules | authority.SignRelayTokens}},
		Prefix4: netip.MustParsePrefix("100.64.0.0/10"), Prefix6: netip.MustParsePrefix("fd5a:1:2::/48"),
	}
	return c
}

func (c *coordinator) FetchGenesis(context.Context, string, ident.Fingerprint) (*authority.Genesis, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down {
		return nil, errors.New("connection refused")
	}
	return c.genesis, nil
}

func (c *coordinator) Dial(_ context.Context, d agent.Dial) (agent.Channel, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dials = append(c.dials, d)
	if c.down {
		return nil, errors.New("connection refused")
	}
	p := newPipe()
	c.accepted <- p
	return p, nil
}

func (c *coordinator) setDown(down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = down
}

func (c *coordinator) certificate(id ident.NodeID, key ident.NodeKey) []byte {
	c.t.Helper()
	signed, err := authority.IssueCertificate(c.genesis, &authority.Certificate{
		Serial: uint64(id) * 10, Node: id, NodeKey: key, Name: fmt.Sprintf("node%d", id), Owner: 7,
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{100, 64, 0, byte(id)})},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(60 * 24 * time.Hour),
	}, c.signer)
	if err != nil {
		c.t.Fatal(err)
	}
	return signed
}

func (c *coordinator) fullMap(self ident.NodeKey, sequence uint64, peers ...ident.NodeID) *wire.Map {
	c.t.Helper()
	m := &wire.Map{
		Sequence: sequence, Self: c.certificate(1, self), Peers: map[ident.NodeID]wire.Peer{},
		Settings: wire.Settings{Users: []wire.User{{ID: 7, Login: "alice@example.com"}}, Relays: []wire.Relay{{Name: "default", URL: "/relay"}}},
	}
	rules, err := authority.IssueRules(c.genesis, 1, someRules(), c.signer)
	if err != nil {
		c.t.Fatal(err)
	}
	m.Rules = rules
	for _, id := range peers {
		key, ok := c.peers[id]
		if !ok {
			if key, err = ident.NewNodePrivate(rand.Reader); err != nil {
				c.t.Fatal(err)
			}
			c.peers[id] = key
		}
		m.Peers[id] = wire.Peer{Certificate: c.certificate(id, key.Public()), State: wire.PeerState{Online: true}}
	}
	return m
}

func (c *coordinator) joinKey() string {
	c.t.Helper()
	k, err := wire.NewJoinKey(rand.Reader, c.genesis.Fingerprint())
	if err != nil {
		c.t.Fatal(err)
	}
	return k.Text()
}

// take returns the node's next message.
func take[T wire.ClientMessage](t *testing.T, p *pipe) T {
	t.Helper()
	m, err := wire.DecodeClient(<-p.fromNode)
	if err != nil {
		t.Fatal(err)
	}
	got, ok := m.(T)
	if !ok {
		t.Fatalf("the node sent %T, want %T", m, got)
	}
	return got
}

func (p *pipe) give(m wire.ServerMessage) { p.toNode <- wire.EncodeServer(m) }

// node is a running agent.
type node struct {
	*agent.Agent
	plane *plane
	stop  func()
	log   *bytes.Buffer
}

func startNode(t *testing.T, dir string, c *coordinator) *node {
	t.Helper()
	state, err := statefile.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{plane: &plane{endpoints: make(chan []netip.AddrPort, 1)}, log: &bytes.Buffer{}}
	n.Agent, err = agent.New(agent.Config{
		State: state, DataPlane: n.plane, Decisions: n.plane, Coordinator: c, Rand: rand.Reader, Now: time.Now, Hostname: "default",
		Host:   wire.HostInfo{ProgramVersion: "test", OS: "linux"},
		Logger: slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		state.Close()
	})
	t.Cleanup(n.stop)
	synctest.Wait()
	return n
}

func (n *node) status() localapi.Status { return n.Status(context.Background(), 0) }

// join brings the node into the network with peers 2 and 3.
func (n *node) join(t *testing.T, c *coordinator) (*pipe, wire.Register) {
	t.Helper()
	if err := n.Up(t.Context(), localapi.UpRequest{LoginServer: "http://c:8080/", AuthKey: c.joinKey()}); err != nil {
		t.Fatal(err)
	}
	p := <-c.accepted
	take[wire.Hello](t, p)
	p.give(wire.Welcome{Version: wire.Newest, Time: time.Now()})
	r := take[wire.Register](t, p)
	p.give(wire.Registered{Node: 1, Name: "node1"})
	take[wire.MapRequest](t, p)
	p.give(c.fullMap(r.NodeKey, 1, 2, 3))
	synctest.Wait()
	return p, r
}

func TestJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCoordinator(t)
		n := startNode(t, filepath.Join(t.TempDir(), "state"), c)
		if s := n.status(); s.State != localapi.NeedsLogin {
			t.Errorf("before: %s", s.State)
		}
		p, r := n.join(t, c)
		if r.Hostname != "default" || strings.Count(r.AuthKey, "-") != 3 {
			t.Errorf("registered as %q with a key of %d parts", r.Hostname, strings.Count(r.AuthKey, "-"))
		}
		s := n.status()
		if s.State != localapi.Connected || s.Self.Name != "node1" || len(s.Peers) != 2 || s.Peers[0].User != "alice@example.com" || s.LoginServer != "http://c:8080" {
			t.Errorf("status %+v", s)
		}
		got := n.plane.last()
		if got == nil || len(got.Peers) != 2 || got.Relays[0].URL != "ws://c:8080/relay" || got.PrivateKey.Public() != r.NodeKey {
			t.Fatalf("data plane %+v", got)
		}

		// Endpoints go to the coordinator.
		n.plane.endpoints <- []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:41641")}
		time.Sleep(2 * time.Second)
		if u := take[wire.Update](t, p); len(u.Endpoints) != 1 {
			t.Errorf("update %v", u)
		}
		// A second up changes nothing.
		if err := n.Up(t.Context(), localapi.UpRequest{}); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if len(c.dials) != 1 {
			t.Errorf("%d connections", len(c.dials))
		}

		// Names and addresses.
		for _, name := range []string{"node2", "NODE2", "node2.", "node2." + agent.Domain, "n2", "100.64.0.2", "::ffff:100.64.0.2"} {
			if a, err := n.Resolve(t.Context(), name); err != nil || len(a) != 1 || a[0] != netip.MustParseAddr("100.64.0.2") {
				t.Errorf("%s is %v, %v", name, a, err)
			}
		}
		for _, name := range []string{"node9", "100.64.0.9", "8.8.8.8", "", "node2.example.com"} {
			if a, err := n.Resolve(t.Context(), name); err == nil {
				t.Errorf("%s is %v", name, a)
			}
		}
		for _, w := range []struct {
			request localapi.WhyRequest
			allowed bool
			text    string
		}{
			{localapi.WhyRequest{To: "node2", Protocol: 6, Port: 22}, true, `allowed: rule "ssh" lets this device open tcp:22 to node2`},
			{localapi.WhyRequest{To: "100.64.0.2", Protocol: 6, Port: 22}, true, `allowed: rule "ssh" lets this device`},
			{localapi.WhyRequest{To: "node2", Protocol: 6, Port: 80}, false, `denied: no rule lets this device open tcp:80 to node2; what it may open there: tcp:22, udp:1000-2000`},
			{localapi.WhyRequest{To: "node2", Protocol: 6, Port: 23}, false, `denied: rule "no-telnet" forbids this device to open tcp:23 to node2`},
			{localapi.WhyRequest{To: "node2", Protocol: 1}, false, "open icmp to node2"},
			{localapi.WhyRequest{From: "node2", Protocol: 6, Port: 22}, true, `rule "ssh" lets node2 open tcp:22 here`},
			{localapi.WhyRequest{From: "node2", To: "node1", Protocol: 6, Port: 80}, false, "no rule lets node2 open tcp:80 here; what it may open here: tcp:22"},
			{localapi.WhyRequest{To: "node3", Protocol: 6, Port: 80}, false, "tcp:80"},
			{localapi.WhyRequest{To: "nobody", Protocol: 6, Port: 80}, false, `no device named "nobody" is visible to you`},
			{localapi.WhyRequest{To: "node1", Protocol: 6, Port: 80}, true, "it is this device"},
		} {
			r, err := n.Why(t.Context(), w.request)
			if err != nil || r.Allowed != w.allowed || !strings.Contains(r.Text, w.text) || r.Reason == "" || r.Services == nil {
				t.Errorf("why %+v: %+v, %v; want %s", w.request, r, err, w.text)
			}
		}
		var foreign *localapi.Error
		if _, err := n.Why(t.Context(), localapi.WhyRequest{From: "node2", To: "node3", Protocol: 6, Port: 80}); !errors.As(err, &foreign) || foreign.Code != localapi.CodeBadRequest {
			t.Errorf("why between two others: %v", err)
		}
		for target, want := range map[string]localapi.Code{"node3": localapi.CodeDenied, "nobody": localapi.CodeNotFound, "node1": localapi.CodeBadRequest} {
			var e *localapi.Error
			if _, err := n.Ping(t.Context(), localapi.PingRequest{Target: target, Timeout: time.Second}); !errors.As(err, &e) || e.Code != want {
				t.Errorf("ping %s: %v, want %s", target, err, want)
			}
		}
		if r, err := n.Ping(t.Context(), localapi.PingRequest{Target: "node2", Timeout: time.Second}); err != nil || r.Path.Relay != "default" {
			t.Errorf("ping: %+v, %v", r, err)
		}
		n.stop()
	})
}

// TestRestartWithoutCoordinator: the node comes back from its saved map, and is
// told the rest later.
func TestRestartWithoutCoordinator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCoordinator(t)
		dir := filepath.Join(t.TempDir(), "state")
		n := startNode(t, dir, c)
		_, r := n.join(t, c)
		n.stop()

		c.setDown(true)
		n = startNode(t, dir, c)
		if got := n.plane.last(); got == nil || len(got.Peers) != 2 || got.PrivateKey.Public() != r.NodeKey {
			t.Fatalf("data plane %+v", got)
		}
		time.Sleep(time.Minute)
		s := n.status()
		if s.State != localapi.Offline || !s.Cached || !hasFact(s, health.CoordinatorUnreachable) {
			t.Errorf("status %s, cached %v, %v", s.State, s.Cached, s.Health)
		}
		c.setDown(false)
		p := <-c.accepted
		take[wire.Hello](t, p)
		p.give(wire.Welcome{Version: wire.Newest, Time: time.Now(), Registered: true})
		if q := take[wire.MapRequest](t, p); q.HaveSequence != 1 {
			t.Errorf("asked with %d", q.HaveSequence)
		}
		p.give(c.fullMap(r.NodeKey, 2, 2))
		synctest.Wait()
		if s := n.status(); s.State != localapi.Connected || len(s.Peers) != 1 || len(s.Health) != 0 {
			t.Errorf("status %+v", s)
		}

		// A connection that breaks comes back by itself.
		p.Close()
		p = <-c.accepted
		take[wire.Hello](t, p)
		n.stop()
	})
}

func hasFact(s localapi.Status, code health.Code) bool {
	return slices.ContainsFunc(s.Health, func(f health.Fact) bool { return f.Code == code })
}

func TestRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCoordinator(t)
		dir := filepath.Join(t.TempDir(), "state")
		n := startNode(t, dir, c)
		p, first := n.join(t, c)
		p.give(&wire.Error{Code: wire.CodeRevoked, Message: "revoked"})
		synctest.Wait()
		if n.plane.last() != nil {
			t.Error("the data plane works on")
		}
		if s := n.status(); s.State != localapi.Revoked || s.Self != nil {
			t.Errorf("status %+v", s)
		}
		n.stop()
		n = startNode(t, dir, c)
		time.Sleep(time.Hour)
		if s := n.status(); s.State != localapi.Revoked || n.plane.last() != nil || len(c.accepted) != 0 {
			t.Errorf("after a restart: %s", s.State)
		}
		var e *localapi.Error
		if err := n.Up(t.Context(), localapi.UpRequest{}); !errors.As(err, &e) || e.Code != localapi.CodeNeedsLogin {
			t.Errorf("up without a key: %v", err)
		}
		// With a new key it is a new device.
		if _, second := n.join(t, c); second.NodeKey == first.NodeKey {
			t.Error("the revoked node key was used again")
		}
		if c.dials[0].Machine.Public() == c.dials[len(c.dials)-1].Machine.Public() {
			t.Error("the revoked machine key was used again")
		}
		n.stop()
	})
}

func TestDownAndLogout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCoordinator(t)
		dir := filepath.Join(t.TempDir(), "state")
		n := startNode(t, dir, c)
		_, r := n.join(t, c)
		if err := n.Down(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s := n.status(); s.State != localapi.Stopped || n.plane.last() != nil {
			t.Errorf("after down: %s", s.State)
		}
		n.stop()
		n = startNode(t, dir, c)
		time.Sleep(time.Hour)
		if s := n.status(); s.State != localapi.Stopped || n.plane.last() != nil || len(c.dials) != 1 {
			t.Errorf("after down and a restart: %s, %d connections", s.State, len(c.dials))
		}
		if err := n.Up(t.Context(), localapi.UpRequest{}); err != nil {
			t.Fatal(err)
		}
		p := <-c.accepted
		take[wire.Hello](t, p)
		p.give(wire.Welcome{Version: wire.Newest, Time: time.Now(), Registered: true})
		take[wire.MapRequest](t, p)
		p.give(c.fullMap(r.NodeKey, 2, 2))
		synctest.Wait()
		if n.plane.last() == nil {
			t.Error("after up: no data plane")
		}
		go func() {
			<-p.fromNode // Logout
			p.Close()
		}()
		reply, err := n.Logout(t.Context())
		if err != nil || !reply.Told || reply.Name != "node1" {
			t.Errorf("logout: %+v, %v", reply, err)
		}
		if s := n.status(); s.State != localapi.NeedsLogin || n.plane.last() != nil || s.LoginServer != "" {
			t.Errorf("after logout: %+v", s)
		}
		if _, err := n.Logout(t.Context()); err == nil {
			t.Error("a second logout went well")
		}
		n.stop()
		if _, again := startNode(t, dir, c).join(t, c); again.NodeKey == r.NodeKey {
			t.Error("the node key outlived the logout")
		}
	})
}

func TestUpIsChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, other := newCoordinator(t), newCoordinator(t)
		n := startNode(t, filepath.Join(t.TempDir(), "state"), c)
		name, bad, on := "laptop", "Not A Name", true
		refused := func(what string, r localapi.UpRequest, want localapi.Code) {
			t.Helper()
			var e *localapi.Error
			if err := n.Up(t.Context(), r); !errors.As(err, &e) || e.Code != want {
				t.Errorf("%s: %v, want %s", what, err, want)
			}
		}
		refused("nothing", localapi.UpRequest{}, localapi.CodeBadRequest)
		refused("no URL", localapi.UpRequest{LoginServer: "c:8080", AuthKey: c.joinKey()}, localapi.CodeBadRequest)
		refused("another scheme", localapi.UpRequest{LoginServer: "ftp://c", AuthKey: c.joinKey()}, localapi.CodeBadRequest)
		refused("no key", localapi.UpRequest{LoginServer: "http://c:8080"}, localapi.CodeNeedsLogin)
		refused("half a key", localapi.UpRequest{LoginServer: "http://c:8080", AuthKey: c.joinKey()[:40]}, localapi.CodeBadRequest)
		refused("no name", localapi.UpRequest{LoginServer: "http://c:8080", AuthKey: c.joinKey(), Hostname: &bad}, localapi.CodeBadRequest)
		if s := n.status(); s.State != localapi.NeedsLogin || s.WantRunning {
			t.Errorf("refused requests changed something: %+v", s)
		}
		n.join(t, c)
		refused("another network", localapi.UpRequest{AuthKey: other.joinKey()}, localapi.CodeConflict)
		refused("another name", localapi.UpRequest{Hostname: &name}, localapi.CodeConflict)
		if err := n.Up(t.Context(), localapi.UpRequest{ShieldsUp: &on}); err != nil || !n.plane.last().ShieldsUp {
			t.Errorf("shields up: %v", err)
		}
		same := "default"
		refused("a setting not mentioned", localapi.UpRequest{Hostname: &same}, localapi.CodeConflict)
		if err := n.Up(t.Context(), localapi.UpRequest{Hostname: &same, Reset: true}); err != nil || n.plane.last().ShieldsUp {
			t.Errorf("reset: %v", err)
		}
		n.stop()
	})
}

func TestDamagedState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCoordinator(t)
		dir := filepath.Join(t.TempDir(), "state")
		n := startNode(t, dir, c)
		_, r := n.join(t, c)
		n.stop()
		if err := os.WriteFile(filepath.Join(dir, "membership.json"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		n = startNode(t, dir, c)
		if s := n.status(); n.plane.last() != nil || !hasFact(s, health.CacheUnusable) {
			t.Errorf("with a damaged map: %+v", s)
		}
		p := <-c.accepted // by the fingerprint of the preferences
		take[wire.Hello](t, p)
		p.give(wire.Welcome{Version: wire.Newest, Time: time.Now(), Registered: true})
		take[wire.MapRequest](t, p)
		p.give(c.fullMap(r.NodeKey, 2, 2))
		synctest.Wait()
		if s := n.status(); s.State != localapi.Connected {
			t.Errorf("after the coordinator answered: %s", s.State)
		}
		n.stop()
	})
}

// TestKeysAreForgotten is X-18 for the daemon: the join key is in no log line,
// no status and no file, whatever came of it.
func TestKeysAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCoordinator(t)
		dir := filepath.Join(t.TempDir(), "state")
		n := startNode(t, dir, c)
		key := c.joinKey()
		secret := strings.Split(key, "-")[3]
		up := localapi.UpRequest{LoginServer: "http://c:8080", AuthKey: key}
		if err := n.Up(t.Context(), up); err != nil {
			t.Fatal(err)
		}
		p := <-c.accepted
		take[wire.Hello](t, p)
		p.give(wire.Welcome{Version: wire.Newest, Time: time.Now()})
		take[wire.Register](t, p)
		p.give(&wire.Error{Code: wire.CodeAuthKey, Message: "the key is spent"})
		synctest.Wait()
		s := n.status()
		if s.State != localapi.NeedsLogin || !strings.Contains(s.Reason, "spent") {
			t.Errorf("status %s (%s)", s.State, s.Reason)
		}
		n.join(t, c)
		s2 := n.status()
		n.stop()
		for what, text := range map[string]string{"log": n.log.String(), "status": fmt.Sprintf("%+v %+v", s, s2)} {
			if strings.Contains(text, secret) {
				t.Errorf("the key is in the %s", what)
			}
		}
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			raw, err := os.ReadFile(path)
			if bytes.Contains(raw, []byte(secret)) {
				t.Errorf("the key is in %s", path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestNetworkChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCoordinator(t)
		state, err := statefile.Open(filepath.Join(t.TempDir(), "state"))
		if err != nil {
			t.Fatal(err)
		}
		defer state.Close()
		changes := make(chan struct{})
		dataPlane := &plane{endpoints: make(chan []netip.AddrPort, 1)}
		a, err := agent.New(agent.Config{
			State: state, DataPlane: dataPlane, Decisions: dataPlane, Coordinator: c, NetworkChanges: changes,
			Rand: rand.Reader, Now: time.Now, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		(&node{Agent: a, plane: dataPlane}).join(t, c)
		changes <- struct{}{}
		take[wire.Hello](t, <-c.accepted)
		cancel()
		<-done
		if dataPlane.changes != 1 {
			t.Errorf("the data plane was told %d times", dataPlane.changes)
		}
		if _, err := a.Logout(context.Background()); !errors.Is(err, agent.ErrStopped) {
			t.Errorf("after Run: %v", err)
		}
	})
}

// someRules let this device reach TCP port 80 of node 2, and nothing else.
func someRules() *ruleset.RuleSet {
	return &ruleset.RuleSet{Epoch: 1, Out: []ruleset.Rule{{
		ID: "web", Peers: []ruleset.Selector{{Prefixes: []netip.Prefix{netip.MustParsePrefix("100.64.0.2/32")}}},
		Services: []ruleset.Service{{Protocol: 6, First: 80, Last: 80}},
	}}}
}
