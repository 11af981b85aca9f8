package relayhttp

import (
	"crypto/rand"
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/relay"
)

// TestTLSWithoutBinding: where TLS ends at the relay, it admits nobody on a
// connection that has nothing to bind a proof to: whoever is between a node and the
// relay could make such a one, and be admitted on it by the node's answer.
func TestTLSWithoutBinding(t *testing.T) {
	for name, c := range map[string]struct {
		config *tls.Config
		serves bool
	}{
		"an exporter":    {&tls.Config{MinVersion: tls.VersionTLS13}, true},
		"TLS 1.2 has it": {&tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12}, true},
		// There is none where TLS was renegotiated, or lacks the extended master
		// secret, which no Go client can be made to do.
		"no exporter": {&tls.Config{MinVersion: tls.VersionTLS12, Renegotiation: tls.RenegotiateOnceAsClient}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s, cancel, done := running(t)
			h := httptest.NewUnstartedServer(s)
			h.TLS = c.config
			h.StartTLS()
			t.Cleanup(func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
				h.Close()
			})
			conn, err := Dialer{Client: h.Client()}.Dial(t.Context(), h.URL+Path)
			if !c.serves {
				if err == nil {
					conn.Close()
					t.Fatal("it takes the connection")
				}
				if !strings.Contains(err.Error(), http.StatusText(http.StatusForbidden)) {
					t.Errorf("refused by %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if len(Binding(conn)) == 0 {
				t.Error("the client has nothing to bind to")
			}
			private := newKey(t)
			session, err := relay.NewSession(relay.SessionConfig{Key: private, Relay: "test", Token: []byte("one"), Binding: Binding(conn)}, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			(&client{t, t.Context(), conn, session, private.Public()}).ready()
		})
	}
}

// newKey draws a node's key.
func newKey(t *testing.T) ident.NodePrivate {
	t.Helper()
	private, err := ident.NewNodePrivate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return private
}
