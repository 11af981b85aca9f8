package agent_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/client/agent"
	"github.com/warren-overlay/warren/client/health"
	"github.com/warren-overlay/warren/client/localapi"
	"github.com/warren-overlay/warren/client/statefile"
	"github.com/warren-overlay/warren/coordinator/wire"
	"github.com/warren-overlay/warren/netstack/engine"
)

func TestJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, n := newNode(t)
		if s := n.status(); s.State != localapi.NeedsLogin {
			t.Errorf("before: %s", s.State)
		}
		p, r := n.join(t, c)
		if r.Hostname != "default" || strings.Count(r.AuthKey, "-") != 3 {
			t.Errorf("registered as %q with a key of %d parts", r.Hostname, strings.Count(r.AuthKey, "-"))
		}
		if r.Proof == (wire.Proof{}) {
			t.Error("registered without a proof of the node key")
		}
		s := n.status()
		if s.State != localapi.Connected || s.Self.Name != "node1" || len(s.Peers) != 2 || s.Peers[0].User != "alice@example.com" || s.LoginServer != "http://c:8080" {
			t.Errorf("status %+v", s)
		}
		got := n.plane.last()
		if got == nil || len(got.Peers) != 2 || got.Relays[0].URL != "ws://c:8080/relay" || got.PrivateKey.Public() != r.NodeKey {
			t.Fatalf("data plane %+v", got)
		}

		// Endpoints go to the coordinator.
		n.plane.reach <- engine.Reach{Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:41641")}, HomeRelay: "default"}
		time.Sleep(2 * time.Second)
		if u := take[wire.Update](t, p); len(u.Endpoints) != 1 || u.HomeRelay != "default" {
			t.Errorf("update %v", u)
		}
		// A second up changes nothing.
		if err := n.Up(t.Context(), localapi.UpRequest{}); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if len(c.dials) != 1 {
			t.Errorf("%d connections", len(c.dials))
		}

		// Names and addresses.
		for _, name := range []string{"node2", "NODE2", "node2.", "node2." + agent.Domain, "n2", "100.64.0.2", "::ffff:100.64.0.2"} {
			if a, err := n.Resolve(t.Context(), name); err != nil || len(a) != 1 || a[0] != netip.MustParseAddr("100.64.0.2") {
				t.Errorf("%s is %v, %v", name, a, err)
			}
		}
		for _, name := range []string{"node9", "100.64.0.9", "8.8.8.8", "", "node2.example.com"} {
			if a, err := n.Resolve(t.Context(), name); err == nil {
				t.Errorf("%s is %v", name, a)
			}
		}
		for _, w := range []struct {
			request localapi.WhyRequest
			allowed bool
			text    string
		}{
			{localapi.WhyRequest{To: "node2", Protocol: 6, Port: 22}, true, `allowed: rule "ssh" lets this device open tcp:22 to node2`},
			{localapi.WhyRequest{To: "100.64.0.2", Protocol: 6, Port: 22}, true, `allowed: rule "ssh" lets this device`},
			{localapi.WhyRequest{To: "node2", Protocol: 6, Port: 80}, false, `denied: no rule lets this device open tcp:80 to node2; what it may open there: tcp:22, udp:1000-2000`},
			{localapi.WhyRequest{To: "node2", Protocol: 6, Port: 23}, false, `denied: rule "no-telnet" forbids this device to open tcp:23 to node2`},
			{localapi.WhyRequest{To: "node2", Protocol: 1}, false, "open icmp to node2"},
			{localapi.WhyRequest{From: "node2", Protocol: 6, Port: 22}, true, `rule "ssh" lets node2 open tcp:22 here`},
			{localapi.WhyRequest{From: "node2", To: "node1", Protocol: 6, Port: 80}, false, "no rule lets node2 open tcp:80 here; what it may open here: tcp:22"},
			{localapi.WhyRequest{To: "node3", Protocol: 6, Port: 80}, false, "tcp:80"},
			{localapi.WhyRequest{To: "nobody", Protocol: 6, Port: 80}, false, `no device named "nobody" is visible to you`},
			{localapi.WhyRequest{To: "node1", Protocol: 6, Port: 80}, true, "it is this device"},
		} {
			r, err := n.Why(t.Context(), w.request)
			if err != nil || r.Allowed != w.allowed || !strings.Contains(r.Text, w.text) || r.Reason == "" || r.Services == nil {
				t.Errorf("why %+v: %+v, %v; want %s", w.request, r, err, w.text)
			}
		}
		var foreign *localapi.Error
		if _, err := n.Why(t.Context(), localapi.WhyRequest{From: "node2", To: "node3", Protocol: 6, Port: 80}); !errors.As(err, &foreign) || foreign.Code != localapi.CodeBadRequest {
			t.Errorf("why between two others: %v", err)
		}
		for target, want := range map[string]localapi.Code{"node3": localapi.CodeDenied, "nobody": localapi.CodeNotFound, "node1": localapi.CodeBadRequest} {
			var e *localapi.Error
			if _, err := n.Ping(t.Context(), localapi.PingRequest{Target: target, Timeout: time.Second}); !errors.As(err, &e) || e.Code != want {
				t.Errorf("ping %s: %v, want %s", target, err, want)
			}
		}
		if r, err := n.Ping(t.Context(), localapi.PingRequest{Target: "node2", Timeout: time.Second}); err != nil || r.Path.Relay != "default" {
			t.Errorf("ping: %+v, %v", r, err)
		}
		for target, want := range map[string]localapi.Code{"node3": localapi.CodeNotFound, "nobody": localapi.CodeNotFound, "node1": localapi.CodeBadRequest} {
			var e *localapi.Error
			if _, err := n.Paths(t.Context(), target); !errors.As(err, &e) || e.Code != want {
				t.Errorf("paths to %s: %v, want %s", target, err, want)
			}
		}
		if r, err := n.Paths(t.Context(), "100.64.0.2"); err != nil || r.Name != "node2" || r.Addr.String() != "100.64.0.2" || r.NotDirect == "" {
			t.Errorf("paths: %+v, %v", r, err)
		}
		if r, err := n.Netcheck(t.Context()); err != nil || n.plane.checks != 1 || r.CaptivePortal == nil || *r.CaptivePortal || len(r.Hints) == 0 {
			t.Errorf("netcheck: %+v, %v", r, err)
		}
		n.stop()
	})
}

