package sim

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/netstack/alarm"
	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/enginetest"
	"github.com/warren-overlay/warren/netstack/simnet"
)

// public adds a host to the internet.
func (s *sim) public(name string, last byte) *simnet.Host {
	var h *simnet.Host
	s.world.Do(func(n *simnet.Network) {
		h = n.Internet().NewHost(name, netip.AddrFrom4([4]byte{198, 51, 100, last}))
	})
	return h
}

// behind adds a host behind a NAT of its own.
func (s *sim) behind(name string, kind simnet.NAT, last byte) (*simnet.Host, *simnet.Router) {
	var h *simnet.Host
	var r *simnet.Router
	s.world.Do(func(n *simnet.Network) {
		var lan *simnet.Segment
		lan, r = n.Internet().NewLAN(name, kind, netip.AddrFrom4([4]byte{198, 51, 100, last}), netip.Prefix{})
		h = lan.NewHost(name, netip.AddrFrom4([4]byte{192, 168, last, 2}))
	})
	return h, r
}

// meet tells the nodes of each other, and waits until the relay has admitted all.
func (s *sim) meet(nodes ...*node) {
	s.Helper()
	s.know(nodes...)
	for _, n := range nodes {
		n.connected()
	}
}

// behindNATs starts two nodes behind NATs of their own, which meet.
func (s *sim) behindNATs(kindA, kindB simnet.NAT) (a, b *node) {
	s.Helper()
	hostA, _ := s.behind("a", kindA, 11)
	hostB, _ := s.behind("b", kindB, 12)
	a, b = s.start("a", hostA, nil), s.start("b", hostB, nil)
	s.meet(a, b)
	return a, b
}

func TestKeysAreRenewedWhileTrafficGoesOn(t *testing.T) {
	t.Parallel()
	run(t, 1, func(s *sim) {
		a, b := s.start("a", s.public("a", 1), nil), s.start("b", s.public("b", 2), nil)
		s.know(a, b)
		handshakes := make(map[time.Time]bool)
		for elapsed := time.Duration(0); elapsed < 400*time.Second; elapsed += 10 * time.Second {
			if !a.passes(b, time.Second) || !b.passes(a, time.Second) {
				s.Fatalf("a packet was lost after %v: %+v", elapsed, a.engine.Status())
			}
			handshakes[a.engine.Status().Peers[0].LastHandshake] = true
			time.Sleep(10 * time.Second)
		}
		// RekeyAfterTime is 120 s: at 0, 120, 240 and 360 s.
		if len(handshakes) < 4 {
			s.Fatalf("%d handshakes in 400 s", len(handshakes))
		}
		if got := a.path(b); got.Kind != engine.PathDirect {
			s.Fatalf("path %v", got)
		}
	})
}

func TestFirstPacketGoesOverTheRelayAndThenDirectly(t *testing.T) {
	t.Parallel()
	run(t, 2, func(s *sim) {
		nat := simnet.NAT{Mapping: simnet.EndpointIndependent, Filtering: simnet.AddressAndPortDependent}
		a, b := s.behindNATs(nat, nat)
		// Over the relay: two round trips of the handshake and the packet's way.
		if !a.passes(b, 300*time.Millisecond) {
			s.Fatalf("the first packet did not arrive: %+v", a.engine.Status())
		}
		a.until(b, 5*time.Second, "a direct path", func() bool { return a.path(b).Kind == engine.PathDirect })
		if !a.passes(b, 100*time.Millisecond) || !b.passes(a, 100*time.Millisecond) {
			s.Fatal("nothing passes on the direct path")
		}
	})
}

