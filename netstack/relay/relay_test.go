package relay

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

var errToken = errors.New("test: token admits nobody")

// tokens admits a key to the network that its token names, "net1" or "net2".
type tokens struct {
	asked int
	// until is when admissions end, extend what they are extended to.
	until, extend time.Time
}

func (a *tokens) Admit(_ ident.NodeKey, token []byte, _ time.Time) (string, time.Time, error) {
	a.asked++
	switch string(token) {
	case "net1", "net2":
		return string(token), a.until, nil
	}
	return "", time.Time{}, errToken
}

func (a *tokens) Extend(string, ident.NodeKey, time.Time) (time.Time, bool) {
	return a.extend, !a.extend.IsZero()
}

// rig is a server and its clients, joined by slices.
type rig struct {
	t        testing.TB
	server   *Server
	admitter *tokens
	now      time.Time
	clients  map[ConnID]*client
	lastConn ConnID
	// lose reports whether a datagram is lost; nil loses none.
	lose func(from, to netip.AddrPort) bool
	// narrow is how long a datagram to the relay may be, zero for as long as it likes.
	narrow int
}

type client struct {
	id      ConnID
	key     ident.NodePrivate
	session *Session
	events  []Event
	closed  Reason
	gone    bool
	// addr is where its datagrams come from, got what came there and is a packet.
	addr netip.AddrPort
	got  []string
	// raw are the messages that the server sent.
	raw [][]byte
}

