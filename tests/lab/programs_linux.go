package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/warren-overlay/warren/client/localapi"
)

// build makes the programs once for each test binary.
var build = sync.OnceValues(func() (string, error) {
	// The directory belongs to the whole run of the test binary; the system's
	// temporary directory is where such things are left.
	removeStale(os.TempDir())
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", directoryPrefix, os.Getpid()))
	if err != nil {
		return "", err
	}
	return dir, compile(dir)
})

// compile makes the programs in dir, with further flags of go build.
func compile(dir string, flags ...string) error {
	_, file, _, _ := runtime.Caller(0)
	root := filepath.Dir(filepath.Dir(filepath.Dir(file)))
	for _, program := range []string{"warren", "warren-coordinator", "warren-relay"} {
		cmd := exec.Command("go", append(append([]string{"build", "-trimpath"}, flags...), "-o", filepath.Join(dir, program), "./cmd/"+program)...)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w\n%s", program, err, out)
		}
	}
	return nil
}

// directoryPrefix begins the name of a directory of programs; the process id of
// the test binary follows.
const directoryPrefix = "warren-lab-"

// removeStale deletes the directories of test binaries that were killed.
func removeStale(parent string) {
	found, _ := filepath.Glob(filepath.Join(parent, directoryPrefix+"*-*")) // the pattern is well-formed
	for _, dir := range found {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), directoryPrefix), "-")
		if _, err := os.Stat(filepath.Join("/proc", pid)); pid != "" && os.IsNotExist(err) {
			os.RemoveAll(dir)
		}
	}
}

// Program returns the path of one of Warren's programs, built from this tree.
func Program(t testing.TB, name string) string {
	t.Helper()
	dir, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// RemovePrograms deletes what Program built. Call it from TestMain after the
// tests.
func RemovePrograms() {
	if dir, err := build(); err == nil {
		os.RemoveAll(dir)
	}
}

// process is a program that runs until it is stopped.
type process struct {
	cmd    *exec.Cmd
	log    *os.File
	exited chan struct{}
}

func (h *Host) launch(t testing.TB, name string, args ...string) *process {
	t.Helper()
	log, err := os.CreateTemp(t.TempDir(), filepath.Base(name)+"-*.log")
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command(name, args...), log: log, exited: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := h.Start(p.cmd); err != nil {
		t.Fatalf("starting %s on %s: %v", name, h.Name, err)
	}
	go func() {
		p.cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.signal(syscall.SIGTERM)
		select {
		case <-p.exited:
		case <-time.After(10 * time.Second):
			t.Errorf("%s on %s did not end within 10 s of SIGTERM", name, h.Name)
			p.signal(syscall.SIGKILL)
			<-p.exited
		}
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("%s on %s printed:\n%s", filepath.Base(name), h.Name, tail(text, 60))
		}
		log.Close()
	})
	return p
}

func (p *process) signal(s syscall.Signal) {
	select {
	case <-p.exited:
	default:
		p.cmd.Process.Signal(s)
	}
}

// kill ends the process at once and waits for it.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.exited
}

func tail(text []byte, lines int) []byte {
	all := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return bytes.Join(all[max(0, len(all)-lines):], []byte("\n"))
}

// Coordinator is a running warren-coordinator.
type Coordinator struct {
	Host *Host
	Dir  string

	name    string // under which it is reached by HTTPS, empty for by HTTP
	flags   []string
	t       testing.TB
	process *process
}

// Coordinator starts a coordinator with a new network on the host, with further
// flags.
func (h *Host) Coordinator(t testing.TB, flags ...string) *Coordinator {
	t.Helper()
	c := &Coordinator{Host: h, Dir: filepath.Join(t.TempDir(), "coordinator"), flags: flags, t: t}
	c.Start()
	return c
}

