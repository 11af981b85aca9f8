package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/admin"
	"github.com/warren-overlay/warren/coordinator/registry"
	"github.com/warren-overlay/warren/coordinator/wire"
	"github.com/warren-overlay/warren/coordinator/wire/channel"
)

const (
	// scanGap is the least time between two looks at all sessions for what is
	// due: much less than any of their times, and cheap for thousands.
	scanGap = 50 * time.Millisecond
	// upkeep is how often certificates and ephemeral devices are looked at.
	upkeep = time.Minute
	// expiryRounds bounds how many times an upkeep removes ephemeral devices:
	// some thousand of them, in less than a second.
	expiryRounds = 32
	// stopTimeout is how long Run waits for connections to end by themselves.
	stopTimeout = 3 * time.Second
	// stuckAfter is how long one call in the loop may take before the
	// coordinator counts as not serving.
	stuckAfter = 2 * time.Second
)

func secretHash(secret string) registry.KeyHash { return sha256.Sum256([]byte(secret)) }

// Listeners are where a coordinator serves. Run closes them. Metrics may be
// nil.
type Listeners struct{ Public, Admin, Metrics net.Listener }

// ListenAdmin opens the administrator's socket, in place of one that a process
// before left behind: the data directory's lock says that there is none now.
func (s *Server) ListenAdmin() (net.Listener, error) {
	path := s.dir.Socket()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("server: opening the administrator's socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("server: opening the administrator's socket: %w", err)
	}
	// The directory is closed to others already; the mode says it once more.
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("server: opening the administrator's socket: %w", err)
	}
	return l, nil
}

// Mount serves handler at a pattern of http.ServeMux besides the coordinator's
// own paths. It must be called before Run.
func (s *Server) Mount(pattern string, handler http.Handler) { s.mux.Handle(pattern, handler) }

// routes are the coordinator's own paths.
func (s *Server) routes() {
	genesis := s.genesis.AppendBinary(nil)
	s.mux.HandleFunc("GET "+channel.ControlPath, s.serveControl)
	s.mux.HandleFunc("GET "+channel.GenesisPath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Write(genesis)
	})
	s.mux.HandleFunc("GET "+channel.RevocationsPath, func(w http.ResponseWriter, _ *http.Request) {
		signed, err := s.members.Revocations(s.keys.Signing, s.cfg.Now())
		if err != nil {
			s.cfg.Logger.Error("signing revocations for relays", "error", err)
			http.Error(w, "not signed", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Write(signed)
	})
	s.mux.HandleFunc("GET /healthz", s.healthz)
	s.mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, s.cfg.Version) })
}

// healthz answers 200 where the loop does its work. It never gives the loop
// any: everybody may ask.
func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	if !s.healthy() {
		http.Error(w, "not serving", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

func (s *Server) healthy() bool {
	select {
	case <-s.done:
		return false
	default:
	}
	since := s.busySince.Load()
	return since == 0 || s.cfg.Now().Sub(time.Unix(0, since)) < stuckAfter
}

// Run serves until the context ends, and returns nil; or until something fails
// that only another start can mend, and returns that. It may be called once.
func (s *Server) Run(ctx context.Context, l Listeners) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	failures := make(chan error, 4)
	start := func(name string, h http.Handler, listener net.Listener, configure func(*http.Server)) *http.Server {
		server := &http.Server{
			Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 30 * time.Second,
			IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
			ErrorLog: slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
		}
		if configure != nil {
			configure(server)
		}
		group.Go(func() {
			if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				failures <- fmt.Errorf("server: serving %s: %w", name, err)
			}
		})
		return server
	}
	servers := []*http.Server{
		start("nodes", bounded(s.mux), l.Public, nil),
		start("administrators", admin.NewHandler(admin.Config{
			Backend: s, Version: s.cfg.Version, Rand: s.cfg.Rand, Logger: s.cfg.Logger,
		}), l.Admin, func(h *http.Server) { h.ConnContext = admin.ConnContext }),
	}
	if l.Metrics != nil {
		servers = append(servers, start("metrics", s.metrics.handler(s.healthz), l.Metrics, nil))
	}
	loopEnded := make(chan error, 1)
	group.Go(func() { loopEnded <- s.loop(ctx) })

	var err error
	select {
	case err = <-loopEnded:
	case err = <-failures:
		cancel()
		err = errors.Join(err, <-loopEnded)
	}
	shutdown, stop := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer stop()
	for _, server := range servers {
		if server.Shutdown(shutdown) != nil {
			server.Close()
		}
	}
	s.handlers.Wait()
	group.Wait()
	return err
}

// bounded refuses bodies: no request of a node has one.
func bounded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > 0 {
			http.Error(w, "no request here has a body", http.StatusRequestEntityTooLarge)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, 0)
		h.ServeHTTP(w, r)
	})
}

func stopping() *wire.Error {
	return &wire.Error{Code: wire.CodeUnavailable, Message: "the coordinator is stopping", RetryAfter: time.Second}
}

