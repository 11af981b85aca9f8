package wg

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/sock"
)

// channelTUN is a TUN whose host is a test.
type channelTUN struct {
	out, in chan []byte // towards the overlay, from the overlay
	closed  chan struct{}
	once    sync.Once
	// written, if not nil, is called for what is written.
	written atomic.Pointer[func(buf []byte, offset int)]
	// reading, if not nil, is called for what is read.
	reading atomic.Pointer[func(buf []byte, offset int)]
}

func newChannelTUN() *channelTUN {
	return &channelTUN{out: make(chan []byte, 64), in: make(chan []byte, 1024), closed: make(chan struct{})}
}

func (c *channelTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case p := <-c.out:
		sizes[0] = copy(bufs[0][offset:], p)
		if reading := c.reading.Load(); reading != nil {
			(*reading)(bufs[0][:offset+sizes[0]], offset)
		}
		return 1, nil
	case <-c.closed:
		return 0, os.ErrClosed
	}
}

func (c *channelTUN) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		if written := c.written.Load(); written != nil {
			(*written)(b, offset)
		}
		select {
		case c.in <- bytes.Clone(b[offset:]):
		case <-c.closed:
			return 0, os.ErrClosed
		}
	}
	return len(bufs), nil
}

func (c *channelTUN) MTU() (int, error)     { return 1420, nil }
func (c *channelTUN) Name() (string, error) { return "test", nil }
func (c *channelTUN) BatchSize() int        { return 1 }
func (c *channelTUN) Close() error          { c.once.Do(func() { close(c.closed) }); return nil }

// side is one of two devices on the loopback interface.
type side struct {
	device  *Device
	tun     *channelTUN
	private ident.NodePrivate
	key     ident.NodeKey
	addr    netip.Addr // in the overlay
	at      netip.AddrPort
	control chan []byte
	tap     chan []byte // what was sent, if not full
}

// tapConn shows what is sent.
type tapConn struct {
	sock.Conn
	tap chan []byte
}

func (c tapConn) WriteBatch(bufs [][]byte, to netip.AddrPort) error {
	err := c.Conn.WriteBatch(bufs, to)
	for _, b := range bufs {
		select {
		case c.tap <- bytes.Clone(b):
		default:
		}
	}
	return err
}

func newSide(t *testing.T, addr string) *side {
	t.Helper()
	private, err := ident.NewNodePrivate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return newSideAs(t, addr, private)
}

