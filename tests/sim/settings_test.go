package sim

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-overlay/warren/client/agent"
	"github.com/warren-overlay/warren/client/localapi"
	"github.com/warren-overlay/warren/client/statefile"
	"github.com/warren-overlay/warren/coordinator/registry"
	"github.com/warren-overlay/warren/coordinator/server"
	"github.com/warren-overlay/warren/coordinator/wire"
	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/nat"
	"github.com/warren-overlay/warren/netstack/simnet"
	"github.com/warren-overlay/warren/netstack/sock"
)

// mapsPorts is a gateway that forwards what it is asked for.
type mapsPorts struct {
	mu       sync.Mutex // protects the rest
	external netip.AddrPort
	asked    int
	mapped   bool
	deleted  time.Time // when it was told to delete it last
}

func (g *mapsPorts) Map(_ context.Context, r nat.MapRequest) (nat.Grant, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked++
	g.mapped = true
	return nat.Grant{Protocol: nat.MapPCP, Gateway: g.external.Addr(), Port: r.Port, External: g.external, Lifetime: r.Lifetime}, nil
}

func (g *mapsPorts) Release(context.Context, nat.Grant) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mapped, g.deleted = false, time.Now()
	return nil
}

func (g *mapsPorts) state() (asked int, mapped bool, deleted time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.asked, g.mapped, g.deleted
}

// startCoordinator runs the coordinator itself on the server's port 8080 until
// stop is called.
func (s *sim) startCoordinator(dir string) (c *server.Server, stop func()) {
	s.Helper()
	c, err := server.Open(s.ctx, server.Config{Dir: dir, Rand: rand.Reader, Logger: slog.New(slog.DiscardHandler), Version: "test"})
	if err != nil {
		s.Fatal(err)
	}
	listen := func(port uint16) net.Listener {
		l, err := s.world.Listen(s.server, port)
		if err != nil {
			s.Fatal(err)
		}
		return l
	}
	ctx, cancel := context.WithCancel(s.ctx)
	done := make(chan struct{})
	listeners := server.Listeners{Public: listen(8080), Admin: listen(8081)}
	s.running.Go(func() {
		defer close(done)
		if err := c.Run(ctx, listeners); err != nil {
			s.Error(err)
		}
		if err := c.Close(); err != nil {
			s.Error(err)
		}
	})
	return c, func() {
		cancel()
		<-done
	}
}

// wholeNode is a whole node: an agent, its engine, and the gateway before it.
type wholeNode struct {
	agent   *agent.Agent
	host    *simnet.Host
	gateway *mapsPorts
	dir     string
	stop    func()
}

// runWhole starts the node with what its directory says.
func (s *sim) runWhole(name string, m *wholeNode) {
	s.Helper()
	client := s.httpClient(m.host)
	log := slog.New(slog.NewTextHandler(s.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})).With("node", name)
	plane, err := engine.New(engine.Config{
		TUN: simnet.NewTUN(0), Port: 41641, PortMapper: m.gateway, Logger: log, Retain: retain,
		Listen: func(port uint16) (sock.Conn, error) { return s.world.ListenUDP(m.host, port) },
		LocalAddresses: func() (addrs []netip.Addr, err error) {
			s.world.Do(func(*simnet.Network) { addrs = append(addrs, m.host.Addrs()...) })
			return addrs, nil
		},
	})
	if err != nil {
		s.Fatal(err)
	}
	state, err := statefile.Open(m.dir)
	if err != nil {
		s.Fatal(err)
	}
	m.agent, err = agent.New(agent.Config{
		State: state, DataPlane: plane, Decisions: plane, Coordinator: agent.NewCoordinator(client, rand.Reader),
		Rand: rand.Reader, Now: time.Now, Hostname: name, Logger: log, Host: wire.HostInfo{ProgramVersion: "test", OS: "linux"},
	})
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	var ended sync.WaitGroup
	m.stop = func() {
		cancel()
		ended.Wait()
	}
	start := func(run func(context.Context) error) {
		ended.Add(1)
		s.running.Go(func() {
			defer ended.Done()
			if err := run(ctx); err != nil {
				s.Errorf("%s: %v", name, err)
			}
		})
	}
	start(plane.Run)
	start(func(ctx context.Context) error {
		defer state.Close()
		return m.agent.Run(ctx)
	})
}