func newRig(t testing.TB, rate int64) *rig {
	t.Helper()
	a := new(tokens)
	s, err := NewServer(ServerConfig{Name: "relay-1", Admitter: a, Rand: rand.NewChaCha8([32]byte{99}), Rate: rate}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	return &rig{t: t, server: s, admitter: a, now: epoch, clients: make(map[ConnID]*client)}
}

func nodeKey(seed byte) ident.NodePrivate {
	k, err := ident.NewNodePrivate(rand.NewChaCha8([32]byte{seed}))
	if err != nil {
		panic(err)
	}
	return k
}

// connect opens a connection. A client without a session (cfg nil) is one that
// the test plays by hand.
func (r *rig) connect(key ident.NodePrivate, cfg *SessionConfig, binding string) *client {
	r.t.Helper()
	r.lastConn++
	c := &client{id: r.lastConn, key: key}
	if cfg != nil {
		s, err := NewSession(*cfg, r.now)
		if err != nil {
			r.t.Fatal(err)
		}
		c.session = s
	}
	r.clients[c.id] = c
	if err := r.server.HandleConnect(c.id, netip.Addr{}, []byte(binding), r.now); err != nil {
		r.t.Fatal(err)
	}
	r.pump()
	return c
}

func (r *rig) join(seed byte, token string) *client {
	r.t.Helper()
	key := nodeKey(seed)
	c := r.connect(key, &SessionConfig{Key: key, Relay: "relay-1", Token: []byte(token)}, "")
	return c
}

// pump carries messages until nobody has any.
func (r *rig) pump() {
	for again := true; again; {
		again = false
		for cmd, ok := r.server.NextCommand(); ok; cmd, ok = r.server.NextCommand() {
			again = true
			c := r.clients[cmd.Conn]
			for m, ok := r.server.NextMessage(cmd.Conn, nil); ok; m, ok = r.server.NextMessage(cmd.Conn, nil) {
				c.raw = append(c.raw, m)
				if c.session != nil {
					_ = c.session.HandleMessage(m, r.now)
				}
				if cmd.Kind == CommandClose {
					break
				}
			}
			if cmd.Kind == CommandClose {
				c.gone, c.closed = true, cmd.Reason
				r.server.HandleDisconnect(cmd.Conn, r.now)
				if c.session != nil {
					c.session.HandleClosed(r.now)
				}
			}
		}
		for id := ConnID(1); id <= r.lastConn; id++ {
			c := r.clients[id]
			if c.session == nil {
				continue
			}
			for m, ok := c.session.NextTransmit(); ok; m, ok = c.session.NextTransmit() {
				again = true
				if !c.gone {
					_ = r.server.HandleMessage(id, m, r.now)
				}
			}
			for b, ok := c.session.NextDatagram(); ok; b, ok = c.session.NextDatagram() {
				again = true
				r.datagram(c.addr, b)
			}
			for e, ok := c.session.NextEvent(); ok; e, ok = c.session.NextEvent() {
				e.Packet = bytes.Clone(e.Packet)
				c.events = append(c.events, e)
			}
		}
	}
}

func (r *rig) send(from *client, to ident.NodeKey, payload string) {
	r.t.Helper()
	m, err := AppendSendPacket(nil, to, []byte(payload))
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.server.HandleMessage(from.id, m, r.now); err != nil {
		r.t.Fatal(err)
	}
	from.session.HandleSent(r.now)
	r.pump()
}

func (c *client) packets() []string {
	var got []string
	for _, e := range c.events {
		if e.Kind == EventPacket {
			got = append(got, fmt.Sprintf("%s:%s", e.Peer.Short(), e.Packet))
		}
	}
	return got
}

func (c *client) last() Event {
	if len(c.events) == 0 {
		return Event{}
	}
	return c.events[len(c.events)-1]
}

func TestForward(t *testing.T) {
	r := newRig(t, 0)
	a, b := r.join(1, "net1"), r.join(2, "net1")
	if !a.session.Ready() || !b.session.Ready() || a.events[0].Kind != EventReady {
		t.Fatal("not admitted")
	}
	r.send(a, b.key.Public(), "hello")
	r.send(b, a.key.Public(), "answer")
	if got, want := b.packets(), a.key.Public().Short()+":hello"; len(got) != 1 || got[0] != want {
		t.Errorf("b got %q, want %q", got, want)
	}
	if got, want := a.packets(), b.key.Public().Short()+":answer"; len(got) != 1 || got[0] != want {
		t.Errorf("a got %q, want %q", got, want)
	}
}

func TestSeveralPacketsInOneMessage(t *testing.T) {
	r := newRig(t, 0)
	a, b := r.join(1, "net1"), r.join(2, "net1")
	var m []byte
	for i := range 40 {
		m, _ = AppendSendPacket(m, b.key.Public(), fmt.Appendf(nil, "%02d", i))
	}
	if err := r.server.HandleMessage(a.id, m, r.now); err != nil {
		t.Fatal(err)
	}
	before := len(b.raw)
	r.pump()
	if len(b.raw) != before+1 || len(b.packets()) != 40 {
		t.Fatalf("%d packets in %d messages", len(b.packets()), len(b.raw)-before)
	}
	for i, p := range b.packets() {
		if want := fmt.Sprintf("%s:%02d", a.key.Public().Short(), i); p != want {
			t.Errorf("packet %d is %q, want %q", i, p, want)
		}
	}
}

func TestPeerGone(t *testing.T) {
	r := newRig(t, 0)
	a := r.join(1, "net1")
	nobody := nodeKey(77).Public()
	r.send(a, nobody, "x")
	r.send(a, nobody, "x")
	gone := 0
	for _, e := range a.events {
		if e.Kind == EventPeerGone && e.Peer == nobody {
			gone++
		}
	}
	if gone != 1 {
		t.Errorf("%d notices at once, want 1", gone)
	}
	if n := r.server.Snapshot().Stats.DroppedNoPeer; n != 2 {
		t.Errorf("counted %d", n)
	}
}

func TestReconnectReplacesAfterProof(t *testing.T) {
	r := newRig(t, 0)
	old := r.join(1, "net1")
	b := r.join(2, "net1")
	half := r.connect(nodeKey(1), nil, "") // does not answer yet
	if old.gone {
		t.Fatal("replaced by a connection that proved nothing")
	}
	_ = half
	newer := r.join(1, "net1")
	if !old.gone || old.closed != ReasonReplaced || !newer.session.Ready() {
		t.Fatalf("old gone %v for %v", old.gone, old.closed)
	}
	if e := old.last(); e.Kind != EventClosed || e.Reason != ReasonReplaced {
		t.Errorf("old learns %+v", e)
	}
	r.send(b, newer.key.Public(), "x")
	if len(newer.packets()) != 1 || len(old.packets()) != 0 {
		t.Error("packet went to the wrong connection")
	}
	// The end of the old connection must not take the new one's place away.
	r.server.HandleDisconnect(old.id, r.now)
	r.send(b, newer.key.Public(), "y")
	if len(newer.packets()) != 2 {
		t.Error("the new connection lost its place")
	}
}

func TestNetworksAreApart(t *testing.T) {
	r := newRig(t, 0)
	a, b := r.join(1, "net1"), r.join(2, "net2")
	r.send(a, b.key.Public(), "x")
	if len(b.packets()) != 0 {
		t.Error("a packet crossed networks")
	}
	if r.server.Snapshot().Stats.DroppedNoPeer != 1 {
		t.Error("not counted")
	}
	if e := a.last(); e.Kind != EventPeerGone {
		t.Errorf("the sender learns %+v: it must not tell networks apart from absence", e)
	}
}

func TestMalformedFrames(t *testing.T) {
	for name, m := range map[string][]byte{
		"cut header":   {5, 0},
		"cut body":     {5, 0, 40, 1},
		"over limit":   append([]byte{5, 0xff, 0xff}, make([]byte, 0xffff)...),
		"no payload":   AppendFrame(nil, FrameSend, make([]byte, ident.KeySize)),
		"recv frame":   AppendFrame(nil, FrameRecv, make([]byte, 40)),
		"second hello": AppendFrame(nil, FrameHello, make([]byte, 70)),
		"short ping":   AppendFrame(nil, FramePing, make([]byte, 7)),
		"too long":     make([]byte, MaxMessage+1),
	} {
		r := newRig(t, 0)
		a := r.join(1, "net1")
		if err := r.server.HandleMessage(a.id, m, r.now); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v", name, err)
		}
		r.pump()
		if !a.gone || a.closed != ReasonProtocol {
			t.Errorf("%s: closed %v for %v", name, a.gone, a.closed)
		}
		if err := r.server.HandleMessage(a.id, m, r.now); !errors.Is(err, ErrUnknownConn) {
			t.Errorf("%s: after the end: %v", name, err)
		}
	}
}

