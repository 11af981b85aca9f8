package sim

import (
	"bytes"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/enginetest"
	"github.com/warren-overlay/warren/netstack/simnet"
)

const (
	// newsDelay is how much later than the device that comes up its peer is told of
	// it: a trip to the coordinator and one from there.
	newsDelay = 40 * time.Millisecond
	// untilDirect and untilRelayed bound the time from `warren up` to packets on a
	// direct path of one LAN, and over a relay. The trips of the control channel are
	// in them: three to join, 40 ms each.
	untilDirect  = 500*time.Millisecond - 3*newsDelay
	untilRelayed = 300 * time.Millisecond
)

// comesUp gives a node that was just started its configuration, and its peer the
// news of it a little later, as a coordinator does, and sends the peer the round's
// name at once and then every 10 ms, which comes back as the answer. It returns when the first answer came, and when both
// ends send directly, zero for not within a second.
func (s *sim) comesUp(a, b *node, round string) (answered, direct time.Duration) {
	s.Helper()
	begin := time.Now()
	a.peers, b.peers = []*node{b}, []*node{a}
	a.apply(enginetest.AllowAll(b.Member))
	for time.Since(begin) < time.Second && (answered == 0 || direct == 0) {
		a.tun.Send(a.udp(b, round))
		time.Sleep(10 * time.Millisecond)
		if at := time.Since(begin); at >= newsDelay && at < newsDelay+10*time.Millisecond {
			b.apply(enginetest.AllowAll(a.Member))
		}
		synctest.Wait()
		for more := true; more; {
			select {
			case p := <-b.tun.Received():
				if bytes.Contains(p, []byte(round)) {
					b.tun.Send(b.udp(a, round))
				}
			case p := <-a.tun.Received():
				if answered == 0 && bytes.Contains(p, []byte(round)) {
					answered = time.Since(begin)
				}
			default:
				more = false
			}
		}
		if direct == 0 && a.path(b).Kind == engine.PathDirect && b.path(a).Kind == engine.PathDirect {
			direct = time.Since(begin)
		}
	}
	return answered, direct
}

// down ends a node's network, as `warren down` does.
func (n *node) down() {
	n.sim.Helper()
	if err := n.engine.Apply(nil); err != nil {
		n.sim.Fatal(err)
	}
}

// TestUpToDirect: from the configuration to a direct path on one LAN, with a
// relay that is 20 ms away, for a device that is new to its peer and for one that
// returns.
func TestUpToDirect(t *testing.T) {
	t.Parallel()
	run(t, 31, func(s *sim) {
		var hosts [2]*simnet.Host
		s.world.Do(func(n *simnet.Network) {
			lan, _ := n.Internet().NewLAN("lan", simnet.PortRestricted, netip.MustParseAddr("198.51.100.1"), netip.Prefix{})
			hosts[0] = lan.NewHost("a", netip.MustParseAddr("192.168.1.2"))
			hosts[1] = lan.NewHost("b", netip.MustParseAddr("192.168.1.3"))
		})
		b := s.start("b", hosts[1], nil)
		s.know(b)
		b.connected()
		a := s.start("a", hosts[0], nil)
		for _, name := range []string{"joins", "returns", "comes back"} {
			answered, direct := s.comesUp(a, b, name)
			s.Logf("a device that %s: the first answer after %v, direct after %v", name, answered, direct)
			if direct == 0 || direct > untilDirect {
				s.Errorf("a device that %s is direct after %v, want %v at most", name, direct, untilDirect)
			}
			if answered == 0 || answered > untilRelayed {
				s.Errorf("a device that %s is answered after %v, want %v at most", name, answered, untilRelayed)
			}
			a.down()
			s.sleep(10 * time.Second)
		}
	})
}

// TestUpToRelayed is the same for two devices that may not send each other UDP.
func TestUpToRelayed(t *testing.T) {
	t.Parallel()
	run(t, 32, func(s *sim) {
		a, b := s.start("a", s.public("a", 1), nil), s.start("b", s.public("b", 2), nil)
		s.world.Do(func(n *simnet.Network) {
			n.Cut(a.host, b.host, true)
			n.Cut(b.host, a.host, true)
		})
		s.know(b)
		b.connected()
		for _, name := range []string{"joins", "returns", "comes back"} {
			answered, direct := s.comesUp(a, b, name)
			s.Logf("a device that %s: the first answer after %v", name, answered)
			if answered == 0 || answered > untilRelayed || direct != 0 {
				s.Errorf("a device that %s is answered after %v, direct after %v; want %v at most, and the relay", name, answered, direct, untilRelayed)
			}
			a.down()
			s.sleep(10 * time.Second)
		}
	})
}
