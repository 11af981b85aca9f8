package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/cmd/internal/commandline"
	"github.com/warren-overlay/warren/coordinator/wire/channel"
	"github.com/warren-overlay/warren/netstack/relay"
	"github.com/warren-overlay/warren/netstack/relay/relayhttp"
)

// patience bounds every wait; a machine under load gets that long.
const patience = 30 * time.Second

// output collects what a program writes.
type output struct {
	mu sync.Mutex // protects b
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// forget drops what was written.
func (o *output) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b.Reset()
}

// wait returns what the first group of a pattern matches of the output.
func (o *output) wait(t *testing.T, pattern string) string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	for deadline := time.After(patience); ; {
		if m := re.FindStringSubmatch(o.String()); m != nil {
			return m[1]
		}
		select {
		case <-deadline:
			t.Fatalf("no %q in:\n%s", pattern, o.String())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

type site struct {
	t       *testing.T
	network *acltest.Network
	dir     string
	hangup  chan os.Signal // to the programs that serve runs
}

func newSite(t *testing.T) *site {
	s := &site{t, acltest.NewNetwork(1, time.Now()), t.TempDir(), make(chan os.Signal)}
	if err := os.WriteFile(s.path("genesis"), s.network.Genesis.AppendBinary(nil), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

// serve runs the program and returns where it serves, where its metrics are, and
// a function that stops it and returns its status.
func (s *site) serve(args ...string) (address, metrics string, out *output, stop func() int) {
	s.t.Helper()
	out = new(output)
	ctx, cancel := context.WithCancel(s.t.Context())
	status := make(chan int, 1)
	m := Main{Stdout: io.Discard, Stderr: out, Rand: rand.Reader, Hangup: s.hangup}
	args = append([]string{
		"serve", "--name", "fra", "--listen", "127.0.0.1:0", "--udp-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0",
		"--data", s.path("data"), "--fingerprint", s.network.Genesis.Fingerprint().String(),
	}, args...)
	go func() { status <- m.Run(ctx, args) }()
	stopped := false
	stop = func() int {
		cancel()
		stopped = true
		select {
		case got := <-status:
			return got
		case <-time.After(patience):
			s.t.Fatal("it does not stop")
			return 0
		}
	}
	s.t.Cleanup(func() {
		if !stopped {
			stop()
		}
	})
	metrics = out.wait(s.t, `msg=metrics address=(\S+)`)
	return out.wait(s.t, `msg=relaying .*address=(\S+)`), metrics, out, stop
}

// client is a node at the relay.
type client struct {
	t       *testing.T
	conn    relayhttp.Conn
	session *relay.Session
}

// enter connects with a token for the relays named.
func (s *site) enter(url string, key ident.NodePrivate, h *http.Client, relays ...string) *client {
	s.t.Helper()
	token, err := authority.IssueRelayToken(s.network.Genesis, authority.RelayToken{
		NodeKey: key.Public(), NotAfter: time.Now().Add(time.Minute), Relays: relays,
	}, s.network.Signer)
	if err != nil {
		s.t.Fatal(err)
	}
	conn, err := relayhttp.Dialer{Client: h}.Dial(s.t.Context(), url+relayhttp.Path)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	session, err := relay.NewSession(relay.SessionConfig{Key: key, Relay: "fra", Token: token, Binding: relayhttp.Binding(conn)}, time.Now())
	if err != nil {
		s.t.Fatal(err)
	}
	return &client{s.t, conn, session}
}

// next returns the next event, EventClosed where the connection ends.
func (c *client) next() relay.Event {
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	for {
		if e, ok := c.session.NextEvent(); ok {
			return e
		}
		message, err := c.conn.ReadMessage(ctx, nil)
		if err != nil {
			return relay.Event{Kind: relay.EventClosed}
		}
		_ = c.session.HandleMessage(message, time.Now())
		for out, ok := c.session.NextTransmit(); ok; out, ok = c.session.NextTransmit() {
			if c.conn.WriteMessage(ctx, out) != nil {
				break
			}
		}
	}
}

// selfSigned writes a certificate with a serial for 127.0.0.1 and returns a client
// that trusts it.
func (s *site) selfSigned(serial int64) *http.Client {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "relay"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		s.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.write("cert.pem", "CERTIFICATE", der))
	s.write("key.pem", "PRIVATE KEY", private)
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
}

func (s *site) write(name, kind string, der []byte) []byte {
	text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(s.path(name), text, 0o600); err != nil {
		s.t.Fatal(err)
	}
	return text
}

// TestServe runs the program with TLS and without a coordinator: who is admitted,
// what it counts, and that it tells clients before it stops.
func TestServe(t *testing.T) {
	s := newSite(t)
	h := s.selfSigned(1)
	address, metrics, _, stop := s.serve("--genesis", s.path("genesis"), "--tls-cert", s.path("cert.pem"), "--tls-key", s.path("key.pem"))
	c := s.enter("wss://"+address, s.network.NodeKey(), h, "nyc", "fra")
	if e := c.next(); e.Kind != relay.EventReady {
		t.Fatalf("a member: %+v", e)
	}
	if refused := s.enter("wss://"+address, s.network.NodeKey(), h, "nyc").next(); refused.Reason != relay.ReasonToken {
		t.Errorf("a token for another relay: %+v", refused)
	}
	unbound := s.enter("wss://"+address, s.network.NodeKey(), h, "fra")
	unbound.session, _ = relay.NewSession(relay.SessionConfig{Key: s.network.NodeKey(), Relay: "fra", Binding: make([]byte, 32)}, time.Now())
	if e := unbound.next(); e.Reason != relay.ReasonProof {
		t.Errorf("a proof for another TLS connection: %+v", e)
	}
	response, err := http.Get("http://" + metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	for _, want := range []string{`warren_relay_clients 1`, `warren_relay_admissions_total{outcome="token"} 1`, `warren_relay_admissions_total{outcome="proof"} 1`} {
		if !strings.Contains(string(text), want+"\n") {
			t.Errorf("no %q in the metrics", want)
		}
	}
	leaving := make(chan relay.Event, 1)
	go func() {
		leaving <- c.next()
		c.conn.Close()
	}()
	if status := stop(); status != commandline.Done {
		t.Errorf("it stopped with status %d", status)
	}
	if e := <-leaving; e.Kind != relay.EventLeaving {
		t.Errorf("before it stopped: %+v", e)
	}
}

// TestCoordinator: the relay learns the network from the coordinator, keeps it on
// disk, ends the connections of keys that the coordinator revokes, and starts
// again while the coordinator is down.
func TestCoordinator(t *testing.T) {
	s := newSite(t)
	key := s.network.NodeKey()
	var mu sync.Mutex // protects revoked
	var revoked []ident.NodeKey
	mux := http.NewServeMux()
	mux.HandleFunc(channel.GenesisPath, func(w http.ResponseWriter, _ *http.Request) { w.Write(s.network.Genesis.AppendBinary(nil)) })
	mux.HandleFunc(channel.RevocationsPath, func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		signed, err := authority.IssueRelayRevocations(s.network.Genesis, authority.RelayRevocations{Time: time.Now().Truncate(time.Second), Keys: revoked}, s.network.Signer)
		if err != nil {
			t.Error(err)
		}
		w.Write(signed)
	})
	coordinator := httptest.NewServer(mux)
	defer coordinator.Close()
	address, _, _, stop := s.serve("--coordinator", coordinator.URL)
	c := s.enter("ws://"+address, key, nil, "fra")
	if e := c.next(); e.Kind != relay.EventReady {
		t.Fatalf("a member: %+v", e)
	}
	mu.Lock()
	revoked = []ident.NodeKey{key.Public()}
	mu.Unlock()
	if e := c.next(); e.Kind != relay.EventClosed || e.Reason != relay.ReasonRevoked {
		t.Errorf("after the revocation: %+v", e)
	}
	if e := s.enter("ws://"+address, key, nil, "fra").next(); e.Reason != relay.ReasonToken {
		t.Errorf("coming back: %+v", e)
	}
	stop()
	coordinator.Close()
	address, _, _, stop = s.serve("--coordinator", coordinator.URL)
	if e := s.enter("ws://"+address, s.network.NodeKey(), nil, "fra").next(); e.Kind != relay.EventReady {
		t.Errorf("a member while the coordinator is down: %+v", e)
	}
	stop()
}

func TestCommandLine(t *testing.T) {
	s := newSite(t)
	fingerprint := s.network.Genesis.Fingerprint().String()
	other := acltest.NewNetwork(2, time.Now()).Genesis.Fingerprint().String()
	for name, tt := range map[string]struct {
		args   string
		status int
		says   string
	}{
		"no command":          {"", commandline.Usage, "say what to do"},
		"another command":     {"start", commandline.Usage, `no command "warren-relay start"`},
		"an argument":         {"serve fra", commandline.Usage, "no arguments"},
		"no name":             {"serve --fingerprint " + fingerprint + " --genesis x", commandline.Usage, "--name"},
		"no fingerprint":      {"serve --name fra --genesis x", commandline.Usage, "--fingerprint"},
		"a wrong fingerprint": {"serve --name fra --genesis x --fingerprint abc", commandline.Usage, "--fingerprint"},
		"no network":          {"serve --name fra --fingerprint " + fingerprint, commandline.Usage, "--coordinator"},
		"half a certificate":  {"serve --name fra --genesis x --tls-key k --fingerprint " + fingerprint, commandline.Usage, "--tls-cert"},
		"another network":     {"serve --name fra --genesis " + s.path("genesis") + " --fingerprint " + other, commandline.Failed, "warren-coordinator status"},
		"no file":             {"serve --name fra --genesis /nowhere --fingerprint " + fingerprint, commandline.Failed, "/nowhere"},
		"no certificate": {
			"serve --name fra --listen 127.0.0.1:0 --tls-cert /nowhere --tls-key /nowhere --genesis " + s.path("genesis") + " --fingerprint " + fingerprint,
			commandline.Failed, "certificate",
		},
		"a port in words": {"serve --name fra --listen here --genesis " + s.path("genesis") + " --fingerprint " + fingerprint, commandline.Failed, "--listen"},
	} {
		out := new(output)
		m := Main{Stdout: io.Discard, Stderr: out, Rand: rand.Reader}
		if status := m.Run(t.Context(), strings.Fields(tt.args)); status != tt.status || !strings.Contains(out.String(), tt.says) {
			t.Errorf("%s: status %d, %q; want %d and %q", name, status, out, tt.status, tt.says)
		}
	}
}
