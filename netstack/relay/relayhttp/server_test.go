package relayhttp

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/relay"
)

type admitter func(node ident.NodeKey, token []byte) (string, error)

func (a admitter) Admit(node ident.NodeKey, token []byte, _ time.Time) (string, time.Time, error) {
	network, err := a(node, token)
	return network, time.Time{}, err
}

func (admitter) Extend(string, ident.NodeKey, time.Time) (time.Time, bool) {
	return time.Time{}, false
}

// tokenIsNetwork admits whoever brings a token to the network of that name.
func tokenIsNetwork(_ ident.NodeKey, token []byte) (string, error) {
	if len(token) == 0 {
		return "", errors.New("no token")
	}
	return string(token), nil
}

func newServer(t *testing.T) (*Server, string) {
	t.Helper()
	s, cancel, done := running(t)
	mux := http.NewServeMux()
	mux.Handle(Path, s)
	h := httptest.NewServer(mux)
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		h.Close() // waits for all connections
	})
	return s, h.URL + Path
}

// client is one node at the relay, driven by one goroutine.
type client struct {
	t       *testing.T
	ctx     context.Context
	conn    Conn
	session *relay.Session
	key     ident.NodeKey
}

func connect(t *testing.T, url, token string) *client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return connectAs(t, ctx, url, token, newKey(t))
}