// TestRestartWithoutCoordinator: the node comes back from its saved map, and is
// told the rest later.
func TestRestartWithoutCoordinator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, dir, n := newNode(t)
		_, r := n.join(t, c)
		n.stop()

		c.setDown(true)
		n = startNode(t, dir, c)
		if got := n.plane.last(); got == nil || len(got.Peers) != 2 || got.PrivateKey.Public() != r.NodeKey {
			t.Fatalf("data plane %+v", got)
		}
		time.Sleep(time.Minute)
		s := n.status()
		if s.State != localapi.Offline || !s.Cached || !hasFact(s, health.CoordinatorUnreachable) {
			t.Errorf("status %s, cached %v, %v", s.State, s.Cached, s.Health)
		}
		c.setDown(false)
		p := <-c.accepted
		take[wire.Hello](t, p)
		p.give(wire.Welcome{Version: wire.Newest, Time: time.Now(), Registered: true})
		if q := take[wire.MapRequest](t, p); q.HaveSequence != 1 {
			t.Errorf("asked with %d", q.HaveSequence)
		}
		p.give(c.fullMap(r.NodeKey, 2, 2))
		synctest.Wait()
		if s := n.status(); s.State != localapi.Connected || len(s.Peers) != 1 || len(s.Health) != 0 {
			t.Errorf("status %+v", s)
		}

		// A connection that breaks comes back by itself.
		p.Close()
		p = <-c.accepted
		take[wire.Hello](t, p)
		n.stop()
	})
}

func hasFact(s localapi.Status, code health.Code) bool {
	return slices.ContainsFunc(s.Health, func(f health.Fact) bool { return f.Code == code })
}

func TestRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, dir, n := newNode(t)
		p, first := n.join(t, c)
		p.give(&wire.Error{Code: wire.CodeRevoked, Message: "revoked"})
		synctest.Wait()
		if n.plane.last() != nil {
			t.Error("the data plane works on")
		}
		if s := n.status(); s.State != localapi.Revoked || s.Self != nil {
			t.Errorf("status %+v", s)
		}
		n.stop()
		n = startNode(t, dir, c)
		time.Sleep(time.Hour)
		if s := n.status(); s.State != localapi.Revoked || n.plane.last() != nil || len(c.accepted) != 0 {
			t.Errorf("after a restart: %s", s.State)
		}
		var e *localapi.Error
		if err := n.Up(t.Context(), localapi.UpRequest{}); !errors.As(err, &e) || e.Code != localapi.CodeNeedsLogin {
			t.Errorf("up without a key: %v", err)
		}
		// With a new key it is a new device.
		if _, second := n.join(t, c); second.NodeKey == first.NodeKey {
			t.Error("the revoked node key was used again")
		}
		if c.dials[0].Machine.Public() == c.dials[len(c.dials)-1].Machine.Public() {
			t.Error("the revoked machine key was used again")
		}
		n.stop()
	})
}

