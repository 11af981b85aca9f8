package sim

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/netstack/disco"
	"github.com/warren-overlay/warren/netstack/enginetest"
	"github.com/warren-overlay/warren/netstack/simnet"
	"github.com/warren-overlay/warren/netstack/sock"
	"github.com/warren-overlay/warren/netstack/wg"
)

// rogue is a member that does not play by the rules: WireGuard without a
// filter. It answers probes, so that packets have a way to it.
type rogue struct {
	*enginetest.Member
	sim    *sim
	tun    *simnet.TUN
	device *wg.Device
	sealer *disco.Sealer
	opener *disco.Opener
}

func (s *sim) rogue(host *simnet.Host, victim *node) *rogue {
	s.Helper()
	r := &rogue{Member: s.Join("rogue", nil), sim: s, tun: simnet.NewTUN(0)}
	var err error
	if r.sealer, r.opener, err = disco.NewPair(r.Private, victim.Key); err != nil {
		s.Fatal(err)
	}
	ready := make(chan struct{})
	r.device, err = wg.New(wg.Config{
		TUN: r.tun, Port: 41641, Logger: slog.New(slog.DiscardHandler), Retain: retain,
		Listen: func(port uint16) (sock.Conn, error) { return s.world.ListenUDP(host, port) },
		Control: func(b []byte, from netip.AddrPort) {
			<-ready
			message, err := r.opener.Open(b)
			if ping, ok := message.(disco.Ping); err == nil && ok {
				pong, err := r.sealer.Seal(nil, disco.Pong{TxID: ping.TxID, Observed: from}, rand.Reader)
				if err == nil {
					err = r.device.SendControl(pong, from)
				}
				if err != nil {
					s.Error(err)
				}
			}
		},
	})
	if err != nil {
		s.Fatal(err)
	}
	close(ready)
	if err := r.device.SetPrivateKey(r.Private); err != nil {
		s.Fatal(err)
	}
	err = r.device.SetPeers([]wg.PeerConfig{{Key: victim.Key, AllowedIPs: []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"),
	}}})
	if err != nil {
		s.Fatal(err)
	}
	r.Endpoints = []netip.AddrPort{netip.AddrPortFrom(host.Addrs()[0], 41641)}
	return r
}

func TestRogueMemberGetsNothingThrough(t *testing.T) {
	run(t, 31, func(s *sim) {
		victim, third := s.start("victim", s.public("victim", 1), nil), s.start("third", s.public("third", 2), nil)
		s.know(victim, third)
		r := s.rogue(s.public("rogue", 3), victim)
		defer r.device.Close()
		// A filter that has just begun takes up connections in their middle (P9).
		time.Sleep(3 * time.Minute)
		// The rogue may open TCP port 80 and nothing else.
		rules := enginetest.AllowAll(third.Member)
		rules.In = append(rules.In, enginetest.Allow("web", r.Member, packet.TCP, 80))
		c := victim.Config(time.Now(), rules, third.Member, r.Member)
		if err := victim.engine.Apply(c); err != nil {
			s.Fatal(err)
		}
		r.device.Peer(victim.Key).SetPath(wg.Path{Direct: victim.Endpoints[0]})

		mine, theirs := r.Addr4(), victim.Addr4()
		at := netip.AddrPortFrom
		allowed := func(port uint16) []byte {
			return enginetest.TCP(at(mine, port), at(theirs, 80), packet.SYN, 1, 0, "")
		}
		// The victim finds a path to the rogue by its probes, and answers.
		r.tun.Send(allowed(1000))
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
			r.tun.Send(test.b)
			// What is allowed and comes after it shows that it was looked at.
			marker := allowed(uint16(2000 + i))
			r.tun.Send(marker)
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
		for _, reason := range []string{"drop_no_rule", "drop_destination", "drop_no_flow", "drop_tcp_flags", "drop_ipopt", "drop_frag"} {
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
