package relay

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

var relayAddr = netip.MustParseAddrPort("192.0.2.1:3478")

func newDatagramRig(t testing.TB, rate int64) *rig {
	t.Helper()
	r := newRig(t, rate)
	s, err := NewServer(ServerConfig{Name: "relay-1", Admitter: r.admitter, Rand: rand.NewChaCha8([32]byte{98}), Rate: rate, Datagrams: true}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	r.server = s
	return r
}

// datagram carries a datagram to the server and what it sends for it to whoever
// has the address.
func (r *rig) datagram(from netip.AddrPort, b []byte) {
	r.t.Helper()
	if r.lose != nil && r.lose(from, relayAddr) || r.narrow != 0 && len(b) > r.narrow {
		return
	}
	sent := len(b)
	to, out := r.server.HandleDatagram(from, bytes.Clone(b), r.now)
	if !to.IsValid() {
		return
	}
	if len(out) > sent {
		r.t.Fatalf("a datagram of %d bytes was worth one of %d", sent, len(out))
	}
	if r.lose != nil && r.lose(relayAddr, to) {
		return
	}
	for id := ConnID(1); id <= r.lastConn; id++ {
		c := r.clients[id]
		if c.session == nil || c.gone || c.addr != to {
			continue
		}
		if !IsDatagramPacket(out) {
			c.session.HandleDatagram(out, r.now)
			continue
		}
		link := c.session.Link()
		if link == nil {
			continue
		}
		if key, payload, ok := link.Open(out); ok {
			c.got = append(c.got, key.Short()+" "+string(payload))
		}
	}
}

// joinUDP is join for a client that may send datagrams from an address.
func (r *rig) joinUDP(seed byte, token, addr string) *client {
	r.t.Helper()
	key := nodeKey(seed)
	r.lastConn++
	c := &client{id: r.lastConn, key: key, addr: netip.MustParseAddrPort(addr)}
	s, err := NewSession(SessionConfig{Key: key, Relay: "relay-1", Token: []byte(token), Datagrams: relayAddr}, r.now)
	if err != nil {
		r.t.Fatal(err)
	}
	c.session = s
	r.clients[c.id] = c
	if err := r.server.HandleConnect(c.id, c.addr.Addr(), nil, r.now); err != nil {
		r.t.Fatal(err)
	}
	r.pump()
	r.elapse(0)
	return c
}

// elapse lets time pass and the sessions and the server do what is due.
func (r *rig) elapse(d time.Duration) {
	r.now = r.now.Add(d)
	r.server.HandleTimeout(r.now)
	for id := ConnID(1); id <= r.lastConn; id++ {
		if c := r.clients[id]; c.session != nil && !c.gone {
			c.session.HandleTimeout(r.now)
		}
	}
	r.pump()
}

// pass lets time pass in steps in which everything that is due happens.
func (r *rig) pass(d time.Duration) {
	for step := 100 * time.Millisecond; d > 0; d -= step {
		r.elapse(min(step, d))
	}
}

// wire sends a packet as a client's data path does: as a datagram where it can,
// else by the stream.
func (r *rig) wire(from *client, to ident.NodeKey, payload string) (datagram bool) {
	r.t.Helper()
	defer r.pump()
	if link := from.session.Link(); link != nil && len(payload) <= link.MaxPayload() {
		if header, ok := link.Header(to); ok {
			from.session.HandleUsed(r.now)
			r.datagram(from.addr, append(header[:], payload...))
			return true
		}
		from.session.HandleWanted(to, r.now)
	}
	m, err := AppendSendPacket(nil, to, []byte(payload))
	if err != nil {
		r.t.Fatal(err)
	}
	_ = r.server.HandleMessage(from.id, m, r.now)
	return false
}

// streamed returns what came to a client by the stream.
func (c *client) streamed() (out []string) {
	for _, e := range c.events {
		if e.Kind == EventPacket {
			out = append(out, e.Peer.Short()+" "+string(e.Packet))
		}
	}
	return out
}

func TestDatagrams(t *testing.T) {
	r := newDatagramRig(t, 0)
	a, b := r.joinUDP(1, "net1", "198.51.100.1:1000"), r.joinUDP(2, "net1", "[2001:db8::2]:2000")
	ws := r.join(3, "net1")
	other := r.joinUDP(4, "net2", "198.51.100.4:4000")
	for _, c := range []*client{a, b, other} {
		if !c.session.Snapshot().Datagrams.Bound {
			t.Fatal("no datagrams")
		}
	}
	if r.wire(a, b.key.Public(), "one") {
		t.Error("a datagram to a peer without a number")
	}
	if !slices.Equal(b.streamed(), []string{a.key.Public().Short() + " one"}) {
		t.Errorf("by the stream: %q", b.streamed())
	}
	if !r.wire(a, b.key.Public(), "two") || !r.wire(b, a.key.Public(), "three") {
		t.Error("no datagram although the numbers are known")
	}
	if want := []string{a.key.Public().Short() + " two"}; !slices.Equal(b.got, want) {
		t.Errorf("b got %q, want %q", b.got, want)
	}
	if want := []string{b.key.Public().Short() + " three"}; !slices.Equal(a.got, want) {
		t.Errorf("a got %q, want %q", a.got, want)
	}

	// One by datagrams, the other by the stream.
	r.wire(a, ws.key.Public(), "four")
	if !r.wire(a, ws.key.Public(), "five") {
		t.Error("the way to the relay does not depend on the peer's")
	}
	if want := []string{a.key.Public().Short() + " four", a.key.Public().Short() + " five"}; !slices.Equal(ws.streamed(), want) {
		t.Errorf("without datagrams: %q", ws.streamed())
	}
	r.wire(ws, a.key.Public(), "six")
	if want := []string{ws.key.Public().Short() + " six"}; !slices.Equal(a.streamed(), want) {
		t.Errorf("to one with datagrams: %q", a.streamed())
	}

	// What does not fit goes by the stream, at both hops.
	big := string(make([]byte, MaxDatagramPayload(a.addr.Addr())))
	if r.wire(b, a.key.Public(), big+"x") {
		t.Error("a packet that would be fragmented")
	}
	before := len(b.streamed())
	if !r.wire(a, b.key.Public(), big) || len(b.streamed()) != before+1 {
		t.Error("a packet for IPv6 that is too long for a datagram there did not go by the stream")
	}

	// Nothing leaves the network, whatever number is used.
	number := b.session.datagrams.number
	header, _ := other.session.Link().Header(b.key.Public())
	putHeader(header[:], datagramData, other.session.datagrams.tag, number)
	got, drops := len(b.got), r.server.Snapshot().Stats.DroppedNoPeer
	r.datagram(other.addr, append(header[:], "from outside"...))
	if len(b.got) != got || r.server.Snapshot().Stats.DroppedNoPeer != drops+1 {
		t.Error("a packet from another network")
	}
	r.wire(other, a.key.Public(), "who are you")
	if n := other.session.Snapshot().Datagrams.Peers; n != 0 {
		t.Errorf("%d numbers of another network", n)
	}
}

// TestDatagramsSilent: whoever hears no datagrams goes back to the stream within
// 4 s, has the relay do the same, and comes back when they pass again.
func TestDatagramsSilent(t *testing.T) {
	r := newDatagramRig(t, 0)
	a, b := r.joinUDP(1, "net1", "198.51.100.1:1000"), r.joinUDP(2, "net1", "198.51.100.2:2000")
	r.wire(a, b.key.Public(), "one")
	for name, lose := range map[string]func(from, to netip.AddrPort) bool{
		"to a":   func(_, to netip.AddrPort) bool { return to == a.addr },
		"from a": func(from, _ netip.AddrPort) bool { return from == a.addr },
	} {
		if !r.wire(a, b.key.Public(), "two") {
			t.Fatalf("%s: no datagram at the beginning", name)
		}
		r.lose = lose
		began := r.now
		for a.session.Snapshot().Datagrams.Bound {
			r.wire(a, b.key.Public(), "x")
			if r.elapse(100 * time.Millisecond); r.now.Sub(began) > 4*time.Second {
				t.Fatalf("%s: still sending datagrams", name)
			}
		}
		got := len(a.streamed())
		r.wire(b, a.key.Public(), "after")
		if len(a.streamed()) != got+1 {
			t.Errorf("%s: the relay still sends datagrams", name)
		}
		r.lose = nil
		r.pass(2 * maxBindRetry)
		if !a.session.Snapshot().Datagrams.Bound {
			t.Errorf("%s: no datagrams after they pass again", name)
		}
		r.wire(a, b.key.Public(), "resolve")
	}
}

// TestDatagramsSilentSoon: whoever sends all the time goes back to the stream within
// 3 s of the last answer, also where the session is told only now and then that
// there are packets: at any moment before an answer, after which it is told late.
func TestDatagramsSilentSoon(t *testing.T) {
	const limit = busyBind + bindAttempts*bindWait
	for every := 500 * time.Millisecond; every <= time.Second; every += 10 * time.Millisecond {
		r := newDatagramRig(t, 0)
		a := r.joinUDP(1, "net1", "198.51.100.1:1000")
		deaf, told := false, r.now
		r.lose = func(_, to netip.AddrPort) bool { return deaf && to == a.addr }
		step := func() {
			if !r.now.Before(told) {
				a.session.HandleUsed(r.now)
				told = told.Add(every)
			}
			r.elapse(10 * time.Millisecond)
		}
		for began := r.now; r.now.Sub(began) < 10*time.Second; {
			step()
		}
		answered := a.session.datagrams.answered
		for began := r.now; a.session.datagrams.answered == answered; {
			if step(); r.now.Sub(began) > limit {
				t.Fatalf("told every %v: no answer in %v", every, limit)
			}
		}
		deaf = true
		began := r.now
		for a.session.Snapshot().Datagrams.Bound {
			if step(); r.now.Sub(began) > limit+50*time.Millisecond {
				t.Fatalf("told every %v: still sending datagrams %v after the last answer", every, r.now.Sub(began))
			}
		}
	}
}

// TestDatagramsLongWay: answers that take longer than a request is repeated are
// answers.
func TestDatagramsLongWay(t *testing.T) {
	r := newDatagramRig(t, 0)
	r.lose = func(netip.AddrPort, netip.AddrPort) bool { return true }
	a := r.joinUDP(1, "net1", "198.51.100.1:1000")
	r.lose = nil
	type message struct {
		b  []byte
		at time.Time
	}
	var out, back []message
	const oneWay = 350 * time.Millisecond
	for began := r.now; !a.session.Snapshot().Datagrams.Bound; {
		if r.now = r.now.Add(10 * time.Millisecond); r.now.Sub(began) > 5*time.Second {
			t.Fatal("not bound")
		}
		a.session.HandleTimeout(r.now)
		for b, ok := a.session.NextDatagram(); ok; b, ok = a.session.NextDatagram() {
			out = append(out, message{b, r.now.Add(oneWay)})
		}
		for len(out) > 0 && !r.now.Before(out[0].at) {
			if to, b := r.server.HandleDatagram(a.addr, out[0].b, r.now); to.IsValid() {
				back = append(back, message{b, r.now.Add(oneWay)})
			}
			out = out[1:]
		}
		for len(back) > 0 && !r.now.Before(back[0].at) {
			a.session.HandleDatagram(back[0].b, r.now)
			back = back[1:]
		}
	}
}

// TestDatagramsMove: a NAT gives a client another address. The relay says that
// it does not know it, and the client binds the new one within a second of use.
func TestDatagramsMove(t *testing.T) {
	r := newDatagramRig(t, 0)
	a, b := r.joinUDP(1, "net1", "198.51.100.1:1000"), r.joinUDP(2, "net1", "198.51.100.2:2000")
	r.wire(a, b.key.Public(), "one")
	r.pass(5 * time.Second)
	a.addr = netip.MustParseAddrPort("198.51.100.1:1001")
	r.wire(a, b.key.Public(), "lost")
	if len(b.got) != 0 {
		t.Error("a packet of an address that proved nothing")
	}
	if r.server.Snapshot().Stats.DatagramsUnbound != 1 || a.session.Snapshot().Stats.Stale != 1 {
		t.Errorf("%+v", r.server.Snapshot().Stats)
	}
	r.elapse(0)
	if !r.wire(a, b.key.Public(), "two") || len(b.got) != 1 {
		t.Errorf("b got %q after the move", b.got)
	}
	r.wire(b, a.key.Public(), "three")
	r.wire(b, a.key.Public(), "four")
	if len(a.got) != 2 {
		t.Errorf("a got %q after the move", a.got)
	}
}

// TestDatagramAttacks: what an outsider and a member can try with datagrams
// (S11, F16). In every case the victim's packets go on to the victim.
func TestDatagramAttacks(t *testing.T) {
	attacker := netip.MustParseAddrPort("203.0.113.66:666")
	for name, attack := range map[string]func(r *rig, a, mallory *client){
		"a member binds its address to another's number": func(r *rig, a, mallory *client) {
			d, m := &a.session.datagrams, &mallory.session.datagrams
			r.datagram(attacker, writeBinding(nil, datagramOpen, d.tag, d.number, 99, make([]byte, cookieSize), m.key))
		},
		"a cookie of another address": func(r *rig, a, _ *client) {
			d := &a.session.datagrams
			_, cookie := r.server.HandleDatagram(a.addr, writeBinding(nil, datagramOpen, d.tag, d.number, 99, make([]byte, cookieSize), d.key), r.now)
			r.datagram(attacker, writeBinding(nil, datagramBind, d.tag, d.number, 99, readCookie(cookie), d.key))
		},
		"no cookie": func(r *rig, a, _ *client) {
			d := &a.session.datagrams
			r.datagram(attacker, writeBinding(nil, datagramBind, d.tag, d.number, 99, make([]byte, cookieSize), d.key))
		},
		"an old cookie": func(r *rig, a, _ *client) {
			d := &a.session.datagrams
			_, cookie := r.server.HandleDatagram(attacker, writeBinding(nil, datagramOpen, d.tag, d.number, 99, make([]byte, cookieSize), d.key), r.now)
			r.now = r.now.Add(3 * cookieLife)
			r.datagram(attacker, writeBinding(nil, datagramBind, d.tag, d.number, 99, readCookie(cookie), d.key))
		},
		"a replayed request": func(r *rig, a, _ *client) {
			d := &a.session.datagrams
			r.datagram(attacker, writeBinding(nil, datagramOpen, d.tag, d.number, d.sequence, make([]byte, cookieSize), d.key))
		},
		"random bytes": func(r *rig, _, _ *client) {
			rng := rand.New(rand.NewPCG(1, 2))
			for range 10_000 {
				b := make([]byte, 1+rng.IntN(100))
				for i := range b {
					b[i] = byte(rng.Uint32())
				}
				b[0] = datagramData + b[0]%8
				if len(b) < DatagramHeader || b[0] != datagramData {
					if to, _ := r.server.HandleDatagram(attacker, bytes.Clone(b), r.now); to.IsValid() {
						r.t.Fatal("an answer to whom nobody knows")
					}
				}
				r.datagram(attacker, b)
			}
		},
		"a packet from a forged source without the tag": func(r *rig, a, mallory *client) {
			header, _ := mallory.session.Link().Header(a.key.Public())
			r.datagram(a.addr, append(header[:], "forged"...))
		},
		"forged notices": func(r *rig, a, _ *client) {
			d := &a.session.datagrams
			var b [DatagramHeader]byte
			putHeader(b[:], datagramStale, d.tag, 0)
			for range 100 {
				a.session.HandleDatagram(b[:], r.now)
			}
			a.session.HandleDatagram(writeBinding(nil, datagramCookie, d.tag, d.number, d.sequence, make([]byte, cookieSize), make([]byte, 32)), r.now)
			a.session.HandleDatagram(writeBinding(nil, datagramBound, d.tag, d.number, d.sequence, nil, make([]byte, 32)), r.now)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newDatagramRig(t, 0)
			a, b := r.joinUDP(1, "net1", "198.51.100.1:1000"), r.joinUDP(2, "net1", "198.51.100.2:2000")
			mallory := r.joinUDP(66, "net1", "198.51.100.66:6666")
			r.wire(a, b.key.Public(), "resolve")
			r.wire(mallory, a.key.Public(), "resolve")
			bound := r.server.Snapshot().Stats.DatagramsBound
			attack(r, a, mallory)
			r.pump()
			if n := r.server.Snapshot().Stats.DatagramsBound; n != bound {
				t.Errorf("%d addresses were bound", n-bound)
			}
			a.got, b.got = nil, nil
			if !r.wire(a, b.key.Public(), "out") || !r.wire(b, a.key.Public(), "in") {
				t.Error("datagrams ended")
			}
			if want := []string{a.key.Public().Short() + " out"}; !slices.Equal(b.got, want) {
				t.Errorf("b got %q", b.got)
			}
			if want := []string{b.key.Public().Short() + " in"}; !slices.Equal(a.got, want) {
				t.Errorf("a got %q", a.got)
			}
		})
	}
}