// within waits until cond holds, and returns how long that took.
func (s *sim) within(limit time.Duration, what string, cond func() bool) time.Duration {
	s.Helper()
	began := time.Now()
	for !cond() {
		if time.Since(began) > limit {
			s.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(began)
}

// TestPortMappingIsTurnedOffForAll has 100 whole nodes with a port forwarded, and
// an administrator who turns that off: all of those that are connected have
// it deleted within 5 seconds; one that is away, when it is back; and one that
// starts again while the coordinator is away asks for none. With -short there are 20.
func TestPortMappingIsTurnedOffForAll(t *testing.T) {
	t.Parallel()
	const limit = 5 * time.Second
	nodes := sized(100, 20)
	run(t, 60, func(s *sim) {
		data := filepath.Join(s.TempDir(), "coordinator")
		coordinator, stopCoordinator := s.startCoordinator(data)
		execute := func(cmd registry.Command) {
			s.Helper()
			if _, err := coordinator.Execute(s.ctx, "test", cmd); err != nil {
				s.Fatal(err)
			}
		}
		execute(registry.CreateUser{Login: "alice@example.com"})
		key, err := wire.NewJoinKey(rand.Reader, coordinator.Fingerprint())
		if err != nil {
			s.Fatal(err)
		}
		execute(registry.CreateKey{
			ID: key.ID, Hash: sha256.Sum256([]byte(key.Secret)), Login: "alice@example.com", Reusable: true, Expires: time.Now().Add(time.Hour),
		})
		members := make([]*wholeNode, nodes)
		for i := range members {
			name := fmt.Sprint("n", i)
			m := &wholeNode{
				host: s.public(name, byte(i+1)), dir: filepath.Join(s.TempDir(), name),
				gateway: &mapsPorts{external: netip.AddrPortFrom(netip.AddrFrom4([4]byte{5, 5, 0, byte(i)}), 7000)},
			}
			members[i] = m
			s.runWhole(name, m)
			if err := m.agent.Up(s.ctx, localapi.UpRequest{LoginServer: "http://203.0.113.1:8080", AuthKey: key.Text()}); err != nil {
				s.Fatal(err)
			}
		}
		all := func(mapped bool, which []*wholeNode) func() bool {
			return func() bool {
				for _, m := range which {
					if _, is, _ := m.gateway.state(); is != mapped {
						return false
					}
				}
				return true
			}
		}
		s.within(time.Minute, "all nodes have a port forwarded", all(true, members))

		away := members[nodes-1]
		s.world.Do(func(*simnet.Network) { away.host.SetDown(true) })
		began := time.Now()
		execute(registry.SetFeature{Feature: registry.FeaturePortMapping, Off: true})
		took := s.within(limit, "all but the one that is away have it deleted", all(false, members[:nodes-1]))
		for i, m := range members[:nodes-1] {
			if _, _, deleted := m.gateway.state(); deleted.Before(began) {
				s.Errorf("node %d had it deleted before it was turned off", i)
			}
		}
		s.Logf("%d nodes had theirs deleted within %v", nodes-1, took)
		time.Sleep(time.Minute)
		if !all(true, members[nodes-1:])() {
			s.Error("the node that is away knew of it")
		}
		s.world.Do(func(*simnet.Network) { away.host.SetDown(false) })
		s.within(2*time.Minute, "the one that was away has it deleted", all(false, members))

		// Nobody is asked again, minutes later and after a restart without the
		// coordinator.
		asked := func() (sum int) {
			for _, m := range members {
				n, _, _ := m.gateway.state()
				sum += n
			}
			return sum
		}
		before := asked()
		stopCoordinator()
		members[0].stop()
		s.runWhole("n0", members[0])
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if st, err := members[0].agent.Netcheck(s.ctx); err != nil || st.PortMapping.State != "off" || st.PortMapping.Error == "" {
			s.Errorf("after a restart without the coordinator: %+v, %v", st.PortMapping, err)
		}
		if n := asked(); n != before {
			s.Errorf("asked %d times while it was off", n-before)
		}

		// It is off still when the coordinator is back, and on when it is said so.
		coordinator, stopCoordinator = s.startCoordinator(data)
		time.Sleep(2 * time.Minute)
		if n := asked(); n != before {
			s.Errorf("asked %d times after the coordinator was back", n-before)
		}
		execute(registry.SetFeature{Feature: registry.FeaturePortMapping})
		s.within(time.Minute, "all nodes have a port forwarded again", all(true, members))
		stopCoordinator()
	})
}