func TestUnknownFrameIsSkipped(t *testing.T) {
	r := newRig(t, 0)
	a, b := r.join(1, "net1"), r.join(2, "net1")
	m := AppendFrame(nil, 200, []byte("from the future"))
	m, _ = AppendSendPacket(m, b.key.Public(), []byte("x"))
	if err := r.server.HandleMessage(a.id, m, r.now); err != nil {
		t.Fatal(err)
	}
	r.pump()
	if len(b.packets()) != 1 {
		t.Error("the frame behind it was lost")
	}
}

// TestFloodFairness: one sender fills a destination's queue; another one's few
// packets still all arrive, and soon.
func TestFloodFairness(t *testing.T) {
	r := newRig(t, 0)
	flood, calm, dst := r.join(1, "net1"), r.join(2, "net1"), r.join(3, "net1")
	big := make([]byte, 1400)
	var m []byte
	for range 40 {
		m, _ = AppendSendPacket(m, dst.key.Public(), big)
	}
	for range 50 {
		if err := r.server.HandleMessage(flood.id, m, r.now); err != nil {
			t.Fatal(err)
		}
	}
	if q := r.server.Snapshot().QueuedBytes; q > maxQueue {
		t.Fatalf("%d bytes wait, at most %d", q, maxQueue)
	}
	for i := range 10 {
		s, _ := AppendSendPacket(nil, dst.key.Public(), fmt.Appendf(nil, "calm %d", i))
		if err := r.server.HandleMessage(calm.id, s, r.now); err != nil {
			t.Fatal(err)
		}
	}
	first, _ := r.server.NextMessage(dst.id, nil)
	calmFirst := 0
	for rest := first; len(rest) > 0; {
		f, next, err := Next(rest)
		if err != nil {
			t.Fatal(err)
		}
		if key, _, _ := ParsePacket(f); key == calm.key.Public() {
			calmFirst++
		}
		rest = next
	}
	if calmFirst != 10 {
		t.Errorf("%d of the calm sender's packets are in the first message, want 10", calmFirst)
	}
	s := r.server.Snapshot()
	if s.Stats.DroppedQueue == 0 {
		t.Error("the flood lost nothing")
	}
	if got := s.Stats.DroppedQueue + uint64(s.QueuedBytes/SendFrameSize(1400)) + s.Stats.PacketsOut - 10; got != 2000 {
		t.Errorf("%d packets accounted for, want 2000", got)
	}
}

// TestManySendersShareAQueue: over the destination's limit whoever has most
// loses, so that equal senders get equal parts.
func TestManySendersShareAQueue(t *testing.T) {
	var q queue
	var free buffers
	frame := func() []byte { return append(free.get(1435), make([]byte, 1435)...) }
	for range 1000 {
		for s := range byte(8) {
			q.push(ident.NodeKey{s}, frame(), &free)
		}
	}
	if q.bytes > maxQueue {
		t.Fatalf("%d bytes", q.bytes)
	}
	for _, p := range q.parts {
		if p.bytes < maxQueue/8-2*1435 || p.bytes > maxQueue/8+2*1435 {
			t.Errorf("sender %d has %d bytes, want about %d", p.sender[0], p.bytes, maxQueue/8)
		}
	}
	out := 0
	for {
		b, n := q.pop(nil, MaxMessage, &free)
		if n == 0 {
			break
		}
		if len(b) > MaxMessage {
			t.Fatalf("message of %d bytes", len(b))
		}
		out += len(b)
	}
	if q.bytes != 0 || len(q.parts) != 0 || len(q.index) != 0 || out == 0 {
		t.Errorf("left: %d bytes, %d parts", q.bytes, len(q.parts))
	}
}