func TestRelayRemainsWhereNATsAllowNothingElse(t *testing.T) {
	t.Parallel()
	run(t, 3, func(s *sim) {
		nat := simnet.NAT{Mapping: simnet.AddressAndPortDependent, Filtering: simnet.AddressAndPortDependent}
		hostA, _ := s.behind("a", nat, 11)
		hostB, _ := s.behind("b", nat, 12)
		s.world.Do(func(*simnet.Network) {
			if simnet.DirectPossible(hostA, hostB) {
				s.Error("the model says that there is a direct path")
			}
		})
		a, b := s.start("a", hostA, nil), s.start("b", hostB, nil)
		s.meet(a, b)
		for range 30 {
			if !a.passes(b, time.Second) || !b.passes(a, time.Second) {
				s.Fatalf("a packet was lost: %+v", a.engine.Status())
			}
			time.Sleep(time.Second)
		}
		if got := a.path(b); got.Kind != engine.PathRelay || got.Relay != "home" {
			s.Fatalf("path %v", got)
		}
	})
}

func TestRelayTakesOverAndGivesBack(t *testing.T) {
	t.Parallel()
	run(t, 4, func(s *sim) {
		a, b := s.start("a", s.public("a", 1), nil), s.start("b", s.public("b", 2), nil)
		s.meet(a, b)
		direct := func() bool { return a.path(b).Kind == engine.PathDirect && b.path(a).Kind == engine.PathDirect }
		a.until(b, 5*time.Second, "a direct path", direct)
		cut := func(cut bool) {
			s.world.Do(func(n *simnet.Network) {
				n.Cut(a.host, b.host, cut)
				n.Cut(b.host, a.host, cut)
			})
		}
		cut(true)
		took := a.until(b, 15*time.Second, "the relay after the cut", func() bool { return a.passes(b, 200*time.Millisecond) })
		s.Logf("over the relay after %v", took)
		cut(false)
		took = a.until(b, 2*time.Minute, "the direct path again", direct)
		s.Logf("direct again after %v", took)
	})
}

// skews are how far clocks are ahead, which changes nothing where the data plane is
// told so (F11).
var skews = []time.Duration{0, -time.Hour, -10 * 365 * 24 * time.Hour, 365 * 24 * time.Hour}

// TestClockFoundWrong: a node whose clock is a year ahead knows nobody until it is
// told so, and then the certificates hold as long as others' clocks say.
func TestClockFoundWrong(t *testing.T) {
	t.Parallel()
	run(t, 9, func(s *sim) {
		end := time.Now().Add(10 * time.Minute).Truncate(time.Second).UTC()
		s.skew = 365 * 24 * time.Hour
		a := s.start("a", s.public("a", 1), nil)
		s.skew = 0
		b := s.start("b", s.public("b", 2), func(c *authority.Certificate) { c.NotAfter = end })
		a.skew = 0 // is what a is told
		s.know(a, b)
		if a.engine.Status().Configured {
			s.Fatal("certificates hold a year after their end")
		}
		a.skew = 365 * 24 * time.Hour
		a.apply(a.rules)
		a.until(b, 15*time.Second, "a packet", func() bool { return a.passes(b, 200*time.Millisecond) })
		time.Sleep(time.Until(end) - time.Millisecond)
		if len(a.engine.Status().Peers) != 1 {
			s.Fatal("the peer went before its certificate has ended")
		}
		time.Sleep(time.Until(end))
		synctest.Wait()
		if peers := a.engine.Status().Peers; len(peers) != 0 {
			s.Fatalf("peers %+v after the certificate has ended", peers)
		}
	})
}

func TestCertificateEndsWithoutAWord(t *testing.T) {
	t.Parallel()
	for _, skew := range skews {
		run(t, 5, func(s *sim) {
			s.skew = skew
			end := time.Now().Add(10 * time.Minute).Truncate(time.Second).UTC()
			a := s.start("a", s.public("a", 1), nil)
			b := s.start("b", s.public("b", 2), func(c *authority.Certificate) { c.NotAfter = end })
			s.know(a, b)
			if !a.passes(b, time.Second) {
				s.Fatal("nothing passes")
			}
			time.Sleep(time.Until(end) - time.Millisecond)
			if len(a.engine.Status().Peers) != 1 || !b.engine.Status().Configured {
				s.Fatal("the peer went before its certificate has ended")
			}
			time.Sleep(time.Until(end))
			synctest.Wait()
			if peers := a.engine.Status().Peers; len(peers) != 0 {
				s.Fatalf("peers %+v after the certificate has ended", peers)
			}
			if b.engine.Status().Configured {
				s.Fatal("b goes on after its own certificate has ended")
			}
			if a.passes(b, time.Minute) || b.passes(a, time.Minute) {
				s.Fatal("a packet passed after the certificate has ended")
			}
		})
	}
}

