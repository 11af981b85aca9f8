package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/proxy"
)

// person is one of the three nodes.
type person struct {
	name, key     string
	socket, socks string
}

// policyBefore lets alice into the database and bob only look whether the
// server is there; policyAfter takes alice's access away.
const policyBefore = `// alice may use the database. bob may use SSH on its server, nothing else.
{
	"groups": {"group:engineers": ["alice@example.com"]},
	"tagOwners": {"tag:db": ["group:engineers"]},
	"grants": [
		{"src": ["group:engineers"], "dst": ["tag:db"], "ip": ["tcp:%d"]},
		{"src": ["bob@example.com"], "dst": ["tag:db"], "ip": ["tcp:22"]},
	],
}
`

const policyAfter = `// Nobody may use the database any more.
{
	"groups": {"group:engineers": ["alice@example.com"]},
	"tagOwners": {"tag:db": ["group:engineers"]},
	"grants": [
		{"src": ["group:engineers", "bob@example.com"], "dst": ["tag:db"], "ip": ["tcp:22"]},
	],
}
`

// cutLimit is what the product promises.
const cutLimit = 2 * time.Second

func story(s *stage) error {
	ports, err := freePorts(4)
	if err != nil {
		return err
	}
	url := fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	data := filepath.Join(s.dir, "coordinator")
	admin := func(args ...string) (string, error) {
		return s.output("warren-coordinator", append([]string{"--data", data}, args...)...)
	}

	title("A coordinator: registry, policy, relay and STUN in one program, SQLite inside")
	err = s.start("coordinator", "warren-coordinator", "serve", "--data", data,
		"--listen", fmt.Sprintf("127.0.0.1:%d", ports[0]), "--stun-listen", "127.0.0.1:0", "--metrics-listen", "off")
	if err != nil {
		return err
	}
	if err := s.wait("the coordinator", func() error { _, err := admin("users", "list"); return err }); err != nil {
		return err
	}
	for _, user := range []string{"alice@example.com", "bob@example.com"} {
		if _, err := admin("users", "create", user); err != nil {
			return err
		}
	}
	say("serving at %s, with users alice and bob", url)

	service, err := startDatabase()
	if err != nil {
		return err
	}
	defer service.Close()
	port := service.Addr().(*net.TCPAddr).Port
	policy := filepath.Join(s.dir, "policy.hujson")
	setPolicy := func(text string) error {
		if err := os.WriteFile(policy, []byte(text), 0o600); err != nil {
			return err
		}
		_, err := admin("policy", "set", policy)
		return err
	}
	if err := setPolicy(fmt.Sprintf(policyBefore, port)); err != nil {
		return err
	}
	say("policy: engineers (alice) reach tag:db at tcp:%d; bob only at tcp:22", port)

	title("Three nodes without root: userspace WireGuard, each with keys of its own")
	nodes := []*person{{name: "alice-laptop"}, {name: "bob-laptop"}, {name: "db"}}
	alice, bob := nodes[0], nodes[1]
	for i, n := range nodes {
		owner := [][]string{{"--user", "alice@example.com"}, {"--user", "bob@example.com"}, {"--tags", "tag:db"}}[i]
		begin := time.Now()
		if err := join(s, n, url, fmt.Sprintf("127.0.0.1:%d", ports[i+1]), admin, owner); err != nil {
			return err
		}
		address, err := s.output("warren", "--socket", n.socket, "ip", "-4")
		if err != nil {
			return err
		}
		say("%-12s %s, up in %d ms", n.name, strings.TrimSpace(address), time.Since(begin).Milliseconds())
	}

	title("alice is allowed: real bytes through the tunnel to a real TCP service")
	connection, err := dial(s.ctx, alice, port)
	if err != nil {
		return fmt.Errorf("alice's connection: %w", err)
	}
	defer connection.Close()
	answer, err := query(connection, "select 6 * 7")
	if err != nil {
		return fmt.Errorf("alice's query: %w", err)
	}
	if answer != "42" {
		return fmt.Errorf("the database answered %q to alice, not 42", answer)
	}
	say("db:%d answered %q", port, answer)
	if pong, err := s.output("warren", "--socket", alice.socket, "ping", "-c", "1", "db"); err == nil {
		say("%s", strings.TrimSpace(strings.SplitN(pong, "\n", 2)[0]))
	}

	title("bob is denied, and told why")
	if c, err := dial(s.ctx, bob, port); err == nil {
		c.Close()
		return errors.New("bob's connection was not refused")
	} else {
		say("his application sees: %v", err)
	}
	asked := fmt.Sprintf("tcp:%d", port)
	why, err := s.output("warren", "--socket", bob.socket, "debug", "why", "db", asked)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return fmt.Errorf("debug why says that bob is allowed:\n%s", why)
	case !errors.As(err, &exit) || exit.ExitCode() != 1:
		return fmt.Errorf("debug why did not answer: %w", err)
	case !strings.Contains(why, "denied: no rule") || !strings.Contains(why, asked) || !strings.Contains(why, "tcp:22"):
		return fmt.Errorf("debug why does not name the port that was asked for, and the one that is allowed:\n%s", why)
	}
	for line := range strings.Lines(why) {
		say("%s", strings.TrimRight(line, "\n"))
	}

	title("An edit of the policy cuts alice's established connection")
	if answer, err := query(connection, "select 1 + 1"); err != nil || answer != "2" {
		return fmt.Errorf("alice's connection was not alive before the edit: %q, %w", answer, err)
	}
	ended := watch(connection)
	begin := time.Now()
	if err := setPolicy(policyAfter); err != nil {
		return err
	}
	committed := time.Since(begin)
	var cut time.Duration
	select {
	case end := <-ended:
		cut = end.at.Sub(begin)
		say("her application sees: %v", end.err)
	case <-time.After(10 * time.Second):
		return errors.New("alice's connection was still alive ten seconds after the edit")
	}
	say("cut %d ms after the administrator pressed return (%d ms until the policy was on disk)", cut.Milliseconds(), committed.Milliseconds())
	if cut > cutLimit {
		return fmt.Errorf("the cut took %v; the promise is %v", cut, cutLimit)
	}
	if c, err := dial(s.ctx, alice, port); err == nil {
		c.Close()
		return errors.New("alice could connect again after the edit")
	}
	say("and she cannot connect again")

	title("Summary")
	say("allowed: alice -> db, bytes arrived        denied: bob -> db, with the reason")
	say("cut: %d ms from the edit to the end of an established connection", cut.Milliseconds())
	fmt.Print(byHand)
	return nil
}

