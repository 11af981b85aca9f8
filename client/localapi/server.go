package localapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Prefix begins every path of the API.
const Prefix = "/localapi/v0/"

const (
	// maxBody bounds a request; the longest is UpRequest, of some hundred
	// bytes.
	maxBody = 64 << 10
	// longestWait bounds StatusAfter, so that callers that are gone are
	// noticed.
	longestWait = 30 * time.Second
)

// Backend is what a Server serves. Methods may be called concurrently; their
// errors are *Error, or are shown as CodeInternal.
type Backend interface {
	// Status waits until the generation is above after, or ctx ends, and
	// returns the status then.
	Status(ctx context.Context, after uint64) Status
	// Up begins to connect and does not wait for it.
	Up(ctx context.Context, r UpRequest) error
	Down(ctx context.Context) error
	Logout(ctx context.Context) (LogoutReply, error)
	Ping(ctx context.Context, r PingRequest) (PingReply, error)
	ChangePreferences(ctx context.Context, c PreferencesChange) (Preferences, error)
}

// Decisions is what a Server tells of the packet filter's decisions. Methods
// may be called concurrently; their errors are those of a Backend.
type Decisions interface {
	// Why says whether a flow may be opened, and by which rule or why not.
	Why(ctx context.Context, r WhyRequest) (WhyReply, error)
	// Flows returns, without waiting, the records after those that it returned
	// with Next; 0 asks from the beginning.
	Flows(ctx context.Context, after uint64) (FlowPage, error)
	// Capture writes packets as pcapng until ctx or the capture ends. Nothing
	// is written before an error that forbids the capture.
	Capture(ctx context.Context, r CaptureRequest) (Capture, error)
}

// Server serves a Backend on a Unix socket.
type Server struct {
	backend      Backend
	decided      Decisions
	connectivity Connectivity
	log          *slog.Logger
	listener     net.Listener
	path         string
	// uid is the daemon's user.
	uid int
}

// ErrInUse means that a daemon answers on the socket already.
var ErrInUse = errors.New("localapi: another daemon serves this socket")

// Listen makes the socket at path, and its directory where it does not exist. A
// socket that a daemon left behind is replaced; one that is served is ErrInUse.
// Nothing is served before Run.
func Listen(path string, backend Backend, decisions Decisions, connectivity Connectivity, log *slog.Logger) (*Server, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("localapi: making the socket's directory: %w", err)
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("localapi: %s exists and is no socket", path)
		}
		if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
			conn.Close()
			return nil, fmt.Errorf("%w: %s", ErrInUse, path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("localapi: removing the socket of an earlier daemon: %w", err)
		}
	}
	listener, err := listenPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("localapi: %w", err)
	}
	return &Server{backend: backend, decided: decisions, connectivity: connectivity, log: log, listener: listener, path: path, uid: os.Geteuid()}, nil
}

// Path returns the socket's path.
func (s *Server) Path() string { return s.path }

// Close gives up a Server that does not run. Run does it by itself.
func (s *Server) Close() error { return s.listener.Close() }

// Run serves until ctx ends, then waits for requests under way, whose contexts
// end too. The error is that of the socket.
func (s *Server) Run(ctx context.Context) error {
	server := &http.Server{
		Handler: s.Handler(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10,
		BaseContext:    func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, callerKey{}, callerOf(c))
		},
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(s.listener) }()
	select {
	case err := <-done:
		return fmt.Errorf("localapi: serving %s: %w", s.path, err)
	case <-ctx.Done():
	}
	shutdown, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	err := server.Shutdown(shutdown)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close()
	}
	<-done
	return err
}

// caller is who is at the other end of a connection.
type caller struct {
	uid int
	// known is false where the kernel could not tell.
	known bool
}

type callerKey struct{}

// verb is one method and path of the API.
type verb struct {
	method, path string
	// restricted says that only root and the daemon's user may call it, because
	// it changes something or shows what others do.
	restricted bool
	// serve returns what to answer with: a stream, or what is written as JSON.
	serve func(s *Server, r *http.Request) (any, error)
}

// verbs is the whole API. What is not in it does not exist.
var verbs = []verb{
	{http.MethodGet, "status", false, (*Server).status},
	{http.MethodGet, "whois", false, (*Server).whoIs},
	{http.MethodGet, "prefs", false, (*Server).preferences},
	{http.MethodPatch, "prefs", true, (*Server).changePreferences},
	{http.MethodPost, "up", true, (*Server).up},
	{http.MethodPost, "down", true, (*Server).down},
	{http.MethodPost, "logout", true, (*Server).logout},
	{http.MethodPost, "ping", true, (*Server).ping},
	{http.MethodGet, "why", false, (*Server).why},
	{http.MethodGet, "netcheck", false, (*Server).netcheck},
	{http.MethodGet, "paths", false, (*Server).paths},
	{http.MethodGet, "flows", true, (*Server).flows},
	{http.MethodGet, "capture", true, (*Server).capture},
}