func newSideAs(t *testing.T, addr string, private ident.NodePrivate) *side {
	t.Helper()
	var err error
	s := &side{
		tun: newChannelTUN(), private: private, key: private.Public(), addr: netip.MustParseAddr(addr),
		control: make(chan []byte, 16), tap: make(chan []byte, 256),
	}
	s.device, err = New(Config{
		TUN: s.tun,
		Listen: func(port uint16) (sock.Conn, error) {
			c, err := sock.Listen(sock.Config{Port: port, Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
			if err != nil {
				return nil, err
			}
			return tapConn{c, s.tap}, nil
		},
		ListenFurther: func() (sock.Conn, error) {
			return sock.Listen(sock.Config{Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, DisableOffload: true})
		},
		Control: func(packet []byte, _ netip.AddrPort) {
			select {
			case s.control <- bytes.Clone(packet):
			default:
			}
		},
		Unwrap: func(datagram []byte, _ netip.AddrPort) (over Relay, key ident.NodeKey, packet []byte, ok bool) {
			if len(datagram) < 1+ident.KeySize || datagram[0] != wrapped {
				return nil, key, nil, false
			}
			return nil, ident.NodeKey(datagram[1:]), datagram[1+ident.KeySize:], true
		},
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.device.Close)
	if err := s.device.SetPrivateKey(private); err != nil {
		t.Fatal(err)
	}
	s.at = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.device.Port())
	return s
}

func (s *side) add(t *testing.T, other *side, more ...*side) *Peer {
	t.Helper()
	var peers []PeerConfig
	for _, p := range append([]*side{other}, more...) {
		peers = append(peers, PeerConfig{p.key, []netip.Prefix{netip.PrefixFrom(p.addr, 32)}})
	}
	if err := s.device.SetPeers(peers); err != nil {
		t.Fatal(err)
	}
	return s.device.Peer(other.key)
}

// packet is an IPv4 packet of protocol 253 (RFC 3692) with one byte.
func packet(from, to netip.Addr, content byte) []byte {
	p := make([]byte, 21)
	p[0], p[3], p[8], p[9], p[20] = 0x45, 21, 64, 253, content
	copy(p[12:], from.AsSlice())
	copy(p[16:], to.AsSlice())
	return p
}

const patience = 10 * time.Second

func receive[T any](t *testing.T, from chan T) T {
	t.Helper()
	select {
	case p := <-from:
		return p
	case <-time.After(patience):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

// pass sends a packet and waits until it arrives.
func pass(t *testing.T, a, b *side, content byte) {
	t.Helper()
	want := packet(a.addr, b.addr, content)
	a.tun.out <- want
	if got := receive(t, b.tun.in); !bytes.Equal(got, want) {
		t.Fatalf("got % x, want % x", got, want)
	}
}

func connected(t *testing.T) (a, b *side, atA, atB *Peer) {
	t.Helper()
	a, b = newSide(t, "100.64.0.1"), newSide(t, "100.64.0.2")
	atA, atB = a.add(t, b), b.add(t, a)
	atA.SetPath(Path{Direct: b.at})
	atB.SetPath(Path{Direct: a.at})
	pass(t, a, b, 1)
	pass(t, b, a, 2)
	return a, b, atA, atB
}

// stranger sends packets from an address that is nobody's.
func stranger(t *testing.T, to netip.AddrPort, packets ...[]byte) {
	t.Helper()
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	for _, p := range packets {
		if _, err := c.Write(p); err != nil {
			t.Fatal(err)
		}
	}
}

// carried sends a packet that does not reach b from a, whose path leads to a
// stranger from now on: the stranger delivers it.
func carried(t *testing.T, a, b *side, content byte) {
	t.Helper()
	sink, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	a.device.Peer(b.key).SetPath(Path{Direct: sink.LocalAddr().(*net.UDPAddr).AddrPort()})
	fresh := packet(a.addr, b.addr, content)
	a.tun.out <- fresh
	buf := make([]byte, 2048)
	n, _, err := sink.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	stranger(t, b.at, buf[:n])
	if got := receive(t, b.tun.in); !bytes.Equal(got, fresh) {
		t.Fatalf("got % x, want the packet that the stranger carried", got)
	}
}

func TestCapturedPacketsFromElsewhereMoveNothing(t *testing.T) {
	a, b, _, atB := connected(t)
	var captured [][]byte
	for kinds := make(map[uint32]bool); !kinds[typeInitiation] || !kinds[typeTransport]; {
		p := receive(t, a.tap)
		kinds[messageType(p)] = true
		captured = append(captured, p)
	}
	stranger(t, b.at, captured...)

	// A packet that is authentic and new, but never reached b from a: the
	// stranger is the first to deliver it.
	carried(t, a, b, 3)
	if got := atB.Path().Direct; got != a.at {
		t.Fatalf("path moved to %v", got)
	}
	a.device.Peer(b.key).SetPath(Path{Direct: b.at})
	pass(t, b, a, 4)
	pass(t, a, b, 5)
}

// TestOldInitiationAfterARestartMovesNothing: WireGuard remembers the time of a
// peer's last initiation in memory only, so a device that was restarted takes
// an old one again.
func TestOldInitiationAfterARestartMovesNothing(t *testing.T) {
	a, b, _, _ := connected(t)
	var initiation []byte
	for initiation == nil {
		if p := receive(t, a.tap); messageType(p) == typeInitiation {
			initiation = p
		}
	}
	again := newSideAs(t, "100.64.0.2", b.private)
	atB := again.add(t, a)
	atB.SetPath(Path{Direct: a.at})
	stranger(t, again.at, initiation)
	// The answer goes to the peer, not to the stranger.
	if p := receive(t, again.tap); messageType(p) != typeResponse {
		t.Fatalf("message of type %d, want a response", messageType(p))
	}
	if got := atB.Path().Direct; got != a.at {
		t.Fatalf("path moved to %v", got)
	}
	if got := again.device.Counters(); got.NoPath != 0 {
		t.Fatalf("counters %+v", got)
	}
}

func TestUnknownInitiationsAreDropped(t *testing.T) {
	a, b := newSide(t, "100.64.0.1"), newSide(t, "100.64.0.2")
	a.add(t, b).SetPath(Path{Direct: b.at})
	a.tun.out <- packet(a.addr, b.addr, 1)
	initiation := receive(t, a.tap)
	if messageType(initiation) != typeInitiation {
		t.Fatalf("first message is of type %d", messageType(initiation))
	}
	key, ok := b.device.bind.identity.Load().initiator(initiation)
	if !ok || key != a.key {
		t.Fatalf("initiation of %v, %v; want %v", key, ok, a.key)
	}
	junk := bytes.Clone(initiation)
	junk[50] ^= 1
	stranger(t, b.at, junk, []byte("something else"))
	receive(t, b.control) // what was sent after them was read
	if got := b.device.Counters().UnknownInitiations; got != 2 {
		t.Fatalf("%d unknown initiations counted, want 2", got)
	}
	// The same device becomes a peer: its next handshake is taken.
	b.add(t, a).SetPath(Path{Direct: a.at})
	pass(t, b, a, 2)
}

func TestFloodOfStrangersLeavesPathsAlone(t *testing.T) {
	b := newBind(&Config{})
	b.strangers.rate = 0 // no more than the burst, however slow this machine is
	b.identity.Store(newIdentity(fuzzKey(t, 1)))
	p := newPeer(fuzzKey(t, 2).Public(), b)
	b.peers[p.key] = p
	initiation := craftInitiation(t, fuzzKey(t, 1), fuzzKey(t, 2))
	path, elsewhere := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:1")
	p.SetPath(Path{Direct: path})
	direct := func(from netip.AddrPort) func(time.Time) bool {
		return func(now time.Time) bool { return b.allowDirect(from, now) }
	}
	for range 2 * strangerBurst {
		b.identify(initiation, direct(elsewhere))
	}
	if b.counters.limited.Load() == 0 {
		t.Fatal("strangers have no limit")
	}
	if b.identify(initiation, direct(path)) != p {
		t.Fatal("the peer's own path is limited by strangers")
	}
	p.SetPath(Path{})
	if len(b.known) != 0 {
		t.Fatalf("known addresses: %v", b.known)
	}
	now := time.Unix(1000, 0)
	l := newLimiter(10, 2)
	for i, want := range []bool{true, true, false} {
		if got := l.allow(now); got != want {
			t.Fatalf("%d: %v", i, got)
		}
	}
	if !l.allow(now.Add(100*time.Millisecond)) || l.allow(now.Add(100*time.Millisecond)) {
		t.Fatal("a tenth of a second at ten a second is one")
	}
}

// TestFloodOfOnePeerLeavesOthersAlone: a member that floods with initiations,
// over the relay or from its own path, keeps out neither the other members nor
// those whose address it forges.
func TestFloodOfOnePeerLeavesOthersAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // where no time passes
		newPair := func() (b *bind, flooder, honest *Peer) {
			b = newBind(&Config{})
			b.identity.Store(newIdentity(fuzzKey(t, 1)))
			flooder, honest = newPeer(fuzzKey(t, 2).Public(), b), newPeer(fuzzKey(t, 3).Public(), b)
			b.peers[flooder.key], b.peers[honest.key] = flooder, honest
			return b, flooder, honest
		}
		flood := craftInitiation(t, fuzzKey(t, 1), fuzzKey(t, 2))
		wanted := craftInitiation(t, fuzzKey(t, 1), fuzzKey(t, 3))
		taken := func(b *bind, p *Peer, initiation []byte) int {
			before := len(b.relayed)
			b.handleRelayed(nil, p.key, initiation)
			return len(b.relayed) - before
		}

		b, flooder, _ := newPair()
		got, opened := 0, 0
		for i := range 2 * pathBurst {
			got += taken(b, flooder, renumbered(t, fuzzKey(t, 1), flood, uint32(i)))
		}
		if got != 1 || flooder.handshake.waiting != maxHeld || b.counters.limited.Load() != 2*pathBurst-1-maxHeld {
			t.Errorf("the device was given %d of the flood, and %d wait", got, flooder.handshake.waiting)
		}
		b, flooder, honest := newPair()
		for range 2 * pathBurst {
			if b.allowRelayed(flooder, time.Now()) {
				opened++
			}
		}
		if opened != peerBurst {
			t.Errorf("%d of the flood may be opened, want %d", opened, peerBurst)
		}
		if taken(b, honest, wanted) != 1 {
			t.Error("relayed: the other peer is kept out")
		}

		b, flooder, honest = newPair()
		flooder.SetPath(Path{Direct: netip.MustParseAddrPort("192.0.2.1:1")})
		path := netip.MustParseAddrPort("192.0.2.2:1")
		honest.SetPath(Path{Direct: path})
		for range 2 * pathBurst {
			b.allowDirect(flooder.Path().Direct, time.Now())
		}
		if !b.allowDirect(path, time.Now()) || taken(b, honest, wanted) != 1 {
			t.Error("direct: the other peer is kept out")
		}

		b, _, honest = newPair()
		honest.SetPath(Path{Direct: path})
		for range 2 * peerBurst { // forged
			b.allowDirect(path, time.Now())
		}
		if !b.allowDirect(path, time.Now()) {
			t.Error("a few forged packets keep a peer out")
		}
	})
}

func TestRemovedPeerIsCut(t *testing.T) {
	a, b, _, _ := connected(t)
	b.device.RemovePeer(a.key)
	for len(a.tap) > 0 {
		<-a.tap
	}
	if b.device.Peer(a.key) != nil {
		t.Fatal("peer is still there")
	}
	before := b.device.Counters().UnknownReceivers
	a.tun.out <- packet(a.addr, b.addr, 9)
	for {
		p := receive(t, a.tap)
		if messageType(p) == typeTransport && len(p) > transportSize {
			break
		}
	}
	stranger(t, b.at, []byte("something else"))
	receive(t, b.control)
	// What the tap had may be a packet from before: it has each after the socket.
	eventually(t, func() error {
		if got := b.device.Counters().UnknownReceivers; got == before {
			return errors.New("a packet of the removed peer was not dropped as unknown")
		}
		return nil
	})
	if len(b.tun.in) != 0 {
		t.Fatal("a packet of the removed peer arrived")
	}
	if len(b.device.bind.indexes.sessions) != 0 {
		t.Fatal("indexes of the removed peer remain")
	}
}

func TestHandshakeWaitsForPath(t *testing.T) {
	a, b := newSide(t, "100.64.0.1"), newSide(t, "100.64.0.2")
	atA := a.add(t, b)
	b.add(t, a).SetPath(Path{Direct: a.at})
	want := packet(a.addr, b.addr, 7)
	start := time.Now()
	a.tun.out <- want
	for atA.Unanswered() == 0 {
		if time.Since(start) > patience {
			t.Fatal("no handshake was begun")
		}
	}
	atA.SetPath(Path{Direct: b.at})
	if got := receive(t, b.tun.in); !bytes.Equal(got, want) {
		t.Fatalf("got % x", got)
	}
	if took := time.Since(start); took > pendingLife {
		t.Fatalf("the handshake was repeated: %v", took)
	}
}

// pipe is a relay between two devices.
type pipe struct {
	from ident.NodeKey
	to   *Device
	over Relay // what the receiver knows the relay as
}

func (p pipe) SendPackets(_ ident.NodeKey, packets [][]byte) {
	for _, b := range packets {
		p.to.HandleRelayed(p.over, p.from, b)
	}
}

func TestRelayedPackets(t *testing.T) {
	a, b := newSide(t, "100.64.0.1"), newSide(t, "100.64.0.2")
	a.add(t, b).SetPath(Path{Relay: pipe{a.key, b.device, nil}})
	b.add(t, a).SetPath(Path{Relay: pipe{b.key, a.device, nil}})
	pass(t, a, b, 1)
	pass(t, b, a, 2)
	if got := b.device.Counters().Received[LinkRelay].Packets; got == 0 {
		t.Fatal("no relayed packets were counted")
	}
	stats, err := a.device.Stats()
	if err != nil {
		t.Fatal(err)
	}
	s := stats[b.key]
	if s.LastHandshake.IsZero() || s.RxBytes == 0 || s.TxBytes == 0 {
		t.Fatalf("stats %+v", s)
	}
}

func TestRelayedUnderAnotherNameIsDropped(t *testing.T) {
	a, b := newSide(t, "100.64.0.1"), newSide(t, "100.64.0.2")
	c := newSide(t, "100.64.0.3")
	a.add(t, b).SetPath(Path{Relay: pipe{c.key, b.device, nil}}) // the relay says it is c's
	err := b.device.SetPeers([]PeerConfig{
		{a.key, []netip.Prefix{netip.PrefixFrom(a.addr, 32)}},
		{c.key, []netip.Prefix{netip.PrefixFrom(c.addr, 32)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	a.tun.out <- packet(a.addr, b.addr, 1)
	start := time.Now()
	for b.device.Counters().UnknownInitiations == 0 {
		if time.Since(start) > patience {
			t.Fatal("the initiation was not dropped")
		}
	}
}

// wrapped begins what stands for a relay's datagram in these tests: the sender's
// key and its packet.
const wrapped = 0x40

// datagrams is a relay to a device that takes datagrams.
type datagrams struct {
	from ident.NodeKey // as the relay says
	by   *Device       // of whoever sends
	to   netip.AddrPort
}

func (d datagrams) SendPackets(_ ident.NodeKey, packets [][]byte) {
	var out [][]byte
	for _, b := range packets {
		out = append(out, append(append([]byte{wrapped}, d.from[:]...), b...))
	}
	_ = d.by.SendDatagrams(out, d.to)
}

func TestRelayedDatagrams(t *testing.T) {
	a, b := newSide(t, "100.64.0.1"), newSide(t, "100.64.0.2")
	a.add(t, b).SetPath(Path{Relay: datagrams{a.key, a.device, b.at}})
	b.add(t, a).SetPath(Path{Relay: datagrams{b.key, b.device, a.at}})
	pass(t, a, b, 1)
	pass(t, b, a, 2)
	got := b.device.Counters()
	if got.Received[LinkRelay].Packets == 0 || got.Received[LinkIPv4].Packets != 0 {
		t.Fatalf("received %+v by link", got.Received)
	}
	// One that a relay says is another's is nobody's (F20).
	before := b.device.Counters().UnknownReceivers
	stranger := datagrams{ident.NodeKey{1}, a.device, b.at}
	b.device.Peer(a.key).SetPath(Path{})
	a.device.Peer(b.key).SetPath(Path{Relay: stranger})
	a.tun.out <- packet(a.addr, b.addr, 3)
	for start := time.Now(); b.device.Counters().UnknownReceivers == before; {
		if time.Since(start) > patience {
			t.Fatal("a packet under another's name was taken")
		}
	}
}

func TestRebindKeepsSessions(t *testing.T) {
	a, b, _, _ := connected(t)
	if err := a.device.Rebind(); err != nil {
		t.Fatal(err)
	}
	if a.device.Port() != a.at.Port() {
		t.Fatalf("port %d, was %d", a.device.Port(), a.at.Port())
	}
	pass(t, a, b, 3)
	pass(t, b, a, 4)
}

func TestSetPeersRefuses(t *testing.T) {
	a, b, _, _ := connected(t)
	for name, peers := range map[string][]PeerConfig{
		"own key":  {{Key: a.key}},
		"no key":   {{}},
		"repeated": {{Key: b.key}, {Key: b.key}},
	} {
		if err := a.device.SetPeers(peers); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	pass(t, a, b, 3)
}

func TestUAPILists(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the control socket's directory belongs to root")
	}
	a, b, _, _ := connected(t)
	ctx, cancel := context.WithCancel(t.Context())
	name := "warrentest" + a.key.Short()[:4]
	done := make(chan error, 1)
	go func() { done <- a.device.ServeUAPI(ctx, name) }()
	ask := func(request string) string {
		var c net.Conn
		start := time.Now()
		for {
			var err error
			if c, err = net.Dial("unix", "/var/run/wireguard/"+name+".sock"); err == nil {
				break
			}
			if time.Since(start) > patience {
				t.Fatal(err)
			}
		}
		defer c.Close()
		if _, err := c.Write([]byte(request)); err != nil {
			t.Fatal(err)
		}
		var answer bytes.Buffer
		buf := make([]byte, 4096)
		for !bytes.Contains(answer.Bytes(), []byte("errno=")) {
			n, err := c.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			answer.Write(buf[:n])
		}
		return answer.String()
	}
	listing := ask("get=1\n\n")
	for _, want := range []string{"listen_port=", "endpoint=" + b.at.String(), "allowed_ip=100.64.0.2/32", "errno=0"} {
		if !bytes.Contains([]byte(listing), []byte(want)) {
			t.Errorf("no %q in\n%s", want, listing)
		}
	}
	if got := ask("set=1\nreplace_peers=true\n\n"); got != "errno=-1\n\n" {
		t.Errorf("set: %q, want errno -1 (EPERM)", got)
	}
	pass(t, a, b, 3)
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestSpoofedSourcesAreCounted: the counters depend on the words in which
// WireGuard says what it drops.
func TestSpoofedSourcesAreCounted(t *testing.T) {
	a, b, _, _ := connected(t)
	everything := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	if err := a.device.SetPeers([]PeerConfig{{Key: b.key, AllowedIPs: everything}}); err != nil {
		t.Fatal(err)
	}
	six := make([]byte, 40)
	six[0], six[23], six[39] = 0x60, 9, 1
	for range 3 {
		a.tun.out <- packet(netip.MustParseAddr("100.64.0.9"), b.addr, 3)
		a.tun.out <- six
		a.tun.out <- six
	}
	pass(t, a, b, 4) // nothing else has arrived
	if c := b.device.Counters(); c.Spoofed4 != 3 || c.Spoofed6 != 6 {
		t.Fatalf("counted %d and %d, want 3 and 6", c.Spoofed4, c.Spoofed6)
	}
}
