package path_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/path"
	"github.com/warren-overlay/warren/netstack/simnet"
)

// TestSameLAN: two nodes on one LAN are direct within two round trips of the
// first use, by the LAN address, with or without a relay.
func TestSameLAN(t *testing.T) {
	for _, relay := range []bool{true, false} {
		l := newLab(t, 1, simnet.Path{Delay: 10 * time.Millisecond})
		lan, _ := l.net.Internet().NewLAN("lan", simnet.PortRestricted, addr4(1, 1, 1, 1), netip.Prefix{})
		a := l.join(0, lan.NewHost("a", addr4(192, 168, 1, 2)), 1)
		b := l.join(1, lan.NewHost("b", addr4(192, 168, 1, 3)), 1)
		l.setRelay(relay)
		l.run(time.Second)
		l.run(5*time.Millisecond, a)
		want := path.DirectTo(netip.AddrPortFrom(addr4(192, 168, 1, 3), b.port))
		if a.primary != want {
			l.fail("relay %v: primary %v, want %v", relay, a.primary, want)
		}
		if b.primary.Kind != path.Direct {
			l.fail("relay %v: the other way is %v", relay, b.primary)
		}
	}
}

// TestDeadPath: a direct path that dies under traffic, in one direction or both,
// gives way to the relay within 5 s, and comes back when it heals.
func TestDeadPath(t *testing.T) {
	for name, cut := range map[string][2]bool{"both": {true, true}, "out": {true, false}, "in": {false, true}} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, 7, simnet.Path{Delay: 20 * time.Millisecond})
			a := l.join(0, l.net.Internet().NewHost("a", addr4(1, 1, 1, 1)), 7)
			b := l.join(1, l.net.Internet().NewHost("b", addr4(2, 2, 2, 2)), 7)
			l.setRelay(true)
			l.run(3*time.Second, a, b)
			if a.primary.Kind != path.Direct || b.primary.Kind != path.Direct {
				l.fail("no direct path to begin with: %v %v", a.primary, b.primary)
			}
			l.net.Cut(a.host, b.host, cut[0])
			l.net.Cut(b.host, a.host, cut[1])
			l.run(5*time.Second, a, b)
			if a.primary.Kind != path.Relay || b.primary.Kind != path.Relay {
				l.fail("5 s after the cut: %v %v", a.primary, b.primary)
			}
			l.net.Cut(a.host, b.host, false)
			l.net.Cut(b.host, a.host, false)
			l.run(11*time.Second, a, b)
			if a.primary.Kind != path.Direct || b.primary.Kind != path.Direct {
				l.fail("after healing: %v %v", a.primary, b.primary)
			}
		})
	}
}

// TestRoaming: a node that changes its address under traffic has a direct path
// again within 3 s, on both sides.
func TestRoaming(t *testing.T) {
	l := newLab(t, 9, simnet.Path{Delay: 20 * time.Millisecond})
	lanA, _ := l.net.Internet().NewLAN("a", simnet.PortRestricted, addr4(1, 1, 1, 1), netip.Prefix{})
	lanC, _ := l.net.Internet().NewLAN("c", simnet.PortRestricted, addr4(3, 3, 3, 3), netip.Prefix{})
	lanB, _ := l.net.Internet().NewLAN("b", simnet.PortRestricted, addr4(2, 2, 2, 2), netip.Prefix{})
	a := l.join(0, lanA.NewHost("a", addr4(192, 168, 1, 2)), 9)
	b := l.join(1, lanB.NewHost("b", addr4(192, 168, 1, 3)), 9)
	l.setRelay(true)
	l.run(3*time.Second, a, b)
	lans := []*simnet.Segment{lanC, lanA}
	for i := range 10 {
		a.host.Move(lans[i%2], addr4(192, 168, 5, byte(10+i)))
		l.locals(a)
		a.nat.HandleNetworkChange(l.now)
		a.agent.HandleNetworkChange(l.now)
		start := l.now
		l.run(3*time.Second, a, b)
		ext := []netip.Addr{addr4(3, 3, 3, 3), addr4(1, 1, 1, 1)}[i%2]
		if a.primary.Kind != path.Direct || b.primary.Kind != path.Direct || b.primary.Addr.Addr() != ext {
			l.fail("move %d at %v: %v %v", i, start.Sub(epoch), a.primary, b.primary)
		}
		l.run(5*time.Second, a, b)
	}
}

