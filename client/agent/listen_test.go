package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"syscall"
	"testing"

	"github.com/warren-overlay/warren/acl/authority"
)

// TestLoopbackOnly is X-01 for the metrics: a web page that reaches the port
// by a name of its own is refused.
func TestLoopbackOnly(t *testing.T) {
	h := loopbackOnly(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }))
	for host, want := range map[string]int{
		"127.0.0.1:9095": 200, "127.0.0.1": 200, "localhost:9095": 200, "[::1]:9095": 200,
		"evil.example": 403, "evil.example:9095": 403, "100.64.0.1:9095": 403, "": 403, "localhost.evil.example": 403, "0.0.0.0": 403,
	} {
		r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		r.Host = host
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("Host %q: %d, want %d", host, w.Code, want)
		}
	}
}

func TestListenLoopback(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "localhost:0", ":0", "0"} {
		l, err := listenLoopback(t.Context(), address)
		if err != nil {
			t.Errorf("%q: %v", address, err)
			continue
		}
		if ip := l.Addr().(*net.TCPAddr).IP; !ip.IsLoopback() {
			t.Errorf("%q listens at %v", address, ip)
		}
		l.Close()
	}
	for _, address := range []string{"0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.com:0"} {
		if l, err := listenLoopback(t.Context(), address); !errors.Is(err, errNotLoopback) {
			t.Errorf("%q: %v, want errNotLoopback", address, err)
			if l != nil {
				l.Close()
			}
		}
	}
}

// TestPlainly: the text is for people, and the cause can still be asked for.
func TestPlainly(t *testing.T) {
	address := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}
	refused := fmt.Errorf("channel: failed: %w", &net.OpError{Op: "dial", Net: "tcp", Addr: address, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)})
	for _, c := range []struct {
		err, cause error
		want       string
	}{
		{refused, syscall.ECONNREFUSED, "connecting to 127.0.0.1:1: connection refused"},
		{fmt.Errorf("x: %w", &net.DNSError{Name: "nosuch", Err: "no such host"}), nil, "looking up nosuch: no such host"},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), context.DeadlineExceeded, "no answer in time"},
		{authority.ErrFingerprint, authority.ErrFingerprint, authority.ErrFingerprint.Error()},
	} {
		got := plainly(c.err)
		if got.Error() != c.want || c.cause != nil && !errors.Is(got, c.cause) {
			t.Errorf("%v is told as %q, want %q with its cause", c.err, got, c.want)
		}
	}
	if plainly(nil) != nil {
		t.Error("no error became one")
	}
}