const byHand = `
To go on by hand:

  bin/warren-coordinator serve --data DIR --listen 0.0.0.0:8080
  bin/warren-coordinator --data DIR users create alice@example.com
  bin/warren-coordinator --data DIR keys create --user alice@example.com
  bin/warren-coordinator --data DIR policy set policy.hujson
  bin/warren daemon --state STATE --socket SOCKET --tun userspace --socks5 127.0.0.1:1080
  bin/warren --socket SOCKET up --login-server http://HOST:8080 --auth-key wkey-auth-...
  bin/warren --socket SOCKET status

With root, leave out --tun userspace and --socks5: the daemon then makes the
device warren0. docs/ has the rest.
`

// join starts a node's daemon and brings it up.
func join(s *stage, n *person, url, socks string, admin func(...string) (string, error), owner []string) error {
	out, err := admin(append([]string{"keys", "create"}, owner...)...)
	if err != nil {
		return err
	}
	for _, word := range strings.Fields(out) {
		if strings.HasPrefix(word, "wkey-auth-") {
			n.key = word
		}
	}
	if n.key == "" {
		return fmt.Errorf("keys create printed no key:\n%s", out)
	}
	n.socks = socks
	n.socket = filepath.Join(s.dir, n.name+".sock")
	err = s.start(n.name, "warren", "daemon", "--state", filepath.Join(s.dir, n.name), "--socket", n.socket,
		"--tun", "userspace", "--port", "0", "--port-mapping=false", "--socks5", n.socks, "--metrics-listen", "off")
	if err != nil {
		return err
	}
	if err := s.wait(n.name, func() error { _, err := os.Stat(n.socket); return err }); err != nil {
		return err
	}
	_, err = s.output("warren", "--socket", n.socket, "up", "--login-server", url, "--auth-key", n.key, "--hostname", n.name)
	return err
}

// startDatabase serves a line protocol on the loopback address: the database
// server's node forwards its own ports there. It knows two queries.
func startDatabase() (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for lines := bufio.NewScanner(c); lines.Scan(); {
					var a, b int
					var op string
					answer := "error: try: select 6 * 7"
					if n, _ := fmt.Sscanf(lines.Text(), "select %d %s %d", &a, &op, &b); n == 3 && op == "*" {
						answer = strconv.Itoa(a * b)
					} else if n == 3 && op == "+" {
						answer = strconv.Itoa(a + b)
					}
					if _, err := fmt.Fprintln(c, answer); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l, nil
}

// dial connects to the database by its name, through the node's SOCKS5 proxy.
func dial(ctx context.Context, n *person, port int) (net.Conn, error) {
	dialer, err := proxy.SOCKS5("tcp", n.socks, nil, nil)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return dialer.(proxy.ContextDialer).DialContext(ctx, "tcp", net.JoinHostPort("db", strconv.Itoa(port)))
}

func query(c net.Conn, text string) (string, error) {
	c.SetDeadline(time.Now().Add(10 * time.Second))
	defer c.SetDeadline(time.Time{})
	if _, err := fmt.Fprintln(c, text); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

type ending struct {
	at  time.Time
	err error
}

// watch tells when the connection ends and what its reader is told.
func watch(c net.Conn) <-chan ending {
	ended := make(chan ending, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		ended <- ending{time.Now(), err}
	}()
	return ended
}

func title(text string) { fmt.Printf("\n== %s\n", text) }

func say(format string, args ...any) { fmt.Printf("   "+format+"\n", args...) }
