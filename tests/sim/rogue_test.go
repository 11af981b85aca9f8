package sim

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/netstack/alarm"
	"github.com/warren-overlay/warren/netstack/enginetest"
	"github.com/warren-overlay/warren/netstack/simnet"
	"github.com/warren-overlay/warren/netstack/sock"
)

// rogue starts a rogue on a host.
func (s *sim) rogue(host *simnet.Host, victim *node) *enginetest.Rogue {
	s.Helper()
	return s.Join("rogue", nil).Rogue(s, victim.Member, enginetest.RogueConfig{
		Address: host.Addrs()[0], Port: 41641, Retain: retain,
		Listen: func(port uint16) (sock.Conn, error) { return s.world.ListenUDP(host, port) },
	})
}

func TestRogueMemberGetsNothingThrough(t *testing.T) {
	t.Parallel()
	run(t, 31, func(s *sim) {
		victim, third := s.start("victim", s.public("victim", 1), nil), s.start("third", s.public("third", 2), nil)
		s.know(victim, third)
		r := s.rogue(s.public("rogue", 3), victim)
		defer r.Close()
		// A filter that has just begun takes up connections in their middle (P9).
		time.Sleep(3 * time.Minute)
		// The rogue may open TCP port 80 and nothing else.
		rules := enginetest.AllowAll(third.Member)
		rules.In = append(rules.In, enginetest.Allow("web", r.Member, packet.TCP, 80))
		c := victim.Config(time.Now(), rules, third.Member, r.Member)
		if err := victim.engine.Apply(c); err != nil {
			s.Fatal(err)
		}
		r.SendTo(victim.Member, victim.Endpoints[0])

		mine, theirs := r.Addr4(), victim.Addr4()
		at := netip.AddrPortFrom
		allowed := func(port uint16) []byte {
			return enginetest.TCP(at(mine, port), at(theirs, 80), packet.SYN, 1, 0, "")
		}
		// The victim finds a path to the rogue by its probes, and answers.
		r.TUN.Send(allowed(1000))
		select {
		case got := <-victim.tun.Received():
			if !bytes.Equal(got, allowed(1000)) {
				s.Fatalf("got % x", got)
			}
		case <-alarm.New(20 * time.Second).C:
			s.Fatalf("what is allowed does not arrive: %+v", victim.engine.Status())
		}

		tests := []struct {
			name, counter string
			b             []byte
		}{
			{"another port", "drop_no_rule", enginetest.TCP(at(mine, 1), at(theirs, 81), packet.SYN, 1, 0, "")},
			{"another protocol", "drop_no_rule", enginetest.UDP(at(mine, 1), at(theirs, 80), "x")},
			{"a third member's source", "drop_spoof", enginetest.UDP(at(third.Addr4(), 1), at(theirs, 80), "x")},
			{"a third member's source, IPv6", "drop_spoof", enginetest.UDP(at(third.Addr6(), 1), at(victim.Addr6(), 80), "x")},
			{"the victim's own source", "drop_spoof", enginetest.UDP(at(theirs, 1), at(theirs, 80), "x")},
			{"a source outside", "drop_spoof", enginetest.UDP(at(netip.MustParseAddr("8.8.8.8"), 1), at(theirs, 80), "x")},
			{"loopback as source", "drop_spoof", enginetest.UDP(at(netip.MustParseAddr("127.0.0.1"), 1), at(theirs, 80), "x")},
			{"loopback as destination", "drop_destination", enginetest.TCP(at(mine, 1), at(netip.MustParseAddr("127.0.0.1"), 80), packet.SYN, 1, 0, "")},
			{"the underlay as destination", "drop_destination", enginetest.TCP(at(mine, 1), at(victim.Endpoints[0].Addr(), 80), packet.SYN, 1, 0, "")},
			{"a third member as destination", "drop_destination", enginetest.TCP(at(mine, 1), at(third.Addr4(), 80), packet.SYN, 1, 0, "")},
			{"multicast", "drop_multicast", enginetest.UDP(at(mine, 1), at(netip.MustParseAddr("224.0.0.251"), 5353), "x")},
			{"no flow: ACK", "drop_no_flow", enginetest.TCP(at(mine, 2), at(theirs, 80), packet.ACK, 1, 1, "x")},
			{"no flow: SYN-ACK", "drop_no_flow", enginetest.TCP(at(mine, 3), at(theirs, 80), packet.SYN|packet.ACK, 1, 1, "")},
			{"no flow: RST", "drop_no_flow", enginetest.TCP(at(mine, 4), at(theirs, 80), packet.RST, 1, 0, "")},
			{"SYN and FIN", "drop_tcp_flags", enginetest.TCP(at(mine, 5), at(theirs, 80), packet.SYN|packet.FIN, 1, 0, "")},
			{"no flags", "drop_tcp_flags", enginetest.TCP(at(mine, 6), at(theirs, 80), 0, 1, 0, "")},
			{"IPv4 options", "drop_ipopt", withOptions(allowed(7))},
			{"a later fragment", "drop_frag", laterFragment(allowed(8))},
			{"a header cut short", "drop_transport", cutShort(allowed(9), 30)},
			{"cut short", "", allowed(10)[:30]}, // WireGuard drops what is shorter than it says, and counts nothing
		}
		for i, test := range tests {
			before := victim.engine.Status().Drops[test.counter]
			r.TUN.Send(test.b)
			// What is allowed and comes after it shows that it was looked at.
			marker := allowed(uint16(2000 + i))
			r.TUN.Send(marker)
			select {
			case got := <-victim.tun.Received():
				if !bytes.Equal(got, marker) {
					s.Errorf("%s: % x arrived", test.name, got)
				}
			case <-alarm.New(5 * time.Second).C:
				s.Fatalf("%s: nothing arrives any more", test.name)
			}
			drops := victim.engine.Status().Drops
			if got := drops[test.counter] - before; test.counter != "" && got != 1 {
				s.Errorf("%s: %s went up by %d: %v", test.name, test.counter, got, drops)
			}
		}
		if n := len(third.tun.Received()); n != 0 {
			s.Errorf("%d packets reached the third member", n)
		}
	})
}