func TestRateLimit(t *testing.T) {
	r := newRig(t, 200_000)
	a, b := r.join(1, "net1"), r.join(2, "net1")
	payload := make([]byte, 1000)
	sent := 0
	for range 10 * 100 { // ten seconds, a Megabyte a second
		for range 10 {
			m, _ := AppendSendPacket(nil, b.key.Public(), payload)
			if err := r.server.HandleMessage(a.id, m, r.now); err != nil {
				t.Fatal(err)
			}
			sent++
		}
		r.pump()
		r.now = r.now.Add(10 * time.Millisecond)
	}
	got := len(b.packets()) * 1000
	if got < 1_900_000 || got > 2_200_000 {
		t.Errorf("%d bytes in 10 s at 200,000 a second", got)
	}
	if d := r.server.Snapshot().Stats.DroppedRate; d != uint64(sent-len(b.packets())) {
		t.Errorf("counted %d", d)
	}
}

// TestSetLimits: another rate counts for who is connected already, and a lower number
// of connections ends none.
func TestSetLimits(t *testing.T) {
	r := newRig(t, 10_000_000)
	a, b := r.join(1, "net1"), r.join(2, "net1")
	sends := func() (got int) {
		before := len(b.packets())
		payload := make([]byte, 1000)
		for range 100 { // a second, a Megabyte
			for range 10 {
				m, _ := AppendSendPacket(nil, b.key.Public(), payload)
				if err := r.server.HandleMessage(a.id, m, r.now); err != nil {
					t.Fatal(err)
				}
			}
			r.pump()
			r.now = r.now.Add(10 * time.Millisecond)
		}
		return (len(b.packets()) - before) * len(payload)
	}
	if got := sends(); got != 1_000_000 {
		t.Errorf("%d bytes at 10 MB a second", got)
	}
	if err := r.server.SetLimits(2, 400_000, r.now); err != nil {
		t.Fatal(err)
	}
	if got := sends(); got < 400_000 || got > 700_000 { // and the quarter of a second, MaxPacket
		t.Errorf("%d bytes in a second at 400,000", got)
	}
	if c := r.join(3, "net1"); c.closed != ReasonFull || a.gone || b.gone {
		t.Errorf("one above the limit ended with %v; %v, %v", c.closed, a.gone, b.gone)
	}
	if err := r.server.SetLimits(1, 0, r.now); err != nil {
		t.Fatal(err)
	}
	if got := sends(); got < 950_000 || a.gone || b.gone { // what there was is spent
		t.Errorf("%d bytes at the usual rate; %v, %v", got, a.gone, b.gone)
	}
	for _, below := range []struct {
		conns int
		rate  int64
	}{{-1, 1}, {1, -1}} {
		if err := r.server.SetLimits(below.conns, below.rate, r.now); err == nil {
			t.Errorf("%+v is taken", below)
		}
	}
}

// tick runs all machines until the given time.
func (r *rig) tick(until time.Time, mute ...*client) {
	for {
		next := until
		consider := func(t time.Time, ok bool) {
			if ok && t.Before(next) {
				next = t
			}
		}
		consider(r.server.NextTimeout())
		for id := ConnID(1); id <= r.lastConn; id++ {
			if s := r.clients[id].session; s != nil {
				consider(s.NextTimeout())
			}
		}
		if next.After(r.now) {
			r.now = next
		}
		r.server.HandleTimeout(r.now)
		for id := ConnID(1); id <= r.lastConn; id++ {
			if s := r.clients[id].session; s != nil {
				s.HandleTimeout(r.now)
				for _, m := range mute {
					if m.id == id {
						s.NextTransmit()
					}
				}
			}
		}
		r.pump()
		if !r.now.Before(until) {
			return
		}
	}
}