// TestSleptThroughTheEnd is F12 with a clock that timers do not see: a machine is
// suspended, and a certificate or a rule ends meanwhile. What comes as soon as it is
// awake, before any timer, is not let through, not one packet of it.
func TestSleptThroughTheEnd(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"certificate", "own certificate", "rule"} {
		run(t, 10, func(s *sim) {
			end := time.Now().Add(100 * time.Second).Truncate(time.Second).UTC()
			until := func(whose string) func(*authority.Certificate) {
				return func(c *authority.Certificate) {
					if what == whose {
						c.NotAfter = end
					}
				}
			}
			a, b := s.start("a", s.public("a", 1), until("certificate")), s.start("b", s.public("b", 2), until("own certificate"))
			s.know(a, b)
			rule := enginetest.Allow("until", a.Member, ruleset.AnyProtocol, 0)
			if what == "rule" {
				rule.NotAfter = end
			}
			b.apply(&ruleset.RuleSet{In: []ruleset.Rule{rule}})
			a.until(b, 15*time.Second, "a packet", func() bool { return a.passes(b, 200*time.Millisecond) })
			for range 10 {
				if !a.passes(b, time.Second) {
					s.Fatal("nothing passes")
				}
			}
			dropped := b.engine.Status().Drops
			b.slept.Store(int64(200 * time.Second))
			for range 20 {
				if a.passes(b, 100*time.Millisecond) {
					s.Fatalf("a packet passed after the %s has ended", what)
				}
			}
			now := b.engine.Status().Drops
			count := func(drops map[string]uint64) (n uint64) {
				for reason, d := range drops {
					if strings.Contains(reason, "removed") || strings.Contains(reason, "rule") || strings.Contains(reason, "unknown_") {
						n += d
					}
				}
				return n
			}
			if count(now) == count(dropped) {
				s.Errorf("after the %s has ended: no drop was counted: %v, before %v", what, now, dropped)
			}
		})
	}
}

func TestRemovalCutsAtOnce(t *testing.T) {
	t.Parallel()
	run(t, 6, func(s *sim) {
		a, b := s.start("a", s.public("a", 1), nil), s.start("b", s.public("b", 2), nil)
		s.know(a, b)
		if !a.passes(b, time.Second) {
			s.Fatal("nothing passes")
		}
		b.peers = nil
		b.apply(enginetest.AllowAll())
		for range 400 {
			if a.passes(b, time.Second) {
				s.Fatal("a packet of a removed peer arrived")
			}
		}
		drops := b.engine.Status().Drops
		if drops["unknown_receiver"] == 0 || drops["unknown_initiation"] == 0 {
			s.Fatalf("drops %v: want old packets and new handshakes among them", drops)
		}
	})
}

