package cli_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/net/proxy"
)

// patience bounds every wait; a machine under load gets that long, a sound one
// needs a fraction.
const patience = 30 * time.Second

var programs string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "warren-cli-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	programs = dir
	for _, name := range []string{"warren", "warren-coordinator"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, name), "../../cmd/"+name)
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building %s: %v\n%s", name, err, out)
			return 1
		}
	}
	return m.Run()
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", programs+string(os.PathListSeparator)+e.Getenv("PATH"))
			h := &host{env: e, processes: map[string]*process{}}
			e.Values["host"] = h
			e.Defer(h.end)
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"coordinator": coordinator, "daemon": daemon, "end": end, "crash": crash,
			"eventually": eventually, "save": save, "listen": listen, "fetch": fetch,
			"status": status, "freeport": freeport, "listeners": listeners,
		},
	})
}

// host is what one script has running.
type host struct {
	env       *testscript.Env
	processes map[string]*process
	listeners []net.Listener
}

func of(ts *testscript.TestScript) *host { return ts.Value("host").(*host) }

// process is a program that was started, and what it prints.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{}

	mu     sync.Mutex // protects output
	output strings.Builder
	// lines gets each line until ready was seen.
	lines chan string
}

func (h *host) end() {
	for _, l := range h.listeners {
		l.Close()
	}
	for _, p := range h.processes {
		p.finish(syscall.SIGTERM)
	}
}

// finish ends the process, by force if it does not end by itself.
func (p *process) finish(s os.Signal) error {
	p.cmd.Process.Signal(s)
	select {
	case <-p.exited:
		return nil
	case <-time.After(patience):
		p.cmd.Process.Kill()
		<-p.exited
		return fmt.Errorf("%s did not end by %v", p.cmd, s)
	}
}

// start runs a program until it prints a line that ready matches, and returns
// what that captured.
func start(ts *testscript.TestScript, name string, ready *regexp.Regexp, program string, args ...string) []string {
	h := of(ts)
	if p, ok := h.processes[name]; ok {
		select {
		case <-p.exited:
		default:
			ts.Fatalf("%s runs already", name)
		}
	}
	p := &process{cmd: exec.Command(filepath.Join(programs, program), args...), exited: make(chan struct{}), lines: make(chan string, 1024)}
	p.cmd.Dir = ts.MkAbs(".")
	p.cmd.Env = append(os.Environ(), "HOME="+ts.Getenv("WORK"))
	r, w := io.Pipe()
	p.cmd.Stdout, p.cmd.Stderr = w, w
	ts.Check(p.cmd.Start())
	h.processes[name] = p
	go func() {
		p.cmd.Wait()
		w.Close()
		close(p.exited)
	}()
	go func() {
		defer close(p.lines)
		s := bufio.NewScanner(r)
		for s.Scan() {
			p.mu.Lock()
			fmt.Fprintln(&p.output, s.Text())
			p.mu.Unlock()
			select {
			case p.lines <- s.Text():
			default:
			}
		}
	}()
	timeout := time.After(patience)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				ts.Fatalf("%s ended:\n%s", name, p.text())
			}
			if m := ready.FindStringSubmatch(line); m != nil {
				return m
			}
		case <-timeout:
			ts.Fatalf("%s was not ready within %v:\n%s", name, patience, p.text())
		}
	}
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

func noNegation(ts *testscript.TestScript, neg bool, args []string, least int, usage string) {
	if neg || len(args) < least {
		ts.Fatalf("usage: %s", usage)
	}
}

// status runs a program and wants it to end with exactly that status. Its
// output is there for stdout and stderr, as after exec.
func status(ts *testscript.TestScript, neg bool, args []string) {
	noNegation(ts, neg, args, 2, "status NUMBER PROGRAM [ARG...]")
	err := ts.Exec(filepath.Join(programs, args[1]), args[2:]...)
	code := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		code = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("%v ended with status %d, want %s", args[1:], code, args[0])
	}
}

