package sim

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/relay"
	"github.com/warren-overlay/warren/netstack/relay/relayhttp"
	"github.com/warren-overlay/warren/netstack/simnet"
)

// hostileConn is a node's connection to a relay whose operator may drop what it
// carries to the node.
type hostileConn struct {
	relayhttp.Conn
	site *relaySite
	to   *node
}

// hostile returns the node's connection to the relay with a URL, as its operator has
// it; nil for nil.
func (n *node) hostile(conn relayhttp.Conn, url string) relayhttp.Conn {
	i := slices.IndexFunc(n.sim.more, func(r *relaySite) bool { return r.url == url })
	if conn == nil || i < 0 {
		return conn
	}
	return &hostileConn{conn, n.sim.more[i], n}
}

// ReadMessage implements relayhttp.Conn.
func (c *hostileConn) ReadMessage(ctx context.Context, buf []byte) ([]byte, error) {
	for {
		message, err := c.Conn.ReadMessage(ctx, buf)
		drops := c.site.drops.Load()
		if err != nil || drops == nil {
			return message, err
		}
		var kept []byte
		for rest := message; len(rest) > 0; {
			f, next, err := relay.Next(rest)
			if err != nil {
				return nil, err
			}
			frame := rest[:len(rest)-len(next)]
			rest = next
			if f.Type == relay.FrameRecv && (*drops)(ident.NodeKey(f.Body[:ident.KeySize]), c.to, f.Body[ident.KeySize:]) {
				continue
			}
			kept = append(kept, frame...)
		}
		if len(kept) > 0 {
			return kept, nil
		}
	}
}

// barred returns how many peers the relay is barred for at the nodes.
func (r *relaySite) barred(nodes ...*node) (n int) {
	for _, node := range nodes {
		for _, s := range node.engine.Status().Relays {
			if s.Name == r.name {
				n += s.Barred
			}
		}
	}
	return n
}

// relayedPair is two nodes that talk over one of two relays.
func (s *sim) relayedPair(size int) (ab *talk, r *relaySite) {
	s.Helper()
	s.addRelay("fra-1", 11)
	s.addRelay("ams-1", 12)
	a, b := s.secludedPair()
	ab = &talk{a: a, b: b, size: size}
	if s.talk(10*time.Second, ab); ab.gap > 500*time.Millisecond || ab.lost > 0 {
		s.Fatalf("a gap of %v and %d packets lost before anything failed: %+v", ab.gap, ab.lost, a.engine.Status())
	}
	return ab, s.carrier(a, b)
}

// withhold has the relay drop of what is the tunnel's what drops says.
func (r *relaySite) withhold(drops func(to *node, packet []byte) bool) {
	f := func(_ ident.NodeKey, to *node, packet []byte) bool {
		return kindOf(packet) != probe && drops(to, packet)
	}
	r.drops.Store(&f)
}

// TestRelayDropsData is F20 for a relay that answers, carries what nodes say to each
// other beside the tunnel, and drops what is in it: all of it, one direction, or long
// packets only.
func TestRelayDropsData(t *testing.T) {
	data := func(p []byte) bool { return kindOf(p) == transport }
	for name, c := range map[string]struct {
		drops func(a, b, to *node, packet []byte) bool
		size  int // of the traffic
	}{
		"all":             {drops: func(_, _, _ *node, p []byte) bool { return data(p) }},
		"handshakes, too": {drops: func(_, _, _ *node, _ []byte) bool { return true }},
		"from a":          {drops: func(_, b, to *node, p []byte) bool { return data(p) && to == b }},
		"from b":          {drops: func(a, _, to *node, p []byte) bool { return data(p) && to == a }},
		"long ones":       {drops: func(_, _, _ *node, p []byte) bool { return data(p) && len(p) > 500 }, size: 1200},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, 1, func(s *sim) {
				ab, evil := s.relayedPair(c.size)
				a, b := ab.a, ab.b
				evil.withhold(func(to *node, packet []byte) bool { return c.drops(a, b, to, packet) })
				s.talk(20*time.Second, ab)
				s.Logf("a gap of %v, %d packets lost", ab.gap, ab.lost)
				if ab.gap > failover {
					s.Errorf("a gap of %v, want %v at most", ab.gap, failover)
				}
				if s.carrier(a, b) == evil || s.carrier(b, a) == evil {
					s.Errorf("packets still go over %s", evil.name)
				}
				if evil.barred(a) != 1 || evil.barred(b) != 1 {
					s.Errorf("the relay is barred for %d and %d peers", evil.barred(a), evil.barred(b))
				}
				if paths, err := a.engine.Paths(b.Addr4()); err != nil || len(paths.Barred) != 1 || paths.Barred[0].Relay != evil.name {
					s.Errorf("the paths' bars are %+v, %v", paths.Barred, err)
				}
				if s.talk(time.Minute, ab); ab.lost > 0 {
					s.Errorf("%d packets lost over the other relay", ab.lost)
				}
			})
		})
	}
}

