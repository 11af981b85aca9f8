package relayserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/netstack/relay"
	"github.com/warren-overlay/warren/netstack/relay/admission"
	"github.com/warren-overlay/warren/netstack/relay/relayhttp"
	"github.com/warren-overlay/warren/netstack/sock"
)

// Config is what a Server needs.
type Config struct {
	// Name is how the network's configuration calls the relay, Region where it
	// stands, for people.
	Name, Region string
	Genesis      *authority.Genesis
	// Fetch asks the coordinator for revocations, and verifies them; nil where it
	// is not known where that is.
	Fetch func(ctx context.Context) (authority.RelayRevocations, error)
	// MaxConns and Rate are relay.ServerConfig's.
	MaxConns int
	Rate     int64
	// BehindProxy says that all connections come from a proxy, so that their
	// number by source means nothing.
	BehindProxy bool
	Rand        io.Reader
	Logger      *slog.Logger
}

// Listeners are where a Server serves. Run closes them. All but Public may be
// nil.
type Listeners struct {
	// Public takes WebSockets, with TLS where the listener does.
	Public net.Listener
	// Datagrams is the UDP port, for packets and STUN.
	Datagrams sock.Conn
	Metrics   net.Listener
}

// Server is a relay.
type Server struct {
	cfg       Config
	admission *admission.Admission
	relay     *relayhttp.Server
	listeners Listeners
	strangers *strangers
}

// New returns a relay that does nothing yet. The error says which part of the
// configuration is missing.
func New(cfg Config, l Listeners) (*Server, error) {
	if cfg.Genesis == nil || cfg.Logger == nil || l.Public == nil {
		return nil, errors.New("relayserver: a relay needs a network, a logger and a listener")
	}
	s := &Server{cfg: cfg, listeners: l, strangers: newStrangers(cfg.BehindProxy)}
	s.admission = admission.New(admission.Config{Genesis: cfg.Genesis, Relay: cfg.Name, Watched: cfg.Fetch != nil})
	perSource := 0
	if cfg.BehindProxy {
		perSource = -1
	}
	var err error
	s.relay, err = relayhttp.NewServer(relayhttp.ServerConfig{
		ServerConfig: relay.ServerConfig{
			Name: cfg.Name, Admitter: s.admission, Rand: cfg.Rand,
			MaxConns: cfg.MaxConns, Rate: cfg.Rate, HelloPerSource: perSource,
		},
		Datagrams: l.Datagrams, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Snapshot returns the state and the counters of the relay.
func (s *Server) Snapshot() relay.ServerSnapshot { return s.relay.Snapshot() }

// SetLimits replaces Config.MaxConns and Config.Rate (relay.Server.SetLimits). It may
// be called at any time.
func (s *Server) SetLimits(maxConns int, rate int64) error { return s.relay.SetLimits(maxConns, rate) }

// Run relays until the context ends and relayhttp.Drain is over, and returns nil; or until
// a listener fails, and returns that.
func (s *Server) Run(ctx context.Context) error {
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	failures := make(chan error, 3)
	mux := http.NewServeMux()
	mux.Handle("GET "+relayhttp.Path, s.relay)
	public := &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10,
		ConnState: s.strangers.follow,
		ErrorLog:  slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
	}
	servers := []*http.Server{public}
	var group sync.WaitGroup
	serve := func(name string, h *http.Server, l net.Listener) {
		group.Go(func() {
			if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				failures <- fmt.Errorf("relayserver: serving %s: %w", name, err)
			}
		})
	}
	serve("nodes", public, s.listeners.Public)
	if s.listeners.Metrics != nil {
		metrics := &http.Server{
			Handler: s.metrics(), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 30 * time.Second,
			MaxHeaderBytes: 16 << 10, ErrorLog: public.ErrorLog,
		}
		servers = append(servers, metrics)
		serve("metrics", metrics, s.listeners.Metrics)
	}
	group.Go(func() {
		if err := s.relay.Run(running); err != nil {
			failures <- err
		}
	})
	if s.cfg.Fetch != nil {
		group.Go(func() {
			s.admission.Watch(running, admission.WatchConfig{Fetch: s.cfg.Fetch, Revoke: s.relay.Revoke, Logger: s.cfg.Logger})
		})
	}
	var failed error
	select {
	case <-ctx.Done():
		s.relay.Drain()
	case failed = <-failures:
	}
	stop()
	for _, h := range servers {
		// The WebSockets are not the HTTP server's any more; relay.Run ends them.
		if err := h.Close(); err != nil && failed == nil {
			failed = fmt.Errorf("relayserver: closing: %w", err)
		}
	}
	group.Wait()
	return failed
}