// TestLossyPath: at 20 % loss each way a pair is direct most of the time, and
// never without a path for longer than it takes to say so.
func TestLossyPath(t *testing.T) {
	direct, total, losses := 0, 0, uint64(0)
	for seed := range uint64(5) {
		l := newLab(t, seed, simnet.Path{Delay: 20 * time.Millisecond, Jitter: 5 * time.Millisecond, Loss: 0.2, Duplicate: 0.05, Reorder: 0.1})
		a := l.join(0, l.net.Internet().NewHost("a", addr4(1, 1, 1, 1)), seed)
		b := l.join(1, l.net.Internet().NewHost("b", addr4(2, 2, 2, 2)), seed)
		l.setRelay(true)
		for range 300 {
			l.run(time.Second, a, b)
			total++
			if a.primary.Kind == path.Direct {
				direct++
			}
			if a.primary.Kind == path.None {
				l.fail("no path")
			}
		}
		s := l.net.Stats()
		if s.Lost < s.Sent/10 {
			t.Fatalf("the test loses nothing: %+v", s)
		}
		losses += a.agent.Snapshot().Stats.Losses + b.agent.Snapshot().Stats.Losses
	}
	if direct < total*9/10 {
		t.Errorf("direct in %d of %d seconds", direct, total)
	}
	// One check in 160 fails wrongly, and each node checks 100 times in 300 s:
	// about six for the ten nodes together.
	if losses > 20 {
		t.Errorf("left a working path %d times", losses)
	}
}

// TestIdlePeerIsSilent: an unused peer falls silent and goes back to the relay.
func TestIdlePeerIsSilent(t *testing.T) {
	l := newLab(t, 3, simnet.Path{Delay: 20 * time.Millisecond})
	a := l.join(0, l.net.Internet().NewHost("a", addr4(1, 1, 1, 1)), 3)
	b := l.join(1, l.net.Internet().NewHost("b", addr4(2, 2, 2, 2)), 3)
	l.setRelay(true)
	l.run(2*time.Second, a)
	if a.primary.Kind != path.Direct {
		l.fail("not direct: %v", a.primary)
	}
	l.run(time.Minute)
	if a.primary.Kind != path.Relay || b.primary.Kind != path.Relay {
		l.fail("idle: %v %v", a.primary, b.primary)
	}
	before := a.agent.Snapshot().Stats.PingsSent + b.agent.Snapshot().Stats.PingsSent
	l.run(10 * time.Minute)
	if after := a.agent.Snapshot().Stats.PingsSent + b.agent.Snapshot().Stats.PingsSent; after != before {
		l.fail("%d pings while idle", after-before)
	}
	if _, ok := a.agent.NextTimeout(); ok {
		l.fail("an idle agent wants to be woken")
	}
}

// TestIPv6: nodes behind NATs that have no direct way over IPv4 use IPv6, through
// the firewalls of both.
func TestIPv6(t *testing.T) {
	l := newLab(t, 4, simnet.Path{Delay: 20 * time.Millisecond})
	lanA, _ := l.net.Internet().NewLAN("a", simnet.Symmetric, addr4(1, 1, 1, 1), netip.MustParsePrefix("2001:db8:a::/64"))
	lanB, _ := l.net.Internet().NewLAN("b", simnet.Symmetric, addr4(2, 2, 2, 2), netip.MustParsePrefix("2001:db8:b::/64"))
	a := l.join(0, lanA.NewHost("a", addr4(192, 168, 1, 2), netip.MustParseAddr("2001:db8:a::2")), 4)
	b := l.join(1, lanB.NewHost("b", addr4(192, 168, 1, 3), netip.MustParseAddr("2001:db8:b::2")), 4)
	l.setRelay(true)
	l.run(5*time.Second, a)
	for _, n := range l.nodes {
		if !n.primary.Addr.Addr().Is6() {
			l.fail("%s: %v", n.name, n.primary)
		}
	}
	_ = b
}

// TestUDPBlocked: where UDP does not pass, the relay carries, and the probes stay
// few.
func TestUDPBlocked(t *testing.T) {
	l := newLab(t, 5, simnet.Path{Delay: 20 * time.Millisecond})
	lan, router := l.net.Internet().NewLAN("a", simnet.FullCone, addr4(1, 1, 1, 1), netip.Prefix{})
	router.BlockUDP(true)
	a := l.join(0, lan.NewHost("a", addr4(192, 168, 1, 2)), 5)
	b := l.join(1, l.net.Internet().NewHost("b", addr4(2, 2, 2, 2)), 5)
	l.setRelay(true)
	l.run(10*time.Minute, a, b)
	for _, n := range l.nodes {
		s := n.agent.Snapshot()
		if n.primary.Kind != path.Relay || n.changes != 1 {
			l.fail("%s: %v after %d changes", n.name, n.primary, n.changes)
		}
		// A burst, then one probe to each candidate each 10 s, and what the other
		// one's calls ask for each 30 s.
		if limit := uint64(400 * max(1, len(s.Candidates))); s.Stats.PingsSent > limit || s.Stats.CallsSent > 30 {
			l.fail("%s: %+v", n.name, s.Stats)
		}
	}
}

