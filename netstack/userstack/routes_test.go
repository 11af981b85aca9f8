package userstack

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

var (
	lan4, lan6 = netip.MustParseAddr("10.20.0.10"), netip.MustParseAddr("fd20::10")
	testRoutes = Routes{
		Forward: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/24"), netip.MustParsePrefix("fd20::/64")},
		Refuse:  []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd00:77::/48"), netip.MustParsePrefix("10.20.0.66/32")},
	}
)

// routerHost is what the tests say that the router's machine is connected to.
func routerHost() ([]netip.Prefix, error) {
	return []netip.Prefix{
		netip.MustParsePrefix("127.0.0.1/8"), netip.MustParsePrefix("10.20.0.1/24"), netip.MustParsePrefix("fd20::1/64"),
		netip.MustParsePrefix("192.168.7.5/24"),
	}, nil
}

// fakeHost answers echo requests for a host that there is not.
type fakeHost struct {
	replies chan []byte
	closed  chan struct{}
	once    sync.Once
}

func newFakeHost(netip.Addr) (echoSocket, error) {
	return &fakeHost{replies: make(chan []byte, 10), closed: make(chan struct{})}, nil
}

func (h *fakeHost) send(m []byte) error {
	reply := bytes.Clone(m)
	reply[0] = map[byte]byte{8: 0, 128: 129}[m[0]]
	binary.BigEndian.PutUint16(reply[4:], 0xbeef) // the system chose another identifier
	h.replies <- reply
	return nil
}

func (h *fakeHost) receive(b []byte) (int, error) {
	select {
	case m := <-h.replies:
		return copy(b, m), nil
	case <-h.closed:
		return 0, net.ErrClosed
	}
}

func (h *fakeHost) SetReadDeadline(time.Time) error { return nil }

func (h *fakeHost) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// routerPair returns a peer and a router whose hosts are services on this
// machine's loopback, whatever address was dialled; dialled are those.
func routerPair(t *testing.T, routes Routes, cfg Config) (peer, router *Stack, dialled func() []string) {
	t.Helper()
	cfg.hostPrefixes, cfg.openEcho = routerHost, newFakeHost
	peer, router = pair(t, cfg)
	if err := router.SetRoutes(routes); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var all []string
	router.routed.Load().forward.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		mu.Lock()
		all = append(all, network+" "+address)
		mu.Unlock()
		port := strconv.Itoa(int(netip.MustParseAddrPort(address).Port()))
		return (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
	}
	return peer, router, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(all)
	}
}

// TestRoutedFlows carries TCP and UDP of both families to hosts behind the
// router, and its own addresses stay what they were.
func TestRoutedFlows(t *testing.T) {
	peer, router, dialled := routerPair(t, testRoutes, Config{})
	port := localService(t, "127.0.0.1", echo)
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	go func() {
		buf := make([]byte, 2000)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			udp.WriteTo(append([]byte("re:"), buf[:n]...), from)
		}
	}()
	udpPort := udp.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	var want []string
	for _, host := range []netip.Addr{lan4, lan6} {
		to := netip.AddrPortFrom(host, port).String()
		conn, err := peer.DialContext(testContext(t), "tcp", to)
		if err != nil {
			t.Fatalf("%s: %v", to, err)
		}
		data := bytes.Repeat([]byte("warren"), 100_000)
		if got := roundTrip(t, conn, data); !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes came back, of %d", to, len(got), len(data))
		}
		conn.Close()
		datagrams, err := peer.DialContext(testContext(t), "udp", netip.AddrPortFrom(host, udpPort).String())
		if err != nil {
			t.Fatal(err)
		}
		exchange(t, datagrams, []byte("query"))
		datagrams.Close()
		want = append(want, "tcp "+to, "udp "+netip.AddrPortFrom(host, udpPort).String())
	}
	if got := dialled(); !slices.Equal(got, want) {
		t.Errorf("dialled %v, want %v", got, want)
	}
	if s := router.Stats(); s.Routed.TCPForwarded != 2 || s.Routed.UDPForwarded != 2 || s.TCPForwarded != 0 || s.UDPForwarded != 0 {
		t.Errorf("%+v", s)
	}
	// Own addresses are forwarded to the loopback as ever, and reach themselves.
	for _, from := range []*Stack{peer, router} {
		conn, err := from.DialContext(testContext(t), "tcp", netip.AddrPortFrom(addrB4, port).String())
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
}

