package sim

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/relay/relayhttp"
	"github.com/warren-overlay/warren/netstack/simnet"
)

// failover is what the failure of a relay may cost (FAILOVER, F06).
const failover = 5 * time.Second

// relaySite is a relay on a host of its own.
type relaySite struct {
	sim  *sim
	name string
	url  string
	host *simnet.Host
	stop context.CancelFunc // ends the relay as its process's end would

	// drops, where set, says which packets the relay's operator has it drop.
	drops atomic.Pointer[func(from ident.NodeKey, to *node, packet []byte) bool]

	mu     sync.Mutex // protects all below
	server *relayhttp.Server
	conns  []net.Conn
}

// addRelay starts another relay.
func (s *sim) addRelay(name string, last byte) *relaySite {
	addr := netip.AddrFrom4([4]byte{203, 0, 113, last})
	r := &relaySite{sim: s, name: name, url: "ws://" + addr.String() + ":80" + relayhttp.Path}
	s.world.Do(func(n *simnet.Network) { r.host = n.Internet().NewHost(name, addr) })
	s.more = append(s.more, r)
	r.start()
	return r
}

// start starts the relay's process.
func (r *relaySite) start() {
	ctx, cancel := context.WithCancel(r.sim.ctx)
	server := r.sim.serveRelay(ctx, r.name, r.host, func(c net.Conn) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.conns = append(r.conns, c)
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.server, r.stop = server, cancel
}

// kill ends the relay's process without a word: its system closes what it had
// open, and refuses what comes.
func (r *relaySite) kill() {
	r.mu.Lock()
	conns := r.conns
	r.conns = nil
	r.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
	r.stop()
}

// leave tells the clients that the relay stops, and stops it a second later.
func (r *relaySite) leave() {
	r.server.Leave()
	time.AfterFunc(time.Second, r.kill)
}

// cut stops everything between the relay and a node.
func (r *relaySite) cut(n *node, cut bool) {
	r.sim.world.Do(func(w *simnet.Network) {
		w.Cut(n.host, r.host, cut)
		w.Cut(r.host, n.host, cut)
	})
}

// secluded starts a node that no UDP reaches, so that relays carry its traffic.
func (s *sim) secluded(name string, last byte) *node {
	h, router := s.behind(name, simnet.NAT{}, last)
	s.world.Do(func(*simnet.Network) { router.BlockUDP(true) })
	return s.start(name, h, nil)
}

// secludedPair starts two nodes that reach each other by the relays that were
// added alone, and returns when a packet has passed. The relay of the test's world
// is cut off.
func (s *sim) secludedPair() (a, b *node) {
	s.Helper()
	a, b = s.secludedStrangers()
	if !a.passes(b, failover) {
		s.Fatalf("nothing arrives: %+v", a.engine.Status())
	}
	return a, b
}

// secludedStrangers is secludedPair of nodes that have not spoken yet.
func (s *sim) secludedStrangers() (a, b *node) {
	s.Helper()
	s.world.Do(func(*simnet.Network) { s.server.SetDown(true) })
	a, b = s.secluded("a", 1), s.secluded("b", 2)
	s.meet(a, b)
	s.know(a, b) // and their homes
	return a, b
}

// talk is two nodes that send to each other, at the very same moments: both begin
// handshakes then.
type talk struct {
	a, b *node
	// gap is the longest time that one of them heard nothing, lost how many packets
	// did not come.
	gap  time.Duration
	lost int

	// size is the length of the packets' payload, where they are not to be short, and
	// burst how many go at once, where it is not one.
	size, burst int
	// sample, where not nil, is called after each of these.
	sample func()

	prefix []byte
	heard  [2]time.Time
}

// take takes what arrived.
func (t *talk) take() {
	for i, n := range []*node{t.a, t.b} {
		for more := true; more; {
			select {
			case p := <-n.tun.Received():
				if bytes.Contains(p, t.prefix) {
					t.heard[i] = time.Now()
					t.lost--
				}
			default:
				more = false
			}
		}
		t.gap = max(t.gap, time.Since(t.heard[i]))
	}
}

// talk has pairs of nodes talk for a while, ten times a second each way.
func (s *sim) talk(d time.Duration, pairs ...*talk) {
	for i, t := range pairs {
		t.gap, t.lost, t.heard = 0, 0, [2]time.Time{time.Now(), time.Now()}
		t.prefix = fmt.Appendf(nil, "talk %d of %d ", i, time.Now().UnixNano())
	}
	step := func() {
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		for _, t := range pairs {
			t.take()
			if t.sample != nil {
				t.sample()
			}
		}
	}
	for begin := time.Now(); time.Since(begin) < d; step() {
		for _, t := range pairs {
			text := string(t.prefix) + time.Since(begin).String()
			text += strings.Repeat(" ", max(0, t.size-len(text)))
			for range max(1, t.burst) {
				t.a.tun.Send(t.a.udp(t.b, text))
				t.b.tun.Send(t.b.udp(t.a, text))
				t.lost += 2
			}
		}
	}
	gaps := make([]time.Duration, len(pairs))
	for i, t := range pairs {
		gaps[i] = t.gap
	}
	for range 5 { // what is under way
		step()
	}
	for i, t := range pairs {
		t.gap = gaps[i]
	}
}

// carrier returns the relay that carries n's packets to the peer.
func (s *sim) carrier(n, to *node) *relaySite {
	s.Helper()
	p := n.path(to)
	for _, r := range s.more {
		if p.Kind == engine.PathRelay && p.Relay == r.name {
			return r
		}
	}
	s.Fatalf("path %v", p)
	return nil
}

// TestRelayFails takes the relay away that carries the traffic of two nodes, in
// all ways, without a coordinator that would tell of new homes (F06, F07, F10,
// F20). The relay of the test's world is cut off from the start.
func TestRelayFails(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fail func(r *relaySite, a, b *node)
		gap  time.Duration
	}{
		"killed":      {func(r *relaySite, _, _ *node) { r.kill() }, time.Second},
		"silent":      {func(r *relaySite, _, _ *node) { r.sim.world.Do(func(*simnet.Network) { r.host.SetDown(true) }) }, failover},
		"cut from a":  {func(r *relaySite, a, _ *node) { r.cut(a, true) }, failover},
		"cut from b":  {func(r *relaySite, _, b *node) { r.cut(b, true) }, failover},
		"it restarts": {func(r *relaySite, _, _ *node) { r.leave() }, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, 1, func(s *sim) {
				s.addRelay("fra-1", 11)
				s.addRelay("ams-1", 12)
				a, b := s.secludedPair()
				ab := &talk{a: a, b: b}
				if s.talk(10*time.Second, ab); ab.gap > 500*time.Millisecond || ab.lost > 0 {
					s.Fatalf("a gap of %v and %d packets lost before anything failed: %+v", ab.gap, ab.lost, a.engine.Status())
				}
				r := s.carrier(a, b)
				c.fail(r, a, b)
				s.talk(30*time.Second, ab)
				s.Logf("%s: a gap of %v, %d packets lost", name, ab.gap, ab.lost)
				if ab.gap > c.gap {
					s.Errorf("a gap of %v, want %v at most", ab.gap, c.gap)
				}
				if now := s.carrier(a, b); now == r {
					s.Errorf("it is still said to go over %s", r.name)
				}
			})
		})
	}
}