// TestRebinding: a NAT that forgets its mappings every 20 s costs no more than a
// moment on the relay each time (F08).
func TestRebinding(t *testing.T) {
	l := newLab(t, 6, simnet.Path{Delay: 20 * time.Millisecond})
	lan, router := l.net.Internet().NewLAN("a", simnet.PortRestricted, addr4(1, 1, 1, 1), netip.Prefix{})
	lanB, _ := l.net.Internet().NewLAN("b", simnet.PortRestricted, addr4(2, 2, 2, 2), netip.Prefix{})
	a := l.join(0, lan.NewHost("a", addr4(192, 168, 1, 2)), 6)
	b := l.join(1, lanB.NewHost("b", addr4(192, 168, 1, 3)), 6)
	l.setRelay(true)
	l.run(3*time.Second, a, b)
	for i := range 30 {
		router.Rebind()
		changes := [2]int{a.changes, b.changes}
		l.run(5*time.Second, a, b)
		if a.primary.Kind != path.Direct || b.primary.Kind != path.Direct {
			l.fail("rebinding %d: %v %v", i, a.primary, b.primary)
		}
		l.run(15*time.Second, a, b)
		// To the relay and back.
		if a.changes-changes[0] > 2 || b.changes-changes[1] > 2 {
			l.fail("rebinding %d: %d and %d changes", i, a.changes-changes[0], b.changes-changes[1])
		}
	}
}

// TestRestart: a node that restarts with nothing but its keys is direct again at
// once; its peer does not take its new pings for replays.
func TestRestart(t *testing.T) {
	l := newLab(t, 8, simnet.Path{Delay: 20 * time.Millisecond})
	a := l.join(0, l.net.Internet().NewHost("a", addr4(1, 1, 1, 1)), 8)
	b := l.join(1, l.net.Internet().NewHost("b", addr4(2, 2, 2, 2)), 8)
	l.setRelay(true)
	l.run(3*time.Second, a, b)
	for i := range uint64(5) {
		flight := l.nodes[1].flight
		b = l.join(1, b.host, 100+i)
		b.flight = flight
		b.agent.HandleRelayState(true, l.now)
		b.agent.SetRemoteCandidates([]netip.AddrPort{netip.AddrPortFrom(addr4(1, 1, 1, 1), a.port)}, l.now)
		l.run(200*time.Millisecond, a, b)
		if b.primary.Kind != path.Direct || a.primary.Kind != path.Direct {
			l.fail("restart %d: %v %v", i, a.primary, b.primary)
		}
	}
}

// TestAttackerOnPath: someone who sees everything and sends copies from his own
// address gains nothing: neither node ever sends packets there (F18, F19).
func TestAttackerOnPath(t *testing.T) {
	l := newLab(t, 10, simnet.Path{Delay: 20 * time.Millisecond})
	a := l.join(0, l.net.Internet().NewHost("a", addr4(1, 1, 1, 1)), 10)
	b := l.join(1, l.net.Internet().NewHost("b", addr4(2, 2, 2, 2)), 10)
	rogue := l.net.Internet().NewHost("rogue", addr4(6, 6, 6, 6))
	rogue.SetPath(simnet.Path{})
	l.setRelay(true)
	replayed := 0
	for i := range 600 {
		l.run(100*time.Millisecond, a, b)
		for _, n := range l.nodes {
			// Everything that was ever sent, again, in turn.
			k := i % len(n.flight)
			to := netip.AddrPortFrom(l.peer(n).host.Addrs()[0], l.peer(n).port)
			l.net.Send(rogue, 666, to, n.sealed(k), l.now)
			replayed++
		}
		for _, n := range l.nodes {
			if n.primary.Addr.Addr() == rogue.Addrs()[0] {
				l.fail("packets go to the attacker")
			}
		}
	}
	if a.primary.Kind != path.Direct || b.primary.Kind != path.Direct || a.changes > 2 || b.changes > 2 {
		l.fail("%v %v", a.primary, b.primary)
	}
	sa, sb := a.agent.Snapshot().Stats, b.agent.Snapshot().Stats
	if got := sa.PingsReplayed + sb.PingsReplayed + sa.PongsUnsolicited + sb.PongsUnsolicited; got < uint64(replayed)*9/10 {
		l.fail("%d of %d replays counted", got, replayed)
	}
}