func TestDownAndLogout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, dir, n := newNode(t)
		_, r := n.join(t, c)
		if err := n.Down(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s := n.status(); s.State != localapi.Stopped || n.plane.last() != nil {
			t.Errorf("after down: %s", s.State)
		}
		n.stop()
		n = startNode(t, dir, c)
		time.Sleep(time.Hour)
		if s := n.status(); s.State != localapi.Stopped || n.plane.last() != nil || len(c.dials) != 1 {
			t.Errorf("after down and a restart: %s, %d connections", s.State, len(c.dials))
		}
		if err := n.Up(t.Context(), localapi.UpRequest{}); err != nil {
			t.Fatal(err)
		}
		p := <-c.accepted
		take[wire.Hello](t, p)
		p.give(wire.Welcome{Version: wire.Newest, Time: time.Now(), Registered: true})
		take[wire.MapRequest](t, p)
		p.give(c.fullMap(r.NodeKey, 2, 2))
		synctest.Wait()
		if n.plane.last() == nil {
			t.Error("after up: no data plane")
		}
		go func() {
			<-p.fromNode // Logout
			p.Close()
		}()
		reply, err := n.Logout(t.Context())
		if err != nil || !reply.Told || reply.Name != "node1" {
			t.Errorf("logout: %+v, %v", reply, err)
		}
		if s := n.status(); s.State != localapi.NeedsLogin || n.plane.last() != nil || s.LoginServer != "" {
			t.Errorf("after logout: %+v", s)
		}
		if _, err := n.Logout(t.Context()); err == nil {
			t.Error("a second logout went well")
		}
		n.stop()
		if _, again := startNode(t, dir, c).join(t, c); again.NodeKey == r.NodeKey {
			t.Error("the node key outlived the logout")
		}
	})
}

func TestUpIsChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, other := newCoordinator(t), newCoordinator(t)
		n := startNode(t, filepath.Join(t.TempDir(), "state"), c)
		name, bad, on := "laptop", "Not A Name", true
		refused := func(what string, r localapi.UpRequest, want localapi.Code) {
			t.Helper()
			var e *localapi.Error
			if err := n.Up(t.Context(), r); !errors.As(err, &e) || e.Code != want {
				t.Errorf("%s: %v, want %s", what, err, want)
			}
		}
		refused("nothing", localapi.UpRequest{}, localapi.CodeBadRequest)
		refused("no URL", localapi.UpRequest{LoginServer: "c:8080", AuthKey: c.joinKey()}, localapi.CodeBadRequest)
		refused("another scheme", localapi.UpRequest{LoginServer: "ftp://c", AuthKey: c.joinKey()}, localapi.CodeBadRequest)
		refused("no key", localapi.UpRequest{LoginServer: "http://c:8080"}, localapi.CodeNeedsLogin)
		refused("half a key", localapi.UpRequest{LoginServer: "http://c:8080", AuthKey: c.joinKey()[:40]}, localapi.CodeBadRequest)
		refused("no name", localapi.UpRequest{LoginServer: "http://c:8080", AuthKey: c.joinKey(), Hostname: &bad}, localapi.CodeBadRequest)
		if s := n.status(); s.State != localapi.NeedsLogin || s.WantRunning {
			t.Errorf("refused requests changed something: %+v", s)
		}
		n.join(t, c)
		refused("another network", localapi.UpRequest{AuthKey: other.joinKey()}, localapi.CodeConflict)
		refused("another name", localapi.UpRequest{Hostname: &name}, localapi.CodeConflict)
		if err := n.Up(t.Context(), localapi.UpRequest{ShieldsUp: &on}); err != nil || !n.plane.last().ShieldsUp {
			t.Errorf("shields up: %v", err)
		}
		same := "default"
		refused("a setting not mentioned", localapi.UpRequest{Hostname: &same}, localapi.CodeConflict)
		if err := n.Up(t.Context(), localapi.UpRequest{Hostname: &same, Reset: true}); err != nil || n.plane.last().ShieldsUp {
			t.Errorf("reset: %v", err)
		}
		n.stop()
	})
}

func TestDamagedState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, dir, n := newNode(t)
		_, r := n.join(t, c)
		n.stop()
		if err := os.WriteFile(filepath.Join(dir, "membership.json"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		n = startNode(t, dir, c)
		if s := n.status(); n.plane.last() != nil || !hasFact(s, health.CacheUnusable) {
			t.Errorf("with a damaged map: %+v", s)
		}
		p := <-c.accepted // by the fingerprint of the preferences
		take[wire.Hello](t, p)
		p.give(wire.Welcome{Version: wire.Newest, Time: time.Now(), Registered: true})
		take[wire.MapRequest](t, p)
		p.give(c.fullMap(r.NodeKey, 2, 2))
		synctest.Wait()
		if s := n.status(); s.State != localapi.Connected {
			t.Errorf("after the coordinator answered: %s", s.State)
		}
		n.stop()
	})
}