// CoordinatorTLS is Coordinator behind a proxy that ends TLS, as the administrators'
// guide has it: nodes reach it and the relay beside it by port 443, by the name that
// Internet.Name gave the host, and on no other TCP port.
func (h *Host) CoordinatorTLS(t testing.TB, flags ...string) *Coordinator {
	t.Helper()
	if h.domain == "" {
		t.Fatalf("lab: %s has no name", h.Name)
	}
	const listen = "127.0.0.1:8080"
	h.serveHTTPS(t, h.passOn(listen))
	c := &Coordinator{
		Host: h, Dir: filepath.Join(t.TempDir(), "coordinator"), name: h.domain, t: t,
		flags: append([]string{"--listen", listen, "--stun-listen", ":" + datagramPort, "--public-url", "https://" + h.domain}, flags...),
	}
	c.Start()
	return c
}

// URL returns where nodes reach the coordinator.
func (c *Coordinator) URL() string { return c.urlFor(c.Host) }

// urlFor returns where a host reaches the coordinator: by IPv4 where it has it and
// the coordinator has no name.
func (c *Coordinator) urlFor(h *Host) string {
	if c.name != "" {
		return "https://" + c.name
	}
	at := c.Host.V4
	if !h.V4.IsValid() {
		at = c.Host.V6
	}
	return "http://" + netip.AddrPortFrom(at, 8080).String()
}

// Start starts the coordinator again after Kill and waits until it serves.
func (c *Coordinator) Start() {
	c.t.Helper()
	args := []string{"serve", "--data", c.Dir, "--log-level", "debug"}
	if c.name == "" {
		args = append(args, "--listen", ":8080")
	}
	args = append(args, c.flags...)
	c.process = c.Host.launch(c.t, c.Host.program(c.t, "warren-coordinator"), args...)
	Eventually(c.t, 20*time.Second, func() error {
		_, err := c.Try("users", "list")
		return err
	})
}

// Kill ends the coordinator with SIGKILL.
func (c *Coordinator) Kill() { c.process.kill() }

// Terminate asks the coordinator to end, as a service manager does, and does not
// wait.
func (c *Coordinator) Terminate() { c.process.signal(syscall.SIGTERM) }

// Ended is closed when the coordinator has ended.
func (c *Coordinator) Ended() <-chan struct{} { return c.process.exited }

// Pid returns the process id of the coordinator.
func (c *Coordinator) Pid() int { return c.process.cmd.Process.Pid }

