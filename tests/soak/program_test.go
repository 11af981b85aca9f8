package soak

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait for a program.
const patience = 30 * time.Second

// build makes the programs once.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "warren-soak-")
	if err != nil {
		return "", err
	}
	for _, name := range []string{"warren", "warren-coordinator"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, name), "./cmd/"+name)
		cmd.Dir = "../.."
		if out, err := cmd.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("building %s: %w\n%s", name, err, out)
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := build(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

func path(t testing.TB, name string) string {
	t.Helper()
	dir, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// program is one that runs until it is stopped.
type program struct {
	t      testing.TB
	cmd    *exec.Cmd
	log    string
	exited chan struct{}
	// metrics is the address of /metrics.
	metrics string
}

// start runs a program; its output goes into a file of dir.
func start(t testing.TB, dir, name string, args ...string) *program {
	t.Helper()
	p := &program{t: t, cmd: exec.Command(path(t, name), args...), log: filepath.Join(dir, name+".log"), exited: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close() // the program has its own descriptor
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.cmd.Wait()
		close(p.exited)
	}()
	return p
}

// running reports whether the program has not ended.
func (p *program) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// stop ends the program by the signal and waits for it.
func (p *program) stop(s syscall.Signal) {
	if !p.running() {
		return
	}
	p.cmd.Process.Signal(s)
	select {
	case <-p.exited:
	case <-time.After(patience):
		p.t.Errorf("%s did not end by %v:\n%s", p.cmd, s, p.tail())
		p.cmd.Process.Kill()
		<-p.exited
	}
}

func (p *program) tail() string {
	text, _ := os.ReadFile(p.log)
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-20):], []byte("\n")))
}

// output runs a command to its end and returns what it printed.
func output(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path(t, name), args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

// eventually calls f until it returns nil.
func eventually(t testing.TB, what string, within time.Duration, f func() error) time.Duration {
	t.Helper()
	begin := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return time.Since(begin)
		}
		if time.Since(begin) > within {
			t.Fatalf("%s: not within %v: %v", what, within, err)
		}
		<-tick.C
	}
}

// freePort returns a TCP port that nobody listens on. Another program may take
// it before it is used; the test then says so.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
