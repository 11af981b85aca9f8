package sock

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

var (
	loopback4 = netip.MustParseAddr("127.0.0.1")
	loopback6 = netip.MustParseAddr("::1")
)

// listen opens a port on loopback in the families the host has.
func listen(t testing.TB, cfg Config) Conn {
	t.Helper()
	if cfg.Addresses == nil {
		cfg.Addresses = []netip.Addr{loopback4, loopback6}
	}
	c, err := Listen(cfg)
	if errors.Is(err, ErrNoFamily) && len(cfg.Addresses) == 2 {
		cfg.Addresses = cfg.Addresses[:1]
		c, err = Listen(cfg)
	}
	if err != nil {
		t.Fatalf("Listen: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// inbox is the memory for one reader's batches.
type inbox struct {
	bufs  [][]byte
	sizes []int
	from  []netip.AddrPort
}

func newInbox(batch, size int) *inbox {
	in := &inbox{bufs: make([][]byte, batch), sizes: make([]int, batch), from: make([]netip.AddrPort, batch)}
	for i := range in.bufs {
		in.bufs[i] = make([]byte, size)
	}
	return in
}

// receive reads count datagrams, or fails after a deadline that only a hanging
// test meets.
func receive(t *testing.T, r Reader, c Conn, in *inbox, count int) (data [][]byte, from []netip.AddrPort) {
	t.Helper()
	watchdog := time.AfterFunc(20*time.Second, func() { c.Close() })
	defer watchdog.Stop()
	for len(data) < count {
		n, err := r.ReadBatch(in.bufs, in.sizes, in.from)
		if err != nil {
			t.Fatalf("after %d of %d datagrams: %v", len(data), count, err)
		}
		if n < 1 || n > len(in.bufs) {
			t.Fatalf("ReadBatch returned %d of %d buffers", n, len(in.bufs))
		}
		for i := range n {
			data = append(data, bytes.Clone(in.bufs[i][:in.sizes[i]]))
			from = append(from, in.from[i])
		}
	}
	return data, from
}

func pattern(n, size int) [][]byte {
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = make([]byte, size)
		for j := range bufs[i] {
			bufs[i][j] = byte(i + j)
		}
		if size >= 4 {
			binary.BigEndian.PutUint32(bufs[i], uint32(i))
		}
	}
	return bufs
}

func TestWriteBatchArrives(t *testing.T) {
	mixed := append(append(pattern(3, 1400), pattern(1, 700)...), append(pattern(2, 0), pattern(5, 1401)...)...)
	cases := []struct {
		name string
		bufs [][]byte
	}{
		{"none", nil},
		{"one", pattern(1, 100)},
		{"empty datagram", pattern(1, 0)},
		{"two runs of 64", pattern(128, 300)},
		{"longest coalesced message", pattern(50, 1400)},
		{"beyond one message", pattern(128, 1452)},
		{"beyond BatchSize", pattern(300, 64)},
		{"sizes change", mixed},
		{"growing", [][]byte{make([]byte, 1), make([]byte, 2), make([]byte, 3)}},
	}
	for _, disableTx := range []bool{false, true} {
		for _, disableRx := range []bool{false, true} {
			for _, local := range []netip.Addr{loopback4, loopback6} {
				a, b := listen(t, Config{DisableOffload: disableTx}), listen(t, Config{DisableOffload: disableRx})
				if local.Is6() && len(b.Readers()) == 1 {
					t.Skip("no IPv6 loopback on this host")
				}
				reader := b.Readers()[0]
				if local.Is6() {
					reader = b.Readers()[1]
				}
				for _, tc := range cases {
					t.Run(fmt.Sprintf("%s/plainTx=%v/plainRx=%v/%s", tc.name, disableTx, disableRx, local), func(t *testing.T) {
						if err := a.WriteBatch(tc.bufs, netip.AddrPortFrom(local, b.LocalPort())); err != nil {
							t.Fatal(err)
						}
						// Few, small buffers make a coalesced message wait
						// over several calls.
						got, from := receive(t, reader, b, newInbox(7, 1500), len(tc.bufs))
						for i := range got {
							if !bytes.Equal(got[i], tc.bufs[i]) {
								t.Fatalf("datagram %d: got %d bytes, want %d, or other content", i, len(got[i]), len(tc.bufs[i]))
							}
							if from[i] != netip.AddrPortFrom(local, a.LocalPort()) {
								t.Fatalf("datagram %d comes from %v", i, from[i])
							}
						}
					})
				}
			}
		}
	}
}

func TestWriteBatchMappedDestination(t *testing.T) {
	a, b := listen(t, Config{}), listen(t, Config{})
	mapped := netip.AddrPortFrom(netip.AddrFrom16(loopback4.As16()), b.LocalPort())
	if !mapped.Addr().Is4In6() {
		t.Fatal("address under test is not mapped")
	}
	if err := a.WriteBatch(pattern(1, 10), mapped); err != nil {
		t.Fatal(err)
	}
	_, from := receive(t, b.Readers()[0], b, newInbox(1, 100), 1)
	if !from[0].Addr().Is4() {
		t.Fatalf("source %v is not a plain IPv4 address", from[0])
	}
}

func TestReadBatchCutsOff(t *testing.T) {
	for _, plain := range []bool{false, true} {
		a, b := listen(t, Config{}), listen(t, Config{DisableOffload: plain})
		if err := a.WriteBatch(pattern(3, 100), netip.AddrPortFrom(loopback4, b.LocalPort())); err != nil {
			t.Fatal(err)
		}
		got, _ := receive(t, b.Readers()[0], b, newInbox(8, 40), 3)
		for i, g := range got {
			if len(g) != 40 || binary.BigEndian.Uint32(g) != uint32(i) {
				t.Fatalf("plain=%v: datagram %d: % x", plain, i, g)
			}
		}
	}
}

func TestListenSamePortBothFamilies(t *testing.T) {
	c, err := Listen(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.LocalPort() == 0 {
		t.Fatal("no port")
	}
	udp := c.(*udpConn)
	for _, s := range []*socket{udp.v4, udp.v6} {
		if s != nil && s.conn.LocalAddr().(*net.UDPAddr).Port != int(c.LocalPort()) {
			t.Fatalf("port %v, want %d", s.conn.LocalAddr(), c.LocalPort())
		}
	}
	if _, err := Listen(Config{Port: c.LocalPort()}); !errors.Is(err, ErrPortInUse) {
		t.Fatalf("second Listen on the port: %v", err)
	}
}

func TestListenReleasesAfterError(t *testing.T) {
	// The IPv6 half of the port is taken, so Listen must give the IPv4 half
	// back.
	pc, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 loopback on this host:", err)
	}
	defer pc.Close()
	port := pc.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	if _, err := Listen(Config{Port: port, Addresses: []netip.Addr{loopback4, loopback6}}); !errors.Is(err, ErrPortInUse) {
		t.Fatalf("Listen on a taken port: %v", err)
	}
	c, err := Listen(Config{Port: port, Addresses: []netip.Addr{loopback4}})
	if err != nil {
		t.Fatal("the IPv4 socket is still open:", err)
	}
	c.Close()
}

func TestListenAddresses(t *testing.T) {
	for _, addresses := range [][]netip.Addr{{loopback4, netip.MustParseAddr("127.0.0.2")}, {{}}} {
		if _, err := Listen(Config{Addresses: addresses}); err == nil {
			t.Errorf("Listen on %v succeeded", addresses)
		}
	}
	if _, err := Listen(Config{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}); !errors.Is(err, ErrNoFamily) {
		t.Errorf("Listen on an address of another host: %v", err)
	}
	c := listen(t, Config{Addresses: []netip.Addr{loopback4}})
	if err := c.WriteBatch(pattern(1, 1), netip.AddrPortFrom(loopback6, 9)); !errors.Is(err, ErrNoFamily) {
		t.Errorf("sending to a family that is not open: %v", err)
	}
	if err := c.WriteBatch(pattern(1, 1), netip.AddrPort{}); !errors.Is(err, ErrNoFamily) {
		t.Errorf("sending to no address: %v", err)
	}
}

func TestCloseUnblocks(t *testing.T) {
	for _, plain := range []bool{false, true} {
		c := listen(t, Config{DisableOffload: plain})
		to := netip.AddrPortFrom(loopback4, c.LocalPort())
		var wg sync.WaitGroup
		started := make(chan struct{}, len(c.Readers()))
		for _, r := range c.Readers() {
			wg.Go(func() {
				in := newInbox(c.BatchSize(), 2000)
				started <- struct{}{}
				for {
					_, err := r.ReadBatch(in.bufs, in.sizes, in.from)
					if errors.Is(err, net.ErrClosed) {
						return
					}
					if err != nil {
						t.Errorf("ReadBatch: %v", err)
						return
					}
				}
			})
		}
		for range 3 {
			wg.Go(func() {
				bufs := pattern(64, 1200)
				for {
					err := c.WriteBatch(bufs, to)
					if errors.Is(err, net.ErrClosed) {
						return
					}
					if err != nil {
						t.Errorf("WriteBatch: %v", err)
						return
					}
				}
			})
		}
		for range c.Readers() {
			<-started
		}
		for range 2 {
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		}
		wg.Wait()
		in := newInbox(1, 10)
		if _, err := c.Readers()[0].ReadBatch(in.bufs, in.sizes, in.from); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("ReadBatch after Close: %v", err)
		}
		if err := c.SetMark(1); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("SetMark after Close: %v", err)
		}
	}
}