// cutShort makes the packet one of n bytes.
func cutShort(b []byte, n int) []byte {
	b = bytes.Clone(b[:n])
	binary.BigEndian.PutUint16(b[2:], uint16(n))
	return b
}

// withOptions adds four bytes of IPv4 options.
func withOptions(b []byte) []byte {
	b = append(bytes.Clone(b[:20]), append([]byte{1, 1, 1, 0}, b[20:]...)...)
	b[0] = 0x46
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return b
}

// laterFragment makes the packet one with an offset.
func laterFragment(b []byte) []byte {
	b = bytes.Clone(b)
	binary.BigEndian.PutUint16(b[6:], 1)
	return b
}

// rogueWith starts a victim, an honest third member and a rogue that may open
// TCP port 80 of the victim, and shows that it can.
func rogueWith(s *sim) (victim, third *node, r *enginetest.Rogue) {
	s.Helper()
	victim, third = s.start("victim", s.public("victim", 1), nil), s.start("third", s.public("third", 2), nil)
	s.know(victim, third)
	r = s.rogue(s.public("rogue", 3), victim)
	time.Sleep(3 * time.Minute) // a filter that has just begun takes up connections
	rules := enginetest.AllowAll(third.Member)
	rules.In = append(rules.In, enginetest.Allow("web", r.Member, packet.TCP, 80))
	if err := victim.engine.Apply(victim.Config(time.Now(), rules, third.Member, r.Member)); err != nil {
		s.Fatal(err)
	}
	r.SendTo(victim.Member, victim.Endpoints[0])
	r.TUN.Send(web(r.Member, victim.Member, 1000))
	select {
	case <-victim.tun.Received():
	case <-alarm.New(20 * time.Second).C:
		s.Fatalf("what is allowed does not arrive: %+v", victim.engine.Status())
	}
	return victim, third, r
}