// TestNoRelayIsLeft takes all relays away for a minute: what is direct does not
// notice, and the others are back within 5 s of their return (F06).
func TestNoRelayIsLeft(t *testing.T) {
	t.Parallel()
	run(t, 1, func(s *sim) {
		r1, r2 := s.addRelay("fra-1", 11), s.addRelay("ams-1", 12)
		a, b := s.secludedPair()
		c, d := s.start("c", s.public("c", 3), nil), s.start("d", s.public("d", 4), nil)
		s.meet(a, b, c, d)
		s.know(a, b, c, d)
		c.until(d, 15*time.Second, "direct", func() bool { return c.path(d).Kind == engine.PathDirect && d.path(c).Kind == engine.PathDirect })
		r1.kill()
		r2.kill()
		ab, cd := &talk{a: a, b: b}, &talk{a: c, b: d}
		s.talk(time.Minute, ab, cd)
		if cd.lost > 0 {
			s.Errorf("without relays a direct path lost %d packets, with a gap of %v", cd.lost, cd.gap)
		}
		if ab.lost < 1000 {
			s.Errorf("without relays %d packets were lost", ab.lost)
		}
		r1.start()
		r2.start()
		s.talk(20*time.Second, ab)
		s.Logf("back after %v", ab.gap)
		if ab.gap > failover {
			s.Errorf("back %v after the relays", ab.gap)
		}
	})
}

