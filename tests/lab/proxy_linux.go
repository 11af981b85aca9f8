package lab

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

// Proxy is an HTTP proxy that does CONNECT to port 443 and nothing else, as those of
// companies do to what they cannot look into.
type Proxy struct {
	Address string
	// Connected and Refused count requests.
	Connected, Refused atomic.Int64

	host *Host
}

// serveProxy serves a proxy on the host until the test ends.
func (h *Host) serveProxy(t testing.TB, address string) *Proxy {
	t.Helper()
	p := &Proxy{Address: address, host: h}
	l := h.Listen(t, address)
	server := &http.Server{Handler: p, ReadHeaderTimeout: 10 * time.Second}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return p
}

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		p.Refused.Add(1)
		http.Error(w, "this proxy only connects", http.StatusMethodNotAllowed)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
	defer cancel()
	if _, port, err := net.SplitHostPort(r.Host); err != nil || port != httpsPort {
		p.Refused.Add(1)
		http.Error(w, "this proxy connects to port "+httpsPort+" only", http.StatusForbidden)
		return
	}
	out, err := p.host.dialName(ctx, "tcp", r.Host)
	if err != nil {
		p.Refused.Add(1)
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer out.Close()
	p.Connected.Add(1)
	w.WriteHeader(http.StatusOK)
	in, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer in.Close()
	go func() {
		io.Copy(out, buffered)
		closeWrite(out)
	}()
	io.Copy(in, out)
	closeWrite(in)
}

// closeWrite ends one direction.
func closeWrite(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.CloseWrite()
	}
}
