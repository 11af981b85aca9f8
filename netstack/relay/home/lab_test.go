package home

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/disco"
)

var start = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

// tick is how exactly the lab keeps time.
const tick = 10 * time.Millisecond

// silence is after how long the connection to a relay that does not answer ends
// (relay.Session).
const silence = 3 * time.Second

// link is the way between a node and a relay.
type link struct {
	rtt, jitter time.Duration
	cut         bool // nothing passes, and nobody is told
}

// site is a relay of the lab.
type site struct {
	name  string
	alive bool // else connections end, and attempts are refused
	drops bool // it takes packets and forwards none
	leave bool // it says that it is about to stop
	stun  bool
	mute  bool // its STUN server does not answer
	// refuses and hangs are what becomes of connections to it, while its STUN server
	// answers.
	refuses, hangs bool
	// takes, where not nil, says what is forwarded of the tunnel's packets.
	takes func(m message) bool
	links map[*node]*link
}

// loses reports whether the relay drops a packet that it could carry.
func (s *site) loses(m message) bool {
	return s.drops || s.takes != nil && m.tunnel() && !s.takes(m)
}

// connection is what the shell keeps of one relay.
type connection struct {
	ready bool
	due   time.Time // when it is admitted, or the attempt fails
	mute  time.Time // since when the relay is not heard, zero for not
	rtt   time.Time // when it measures next
}

// attempt is when a connection to a relay was begun.
type attempt struct {
	to *site
	at time.Time
}

// node is a Machine and its shell.
type node struct {
	lab   *lab
	m     *Machine
	key   ident.NodeKey
	conns map[*site]*connection
	homes int
	// attempts are the connections that it began.
	attempts []attempt
	// got is when a packet of data last came from a peer.
	got map[ident.NodeKey]time.Time
	via map[ident.NodeKey]string

	older bool // it does not know questions inside the tunnel
	mute  bool // nothing answers inside its tunnel, though it says so
	off   bool // it does not run
	// asked counts its questions inside the tunnel, renewed the sessions it wanted.
	asked, renewed int
}

// askInTunnel and answerInTunnel are packets of the tunnel's.
type (
	askInTunnel    uint64
	answerInTunnel uint64
)

// message is a packet on its way.
type message struct {
	at   time.Time
	from *node
	to   *node
	via  *site
	what any // nil for data
}

// tunnel reports whether a relay takes the packet for the tunnel's.
func (m message) tunnel() bool {
	switch m.what.(type) {
	case disco.Ping, disco.Pong:
		return false
	}
	return true
}

// lab is nodes and relays in simulated time.
type lab struct {
	testing.TB
	r        *rand.Rand
	now      time.Time
	sites    []*site
	nodes    []*node
	messages []message
	events   []func()
}

type source struct{ r *rand.Rand }

func (s source) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(s.r.Uint32())
	}
	return len(b), nil
}

// newPair returns a lab of two nodes that know each other, and each other's homes.
func newPair(t testing.TB, seed uint64, relays int) (l *lab, a, b *node) {
	l = newLab(t, seed, relays, 2)
	l.configure()
	l.pass(10*time.Second, nil)
	l.tellHomes()
	return l, l.nodes[0], l.nodes[1]
}

func newLab(t testing.TB, seed uint64, relays, nodes int) *lab {
	l := &lab{TB: t, r: rand.New(rand.NewPCG(seed, 1)), now: start}
	for i := range relays {
		l.sites = append(l.sites, &site{name: fmt.Sprintf("r%d", i), alive: true, stun: true, links: make(map[*node]*link)})
	}
	for i := range nodes {
		m, err := New(Config{Rand: source{l.r}}, l.now)
		if err != nil {
			t.Fatal(err)
		}
		n := &node{
			lab: l, m: m, key: ident.NodeKey{byte(i + 1)}, conns: make(map[*site]*connection),
			got: make(map[ident.NodeKey]time.Time), via: make(map[ident.NodeKey]string),
		}
		for _, s := range l.sites {
			s.links[n] = &link{rtt: time.Duration(5+l.r.IntN(100)) * time.Millisecond}
		}
		l.nodes = append(l.nodes, n)
	}
	return l
}

// configure tells all nodes of the relays and of each other, and of the homes
// that they know of now.
func (l *lab) configure() {
	var relays []Relay
	for _, s := range l.sites {
		relays = append(relays, Relay{Name: s.name, STUN: s.stun})
	}
	for _, n := range l.nodes {
		n.m.SetRelays(relays, l.now)
		n.drain()
	}
	l.tellHomes()
}

