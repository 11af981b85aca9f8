package relayserver

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/netstack/relay/relayhttp"
)

// patience bounds every wait; a machine under load gets that long.
const patience = 30 * time.Second

// relayAt runs a relay and returns it and its address.
func relayAt(t *testing.T, behindProxy bool) (*Server, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{
		Name: "fra", Genesis: acltest.NewNetwork(1, time.Now()).Genesis, Rand: rand.Reader,
		BehindProxy: behindProxy, Logger: slog.New(slog.DiscardHandler),
	}, Listeners{Public: l})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, l.Addr().String()
}

// pending opens a connection that says half of a request.
func pending(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "GET /nothing HTTP/1.1\r\nHost: fra\r\n"); err != nil {
		t.Fatal(err)
	}
	return c
}

// answered finishes a request and reports whether it is answered.
func answered(c net.Conn) bool {
	if _, err := io.WriteString(c, "Connection: close\r\n\r\n"); err != nil {
		return false
	}
	b, err := io.ReadAll(c)
	return err == nil && strings.HasPrefix(string(b), "HTTP/1.1 404")
}

// TestPendingConnectionsOfOneAddress: one address has as many connections that
// are no WebSocket yet as the limit says, and not one more; each that ends, or
// becomes a WebSocket, makes room for another.
func TestPendingConnectionsOfOneAddress(t *testing.T) {
	s, address := relayAt(t, false)
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(patience); !ok(); {
			if time.Now().After(deadline) {
				t.Fatalf("not: %s", what)
			}
		}
	}
	waiting := func() int {
		s.strangers.mu.Lock()
		defer s.strangers.mu.Unlock()
		return len(s.strangers.conns)
	}
	held := make([]net.Conn, maxStrangers)
	for i := range held {
		held[i] = pending(t, address)
	}
	until("all of them are taken", func() bool { return waiting() == maxStrangers })
	if n := s.strangers.refused.Load(); n != 0 {
		t.Errorf("%d refused up to the limit", n)
	}
	for i := range 3 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("one above the limit is answered: %d bytes, %v", n, err)
		}
		c.Close()
		if n := s.strangers.refused.Load(); n != uint64(i+1) {
			t.Errorf("%d are counted as refused, want %d", n, i+1)
		}
	}
	// Those within it are served all the same, and make room when they have gone.
	if !answered(held[0]) {
		t.Error("a connection within the limit is not answered")
	}
	held[1].Close()
	until("two have gone", func() bool { return waiting() == maxStrangers-2 })
	if !answered(pending(t, address)) {
		t.Error("there is no room after two have gone")
	}
	until("the one that was answered has gone, too", func() bool { return waiting() == maxStrangers-2 })
	// What became a WebSocket is another limit's.
	for range maxStrangers {
		ws, err := relayhttp.Dial(t.Context(), "ws://"+address+relayhttp.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer ws.Close()
	}
	until("the WebSockets do not count", func() bool { return waiting() == maxStrangers-2 })
	if n := s.strangers.refused.Load(); n != 3 {
		t.Errorf("%d refused, want 3", n)
	}
}

// TestPendingConnectionsOfAProxy: behind a proxy all come from one address, and
// none is refused for that.
func TestPendingConnectionsOfAProxy(t *testing.T) {
	s, address := relayAt(t, true)
	for range maxStrangers + 1 {
		pending(t, address)
	}
	response, err := http.Get("http://" + address + "/")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if n := s.strangers.refused.Load(); n != 0 {
		t.Errorf("%d refused", n)
	}
}
