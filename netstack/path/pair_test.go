package path_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/disco"
	"github.com/warren-overlay/warren/netstack/nat"
	"github.com/warren-overlay/warren/netstack/path"
	"github.com/warren-overlay/warren/netstack/simnet"
	"github.com/warren-overlay/warren/netstack/stun"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// lab drives two agents, their discoverers, and two STUN servers over a
// simulated internet, in a plain loop.
type lab struct {
	t       *testing.T
	net     *simnet.Network
	now     time.Time
	nodes   [2]*node
	servers []*simnet.Host
	calls   []call
	// relayDelay is one way over the relay.
	relayDelay time.Duration
	relayUp    bool
	log        []string
}

type call struct {
	at time.Time
	to *node
	m  disco.CallMe
}

type node struct {
	name    string
	host    *simnet.Host
	port    uint16
	agent   *path.Agent
	nat     *nat.Discoverer
	primary path.Path
	changes int
	flight  []sent // pings and pongs by content, in place of seals
}

// sent is what the simulated payload stands for: messages travel as an index,
// because what seals them is tested elsewhere.
type sent struct{ m disco.Message }

const stunPort = 3478

func newLab(t *testing.T, seed uint64, p simnet.Path) *lab {
	l := &lab{t: t, net: simnet.NewNetwork(seed), now: epoch, relayDelay: 20 * time.Millisecond}
	l.net.SetPath(p)
	for i := range 2 {
		l.servers = append(l.servers, l.net.Internet().NewHost("stun", netip.AddrFrom4([4]byte{9, 9, 9, byte(i + 1)})))
	}
	return l
}

func (l *lab) join(i int, h *simnet.Host, seed uint64) *node {
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(i)})
	a, err := path.New(path.Config{Rand: rng}, l.now)
	if err != nil {
		l.t.Fatal(err)
	}
	n := &node{name: h.Name(), host: h, port: 41641, agent: a, nat: nat.New(nat.Config{Rand: rng}, l.now)}
	l.nodes[i] = n
	l.locals(n)
	servers := make([]netip.AddrPort, 0, 2)
	for _, s := range l.servers {
		servers = append(servers, netip.AddrPortFrom(s.Addrs()[0], stunPort))
	}
	n.nat.SetServers(servers, l.now)
	return n
}

func (l *lab) locals(n *node) {
	var local []netip.AddrPort
	for _, a := range n.host.Addrs() {
		local = append(local, netip.AddrPortFrom(a, n.port))
	}
	n.nat.SetLocal(local, l.now)
}

func (l *lab) peer(n *node) *node {
	if n == l.nodes[0] {
		return l.nodes[1]
	}
	return l.nodes[0]
}

func (l *lab) setRelay(up bool) {
	l.relayUp = up
	for _, n := range l.nodes {
		n.agent.HandleRelayState(up, l.now)
	}
	l.drain()
}

// drain carries out everything that the machines ask for.
func (l *lab) drain() {
	for again := true; again; {
		again = false
		for _, n := range l.nodes {
			for t, ok := n.nat.NextTransmit(); ok; t, ok = n.nat.NextTransmit() {
				l.net.Send(n.host, n.port, t.To, t.Packet, l.now)
				again = true
			}
			if r, ok := n.nat.NextEvent(); ok {
				n.agent.SetLocalCandidates(r.Endpoints, l.now)
				// The coordinator tells the peer.
				l.peer(n).agent.SetRemoteCandidates(r.Endpoints, l.now)
				again = true
			}
			for t, ok := n.agent.NextTransmit(); ok; t, ok = n.agent.NextTransmit() {
				l.transmit(n, t)
				again = true
			}
			for e, ok := n.agent.NextEvent(); ok; e, ok = n.agent.NextEvent() {
				n.primary = e.Primary
				n.changes++
				l.log = append(l.log, fmt.Sprintf("%v %s: %v (%v)", l.now.Sub(epoch), n.name, e.Primary, e.Why))
				again = true
			}
			l.invariant(n)
		}
	}
}

// invariant checks what must hold after every call.
func (l *lab) invariant(n *node) {
	s := n.agent.Snapshot()
	if s.Primary != n.primary {
		l.t.Fatalf("%s: primary %v, but events said %v", n.name, s.Primary, n.primary)
	}
	if len(s.Candidates) > 2*disco.MaxEndpoints+9 {
		l.t.Fatalf("%s: %d candidates", n.name, len(s.Candidates))
	}
	if s.Primary.Kind == path.Direct && !slices.ContainsFunc(s.Candidates, func(c path.CandidateState) bool {
		return c.Addr == s.Primary.Addr
	}) {
		l.t.Fatalf("%s: primary %v is no candidate", n.name, s.Primary)
	}
	if s.Primary.Kind == path.Relay && !l.relayUp {
		l.t.Fatalf("%s: primary is a relay that is down", n.name)
	}
}

func (l *lab) transmit(n *node, t path.Transmit) {
	if m, ok := t.Message.(disco.CallMe); ok {
		if t.To.Kind != path.Relay {
			l.t.Fatalf("call to %v", t.To)
		}
		if l.relayUp {
			l.calls = append(l.calls, call{l.now.Add(l.relayDelay), l.peer(n), m})
		}
		return
	}
	if t.To.Kind != path.Direct {
		l.t.Fatalf("probe to %v", t.To)
	}
	n.flight = append(n.flight, sent{t.Message})
	i := len(n.flight) - 1
	l.net.Send(n.host, n.port, t.To.Addr, []byte{'d', byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}, l.now)
}