func TestSetMarkZeroNeedsNoPrivilege(t *testing.T) {
	if err := listen(t, Config{}).SetMark(0); err != nil {
		t.Fatal(err)
	}
}

func TestLocalAddrs(t *testing.T) {
	got, err := LocalAddrs(LocalConfig{Loopback: true, Containers: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) == 0 {
		t.Fatal("not even loopback was found")
	}
	for i, addr := range got {
		if addr.Is4In6() || addr.IsLinkLocalUnicast() || addr.IsUnspecified() || i > 0 && got[i-1].Compare(addr) >= 0 {
			t.Errorf("%v at %d in %v", addr, i, got)
		}
	}
	overlay := make([]netip.Prefix, len(got))
	for i, addr := range got {
		overlay[i] = netip.PrefixFrom(addr, addr.BitLen())
	}
	if left, _ := LocalAddrs(LocalConfig{Loopback: true, Containers: true, Overlay: overlay}); len(left) != 0 {
		t.Errorf("addresses of the overlay were returned: %v", left)
	}
}

func TestLocalConfigWants(t *testing.T) {
	overlay := LocalConfig{Overlay: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd00:1::/48")}}
	for addr, want := range map[string]bool{
		"192.0.2.1": true, "10.0.0.1": true, "2001:db8::1": true, "fd00:2::1": true,
		"127.0.0.1": false, "::1": false, "169.254.1.1": false, "fe80::1": false,
		"100.64.0.1": false, "fd00:1::1": false, "224.0.0.1": false, "0.0.0.0": false, "255.255.255.255": false,
	} {
		if got := overlay.wantAddr(netip.MustParseAddr(addr)); got != want {
			t.Errorf("wantAddr(%s) = %v", addr, got)
		}
	}
	for _, tc := range []struct {
		name  string
		flags net.Flags
		cfg   LocalConfig
		want  bool
	}{
		{"eth0", net.FlagUp, LocalConfig{}, true},
		{"eth0", 0, LocalConfig{}, false},
		{"lo", net.FlagUp | net.FlagLoopback, LocalConfig{}, false},
		{"lo", net.FlagUp | net.FlagLoopback, LocalConfig{Loopback: true}, true},
		{"docker0", net.FlagUp, LocalConfig{}, false},
		{"docker0", net.FlagUp, LocalConfig{Containers: true}, true},
		{"br-7a0c", net.FlagUp, LocalConfig{}, false},
		{"br0", net.FlagUp, LocalConfig{}, true},
		{"veth12", net.FlagUp, LocalConfig{}, false},
		{"cni0", net.FlagUp, LocalConfig{}, false},
		{"virbr0", net.FlagUp, LocalConfig{}, false},
	} {
		if got := tc.cfg.wantInterface(tc.name, tc.flags, nil); got != tc.want {
			t.Errorf("wantInterface(%q, %v) = %v with %+v", tc.name, tc.flags, got, tc.cfg)
		}
	}
}

// BenchmarkLoopback sends batches of datagrams of a tunnel's size and receives
// them, each on its own goroutine; what was lost is not counted.
func BenchmarkLoopback(b *testing.B) {
	for _, plain := range []bool{false, true} {
		b.Run(fmt.Sprintf("plain=%v", plain), func(b *testing.B) {
			from, to := listen(b, Config{DisableOffload: plain}), listen(b, Config{DisableOffload: plain})
			received := make(chan int64)
			go func() {
				in, total := newInbox(to.BatchSize(), 65535), int64(0)
				for {
					n, err := to.Readers()[0].ReadBatch(in.bufs, in.sizes, in.from)
					if err != nil {
						received <- total
						return
					}
					for _, size := range in.sizes[:n] {
						total += int64(size)
					}
				}
			}()
			bufs := pattern(to.BatchSize(), 1452)
			for b.Loop() {
				if err := from.WriteBatch(bufs, netip.AddrPortFrom(loopback4, to.LocalPort())); err != nil {
					b.Fatal(err)
				}
			}
			elapsed := b.Elapsed()
			to.Close()
			b.ReportMetric(float64(<-received)*8/1e9/elapsed.Seconds(), "Gbit/s")
		})
	}
}