// tellHomes is what a coordinator does.
func (l *lab) tellHomes() {
	for _, n := range l.nodes {
		var peers []Peer
		for _, other := range l.nodes {
			if other != n {
				peers = append(peers, Peer{Key: other.key, Home: other.m.Home()})
			}
		}
		n.m.SetPeers(peers, l.now)
		n.drain()
	}
}

func (l *lab) site(name string) *site {
	for _, s := range l.sites {
		if s.name == name {
			return s
		}
	}
	l.Fatalf("there is no relay %q", name)
	return nil
}

// heard reports whether packets pass between n and s.
func (s *site) heard(n *node) bool { return s.alive && !s.links[n].cut }

func (l *link) sample(r *rand.Rand) time.Duration {
	if l.jitter == 0 {
		return l.rtt
	}
	return l.rtt + time.Duration(r.Int64N(int64(l.jitter)))
}

// drain carries out what the Machine wants.
func (n *node) drain() {
	l := n.lab
	for o, ok := n.m.NextOutput(); ok; o, ok = n.m.NextOutput() {
		switch o.Kind {
		case Connect:
			s := l.site(o.Relay)
			if n.conns[s] != nil {
				l.Fatalf("%v connects to %s twice", n.key, o.Relay)
			}
			c := &connection{due: l.now.Add(3 * s.links[n].rtt)}
			if s.links[n].cut || s.hangs {
				c.due = l.now.Add(10 * time.Second)
			}
			n.conns[s] = c
			n.attempts = append(n.attempts, attempt{s, l.now})
		case Disconnect:
			delete(n.conns, l.site(o.Relay))
		case Probe:
			s := l.site(o.Relay)
			if s.heard(n) && !s.mute {
				rtt := s.links[n].sample(l.r)
				l.after(rtt, func() { n.m.HandleProbe(s.name, rtt, l.now); n.drain() })
			}
		case Check:
			to := l.node(o.Peer)
			n.send(to, l.site(o.Relay), n.m.Ping(o))
		case HomeChanged:
			n.homes++
			if o.Relay != n.m.Home() {
				l.Fatalf("the home is %q, told as %q", n.m.Home(), o.Relay)
			}
		case RouteChanged:
			n.via[o.Peer] = o.Relay
		case OnlineChanged:
		case AskInTunnel:
			n.asked++
			n.send(l.node(o.Peer), l.site(o.Relay), askInTunnel(o.Nonce))
		case RouteBarred:
			if !n.m.peers[o.Peer].barred(n.m.find(o.Relay), l.now) {
				l.Fatalf("%s is told to be barred, and is not", o.Relay)
			}
		case Handshake:
			n.renewed++
		case Measure:
			n.conns[l.site(o.Relay)].rtt = l.now
		default:
			l.Fatalf("output %+v", o)
		}
	}
}

func (l *lab) after(d time.Duration, f func()) {
	at := l.now.Add(d)
	l.events = append(l.events, func() {
		if l.now.Before(at) {
			l.events = append(l.events, nil)
			l.after(at.Sub(l.now), f)
			return
		}
		f()
	})
}

func (l *lab) node(key ident.NodeKey) *node { return l.nodes[key[0]-1] }

// send sends a packet over a relay, which the sender may have lost.
func (n *node) send(to *node, via *site, what any) {
	if c := n.conns[via]; c != nil && c.ready && via.heard(n) {
		n.lab.messages = append(n.lab.messages, message{n.lab.now.Add(via.links[n].rtt/2 + via.links[to].rtt/2), n, to, via, what})
	}
}

// data sends a packet of data by the route that the Machine says.
func (n *node) data(to *node) {
	n.m.HandleUse(to.key, n.lab.now)
	n.drain()
	if via := n.via[to.key]; via != "" {
		n.send(to, n.lab.site(via), nil)
	}
}