// web opens the connection that the rogue may open.
func web(from, to *enginetest.Member, port uint16) []byte {
	return enginetest.TCP(netip.AddrPortFrom(from.Addr4(), port), netip.AddrPortFrom(to.Addr4(), 80), packet.SYN, 1, 0, "")
}

// many is how many packets of each kind reliability.md asks for (S05).
const many = 10000

// flood sends n packets and returns what they have moved of the counter.
func flood(s *sim, r *enginetest.Rogue, victim *node, counter string, n int, packet func(i int) []byte) uint64 {
	s.Helper()
	before := victim.engine.Status().Drops[counter]
	for i := range n {
		for !r.TUN.Send(packet(i)) {
			time.Sleep(time.Millisecond)
		}
		if i%64 == 63 {
			time.Sleep(time.Millisecond) // no more at once than queues hold
		}
	}
	time.Sleep(time.Second)
	synctest.Wait()
	return victim.engine.Status().Drops[counter] - before
}

// TestSpoofedSourcesAreDroppedAndCounted is S05 and S05b: ten thousand packets
// with each source that is not the sender's, one of them in a flow that the
// source's owner has with the victim.
func TestSpoofedSourcesAreDroppedAndCounted(t *testing.T) {
	t.Parallel()
	run(t, 32, func(s *sim) {
		victim, third, r := rogueWith(s)
		defer r.Close()
		at := netip.AddrPortFrom
		// The flow of the third member's that the rogue rides.
		ours, theirs := at(victim.Addr4(), 5353), at(third.Addr4(), 7000)
		question := enginetest.UDP(theirs, ours, "question")
		third.tun.Send(question)
		<-victim.tun.Received()
		victim.tun.Send(enginetest.UDP(ours, theirs, "answer"))
		<-third.tun.Received()

		to4, to6 := at(victim.Addr4(), 80), at(victim.Addr6(), 80)
		from := func(a string) netip.AddrPort { return at(netip.MustParseAddr(a), 7000) }
		for _, test := range []struct {
			name string
			b    []byte
		}{
			{"another member", enginetest.UDP(at(third.Addr4(), 7001), to4, "x")},
			{"another member, IPv6", enginetest.UDP(at(third.Addr6(), 7001), to6, "x")},
			{"another member, in its flow", enginetest.UDP(theirs, ours, "question")},
			{"the victim itself", enginetest.UDP(at(victim.Addr4(), 7000), to4, "x")},
			{"a route that is not approved", enginetest.UDP(from("10.1.2.3"), to4, "x")},
			{"0.0.0.0", enginetest.UDP(from("0.0.0.0"), to4, "x")},
			{"loopback", enginetest.UDP(from("127.0.0.1"), to4, "x")},
			{"loopback, IPv6", enginetest.UDP(from("::1"), to6, "x")},
			{"multicast", enginetest.UDP(from("224.0.0.1"), to4, "x")},
			{"multicast, IPv6", enginetest.UDP(from("ff02::1"), to6, "x")},
			{"link-local", enginetest.UDP(from("169.254.0.9"), to4, "x")},
			{"link-local, IPv6", enginetest.UDP(from("fe80::9"), to6, "x")},
			{"mapped IPv4", enginetest.UDP(netip.AddrPortFrom(netip.AddrFrom16(third.Addr4().As16()), 7001), to6, "x")},
		} {
			if got := flood(s, r, victim, "drop_spoof", many, func(int) []byte { return test.b }); got != many {
				s.Errorf("%s: drop_spoof went up by %d", test.name, got)
			}
			if n := len(victim.tun.Received()); n != 0 {
				s.Fatalf("%s: %d packets arrived", test.name, n)
			}
		}
		// The flow that was ridden goes on.
		third.tun.Send(question)
		synctest.Wait()
		time.Sleep(time.Second)
		if n := len(victim.tun.Received()); n != 1 {
			s.Fatalf("%d packets of the owner arrived, want 1", n)
		}
	})
}

