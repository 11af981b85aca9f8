package userstack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/tun"
)

var (
	addrA4, addrA6 = netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd00:77::1")
	addrB4, addrB6 = netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("fd00:77::2")
)

func newStack(t testing.TB, cfg Config) *Stack {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if open := s.forward.tcp.open() + s.forward.udp.open(); open != 0 {
			t.Errorf("%d flows are open after Close", open)
		}
	})
	return s
}

// connect carries packets from one device to the other until the first is
// closed, dropping those that drop asks for.
func connect(t testing.TB, from, to tun.Device, drop func(packet []byte) bool) {
	done := make(chan struct{})
	t.Cleanup(func() {
		from.Close()
		<-done
	})
	go func() {
		defer close(done)
		bufs, sizes := make([][]byte, from.BatchSize()), make([]int, from.BatchSize())
		for i := range bufs {
			bufs[i] = make([]byte, tun.Headroom+65535)
		}
		for {
			n, err := from.Read(bufs, sizes, tun.Headroom)
			if err != nil {
				if !errors.Is(err, os.ErrClosed) {
					t.Errorf("Read: %v", err)
				}
				return
			}
			packets := make([][]byte, 0, n)
			for i := range n {
				packet := bufs[i][:tun.Headroom+sizes[i]]
				if drop == nil || !drop(packet[tun.Headroom:]) {
					packets = append(packets, packet)
				}
			}
			// The other side may be closed already.
			if _, err := to.Write(packets, tun.Headroom); err != nil && !errors.Is(err, os.ErrClosed) {
				t.Errorf("Write: %v", err)
			}
		}
	}()
}

// pair returns two connected hosts.
func pair(t testing.TB, cfgB Config) (a, b *Stack) {
	a = newStack(t, Config{Addresses: []netip.Addr{addrA4, addrA6}})
	cfgB.Addresses = []netip.Addr{addrB4, addrB6}
	b = newStack(t, cfgB)
	connect(t, a, b, nil)
	connect(t, b, a, nil)
	return a, b
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// localService listens on a loopback address of the host and serves each
// connection.
func localService(t *testing.T, host string, serve func(conn *net.TCPConn)) (port uint16) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Skip("no loopback:", err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				serve(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

func echo(conn *net.TCPConn) {
	if _, err := io.Copy(conn, conn); err == nil {
		conn.CloseWrite()
	}
}

// roundTrip sends data, ends its side, and returns what comes back.
func roundTrip(t *testing.T, conn net.Conn, data []byte) []byte {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := conn.Write(data); err != nil {
			t.Errorf("Write: %v", err)
		}
		if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Errorf("CloseWrite: %v", err)
		}
	})
	got, err := io.ReadAll(conn)
	if err != nil {
		t.Errorf("after %d bytes: %v", len(got), err)
	}
	wg.Wait()
	return got
}

func TestForwardTCP(t *testing.T) {
	for _, tc := range []struct {
		name, host string
		to         netip.Addr
	}{
		{"v4 to v4", "127.0.0.1", addrB4},
		{"v6 to v6", "::1", addrB6},
		{"v4 to a service on v6 only", "::1", addrB4},
		{"v6 to a service on v4 only", "127.0.0.1", addrB6},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := pair(t, Config{})
			port := localService(t, tc.host, echo)
			conn, err := a.DialContext(testContext(t), "tcp", netip.AddrPortFrom(tc.to, port).String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			data := make([]byte, 3<<20)
			rand.NewChaCha8([32]byte{1}).Read(data)
			if got := roundTrip(t, conn, data); !bytes.Equal(got, data) {
				t.Fatalf("%d bytes came back, of %d, or others", len(got), len(data))
			}
			if stats := b.Stats(); stats.TCPForwarded != 1 || stats.TCPRefused != 0 {
				t.Errorf("%+v", stats)
			}
		})
	}
}