// TestLostMemory: without what was seen before, nobody can tell an old policy,
// which is told and goes on to be told; a device that has only just begun to
// join has nothing to lose.
func TestLostMemory(t *testing.T) {
	for _, tt := range []struct {
		name    string
		join    bool
		removed []string
		alarm   bool
	}{
		{"all", true, []string{"membership.json", "memory.json"}, true},
		{"the map", true, []string{"membership.json"}, false},
		{"the memory beside the map", true, []string{"memory.json"}, false},
		{"nothing", true, nil, false},
		{"nothing, before the device was a member", false, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, dir, n := newNode(t)
				var key ident.NodeKey
				if tt.join {
					_, r := n.join(t, c)
					key = r.NodeKey
				} else {
					if err := n.Up(t.Context(), localapi.UpRequest{LoginServer: "http://c:8080", AuthKey: c.joinKey()}); err != nil {
						t.Fatal(err)
					}
					<-c.accepted
				}
				n.stop()
				for _, name := range tt.removed {
					if err := os.Remove(filepath.Join(dir, name)); err != nil {
						t.Fatal(err)
					}
				}
				n = startNode(t, dir, c)
				alarmed := func() bool {
					return slices.ContainsFunc(n.status().Health, func(f health.Fact) bool {
						return f.Code == health.MemoryLost && f.Severity == health.Alarm
					})
				}
				if alarmed() != tt.alarm {
					t.Errorf("alarm %v, want %v", !tt.alarm, tt.alarm)
				}
				p := <-c.accepted
				if tt.join {
					take[wire.Hello](t, p)
					p.give(wire.Welcome{Version: wire.Newest, Time: time.Now(), Registered: true})
					take[wire.MapRequest](t, p)
					p.give(c.fullMap(key, 2, 2))
					synctest.Wait()
					if s := n.status(); s.State != localapi.Connected {
						t.Errorf("state %v", s.State)
					}
				}
				if alarmed() != tt.alarm {
					t.Errorf("after the coordinator answered: alarm %v, want %v", !tt.alarm, tt.alarm)
				}
				n.stop()
			})
		})
	}
}

// TestKeysAreForgotten is X-18 for the daemon: the join key is in no log line,
// no status and no file, whatever came of it.
func TestKeysAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, dir, n := newNode(t)
		key := c.joinKey()
		secret := strings.Split(key, "-")[3]
		up := localapi.UpRequest{LoginServer: "http://c:8080", AuthKey: key}
		if err := n.Up(t.Context(), up); err != nil {
			t.Fatal(err)
		}
		p := <-c.accepted
		take[wire.Hello](t, p)
		p.give(wire.Welcome{Version: wire.Newest, Time: time.Now()})
		take[wire.Register](t, p)
		p.give(&wire.Error{Code: wire.CodeAuthKey, Message: "the key is spent"})
		synctest.Wait()
		s := n.status()
		if s.State != localapi.NeedsLogin || !strings.Contains(s.Reason, "spent") {
			t.Errorf("status %s (%s)", s.State, s.Reason)
		}
		n.join(t, c)
		s2 := n.status()
		n.stop()
		for what, text := range map[string]string{"log": n.log.String(), "status": fmt.Sprintf("%+v %+v", s, s2)} {
			if strings.Contains(text, secret) {
				t.Errorf("the key is in the %s", what)
			}
		}
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			raw, err := os.ReadFile(path)
			if bytes.Contains(raw, []byte(secret)) {
				t.Errorf("the key is in %s", path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestNetworkChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCoordinator(t)
		state, err := statefile.Open(filepath.Join(t.TempDir(), "state"))
		if err != nil {
			t.Fatal(err)
		}
		defer state.Close()
		changes := make(chan struct{})
		dataPlane := &plane{reach: make(chan engine.Reach, 1)}
		a, err := agent.New(agent.Config{
			State: state, DataPlane: dataPlane, Decisions: dataPlane, Coordinator: c, NetworkChanges: changes,
			Rand: rand.Reader, Now: time.Now, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		(&node{Agent: a, plane: dataPlane}).join(t, c)
		changes <- struct{}{}
		take[wire.Hello](t, <-c.accepted)
		// Another home relay is no reason to connect anew; another public address
		// is, because the connection went out by the one before.
		dataPlane.reach <- engine.Reach{HomeRelay: "other"}
		synctest.Wait()
		if n := len(c.accepted); n != 0 {
			t.Errorf("connected %d times for another relay", n)
		}
		dataPlane.reach <- engine.Reach{HomeRelay: "other", Moves: 1}
		take[wire.Hello](t, <-c.accepted)
		cancel()
		<-done
		if dataPlane.changes != 1 {
			t.Errorf("the data plane was told %d times", dataPlane.changes)
		}
		if _, err := a.Logout(context.Background()); !errors.Is(err, agent.ErrStopped) {
			t.Errorf("after Run: %v", err)
		}
	})
}
