package localapi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/warren-overlay/warren/client/localapi"
)

// fake is a Backend that notes what was called.
type fake struct {
	mu    sync.Mutex // protects calls and status
	calls []string
	// changed is closed and replaced when status changes.
	changed chan struct{}
	status  localapi.Status
	err     error
}

func newFake() *fake {
	return &fake{changed: make(chan struct{}), status: localapi.Status{
		Generation: 1, State: localapi.Connected,
		Self:  &localapi.Node{Name: "self", Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.9")}},
		Peers: []localapi.Node{{Name: "peer", Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.1")}}},
	}}
}

func (f *fake) note(call string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, call)
	return f.err
}

func (f *fake) set(s localapi.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status = s
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fake) Status(ctx context.Context, after uint64) localapi.Status {
	for {
		f.mu.Lock()
		s, changed := f.status, f.changed
		f.mu.Unlock()
		if s.Generation > after || ctx.Err() != nil {
			return s
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

func (f *fake) Up(_ context.Context, r localapi.UpRequest) error {
	return f.note("up " + r.LoginServer + " " + r.AuthKey)
}
func (f *fake) Down(context.Context) error { return f.note("down") }
func (f *fake) Logout(context.Context) (localapi.LogoutReply, error) {
	return localapi.LogoutReply{Told: true, Name: "n"}, f.note("logout")
}

func (f *fake) Ping(_ context.Context, r localapi.PingRequest) (localapi.PingReply, error) {
	return localapi.PingReply{Name: r.Target, RTT: time.Second}, f.note("ping " + r.Timeout.String())
}

func (f *fake) ChangePreferences(_ context.Context, c localapi.PreferencesChange) (localapi.Preferences, error) {
	return localapi.Preferences{ShieldsUp: c.ShieldsUp != nil && *c.ShieldsUp}, f.note("prefs")
}

func (f *fake) Why(_ context.Context, r localapi.WhyRequest) (localapi.WhyReply, error) {
	return localapi.WhyReply{Allowed: true, Text: fmt.Sprint(r.To, " ", r.Protocol, " ", r.Port)}, f.note("why")
}

// Flows has two pages of one record each, then nothing.
func (f *fake) Flows(_ context.Context, after uint64) (localapi.FlowPage, error) {
	page := localapi.FlowPage{Next: after, Lost: 2, Changed: make(chan struct{})}
	if after < 2 {
		page.Next++
		page.Gap = after == 1
		verdict := []string{"allowed", "denied"}[after]
		page.Flows = []localapi.Flow{{ID: fmt.Sprint(page.Next), Verdict: verdict, Source: localapi.FlowParty{Name: "<a>"}}}
	}
	return page, f.err
}

func (f *fake) Capture(_ context.Context, r localapi.CaptureRequest) (localapi.Capture, error) {
	return func(_ context.Context, w io.Writer) error {
		_, err := fmt.Fprint(w, "capture of ", r.Peer, r.Denied, r.Packets, r.Duration)
		if r.Peer == "broken" {
			err = errors.New("the rest is missing")
		}
		return err
	}, f.note("capture")
}

func (f *fake) Netcheck(context.Context) (localapi.NetcheckReply, error) {
	return localapi.NetcheckReply{UDP: true, NearestRelay: "r"}, f.note("netcheck")
}

func (f *fake) Paths(_ context.Context, target string) (localapi.PathsReply, error) {
	return localapi.PathsReply{Name: target}, f.note("paths")
}

// all is all that a server serves.
type all interface {
	localapi.Backend
	localapi.Decisions
	localapi.Connectivity
}

// serve runs a server on a socket of its own and returns the socket's path.
func serve(t *testing.T, backend all, log *slog.Logger) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s", "warrend.sock")
	s, err := localapi.Listen(path, backend, backend, backend, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return path
}

func TestEveryVerb(t *testing.T) {
	f := newFake()
	c := localapi.NewClient(serve(t, f, slog.New(slog.DiscardHandler)))
	ctx := t.Context()
	if s, err := c.Status(ctx); err != nil || s.State != localapi.Connected {
		t.Errorf("status %+v, %v", s, err)
	}
	if err := c.Up(ctx, localapi.UpRequest{LoginServer: "http://c", AuthKey: "k"}); err != nil {
		t.Error(err)
	}
	if err := c.Down(ctx); err != nil {
		t.Error(err)
	}
	if r, err := c.Logout(ctx); err != nil || !r.Told {
		t.Errorf("logout %+v, %v", r, err)
	}
	if r, err := c.Ping(ctx, localapi.PingRequest{Target: "db", Timeout: time.Hour}); err != nil || r.Name != "db" || r.RTT != time.Second {
		t.Errorf("ping %+v, %v", r, err)
	}
	if r, err := c.WhoIs(ctx, netip.MustParseAddr("::ffff:100.64.0.1")); err != nil || r.Node.Name != "peer" || r.Self {
		t.Errorf("whois %+v, %v", r, err)
	}
	if r, err := c.WhoIs(ctx, netip.MustParseAddr("100.64.0.9")); err != nil || !r.Self {
		t.Errorf("whois %+v, %v", r, err)
	}
	var notFound *localapi.Error
	if _, err := c.WhoIs(ctx, netip.MustParseAddr("100.64.0.7")); !errors.As(err, &notFound) || notFound.Code != localapi.CodeNotFound {
		t.Errorf("whois of nobody: %v", err)
	}
	if r, err := c.Why(ctx, localapi.WhyRequest{To: "a b&c", Protocol: 6, Port: 80}); err != nil || !r.Allowed || r.Text != "a b&c 6 80" {
		t.Errorf("why %+v, %v", r, err)
	}
	if r, err := c.Netcheck(ctx); err != nil || !r.UDP || r.NearestRelay != "r" {
		t.Errorf("netcheck %+v, %v", r, err)
	}
	if r, err := c.Paths(ctx, "a b&c"); err != nil || r.Name != "a b&c" {
		t.Errorf("paths %+v, %v", r, err)
	}
	on := true
	if p, err := c.ChangePreferences(ctx, localapi.PreferencesChange{ShieldsUp: &on}); err != nil || !p.ShieldsUp {
		t.Errorf("prefs %+v, %v", p, err)
	}
	if p, err := c.Preferences(ctx); err != nil || p.ShieldsUp {
		t.Errorf("prefs %+v, %v", p, err)
	}
	if got, want := fmt.Sprint(f.calls), "[up http://c k down logout ping 5s why netcheck paths prefs prefs]"; got != want {
		t.Errorf("calls %s, want %s", got, want)
	}
}

func TestErrorsKeepTheirCode(t *testing.T) {
	f := newFake()
	c := localapi.NewClient(serve(t, f, slog.New(slog.DiscardHandler)))
	for _, want := range []localapi.Code{
		localapi.CodeBadRequest, localapi.CodeForbidden, localapi.CodeNotFound, localapi.CodeNotConnected, localapi.CodeNeedsLogin,
		localapi.CodeConflict, localapi.CodeDenied, localapi.CodeNoAnswer, localapi.CodeInternal,
	} {
		f.err = localapi.Errorf(want, "because")
		var e *localapi.Error
		if err := c.Down(t.Context()); !errors.As(err, &e) || e.Code != want || e.Message != "because" {
			t.Errorf("%s arrives as %v", want, err)
		}
	}
	f.err = errors.New("plain")
	var e *localapi.Error
	if err := c.Down(t.Context()); !errors.As(err, &e) || e.Code != localapi.CodeInternal {
		t.Errorf("a plain error arrives as %v", err)
	}
}

// TestStatusAfterWaits: the answer comes with the change, not before.
func TestStatusAfterWaits(t *testing.T) {
	f := newFake()
	c := localapi.NewClient(serve(t, f, slog.New(slog.DiscardHandler)))
	got := make(chan localapi.Status, 1)
	go func() {
		s, err := c.StatusAfter(context.Background(), 1)
		if err != nil {
			s.Reason = err.Error()
		}
		got <- s
	}()
	f.set(localapi.Status{Generation: 2, State: localapi.Offline})
	if s := <-got; s.Generation != 2 || s.State != localapi.Offline {
		t.Errorf("got %+v", s)
	}
}

func TestSocketIsPrivate(t *testing.T) {
	path := serve(t, newFake(), slog.New(slog.DiscardHandler))
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "windows" && (info.Mode().Perm() != 0o600 || info.Mode()&fs.ModeSocket == 0) {
		t.Errorf("the socket has mode %v", info.Mode())
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("beside the socket: %v", entries)
	}
}

func TestSecondDaemonAndLeftoverSocket(t *testing.T) {
	f := newFake()
	path := serve(t, f, slog.New(slog.DiscardHandler))
	if _, err := localapi.Listen(path, f, f, f, slog.New(slog.DiscardHandler)); !errors.Is(err, localapi.ErrInUse) {
		t.Errorf("a second daemon: %v, want ErrInUse", err)
	}
	left := filepath.Join(t.TempDir(), "left.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: left, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	s, err := localapi.Listen(left, f, f, f, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("over the socket of a daemon that died: %v", err)
	}
	s.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := localapi.Listen(file, f, f, f, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a file that is no socket was replaced")
	}
	if _, err := localapi.Listen(filepath.Join(t.TempDir(), strings.Repeat("x", 120)), f, f, f, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a path too long for a socket was taken")
	}
}

func TestNotRunning(t *testing.T) {
	c := localapi.NewClient(filepath.Join(t.TempDir(), "none.sock"))
	if _, err := c.Status(t.Context()); !errors.Is(err, localapi.ErrNotRunning) {
		t.Errorf("%v, want ErrNotRunning", err)
	}
}

// TestWithoutCredentials: a request whose caller the kernel did not name may
// only read.
func TestWithoutCredentials(t *testing.T) {
	f := newFake()
	s, err := localapi.Listen(filepath.Join(t.TempDir(), "x.sock"), f, f, f, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{"GET", "status", 200},
		{"GET", "whois?addr=100.64.0.1", 200},
		{"GET", "prefs", 200},
		{"GET", "why?to=a&protocol=6&port=1", 200},
		{"GET", "why?to=a&protocol=0&port=1", 400},
		{"GET", "why?to=a&protocol=6&port=70000", 400},
		{"GET", "why?to=a&protocol=6", 400},
		{"GET", "flows", 403},
		{"GET", "capture", 403},
		{"PATCH", "prefs", 403},
		{"POST", "up", 403},
		{"POST", "down", 403},
		{"POST", "logout", 403},
		{"POST", "ping", 403},
		{"POST", "status", 404},
		{"GET", "up", 404},
		{"GET", "nothing", 404},
		{"GET", "whois?addr=x", 400},
		{"GET", "status?after=x", 400},
	} {
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequest(c.method, localapi.Prefix+c.path, strings.NewReader("{}")))
		if w.Code != c.want {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, w.Code, c.want)
		}
	}
	if len(f.calls) != 2 {
		t.Errorf("the backend saw %v", f.calls)
	}
}

// TestKeysAreNotRepeated is X-18 for this package: a key in a request that is
// refused, or that fails, is in no answer and no log line.
func TestKeysAreNotRepeated(t *testing.T) {
	const canary = "wkey-auth-canary"
	var log bytes.Buffer
	var mu sync.Mutex // protects log
	f := newFake()
	f.err = errors.New("it failed")
	path := serve(t, f, slog.New(slog.NewJSONHandler(&lockedWriter{mu: &mu, w: &log}, &slog.HandlerOptions{Level: slog.LevelDebug})))
	var d net.Dialer
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialContext(ctx, "unix", path)
	}}}
	for _, body := range []string{
		`{"auth_key":"` + canary + `"}`, `{"auth_key":"` + canary, `{"` + canary + `":1}`, `{"auth_key":"` + canary + `"} more`, `{"auth_key":{"x":"` + canary + `"}}`,
	} {
		response, err := client.Post("http://local"+localapi.Prefix+"up", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		var answer bytes.Buffer
		answer.ReadFrom(response.Body)
		response.Body.Close()
		if response.StatusCode == http.StatusOK || strings.Contains(answer.String(), canary) {
			t.Errorf("%s is answered with %d %s", body, response.StatusCode, answer.String())
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if strings.Contains(log.String(), canary) || !strings.Contains(log.String(), "it failed") {
		t.Errorf("log:\n%s", log.String())
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(verb, localapi.UpRequest{AuthKey: canary}); strings.Contains(text, canary) {
			t.Errorf("%s prints %s", verb, text)
		}
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	w  *bytes.Buffer
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}