func connectAs(t *testing.T, ctx context.Context, url, token string, private ident.NodePrivate) *client {
	t.Helper()
	c, err := Dial(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	session, err := relay.NewSession(relay.SessionConfig{Key: private, Relay: "test", Token: []byte(token)}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &client{t, ctx, c, session, private.Public()}
}

// next returns the next event, reading as far as it must.
func (c *client) next() relay.Event {
	c.t.Helper()
	for {
		if e, ok := c.session.NextEvent(); ok {
			return e
		}
		message, err := c.conn.ReadMessage(c.ctx, nil)
		if err != nil {
			c.t.Fatalf("reading: %v", err)
		}
		if err := c.session.HandleMessage(message, time.Now()); err != nil {
			c.t.Fatalf("session: %v", err)
		}
		for {
			out, ok := c.session.NextTransmit()
			if !ok {
				break
			}
			if err := c.conn.WriteMessage(c.ctx, out); err != nil {
				c.t.Fatal(err)
			}
		}
	}
}

func (c *client) ready() *client {
	c.t.Helper()
	if e := c.next(); e.Kind != relay.EventReady {
		c.t.Fatalf("event %+v, want ready", e)
	}
	return c
}

func (c *client) send(to ident.NodeKey, payloads ...string) {
	c.t.Helper()
	var message []byte
	var err error
	for _, p := range payloads {
		if message, err = relay.AppendSendPacket(message, to, []byte(p)); err != nil {
			c.t.Fatal(err)
		}
	}
	if err := c.conn.WriteMessage(c.ctx, message); err != nil {
		c.t.Fatal(err)
	}
}

func TestPacketsPassWithinOneNetwork(t *testing.T) {
	s, url := newServer(t)
	a, b := connect(t, url, "one").ready(), connect(t, url, "one").ready()
	other := connect(t, url, "two").ready()
	a.send(b.key, "first", "second")
	for _, want := range []string{"first", "second"} {
		e := b.next()
		if e.Kind != relay.EventPacket || e.Peer != a.key || string(e.Packet) != want {
			t.Fatalf("event %+v, want packet %q of %v", e, want, a.key.Short())
		}
	}
	other.send(b.key, "across")
	if e := other.next(); e.Kind != relay.EventPeerGone || e.Peer != b.key {
		t.Fatalf("event %+v, want peer gone", e)
	}
	b.send(a.key, "back")
	if e := a.next(); string(e.Packet) != "back" {
		t.Fatalf("event %+v", e)
	}
	if got := s.Snapshot(); got.Admitted != 3 || got.Stats.PacketsOut != 3 || got.Stats.DroppedNoPeer != 1 {
		t.Fatalf("snapshot %+v", got)
	}
}

func TestRefusalIsTold(t *testing.T) {
	_, url := newServer(t)
	c := connect(t, url, "")
	if e := c.next(); e.Kind != relay.EventClosed || e.Reason != relay.ReasonToken {
		t.Fatalf("event %+v, want closed for the token", e)
	}
	if _, err := c.conn.ReadMessage(c.ctx, nil); !errors.Is(err, io.EOF) {
		t.Fatalf("after the refusal: %v, want EOF", err)
	}
}

func TestRevokedAndReplacedConnectionsEnd(t *testing.T) {
	s, url := newServer(t)
	private, err := ident.NewNodePrivate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	first := connectAs(t, t.Context(), url, "one", private).ready()
	second := connectAs(t, t.Context(), url, "one", private).ready()
	if e := first.next(); e.Kind != relay.EventClosed || e.Reason != relay.ReasonReplaced {
		t.Fatalf("event %+v, want closed as replaced", e)
	}
	s.Revoke("one", private.Public())
	if e := second.next(); e.Kind != relay.EventClosed || e.Reason != relay.ReasonRevoked {
		t.Fatalf("event %+v, want closed as revoked", e)
	}
}

func TestSlowReaderBoundsItsQueue(t *testing.T) {
	s, url := newServer(t)
	a, b := connect(t, url, "one").ready(), connect(t, url, "one").ready()
	payload := string(make([]byte, relay.MaxPacket))
	// b reads nothing: what the sockets hold is some megabytes, what the relay
	// holds at most half a megabyte.
	for range 5000 {
		a.send(b.key, payload)
		snapshot := s.Snapshot()
		if snapshot.QueuedBytes > 1<<20 {
			t.Fatalf("%d bytes are queued", snapshot.QueuedBytes)
		}
		if snapshot.Stats.DroppedQueue > 0 {
			return
		}
	}
	t.Fatal("nothing was dropped")
}

func TestMessagesOverTheLimitEndTheConnection(t *testing.T) {
	_, url := newServer(t)
	a := connect(t, url, "one").ready()
	if err := a.conn.WriteMessage(a.ctx, make([]byte, relay.MaxMessage+1)); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := a.conn.ReadMessage(a.ctx, nil); err != nil {
			return
		}
	}
}

// running returns a server that runs until it is cancelled, and what Run returns.
func running(t *testing.T) (s *Server, cancel context.CancelFunc, done <-chan error) {
	t.Helper()
	s, err := NewServer(ServerConfig{
		ServerConfig: relay.ServerConfig{Name: "test", Admitter: admitter(tokenIsNetwork), Rand: rand.Reader},
		Logger:       slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	return s, cancel, ended
}

// TestEndOfRunCutsWhoReadsNothing stops a server with a client that does not answer
// that its connection is being closed, for which a WebSocket waits 5 s. The best
// of some tries counts: a busy machine proves nothing.
func TestEndOfRunCutsWhoReadsNothing(t *testing.T) {
	var took time.Duration
	for range 3 {
		s, cancel, done := running(t)
		h := httptest.NewServer(s)
		connect(t, h.URL, "one").ready()
		began := time.Now()
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		took = time.Since(began)
		h.Close()
		if snap := s.Snapshot(); snap.Conns != 0 {
			t.Fatalf("%d connections are left", snap.Conns)
		}
		if took < 4*time.Second {
			return
		}
	}
	t.Errorf("it took %v", took)
}

func TestEndOfRunEndsConnections(t *testing.T) {
	s, cancel, done := running(t)
	h := httptest.NewServer(s)
	defer h.Close()
	a := connect(t, h.URL, "one").ready()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	// The pong of the admission's ping may come before.
	_, err := a.conn.ReadMessage(a.ctx, nil)
	for err == nil {
		_, err = a.conn.ReadMessage(a.ctx, nil)
	}
	if !errors.Is(err, io.EOF) {
		t.Fatalf("%v, want EOF", err)
	}
	c, err := Dial(a.ctx, h.URL)
	if err != nil {
		return
	}
	if m, err := c.ReadMessage(a.ctx, nil); err == nil {
		t.Fatalf("a closed relay said %x", slices.Clone(m))
	}
}