// Admin runs an administrator's command and returns its standard output.
func (c *Coordinator) Admin(args ...string) string {
	c.t.Helper()
	out, err := c.Try(args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// Try is Admin for commands that may be refused.
func (c *Coordinator) Try(args ...string) (string, error) {
	return run(c.Host, c.Host.program(c.t, "warren-coordinator"), append([]string{"--data", c.Dir}, args...)...)
}

// Fingerprint returns the fingerprint of the coordinator's network.
func (c *Coordinator) Fingerprint() string {
	c.t.Helper()
	var status struct{ Fingerprint string }
	if err := json.Unmarshal([]byte(c.Admin("status", "--json")), &status); err != nil || status.Fingerprint == "" {
		c.t.Fatalf("no fingerprint in the coordinator's status: %v", err)
	}
	return status.Fingerprint
}

// Key makes a join key and returns its text.
func (c *Coordinator) Key(args ...string) string {
	c.t.Helper()
	for _, word := range strings.Fields(c.Admin(append([]string{"keys", "create"}, args...)...)) {
		if strings.HasPrefix(word, "wkey-auth-") {
			return word
		}
	}
	c.t.Fatal("keys create printed no key")
	return ""
}

// SetPolicy puts a policy in force.
func (c *Coordinator) SetPolicy(text string) {
	c.t.Helper()
	file := filepath.Join(c.t.TempDir(), "policy.hujson")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.Admin("policy", "set", file)
}

// Node is a running warren daemon.
type Node struct {
	Host *Host

	t       testing.TB
	dir     string
	flags   []string
	process *process
}

// Daemon starts a daemon on the host. With no flags it has a TUN device.
func (h *Host) Daemon(t testing.TB, flags ...string) *Node {
	t.Helper()
	n := &Node{Host: h, t: t, dir: t.TempDir(), flags: flags}
	n.Start()
	return n
}

// Start starts the daemon again after Kill or Stop, with the same state.
func (n *Node) Start() {
	n.t.Helper()
	args := append([]string{
		"daemon", "--state", n.State(), "--socket", n.socket(), "--log-level", "debug",
	}, n.flags...)
	n.process = n.Host.launch(n.t, n.Host.program(n.t, "warren"), args...)
	Eventually(n.t, 20*time.Second, func() error {
		_, err := os.Stat(n.socket())
		return err
	})
}

// Kill ends the daemon with SIGKILL.
func (n *Node) Kill() {
	n.process.kill()
	os.Remove(n.socket())
}

// Stop ends the daemon with SIGTERM, as a service manager does, and waits for
// it.
func (n *Node) Stop() {
	n.t.Helper()
	n.process.signal(syscall.SIGTERM)
	select {
	case <-n.process.exited:
	case <-time.After(30 * time.Second):
		n.t.Fatalf("%s did not end within 30 s of SIGTERM", n.Host.Name)
	}
}

// State returns the path of the daemon's state directory.
func (n *Node) State() string { return filepath.Join(n.dir, "state") }

// Signal sends a signal to the daemon.
func (n *Node) Signal(s syscall.Signal) {
	n.t.Helper()
	if err := n.process.cmd.Process.Signal(s); err != nil {
		n.t.Fatal(err)
	}
	if s == syscall.SIGSTOP {
		// A test that fails in between must be able to end it.
		n.t.Cleanup(func() { n.process.signal(syscall.SIGCONT) })
	}
}

// Pid returns the process id of the daemon.
func (n *Node) Pid() int { return n.process.cmd.Process.Pid }

func (n *Node) socket() string { return filepath.Join(n.dir, "warrend.sock") }

// CLI runs a user's command and returns its standard output.
func (n *Node) CLI(args ...string) string {
	n.t.Helper()
	out, err := n.Try(args...)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

// Try is CLI for commands that may be refused.
func (n *Node) Try(args ...string) (string, error) {
	return run(n.Host, n.Host.program(n.t, "warren"), append([]string{"--socket", n.socket()}, args...)...)
}

// Command returns a user's command that the caller starts with Host.Start.
func (n *Node) Command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, n.Host.program(n.t, "warren"), append([]string{"--socket", n.socket()}, args...)...)
}

// Up joins the coordinator's network by a key.
func (n *Node) Up(c *Coordinator, key string) {
	n.t.Helper()
	if err := n.TryUp(c, key); err != nil {
		n.t.Fatal(err)
	}
}

// TryUp is Up for other goroutines than the test's.
func (n *Node) TryUp(c *Coordinator, key string) error {
	_, err := n.Try("up", "--login-server", c.urlFor(n.Host), "--auth-key", key, "--hostname", n.Host.Name)
	return err
}

// Log returns what the daemon has printed since it was started.
func (n *Node) Log() string {
	n.t.Helper()
	text, err := os.ReadFile(n.process.log.Name())
	if err != nil {
		n.t.Fatal(err)
	}
	return string(text)
}

// API returns a client of the daemon's local API.
func (n *Node) API() *localapi.Client { return localapi.NewClient(n.socket()) }

// IP returns the node's own overlay address of the family, "-4" or "-6".
func (n *Node) IP(family string) string {
	n.t.Helper()
	return strings.TrimSpace(n.CLI("ip", family))
}

// Status returns the decoded output of status --json.
func (n *Node) Status() map[string]any {
	n.t.Helper()
	var status map[string]any
	if err := json.Unmarshal([]byte(n.CLI("status", "--json")), &status); err != nil {
		n.t.Fatal("status --json: ", err)
	}
	return status
}

// run runs a command on the host and returns its standard output; the error
// holds what it printed on the other.
func run(h *Host, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(h.t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := h.Start(cmd); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s%s", filepath.Base(name), strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}