// TestClientThatIgnoresItsRevocation is S07: it goes on with its old keys and
// with handshakes, and nothing arrives any more.
func TestClientThatIgnoresItsRevocation(t *testing.T) {
	t.Parallel()
	run(t, 33, func(s *sim) {
		victim, third, r := rogueWith(s)
		defer r.Close()
		if err := victim.engine.Apply(victim.Config(time.Now(), enginetest.AllowAll(third.Member), third.Member)); err != nil {
			s.Fatal(err)
		}
		if reset := parsed(s, <-victim.tun.Received()); reset.Flags&packet.RST == 0 { // of the flow that the rogue had
			s.Errorf("%+v: want a reset", reset)
		}
		got := flood(s, r, victim, "unknown_receiver", many, func(i int) []byte { return web(r.Member, victim.Member, uint16(i)) })
		if got != many {
			s.Errorf("%d packets with old keys were counted, want %d", got, many)
		}
		// Its keys age, and it asks for new ones.
		for range 300 {
			r.TUN.Send(web(r.Member, victim.Member, 9))
			time.Sleep(time.Second)
		}
		if n := victim.engine.Status().Drops["unknown_initiation"]; n == 0 {
			s.Errorf("no handshake of the revoked device was counted")
		}
		if n := len(victim.tun.Received()); n != 0 {
			s.Fatalf("%d packets of a revoked device arrived", n)
		}
		third.until(victim, 10*time.Second, "a packet of an honest member", func() bool { return third.passes(victim, time.Second) })
		if !victim.passes(third, time.Second) {
			s.Fatal("the others can not reach each other")
		}
	})
}

// TestFloodOfOnePeerCostsTheOthersNothing is L08 on whole engines: one member
// opens ten times as many flows as it may hold, while another one's go on.
func TestFloodOfOnePeerCostsTheOthersNothing(t *testing.T) {
	t.Parallel()
	run(t, 34, func(s *sim) {
		victim, third, r := rogueWith(s)
		defer r.Close()
		rules := enginetest.AllowAll(third.Member, r.Member)
		if err := victim.engine.Apply(victim.Config(time.Now(), rules, third.Member, r.Member)); err != nil {
			s.Fatal(err)
		}
		flows := func(m *enginetest.Member) int {
			for _, p := range victim.engine.Status().Peers {
				if p.Key == m.Key {
					return p.Flows
				}
			}
			return -1
		}
		third.until(victim, 10*time.Second, "a packet", func() bool { return third.passes(victim, time.Second) })
		sent, arrived := 0, 0
		for i := range 10 * 8192 / 256 {
			for j := range 256 {
				n := 256*i + j
				from := netip.AddrPortFrom(r.Addr4(), uint16(1+n%60000))
				to := netip.AddrPortFrom(victim.Addr4(), uint16(1+n/60000))
				r.TUN.Send(enginetest.UDP(from, to, "flood"))
				if j%64 == 63 {
					time.Sleep(time.Millisecond)
				}
			}
			for len(victim.tun.Received()) > 0 {
				<-victim.tun.Received()
			}
			if i%8 == 0 {
				sent++
				if third.passes(victim, 500*time.Millisecond) {
					arrived++
				}
			}
			if n := flows(r.Member); n > 8192 || n < 1 {
				s.Fatalf("the flood holds %d flows", n)
			}
		}
		if arrived != sent || sent < 30 {
			s.Errorf("%d of %d packets of the other member arrived", arrived, sent)
		}
		if n := flows(third.Member); n != 1 {
			s.Errorf("the other member holds %d flows", n)
		}
	})
}
