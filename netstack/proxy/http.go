package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// maxHeader caps a request's header; browsers send a few KiB.
	maxHeader = 64 << 10

	// keepAlive is how long a connection without a request stays open, to a
	// client and into the overlay.
	keepAlive = time.Minute
)

func serveHTTP(ctx context.Context, s *Server, l net.Listener) error {
	transport := &http.Transport{
		// No Proxy: the environment must not redirect what is meant for the
		// overlay.
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			to, err := parseDestination(address)
			if err != nil {
				return nil, err
			}
			return s.cfg.dial(ctx, to)
		},
		DisableCompression:     true, // pass on what the server sends
		MaxIdleConns:           64,
		IdleConnTimeout:        keepAlive,
		MaxResponseHeaderBytes: maxHeader,
	}
	defer transport.CloseIdleConnections()
	h := &httpHandler{server: s, forward: &httputil.ReverseProxy{
		// The request goes on as it came but for its hop-by-hop fields, and
		// without a word about who sent it.
		Rewrite:       func(r *httputil.ProxyRequest) { r.Out.Host = r.In.Host },
		Transport:     transport,
		FlushInterval: -1, // a stream must not wait for a buffer to fill
		ErrorLog:      slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			s.count(r.Context(), err)
			writeHTTPError(w, err)
		},
	}}
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: s.cfg.RequestTimeout,
		IdleTimeout:       keepAlive,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
	}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	err := server.Serve(l)
	server.Close()
	h.stop()
	return err
}

// httpHandler serves the two kinds of request that a proxy gets.
type httpHandler struct {
	server  *Server
	forward *httputil.ReverseProxy

	mu      sync.Mutex // protects stopped, and running.Add against Wait
	stopped bool
	running sync.WaitGroup // requests and tunnels being served
}

// begin announces a request that stop must wait for; false means that there
// must be no more.
func (h *httpHandler) begin() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return false
	}
	h.running.Add(1)
	return true
}

// stop waits for all requests to end and lets no more begin.
func (h *httpHandler) stop() {
	h.mu.Lock()
	h.stopped = true
	h.mu.Unlock()
	h.running.Wait()
}

// ServeHTTP implements http.Handler.
func (h *httpHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !h.begin() {
		return
	}
	defer h.running.Done()
	switch {
	case r.Method == http.MethodConnect:
		h.connect(w, r)
	case r.URL.Scheme == "http" && r.URL.Host != "":
		h.forward.ServeHTTP(w, r)
	default:
		h.server.refused.Add(1)
		http.Error(w, "This is a Warren HTTP proxy. It serves CONNECT and requests for absolute http:// URIs; configure it as the proxy of a program.", http.StatusBadRequest)
	}
}

// connect makes the connection a tunnel (RFC 9110 §9.3.6).
func (h *httpHandler) connect(w http.ResponseWriter, r *http.Request) {
	s := h.server
	to, err := parseDestination(r.Host)
	var remote net.Conn
	if err == nil {
		remote, err = s.cfg.dial(r.Context(), to)
	}
	if err != nil {
		s.count(r.Context(), err)
		writeHTTPError(w, err)
		return
	}
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		remote.Close()
		s.count(r.Context(), err)
		http.Error(w, "CONNECT needs HTTP/1.1", http.StatusHTTPVersionNotSupported)
		return
	}
	// The server's own deadlines were for the request.
	if err := client.SetDeadline(time.Time{}); err == nil {
		_, err = io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n")
		if err == nil {
			relay(r.Context(), client, unread(client, buffered.Reader), remote)
			return
		}
	}
	client.Close()
	remote.Close()
}

// unread returns what is buffered and then what comes from the connection. Not
// all through the buffer: the HTTP server's reader behind it takes the end of
// the client's side for the end of the request, and cancels it.
func unread(client net.Conn, buffered *bufio.Reader) io.Reader {
	early, _ := buffered.Peek(buffered.Buffered()) // no error: so much is there
	return io.MultiReader(bytes.NewReader(early), client)
}

// writeHTTPError tells a client why its request was not served.
func writeHTTPError(w http.ResponseWriter, err error) {
	status := http.StatusBadGateway
	var refused *NotAllowedError
	switch {
	case errors.As(err, &refused):
		http.Error(w, strings.TrimPrefix(refused.Error(), "proxy: "), http.StatusForbidden)
		return
	case errors.Is(err, ErrDestination):
		status = http.StatusBadRequest
	case errors.Is(err, ErrNotOverlay):
		status = http.StatusForbidden
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		status = http.StatusGatewayTimeout
	}
	http.Error(w, strings.TrimPrefix(err.Error(), "proxy: "), status)
}
