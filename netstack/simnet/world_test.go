package simnet

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-overlay/warren/netstack/sock"
	"github.com/warren-overlay/warren/netstack/tun"
)

// pairWorld is two hosts 10 ms apart.
func pairWorld() (w *World, a, b *Host) {
	w = NewWorld(1)
	w.Do(func(n *Network) {
		n.SetPath(Path{Delay: 10 * time.Millisecond})
		a = n.Internet().NewHost("a", addr("9.0.0.1"), addr("2001:db8::1"))
		b = n.Internet().NewHost("b", addr("9.0.0.2"), addr("2001:db8::2"))
	})
	return w, a, b
}

func listen(t *testing.T, w *World, h *Host, port uint16) sock.Conn {
	t.Helper()
	c, err := w.ListenUDP(h, port)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestUDP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := pairWorld()
		ca, cb := listen(t, w, a, 0), listen(t, w, b, 7000)
		defer ca.Close()
		defer cb.Close()
		if _, err := w.ListenUDP(b, 7000); !errors.Is(err, sock.ErrPortInUse) {
			t.Errorf("port taken twice: %v", err)
		}
		start := time.Now()
		if err := ca.WriteBatch([][]byte{[]byte("one"), []byte("two"), {}}, at("9.0.0.2:7000")); err != nil {
			t.Fatal(err)
		}
		bufs, sizes, from := make([][]byte, 8), make([]int, 8), make([]netip.AddrPort, 8)
		for i := range bufs {
			bufs[i] = make([]byte, 100)
		}
		got := 0
		for got < 3 {
			n, err := cb.Readers()[0].ReadBatch(bufs[got:], sizes[got:], from[got:])
			if err != nil {
				t.Fatal(err)
			}
			got += n
		}
		if string(bufs[0][:sizes[0]]) != "one" || string(bufs[1][:sizes[1]]) != "two" || sizes[2] != 0 {
			t.Errorf("%q %q %d", bufs[0][:sizes[0]], bufs[1][:sizes[1]], sizes[2])
		}
		if want := netip.AddrPortFrom(addr("9.0.0.1"), ca.LocalPort()); from[0] != want {
			t.Errorf("from %v, want %v", from[0], want)
		}
		if d := time.Since(start); d != 10*time.Millisecond {
			t.Errorf("took %v", d)
		}
		// The other family comes by the other reader.
		if err := ca.WriteBatch([][]byte{[]byte("six")}, at("[2001:db8::2]:7000")); err != nil {
			t.Fatal(err)
		}
		if n, err := cb.Readers()[1].ReadBatch(bufs, sizes, from); err != nil || n != 1 || !from[0].Addr().Is6() {
			t.Errorf("%d %v from %v", n, err, from[0])
		}
		// Close unblocks.
		done := make(chan error)
		go func() {
			_, err := cb.Readers()[0].ReadBatch(bufs, sizes, from)
			done <- err
		}()
		synctest.Wait()
		cb.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
		if err := cb.WriteBatch(nil, at("9.0.0.1:1")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after Close: %v", err)
		}
	})
}

func TestNoFamily(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(1)
		var h *Host
		w.Do(func(n *Network) { h = n.Internet().NewHost("h", addr("9.0.0.1")) })
		c := listen(t, w, h, 0)
		defer c.Close()
		if err := c.WriteBatch([][]byte{{1}}, at("[2001:db8::1]:1")); !errors.Is(err, sock.ErrNoFamily) {
			t.Errorf("%v", err)
		}
	})
}