// echoPacket is an echo request of either family.
func echoPacket(src, dst netip.Addr, id uint16) []byte {
	if src.Is4() {
		p := echoRequest(src, dst)
		binary.BigEndian.PutUint16(p[24:], id)
		return p
	}
	p := make([]byte, 40+8+12)
	p[0], p[5], p[6], p[7] = 0x60, 20, 58, 64
	copy(p[8:], src.AsSlice())
	copy(p[24:], dst.AsSlice())
	p[40] = 128
	binary.BigEndian.PutUint16(p[44:], id)
	copy(p[48:], "hello, world")
	return p
}

// sum6 is the checksum over an ICMPv6 packet and its pseudo header: 0 where it
// is right.
func sum6(p []byte) uint16 {
	pseudo := append(append([]byte(nil), p[8:40]...), 0, 0, 0, byte(len(p)-40), 0, 0, 0, 58)
	return onesComplement(append(pseudo, p[40:]...))
}

func TestRoutedEcho(t *testing.T) {
	s := newStack(t, Config{Addresses: []netip.Addr{addrB4, addrB6}, hostPrefixes: routerHost, openEcho: newFakeHost})
	if err := s.SetRoutes(testRoutes); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ peer, host netip.Addr }{{addrA4, lan4}, {addrA6, lan6}} {
		request := echoPacket(tc.peer, tc.host, 7)
		if _, err := s.Write([][]byte{request}, 0); err != nil {
			t.Fatal(err)
		}
		bufs, sizes := [][]byte{make([]byte, 2000)}, make([]int, 1)
		if _, err := s.Read(bufs, sizes, 0); err != nil {
			t.Fatal(err)
		}
		reply, at := bufs[0][:sizes[0]], 20
		want := append([]byte(nil), request...)
		if tc.peer.Is6() {
			at = 40
			copy(want[8:], tc.host.AsSlice())
			copy(want[24:], tc.peer.AsSlice())
			want[40] = 129
			if sum6(reply) != 0 {
				t.Error("wrong ICMPv6 checksum")
			}
		} else {
			copy(want[12:], tc.host.AsSlice())
			copy(want[16:], tc.peer.AsSlice())
			want[20] = 0
			if onesComplement(reply[:20]) != 0 || onesComplement(reply[20:]) != 0 {
				t.Error("wrong checksums")
			}
		}
		if !bytes.Equal(reply[at:at+2], want[at:at+2]) || !bytes.Equal(reply[at+4:], want[at+4:]) || !bytes.Equal(reply[at-8:at], want[at-8:at]) {
			t.Errorf("got % x, want % x but for checksums", reply, want)
		}
	}
	if got := s.Stats().Routed; got.EchoForwarded != 2 {
		t.Errorf("%+v", got)
	}
	// A peer has a quarter of the places, another one the rest.
	for id := range maxEchoes {
		s.Write([][]byte{echoPacket(addrA4, lan4, uint16(100+id))}, 0)
	}
	if got := s.Stats().Routed; got.EchoCapped != maxEchoes-(maxEchoes/4-1) {
		t.Errorf("%+v", got)
	}
}

