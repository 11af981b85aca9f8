package sim

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/packet"
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
		case <-time.After(20 * time.Second):
			s.Fatalf("what is allowed does not arrive: %+v", victim.engine.Status())
		}

		tests := []struct {
			name string
			b    []byte
		}{
			{"another port", enginetest.TCP(at(mine, 1), at(theirs, 81), packet.SYN, 1, 0, "")},
			{"another protocol", enginetest.UDP(at(mine, 1), at(theirs, 80), "x")},
			{"a third member's source", enginetest.UDP(at(third.Addr4(), 1), at(theirs, 80), "x")},
			{"a third member's source, IPv6", enginetest.UDP(at(third.Addr6(), 1), at(victim.Addr6(), 80), "x")},
			{"the victim's own source", enginetest.UDP(at(theirs, 1), at(theirs, 80), "x")},
			{"a source outside", enginetest.UDP(at(netip.MustParseAddr("8.8.8.8"), 1), at(theirs, 80), "x")},
			{"loopback as source", enginetest.UDP(at(netip.MustParseAddr("127.0.0.1"), 1), at(theirs, 80), "x")},
			{"loopback as destination", enginetest.TCP(at(mine, 1), at(netip.MustParseAddr("127.0.0.1"), 80), packet.SYN, 1, 0, "")},
			{"the underlay as destination", enginetest.TCP(at(mine, 1), at(victim.Endpoints[0].Addr(), 80), packet.SYN, 1, 0, "")},
			{"a third member as destination", enginetest.TCP(at(mine, 1), at(third.Addr4(), 80), packet.SYN, 1, 0, "")},
			{"multicast", enginetest.UDP(at(mine, 1), at(netip.MustParseAddr("224.0.0.251"), 5353), "x")},
			{"no flow: ACK", enginetest.TCP(at(mine, 2), at(theirs, 80), packet.ACK, 1, 1, "x")},
			{"no flow: SYN-ACK", enginetest.TCP(at(mine, 3), at(theirs, 80), packet.SYN|packet.ACK, 1, 1, "")},
			{"no flow: RST", enginetest.TCP(at(mine, 4), at(theirs, 80), packet.RST, 1, 0, "")},
			{"SYN and FIN", enginetest.TCP(at(mine, 5), at(theirs, 80), packet.SYN|packet.FIN, 1, 0, "")},
			{"no flags", enginetest.TCP(at(mine, 6), at(theirs, 80), 0, 1, 0, "")},
			{"IPv4 options", withOptions(allowed(7))},
			{"a later fragment", laterFragment(allowed(8))},
			{"cut short", allowed(9)[:30]},
		}
		for i, test := range tests {
			r.TUN.Send(test.b)
			// What is allowed and comes after it shows that it was looked at.
			marker := allowed(uint16(2000 + i))
			r.TUN.Send(marker)
			select {
			case got := <-victim.tun.Received():
				if !bytes.Equal(got, marker) {
					s.Errorf("%s: % x arrived", test.name, got)
				}
			case <-time.After(5 * time.Second):
				s.Fatalf("%s: nothing arrives any more", test.name)
			}
		}
		if n := len(third.tun.Received()); n != 0 {
			s.Errorf("%d packets reached the third member", n)
		}
		drops := victim.engine.Status().Drops
		for _, reason := range []string{"drop_spoof", "drop_no_rule", "drop_destination", "drop_no_flow", "drop_tcp_flags", "drop_ipopt", "drop_frag"} {
			if drops[reason] == 0 {
				s.Errorf("no %s among %v", reason, drops)
			}
		}
	})
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
