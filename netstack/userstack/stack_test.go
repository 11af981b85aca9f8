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
// roundTrip sends data, ends its side, and returns what comes back.
// TestForwardTCPWithLoss transfers over a path that loses packets.
// TestForwardOnlyOwnAddresses sends connections for foreign addresses straight
// into the device.
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