// Handler returns the API without its listener. Requests without a caller in
// their context may only read.
func (s *Server) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		result, err := s.serve(w, r)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if answer, ok := result.(stream); ok && err == nil {
			s.serveStream(w, r, answer)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if err == nil {
			if err := json.NewEncoder(w).Encode(result); err != nil {
				s.log.Debug("local API: writing an answer", "error", err)
			}
			return
		}
		var e *Error
		if !errors.As(err, &e) {
			s.log.Warn("local API", "path", r.URL.Path, "error", err)
			e = &Error{Code: CodeInternal, Message: err.Error()}
		}
		w.WriteHeader(e.Code.httpStatus())
		if err := json.NewEncoder(w).Encode(e); err != nil {
			s.log.Debug("local API: writing an answer", "error", err)
		}
	})
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) (any, error) {
	name, ok := strings.CutPrefix(r.URL.Path, Prefix)
	if !ok {
		return nil, Errorf(CodeNotFound, "no such path; the API is below %s", Prefix)
	}
	for _, v := range verbs {
		if v.path != name || v.method != r.Method {
			continue
		}
		if v.restricted && !s.mayChange(r) {
			return nil, Errorf(CodeForbidden, "only root and the daemon's user may do this; try it with sudo")
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		return v.serve(s, r)
	}
	return nil, Errorf(CodeNotFound, "no %s %s in this version of the daemon", r.Method, r.URL.Path)
}

func (s *Server) mayChange(r *http.Request) bool {
	c, ok := r.Context().Value(callerKey{}).(caller)
	return ok && c.known && (c.uid == 0 || c.uid == s.uid)
}

func (s *Server) status(r *http.Request) (any, error) {
	after := uint64(0)
	if text := r.URL.Query().Get("after"); text != "" {
		var err error
		if after, err = strconv.ParseUint(text, 10, 64); err != nil {
			return nil, Errorf(CodeBadRequest, "after=%q is no number", text)
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), longestWait)
	defer cancel()
	return s.backend.Status(ctx, after), nil
}

func (s *Server) whoIs(r *http.Request) (any, error) {
	text := r.URL.Query().Get("addr")
	addr, err := netip.ParseAddr(text)
	if err != nil {
		withPort, err := netip.ParseAddrPort(text)
		if err != nil {
			return nil, Errorf(CodeBadRequest, "%q is neither IP nor IP:port", text)
		}
		addr = withPort.Addr()
	}
	return whoIs(s.backend.Status(r.Context(), 0), addr.Unmap())
}

// whoIs finds the device of s that has the address.
func whoIs(s Status, addr netip.Addr) (WhoIsReply, error) {
	if s.Self != nil && slices.Contains(s.Self.Addresses, addr) {
		return WhoIsReply{Node: *s.Self, Self: true}, nil
	}
	for _, p := range s.Peers {
		if slices.Contains(p.Addresses, addr) {
			return WhoIsReply{Node: p}, nil
		}
	}
	return WhoIsReply{}, Errorf(CodeNotFound, "%v belongs to no device that this one may see", addr)
}

func (s *Server) preferences(r *http.Request) (any, error) {
	return s.backend.ChangePreferences(r.Context(), PreferencesChange{})
}

func (s *Server) changePreferences(r *http.Request) (any, error) {
	var c PreferencesChange
	if err := decode(r, &c); err != nil {
		return nil, err
	}
	return s.backend.ChangePreferences(r.Context(), c)
}

func (s *Server) up(r *http.Request) (any, error) {
	var u UpRequest
	if err := decode(r, &u); err != nil {
		return nil, err
	}
	return struct{}{}, s.backend.Up(r.Context(), u)
}

func (s *Server) down(r *http.Request) (any, error) {
	return struct{}{}, s.backend.Down(r.Context())
}

func (s *Server) logout(r *http.Request) (any, error) { return s.backend.Logout(r.Context()) }

func (s *Server) ping(r *http.Request) (any, error) {
	var p PingRequest
	if err := decode(r, &p); err != nil {
		return nil, err
	}
	if p.Timeout <= 0 || p.Timeout > longestWait {
		p.Timeout = 5 * time.Second
	}
	return s.backend.Ping(r.Context(), p)
}

func (s *Server) why(r *http.Request) (any, error) {
	q := r.URL.Query()
	protocol, err1 := strconv.ParseUint(q.Get("protocol"), 10, 8)
	port, err2 := strconv.ParseUint(q.Get("port"), 10, 16)
	if err := errors.Join(err1, err2); err != nil || protocol == 0 {
		return nil, Errorf(CodeBadRequest, "protocol %q and port %q: want numbers, and a protocol from 1 to 255", q.Get("protocol"), q.Get("port"))
	}
	return s.decided.Why(r.Context(), WhyRequest{
		To: q.Get("to"), From: q.Get("from"), Protocol: uint8(protocol), Port: uint16(port),
	})
}

// decode reads one JSON value with known fields. The error does not repeat
// what was sent, which may be a key.
func decode(r *http.Request, into any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return Errorf(CodeBadRequest, "the request is not the JSON that %s takes", r.URL.Path)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Errorf(CodeBadRequest, "more after the end of the request")
	}
	return nil
}

// httpStatus returns the HTTP status that goes with the code.
func (c Code) httpStatus() int {
	switch c {
	case CodeBadRequest:
		return http.StatusBadRequest
	case CodeForbidden, CodeDenied:
		return http.StatusForbidden
	case CodeNotFound:
		return http.StatusNotFound
	case CodeNotConnected, CodeNeedsLogin, CodeConflict:
		return http.StatusConflict
	case CodeNoAnswer:
		return http.StatusGatewayTimeout
	case CodeInternal:
	}
	return http.StatusInternalServerError
}
