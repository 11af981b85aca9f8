package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/warren-overlay/warren/cmd/internal/commandline"
)

// outcome is what a command line did.
type outcome struct {
	status      int
	out, errors string
}

func command(data, stdin string, args ...string) outcome {
	var out, errs bytes.Buffer
	m := Main{Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errs, Rand: rand.Reader}
	status := m.Run(context.Background(), append([]string{"--data", data}, args...))
	return outcome{status, out.String(), errs.String()}
}

// serving starts a coordinator and returns what it said, once it serves.
func serving(t *testing.T, data string, args ...string) (said string, stop func() int) {
	t.Helper()
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	var errs bytes.Buffer
	m := Main{Stdin: strings.NewReader(""), Stdout: w, Stderr: &errs, Rand: rand.Reader}
	line := append([]string{"serve", "--data", data, "--listen", "127.0.0.1:0", "--stun-listen", "127.0.0.1:0", "--metrics-listen", off}, args...)
	go func() {
		status := m.Run(ctx, line)
		w.Close()
		ended <- status
	}()
	var b strings.Builder
	one := make([]byte, 1)
	// The announcement is written at once, right before it serves.
	for !regexp.MustCompile(`http://[^\n]+\n`).MatchString(b.String()) {
		if _, err := r.Read(one); err != nil {
			t.Fatalf("it ended with %d: %s", <-ended, errs.String())
		}
		b.Write(one)
	}
	go io.Copy(io.Discard, r)
	stopped := false
	stop = func() int {
		if stopped {
			return commandline.Done
		}
		stopped = true
		cancel()
		return <-ended
	}
	t.Cleanup(func() { stop() })
	return b.String(), stop
}

