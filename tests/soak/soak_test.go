package soak

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/proxy"
)

var duration = flag.Duration("duration", 0, "how long TestSoak keeps the network busy")

// cutLimit is what the product promises: what is no longer allowed ends.
const cutLimit = 2 * time.Second

// everyRounds is how often the coordinator dies.
const everyRounds = 5

// network is a coordinator and the nodes that stay.
type network struct {
	t        testing.TB
	dir      string
	listen   string
	metrics  string
	stay     map[string]*node // complete before the sampling begins
	series   map[string][]sample
	worstCut time.Duration
	policies int

	mu          sync.Mutex // protects coordinator
	coordinator *program
}

// node is a device in userspace.
type node struct {
	*program
	name, dir, socks string
}

func TestSoak(t *testing.T) {
	if *duration == 0 {
		t.Skip("no -duration: make soak SOAKTIME=10m")
	}
	n := &network{t: t, dir: t.TempDir(), listen: freePort(t), metrics: freePort(t), stay: map[string]*node{}, series: map[string][]sample{}}
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { echo.Close() })
	go serveEcho(echo)
	port := echo.Addr().(*net.TCPAddr).Port

	n.startCoordinator()
	t.Cleanup(func() { n.coordinator.stop(syscall.SIGTERM) })
	n.admin("users", "create", "alice@example.com")
	n.policy(port, true)
	for _, name := range []string{"laptop", "db"} {
		n.stay[name] = n.join(name, n.key(name))
		t.Cleanup(func() { n.stay[name].stop(syscall.SIGTERM) })
	}
	target := n.address("db", port)

	begin := time.Now()
	// Thirty samples in a short run, one in five seconds in a long one.
	sampling := time.NewTicker(min(5*time.Second, *duration/30))
	defer sampling.Stop()
	done, measured := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(measured)
		for {
			select {
			case <-done:
				return
			case <-sampling.C:
				n.sample()
			}
		}
	}()
	finish := func() {
		close(done)
		<-measured
	}
	rounds := 0
	func() {
		defer finish()
		for time.Since(begin) < *duration {
			rounds++
			n.round(rounds, port, target)
		}
	}()
	t.Logf("%d rounds in %v; the slowest cut took %v", rounds, time.Since(begin).Round(time.Second), n.worstCut.Round(time.Millisecond))
	for _, name := range []string{"laptop", "db", "coordinator"} {
		judge(t, name, n.series[name])
	}
}

// sample measures all that stay. The coordinator may be dead at the moment,
// and then there is none of it.
func (n *network) sample() {
	for name, node := range n.stay {
		s, err := measure(node.program)
		if err != nil {
			n.t.Errorf("measuring %s: %v", name, err)
			continue
		}
		n.series[name] = append(n.series[name], s)
	}
	n.mu.Lock()
	coordinator := n.coordinator
	n.mu.Unlock()
	if s, err := measure(coordinator); err == nil {
		n.series["coordinator"] = append(n.series["coordinator"], s)
	}
}

// round is one turn of everything.
func (n *network) round(number, port int, target string) {
	laptop := n.stay["laptop"]

	// A connection that the next policy cuts.
	live := n.mustTalk(laptop, target)
	n.policy(port, false)
	n.mustEnd(live, "a policy that no longer allows it")
	if c, err := laptop.dial(target); err == nil {
		c.Close()
		n.t.Fatal("a connection that no rule allows was opened")
	}
	n.policy(port, true)
	n.mustTalk(laptop, target).Close()

	// A device that comes, talks and goes, and one that is revoked.
	for i, leave := range []func(v *node){
		func(v *node) { n.cli(v, "logout") },
		func(v *node) {
			c := n.mustTalk(v, target)
			n.admin("devices", "revoke", v.name)
			n.mustEnd(c, "the revocation of its device")
		},
	} {
		v := n.join(fmt.Sprintf("visitor-%d-%d", number, i), n.key("visitor"))
		n.mustTalk(v, target).Close()
		leave(v)
		v.stop(syscall.SIGTERM)
		os.RemoveAll(v.dir)
	}

	if number%everyRounds != 0 {
		return
	}
	// The coordinator dies, and the relay in it. What is open goes on, and what
	// was allowed may be opened.
	live = n.mustTalk(laptop, target)
	n.coordinator.stop(syscall.SIGKILL)
	if err := talk(live); err != nil {
		n.t.Fatalf("a connection did not outlive the coordinator: %v", err)
	}
	live.Close()
	n.mustTalk(laptop, target).Close()
	n.startCoordinator()
	eventually(n.t, "the nodes at the coordinator again", 2*patience, func() error {
		for name, node := range n.stay {
			status, err := output(n.t, "warren", "--socket", node.socket(), "status", "--json")
			if err != nil {
				return err
			}
			if strings.Contains(status, "coordinator-unreachable") {
				return fmt.Errorf("%s has not found it", name)
			}
		}
		return nil
	})
}