// TestForwardTCPWithLoss transfers over a path that loses packets.
func TestForwardTCPWithLoss(t *testing.T) {
	a := newStack(t, Config{Addresses: []netip.Addr{addrA4}})
	b := newStack(t, Config{Addresses: []netip.Addr{addrB4}})
	lossy := func(seed uint64) func([]byte) bool {
		rng := rand.New(rand.NewPCG(seed, 0))
		return func([]byte) bool { return rng.IntN(100) == 0 }
	}
	connect(t, a, b, lossy(1))
	connect(t, b, a, lossy(2))
	sum := make(chan [32]byte, 1)
	port := localService(t, "127.0.0.1", func(conn *net.TCPConn) {
		h := sha256.New()
		io.Copy(h, conn)
		sum <- [32]byte(h.Sum(nil))
	})
	conn, err := a.DialContext(testContext(t), "tcp4", netip.AddrPortFrom(addrB4, port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	data := make([]byte, 2<<20)
	rand.NewChaCha8([32]byte{2}).Read(data)
	if _, err := conn.Write(data); err != nil {
		t.Fatal(err)
	}
	conn.(interface{ CloseWrite() error }).CloseWrite()
	if got := <-sum; got != sha256.Sum256(data) {
		t.Fatal("other bytes arrived")
	}
}

func TestForwardTCPRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closedPort := l.Addr().(*net.TCPAddr).AddrPort().Port()
	l.Close()
	served := localService(t, "127.0.0.1", echo)
	for _, tc := range []struct {
		name string
		cfg  Config
		port uint16
	}{
		{"no service", Config{}, closedPort},
		{"refused port", Config{Refuse: func(port uint16) bool { return port == served }}, served},
	} {
		a, b := pair(t, tc.cfg)
		conn, err := a.DialContext(testContext(t), "tcp", netip.AddrPortFrom(addrB4, tc.port).String())
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v, %v; want ECONNREFUSED", tc.name, conn, err)
		}
		if stats := b.Stats(); stats.TCPRefused == 0 || stats.TCPForwarded != 0 {
			t.Errorf("%s: %+v", tc.name, stats)
		}
	}
}

