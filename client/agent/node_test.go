package agent_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
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
	"github.com/warren-overlay/warren/client/localapi"
	"github.com/warren-overlay/warren/client/statefile"
	"github.com/warren-overlay/warren/coordinator/wire"
	"github.com/warren-overlay/warren/netstack/config"
	"github.com/warren-overlay/warren/netstack/engine"
)

// plane is a DataPlane that notes what it was given.
type plane struct {
	reach chan engine.Reach

	mu      sync.Mutex // protects the rest
	applied []*config.Config
	changes int
	checks  int
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

func (p *plane) Paths(to netip.Addr) (engine.PeerPaths, error) {
	if to != netip.MustParseAddr("100.64.0.2") {
		return engine.PeerPaths{}, engine.ErrNoPeer
	}
	return engine.PeerPaths{Name: "node2", Path: engine.Path{Kind: engine.PathRelay, Relay: "default"}}, nil
}

func (p *plane) CheckNetwork(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.checks++
	return nil
}

func (p *plane) Reach() <-chan engine.Reach { return p.reach }
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
func (p *pipe) Binding() wire.Binding            { return wire.Binding{1} }
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
	rules, err := authority.IssueRules(c.genesis, 1, 1, someRules(), c.signer)
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

// newNode starts a node that has never run, with a coordinator of its own, and
// returns where it keeps its state.
func newNode(t *testing.T) (c *coordinator, dir string, n *node) {
	t.Helper()
	c, dir = newCoordinator(t), filepath.Join(t.TempDir(), "state")
	return c, dir, startNode(t, dir, c)
}

func startNode(t *testing.T, dir string, c *coordinator) *node {
	t.Helper()
	state, err := statefile.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{plane: &plane{reach: make(chan engine.Reach, 1)}, log: &bytes.Buffer{}}
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

// someRules let this device reach TCP port 80 of node 2, and nothing else.
func someRules() *ruleset.RuleSet {
	return &ruleset.RuleSet{Epoch: 1, Out: []ruleset.Rule{{
		ID: "web", Peers: []ruleset.Selector{{Prefixes: []netip.Prefix{netip.MustParsePrefix("100.64.0.2/32")}}},
		Services: []ruleset.Service{{Protocol: 6, First: 80, Last: 80}},
	}}}
}
