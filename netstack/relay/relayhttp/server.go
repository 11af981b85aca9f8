package relayhttp

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
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

// closeWait bounds how long clients may take to read why their connections end,
// when the server stops: some round trips, and little against a restart.
const closeWait = 500 * time.Millisecond

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
	// serving are the connections' goroutines. It is added to under mu, while the
	// server is not closed.
	serving sync.WaitGroup

	mu     sync.Mutex // protects all below
	core   *relay.Server
	conns  map[relay.ConnID]*serverConn
	last   relay.ConnID
	closed bool
}

// serverConn is one connection of a Server.
type serverConn struct {
	// below is the TCP connection.
	below net.Conn
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

// SetLimits is relay.Server's.
func (s *Server) SetLimits(maxConns int, rate int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.core.SetLimits(maxConns, rate, s.now())
}

// Run ends connections whose time is over and forwards datagrams, until the
// context ends. Then it ends all connections and refuses new ones, waits for their
// goroutines, and returns the error of closing the UDP port.
func (s *Server) Run(ctx context.Context) error {
	defer s.finish()
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

// finish waits until all connections have ended: those that do not within
// closeWait are cut.
func (s *Server) finish() {
	cut := time.AfterFunc(closeWait, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, c := range s.conns {
			c.below.Close()
		}
	})
	defer cut.Stop()
	s.serving.Wait()
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

// ServeHTTP implements http.Handler: it makes one connection, and returns when
// the connection has its own goroutines. What the HTTP server keeps for a request
// is 20 KB, much for somebody who is silent most of the time.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	binding := bindingOf(r.TLS)
	if r.TLS != nil && len(binding) == 0 {
		// Who is in the middle could make a connection of this kind on purpose, to be
		// admitted on it by the answer of a node that he keeps from its own.
		s.log.Debug("relay connection refused", "remote", r.RemoteAddr, "error", errUnbound)
		http.Error(w, errUnbound.Error(), http.StatusForbidden)
		return
	}
	h := &hijacker{ResponseWriter: w}
	ws, err := websocket.Accept(h, r, &websocket.AcceptOptions{
		Subprotocols:    []string{subprotocol},
		CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		return // Accept has answered
	}
	if ws.Subprotocol() != subprotocol {
		ws.Close(websocket.StatusPolicyViolation, "not the relay protocol")
		return
	}
	c, remote := newConn(ws), r.RemoteAddr
	id, sc, err := s.connect(h.conn, sourceOf(r), binding)
	if err != nil {
		ws.CloseNow()
		s.log.Debug("relay connection refused", "remote", remote, "error", err)
		return
	}
	go func() {
		defer s.serving.Done()
		if err := s.serve(id, sc, c); err != nil {
			s.log.Debug("relay connection ended", "remote", remote, "error", err)
		}
	}()
}

// errUnbound is what a client is told that the relay cannot bind an admission for.
var errUnbound = errors.New("relayhttp: this TLS connection has nothing to bind an admission to; use TLS 1.3, or 1.2 with the extended master secret (RFC 7627)")

// What is buffered of a WebSocket: frames' headers and short messages. Longer
// ones pass the buffers by. The HTTP server has 4 KiB both ways.
const (
	readBuffer  = 512
	writeBuffer = 2048 // a packet over Ethernet and its header, in one write
)

// hijacker gives a WebSocket smaller buffers than the HTTP server has, and keeps
// the connection below it.
type hijacker struct {
	http.ResponseWriter
	conn net.Conn
}

// Hijack implements http.Hijacker.
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, b, err := http.NewResponseController(h.ResponseWriter).Hijack()
	h.conn = c
	if secure, ok := c.(*tls.Conn); ok {
		h.conn = secure.NetConn()
	}
	if err != nil || b.Reader.Buffered() > 0 {
		return c, b, err
	}
	return c, bufio.NewReadWriter(bufio.NewReaderSize(c, readBuffer), bufio.NewWriterSize(c, writeBuffer)), nil
}

// sourceOf returns the address that a request came from, zero where it has none.
func sourceOf(r *http.Request) netip.Addr {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return from.Addr()
}

// serve is the goroutine of one connection that reads; it starts the other one.
func (s *Server) serve(id relay.ConnID, sc *serverConn, c *conn) error {
	defer c.ws.CloseNow()
	var writer sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	writer.Go(func() {
		defer cancel() // unblocks the reader
		s.write(ctx, id, sc, c)
	})
	err := s.read(ctx, id, c)
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

// connect makes a connection, whose goroutine is to tell s.serving that it ended.
func (s *Server) connect(below net.Conn, source netip.Addr, binding []byte) (relay.ConnID, *serverConn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, nil, errClosed
	}
	s.last++
	id := s.last
	c := &serverConn{below: below, wake: make(chan struct{}, 1), ending: make(chan struct{})}
	s.conns[id] = c
	if err := s.core.HandleConnect(id, source, binding, s.now()); err != nil {
		delete(s.conns, id)
		return 0, nil, err
	}
	s.serving.Add(1)
	s.commands()
	select {
	case s.wakeTimer <- struct{}{}:
	default: // it is told already
	}
	return id, c, nil
}

// messages are buffers for whole messages. An idle connection has none.
var messages = sync.Pool{New: func() any {
	b := make([]byte, 0, 4<<10)
	return &b
}}

// read hands what the client sends to the core until the connection ends.
func (s *Server) read(ctx context.Context, id relay.ConnID, c *conn) error {
	for {
		r, err := c.next(ctx)
		if err == nil {
			err = s.handle(id, r)
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// handle hands one message to the core.
func (s *Server) handle(id relay.ConnID, r io.Reader) error {
	buf := messages.Get().(*[]byte)
	defer messages.Put(buf)
	message, err := readMessage(r, *buf)
	if err != nil {
		return err
	}
	*buf = message[:0]
	s.mu.Lock()
	err = s.core.HandleMessage(id, message, s.now())
	s.commands()
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("relayhttp: connection %d: %w", id, err)
	}
	return nil
}

// write sends what the core has for the client until the connection ends.
func (s *Server) write(ctx context.Context, id relay.ConnID, sc *serverConn, c *conn) {
	for ending := false; ; {
		if err := s.flush(ctx, id, c); err != nil {
			return
		}
		if ending {
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

// flush sends all that the core has for the client now.
func (s *Server) flush(ctx context.Context, id relay.ConnID, c *conn) error {
	buf := messages.Get().(*[]byte)
	defer messages.Put(buf)
	for {
		s.mu.Lock()
		message, ok := s.core.NextMessage(id, (*buf)[:0])
		s.mu.Unlock()
		if !ok {
			return nil
		}
		*buf = message[:0]
		deadline, cancel := context.WithTimeout(ctx, writeTimeout)
		err := c.WriteMessage(deadline, message)
		cancel()
		if err != nil {
			return err
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