// TestForwardOnlyOwnAddresses sends connections for foreign addresses straight
// into the device.
func TestForwardOnlyOwnAddresses(t *testing.T) {
	a, b := pair(t, Config{})
	port := localService(t, "127.0.0.1", echo)
	for _, to := range []string{"169.254.169.254", "127.0.0.1", "10.0.0.1", "100.64.0.3", "::1", "fd00:77::3", "0.0.0.0", "255.255.255.255"} {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		conn, err := a.DialContext(ctx, "tcp", netip.AddrPortFrom(netip.MustParseAddr(to), port).String())
		cancel()
		if err == nil {
			conn.Close()
			t.Errorf("a connection to %s was forwarded", to)
		}
	}
	if stats := b.Stats(); stats.TCPForwarded != 0 {
		t.Errorf("%+v", stats)
	}
	// What was an own address is none when it is taken away.
	if err := b.SetAddresses([]netip.Addr{addrB6}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := a.DialContext(ctx, "tcp", netip.AddrPortFrom(addrB4, port).String()); err == nil {
		t.Error("a connection to a removed address was forwarded")
	}
	conn, err := a.DialContext(testContext(t), "tcp", netip.AddrPortFrom(addrB6, port).String())
	if err != nil {
		t.Fatalf("the address that stayed: %v", err)
	}
	conn.Close()
}

func TestForwardTCPReset(t *testing.T) {
	a, _ := pair(t, Config{})
	port := localService(t, "127.0.0.1", func(conn *net.TCPConn) {
		conn.Read(make([]byte, 1))
		conn.SetLinger(0)
	})
	conn, err := a.DialContext(testContext(t), "tcp", netip.AddrPortFrom(addrB4, port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); err == nil {
		t.Error("a reset of the service arrived as an orderly end")
	}
}

func TestForwardTCPCaps(t *testing.T) {
	a, b := pair(t, Config{MaxTCPConnections: 8})
	port := localService(t, "127.0.0.1", func(conn *net.TCPConn) { io.Copy(io.Discard, conn) })
	to := netip.AddrPortFrom(addrB4, port).String()
	for range 2 { // a quarter of 8 for one peer
		conn, err := a.DialContext(testContext(t), "tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if _, err := a.DialContext(testContext(t), "tcp", to); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("beyond the cap: %v", err)
	}
	// The peer's side of a handshake is done a moment before ours.
	for ctx := testContext(t); b.Stats().TCPCapped != 1 || b.Stats().TCPForwarded != 2; runtime.Gosched() {
		if ctx.Err() != nil {
			t.Fatalf("%+v", b.Stats())
		}
	}
	// The other address of the same host is another peer.
	if conn, err := a.DialContext(testContext(t), "tcp", netip.AddrPortFrom(addrB6, port).String()); err != nil {
		t.Errorf("another peer: %v", err)
	} else {
		conn.Close()
	}
}

func localUDP(t *testing.T, host string) (port uint16) {
	t.Helper()
	pc, err := net.ListenPacket("udp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Skip("no loopback:", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 65535)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			pc.WriteTo(append([]byte("re:"), buf[:n]...), from)
		}
	}()
	t.Cleanup(func() {
		pc.Close()
		<-done
	})
	return pc.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

func exchange(t *testing.T, conn net.Conn, payload []byte) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := conn.Write(payload); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 65535)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	if want := append([]byte("re:"), payload...); !bytes.Equal(buf[:n], want) {
		t.Fatalf("%d bytes came back, want %d", n, len(want))
	}
}

func TestForwardUDP(t *testing.T) {
	for _, tc := range []struct {
		host string
		to   netip.Addr
	}{{"127.0.0.1", addrB4}, {"::1", addrB6}} {
		t.Run(tc.host, func(t *testing.T) {
			a, b := pair(t, Config{})
			port := localUDP(t, tc.host)
			conn, err := a.DialContext(testContext(t), "udp", netip.AddrPortFrom(tc.to, port).String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			for _, size := range []int{0, 5, 1000, 1392, 5000} { // the last is fragmented
				exchange(t, conn, make([]byte, size))
			}
			if stats := b.Stats(); stats.UDPForwarded != 1 {
				t.Errorf("%+v", stats)
			}
		})
	}
}

func TestForwardUDPIdle(t *testing.T) {
	a, b := pair(t, Config{UDPIdle: 20 * time.Millisecond})
	port := localUDP(t, "127.0.0.1")
	conn, err := a.DialContext(testContext(t), "udp", netip.AddrPortFrom(addrB4, port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	exchange(t, conn, []byte("one"))
	for ctx := testContext(t); b.forward.udp.open() != 0; runtime.Gosched() {
		if ctx.Err() != nil {
			t.Fatal("an idle flow never ended")
		}
	}
	exchange(t, conn, []byte("two"))
	if stats := b.Stats(); stats.UDPForwarded != 2 {
		t.Errorf("%+v", stats)
	}
}

func TestForwardUDPCapsAndRefusals(t *testing.T) {
	served := localUDP(t, "127.0.0.1")
	refused := localUDP(t, "127.0.0.1")
	a, b := pair(t, Config{MaxUDPFlows: 4, Refuse: func(port uint16) bool { return port == refused }})
	first, err := a.DialContext(testContext(t), "udp", netip.AddrPortFrom(addrB4, served).String())
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	exchange(t, first, []byte("one"))
	for _, port := range []uint16{served, refused} {
		conn, err := a.DialContext(testContext(t), "udp", netip.AddrPortFrom(addrB4, port).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	for ctx := testContext(t); b.Stats().UDPCapped != 1 || b.Stats().UDPRefused != 1; runtime.Gosched() {
		if ctx.Err() != nil {
			t.Fatalf("%+v", b.Stats())
		}
	}
	exchange(t, first, []byte("still"))
}

func TestListenServesInsteadOfForwarding(t *testing.T) {
	a, b := pair(t, Config{})
	l, err := b.ListenTCP(netip.AddrPortFrom(addrB4, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		io.WriteString(conn, "from the stack")
		conn.Close()
	}()
	conn, err := a.DialContext(testContext(t), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if got, err := io.ReadAll(conn); err != nil || string(got) != "from the stack" {
		t.Fatalf("%q, %v", got, err)
	}

	pc, err := b.ListenUDP(netip.AddrPortFrom(addrB6, 53))
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	go func() {
		buf := make([]byte, 100)
		n, from, err := pc.ReadFrom(buf)
		if err == nil {
			pc.WriteTo(append([]byte("re:"), buf[:n]...), from)
		}
	}()
	udp, err := a.DialContext(testContext(t), "udp6", netip.AddrPortFrom(addrB6, 53).String())
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	exchange(t, udp, []byte("query"))

	if _, err := b.ListenTCP(netip.AddrPortFrom(addrA4, 80)); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("listening on a foreign address: %v", err)
	}
}

func TestEchoIsAnswered(t *testing.T) {
	s := newStack(t, Config{Addresses: []netip.Addr{addrB4}})
	if _, err := s.Write([][]byte{echoRequest(addrA4, addrB4)}, 0); err != nil {
		t.Fatal(err)
	}
	bufs, sizes := [][]byte{make([]byte, 2000)}, make([]int, 1)
	if _, err := s.Read(bufs, sizes, 0); err != nil {
		t.Fatal(err)
	}
	reply := bufs[0][:sizes[0]]
	if reply[9] != 1 || reply[20] != 0 || !bytes.Equal(reply[12:16], addrB4.AsSlice()) || !bytes.Equal(reply[24:], echoRequest(addrA4, addrB4)[24:]) {
		t.Errorf("no echo reply: % x", reply)
	}
	if onesComplement(reply[:20]) != 0 || onesComplement(reply[20:]) != 0 {
		t.Error("wrong checksums")
	}
}

// echoRequest is an ICMP echo request (RFC 792) with some data.
func echoRequest(src, dst netip.Addr) []byte {
	p := make([]byte, 20+8+12)
	p[0], p[8], p[9] = 0x45, 64, 1
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[12:], src.AsSlice())
	copy(p[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(p[10:], onesComplement(p[:20]))
	p[20] = 8
	copy(p[28:], "hello, world")
	binary.BigEndian.PutUint16(p[22:], onesComplement(p[20:]))
	return p
}

// onesComplement is that of RFC 1071 over an even number of bytes.
func onesComplement(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func TestWriteInvalid(t *testing.T) {
	s := newStack(t, Config{Addresses: []netip.Addr{addrB4, addrB6}})
	short6 := make([]byte, 39)
	short6[0] = 0x60
	for _, packet := range [][]byte{nil, {0}, make([]byte, 19), {0x45}, short6, bytes.Repeat([]byte{0x55}, 60)} {
		if _, err := s.Write([][]byte{packet}, 0); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Stats().InvalidPackets; got != 6 {
		t.Errorf("%d invalid packets counted", got)
	}
}

func FuzzWrite(f *testing.F) {
	f.Add(echoRequest(addrA4, addrB4))
	f.Add([]byte{0x60})
	s, err := New(Config{Addresses: []netip.Addr{addrB4, addrB6}, Refuse: func(uint16) bool { return true }})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	f.Fuzz(func(t *testing.T, packet []byte) {
		if _, err := s.Write([][]byte{packet}, 0); err != nil {
			t.Fatal(err)
		}
	})
}

func TestDialErrors(t *testing.T) {
	s := newStack(t, Config{Addresses: []netip.Addr{addrA4}})
	for _, tc := range []struct {
		network, address string
		want             error
	}{
		{"tcp", "name:80", ErrAddress},
		{"tcp", "100.64.0.2", ErrAddress},
		{"tcp", "100.64.0.2:0", ErrAddress},
		{"tcp6", "100.64.0.2:80", ErrAddress},
		{"tcp4", "[fd00:77::2]:80", ErrAddress},
		{"unix", "100.64.0.2:80", ErrAddress},
		{"", "100.64.0.2:80", ErrAddress},
		{"tcp", "[fd00:77::2]:80", syscall.EADDRNOTAVAIL},
		{"udp", "[fd00:77::2]:80", syscall.EADDRNOTAVAIL},
	} {
		if _, err := s.DialContext(testContext(t), tc.network, tc.address); !errors.Is(err, tc.want) {
			t.Errorf("DialContext(%q, %q): %v, want %v", tc.network, tc.address, err, tc.want)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if _, err := s.DialContext(ctx, "tcp", "100.64.0.2:80"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nobody answers: %v", err)
	}
}

func TestConfigureAndErrors(t *testing.T) {
	s := newStack(t, Config{})
	if err := s.Configure(tun.Settings{Addresses: []netip.Prefix{netip.MustParsePrefix("100.64.0.5/32")}, MTU: 1300}); err != nil {
		t.Fatal(err)
	}
	if mtu, _ := s.MTU(); mtu != 1300 || !(*s.own.Load())[netip.MustParseAddr("100.64.0.5")] {
		t.Errorf("MTU %d, addresses %v", mtu, *s.own.Load())
	}
	for _, addr := range []netip.Addr{{}, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("::ffff:1.2.3.4"), netip.MustParseAddr("224.0.0.1"), netip.MustParseAddr("fe80::1%1")} {
		if err := s.SetAddresses([]netip.Addr{addr}); err == nil {
			t.Errorf("%v was accepted", addr)
		}
	}
	for _, bad := range []Config{{MTU: 1279}, {MTU: 70000}, {MaxTCPConnections: -1}, {Addresses: []netip.Addr{{}}}} {
		if s, err := New(bad); err == nil {
			s.Close()
			t.Errorf("%+v was accepted", bad)
		}
	}
}

// TestCloseEndsEverything closes a stack in the middle of transfers, handshakes
// and waiting calls.
func TestCloseEndsEverything(t *testing.T) {
	a, b := pair(t, Config{})
	held := localService(t, "127.0.0.1", func(conn *net.TCPConn) { io.Copy(io.Discard, conn) })
	udpPort := localUDP(t, "127.0.0.1")
	l, err := b.ListenTCP(netip.AddrPortFrom(addrB4, 0))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := l.Accept(); err == nil {
			t.Error("Accept succeeded")
		}
	})
	wg.Go(func() {
		if _, err := b.DialContext(context.Background(), "tcp", "100.64.9.9:80"); err == nil {
			t.Error("a dial to nobody succeeded")
		}
	})
	conn, err := a.DialContext(testContext(t), "tcp", netip.AddrPortFrom(addrB4, held).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	udp, err := a.DialContext(testContext(t), "udp", netip.AddrPortFrom(addrB4, udpPort).String())
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	exchange(t, udp, []byte("x"))
	for range 2 {
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	if _, err := b.DialContext(testContext(t), "tcp", "100.64.0.1:80"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("DialContext after Close: %v", err)
	}
	if _, err := b.ListenTCP(netip.AddrPortFrom(addrB4, 0)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("ListenTCP after Close: %v", err)
	}
	if _, err := b.Write([][]byte{echoRequest(addrA4, addrB4)}, 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write after Close: %v", err)
	}
	if err := b.SetAddresses(nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("SetAddresses after Close: %v", err)
	}
}

func BenchmarkTCP(bm *testing.B) {
	a, b := pair(bm, Config{})
	l, err := b.ListenTCP(netip.AddrPortFrom(addrB4, 0))
	if err != nil {
		bm.Fatal(err)
	}
	received := make(chan int64)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		n, _ := io.Copy(io.Discard, conn)
		received <- n
	}()
	conn, err := a.DialContext(testContext(bm), "tcp", l.Addr().String())
	if err != nil {
		bm.Fatal(err)
	}
	block := make([]byte, 128<<10)
	bm.SetBytes(int64(len(block)))
	for bm.Loop() {
		if _, err := conn.Write(block); err != nil {
			bm.Fatal(err)
		}
	}
	conn.Close()
	<-received
	bm.ReportMetric(float64(a.Stats().DroppedPackets+b.Stats().DroppedPackets), "dropped")
}

// TestCloseDuringHandshake closes a stack that waits for a peer to complete a
// connection.
func TestCloseDuringHandshake(t *testing.T) {
	b := newStack(t, Config{Addresses: []netip.Addr{addrB4}})
	port := localService(t, "127.0.0.1", echo)
	syn := tcpPacket{src: addrA4, dst: addrB4, sport: 1000, dport: port, seq: 1, flags: 2, window: 1000, ttl: 64}
	if _, err := b.Write([][]byte{syn.bytes()}, 0); err != nil {
		t.Fatal(err)
	}
	bufs, sizes := [][]byte{make([]byte, 2000)}, make([]int, 1)
	if _, err := b.Read(bufs, sizes, 0); err != nil {
		t.Fatal(err)
	}
	if flags := bufs[0][33]; flags != 2|flagACK {
		t.Fatalf("answered with flags %#x, not with SYN and ACK", flags)
	}
	begin := time.Now()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("Close took %v", took)
	}
}

func TestIdleMemory(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s := newStack(t, Config{Addresses: []netip.Addr{addrA4, addrA6}})
	runtime.GC()
	runtime.ReadMemStats(&after)
	const limit = 2 << 20
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > limit {
		t.Errorf("an idle stack holds %d bytes", grown)
	} else {
		t.Logf("an idle stack holds %d bytes", grown)
	}
	runtime.KeepAlive(s)
}
