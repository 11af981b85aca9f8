package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/netstack/enginetest"
	"github.com/warren-overlay/warren/netstack/relay"
	"github.com/warren-overlay/warren/netstack/simnet"
	"github.com/warren-overlay/warren/netstack/sock"
	"github.com/warren-overlay/warren/netstack/tun"
)

// buffers returns what WireGuard's reader passes to read.
func buffers(n int) ([][]byte, []int) {
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	return bufs, make([]int, n)
}

// unstamped returns buffers in which nothing says how long a packet waited, as zeros
// would.
func unstamped(n int) ([][]byte, []int) {
	bufs, sizes := buffers(n)
	for _, buf := range bufs {
		for i := range buf {
			buf[i] = 0x7f // a time that is to come
		}
	}
	return bufs, sizes
}

func TestReaderLetsOwnPacketsThroughDuringARead(t *testing.T) {
	device := simnet.NewTUN(0)
	failed := make(chan error, 1)
	r := newHostReader(device, func(err error) { failed <- err })
	go r.run()
	bufs, sizes := buffers(r.batchSize())
	const offset = tun.Headroom

	// The device says nothing, so only the packet of our own can come.
	r.inject([]byte("own 1"))
	r.inject([]byte("own 2"))
	for _, want := range []string{"own 1", "own 2"} {
		n, own, err := r.read(bufs, sizes, offset)
		if n != len(bufs) || own == nil || err != nil {
			t.Fatalf("read: %d, %v, %v", n, own, err)
		}
		for i, size := range sizes[:n-1] {
			if size != 0 {
				t.Fatalf("buffer %d has %d bytes", i, size)
			}
		}
		if got := string(bufs[n-1][offset : offset+sizes[n-1]]); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	device.Send([]byte("of the host"))
	n, own, err := r.read(bufs, sizes, offset)
	if n != 1 || own != nil || err != nil || string(bufs[0][offset:offset+sizes[0]]) != "of the host" {
		t.Fatalf("read: %d, %v, %v, %q", n, own, err, bufs[0][offset:offset+sizes[0]])
	}
	for range maxInjected {
		if !r.inject(nil) {
			t.Fatal("no room for a packet of our own")
		}
	}
	if r.inject(nil) || r.overflow.Load() != 1 {
		t.Fatal("the queue has no bound")
	}
	device.Close()
	r.close()
	for range maxInjected + 2 {
		if _, _, err = r.read(bufs, sizes, offset); err != nil {
			break
		}
	}
	if !errors.Is(err, os.ErrClosed) {
		t.Fatalf("read after close: %v", err)
	}
}

// lateDevice is a TUN device whose Read goes on for a while after Close.
type lateDevice struct {
	*simnet.TUN
	reading, release chan struct{}
	returned         atomic.Bool
}

func (d *lateDevice) Read(bufs [][]byte, _ []int, _ int) (int, error) {
	close(d.reading)
	<-d.release
	bufs[0][0] = 1
	d.returned.Store(true)
	return 0, os.ErrClosed
}

// TestReaderKeepsBuffersUntilTheDeviceHasEnded: the caller gives them to others when
// read returns.
func TestReaderKeepsBuffersUntilTheDeviceHasEnded(t *testing.T) {
	device := &lateDevice{TUN: simnet.NewTUN(0), reading: make(chan struct{}), release: make(chan struct{})}
	r := newHostReader(device, func(error) {})
	go r.run()
	go func() {
		<-device.reading
		time.AfterFunc(20*time.Millisecond, func() { close(device.release) })
		r.close()
	}()
	bufs, sizes := buffers(r.batchSize())
	_, _, err := r.read(bufs, sizes, 0)
	if bufs[0][0] = 2; !errors.Is(err, os.ErrClosed) || !device.returned.Load() {
		t.Fatalf("read: %v, while the device still wrote: %v", err, !device.returned.Load())
	}
}

func TestReaderEndsWithoutARead(t *testing.T) {
	device := simnet.NewTUN(0)
	r := newHostReader(device, func(error) {})
	go r.run()
	device.Close()
	r.close()
	bufs, sizes := buffers(r.batchSize())
	if _, _, err := r.read(bufs, sizes, 0); !errors.Is(err, os.ErrClosed) {
		t.Fatalf("read: %v", err)
	}
}

func TestDeadlinesAreInOrder(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var d deadlines
	start := time.Unix(1000, 0)
	peers := make([]*peer, 50)
	for i := range peers {
		peers[i] = &peer{place: -1}
	}
	for range 5000 {
		p := peers[random.IntN(len(peers))]
		if random.IntN(4) == 0 {
			d.set(p, time.Time{})
		} else {
			d.set(p, start.Add(time.Duration(random.IntN(100))*time.Second))
		}
		var earliest time.Time
		waiting := 0
		for _, p := range peers {
			if earliest = earlier(earliest, p.deadline); !p.deadline.IsZero() {
				waiting++
			}
			if p.deadline.IsZero() != (p.place < 0) {
				t.Fatalf("deadline %v at place %d", p.deadline, p.place)
			}
		}
		if len(d) != waiting || waiting > 0 && !d[0].deadline.Equal(earliest) {
			t.Fatalf("%d wait, first %v; want %d, %v", len(d), d[0].deadline, waiting, earliest)
		}
	}
}

func TestOutboxBoundsAndFillsMessages(t *testing.T) {
	o := outbox{wake: make(chan struct{}, 1)}
	to := ident.NodeKey{1}
	payload := make([]byte, 1400)
	o.add(to, [][]byte{payload})
	if m, _ := o.take(); m != nil || o.drops() != 1 {
		t.Fatal("a packet was taken before the relay was ready")
	}
	o.open()
	const sent = 1000
	for range sent / 10 {
		o.add(to, slices.Repeat([][]byte{payload}, 10))
	}
	if o.bytes > maxOutbox {
		t.Fatalf("%d bytes wait", o.bytes)
	}
	packets := 0
	for {
		message, isPackets := o.take()
		if message == nil {
			break
		}
		if len(message) > relay.MaxMessage || !isPackets {
			t.Fatalf("message of %d bytes, packets %v", len(message), isPackets)
		}
		for len(message) > 0 {
			var f relay.Frame
			var err error
			if f, message, err = relay.Next(message); err != nil || f.Type != relay.FrameSend {
				t.Fatalf("frame %+v, %v", f.Type, err)
			}
			packets++
		}
	}
	if got := o.drops() - 1; packets == 0 || uint64(packets)+got != sent || o.bytes != 0 {
		t.Fatalf("%d packets and %d drops of %d, %d bytes left", packets, got, sent, o.bytes)
	}
	o.add(to, [][]byte{make([]byte, relay.MaxPacket+1)})
	if m, _ := o.take(); len(m) != 0 {
		t.Fatal("a packet over the limit was taken")
	}
}

func TestResolverKeepsAddressesAndTriesNamesAgain(t *testing.T) {
	var mu sync.Mutex
	known := map[string][]netip.Addr{}
	e := &Engine{cfg: Config{LookupHost: func(_ context.Context, host string) ([]netip.Addr, error) {
		mu.Lock()
		defer mu.Unlock()
		if a, ok := known[host]; ok {
			return a, nil
		}
		return nil, errors.New("no such host")
	}}}
	r := newResolver(e)
	var running sync.WaitGroup
	defer running.Wait()
	servers := []string{"192.0.2.1:3478", "stun.example.com:3479", "nonsense", "stun.example.com:99999"}
	r.set(servers)
	literal := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:3478")}
	r.start(t.Context(), &running)
	if got := <-r.found; !slices.Equal(got, literal) {
		t.Fatalf("found %v", got)
	}
	mu.Lock()
	known["stun.example.com"] = []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.2")}
	mu.Unlock()
	r.retry()
	r.start(t.Context(), &running)
	if got, want := <-r.found, append(literal, netip.MustParseAddrPort("192.0.2.2:3479")); !slices.Equal(got, want) {
		t.Fatalf("found %v, want %v", got, want)
	}
	r.retry()
	r.start(t.Context(), &running)
	select {
	case r.busy <- struct{}{}: // nothing is going on
	default:
		t.Fatal("names that were found are looked up again")
	}
}

func TestAddressThatMovesIsNeverTheOthers(t *testing.T) {
	network, a, b := two(t)
	c := newNode(t, network.Join("spare", nil))
	now := time.Now()
	b.apply(t, b.Config(now, enginetest.AllowAll(a.Member), a.Member))
	a.apply(t, a.Config(now, enginetest.AllowAll(b.Member, c.Member), b.Member, c.Member))
	// WireGuard takes no second handshake within 20 ms.
	for start := time.Now(); time.Since(start) < 100*time.Millisecond; {
		a.send(t, b, 53, "to its first owner")
	}

	// b's IPv4 address becomes c's; b keeps the other one.
	before := a.engine.Status().Peers[0].LastHandshake
	if before.IsZero() {
		t.Fatal("no session with the first owner")
	}
	moved := b.Addr4()
	network.Serial += 10
	b.Certificate.Serial, c.Certificate.Serial = network.Serial-1, network.Serial
	b.Certificate.Addresses = []netip.Addr{b.Addr6()}
	c.Certificate.Addresses = []netip.Addr{moved}
	a.apply(t, a.Config(now, enginetest.AllowAll(b.Member, c.Member), b.Member, c.Member))
	f := a.engine.host.forwarding.Load()
	if p := f.lookup(moved); p == nil || p.key != c.Key {
		t.Fatal("the address has not moved")
	}
	for _, p := range a.engine.Status().Peers {
		if p.Key == b.Key && p.LastHandshake.Equal(before) {
			t.Fatalf("the session of the first owner goes on: %+v", p)
		}
	}
	var info packet.Info
	if packet.Parse(a.receive(t), &info); info.Kind != packet.ICMPError {
		t.Fatalf("%+v: want a word to the host about the flow that ended", info)
	}
	// What b still sends with the old address is not taken for c's.
	b.tun.Send(enginetest.UDP(netip.AddrPortFrom(moved, 5000), netip.AddrPortFrom(a.Addr4(), 53), "stale"))
	// What it sends with the one that it kept arrives when it has learned that
	// its session is over.
	valid := enginetest.UDP(netip.AddrPortFrom(b.Certificate.Addresses[0], 5000), netip.AddrPortFrom(a.Addr6(), 53), "valid")
	for {
		b.tun.Send(valid)
		select {
		case got := <-a.tun.Received():
			if !bytes.Equal(got, valid) {
				t.Fatalf("got %q", got)
			}
			return
		case <-time.After(10 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("nothing arrives from the first owner any longer")
		}
	}
}

func TestPrefixesHaveOneOwner(t *testing.T) {
	network := enginetest.NewNetwork(t, 1, time.Now())
	routed := func(routes ...string) func(*authority.Certificate) {
		return func(c *authority.Certificate) {
			for _, r := range routes {
				c.Routes = append(c.Routes, netip.MustParsePrefix(r))
			}
		}
	}
	self := network.Join("self", nil)
	first := network.Join("first", routed("0.0.0.0/0", "10.1.0.0/16", "::/0"))
	second := network.Join("second", routed("10.1.0.0/16", "10.2.0.0/16"))
	now := time.Now()
	c := &control{e: &Engine{log: slog.New(slog.DiscardHandler)}}
	_, claims := c.wanted(self.Config(now, nil, second, first), now)
	want := map[ident.NodeKey][]string{
		first.Key:  {first.Addr4().String() + "/32", first.Addr6().String() + "/128", "10.1.0.0/16"},
		second.Key: {second.Addr4().String() + "/32", second.Addr6().String() + "/128", "10.2.0.0/16"},
	}
	for key, prefixes := range want {
		var got []string
		for _, p := range claims[key] {
			got = append(got, p.String())
		}
		if !slices.Equal(got, prefixes) {
			t.Errorf("got %v, want %v", got, prefixes)
		}
	}
}

func TestCollectorIsSound(t *testing.T) {
	_, a, b := two(t)
	now := time.Now()
	a.apply(t, a.Config(now, enginetest.AllowAll(b.Member), b.Member))
	b.apply(t, b.Config(now, nil, a.Member))
	a.tun.Send(enginetest.UDP(netip.AddrPortFrom(a.Addr4(), 5000), netip.AddrPortFrom(b.Addr4(), 53), "x"))
	start := time.Now()
	for b.engine.Status().Drops["drop_no_rule"] == 0 {
		if time.Since(start) > patience {
			t.Fatalf("drops %v", b.engine.Status().Drops)
		}
	}
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(b.engine.Collector()); err != nil {
		t.Fatal(err)
	}
	gather := func() map[string]float64 {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		found := make(map[string]float64)
		for _, f := range families {
			for _, m := range f.GetMetric() {
				name := f.GetName()
				for _, l := range m.GetLabel() {
					name += fmt.Sprintf(" %s=%s", l.GetName(), l.GetValue())
				}
				found[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
		return found
	}
	found := gather()
	for name, want := range map[string]float64{
		"warren_inbound_dropped_packets_total family=ipv4 reason=drop_no_rule": 1,
		"warren_peers path=direct":                1,
		"warren_port_mapping state=off":           1,
		"warren_port_mapping state=active":        0,
		"warren_stun_events_total event=response": 0, // it has no servers
	} {
		if found[name] != want {
			t.Errorf("%s is %v, want %v", name, found[name], want)
		}
	}
	for _, name := range []string{"ping_sent", "pong_accepted", "primary_changed"} {
		if found["warren_path_events_total event="+name] == 0 {
			t.Errorf("path event %s: none", name)
		}
	}
	if found["warren_inbound_packets_total path=direct_ipv4"] < 2 {
		t.Errorf("inbound packets: %v", found["warren_inbound_packets_total path=direct_ipv4"])
	}
	// What was counted about a peer stays counted when there is none any more.
	b.apply(t, b.Config(now, nil))
	without := gather()
	for name, n := range found {
		if strings.HasPrefix(name, "warren_path_events_total") && without[name] < n {
			t.Errorf("%s fell from %v to %v", name, n, without[name])
		}
	}
	if without["warren_peers path=direct"] != 0 {
		t.Error("the peer is still there")
	}
}

func TestCertificateThatHasEndedIsNoPeer(t *testing.T) {
	network, a, _ := two(t)
	old := network.Join("old", func(c *authority.Certificate) {
		c.NotAfter = time.Now().Add(2 * time.Second).Truncate(time.Second)
	})
	c := a.Config(time.Now(), nil, old)
	clock := time.Now().Add(time.Hour)
	e, err := New(Config{
		TUN: simnet.NewTUN(0), Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return clock },
	})
	if err != nil {
		t.Fatal(err)
	}
	background(t, e.Run)
	if err := e.Apply(c); err != nil {
		t.Fatal(err)
	}
	if s := e.Status(); !s.Configured || len(s.Peers) != 0 {
		t.Fatalf("status %+v", s)
	}
}

// TestFilteringAllocatesNothing measures both directions of an established
// flow, as WireGuard's goroutines run them.
func TestFilteringAllocatesNothing(t *testing.T) {
	_, a, b := two(t)
	a.apply(t, a.Config(time.Now(), enginetest.AllowAll(b.Member), b.Member))
	ours, theirs := netip.AddrPortFrom(a.Addr4(), 5000), netip.AddrPortFrom(b.Addr4(), 53)
	out, in := enginetest.UDP(ours, theirs, "question"), enginetest.UDP(theirs, ours, "answer")
	const offset = tun.Headroom
	host := a.engine.host
	host.sender = func([]byte, int) (ident.NodeKey, bool) { return b.Key, true }
	bufs, sizes := unstamped(32)
	for name, direction := range map[string]func(){
		"outbound": func() {
			for i := range bufs {
				sizes[i] = copy(bufs[i][offset:], out)
			}
			host.filterOutbound(bufs, sizes, offset)
			if sizes[0] != len(out) || sizes[31] != len(out) {
				t.Fatal("refused")
			}
		},
		"inbound": func() {
			for i := range bufs {
				bufs[i] = bufs[i][:offset+len(in)]
				copy(bufs[i][offset:], in)
			}
			if kept := host.filterInbound(bufs, offset); kept != len(bufs) {
				t.Fatalf("kept %d", kept)
			}
			for i := range bufs {
				bufs[i] = bufs[i][:2048]
			}
		},
	} {
		direction()
		// The engine's other goroutines may allocate meanwhile, not every time.
		least := testing.AllocsPerRun(100, direction)
		for attempt := 0; least != 0 && attempt < 20; attempt++ {
			least = min(least, testing.AllocsPerRun(100, direction))
		}
		if least != 0 {
			t.Errorf("%s: %v allocations for %d packets", name, least, len(bufs))
		}
	}
}

// TestTakenPort starts two engines that want one port: the second takes
// another, and says which.
func TestTakenPort(t *testing.T) {
	taken, err := sock.Listen(sock.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	c, err := Config{TUN: simnet.NewTUN(1420), Logger: slog.New(slog.DiscardHandler)}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := c.Listen(taken.LocalPort())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.LocalPort(); got == 0 || got == taken.LocalPort() {
		t.Errorf("port %d, and %d is taken", got, taken.LocalPort())
	}
}