// TestHomeIsFound lets two nodes whose homes are different relays speak for the
// first time: at the home of the one that is spoken to.
func TestHomeIsFound(t *testing.T) {
	t.Parallel()
	run(t, 1, func(s *sim) {
		r1, r2 := s.addRelay("fra-1", 11), s.addRelay("ams-1", 12)
		s.world.Do(func(*simnet.Network) { s.server.SetDown(true) })
		a, b := s.secluded("a", 1), s.secluded("b", 2)
		r1.cut(b, true)
		r2.cut(a, true)
		s.meet(a, b)
		r1.cut(b, false)
		r2.cut(a, false)
		s.know(a, b)
		if a.home != "fra-1" || b.home != "ams-1" {
			s.Fatalf("homes %q and %q", a.home, b.home)
		}
		begin := time.Now()
		if !a.passes(b, 5*time.Second) {
			s.Fatalf("nothing arrives: %+v", a.engine.Status())
		}
		took := time.Since(begin)
		s.Logf("the first packet takes %v", took)
		// Connecting and the admission are three round trips of 40 ms, the
		// handshake and the packet one and a half over the relay.
		if took > time.Second {
			s.Errorf("the first packet takes %v", took)
		}
		// When nobody talks any more, each is at its home only.
		time.Sleep(3 * time.Minute)
		for _, n := range []*node{a, b} {
			connected := 0
			for _, r := range n.engine.Status().Relays {
				if r.Connected {
					connected++
				}
			}
			if connected != 1 {
				s.Errorf("an idle node is connected to %d relays", connected)
			}
		}
	})
}

// TestCheckMeasuresRelays: a check of the network measures relays that have no STUN
// server and are not connected to, and those that carry so much that nobody asks
// how far they are.
func TestCheckMeasuresRelays(t *testing.T) {
	t.Parallel()
	run(t, 3, func(s *sim) {
		far := s.addRelay("far", 20)
		a := s.start("a", s.public("a", 1), nil)
		s.meet(a)
		time.Sleep(5 * time.Minute)
		relays := func() (home, other engine.RelayStatus) {
			for _, r := range a.engine.Status().Relays {
				if r.Home {
					home = r
				} else {
					other = r
				}
			}
			return home, other
		}
		home, other := relays()
		if other.Connected || other.RTT == 0 || other.RTTAge < time.Minute {
			s.Fatalf("before: %+v and %+v", home, other)
		}
		s.world.Do(func(*simnet.Network) {
			far.host.SetPath(simnet.Path{Delay: 50 * time.Millisecond})
			s.server.SetPath(simnet.Path{Delay: 50 * time.Millisecond})
		})
		began := time.Now()
		ctx, cancel := context.WithTimeout(s.ctx, failover)
		defer cancel()
		if err := a.engine.CheckNetwork(ctx); err != nil {
			s.Fatal(err)
		}
		took := time.Since(began)
		home, other = relays()
		if home.RTTAge > took+10*time.Second || other.RTTAge > took || other.RTT < 100*time.Millisecond {
			s.Fatalf("after %v: %+v and %+v", took, home, other)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if _, other = relays(); other.Connected {
			s.Fatalf("it stays connected: %+v", other)
		}
		if err := a.engine.CheckNetwork(ctx); err != nil {
			s.Fatal(err)
		}
		if _, again := relays(); again.RTTAge < time.Second {
			s.Fatalf("measured again at once: %+v", again)
		}
	})
}