func TestKeepalive(t *testing.T) {
	r := newRig(t, 0)
	a := r.join(1, "net1")
	r.tick(epoch.Add(time.Hour))
	s := a.session.Snapshot()
	if a.gone || s.Failed || s.Stats.PingsSent < 100 || s.Stats.PongsHeard != s.Stats.PingsSent {
		t.Errorf("after an idle hour: gone %v, %+v", a.gone, s)
	}
	// 3600 s at one ping each 25 s.
	if s.Stats.PingsSent > 145 {
		t.Errorf("%d pings in an idle hour", s.Stats.PingsSent)
	}
}

func TestSilentClientIsDropped(t *testing.T) {
	r := newRig(t, 0)
	a := r.join(1, "net1")
	a.session = nil
	stranger := r.connect(nodeKey(2), nil, "")
	r.tick(epoch.Add(helloWait))
	if !stranger.gone || stranger.closed != ReasonTimeout || a.gone {
		t.Errorf("after %v: stranger %v %v, member %v", helloWait, stranger.gone, stranger.closed, a.gone)
	}
	r.tick(epoch.Add(silentWait - 1))
	if a.gone {
		t.Error("dropped too soon")
	}
	r.tick(epoch.Add(silentWait))
	if !a.gone || a.closed != ReasonTimeout || r.server.Snapshot().Conns != 0 {
		t.Error("a silent client was kept")
	}
	if _, ok := r.server.NextTimeout(); ok {
		t.Error("an empty server wants to be woken")
	}
}

// TestDeadRelayIsNoticed: a relay that swallows packets is left within 5 s of
// the first packet that it does not answer (FAILOVER), and calls that come late
// decide the same.
func TestDeadRelayIsNoticed(t *testing.T) {
	for _, late := range []bool{false, true} {
		r := newRig(t, 0)
		a := r.join(1, "net1")
		start := r.now.Add(7 * time.Second)
		a.session.HandleSent(start)
		if late {
			a.session.HandleTimeout(start.Add(5 * time.Second))
		} else {
			for d, ok := a.session.NextTimeout(); ok && !d.After(start.Add(5*time.Second)); d, ok = a.session.NextTimeout() {
				a.session.HandleTimeout(d)
				a.session.NextTransmit()
				for _, ok := a.session.NextEvent(); ok; _, ok = a.session.NextEvent() {
				}
			}
		}
		// The relay has answered the ping of the admission.
		if s := a.session.Snapshot(); !s.Failed || s.Reason != ReasonTimeout || s.Stats.PingsSent != 2 || s.Stats.PongsHeard != 1 {
			t.Errorf("late %v: %+v", late, s)
		}
	}
}

// TestDeadRelayIsNoticedByTheReceiver: who only receives notices within 5 s of
// the last packet, too, and asks no more than before once nothing comes for long.
func TestDeadRelayIsNoticedByTheReceiver(t *testing.T) {
	r := newRig(t, 0)
	a := r.join(1, "net1")
	start := r.now.Add(7 * time.Second)
	recv := AppendFrame(nil, FrameRecv, make([]byte, ident.KeySize), []byte("packet"))
	if err := a.session.HandleMessage(recv, start); err != nil {
		t.Fatal(err)
	}
	a.session.HandleTimeout(start.Add(5 * time.Second))
	if s := a.session.Snapshot(); !s.Failed || s.Reason != ReasonTimeout {
		t.Errorf("%+v", s)
	}

	b := r.join(2, "net1")
	if err := b.session.HandleMessage(recv, start); err != nil {
		t.Fatal(err)
	}
	for now := start; now.Before(start.Add(10 * time.Minute)); now = now.Add(100 * time.Millisecond) {
		b.session.HandleTimeout(now)
		for out, ok := b.session.NextTransmit(); ok; out, ok = b.session.NextTransmit() {
			f, _, err := Next(out)
			if err != nil || f.Type != FramePing {
				t.Fatalf("it sends %+v, %v", f, err)
			}
			if err := b.session.HandleMessage(AppendFrame(nil, FramePong, f.Body), now); err != nil {
				t.Fatal(err)
			}
		}
	}
	if s := b.session.Snapshot(); s.Failed || s.Stats.PingsSent > 60 || s.Stats.PingsSent < 40 {
		t.Errorf("after ten minutes: %+v", s)
	}
}

