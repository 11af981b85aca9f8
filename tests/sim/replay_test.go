package sim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warren-overlay/warren/netstack/disco"
	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/sock"
)

// The kinds of packets that are captured: WireGuard's, by their number, and
// probes.
const (
	initiation = 1
	response   = 2
	transport  = 4
	probe      = 9
)

func kindOf(packet []byte) int {
	switch {
	case disco.Is(packet):
		return probe
	case len(packet) >= 32:
		return int(binary.LittleEndian.Uint32(packet))
	}
	return 0
}

// tap is the socket of a node whose every packet somebody on the way reads.
type tap struct {
	sock.Conn

	mu   sync.Mutex // protects all below
	sent map[netip.AddrPort]map[int][][]byte
	// by, where not nil, is the socket from which he sends packets of the tunnel on;
	// copies says that the packets themselves arrive as well, behind his.
	by     sock.Conn
	copies bool
}

// sendOn has packets of the tunnel sent on by another socket, nil for none.
func (t *tap) sendOn(by sock.Conn, copies bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.by, t.copies = by, copies
}

func (t *tap) WriteBatch(bufs [][]byte, to netip.AddrPort) error {
	t.mu.Lock()
	if t.sent[to] == nil {
		t.sent[to] = make(map[int][][]byte)
	}
	for _, b := range bufs {
		k := kindOf(b)
		t.sent[to][k] = append(t.sent[to][k], slices.Clone(b))
	}
	by, copies := t.by, t.copies
	t.mu.Unlock()
	if by == nil || len(bufs) == 0 || kindOf(bufs[0]) != transport {
		return t.Conn.WriteBatch(bufs, to)
	}
	err := by.WriteBatch(bufs, to)
	if copies {
		err = errors.Join(err, t.Conn.WriteBatch(bufs, to))
	}
	return err
}

// take returns what was sent to an address, of a kind.
func (t *tap) take(to netip.AddrPort, kind int) [][]byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.sent[to][kind])
}

// packets returns how many were sent to anybody but the STUN server, which is
// asked now and then.
func (t *tap) packets() (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for to, kinds := range t.sent {
		if to.Addr() == serverAddr {
			continue
		}
		for _, packets := range kinds {
			n += len(packets)
		}
	}
	return n
}

// attacker is a host that sends what it has captured, and counts what it is sent.
type attacker struct {
	s    *sim
	conn sock.Conn

	mu      sync.Mutex  // protects arrived
	arrived map[int]int // packets by kind
}

func (s *sim) attacker(last byte) *attacker {
	s.Helper()
	conn, err := s.world.ListenUDP(s.public("attacker", last), 41641)
	if err != nil {
		s.Fatal(err)
	}
	a := &attacker{s: s, conn: conn, arrived: make(map[int]int)}
	s.running.Go(func() {
		bufs, sizes, from := [][]byte{make([]byte, 2048)}, make([]int, 1), make([]netip.AddrPort, 1)
		for {
			n, err := conn.Readers()[0].ReadBatch(bufs, sizes, from)
			if err != nil {
				return
			}
			a.mu.Lock()
			for i := range n {
				a.arrived[kindOf(bufs[i][:sizes[i]])]++
			}
			a.mu.Unlock()
		}
	})
	s.running.Go(func() {
		<-s.ctx.Done()
		conn.Close()
	})
	return a
}

// replay sends n packets, of the given ones in turn, at 500 a second: less than
// what strangers may send before they are not even looked at.
func (a *attacker) replay(to netip.AddrPort, n int, packets ...[]byte) {
	a.s.Helper()
	if len(packets) == 0 {
		a.s.Fatal("nothing was captured")
	}
	for i := range n {
		if err := a.conn.WriteBatch([][]byte{slices.Clone(packets[i%len(packets)])}, to); err != nil {
			a.s.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond)
	}
	time.Sleep(time.Second)
	synctest.Wait()
}

// received returns how many packets came to the attacker: probes, and others.
func (a *attacker) received() (probes, others int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for kind, n := range a.arrived {
		if kind == probe {
			probes += n
		} else {
			others += n
		}
	}
	return probes, others
}