// TestDatagramsReplaced: a new connection of a key takes the datagrams with it,
// and an attacker's does not before it is admitted.
func TestDatagramsReplaced(t *testing.T) {
	r := newDatagramRig(t, 0)
	a, b := r.joinUDP(1, "net1", "198.51.100.1:1000"), r.joinUDP(2, "net1", "198.51.100.2:2000")
	r.wire(a, b.key.Public(), "resolve")
	r.connect(nodeKey(66), &SessionConfig{Key: nodeKey(66), Relay: "relay-1", Token: []byte("no token")}, "")
	if !r.wire(a, b.key.Public(), "one") || len(b.got) != 1 {
		t.Fatal("no datagrams")
	}
	again := r.joinUDP(2, "net1", "198.51.100.2:2000")
	if !b.gone {
		t.Fatal("the old connection stays")
	}
	if !r.wire(a, b.key.Public(), "to the old number") {
		t.Error("a knows of the new connection although nothing was sent")
	}
	if want := []string{a.key.Public().Short() + " to the old number"}; !slices.Equal(again.streamed(), want) {
		t.Errorf("the new connection got %q by the stream, want %q", again.streamed(), want)
	}
	if !r.wire(a, b.key.Public(), "two") || len(again.got) != 1 {
		t.Errorf("the new connection got %q", again.got)
	}
	if !r.wire(again, a.key.Public(), "three") || len(a.got) != 1 {
		t.Errorf("a got %q from the new connection", a.got)
	}
	if n := r.server.Snapshot().Stats; n.DatagramsInherited != 1 || n.DroppedNoPeer != 0 {
		t.Errorf("%d packets to the old number, %d to nobody", n.DatagramsInherited, n.DroppedNoPeer)
	}
	r.server.HandleRevoked("net1", a.key.Public(), r.now)
	r.pump()
	r.datagram(a.addr, append([]byte{datagramData, 0, 0, 0, 0, 0, 0, 0}, "revoked"...))
	if n := len(r.server.datagrams.bySource); n != 1 {
		t.Errorf("%d addresses are bound after the revocation, want the other's", n)
	}
	r.server.HandleDisconnect(again.id, r.now)
	if d := r.server.datagrams; len(d.bySource)+len(d.byNumber) != 0 {
		t.Errorf("left: %d addresses, %d numbers", len(d.bySource), len(d.byNumber))
	}
}

