package server

import (
	"bufio"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/admin"
	"github.com/warren-overlay/warren/coordinator/audit"
	"github.com/warren-overlay/warren/coordinator/registry"
	"github.com/warren-overlay/warren/coordinator/store"
	"github.com/warren-overlay/warren/coordinator/wire"
	"github.com/warren-overlay/warren/coordinator/wire/channel"
)

// running is a coordinator with real listeners.
type running struct {
	*Server
	url, metrics string
	admin        *admin.Client
}

func startRunning(t *testing.T) *running {
	t.Helper()
	s, err := Open(t.Context(), Config{
		Dir: filepath.Join(t.TempDir(), "data"), Rand: rand.Reader, Logger: slog.New(slog.DiscardHandler), Version: "1.2.3",
	})
	if err != nil {
		t.Fatal(err)
	}
	var l Listeners
	if l.Public, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	if l.Metrics, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	if l.Admin, err = s.ListenAdmin(); err != nil {
		t.Fatal(err)
	}
	s.Mount("GET /mounted", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "here") }))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &running{
		Server: s, url: "http://" + l.Public.Addr().String(), metrics: "http://" + l.Metrics.Addr().String(),
		admin: admin.NewClient(s.Socket()),
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

func TestOverTheNetwork(t *testing.T) {
	s := startRunning(t)
	for path, want := range map[string]string{"/healthz": "ok\n", "/version": "1.2.3\n", "/mounted": "here"} {
		if status, body := get(t, s.url+path); status != 200 || body != want {
			t.Errorf("%s: %d %q", path, status, body)
		}
	}
	if status, _ := get(t, s.url+"/metrics"); status != 404 {
		t.Errorf("metrics on the public port: %d", status)
	}
	if _, err := s.admin.CreateUser(t.Context(), "alice@example.com"); err != nil {
		t.Fatal(err)
	}
	key, err := s.admin.CreateKey(t.Context(), admin.CreateKey{User: "alice@example.com", ExpirySeconds: 60})
	if err != nil {
		t.Fatal(err)
	}
	join, err := wire.ParseJoinKey(key.Text)
	if err != nil {
		t.Fatal(err)
	}
	genesis, err := channel.FetchGenesis(t.Context(), nil, s.url, join.Fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	d := newDevice(t)
	d.ch, err = channel.Dial(t.Context(), channel.DialConfig{
		URL: s.url, Machine: d.machine, Coordinator: genesis.Channel, Network: join.Fingerprint, Rand: rand.Reader,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.ch.Close()
	d.gone, d.coordinator = make(chan struct{}), genesis.Channel
	d.say(wire.Hello{Version: wire.Newest})
	d.hear()
	if _, refused := d.register(join.Credential(), "Laptop"); refused != nil {
		t.Fatal(refused)
	}
	if refused := d.listen(); refused != nil {
		t.Fatal(refused)
	}
	devices, err := s.admin.Devices(t.Context())
	if err != nil || len(devices) != 1 || devices[0].Name != "laptop" || !devices[0].Online || devices[0].User != "alice@example.com" {
		t.Errorf("%+v, %v", devices, err)
	}
	if _, metrics := get(t, s.metrics+"/metrics"); !strings.Contains(metrics, "warren_coordinator_sessions 1\n") ||
		!strings.Contains(metrics, `warren_coordinator_registrations_total{outcome="done"} 1`) {
		t.Errorf("metrics: %s", metrics)
	}
	if _, err := s.admin.RevokeDevice(t.Context(), "laptop", false); err != nil {
		t.Fatal(err)
	}
	<-d.gone
	if d.why() != wire.CodeRevoked {
		t.Errorf("code %d", d.why())
	}
}

// TestStrangersAreBounded sends what strangers send (F21).
func TestStrangersAreBounded(t *testing.T) {
	s := startRunning(t)
	address := strings.TrimPrefix(s.url, "http://")
	raw := func(request string) string {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(c, request)
		line, _ := bufio.NewReader(c).ReadString('\n')
		return line
	}
	for name, c := range map[string]struct{ request, want string }{
		"a body":             {"POST /warren/v1/control HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n", "413"},
		"a body of chunks":   {"GET /warren/v1/genesis HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "200"},
		"long headers":       {"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", "431"},
		"no upgrade":         {"GET /warren/v1/control HTTP/1.1\r\nHost: x\r\n\r\n", "426"},
		"another method":     {"DELETE /warren/v1/genesis HTTP/1.1\r\nHost: x\r\n\r\n", "405"},
		"another origin":     {"GET /warren/v1/control HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nOrigin: http://evil.example\r\n\r\n", "403"},
		"an unknown path":    {"GET /v1/users HTTP/1.1\r\nHost: x\r\n\r\n", "404"},
		"not HTTP":           {"\x16\x03\x01\x00\x00\r\n\r\n", "400"},
		"a plain connection": {"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "200"},
	} {
		if got := raw(c.request); !strings.Contains(got, " "+c.want+" ") {
			t.Errorf("%s: %q, want %s", name, got, c.want)
		}
	}
	// Connections that say nothing stand open, and others are served.
	for range 300 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "GET /warren/v1/control HTTP/1.1\r\nHost: x\r\n")
	}
	began := time.Now()
	if status, _ := get(t, s.url+"/healthz"); status != 200 || time.Since(began) > 2*time.Second {
		t.Errorf("status %d after %v beside idle connections", status, time.Since(began))
	}
}

func TestAdministrator(t *testing.T) {
	s := startRunning(t)
	ctx := t.Context()
	if info, err := os.Stat(s.Socket()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	code := func(err error) admin.Code {
		var e *admin.Error
		if errors.As(err, &e) {
			return e.Code
		}
		return admin.Code(fmt.Sprint(err))
	}
	c := s.admin
	if u, err := c.CreateUser(ctx, "Alice@example.com"); err != nil || u.Login != "alice@example.com" || u.ID != "u1" {
		t.Errorf("%+v, %v", u, err)
	}
	if _, err := c.CreateUser(ctx, "alice@example.com"); code(err) != admin.CodeExists {
		t.Error(err)
	}
	if _, err := c.CreateUser(ctx, "nobody"); code(err) != admin.CodeInvalid {
		t.Error(err)
	}
	if _, err := c.CreateKey(ctx, admin.CreateKey{User: "bob@example.com", ExpirySeconds: 1}); code(err) != admin.CodeNotFound {
		t.Error(err)
	}
	for _, seconds := range []int64{0, -1, 1 << 62, 1 << 40} {
		if _, err := c.CreateKey(ctx, admin.CreateKey{User: "alice@example.com", ExpirySeconds: seconds}); code(err) != admin.CodeInvalid {
			t.Errorf("expiry %d: %v", seconds, err)
		}
	}
	k, err := c.CreateKey(ctx, admin.CreateKey{Tags: []string{"tag:db"}, Reusable: true, ExpirySeconds: 3600})
	if err != nil {
		t.Fatal(err)
	}
	join, err := wire.ParseJoinKey(k.Text)
	if err != nil || join.ID != k.ID || join.Fingerprint != s.Fingerprint() {
		t.Errorf("%+v, %v", join, err)
	}
	listed, err := c.Keys(ctx)
	if err != nil || len(listed) != 1 || listed[0].State != "usable" {
		t.Errorf("%+v, %v", listed, err)
	}
	if text, _ := json.Marshal(listed); strings.Contains(string(text), join.Secret) {
		t.Error("the list shows the secret")
	}
	// A whole key may stand for its id.
	if got, err := c.RevokeKey(ctx, k.Text); err != nil || got.State != "revoked" {
		t.Errorf("%+v, %v", got, err)
	}
	for _, name := range []string{"none", "n9", "../users", "a b"} {
		if _, err := c.RevokeDevice(ctx, name, false); code(err) != admin.CodeNotFound {
			t.Errorf("revoking %q: %v", name, err)
		}
	}
	if _, err := c.SetTags(ctx, "none", []string{"tag:db"}); code(err) != admin.CodeNotFound {
		t.Error(err)
	}
	if _, err := c.SuspendUser(ctx, "nobody@example.com"); code(err) != admin.CodeNotFound {
		t.Error(err)
	}
	if _, err := c.CreateKey(ctx, admin.CreateKey{User: "alice@example.com", ExpirySeconds: 3600}); err != nil {
		t.Error(err)
	}
	if u, err := c.SuspendUser(ctx, "Alice@example.com"); err != nil || u.Suspended.IsZero() || u.Login != "alice@example.com" {
		t.Errorf("%+v, %v", u, err)
	}
	if all, err := c.Users(ctx); err != nil || all[0].Suspended.IsZero() {
		t.Errorf("%+v, %v", all, err)
	}
	if all, err := c.Keys(ctx); err != nil || !slices.ContainsFunc(all, func(k admin.Key) bool { return k.State == "suspended" }) {
		t.Errorf("%+v, %v", all, err)
	}
	if _, err := c.CreateKey(ctx, admin.CreateKey{User: "alice@example.com", ExpirySeconds: 3600}); code(err) != admin.CodeConflict {
		t.Error(err)
	}
	if u, err := c.ResumeUser(ctx, "alice@example.com"); err != nil || !u.Suspended.IsZero() {
		t.Errorf("%+v, %v", u, err)
	}
	before, err := c.Policy(ctx)
	if err != nil || before.Epoch != 1 {
		t.Errorf("%+v, %v", before, err)
	}
	for text, want := range map[string]string{
		"":  "empty",
		"{": "line 1",
		`{"acls": [{"action": "accept", "src": ["tag:db"], "dst": ["*:1"]}]}`:                                                    "tag:db",
		`{"acls": [], "tests": [{"src": "alice@example.com", "accept": ["100.64.0.1:22"]}]}`:                                     "tests",
		`{"ssh": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"]}], "acls": []}`: "not supported",
	} {
		var e *admin.Error
		_, err := c.SetPolicy(ctx, admin.SetPolicy{Text: text})
		if !errors.As(err, &e) || e.Code != admin.CodeInvalid || !strings.Contains(err.Error(), want) {
			t.Errorf("policy %q: %v, want %q", text, err, want)
		}
		if _, err := c.CheckPolicy(ctx, text); code(err) != admin.CodeInvalid {
			t.Errorf("checking %q: %v", text, err)
		}
	}
	if _, err := c.SetPolicy(ctx, admin.SetPolicy{Text: everyone, IfEpoch: 7}); code(err) != admin.CodeConflict {
		t.Error(err)
	}
	if p, err := c.SetPolicy(ctx, admin.SetPolicy{Text: everyone, IfEpoch: 1}); err != nil || p.Epoch != 2 {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := c.Policy(ctx); err != nil || p.Text != everyone {
		t.Errorf("%+v, %v", p, err)
	}
	for _, ask := range []func() error{
		func() error { _, err := c.Candidate(ctx); return err },
		func() error { _, err := c.ClearCandidate(ctx); return err },
		func() error { _, err := c.PromoteCandidate(ctx, admin.PromoteCandidate{}); return err },
	} {
		if err := ask(); code(err) != admin.CodeNotFound {
			t.Errorf("without a candidate: %v", err)
		}
	}
	if _, err := c.SetCandidate(ctx, admin.SetPolicy{Text: "{"}); code(err) != admin.CodeInvalid {
		t.Error(err)
	}
	if p, err := c.SetCandidate(ctx, admin.SetPolicy{Text: alicesOnly}); err != nil || p.Epoch != 1 || p.Text != alicesOnly {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := c.Candidate(ctx); err != nil || p.Text != alicesOnly || p.Error != "" {
		t.Errorf("%+v, %v", p, err)
	}
	if s, err := c.Status(ctx); err != nil || s.Candidate != 1 || s.Epoch != 2 {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := c.PromoteCandidate(ctx, admin.PromoteCandidate{IfEpoch: 7}); code(err) != admin.CodeConflict {
		t.Error(err)
	}
	if p, err := c.ClearCandidate(ctx); err != nil || p.Text != alicesOnly {
		t.Errorf("%+v, %v", p, err)
	}
	if all, err := c.Settings(ctx); err != nil || len(all) != 1 || all[0].Name != "port-mapping" || !all[0].On {
		t.Errorf("%+v, %v", all, err)
	}
	if _, err := c.SetSetting(ctx, "port/mapping", false); code(err) != admin.CodeNotFound {
		t.Error(err)
	}
	if w, err := c.SetSetting(ctx, "port-mapping", false); err != nil || w.On || w.Off.IsZero() {
		t.Errorf("%+v, %v", w, err)
	}
	if s, err := c.Status(ctx); err != nil || !slices.Equal(s.Off, []string{"port-mapping"}) {
		t.Errorf("%+v, %v", s, err)
	}
	if w, err := c.SetSetting(ctx, "port-mapping", true); err != nil || !w.On || !w.Off.IsZero() {
		t.Errorf("%+v, %v", w, err)
	}
	status, err := c.Status(ctx)
	if err != nil || len(status.Off) != 0 || status.Fingerprint != s.Fingerprint().String() || status.Users != 1 || status.Epoch != 2 {
		t.Errorf("%+v, %v", status, err)
	}
	if _, err := admin.NewClient(s.Socket() + ".none").Users(ctx); !errors.Is(err, admin.ErrNotRunning) {
		t.Error(err)
	}
	if _, err := store.OpenDir(filepath.Dir(s.Socket())); !errors.Is(err, store.ErrLocked) {
		t.Errorf("a second coordinator on the directory: %v", err)
	}
	db, err := store.OpenReadOnly(ctx, filepath.Dir(s.Socket()))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.VerifyAudit(ctx); err != nil {
		t.Error(err)
	}
}

// TestKeysOfAnotherNetworkAreRefused puts other keys beside the database.
func TestKeysOfAnotherNetworkAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	open := func() error {
		s, err := Open(t.Context(), Config{Dir: path, Rand: rand.Reader, Logger: slog.New(slog.DiscardHandler)})
		if err == nil {
			err = s.Close()
		}
		return err
	}
	if err := open(); err != nil {
		t.Fatal(err)
	}
	if err := open(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "signing.key"), []byte(strings.Repeat("11", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(); !errors.Is(err, store.ErrKeyFile) {
		t.Errorf("another signing key: %v", err)
	}
	if err := os.Remove(filepath.Join(path, "signing.key")); err != nil {
		t.Fatal(err)
	}
	if err := open(); !errors.Is(err, store.ErrKeyFile) {
		t.Errorf("no signing key: %v", err)
	}
}

func TestMembersFollow(t *testing.T) {
	o := newSite(t)
	defer o.stop()
	if _, _, err := o.Members().Admit(ident.NodeKey{1}, nil, time.Now()); !errors.Is(err, ErrNotMember) {
		t.Error(err)
	}
	if _, _, err := o.Members().Admit(ident.NodeKey{}, nil, time.Now()); !errors.Is(err, ErrNotMember) {
		t.Error(err)
	}
}

// TestBrokenAuditChainIsNotServed changes one row behind the coordinator's
// back.
func TestBrokenAuditChainIsNotServed(t *testing.T) {
	o := newSite(t)
	o.must(registry.CreateUser{Login: "alice@example.com"})
	o.stop()
	db, err := sql.Open("sqlite3", filepath.Join(o.path, "coordinator.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("UPDATE audit SET entry = zeroblob(20) WHERE idx = 2"); err != nil {
		t.Fatal(err)
	}
	var broken *audit.BrokenError
	_, err = Open(t.Context(), Config{Dir: o.path, Rand: rand.Reader, Logger: slog.New(slog.DiscardHandler)})
	if !errors.As(err, &broken) || broken.Index != 2 {
		t.Errorf("%v, want index 2", err)
	}
}