// TestRelayDropsHalf: one that drops every other packet at random is found out later.
func TestRelayDropsHalf(t *testing.T) {
	run(t, 1, func(s *sim) {
		ab, evil := s.relayedPair(0)
		random := rand.New(rand.NewPCG(1, 2))
		var mu sync.Mutex
		evil.withhold(func(*node, []byte) bool {
			mu.Lock()
			defer mu.Unlock()
			return random.IntN(2) == 0
		})
		took := ab.a.until(ab.b, 3*time.Minute, "the relay is left", func() bool {
			ab.b.passes(ab.a, 200*time.Millisecond)
			return s.carrier(ab.a, ab.b) != evil && s.carrier(ab.b, ab.a) != evil
		})
		s.Logf("left after %v", took)
	})
}

// TestRelayDropsDataFromTheStart: two nodes speak for the first time, and the home of
// the one that is spoken to drops all that is the tunnel's.
func TestRelayDropsDataFromTheStart(t *testing.T) {
	run(t, 1, func(s *sim) {
		s.addRelay("fra-1", 11)
		s.addRelay("ams-1", 12)
		a, b := s.secludedStrangers()
		i := slices.IndexFunc(s.more, func(r *relaySite) bool { return r.name == b.home })
		if i < 0 {
			s.Fatalf("home %q", b.home)
		}
		s.more[i].withhold(func(*node, []byte) bool { return true })
		took := a.until(b, 2*failover, "a packet arrives", func() bool { return a.passes(b, 100*time.Millisecond) })
		s.Logf("the first packet arrives after %v", took)
		if took > failover {
			s.Errorf("the first packet arrives after %v", took)
		}
	})
}

// TestSleepingPeerBarsNoRelay: a machine that is suspended for some minutes answers
// nothing, inside the tunnel or beside it. No relay is to blame.
func TestSleepingPeerBarsNoRelay(t *testing.T) {
	run(t, 1, func(s *sim) {
		ab, _ := s.relayedPair(0)
		a, b := ab.a, ab.b
		s.world.Do(func(*simnet.Network) { b.host.SetDown(true) })
		s.talk(3*time.Minute, ab)
		s.world.Do(func(*simnet.Network) { b.host.SetDown(false) })
		b.engine.HandleNetworkChange() // as one that wakes up notices
		s.talk(20*time.Second, ab)
		s.Logf("back after %v", ab.gap)
		for _, r := range s.more {
			if n := r.barred(a, b); n > 0 {
				s.Errorf("%s is barred for %d peers", r.name, n)
			}
		}
		if ab.gap > 2*failover {
			s.Errorf("back after %v: %+v", ab.gap, a.engine.Status())
		}
	})
}

// TestRestartedPeerBarsNoRelay: a peer that was started again does not know the session
// of before, so that what is asked inside the tunnel goes to nobody until there is
// another.
func TestRestartedPeerBarsNoRelay(t *testing.T) {
	run(t, 1, func(s *sim) {
		ab, _ := s.relayedPair(0)
		a, b := ab.a, ab.b
		b.restart()
		b.apply(b.rules)
		s.talk(20*time.Second, ab)
		s.Logf("back after %v", ab.gap)
		for _, r := range s.more {
			if n := r.barred(a, b); n > 0 {
				s.Errorf("%s is barred for %d peers", r.name, n)
			}
		}
		if ab.gap > failover || a.path(b).Kind != engine.PathRelay {
			s.Errorf("back after %v by %v", ab.gap, a.path(b))
		}
	})
}