// counted returns a node's metric, summed over the values of its labels or where
// the first of them has a value.
func (n *node) counted(name, label string) (sum float64) {
	n.sim.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(n.engine.Collector())
	families, err := registry.Gather()
	if err != nil {
		n.sim.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if labels := m.GetLabel(); label == "" || len(labels) > 0 && labels[0].GetValue() == label {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// standing is what of a node must not change by a replay.
func (n *node) standing(peer *node) string {
	for _, p := range n.engine.Status().Peers {
		if p.Key == peer.Key {
			return fmt.Sprint(p.Path, p.LastHandshake, p.RxBytes, p.TxBytes, p.Flows)
		}
	}
	return "no peer"
}

// TestReplays is fault F18 on whole engines: what was captured between two nodes
// is sent again, 10,000 times, from another address. Nothing is delivered,
// nothing answered, nothing changed, and each copy is counted. After a restart of
// the node that it goes to, which remembers nothing (F18b), no packet of the tunnel
// goes to the attacker.
func TestReplays(t *testing.T) {
	t.Parallel()
	run(t, 81, func(s *sim) {
		s.taps = true
		a, b := s.start("a", s.public("a", 1), nil), s.start("b", s.public("b", 2), nil)
		addrA, addrB := netip.MustParseAddrPort("198.51.100.1:41641"), netip.MustParseAddrPort("198.51.100.2:41641")
		s.know(a, b)
		a.until(b, 20*time.Second, "direct paths", func() bool {
			return a.path(b).Kind == engine.PathDirect && b.path(a).Kind == engine.PathDirect
		})
		// New keys come after two minutes; that handshake goes straight.
		for len(a.tap.take(addrB, initiation)) == 0 || len(b.tap.take(addrA, response)) == 0 {
			if !a.passes(b, time.Second) {
				s.Fatal("nothing passes")
			}
			time.Sleep(time.Second)
		}
		for range 40 {
			a.passes(b, time.Second)
		}
		before := -1
		for n := a.tap.packets() + b.tap.packets(); n != before; n = a.tap.packets() + b.tap.packets() {
			before = n
			time.Sleep(15 * time.Second)
		}
		x := s.attacker(3)
		const many = 10_000
		last := func(packets [][]byte, n int) [][]byte { return packets[max(0, len(packets)-n):] }
		// Not more than the device is given in turn are refused by it.
		refused := func(n *node) float64 {
			return n.counted("warren_lost_packets_total", "refused_response") + n.counted("warren_lost_packets_total", "unknown_receiver") +
				n.counted("warren_lost_packets_total", "initiation_rate") // of handshakes too many of which wait
		}
		repeated := func(n *node) float64 { return n.counted("warren_lost_packets_total", "replayed_packet") }
		probes := func(n *node) float64 {
			return n.counted("warren_path_events_total", "ping_replayed") + n.counted("warren_path_events_total", "pong_unsolicited")
		}
		for _, test := range []struct {
			what    string
			victim  *node
			at      netip.AddrPort
			n       int
			packets [][]byte
			counter func(*node) float64
		}{
			{"one initiation", b, addrB, many, last(a.tap.take(addrB, initiation), 1), func(n *node) float64 {
				return n.counted("warren_lost_packets_total", "replayed_handshake")
			}},
			{"responses", a, addrA, many / 10, b.tap.take(addrA, response), refused},
			{"packets of the tunnel", b, addrB, many, last(a.tap.take(addrB, transport), 64), repeated},
			{"probes of one", b, addrB, many / 10, a.tap.take(addrB, probe), probes},
			{"probes of the other", a, addrA, many / 10, b.tap.take(addrA, probe), probes},
		} {
			other := map[*node]*node{a: b, b: a}[test.victim]
			counted, standing := test.counter(test.victim), test.victim.standing(other)
			passed := test.victim.counted("warren_inbound_passed_packets_total", "")
			sent := a.tap.packets() + b.tap.packets()
			x.replay(test.at, test.n, test.packets...)
			if got := test.counter(test.victim) - counted; got != float64(test.n) {
				s.Errorf("%s: %d copies, of which %v were counted", test.what, test.n, got)
			}
			if got := test.victim.standing(other); got != standing {
				s.Errorf("%s: it was %s and is %s", test.what, standing, got)
			}
			if got := test.victim.counted("warren_inbound_passed_packets_total", "") - passed; got != 0 || len(test.victim.tun.Received()) != 0 {
				s.Errorf("%s: %v packets were passed", test.what, got)
			}
			if got := a.tap.packets() + b.tap.packets() - sent; got != 0 {
				s.Errorf("%s: %d packets were sent in answer", test.what, got)
			}
		}
		if probes, others := x.received(); probes+others != 0 {
			s.Errorf("the attacker was sent %d probes and %d other packets", probes, others)
		}
		if !a.passes(b, time.Second) || !b.passes(a, time.Second) {
			s.Error("the tunnel does not go on")
		}

		// F18b.
		captured := append(last(a.tap.take(addrB, initiation), 1), last(a.tap.take(addrB, transport), 64)...)
		pings := last(a.tap.take(addrB, probe), 64)
		b.restart()
		b.apply(b.rules)
		x.replay(addrB, many/10, append(captured, pings...)...)
		a.until(b, 30*time.Second, "a packet after the restart", func() bool { return a.passes(b, time.Second) })
		x.replay(addrB, many/10, append(captured, pings...)...)
		probed, others := x.received()
		if others != 0 {
			s.Errorf("after the restart %d packets of the tunnel went to the attacker", others)
		}
		if probed > len(pings) {
			s.Errorf("after the restart %d probes went to the attacker, who has captured %d", probed, len(pings))
		}
		if got := b.path(a); got.Kind != engine.PathDirect || got.Addr != addrA {
			s.Errorf("after the restart packets go to %+v", got)
		}
		if !b.passes(a, time.Second) {
			s.Error("nothing passes back after the restart")
		}
	})
}

// strayed returns whether, and from where, too many packets of the tunnel with a peer
// come from elsewhere.
func (n *node) strayed(peer *node) (bool, netip.AddrPort) {
	for _, p := range n.engine.Status().Peers {
		if p.Key == peer.Key {
			return p.Strayed, p.StrayedFrom
		}
	}
	return false, netip.AddrPort{}
}

// strayAlarms returns how often a node was alarmed by packets from elsewhere.
func (n *node) strayAlarms() float64 {
	return n.counted("warren_path_events_total", "packets_straying")
}

// TestSentOn is fault F19 on whole engines: somebody on the way takes the packets of a
// tunnel and sends them on from his own address, or sends copies ahead of them. They
// arrive, nothing goes back to him, and the receiver is told, once, until he has
// stopped for a minute.
func TestSentOn(t *testing.T) {
	t.Parallel()
	for name, copies := range map[string]bool{"instead": false, "ahead": true} {
		t.Run(name, func(t *testing.T) {
			run(t, 82, func(s *sim) { s.sentOn(copies) })
		})
	}
}

func (s *sim) sentOn(copies bool) {
	s.taps = true
	a, b := s.start("a", s.public("a", 1), nil), s.start("b", s.public("b", 2), nil)
	s.know(a, b)
	a.until(b, 20*time.Second, "direct paths", func() bool {
		return a.path(b).Kind == engine.PathDirect && b.path(a).Kind == engine.PathDirect
	})
	x := s.attacker(3)
	goOn := func(d time.Duration) {
		s.Helper()
		for begin := time.Now(); time.Since(begin) < d; time.Sleep(100 * time.Millisecond) {
			if !a.passes(b, time.Second) || !b.passes(a, time.Second) {
				s.Fatal("nothing passes")
			}
		}
	}
	goOn(20 * time.Second)
	if is, _ := b.strayed(a); is || b.counted("warren_lost_packets_total", "replayed_packet") != 0 {
		s.Fatal("an alarm before anything happened")
	}
	paths := [2]engine.Path{a.path(b), b.path(a)}

	a.tap.sendOn(x.conn, copies)
	begin := time.Now()
	for is := false; !is; is, _ = b.strayed(a) {
		if time.Since(begin) > 20*time.Second {
			s.Fatal("no alarm after 20 s")
		}
		goOn(time.Second)
	}
	s.Logf("an alarm after %v", time.Since(begin))
	if _, from := b.strayed(a); from != netip.MustParseAddrPort("198.51.100.3:41641") {
		s.Errorf("it names %v", from)
	}
	goOn(90 * time.Second)
	if is, _ := b.strayed(a); !is || b.strayAlarms() != 1 {
		s.Errorf("after 90 s more: %v, %v alarms", is, b.strayAlarms())
	}
	if is, _ := a.strayed(b); is || a.strayAlarms() != 0 {
		s.Error("the sender is alarmed, too")
	}
	if copies != (b.counted("warren_lost_packets_total", "replayed_packet") > 0) {
		s.Error("copies are not counted as repetitions, or something else is")
	}
	if now := [2]engine.Path{a.path(b), b.path(a)}; now != paths {
		s.Errorf("paths were %v and are %v", paths, now)
	}
	if _, others := x.received(); others != 0 {
		s.Errorf("%d packets went to the attacker", others)
	}

	a.tap.sendOn(nil, false)
	goOn(50 * time.Second)
	if is, _ := b.strayed(a); !is {
		s.Error("it is over before the minute")
	}
	goOn(11 * time.Second)
	if is, _ := b.strayed(a); is || b.strayAlarms() != 1 {
		s.Errorf("a minute after the last: %v, %v alarms", is, b.strayAlarms())
	}
}
