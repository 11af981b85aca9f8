package path_test

import (
	"bytes"
	"encoding/binary"
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
	// mtu is Config.MTU of nodes that join.
	mtu int
	// large says that use is of long packets.
	large bool
	// card, where not 0, is the MTU of the nodes' own interfaces: what is longer is
	// refused when it is sent.
	card int
	// deaf says that padded pings are not understood.
	deaf bool
	log  []string
}

type call struct {
	at time.Time
	to *node
	m  disco.Message // CallMe or Mapping
}

type node struct {
	name    string
	index   byte
	host    *simnet.Host
	port    uint16
	agent   *path.Agent
	nat     *nat.Discoverer
	primary path.Path
	both    bool // packets go over the relay, too
	changes int
	lost    int    // uses without a way while the relay was up
	flight  []sent // pings and pongs by content, in place of seals
	// mostSockets is how many further sockets were open at one time.
	mostSockets uint32
}

// furtherPorts is where the ports of further sockets begin.
const furtherPorts = 42000

// portOf returns the port of a further socket, the node's own for 0.
func (n *node) portOf(socket uint32) uint16 {
	if socket == 0 {
		return n.port
	}
	return furtherPorts + uint16(socket%20000)
}

// socketOf returns the socket that is open at a port.
func (n *node) socketOf(port uint16) (socket uint32, ok bool) {
	if port == n.port {
		return 0, true
	}
	kept, first, count := n.agent.Sockets()
	if kept != 0 && n.portOf(kept) == port {
		return kept, true
	}
	for socket := first; socket < first+count; socket++ {
		if n.portOf(socket) == port {
			return socket, true
		}
	}
	return 0, false
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
	a, err := path.New(path.Config{Rand: rng, MTU: l.mtu, Birthday: path.NewBirthdayBudget(l.now)}, l.now)
	if err != nil {
		l.t.Fatal(err)
	}
	// The ports differ: two hosts with one port behind one NAT that overloads
	// ports have one address, and no way to tell which of them it is.
	n := &node{name: h.Name(), host: h, index: byte(i), port: 41641 + uint16(i), agent: a, nat: nat.New(nat.Config{Rand: rng}, l.now)}
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
				n.agent.SetLocalCandidates(append(r.Endpoints, r.Predicted...), l.now)
				public := r.Public4
				if r.MappingVaries == nat.Unknown || len(r.Predicted) > 0 {
					public = netip.AddrPort{}
				}
				n.agent.SetLocalMapping(public, r.MappingVaries == nat.Yes, l.now)
				// The coordinator tells the peer.
				l.peer(n).agent.SetRemoteCandidates(r.Endpoints, l.now)
				again = true
			}
			for t, ok := n.agent.NextTransmit(); ok; t, ok = n.agent.NextTransmit() {
				l.transmit(n, t)
				again = true
			}
			for e, ok := n.agent.NextEvent(); ok; e, ok = n.agent.NextEvent() {
				n.both, again = e.Both, true
				if e.Primary == n.primary {
					continue
				}
				n.primary = e.Primary
				n.changes++
				if e.Why == path.ReasonLost {
					n.nat.HandleDistress(l.now)
				}
				l.log = append(l.log, fmt.Sprintf("%v %s: %v (%v)", l.now.Sub(epoch), n.name, e.Primary, e.Why))
				again = true
			}
		}
	}
	for _, n := range l.nodes {
		l.invariant(n)
	}
}

