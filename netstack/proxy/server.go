package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A Server is a proxy of one of the two kinds. Its methods may be called
// concurrently.
type Server struct {
	cfg   Config
	serve func(ctx context.Context, s *Server, l net.Listener) error

	open, accepted, capped, refused, failed atomic.Int64
}

// Stats are the counters of a Server since it was made.
type Stats struct {
	Open     int64 // connections of clients now
	Accepted int64 // connections of clients
	Capped   int64 // closed at once because of MaxConnections
	Refused  int64 // requests for something malformed or outside the overlay
	Failed   int64 // requests for something in the overlay that did not answer
}

// NewSOCKS makes a SOCKS5 proxy (RFC 1928) that serves CONNECT without
// authentication, with names resolved by the proxy or by the client. The error
// says what is wrong with cfg.
func NewSOCKS(cfg Config) (*Server, error) { return newServer(cfg, serveSOCKS) }

// NewHTTP makes an HTTP proxy (RFC 9110 §3.7) that serves CONNECT and requests
// with an absolute http URI. The error says what is wrong with cfg.
func NewHTTP(cfg Config) (*Server, error) { return newServer(cfg, serveHTTP) }

func newServer(cfg Config, serve func(context.Context, *Server, net.Listener) error) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Server{cfg: cfg, serve: serve}, nil
}

// Run accepts connections from l until ctx ends, then closes l and all
// connections, waits for their goroutines, and returns nil. It returns an error
// when l fails for another reason. It may run on several listeners.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	limited := &limitListener{Listener: l, server: s}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	err := s.serve(ctx, s, limited)
	stopped := ctx.Err() != nil
	cancel()
	l.Close()
	limited.conns.Wait()
	if stopped {
		return nil
	}
	return fmt.Errorf("proxy: accepting: %w", err)
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	return Stats{
		Open:     s.open.Load(),
		Accepted: s.accepted.Load(),
		Capped:   s.capped.Load(),
		Refused:  s.refused.Load(),
		Failed:   s.failed.Load(),
	}
}

// count attributes a failed request.
func (s *Server) count(ctx context.Context, err error) {
	if errors.Is(err, ErrNotOverlay) || errors.Is(err, ErrUnknownName) || errors.Is(err, ErrDestination) {
		s.refused.Add(1)
	} else {
		s.failed.Add(1)
	}
	s.cfg.Logger.DebugContext(ctx, "proxy request failed", "error", err)
}

// limitListener caps and counts the connections of a listener.
type limitListener struct {
	net.Listener
	server *Server
	conns  sync.WaitGroup // connections not yet closed
}

// acceptRetry is the pause after a passing failure to accept, such as too many
// open files.
const acceptRetry = 50 * time.Millisecond

// Accept implements net.Listener.
func (l *limitListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil, err
			}
			var netErr net.Error
			if !errors.As(err, &netErr) {
				return nil, err
			}
			l.server.cfg.Logger.Warn("proxy cannot accept a connection", "error", err)
			time.Sleep(acceptRetry)
			continue
		}
		if l.server.open.Add(1) > int64(l.server.cfg.MaxConnections) {
			l.server.open.Add(-1)
			l.server.capped.Add(1)
			conn.Close()
			continue
		}
		l.server.accepted.Add(1)
		l.conns.Add(1)
		return &limitedConn{Conn: conn, listener: l}, nil
	}
}

// limitedConn gives its place back when closed.
type limitedConn struct {
	net.Conn
	listener *limitListener
	once     sync.Once
}

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.listener.server.open.Add(-1)
		c.listener.conns.Done()
	})
	return err
}

// CloseWrite ends the sending side alone, where the connection can.
func (c *limitedConn) CloseWrite() error { return closeWrite(c.Conn) }