// TestRetiredNumbers: a number of before leads to its member only while that is
// there, within one network, and as long as there are not too many of them.
func TestRetiredNumbers(t *testing.T) {
	r := newDatagramRig(t, 0)
	a, b := r.joinUDP(1, "net1", "198.51.100.1:1000"), r.joinUDP(2, "net1", "198.51.100.2:2000")
	other := r.joinUDP(4, "net2", "198.51.100.4:4000")
	number := b.session.datagrams.number
	to := func(from *client, number uint32, payload string) ServerStats {
		var header [DatagramHeader]byte
		putHeader(header[:], datagramData, from.session.datagrams.tag, number)
		r.datagram(from.addr, append(header[:], payload...))
		r.pump()
		return r.server.Snapshot().Stats
	}
	r.server.HandleDisconnect(b.id, r.now)
	if n := to(a, number, "nobody is there"); n.DroppedNoPeer != 1 || n.DatagramsInherited != 0 {
		t.Errorf("to a member that is gone: %+v", n)
	}
	again := r.joinUDP(2, "net1", "198.51.100.2:2000")
	if n := to(other, number, "from outside"); n.DroppedNoPeer != 2 || n.DatagramsInherited != 0 || len(again.streamed())+len(again.got) != 0 {
		t.Errorf("from another network: %+v, %q, %q", n, again.streamed(), again.got)
	}
	if n := to(a, number, "it is back"); n.DatagramsInherited != 1 || len(again.streamed()) != 1 {
		t.Errorf("to a member that came back: %+v, %q", n, again.streamed())
	}
	for i := range uint32(maxRetired) {
		r.server.datagrams.retired.add(number+1+i, member{"net1", a.key.Public()})
	}
	if d := &r.server.datagrams.retired; len(d.members) != maxRetired || len(d.numbers) != maxRetired {
		t.Errorf("%d of %d numbers are kept", len(d.members), maxRetired)
	}
	if n := to(a, number, "too long ago"); n.DatagramsInherited != 1 || n.DroppedNoPeer != 3 {
		t.Errorf("to a number of long ago: %+v", n)
	}
}

