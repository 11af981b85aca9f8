package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/registry"
	"github.com/warren-overlay/warren/coordinator/wire"
	"github.com/warren-overlay/warren/coordinator/wire/channel"
)

// site is a coordinator whose loop runs, without listeners.
type site struct {
	*Server
	t       testing.TB
	path    string
	cancel  context.CancelFunc
	stopped chan error
	// revoked collects what OnRevoke is told.
	revokedMu sync.Mutex
	revoked   []ident.NodeKey
	// onRevoke is called by the loop; nil for nothing.
	onRevoke func()
}

func openSite(t testing.TB, path string) *site {
	t.Helper()
	o := &site{t: t, path: path, stopped: make(chan error, 1)}
	s, err := Open(t.Context(), Config{
		Dir: path, Rand: rand.Reader, Logger: slog.New(slog.DiscardHandler), Version: "test",
		Relays: []wire.Relay{{Name: "default", URL: "ws://:8080/warren/v1/relay"}}, Relay: "default", STUN: []string{":3478"},
		OnRevoke: func(k ident.NodeKey) {
			o.revokedMu.Lock()
			defer o.revokedMu.Unlock()
			o.revoked = append(o.revoked, k)
			if o.onRevoke != nil {
				o.onRevoke()
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	o.Server, o.cancel = s, cancel
	go func() { o.stopped <- s.loop(ctx) }()
	return o
}

func newSite(t testing.TB) *site { return openSite(t, filepath.Join(t.TempDir(), "data")) }

// stop ends the coordinator as a signal would.
func (o *site) stop() {
	o.t.Helper()
	o.cancel()
	if err := <-o.stopped; err != nil {
		o.t.Error(err)
	}
	o.handlers.Wait()
	if err := o.Close(); err != nil {
		o.t.Error(err)
	}
}

// restart starts a coordinator on the directory of one that was stopped.
func (o *site) restart() {
	o.t.Helper()
	next := openSite(o.t, o.path)
	o.Server, o.cancel, o.stopped = next.Server, next.cancel, next.stopped
}

func (o *site) must(cmd registry.Command) registry.Result {
	o.t.Helper()
	result, err := o.Execute(context.Background(), "test", cmd)
	if err != nil {
		o.t.Fatalf("%T: %v", cmd, err)
	}
	return result
}

// key makes a join key and returns what a device says.
func (o *site) key(cmd registry.CreateKey) string {
	o.t.Helper()
	k, err := wire.NewJoinKey(rand.Reader, o.Fingerprint())
	if err != nil {
		o.t.Fatal(err)
	}
	cmd.ID, cmd.Hash = k.ID, sha256.Sum256([]byte(k.Secret))
	if cmd.Expires.IsZero() {
		cmd.Expires = time.Now().Add(300 * 24 * time.Hour)
	}
	o.must(cmd)
	return k.Credential()
}

// device is a node as far as the control protocol goes.
type device struct {
	t       testing.TB
	machine ident.MachinePrivate
	private ident.NodePrivate
	node    ident.NodeKey
	// coordinator is whom the proofs of the key are for.
	coordinator ident.ChannelKey
	ch          *channel.Conn
	// changed holds a token when there may be something new.
	changed chan struct{}

	mu sync.Mutex // protects all below
	m  *wire.Map
	// ended is why the coordinator closed the connection.
	ended  *wire.Error
	deltas int
	gone   chan struct{}
	mute   bool // answers no pings
}

func newDevice(t testing.TB) *device {
	t.Helper()
	machine, err := ident.NewMachinePrivate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	node, err := ident.NewNodePrivate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &device{t: t, machine: machine, private: node, node: node.Public(), changed: make(chan struct{}, 1)}
}

// connect begins a connection and says hello.
func (d *device) connect(o *site) (registered bool, refused *wire.Error) {
	d.t.Helper()
	a, b := net.Pipe()
	go func() {
		ch, err := channel.Server(context.Background(), b, channel.ServerConfig{Channel: o.keys.Channel, Network: o.Fingerprint(), Rand: rand.Reader})
		if err == nil {
			o.serveChannel(context.Background(), ch, netip.MustParseAddr("192.0.2.1"), func() {})
		}
	}()
	ch, err := channel.Client(context.Background(), a, channel.ClientConfig{
		Machine: d.machine, Coordinator: o.Genesis().Channel, Network: o.Fingerprint(), Rand: rand.Reader,
	})
	if err != nil {
		d.t.Fatal(err)
	}
	d.ch, d.ended, d.gone, d.coordinator = ch, nil, make(chan struct{}), o.Genesis().Channel
	d.say(wire.Hello{Version: wire.Newest, Host: wire.HostInfo{OS: "linux", ProgramVersion: "1"}})
	switch m := d.hear().(type) {
	case wire.Welcome:
		return m.Registered, nil
	case *wire.Error:
		return false, m
	default:
		d.t.Fatalf("after Hello: %+v", m)
		return false, nil
	}
}

func (d *device) say(m wire.ClientMessage) {
	d.t.Helper()
	if err := d.ch.Send(wire.EncodeClient(m)); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		d.t.Fatal(err)
	}
}

// hear returns the next message, answering pings on the way.
func (d *device) hear() wire.ServerMessage {
	d.t.Helper()
	for {
		frame, err := d.ch.Receive()
		if err != nil {
			return &wire.Error{Message: err.Error()}
		}
		m, err := wire.DecodeServer(frame)
		if err != nil {
			d.t.Fatal(err)
		}
		if p, ok := m.(wire.Ping); ok {
			d.say(wire.Pong(p))
			continue
		}
		return m
	}
}

// proof proves the device's node key on its present channel.
func (d *device) proof() wire.Proof {
	d.t.Helper()
	p, err := wire.ProveNodeKey(d.private, d.coordinator, d.ch.Binding())
	if err != nil {
		d.t.Fatal(err)
	}
	return p
}

// take makes the node key of another device this one's, as a copy of its state
// does.
func (d *device) take(other *device) { d.private, d.node = other.private, other.node }

// register joins by a key.
func (d *device) register(key, hostname string) (wire.Registered, *wire.Error) {
	d.t.Helper()
	d.say(wire.Register{AuthKey: key, NodeKey: d.node, Hostname: hostname, Proof: d.proof()})
	switch m := d.hear().(type) {
	case wire.Registered:
		return m, nil
	case *wire.Error:
		d.ch.Close()
		return wire.Registered{}, m
	default:
		d.t.Fatalf("after Register: %+v", m)
		return wire.Registered{}, nil
	}
}

// listen asks for the map and follows the stream in a goroutine of its own.
func (d *device) listen(endpoints ...netip.AddrPort) *wire.Error {
	d.t.Helper()
	request := wire.MapRequest{NodeKey: d.node, Endpoints: endpoints, Proof: d.proof()}
	if d.m != nil {
		request.HaveSequence, request.HaveHash = d.m.Sequence, d.m.Hash()
	}
	d.say(request)
	switch m := d.hear().(type) {
	case *wire.Map:
		d.m = m
	case *wire.Delta:
		next, err := d.m.Apply(m)
		if err != nil {
			d.t.Fatal(err)
		}
		d.m = next
		d.deltas++
	case *wire.Error:
		d.ch.Close()
		return m
	default:
		d.t.Fatalf("after MapRequest: %+v", m)
	}
	go d.follow()
	return nil
}

func (d *device) follow() {
	defer close(d.gone)
	defer d.ch.Close()
	for {
		frame, err := d.ch.Receive()
		if err != nil {
			return
		}
		m, err := wire.DecodeServer(frame)
		if err != nil {
			d.t.Error(err)
			return
		}
		switch m := m.(type) {
		case wire.Ping:
			d.mu.Lock()
			mute := d.mute
			d.mu.Unlock()
			if !mute {
				d.ch.Send(wire.EncodeClient(wire.Pong(m)))
			}
		case *wire.Delta:
			d.mu.Lock()
			next, err := d.m.Apply(m)
			if err == nil {
				d.m = next
				d.deltas++
			}
			d.mu.Unlock()
			if err != nil {
				d.t.Error(err)
				return
			}
			select {
			case d.changed <- struct{}{}:
			default: // told already
			}
		case *wire.Map:
			d.mu.Lock()
			d.m = m
			d.mu.Unlock()
		case *wire.Error:
			d.mu.Lock()
			d.ended = m
			d.mu.Unlock()
			return
		}
	}
}

// close ends the connection from the device's side.
func (d *device) close() {
	d.ch.Close()
	if d.held() != nil {
		<-d.gone
	}
}

// held returns what the device has.
func (d *device) held() *wire.Map {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.m
}

func (d *device) why() wire.Code {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended == nil {
		return 0
	}
	return d.ended.Code
}

// join registers and listens.
func (o *site) join(key, hostname string) *device {
	o.t.Helper()
	d := newDevice(o.t)
	if registered, refused := d.connect(o); registered || refused != nil {
		o.t.Fatalf("a new device: registered %v, %v", registered, refused)
	}
	if _, refused := d.register(key, hostname); refused != nil {
		o.t.Fatal(refused)
	}
	if refused := d.listen(); refused != nil {
		o.t.Fatal(refused)
	}
	return d
}

// sees returns the names of the peers that a device was told of, which it
// verifies as a node would.
func (d *device) sees(o *site) map[string]wire.PeerState {
	d.t.Helper()
	m := d.held()
	a, err := authority.New(o.Genesis(), d.node, authority.State{})
	if err != nil {
		d.t.Fatal(err)
	}
	self, err := a.AdmitSelf(m.Self, time.Now())
	if err != nil {
		d.t.Fatal(err)
	}
	if _, err := a.AdmitRules(m.Rules, self.Node()); err != nil {
		d.t.Fatal(err)
	}
	if _, err := authority.VerifyRelayToken(o.Genesis(), m.RelayToken, d.node, "default", time.Now()); err != nil {
		d.t.Fatal(err)
	}
	out := make(map[string]wire.PeerState)
	for id, p := range m.Peers {
		peer, err := a.Admit(p.Certificate, time.Now())
		if err != nil {
			d.t.Fatal(err)
		}
		if peer.Node() != id {
			d.t.Fatalf("the certificate of %v under the id %v", peer.Node(), id)
		}
		out[peer.Name()] = p.State
	}
	return out
}
