package userstack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

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