func (l *lab) receive(d simnet.Delivery) {
	for _, s := range l.servers {
		if d.Host == s {
			if reply, ok := stun.Respond(nil, d.Packet.Payload, d.Packet.From); ok {
				l.net.Send(s, stunPort, d.Packet.From, reply, l.now)
			}
			return
		}
	}
	for _, n := range l.nodes {
		if d.Host != n.host || d.Packet.To.Port() != n.port {
			continue
		}
		if m, err := stun.Parse(d.Packet.Payload); err == nil {
			_ = n.nat.HandleResponse(d.Packet.From, m, l.now)
			return
		}
		if b := d.Packet.Payload; len(b) == 5 && b[0] == 'd' {
			i := int(b[1])<<24 | int(b[2])<<16 | int(b[3])<<8 | int(b[4])
			switch m := l.peer(n).flight[i].m.(type) {
			case disco.Ping:
				_ = n.agent.HandlePing(d.Packet.From, m, l.now)
			case disco.Pong:
				_ = n.agent.HandlePong(d.Packet.From, m, l.now)
			}
		}
	}
}

// run moves time on by d, with both nodes in use where each says so.
func (l *lab) run(d time.Duration, use ...*node) {
	end := l.now.Add(d)
	nextUse := l.now
	for {
		l.drain()
		next := end
		consider := func(t time.Time, ok bool) {
			if ok && t.Before(next) {
				next = t
			}
		}
		consider(l.net.NextTimeout())
		for _, n := range l.nodes {
			consider(n.agent.NextTimeout())
			consider(n.nat.NextTimeout())
		}
		for _, c := range l.calls {
			consider(c.at, true)
		}
		consider(nextUse, len(use) > 0)
		if next.After(l.now) {
			l.now = next
		}
		if !nextUse.After(l.now) {
			for _, n := range use {
				n.agent.HandleOutboundUse(l.now)
				// What reaches the peer is use there as well.
				if n.primary.Kind == path.Relay && l.relayUp {
					l.peer(n).agent.HandleInbound(n.primary, path.Data, l.now)
				}
			}
			nextUse = l.now.Add(100 * time.Millisecond)
		}
		l.net.HandleTimeout(l.now)
		for d, ok := l.net.NextDelivery(); ok; d, ok = l.net.NextDelivery() {
			l.receive(d)
		}
		for i := 0; i < len(l.calls); i++ {
			if c := l.calls[i]; !c.at.After(l.now) {
				l.calls = slices.Delete(l.calls, i, i+1)
				i--
				_ = c.to.agent.HandleCallMe(c.m, l.now)
			}
		}
		for _, n := range l.nodes {
			if t, ok := n.agent.NextTimeout(); ok && !t.After(l.now) {
				n.agent.HandleTimeout(l.now)
			}
			if t, ok := n.nat.NextTimeout(); ok && !t.After(l.now) {
				n.nat.HandleTimeout(l.now)
			}
		}
		l.drain()
		if !l.now.Before(end) {
			return
		}
	}
}

func (l *lab) fail(format string, args ...any) {
	l.t.Helper()
	for _, line := range l.log {
		l.t.Log(line)
	}
	l.t.Fatalf(format, args...)
}

func addr4(a, b, c, d byte) netip.Addr { return netip.AddrFrom4([4]byte{a, b, c, d}) }

func everyNAT() []simnet.NAT {
	behaviors := []simnet.Behavior{simnet.EndpointIndependent, simnet.AddressDependent, simnet.AddressAndPortDependent}
	var all []simnet.NAT
	for _, m := range behaviors {
		for _, f := range behaviors {
			all = append(all, simnet.NAT{Mapping: m, Filtering: f})
		}
	}
	return all
}

// TestEveryPairOfNATs: where the model says that a direct path is possible, the
// pair has one within 10 s, both ways, and keeps it; elsewhere the relay stays.
func TestEveryPairOfNATs(t *testing.T) {
	for _, na := range everyNAT() {
		for _, nb := range everyNAT() {
			t.Run(na.String()+" "+nb.String(), func(t *testing.T) {
				for seed := range uint64(3) {
					l := newLab(t, seed, simnet.Path{Delay: 15 * time.Millisecond, Jitter: time.Millisecond})
					lanA, _ := l.net.Internet().NewLAN("a", na, addr4(1, 1, 1, 1), netip.Prefix{})
					lanB, _ := l.net.Internet().NewLAN("b", nb, addr4(2, 2, 2, 2), netip.Prefix{})
					a := l.join(0, lanA.NewHost("a", addr4(192, 168, 1, 2)), seed)
					b := l.join(1, lanB.NewHost("b", addr4(192, 168, 1, 3)), seed)
					l.setRelay(true)
					l.run(time.Second)
					if a.primary.Kind != path.Relay || a.agent.Snapshot().Stats.PingsSent != 0 {
						l.fail("seed %d: idle peer: primary %v, %d pings", seed, a.primary, a.agent.Snapshot().Stats.PingsSent)
					}
					l.run(10*time.Second, a)
					want := path.Relay
					if simnet.DirectPossible(na, nb) {
						want = path.Direct
					}
					if a.primary.Kind != want || b.primary.Kind != want {
						l.fail("seed %d: primaries %v and %v, want %v", seed, a.primary, b.primary, want)
					}
					changes := a.changes + b.changes
					l.run(2*time.Minute, a, b)
					if a.changes+b.changes != changes {
						l.fail("seed %d: primary went on changing", seed)
					}
				}
			})
		}
	}
}

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
	direct, total := 0, 0
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
	}
	if direct < total*9/10 {
		t.Fatalf("direct in %d of %d seconds", direct, total)
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