func TestAdministration(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	said, stop := serving(t, data)
	if !strings.HasPrefix(said, "Created network ") {
		t.Errorf("it said %q", said)
	}
	policy := filepath.Join(t.TempDir(), "policy.hujson")
	if err := os.WriteFile(policy, []byte(`{"acls": [], /* none */}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   string
		stdin  string
		status int
		want   string // a pattern that output and errors together match
	}{
		{"users create alice@example.com", "", commandline.Done, `created user alice@example.com \(u1\)`},
		{"users create alice@example.com", "", commandline.Failed, `exists already`},
		{"users create", "", commandline.Usage, `one argument`},
		{"users list", "", commandline.Done, `u1 +alice@example.com +0 +20\d\d-`},
		{"users", "", commandline.Usage, `say what to do`},
		{"users lits", "", commandline.Usage, `there is no command`},
		{"keys create --user alice@example.com", "", commandline.Done, `^wkey-auth-[a-z2-7]{12}-[a-z2-7]{52}-[a-z2-7]{52}\n`},
		{"keys create --tags tag:db,tag:x --reusable --ephemeral --expiry 1h", "", commandline.Done, `^wkey-auth-`},
		{"keys create", "", commandline.Usage, `either --user or --tags`},
		{"keys create --user a@b --tags tag:x", "", commandline.Usage, `either --user or --tags`},
		{"keys create --user a@b --expiry soon", "", commandline.Usage, `invalid argument`},
		{"keys create --user a@b --expiry 0s", "", commandline.Usage, `a second at least`},
		{"keys create --user nobody@example.com", "", commandline.Failed, `no user nobody@example.com`},
		{"keys list", "", commandline.Done, `alice@example.com +single-use +usable +0`},
		{"keys list", "", commandline.Done, `tag:db,tag:x +reusable,ephemeral +usable +0`},
		{"keys revoke none", "", commandline.Failed, `no join key none`},
		{"devices list", "", commandline.Done, `^ID +NAME +ADDRESS`},
		{"devices list --json", "", commandline.Done, `^\[\]\n$`},
		{"devices show none", "", commandline.Failed, `no device "none"`},
		{"devices revoke none", "", commandline.Failed, `devices list`},
		{"policy get", "", commandline.Done, `"acls": \[\]`},
		{"policy check " + policy, "", commandline.Done, `could be set`},
		{"policy set " + policy, "", commandline.Done, `epoch 2 is in force`},
		{"policy set -", `{"acls": []}`, commandline.Done, `epoch 3 is in force`},
		{"policy set -", `{"acls": [}`, commandline.Failed, `line 1, column`},
		{"policy set --if-epoch 1 -", `{}`, commandline.Failed, `epoch 3, not 1`},
		{"policy set /nonexistent/file", "", commandline.Failed, `no such file`},
		{"policy get", "", commandline.Done, `^{"acls": \[\]}$`},
		{"status", "", commandline.Done, `policy epoch  3`},
		{"audit verify", "", commandline.Done, `the audit chain holds: \d+ entries`},
		{"audit verify --head x", "", commandline.Usage, `INDEX:HASH`},
		{"audit verify --head 1:" + strings.Repeat("00", 32), "", commandline.Failed, `broken at index 1`},
		{"audit list", "", commandline.Done, `"admin uid \d+" +user.create +u1 +login="alice@example.com"`},
		{"version", "", commandline.Done, `control protocol 4`},
		{"--frob", "", commandline.Usage, `unknown flag`},
		{"serve --log-level loud", "", commandline.Usage, `none of debug`},
		{"serve --log-format xml", "", commandline.Usage, `neither text nor json`},
		{"serve --public-url x", "", commandline.Usage, `no http or https URL`},
		{"serve --relay=false", "", commandline.Usage, `switched by --builtin-relay=false`},
		{"serve --relay name=a", "", commandline.Usage, `neither ws nor wss`},
		{"serve --relay name=a,url=ws://h --relay name=a,url=ws://g", "", commandline.Usage, `two relays have the name a`},
		{"serve --relay name=default,url=ws://h", "", commandline.Usage, `two relays have the name default`},
		{"serve --stun fra.example.com", "", commandline.Usage, `not HOST:PORT`},
		{"serve --stun :3478", "", commandline.Usage, `not HOST:PORT`},
		{"serve" + strings.Repeat(" --stun h:1", 8), "", commandline.Usage, `8 times, at most 7`},
		{"serve --builtin-relay=false --builtin-relay-region eu", "", commandline.Usage, `without the built-in relay`},
		{"serve --listen 127.0.0.1:0 --stun-listen off --metrics-listen off", "", commandline.Failed, `another coordinator works on`},
		{"completion bash", "", commandline.Done, `bash completion`},
		{"--help", "", commandline.Done, `Usage:`},
	} {
		got := command(data, c.stdin, strings.Fields(c.args)...)
		if got.status != c.status || !regexp.MustCompile(`(?m)`+c.want).MatchString(got.out+got.errors) {
			t.Errorf("%s: status %d, want %d and %s\n%s%s", c.args, got.status, c.status, c.want, got.out, got.errors)
		}
	}
	for _, args := range []string{"users list", "keys list", "devices list", "policy get", "status", "audit list", "audit verify", "version"} {
		got := command(data, "", append(strings.Fields(args), "--json")...)
		if got.status != commandline.Done || !json.Valid([]byte(got.out)) {
			t.Errorf("%s --json: %d %s%s", args, got.status, got.out, got.errors)
		}
	}
	if status := stop(); status != commandline.Done {
		t.Errorf("serve ended with %d", status)
	}
	for args, want := range map[string]string{"users list": "start it with: warren-coordinator serve --data " + data, "audit verify": "chain holds"} {
		if got := command(data, "", strings.Fields(args)...); !strings.Contains(got.out+got.errors, want) {
			t.Errorf("%s without a coordinator: %s%s", args, got.out, got.errors)
		}
	}
	if got := command(data+"none", "", "audit", "verify"); got.status != commandline.Failed || !strings.Contains(got.errors, "is --data right?") {
		t.Errorf("no network: %+v", got)
	}
	if said, _ := serving(t, data); !strings.HasPrefix(said, "Serving network ") {
		t.Errorf("at the second start it said %q", said)
	}
}

func TestPublicRelay(t *testing.T) {
	for public, want := range map[string]string{
		"": "", "https://vpn.example.com": "wss://vpn.example.com/warren/v1/relay", "http://x:80/y/": "ws://x:80/y/warren/v1/relay",
	} {
		if got, err := publicRelay(public); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", public, got, err, want)
		}
	}
	for _, public := range []string{"vpn.example.com", "ftp://x", "https://"} {
		if _, err := publicRelay(public); err == nil {
			t.Errorf("%q is taken", public)
		}
	}
}
