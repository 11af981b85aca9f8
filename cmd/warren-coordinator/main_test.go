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
			return exitDone
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
		{"users create alice@example.com", "", exitDone, `created user alice@example.com \(u1\)`},
		{"users create alice@example.com", "", exitFailed, `exists already`},
		{"users create", "", exitUsage, `one argument`},
		{"users list", "", exitDone, `u1 +alice@example.com +0 +20\d\d-`},
		{"users", "", exitUsage, `say what to do`},
		{"users lits", "", exitUsage, `there is no command`},
		{"keys create --user alice@example.com", "", exitDone, `^wkey-auth-[a-z2-7]{12}-[a-z2-7]{52}-[a-z2-7]{52}\n`},
		{"keys create --tags tag:db,tag:x --reusable --ephemeral --expiry 1h", "", exitDone, `^wkey-auth-`},
		{"keys create", "", exitUsage, `either --user or --tags`},
		{"keys create --user a@b --tags tag:x", "", exitUsage, `either --user or --tags`},
		{"keys create --user a@b --expiry soon", "", exitUsage, `invalid argument`},
		{"keys create --user a@b --expiry 0s", "", exitUsage, `a second at least`},
		{"keys create --user nobody@example.com", "", exitFailed, `no user nobody@example.com`},
		{"keys list", "", exitDone, `alice@example.com +single-use +usable +0`},
		{"keys list", "", exitDone, `tag:db,tag:x +reusable,ephemeral +usable +0`},
		{"keys revoke none", "", exitFailed, `no join key none`},
		{"devices list", "", exitDone, `^ID +NAME +ADDRESS`},
		{"devices list --json", "", exitDone, `^\[\]\n$`},
		{"devices show none", "", exitFailed, `no device "none"`},
		{"devices revoke none", "", exitFailed, `devices list`},
		{"policy get", "", exitDone, `"acls": \[\]`},
		{"policy check " + policy, "", exitDone, `could be set`},
		{"policy set " + policy, "", exitDone, `epoch 2 is in force`},
		{"policy set -", `{"acls": []}`, exitDone, `epoch 3 is in force`},
		{"policy set -", `{"acls": [}`, exitFailed, `line 1, column`},
		{"policy set --if-epoch 1 -", `{}`, exitFailed, `epoch 3, not 1`},
		{"policy set /nonexistent/file", "", exitFailed, `no such file`},
		{"policy get", "", exitDone, `^{"acls": \[\]}$`},
		{"status", "", exitDone, `policy epoch  3`},
		{"audit verify", "", exitDone, `the audit chain holds: \d+ entries`},
		{"audit verify --head x", "", exitUsage, `INDEX:HASH`},
		{"audit verify --head 1:" + strings.Repeat("00", 32), "", exitFailed, `broken at index 1`},
		{"audit list", "", exitDone, `"admin uid \d+" +user.create +u1 +login="alice@example.com"`},
		{"version", "", exitDone, `control protocol 4`},
		{"--frob", "", exitUsage, `unknown flag`},
		{"serve --log-level loud", "", exitUsage, `none of debug`},
		{"serve --log-format xml", "", exitUsage, `neither text nor json`},
		{"serve --public-url x", "", exitUsage, `no http or https URL`},
		{"serve --relay=false", "", exitUsage, `switched by --builtin-relay=false`},
		{"serve --relay name=a", "", exitUsage, `neither ws nor wss`},
		{"serve --relay name=a,url=ws://h --relay name=a,url=ws://g", "", exitUsage, `two relays have the name a`},
		{"serve --relay name=default,url=ws://h", "", exitUsage, `two relays have the name default`},
		{"serve --stun fra.example.com", "", exitUsage, `not HOST:PORT`},
		{"serve --stun :3478", "", exitUsage, `not HOST:PORT`},
		{"serve" + strings.Repeat(" --stun h:1", 8), "", exitUsage, `8 times, at most 7`},
		{"serve --builtin-relay=false --builtin-relay-region eu", "", exitUsage, `without the built-in relay`},
		{"serve --listen 127.0.0.1:0 --stun-listen off --metrics-listen off", "", exitFailed, `another coordinator works on`},
		{"completion bash", "", exitDone, `bash completion`},
		{"--help", "", exitDone, `Usage:`},
	} {
		got := command(data, c.stdin, strings.Fields(c.args)...)
		if got.status != c.status || !regexp.MustCompile(`(?m)`+c.want).MatchString(got.out+got.errors) {
			t.Errorf("%s: status %d, want %d and %s\n%s%s", c.args, got.status, c.status, c.want, got.out, got.errors)
		}
	}
	for _, args := range []string{"users list", "keys list", "devices list", "policy get", "status", "audit list", "audit verify", "version"} {
		got := command(data, "", append(strings.Fields(args), "--json")...)
		if got.status != exitDone || !json.Valid([]byte(got.out)) {
			t.Errorf("%s --json: %d %s%s", args, got.status, got.out, got.errors)
		}
	}
	if status := stop(); status != exitDone {
		t.Errorf("serve ended with %d", status)
	}
	for args, want := range map[string]string{"users list": "start it with: warren-coordinator serve --data " + data, "audit verify": "chain holds"} {
		if got := command(data, "", strings.Fields(args)...); !strings.Contains(got.out+got.errors, want) {
			t.Errorf("%s without a coordinator: %s%s", args, got.out, got.errors)
		}
	}
	if got := command(data+"none", "", "audit", "verify"); got.status != exitFailed || !strings.Contains(got.errors, "is --data right?") {
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
