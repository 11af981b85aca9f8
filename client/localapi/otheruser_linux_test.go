package localapi_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/warren-overlay/warren/client/localapi"
)

// socketVariable names the socket for the child process of TestOtherUser.
const socketVariable = "WARREN_TEST_SOCKET"

// TestOtherUser is X-14: uid 65534 calls every verb. The socket's mode keeps it
// out; with the mode opened, it may read and nothing else.
func TestOtherUser(t *testing.T) {
	if path := os.Getenv(socketVariable); path != "" {
		otherUser(path)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	f := newFake()
	dir := t.TempDir()
	for _, path := range []string{filepath.Dir(dir), dir} { // for others to enter
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "s")
	s, err := localapi.Listen(path, f, f, f, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() { cancel(); <-done }()

	binary := filepath.Join(dir, "child")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Skipf("needs /proc: %v", err)
	}
	if err := os.WriteFile(binary, self, 0o755); err != nil {
		t.Fatal(err)
	}
	child := func() string {
		cmd := exec.Command(binary, "-test.run=^TestOtherUser$")
		cmd.Env = append(os.Environ(), socketVariable+"="+path)
		cmd.Dir = dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		got, _, _ := strings.Cut(string(out), "PASS")
		return strings.TrimSpace(got)
	}
	if got, want := child(), "status=not-permitted whois=not-permitted prefs=not-permitted why=not-permitted set=not-permitted up=not-permitted down=not-permitted logout=not-permitted ping=not-permitted"; got != want {
		t.Errorf("mode 0600: %s\nwant %s", got, want)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if got, want := child(), "status=ok whois=ok prefs=ok why=ok set=forbidden up=forbidden down=forbidden logout=forbidden ping=forbidden"; got != want {
		t.Errorf("mode 0666: %s\nwant %s", got, want)
	}
	if got := fmt.Sprint(f.calls); got != "[prefs why]" {
		t.Errorf("the backend saw %s", got)
	}
}

// otherUser calls every verb and prints what came of it.
func otherUser(path string) {
	c := localapi.NewClient(path)
	ctx := context.Background()
	var out []string
	note := func(verb string, err error) {
		var e *localapi.Error
		switch {
		case err == nil:
			out = append(out, verb+"=ok")
		case errors.As(err, &e):
			out = append(out, verb+"="+string(e.Code))
		case errors.Is(err, localapi.ErrNotPermitted):
			out = append(out, verb+"=not-permitted")
		default:
			out = append(out, verb+"="+err.Error())
		}
	}
	_, err := c.Status(ctx)
	note("status", err)
	_, err = c.WhoIs(ctx, netip.MustParseAddr("100.64.0.1"))
	note("whois", err)
	_, err = c.Preferences(ctx)
	note("prefs", err)
	_, err = c.Why(ctx, localapi.WhyRequest{To: "a", Protocol: 6, Port: 1})
	note("why", err)
	_, err = c.ChangePreferences(ctx, localapi.PreferencesChange{})
	note("set", err)
	note("up", c.Up(ctx, localapi.UpRequest{}))
	note("down", c.Down(ctx))
	_, err = c.Logout(ctx)
	note("logout", err)
	_, err = c.Ping(ctx, localapi.PingRequest{})
	note("ping", err)
	fmt.Println(strings.Join(out, " "))
}