// loop is the one goroutine that everything is decided in.
func (s *Server) loop(ctx context.Context) error {
	defer close(s.done)
	background := context.WithoutCancel(ctx)
	nextUpkeep := s.cfg.Now().Add(upkeep)
	s.due = nextUpkeep
	// Neither the timer's own channel nor a timer for now: see netstack/alarm. A
	// ring that comes late is a scan too many.
	rings := make(chan struct{}, 1)
	ring := func() {
		select {
		case rings <- struct{}{}:
		default:
		}
	}
	timer := time.AfterFunc(upkeep, ring)
	defer timer.Stop()
	var scanned time.Time
	giveUp := make(chan struct{})
	stop := ctx.Done()
	for s.broken == nil && !(s.ending && len(s.conns) == 0) {
		now := s.cfg.Now()
		wait := s.due.Sub(now)
		if soonest := scanned.Add(scanGap).Sub(now); wait < soonest {
			wait = soonest
		}
		if wait > 0 {
			timer.Reset(wait)
		} else {
			ring()
		}
		var more <-chan struct{}
		if len(s.dirty)+len(s.foremost) > 0 {
			more = always
		}
		f := s.nextUrgent()
		if f == nil {
			select {
			case f = <-s.urgent:
			case f = <-s.written:
			case f = <-s.calls:
			case <-more:
				f = func() { s.settle(background) }
			case <-rings:
				f = func() {
					scanned = s.cfg.Now()
					if !scanned.Before(nextUpkeep) {
						nextUpkeep = scanned.Add(upkeep)
						s.upkeep(background)
					}
					s.due = nextUpkeep
					s.scan(scanned)
				}
			case <-stop:
				// Nodes are told, so that they come back at once and not all at
				// the same moment when a ping is missed.
				stop, s.ending = nil, true
				defer time.AfterFunc(stopTimeout, func() { close(giveUp) }).Stop()
				for c := range s.conns {
					s.endSession(c, stopping())
				}
			case <-giveUp:
				for c := range s.conns {
					c.channel.Close()
					delete(s.conns, c)
				}
			}
		}
		if f != nil {
			s.busySince.Store(s.cfg.Now().UnixNano())
			f()
		}
		s.tellGone()
		s.keepHead(s.cfg.Now())
		s.busySince.Store(0)
	}
	s.saveSeen(background)
	s.recordUnrecorded(background)
	if s.head != s.kept && s.broken == nil {
		s.saveHead(s.cfg.Now())
	}
	for c := range s.conns {
		c.channel.Close()
	}
	return s.broken
}

// always is a channel that is always ready.
var always = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// nextUrgent returns what goes before everything else, nil where there is none:
// what administrators want, then that a frame was written, which costs nothing
// and lets the next one out.
func (s *Server) nextUrgent() func() {
	select {
	case f := <-s.urgent:
		return f
	default:
	}
	select {
	case f := <-s.written:
		return f
	default:
		return nil
	}
}

// scan does what is due in all sessions, and finds out when to look again. A
// session whose writer is busy has a deadline there.
func (s *Server) scan(now time.Time) {
	for c := range s.conns {
		if c.writing {
			continue
		}
		if at, ok := c.session.NextTimeout(); ok && !now.Before(at) {
			c.session.HandleTimeout(now)
			s.dirty[c] = struct{}{}
		}
		s.schedule(c)
	}
}

// schedule sees to it that the session's next timeout is not missed.
func (s *Server) schedule(c *conn) {
	if at, ok := c.session.NextTimeout(); ok && !c.writing && at.Before(s.due) {
		s.due = at
	}
}

// upkeep is what is done every minute.
func (s *Server) upkeep(ctx context.Context) {
	now := s.cfg.Now()
	s.network.HandleTimeout(now)
	s.renew(ctx)
	offline := make(map[ident.NodeID]time.Time)
	for _, d := range s.state.Devices() {
		if !d.Ephemeral || s.byNode[d.ID] != nil {
			continue
		}
		// While this coordinator was away nobody could come back.
		since := s.started
		for _, t := range []time.Time{s.seen[d.ID], d.Created} {
			if t.After(since) {
				since = t
			}
		}
		offline[d.ID] = since
	}
	for range expiryRounds {
		if len(offline) == 0 {
			break
		}
		result, err := s.execute(ctx, "coordinator", registry.RemoveExpired{OfflineSince: offline})
		if err != nil {
			s.cfg.Logger.Warn("ephemeral devices stay for now", "error", err)
		}
		if err != nil || len(result.Revoked) == 0 { // one command removes only so many
			break
		}
	}
	if _, err := s.execute(ctx, "coordinator", registry.PruneKeys{}); err != nil {
		s.cfg.Logger.Warn("old join keys stay for now", "error", err)
	}
	s.saveSeen(ctx)
	s.recordUnrecorded(ctx)
	s.limits.forget(now)
}

func (s *Server) saveSeen(ctx context.Context) {
	if len(s.unsaved) == 0 || s.broken != nil {
		return
	}
	if err := s.db.SaveLastSeen(ctx, s.unsaved); err != nil {
		s.cfg.Logger.Warn("when devices were last seen was not written", "error", err)
		return
	}
	clear(s.unsaved)
}
