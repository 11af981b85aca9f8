package sim

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/enginetest"
	"github.com/warren-overlay/warren/netstack/simnet"
)

func TestHostThatMovesIsFoundAgain(t *testing.T) {
	t.Parallel()
	run(t, 21, func(s *sim) {
		nat := simnet.NAT{Mapping: simnet.EndpointIndependent, Filtering: simnet.AddressAndPortDependent}
		a, b := s.behindNATs(nat, nat)
		direct := func() bool { return a.path(b).Kind == engine.PathDirect && b.path(a).Kind == engine.PathDirect }
		a.until(b, 10*time.Second, "a direct path", direct)

		// From behind the NAT to the internet. The coordinator says nothing yet.
		s.world.Do(func(n *simnet.Network) {
			a.host.Move(n.Internet(), netip.MustParseAddr("198.51.100.77"))
		})
		a.engine.HandleNetworkChange()
		took := a.until(b, 10*time.Second, "a packet after the move", func() bool { return a.passes(b, 300*time.Millisecond) })
		s.Logf("packets again after %v", took)
		took = a.until(b, 20*time.Second, "a direct path after the move", direct)
		s.Logf("direct after %v", took)
		// b finds out that the old address is dead when it does not answer.
		took = b.until(a, 6*time.Second, "a packet to the host that moved", func() bool { return b.passes(a, 300*time.Millisecond) })
		s.Logf("packets back after %v", took)
	})
}

func TestRelayThatRestartsIsFoundAgain(t *testing.T) {
	t.Parallel()
	run(t, 22, func(s *sim) {
		nat := simnet.NAT{Mapping: simnet.AddressAndPortDependent, Filtering: simnet.AddressAndPortDependent}
		a, b := s.behindNATs(nat, nat)
		if !a.passes(b, time.Second) {
			s.Fatal("nothing passes")
		}
		s.world.Do(func(*simnet.Network) { s.server.SetDown(true) })
		took := a.until(b, 6*time.Second, "the loss of the relay", func() bool {
			return !a.engine.Status().Relay.Connected && a.path(b).Kind == engine.PathNone
		})
		s.Logf("noticed after %v", took)
		time.Sleep(2 * time.Minute)
		s.world.Do(func(*simnet.Network) { s.server.SetDown(false) })
		took = a.until(b, time.Minute, "the relay again", func() bool { return a.passes(b, 500*time.Millisecond) })
		s.Logf("packets again after %v", took)
	})
}

func TestNodeKeyCanChange(t *testing.T) {
	t.Parallel()
	run(t, 23, func(s *sim) {
		a, b := s.start("a", s.public("a", 1), nil), s.start("b", s.public("b", 2), nil)
		s.know(a, b)
		if !a.passes(b, time.Second) {
			s.Fatal("nothing passes")
		}
		old := a.Key
		a.Rotate()
		a.apply(enginetest.AllowAll(b.Member))
		if a.passes(b, time.Second) {
			s.Fatal("a packet passed to a node that does not know the new key")
		}
		b.apply(enginetest.AllowAll(a.Member))
		for _, p := range b.engine.Status().Peers {
			if p.Key == old {
				s.Fatal("the old key is still a peer")
			}
		}
		a.until(b, 20*time.Second, "a packet with the new key", func() bool { return a.passes(b, time.Second) })
		if !b.passes(a, time.Second) {
			s.Fatal("nothing passes back")
		}
	})
}

func TestShieldsKeepPeersOut(t *testing.T) {
	t.Parallel()
	run(t, 24, func(s *sim) {
		a, b := s.start("a", s.public("a", 1), nil), s.start("b", s.public("b", 2), nil)
		s.know(a, b)
		if !a.passes(b, time.Second) {
			s.Fatal("nothing passes")
		}
		shielded := b.config(b.rules)
		shielded.ShieldsUp = true
		if err := b.engine.Apply(shielded); err != nil {
			s.Fatal(err)
		}
		if a.passes(b, time.Second) {
			s.Fatal("a packet passed the shields")
		}
		if drops := b.engine.Status().Drops; drops["drop_shields"] == 0 {
			s.Fatalf("drops %v", drops)
		}
		shielded = b.config(b.rules)
		if err := b.engine.Apply(shielded); err != nil {
			s.Fatal(err)
		}
		if !a.passes(b, time.Second) {
			s.Fatal("nothing passes after the shields went down")
		}
	})
}

func TestBadNetworkKeepsItsPath(t *testing.T) {
	t.Parallel()
	run(t, 25, func(s *sim) {
		a, b := s.behindNATs(simnet.FullCone, simnet.FullCone)
		a.until(b, 10*time.Second, "a direct path", func() bool { return a.path(b).Kind == engine.PathDirect })
		s.world.Do(func(n *simnet.Network) {
			n.SetPath(simnet.Path{
				Delay: 40 * time.Millisecond, Jitter: 20 * time.Millisecond,
				Loss: 0.05, Duplicate: 0.2, Reorder: 0.2, Corrupt: 0.02,
			})
		})
		arrived, direct := 0, 0
		const packets = 300
		for range packets {
			if a.passes(b, 500*time.Millisecond) {
				arrived++
			}
			if a.path(b).Kind == engine.PathDirect {
				direct++
			}
			time.Sleep(200 * time.Millisecond)
		}
		// One in twenty is lost and one in fifty changed; the rest arrives, whole
		// and once.
		if arrived < packets*85/100 {
			s.Fatalf("%d of %d packets arrived", arrived, packets)
		}
		if direct < packets*9/10 {
			s.Fatalf("the path was direct at %d of %d packets", direct, packets)
		}
		if extra := len(b.tun.Received()); extra > 0 {
			s.Fatalf("%d packets arrived twice or late", extra)
		}
	})
}

// TestShieldsTellEveryPeer raises shields over more connections than any queue
// of the data path holds at a time: the programs on the other side must hear of
// each, for nothing else tells them.
func TestShieldsTellEveryPeer(t *testing.T) {
	t.Parallel()
	run(t, 26, func(s *sim) {
		a, b := s.start("a", s.public("a", 1), nil), s.start("b", s.public("b", 2), nil)
		s.know(a, b)
		const connections = 400
		for i := range connections {
			ours, theirs := netip.AddrPortFrom(a.Addr4(), uint16(1000+i)), netip.AddrPortFrom(b.Addr4(), 80)
			a.tun.Send(enginetest.TCP(ours, theirs, packet.SYN, 100, 0, ""))
			<-b.tun.Received()
			b.tun.Send(enginetest.TCP(theirs, ours, packet.SYN|packet.ACK, 500, 101, ""))
			<-a.tun.Received()
		}
		shielded := b.config(b.rules)
		shielded.ShieldsUp = true
		if err := b.engine.Apply(shielded); err != nil {
			s.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		for _, n := range []*node{a, b} {
			told := 0
			for len(n.tun.Received()) > 0 {
				if info := parsed(s, <-n.tun.Received()); info.Flags&packet.RST != 0 {
					told++
				}
			}
			if told != connections {
				s.Errorf("%s: %d of %d connections were reset", n.Certificate.Name, told, connections)
			}
		}
	})
}