func (l *lab) deliver(m message) {
	c := m.to.conns[m.via]
	switch {
	case !m.via.alive || m.via.loses(m) || m.to.off:
	case c == nil || !c.ready:
		if m.via.heard(m.from) {
			m.from.m.HandlePeerGone(m.via.name, m.to.key, l.now)
			m.from.drain()
		}
	case m.via.links[m.to].cut:
	default:
		switch what := m.what.(type) {
		case disco.Ping:
			if m.to.m.HandlePing(m.via.name, m.from.key, l.now) {
				m.to.send(m.from, m.via, disco.Pong{TxID: what.TxID, InTunnel: !m.to.older})
			}
		case disco.Pong:
			// One that comes late is refused, and no more.
			_ = m.to.m.HandlePong(m.via.name, m.from.key, what, l.now)
		case askInTunnel:
			if !m.to.mute && !m.to.older {
				m.to.m.HandleTunnelAsk(m.via.name, m.from.key, l.now)
				m.to.send(m.from, m.via, answerInTunnel(what))
			}
		case answerInTunnel:
			// As late as above.
			_ = m.to.m.HandleTunnelAnswer(m.from.key, uint64(what), l.now)
		default:
			m.to.m.HandleInbound(m.via.name, m.from.key, l.now)
			m.to.m.HandleUse(m.from.key, l.now)
			m.to.got[m.from.key] = l.now
		}
		m.to.drain()
	}
}

// step lets one tick pass.
func (l *lab) step() {
	l.now = l.now.Add(tick)
	events := l.events
	l.events = nil
	for _, f := range events {
		if f != nil {
			f()
		}
	}
	messages := l.messages
	l.messages = nil
	for _, m := range messages {
		if m.at.After(l.now) {
			l.messages = append(l.messages, m)
		} else {
			l.deliver(m)
		}
	}
	for _, n := range l.nodes {
		for _, s := range l.sites {
			n.shell(s)
		}
		if at, ok := n.m.NextTimeout(); ok && !at.After(l.now) {
			n.m.HandleTimeout(l.now)
			n.drain()
			if at, ok := n.m.NextTimeout(); ok && !at.After(l.now) {
				l.Fatalf("%v wants to be called again at once", n.key[0])
			}
		}
		homes, connected := 0, 0
		for _, r := range n.m.Snapshot().Relays {
			if r.Home {
				homes++
			}
			if r.Connected {
				connected++
			}
		}
		if homes > 1 || connected > maxConnections {
			l.Fatalf("%d homes, %d connections", homes, connected)
		}
	}
}

// shell is what becomes of one connection in one tick.
func (n *node) shell(s *site) {
	l := n.lab
	c := n.conns[s]
	end := func() {
		delete(n.conns, s)
		n.m.HandleClosed(s.name, l.now)
		n.drain()
	}
	switch {
	case c == nil:
	case !c.ready && !s.links[n].cut && (!s.alive || s.refuses):
		end()
	case !c.ready && !l.now.Before(c.due):
		if !s.heard(n) || s.hangs {
			end()
			return
		}
		c.ready, c.rtt = true, l.now.Add(s.links[n].sample(l.r))
		n.m.HandleReady(s.name, l.now)
		n.drain()
	case c.ready && !s.alive:
		end()
	case c.ready && s.links[n].cut:
		if c.mute.IsZero() {
			c.mute = l.now
		}
		if l.now.Sub(c.mute) >= silence {
			end()
		}
	case c.ready:
		c.mute = time.Time{}
		if s.leave {
			n.m.HandleLeaving(s.name, l.now)
			n.drain()
		}
		if !l.now.Before(c.rtt) {
			c.rtt = l.now.Add(25 * time.Second)
			n.m.HandleRTT(s.name, s.links[n].sample(l.r), l.now)
			n.drain()
		}
	}
}

// pass lets time pass, with what happens in each tick.
func (l *lab) pass(d time.Duration, each func()) {
	for end := l.now.Add(d); l.now.Before(end); {
		if each != nil {
			each()
		}
		l.step()
	}
}

// talk has both nodes send data ten times a second, and returns the longest time
// that one of them heard nothing.
func (l *lab) talk(a, b *node, d time.Duration) (gap time.Duration) {
	a.got[b.key], b.got[a.key] = l.now, l.now
	n := 0
	l.pass(d, func() {
		if n++; n%10 == 0 {
			a.data(b)
			b.data(a)
		}
		gap = max(gap, l.now.Sub(a.got[b.key]), l.now.Sub(b.got[a.key]))
	})
	return gap
}

// untilFound has a send to b, which has nothing to send itself, until something
// arrives, for a minute at most, and returns how long that took.
func (l *lab) untilFound(a, b *node) time.Duration {
	began := l.now
	for n := 1; b.got[a.key].IsZero() && l.now.Sub(began) < time.Minute; n++ {
		if n%10 == 0 {
			a.data(b)
		}
		l.step()
	}
	return l.now.Sub(began)
}