var nodeReady = regexp.MustCompile(`msg=ready`)

func daemon(ts *testscript.TestScript, neg bool, args []string) {
	noNegation(ts, neg, args, 1, "daemon NAME [ARG...]")
	name := args[0]
	start(ts, name, nodeReady, "warren", append([]string{
		"daemon", "--socket", ts.MkAbs(name + ".sock"), "--state", ts.MkAbs(name), "--tun", "userspace",
		"--port", "0", "--metrics-listen", "off",
		"--port-mapping=false", // nothing of a test leaves the machine
	}, args[1:]...)...)
}

func end(ts *testscript.TestScript, neg bool, args []string) {
	noNegation(ts, neg, args, 1, "end NAME")
	p, ok := of(ts).processes[args[0]]
	if !ok {
		ts.Fatalf("%s does not run", args[0])
	}
	ts.Check(p.finish(syscall.SIGTERM))
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		ts.Fatalf("%s ended with status %d:\n%s", args[0], code, p.text())
	}
}

func crash(ts *testscript.TestScript, neg bool, args []string) {
	noNegation(ts, neg, args, 1, "kill NAME")
	p, ok := of(ts).processes[args[0]]
	if !ok {
		ts.Fatalf("%s does not run", args[0])
	}
	ts.Check(p.finish(syscall.SIGKILL))
}

func eventually(ts *testscript.TestScript, neg bool, args []string) {
	noNegation(ts, neg, args, 2, "eventually REGEXP PROGRAM [ARG...]")
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		cmd := exec.CommandContext(ctx, filepath.Join(programs, args[1]), args[2:]...)
		cmd.Dir = ts.MkAbs(".")
		out, err := cmd.CombinedOutput()
		if err == nil && want.Match(out) {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			var logs strings.Builder
			for name, p := range of(ts).processes {
				fmt.Fprintf(&logs, "--- %s\n%s", name, p.text())
			}
			ts.Fatalf("not within %v; last: %v\n%s\n%s", patience, err, out, logs.String())
		}
	}
}

func save(ts *testscript.TestScript, neg bool, args []string) {
	noNegation(ts, neg, args, 2, "save VARIABLE REGEXP")
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	m := re.FindStringSubmatch(ts.ReadFile("stdout"))
	if len(m) != 2 {
		ts.Fatalf("%s has no group that matches in:\n%s", args[1], ts.ReadFile("stdout"))
	}
	ts.Setenv(args[0], m[1])
}

func listen(ts *testscript.TestScript, neg bool, args []string) {
	noNegation(ts, neg, args, 1, "listen VARIABLE")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	h := of(ts)
	h.listeners = append(h.listeners, l)
	_, port, err := net.SplitHostPort(l.Addr().String())
	ts.Check(err)
	ts.Setenv(args[0], port)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
}

// freeport finds a port that was free a moment ago, for programs that print
// theirs nowhere that a script can read.
func freeport(ts *testscript.TestScript, neg bool, args []string) {
	noNegation(ts, neg, args, 1, "freeport VARIABLE")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	_, port, err := net.SplitHostPort(l.Addr().String())
	ts.Check(err)
	ts.Check(l.Close())
	ts.Setenv(args[0], port)
}

func fetch(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: fetch PROXY HOST:PORT")
	}
	err := echo(args[0], args[1])
	if (err == nil) == neg {
		ts.Fatalf("through %s to %s: %v", args[0], args[1], err)
	}
}

// echo sends a line through a SOCKS5 proxy and expects it back.
func echo(socks, target string) error {
	d, err := proxy.SOCKS5("tcp", socks, nil, nil)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := d.(proxy.ContextDialer).DialContext(ctx, "tcp", target)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	const line = "hello over the overlay\n"
	if _, err := io.WriteString(conn, line); err != nil {
		return err
	}
	got, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && got != line {
		err = fmt.Errorf("%q came back", got)
	}
	return err
}