// TestHTTP: what runs on TCP runs on streams, in simulated time.
func TestHTTP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(1)
		var client, server *Host
		w.Do(func(n *Network) {
			n.SetPath(Path{Delay: 10 * time.Millisecond})
			lan, _ := n.Internet().NewLAN("lan", Symmetric, addr("1.1.1.1"), netip.Prefix{})
			client = lan.NewHost("client", addr("192.168.0.2"))
			server = n.Internet().NewHost("server", addr("9.0.0.2"))
		})
		l, err := w.Listen(server, 80)
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			io.WriteString(rw, r.RemoteAddr)
		})}
		go srv.Serve(l)
		transport := &http.Transport{DialContext: func(ctx context.Context, _, to string) (net.Conn, error) {
			return w.Dial(ctx, client, at(to))
		}}
		start := time.Now()
		resp, err := (&http.Client{Transport: transport}).Get("http://9.0.0.2:80/")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || netip.MustParseAddrPort(string(body)).Addr() != addr("1.1.1.1") {
			t.Errorf("the server sees %q (%v)", body, err)
		}
		// One round trip to connect and one for the request.
		if d := time.Since(start); d != 40*time.Millisecond {
			t.Errorf("took %v", d)
		}
		transport.CloseIdleConnections()
		srv.Close()
	})
}

func TestStreamEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := pairWorld()
		if _, err := w.Dial(t.Context(), a, at("9.0.0.2:80")); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("nobody listens: %v", err)
		}
		l, err := w.Listen(b, 80)
		if err != nil {
			t.Fatal(err)
		}
		near, err := w.Dial(t.Context(), a, at("9.0.0.2:80"))
		if err != nil {
			t.Fatal(err)
		}
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		// A deadline.
		start := time.Now()
		near.SetReadDeadline(start.Add(time.Second))
		if _, err := near.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		near.SetReadDeadline(time.Time{})
		// A cut stalls, and healing lets everything through.
		w.Do(func(n *Network) { n.Cut(a, b, true) })
		if _, err := far.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		near.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := near.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("through a cut: %q %v", buf[:n], err)
		}
		near.SetReadDeadline(time.Time{})
		w.Do(func(n *Network) { n.Cut(a, b, false) })
		if n, err := near.Read(buf); err != nil || string(buf[:n]) != "hello" {
			t.Errorf("%q %v", buf[:n], err)
		}
		// What was written before Close arrives, then the end.
		far.Write([]byte("bye"))
		far.Close()
		if got, err := io.ReadAll(near); err != nil || string(got) != "bye" {
			t.Errorf("%q %v", got, err)
		}
		if _, err := near.Write([]byte("x")); err == nil {
			t.Error("wrote to a closed end")
		}
		near.Close()
		l.Close()
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		w.Do(func(n *Network) { b.SetDown(true) })
		if _, err := w.Dial(ctx, a, at("9.0.0.2:80")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dialing a host that is down: %v", err)
		}
	})
}

func TestTUN(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := NewTUN(0)
		if mtu, err := d.MTU(); err != nil || mtu != tun.DefaultMTU {
			t.Errorf("MTU %d %v", mtu, err)
		}
		if d.Send(make([]byte, tun.DefaultMTU+1)) || !d.Send([]byte("out")) {
			t.Error("the MTU does not count, or too much")
		}
		bufs, sizes := [][]byte{make([]byte, 100), make([]byte, 100)}, make([]int, 2)
		if n, err := d.Read(bufs, sizes, 16); err != nil || n != 1 || string(bufs[0][16:16+sizes[0]]) != "out" {
			t.Errorf("%d %v %q", n, err, bufs[0][16:20])
		}
		if _, err := d.Write([][]byte{append(make([]byte, 16), "in"...)}, 16); err != nil {
			t.Fatal(err)
		}
		if p := <-d.Received(); string(p) != "in" {
			t.Errorf("%q", p)
		}
		want := tun.Settings{Addresses: []netip.Prefix{netip.MustParsePrefix("100.64.0.1/32")}, MTU: 1280}
		if err := d.Configure(want); err != nil || d.Settings().Addresses[0] != want.Addresses[0] {
			t.Errorf("%v %+v", err, d.Settings())
		}
		done := make(chan error)
		go func() {
			_, err := d.Read(bufs, sizes, 16)
			done <- err
		}()
		synctest.Wait()
		d.Close()
		if err := <-done; !errors.Is(err, os.ErrClosed) {
			t.Errorf("%v", err)
		}
		if d.Send([]byte("x")) {
			t.Error("sent into a closed device")
		}
	})
}