// TestRoutedNeverReaches has what nobody may reach through a router, though the
// filter let it pass and a default route covers it (P3, S13): not one dial, and
// each is counted.
func TestRoutedNeverReaches(t *testing.T) {
	routes := testRoutes
	routes.Forward = append(slices.Clone(routes.Forward), netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"))
	routes.Refuse = append(slices.Clone(routes.Refuse), netip.MustParsePrefix("100.100.100.200/32"), netip.MustParsePrefix("168.63.129.16/32"))
	s := newStack(t, Config{Addresses: []netip.Addr{addrB4, addrB6}, hostPrefixes: routerHost, openEcho: func(netip.Addr) (echoSocket, error) {
		t.Error("a socket for echo requests was opened")
		return nil, errors.New("no")
	}})
	if err := s.SetRoutes(routes); err != nil {
		t.Fatal(err)
	}
	r := s.routed.Load()
	r.forward.dial = func(_ context.Context, network, address string) (net.Conn, error) {
		t.Errorf("dialled %s %s", network, address)
		return nil, errors.New("no")
	}
	for _, text := range []string{
		"127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "0.1.2.3", "::", "169.254.169.254", "fe80::1", "224.0.0.251", "ff02::fb", "255.255.255.255",
		"10.20.0.1", "fd20::1", "192.168.7.5", // the host's own
		"192.168.7.9",              // connected, not served: a default route does not lead there
		"10.20.0.255",              // the broadcast address of what is served
		"100.64.0.9", "fd00:77::9", // the overlay through a router
		"10.20.0.66",                       // the coordinator
		"100.100.100.200", "168.63.129.16", // metadata
		"64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a14:1", "2002:7f00:1::1", "2002:a14:42::1", "64:ff9b::c0a8:709",
	} {
		to := netip.MustParseAddr(text)
		if r.permitted(to) {
			t.Errorf("%s is permitted", to)
		}
		from := addrA4
		if to.Is6() {
			from = addrA6
		}
		before := s.Stats().Routed.NotPermitted
		s.Write([][]byte{echoPacket(from, to, 1)}, 0)
		if after := s.Stats().Routed.NotPermitted; after != before+1 {
			t.Errorf("%s: an echo request was counted %d times", to, after-before)
		}
	}
	for _, text := range []string{"10.20.0.10", "fd20::10", "8.8.8.8", "2001:db8::1", "64:ff9b::808:808"} {
		if !r.permitted(netip.MustParseAddr(text)) {
			t.Errorf("%s is not permitted", text)
		}
	}
	r.host.list, r.host.until = func() ([]netip.Prefix, error) { return nil, errors.New("no") }, time.Time{}
	if r.permitted(lan4) {
		t.Error("permitted though the host's addresses are unknown")
	}
}

// TestRoutesTakenBack ends what is carried where its route goes, and nothing
// else.
func TestRoutesTakenBack(t *testing.T) {
	peer, router, _ := routerPair(t, testRoutes, Config{})
	port := localService(t, "127.0.0.1", echo)
	var conns []net.Conn
	for _, host := range []netip.Addr{lan4, lan6} {
		conn, err := peer.DialContext(testContext(t), "tcp", netip.AddrPortFrom(host, port).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		conns = append(conns, conn)
	}
	ping := func(conn net.Conn) error {
		if _, err := io.WriteString(conn, "x"); err != nil {
			return err
		}
		_, err := io.ReadFull(conn, make([]byte, 1))
		return err
	}
	for _, conn := range conns {
		if err := ping(conn); err != nil {
			t.Fatal(err)
		}
	}
	only6 := testRoutes
	only6.Forward = testRoutes.Forward[1:]
	if err := router.SetRoutes(only6); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conns[0], make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("a flow whose route is gone: %v", err)
	}
	if err := ping(conns[1]); err != nil {
		t.Errorf("a flow whose route stays: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := peer.DialContext(ctx, "tcp", netip.AddrPortFrom(lan4, port).String()); err == nil {
		t.Error("a route that is gone was used")
	}
	if err := router.SetRoutes(Routes{}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conns[1], make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("a flow whose route is gone: %v", err)
	}
	if router.routed.Load() != nil {
		t.Error("the second stack is still there")
	}
}

// TestRoutedCaps: one peer gets a quarter.
func TestRoutedCaps(t *testing.T) {
	peer, router, _ := routerPair(t, testRoutes, Config{MaxTCPConnections: 8})
	port := localService(t, "127.0.0.1", echo)
	open := 0
	for range 4 {
		conn, err := peer.DialContext(testContext(t), "tcp", netip.AddrPortFrom(lan4, port).String())
		if err != nil {
			continue
		}
		open++
		defer conn.Close()
	}
	if s := router.Stats().Routed; open != 2 || s.TCPCapped != 2 {
		t.Errorf("%d connections are open; %+v", open, s)
	}
}

func TestRoutesAreValidated(t *testing.T) {
	s := newStack(t, Config{})
	for _, r := range []Routes{
		{Forward: []netip.Prefix{{}}},
		{Forward: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}},
		{Forward: testRoutes.Forward, Refuse: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("::ffff:1.2.3.4"), 128)}},
	} {
		if err := s.SetRoutes(r); !errors.Is(err, ErrRoutes) || s.routed.Load() != nil {
			t.Errorf("%v: %v", r, err)
		}
	}
	s.Close()
	if err := s.SetRoutes(testRoutes); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// FuzzParseEcho: whatever a peer sends, a request is one that its header says,
// and the reply to it is a packet between the same two.
func FuzzParseEcho(f *testing.F) {
	f.Add(echoPacket(addrA4, lan4, 7))
	f.Fuzz(func(t *testing.T, b []byte) {
		to, ok := destinationOf(b)
		if !ok {
			return
		}
		k, message, ok := parseEcho(b)
		if !ok {
			return
		}
		if k.host != to || k.host.Is4() != k.peer.Is4() || len(message) < echoHeader || binary.BigEndian.Uint16(message[4:]) != k.id {
			t.Fatalf("% x: %+v, % x", b, k, message)
		}
		packet := echoReply(k, message)
		defer packet.DecRef()
		var reply []byte
		for _, part := range packet.AsSlices() {
			reply = append(reply, part...)
		}
		if back, ok := destinationOf(reply); !ok || back != k.peer || len(reply) < len(message) {
			t.Fatalf("reply % x", reply)
		}
	})
}
