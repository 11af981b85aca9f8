package lab

import (
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"testing"
	"time"
)

// httpsPort is the port that every firewall lets through.
const httpsPort = "443"

// serveHTTPS ends TLS on the host's port 443 until the test ends: a handler answers
// what is inside.
func (h *Host) serveHTTPS(t testing.TB, handler http.Handler) {
	t.Helper()
	server := &http.Server{
		Handler: handler, TLSConfig: h.authority.issue(t, h.Name, h.domain, h.addresses()...).server(t), ReadHeaderTimeout: 10 * time.Second,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	l := h.Listen(t, ":"+httpsPort)
	go server.ServeTLS(l, "", "")
	t.Cleanup(func() { server.Close() })
}

// passOn is a handler that passes requests on to a program of the host which serves
// HTTP there, WebSockets and other upgrades included, as the administrators' guide
// has nginx do.
func (h *Host) passOn(target string) http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: target})
			r.Out.Host = r.In.Host
		},
		FlushInterval: -1, // nothing is buffered
		Transport:     &http.Transport{DialContext: h.Dial},
		ErrorLog:      slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
}