func (n *network) startCoordinator() {
	n.t.Helper()
	p := start(n.t, n.dir, "warren-coordinator", "serve", "--data", filepath.Join(n.dir, "c"), "--listen", n.listen,
		"--stun-listen", "127.0.0.1:0", "--metrics-listen", n.metrics)
	p.metrics = n.metrics
	n.mu.Lock()
	n.coordinator = p
	n.mu.Unlock()
	eventually(n.t, "the coordinator", patience, func() error {
		if !p.running() {
			n.t.Fatalf("the coordinator ended:\n%s", p.tail())
		}
		_, err := output(n.t, "warren-coordinator", "--data", filepath.Join(n.dir, "c"), "users", "list")
		return err
	})
}

func (n *network) admin(args ...string) string {
	n.t.Helper()
	out, err := output(n.t, "warren-coordinator", append([]string{"--data", filepath.Join(n.dir, "c")}, args...)...)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

func (n *network) cli(v *node, args ...string) string {
	n.t.Helper()
	out, err := output(n.t, "warren", append([]string{"--socket", v.socket()}, args...)...)
	if err != nil {
		n.t.Fatalf("%v\n%s", err, v.tail())
	}
	return out
}

// key makes a join key for a device: for tags where it is the database's.
func (n *network) key(device string) string {
	if device == "db" {
		return n.admin("keys", "create", "--tags", "tag:db")
	}
	return n.admin("keys", "create", "--user", "alice@example.com")
}

// policy lets alice's devices reach the database, or not.
func (n *network) policy(port int, allow bool) {
	n.t.Helper()
	n.policies++
	rule := ""
	if allow {
		rule = fmt.Sprintf(`{"src": ["alice@example.com"], "dst": ["tag:db"], "ip": ["tcp:%d"]},`, port)
	}
	// They see each other all the time, as long as some rule links them.
	text := fmt.Sprintf(`{
		// %d
		"tagOwners": {"tag:db": ["alice@example.com"]},
		"grants": [{"src": ["alice@example.com"], "dst": ["tag:db"], "ip": ["icmp:*"]}, %s],
	}`, n.policies, rule)
	file := filepath.Join(n.dir, "policy.hujson")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
	n.admin("policy", "set", file)
}

// join starts a node and takes it into the network.
func (n *network) join(name, key string) *node {
	n.t.Helper()
	v := &node{name: name, dir: filepath.Join(n.dir, name), socks: freePort(n.t)}
	if err := os.MkdirAll(v.dir, 0o700); err != nil {
		n.t.Fatal(err)
	}
	metrics := freePort(n.t)
	v.program = start(n.t, v.dir, "warren", "daemon", "--state", filepath.Join(v.dir, "state"), "--socket", v.socket(),
		"--tun", "userspace", "--port", "0", "--port-mapping=false", "--socks5", v.socks, "--metrics-listen", metrics)
	v.metrics = metrics
	eventually(n.t, name, patience, func() error {
		if !v.running() {
			n.t.Fatalf("%s ended:\n%s", name, v.tail())
		}
		_, err := os.Stat(v.socket())
		return err
	})
	n.cli(v, "up", "--login-server", "http://"+n.listen, "--auth-key", key, "--hostname", name)
	return v
}

func (v *node) socket() string { return filepath.Join(v.dir, "sock") }

func (n *network) address(name string, port int) string {
	return net.JoinHostPort(n.cli(n.stay[name], "ip", "-4"), fmt.Sprint(port))
}

// dial connects through the node's SOCKS5 proxy.
func (v *node) dial(target string) (net.Conn, error) {
	dialer, err := proxy.SOCKS5("tcp", v.socks, nil, proxy.Direct)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return dialer.(proxy.ContextDialer).DialContext(ctx, "tcp", target)
}

// mustTalk opens a connection and sends some bytes to and fro.
func (n *network) mustTalk(v *node, target string) net.Conn {
	n.t.Helper()
	var c net.Conn
	eventually(n.t, v.name+" to the database", patience, func() (err error) {
		if c, err = v.dial(target); err != nil {
			return err
		}
		if err = talk(c); err != nil {
			c.Close()
		}
		return err
	})
	return c
}

// talk sends 64 KB to the echo and reads them back.
func talk(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	b := make([]byte, 64<<10)
	failed := make(chan error, 1)
	go func() {
		_, err := c.Write(b)
		failed <- err
	}()
	_, err := io.ReadFull(c, b)
	return errors.Join(err, <-failed)
}

// mustEnd waits until the connection has ended, which it must by itself.
func (n *network) mustEnd(c net.Conn, why string) {
	n.t.Helper()
	defer c.Close()
	begin := time.Now()
	if err := c.SetDeadline(begin.Add(patience)); err != nil {
		n.t.Fatal(err)
	}
	// A byte that is answered shows that it lives.
	one := make([]byte, 1)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ; ; <-tick.C {
		_, err := c.Write(one)
		if err == nil {
			_, err = io.ReadFull(c, one)
		}
		took := time.Since(begin)
		if err != nil {
			n.worstCut = max(n.worstCut, took)
		}
		switch {
		case took > cutLimit:
			n.t.Fatalf("a connection went on for %v after %s: %v", took, why, err)
		case err != nil:
			return
		}
	}
}

// serveEcho answers every connection with what it sends.
func serveEcho(l net.Listener) {
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
}