func TestRevoke(t *testing.T) {
	r := newRig(t, 0)
	a := r.join(1, "net1")
	r.server.HandleRevoked("net2", a.key.Public(), r.now)
	r.pump()
	if a.gone {
		t.Fatal("revoked in another network")
	}
	r.server.HandleRevoked("net1", a.key.Public(), r.now)
	r.pump()
	if e := a.last(); !a.gone || e.Kind != EventClosed || e.Reason != ReasonRevoked {
		t.Errorf("gone %v, learns %+v", a.gone, e)
	}
}

func TestMaxConns(t *testing.T) {
	r := newRig(t, 0)
	r.server.cfg.MaxConns = 1
	a := r.join(1, "net1")
	if b := r.join(2, "net1"); b.closed != ReasonFull || a.gone {
		t.Errorf("the second member: closed by %v; the first gone: %v", b.closed, a.gone)
	}
	// Who is in may come again: it takes its own place.
	if again := r.join(1, "net1"); again.last().Kind != EventReady || !a.gone {
		t.Errorf("the first member again got %+v", again.last())
	}
	if got := r.server.Snapshot(); got.Admitted != 1 || got.Stats.RejectedFull != 1 {
		t.Errorf("%+v", got)
	}
}

// TestStrangersKeepNobodyOut: connections that say nothing neither count as
// members nor are more than so many; the oldest goes first.
func TestStrangersKeepNobodyOut(t *testing.T) {
	r := newRig(t, 0)
	r.server.cfg.MaxConns = 2
	first := r.join(1, "net1")
	oldest := r.connect(nodeKey(9), nil, "")
	for range maxHello - 1 {
		r.connect(nodeKey(9), nil, "")
	}
	if oldest.gone {
		t.Fatal("a stranger was ended before there were too many")
	}
	c := r.join(2, "net1")
	if c.last().Kind != EventReady {
		t.Errorf("the member got %+v", c.last())
	}
	if !oldest.gone || oldest.closed != ReasonFull || first.gone {
		t.Errorf("the oldest stranger: gone %v by %v; a member gone: %v", oldest.gone, oldest.closed, first.gone)
	}
	if got := r.server.Snapshot(); got.Admitted != 2 || got.Conns != maxHello+1 {
		t.Errorf("%d admitted, %d in all", got.Admitted, got.Conns)
	}
}

func TestForwardAllocatesLittle(t *testing.T) {
	r := newRig(t, 0)
	a, b := r.join(1, "net1"), r.join(2, "net1")
	m, _ := AppendSendPacket(nil, b.key.Public(), make([]byte, 1400))
	buf := make([]byte, 0, MaxMessage)
	now := r.now
	n := testing.AllocsPerRun(200, func() {
		now = now.Add(time.Millisecond)
		for range 20 {
			_ = r.server.HandleMessage(a.id, m, now)
		}
		for _, ok := r.server.NextCommand(); ok; _, ok = r.server.NextCommand() {
		}
		for _, ok := r.server.NextMessage(b.id, buf); ok; _, ok = r.server.NextMessage(b.id, buf) {
		}
	})
	if n != 0 {
		t.Errorf("%v allocations for 20 packets", n)
	}
}

// TestMeasureOnDemand: who asks gets the round trip of now, also while so much comes
// that the session never asks by itself; one ping is on its way at a time.
func TestMeasureOnDemand(t *testing.T) {
	r := newRig(t, 0)
	a, b := r.join(1, "net1"), r.join(2, "net1")
	before := a.session.Snapshot().Stats
	for range 3 {
		a.session.HandleMeasure(r.now)
	}
	ping, ok := a.session.NextTransmit()
	if got := a.session.Snapshot().Stats.PingsSent; !ok || got != before.PingsSent+1 {
		t.Fatalf("%d pings sent", got-before.PingsSent)
	}
	r.now = r.now.Add(10 * time.Millisecond)
	r.send(b, a.key.Public(), "data") // comes before the pong
	r.now = r.now.Add(20 * time.Millisecond)
	if err := r.server.HandleMessage(a.id, ping, r.now); err != nil {
		t.Fatal(err)
	}
	r.pump()
	if s := a.session.Snapshot(); s.RTT != 30*time.Millisecond || s.Stats.PongsHeard != before.PongsHeard+1 {
		t.Errorf("round trip %v, %+v", s.RTT, s.Stats)
	}
	waiting := r.connect(nodeKey(3), &SessionConfig{Key: nodeKey(3), Relay: "relay-1", Token: []byte("no")}, "")
	waiting.session.HandleMeasure(r.now)
	if s := waiting.session.Snapshot(); s.Stats.PingsSent != 0 {
		t.Errorf("%d pings before the admission", s.Stats.PingsSent)
	}
}