func TestRuleEndsWithoutAWord(t *testing.T) {
	t.Parallel()
	for _, skew := range skews {
		run(t, 7, func(s *sim) {
			s.skew = skew
			a, b := s.start("a", s.public("a", 1), nil), s.start("b", s.public("b", 2), nil)
			s.know(a, b)
			end := time.Now().Add(5 * time.Minute).Truncate(time.Second)
			rule := enginetest.Allow("until", a.Member, ruleset.AnyProtocol, 0)
			rule.NotAfter = end
			b.apply(&ruleset.RuleSet{In: []ruleset.Rule{rule}})
			ours, theirs := netip.AddrPortFrom(a.Addr4(), 6000), netip.AddrPortFrom(b.Addr4(), 80)
			a.tun.Send(enginetest.TCP(ours, theirs, packet.SYN, 100, 0, ""))
			<-b.tun.Received()
			b.tun.Send(enginetest.TCP(theirs, ours, packet.SYN|packet.ACK, 500, 101, ""))
			<-a.tun.Received()
			a.tun.Send(enginetest.TCP(ours, theirs, packet.ACK, 101, 501, "x"))
			<-b.tun.Received()
			time.Sleep(time.Until(end) - 2*time.Second)
			if n := len(b.tun.Received()) + len(a.tun.Received()); n != 0 {
				s.Fatalf("%d packets before the rule has ended", n)
			}
			for _, n := range []*node{b, a} {
				select {
				case got := <-n.tun.Received():
					if info := parsed(s, got); info.Flags&packet.RST == 0 {
						s.Fatalf("%+v: want a reset", info)
					}
				case <-alarm.New(5 * time.Second).C:
					s.Fatalf("%s was not told that the flow has ended", n.Certificate.Name)
				}
			}
			if late := time.Since(end); late < 0 || late > 2*time.Second {
				s.Fatalf("the flow ended %v after its rule", late)
			}
		})
	}
}

func TestPingTellsPathAndTime(t *testing.T) {
	t.Parallel()
	run(t, 8, func(s *sim) {
		a, b := s.start("a", s.public("a", 1), nil), s.start("b", s.public("b", 2), nil)
		s.meet(a, b)
		s.running.Go(func() {
			for {
				select {
				case <-s.ctx.Done():
					return
				case request := <-b.tun.Received():
					if info := parsed(s, request); info.Kind == packet.EchoRequest {
						b.tun.Send(enginetest.EchoReply(request))
					}
				}
			}
		})
		ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
		defer cancel()
		var last engine.PingReply
		for i := range 5 {
			var err error
			if last, err = a.engine.Ping(ctx, b.Addr6()); err != nil {
				s.Fatalf("ping %d: %v", i, err)
			}
			time.Sleep(time.Second)
		}
		// Twice the delay of the internet.
		if last.Path.Kind != engine.PathDirect || last.RTT != 40*time.Millisecond || last.Peer != "b" {
			s.Fatalf("%+v: want 40 ms directly", last)
		}
	})
}

// TestPingTellsThePathItTook: an answer that comes when the path has changed is to a
// ping that went by the path of before, and both are told.
func TestPingTellsThePathItTook(t *testing.T) {
	t.Parallel()
	run(t, 8, func(s *sim) {
		host, router := s.behind("a", simnet.NAT{}, 1)
		s.world.Do(func(*simnet.Network) { router.BlockUDP(true) })
		a, b := s.start("a", host, nil), s.start("b", s.public("b", 2), nil)
		s.meet(a, b)
		type outcome struct {
			reply engine.PingReply
			err   error
		}
		answer := func(meanwhile func()) engine.PingReply {
			ctx, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
			defer cancel()
			done := make(chan outcome)
			s.running.Go(func() {
				reply, err := a.engine.Ping(ctx, b.Addr4())
				done <- outcome{reply, err}
			})
			var request []byte
			for request = <-b.tun.Received(); parsed(s, request).Kind != packet.EchoRequest; request = <-b.tun.Received() {
				continue
			}
			meanwhile()
			b.tun.Send(enginetest.EchoReply(request))
			o := <-done
			if o.err != nil {
				s.Fatal(o.err)
			}
			for len(b.tun.Received()) > 0 { // sent again meanwhile
				<-b.tun.Received()
			}
			return o.reply
		}
		if got := answer(func() {}); got.Path.Relay != "home" || got.Others != nil {
			s.Fatalf("%+v: want it over the relay", got)
		}
		sent := time.Now()
		got := answer(func() {
			s.world.Do(func(*simnet.Network) { router.BlockUDP(false) })
			for a.path(b).Kind != engine.PathDirect {
				if time.Since(sent) > time.Minute {
					s.Fatalf("no direct path: %+v", a.engine.Status())
				}
				time.Sleep(100 * time.Millisecond)
			}
		})
		if got.Path.Relay != "home" || len(got.Others) == 0 || got.Others[0].Kind != engine.PathDirect || got.RTT < time.Since(sent)-time.Second {
			s.Fatalf("%+v after %v: want it over the relay, and that the path became direct", got, time.Since(sent))
		}
		time.Sleep(10 * time.Second) // the NAT may be asked for other ports first
		if got := answer(func() {}); got.Path.Kind != engine.PathDirect || got.Others != nil {
			s.Fatalf("%+v: want it directly", got)
		}
	})
}