// TestDatagramsOnANarrowPath: where the path to the relay swallows long datagrams,
// only short ones are sent, and long packets go by the stream; both ends of a
// change are noticed.
func TestDatagramsOnANarrowPath(t *testing.T) {
	r := newDatagramRig(t, 0)
	a, b := r.joinUDP(1, "net1", "198.51.100.1:1"), r.joinUDP(2, "net1", "198.51.100.2:2")
	r.pass(time.Second)
	long, short := string(make([]byte, MaxDatagramPayload(a.addr.Addr()))), string(make([]byte, safePayload))
	r.wire(a, b.key.Public(), "a number, please")
	if !a.session.Snapshot().Datagrams.Wide || !r.wire(a, b.key.Public(), long) || len(b.got) != 1 {
		t.Fatal("a long packet does not go as a datagram on a path that carries it")
	}
	r.narrow = 1280 - ipv4UDPHeader
	r.wire(a, b.key.Public(), "in use")
	for began := r.now; a.session.Snapshot().Datagrams.Wide; r.pass(100 * time.Millisecond) {
		if r.now.Sub(began) > 3*time.Second {
			t.Fatal("long datagrams go on for longer than 3 s where nothing carries them")
		}
	}
	if s := a.session.Snapshot().Datagrams; !s.Bound {
		t.Error("short datagrams were given up, too")
	}
	got, streamed := len(b.got), len(b.streamed())
	if !r.wire(a, b.key.Public(), short) || len(b.got) != got+1 {
		t.Error("a short packet does not go as a datagram")
	}
	if r.wire(a, b.key.Public(), short+"x") || len(b.streamed())+len(b.got) != got+1+streamed+1 {
		t.Error("a long packet did not arrive by the stream")
	}
	r.narrow = 0
	for began := r.now; !a.session.Snapshot().Datagrams.Wide; r.pass(100 * time.Millisecond) {
		if r.now.Sub(began) > wideRetry+2*idleBind {
			t.Fatal("it is not noticed that the path carries long datagrams again")
		}
	}
}
