package relayhttp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/alarm"
	"github.com/warren-overlay/warren/netstack/relay"
	"github.com/warren-overlay/warren/netstack/sock"
)

// writeTimeout bounds how long one message may take to be written. What waits
// for the client meanwhile is bounded by package relay and dropped over that;
// a client that takes nothing for so long is gone.
const writeTimeout = 15 * time.Second

// ServerConfig is what a Server needs.
type ServerConfig struct {
	relay.ServerConfig
	Logger *slog.Logger
	// Datagrams is the UDP port on which the relay forwards, and answers STUN
	// requests; nil for none. The server owns it.
	Datagrams sock.Conn
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Server is a relay behind an http.Handler. All methods may be called
// concurrently.
type Server struct {
	log *slog.Logger
	now func() time.Time
	// wakeTimer tells Run that there is a new connection: deadlines of old ones
	// only move away.
	wakeTimer chan struct{}
	port      sock.Conn // nil for none

	receiveErrors, sendErrors, questions atomic.Uint64

	mu     sync.Mutex // protects all below
	core   *relay.Server
	conns  map[relay.ConnID]*serverConn
	last   relay.ConnID
	closed bool
}

// serverConn is one connection of a Server.
type serverConn struct {
	// wake tells the writer that NextMessage may have something.
	wake chan struct{}
	// ending is closed when the core gave the connection up: the writer sends
	// what is left and ends.
	ending chan struct{}
}

var _ http.Handler = (*Server)(nil)

// NewServer returns a relay without connections. The error is relay.NewServer's.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.ServerConfig.Datagrams = cfg.Datagrams != nil
	core, err := relay.NewServer(cfg.ServerConfig, cfg.Now())
	if err != nil {
		return nil, err
	}
	return &Server{
		log: cfg.Logger, now: cfg.Now, core: core, port: cfg.Datagrams,
		wakeTimer: make(chan struct{}, 1),
		conns:     make(map[relay.ConnID]*serverConn),
	}, nil
}

// Run ends connections whose time is over and forwards datagrams, until the
// context ends. Then it ends all connections and refuses new ones, and returns
// the error of closing the UDP port.
func (s *Server) Run(ctx context.Context) error {
	if s.port == nil {
		s.runTimers(ctx)
		return nil
	}
	var readers sync.WaitGroup
	s.serveDatagrams(&readers)
	s.runTimers(ctx)
	err := s.port.Close()
	readers.Wait()
	return err
}

func (s *Server) runTimers(ctx context.Context) {
	timer := alarm.New(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			s.closeAll()
			return
		case <-timer.C:
		case <-s.wakeTimer:
		}
		s.mu.Lock()
		now := s.now()
		s.core.HandleTimeout(now)
		s.commands()
		next, ok := s.core.NextTimeout()
		s.mu.Unlock()
		if ok {
			timer.Set(next.Sub(now))
		} else {
			timer.Stop()
		}
	}
}

func (s *Server) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, c := range s.conns {
		c.end()
	}
}

// Revoke ends the connection of a key in a network, and does nothing where
// there is none. The caller sees to it that its Admitter refuses the key.
func (s *Server) Revoke(network string, key ident.NodeKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.core.HandleRevoked(network, key, s.now())
	s.commands()
}

// Leave tells all clients that the relay is about to stop, so that they are
// elsewhere before it does. Cancelling Run's context stops it.
func (s *Server) Leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.core.HandleLeaving(s.now())
	s.commands()
}

// Drain is how long a relay goes on after it has told its clients that it stops:
// connecting elsewhere takes some round trips.
const Drain = time.Second

// drainLook is how often it is looked whether all have gone.
const drainLook = Drain / 20

// Drain tells the clients to go, and returns when they have gone or Drain is over.
// Nobody is refused or cut off by it; that is for the end of Run.
func (s *Server) Drain() {
	s.Leave()
	for range Drain / drainLook {
		if s.Snapshot().Admitted == 0 {
			return
		}
		time.Sleep(drainLook)
	}
}

