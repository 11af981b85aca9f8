package sim

import (
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/simnet"
)

// TestRandomPortsAreGuessed: a node behind a NAT that draws a port at random for
// every destination, and one behind a NAT that lets in only who was sent to, alone
// or a carrier's and one at home, reach each other directly, whoever begins. A
// stream between them notices neither the guessing nor the change. Of 256 sockets
// one is left, for as long as its path is of use.
func TestRandomPortsAreGuessed(t *testing.T) {
	t.Parallel()
	for name, begins := range map[string]bool{"hard begins": true, "easy begins": false} {
		t.Run(name, func(t *testing.T) {
			run(t, 27, func(s *sim) { s.guessed(begins) })
		})
	}
}

// twoServers adds a second STUN server, which shows how ports differ.
func (s *sim) twoServers() {
	var second *simnet.Host
	s.world.Do(func(n *simnet.Network) { second = n.Internet().NewHost("stun", serverAddr.Next()) })
	s.startSTUN(second)
	s.stun = append(s.stun, netip.AddrPortFrom(serverAddr.Next(), 3478).String())
}

func (s *sim) guessed(hardBegins bool) {
	s.twoServers()
	hostA, _ := s.behind("a", simnet.Symmetric, 11)
	var hostB *simnet.Host
	var easy *simnet.Segment
	s.world.Do(func(n *simnet.Network) {
		carrier, _ := n.Internet().NewLAN("carrier", simnet.PortRestricted, netip.MustParseAddr("198.51.100.12"), netip.Prefix{})
		home, _ := carrier.NewLAN("home", simnet.PortRestricted, netip.MustParseAddr("100.64.0.2"), netip.Prefix{})
		hostB = home.NewHost("b", netip.MustParseAddr("192.168.1.2"))
		easy, _ = n.Internet().NewLAN("easy", simnet.PortRestricted, netip.MustParseAddr("198.51.100.13"), netip.Prefix{})
	})
	a, b := s.start("a", hostA, nil), s.start("b", hostB, nil)
	s.meet(a, b)
	from, to := b, a
	if hardBegins {
		from, to = a, b
	}
	st := s.startStream(from, to)
	begin := time.Now()
	s.direct(a, b, 10*time.Second)
	took := time.Since(begin)
	s.sleep(5 * time.Second)
	if gap := st.worst(); gap > time.Second {
		s.Errorf("the stream waited for %v", gap)
	}
	p, err := a.engine.Paths(b.Addr4())
	if err != nil {
		s.Fatal(err)
	}
	s.Logf("direct after %v: %v, %d openings, %d guesses", took, p.Paths.Primary, a.stats(b).OpeningsSent, b.stats(a).GuessesSent)
	if a.path(b).Kind != engine.PathDirect || p.Paths.Primary.Socket == 0 || s.world.OpenPorts(hostA) != 2 || s.world.OpenPorts(hostB) != 1 {
		s.Errorf("%v, with %d and %d ports open", p.Paths.Primary, s.world.OpenPorts(hostA), s.world.OpenPorts(hostB))
	}

	// It moves to where its own port is enough: the socket is closed.
	s.world.Do(func(*simnet.Network) { hostA.Move(easy, netip.MustParseAddr("192.168.7.7")) })
	a.engine.HandleNetworkChange()
	s.sleep(10 * time.Second)
	if gap := st.worst(); gap > 3*time.Second {
		s.Errorf("the stream waited for %v when the node moved", gap)
	}
	s.direct(a, b, 10*time.Second)
	s.sleep(3 * time.Minute)
	if p, err = a.engine.Paths(b.Addr4()); err != nil || p.Paths.Primary.Socket != 0 || s.world.OpenPorts(hostA) != 1 {
		s.Errorf("%v, with %d ports open: %v", p.Paths.Primary, s.world.OpenPorts(hostA), err)
	}
}

// TestRelayCarriesWhereGuessesAreInVain: a firewall that lets nothing but relays
// through costs one attempt, whose sockets are closed, and no packet.
func TestRelayCarriesWhereGuessesAreInVain(t *testing.T) {
	t.Parallel()
	run(t, 28, func(s *sim) {
		s.twoServers()
		a, b := s.behindNATs(simnet.Symmetric, simnet.PortRestricted)
		s.world.Do(func(n *simnet.Network) {
			n.Cut(a.host, b.host, true)
			n.Cut(b.host, a.host, true)
		})
		st := s.startStream(a, b)
		s.sleep(5 * time.Second)
		if n := s.world.OpenPorts(a.host); n != 1+256 {
			s.Errorf("%d ports are open during an attempt", n)
		}
		s.sleep(time.Minute)
		if n := s.world.OpenPorts(a.host); n != 1 {
			s.Errorf("%d ports are open after it", n)
		}
		if gap := st.worst(); gap > time.Second {
			s.Errorf("the stream waited for %v", gap)
		}
		if sa, sb := a.stats(b), b.stats(a); sa.BirthdaysFailed != 1 || sb.BirthdaysFailed != 1 || sb.GuessesSent != 2000 {
			s.Errorf("%+v\n%+v", sa, sb)
		}
	})
}