func TestIdlePeersAreSilent(t *testing.T) {
	t.Parallel()
	run(t, 9, func(s *sim) {
		a, b := s.start("a", s.public("a", 1), nil), s.start("b", s.public("b", 2), nil)
		s.know(a, b)
		if !a.passes(b, time.Second) {
			s.Fatal("nothing passes")
		}
		time.Sleep(10 * time.Minute)
		sent := func() (n uint64) {
			s.world.Do(func(net *simnet.Network) { n = net.Stats().Sent })
			return n
		}
		before := sent()
		time.Sleep(10 * time.Minute)
		// Each of the two asks the STUN server every 25 s and gets an answer.
		if got, most := sent()-before, uint64(2*2*(600/25+1)); got > most {
			s.Fatalf("%d packets in ten idle minutes, want at most %d", got, most)
		}
		if !a.passes(b, 2*time.Second) {
			s.Fatal("nothing passes after the pause")
		}
	})
}

func TestManyNodesMeet(t *testing.T) {
	t.Parallel()
	run(t, 10, func(s *sim) {
		var nodes []*node
		for i := range byte(6) {
			nat := simnet.NAT{Mapping: simnet.Behavior(i % 2), Filtering: simnet.Behavior(i % 3)}
			host, _ := s.behind(fmt.Sprint("n", i), nat, 20+i)
			nodes = append(nodes, s.start(fmt.Sprint("n", i), host, nil))
		}
		s.know(nodes...)
		for _, n := range nodes {
			n.connected()
		}
		for _, from := range nodes {
			for _, to := range nodes {
				if from != to && !from.passes(to, 2*time.Second) {
					s.Fatalf("nothing passes from %s to %s: %+v", from.Certificate.Name, to.Certificate.Name, from.engine.Status())
				}
			}
		}
	})
}

// TestRestartIsNoticed is F25 where packets go one way only: who gets them starts
// again and knows nothing of their session, and has nothing to send by which the
// sender would learn so. They arrive again within 3 s; over a relay within the 5 s of a
// failover. The second restart follows the first, whose handshake is a moment old.
func TestRestartIsNoticed(t *testing.T) {
	t.Parallel()
	for name, relayed := range map[string]bool{"direct": false, "over a relay": true} {
		t.Run(name, func(t *testing.T) {
			run(t, 11, func(s *sim) {
				var a, b *node
				if relayed {
					s.addRelay("fra-1", 11)
					a, b = s.secludedPair()
				} else {
					a, b = s.start("a", s.public("a", 1), nil), s.start("b", s.public("b", 2), nil)
					s.meet(a, b)
					a.until(b, 10*time.Second, "a direct path", func() bool { return a.path(b).Kind == engine.PathDirect })
				}
				for i, pause := range []time.Duration{20 * time.Second, 20 * time.Second, time.Second} {
					a.until(b, time.Minute, "packets for a while", func() bool { return a.passes(b, time.Second) })
					for begin := time.Now(); time.Since(begin) < pause; {
						a.passes(b, 200*time.Millisecond)
					}
					b.restart()
					b.apply(b.rules)
					took := a.until(b, time.Minute, "a packet after a restart", func() bool { return a.passes(b, 100*time.Millisecond) })
					s.Logf("restart %d: a packet after %v", i, took)
					limit := 3 * time.Second
					if relayed || pause < limit {
						limit = failover // a handshake is begun every 5 s at most
					}
					if took > limit {
						s.Errorf("restart %d: a packet after %v, want %v at most", i, took, limit)
					}
				}
			})
		})
	}
}