// Snapshot returns the state and the counters of the relay.
func (s *Server) Snapshot() relay.ServerSnapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.core.Snapshot()
}

// ServeHTTP implements http.Handler: one connection, until it ends.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols:    []string{subprotocol},
		CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		return // Accept has answered
	}
	defer ws.CloseNow()
	if ws.Subprotocol() != subprotocol {
		ws.Close(websocket.StatusPolicyViolation, "not the relay protocol")
		return
	}
	if err := s.serve(r.Context(), newConn(ws), sourceOf(r), bindingOf(r.TLS)); err != nil {
		s.log.Debug("relay connection ended", "remote", r.RemoteAddr, "error", err)
	}
}

// sourceOf returns the address that a request came from, zero where it has none.
func sourceOf(r *http.Request) netip.Addr {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return from.Addr()
}

func (s *Server) serve(ctx context.Context, c *conn, source netip.Addr, binding []byte) error {
	id, sc, err := s.connect(source, binding)
	if err != nil {
		return err
	}
	var writer sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	writer.Go(func() {
		defer cancel() // unblocks the reader
		s.write(ctx, id, sc, c)
	})
	err = s.read(ctx, id, c)
	s.mu.Lock()
	sc.end()
	s.mu.Unlock()
	writer.Wait()
	cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, id)
	s.core.HandleDisconnect(id, s.now())
	s.commands()
	return err
}

var errClosed = errors.New("relayhttp: server is closed")

func (s *Server) connect(source netip.Addr, binding []byte) (relay.ConnID, *serverConn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, nil, errClosed
	}
	s.last++
	id := s.last
	c := &serverConn{wake: make(chan struct{}, 1), ending: make(chan struct{})}
	s.conns[id] = c
	if err := s.core.HandleConnect(id, source, binding, s.now()); err != nil {
		delete(s.conns, id)
		return 0, nil, err
	}
	s.commands()
	select {
	case s.wakeTimer <- struct{}{}:
	default: // it is told already
	}
	return id, c, nil
}

// read hands what the client sends to the core until the connection ends.
func (s *Server) read(ctx context.Context, id relay.ConnID, c *conn) error {
	buf := make([]byte, 0, 4<<10)
	for {
		message, err := c.ReadMessage(ctx, buf)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		s.mu.Lock()
		err = s.core.HandleMessage(id, message, s.now())
		s.commands()
		s.mu.Unlock()
		if err != nil {
			return fmt.Errorf("relayhttp: connection %d: %w", id, err)
		}
		if cap(message) > cap(buf) {
			buf = message
		}
	}
}

// write sends what the core has for the client until the connection ends.
func (s *Server) write(ctx context.Context, id relay.ConnID, sc *serverConn, c *conn) {
	buf := make([]byte, 0, 4<<10)
	for ending := false; ; {
		s.mu.Lock()
		message, ok := s.core.NextMessage(id, buf[:0])
		s.mu.Unlock()
		switch {
		case ok:
			deadline, cancel := context.WithTimeout(ctx, writeTimeout)
			err := c.WriteMessage(deadline, message)
			cancel()
			if err != nil {
				return
			}
			buf = message
			continue
		case ending:
			// The client reads the reason before it sees the end.
			c.ws.Close(websocket.StatusNormalClosure, "")
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-sc.ending:
			ending = true
		case <-sc.wake:
		}
	}
}

// commands does what the core asks; s.mu is held.
func (s *Server) commands() {
	for {
		cmd, ok := s.core.NextCommand()
		if !ok {
			break
		}
		c := s.conns[cmd.Conn]
		if c == nil {
			continue
		}
		switch cmd.Kind {
		case relay.CommandWake:
			select {
			case c.wake <- struct{}{}:
			default:
			}
		case relay.CommandClose:
			c.end()
		}
	}
}

// end asks the writer to end; the server's mu is held.
func (c *serverConn) end() {
	select {
	case <-c.ending:
	default:
		close(c.ending)
	}
}