// invariant checks what must hold after every call.
func (l *lab) invariant(n *node) {
	s := n.agent.Snapshot()
	if s.Primary != n.primary {
		l.t.Fatalf("%s: primary %v, but events said %v", n.name, s.Primary, n.primary)
	}
	kept, _, count := n.agent.Sockets()
	if count > disco.MaxPorts || count > 0 && s.Birthday.Role != path.BirthdayOpener {
		l.t.Fatalf("%s: %d sockets, %v", n.name, count, s.Birthday)
	}
	if n.mostSockets = max(n.mostSockets, count); s.Primary.Socket != kept && s.Primary.Socket != 0 {
		l.t.Fatalf("%s: primary %v, but socket %d is kept", n.name, s.Primary, kept)
	}
	if len(s.Candidates) > 2*disco.MaxEndpoints+11 {
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
	switch m := t.Message.(type) {
	case disco.CallMe, disco.Mapping:
		if t.To.Kind != path.Relay {
			l.t.Fatalf("%T to %v", m, t.To)
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
	b := n.sealed(i)
	if m, ok := t.Message.(disco.Ping); ok {
		b = append(b, make([]byte, disco.PingSize+m.Padding-len(b))...)
	}
	if _, open := n.socketOf(n.portOf(t.To.Socket)); !open {
		return // it was closed since
	}
	headers := 20 + 8
	if t.To.Addr.Addr().Is6() {
		headers += 20
	}
	if m, ok := t.Message.(disco.Ping); ok && l.card > 0 && len(b)+headers > l.card {
		n.agent.HandleTooLong(t.To, m, l.now)
		return
	}
	l.net.Send(n.host, n.portOf(t.To.Socket), t.To.Addr, b, l.now)
}

// sealed is the i-th message of n as it travels. A real seal notices every flip
// of a bit; here the index is there three times.
func (n *node) sealed(i int) []byte {
	b := []byte{'d', n.index}
	for range 3 {
		b = binary.BigEndian.AppendUint32(b, uint32(i))
	}
	return b
}

// opened returns the message that a packet stands for, if it is of n's and
// whole.
func (n *node) opened(b []byte) (disco.Message, bool) {
	if len(b) < 14 || b[0] != 'd' || b[1] != n.index || len(bytes.Trim(b[14:], "\x00")) > 0 || !bytes.Equal(b[2:6], b[6:10]) || !bytes.Equal(b[2:6], b[10:14]) {
		return nil, false
	}
	return n.flight[binary.BigEndian.Uint32(b[2:])].m, true
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
		socket, open := n.socketOf(d.Packet.To.Port())
		if d.Host != n.host || !open {
			continue
		}
		if m, err := stun.Parse(d.Packet.Payload); err == nil {
			_ = n.nat.HandleResponse(d.Packet.From, m, l.now)
			return
		}
		if bytes.Equal(d.Packet.Payload, []byte{'x', l.peer(n).index}) {
			n.agent.HandleInbound(path.DirectFrom(socket, d.Packet.From), path.Data, l.now, l.now)
		}
		if m, ok := l.peer(n).opened(d.Packet.Payload); ok {
			switch m := m.(type) {
			case disco.Ping:
				if l.deaf && m.Padding > 0 {
					return
				}
				_ = n.agent.HandleSocketPing(socket, d.Packet.From, m, l.now)
			case disco.Pong:
				_ = n.agent.HandleSocketPong(socket, d.Packet.From, m, l.now)
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
				if n.agent.HandleOutboundUse(l.now); n.agent.Primary().Kind == path.None && l.relayUp {
					n.lost++
				}
				if l.large {
					n.agent.HandleLarge(l.now)
				}
				// What reaches the peer is use there as well.
				switch p := n.agent.Primary(); {
				case p.Kind == path.Direct:
					l.net.Send(n.host, n.portOf(p.Socket), p.Addr, []byte{'x', n.index}, l.now)
					if n.both {
						l.peer(n).agent.HandleInbound(path.Path{Kind: path.Relay}, path.Data, l.now, l.now)
					}
				case p.Kind == path.Relay && l.relayUp:
					l.peer(n).agent.HandleInbound(p, path.Data, l.now, l.now)
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
				switch m := c.m.(type) {
				case disco.CallMe:
					_ = c.to.agent.HandleCallMe(m, l.now)
				case disco.Mapping:
					_ = c.to.agent.HandleMapping(m, l.now)
				}
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
	for _, n := range l.nodes {
		l.t.Logf("%s: %+v", n.name, n.agent.Snapshot())
	}
	l.t.Fatalf(format, args...)
}

func addr4(a, b, c, d byte) netip.Addr { return netip.AddrFrom4([4]byte{a, b, c, d}) }
