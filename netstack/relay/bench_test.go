package relay

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// BenchmarkForward is what one packet of 1,400 bytes costs the server's core,
// in messages of 32: parse, account, queue and write out again.
func BenchmarkForward(b *testing.B) {
	s, err := NewServer(ServerConfig{Name: "r", Admitter: new(tokens), Rand: rand.NewChaCha8([32]byte{7}), Rate: 1 << 50}, epoch)
	if err != nil {
		b.Fatal(err)
	}
	for id, seed := range []byte{1, 2} {
		if err := s.HandleConnect(ConnID(id), netip.Addr{}, nil, epoch); err != nil {
			b.Fatal(err)
		}
		session, err := NewSession(SessionConfig{Key: nodeKey(seed), Relay: "r", Token: []byte("net1")}, epoch)
		if err != nil {
			b.Fatal(err)
		}
		challenge, _ := s.NextMessage(ConnID(id), nil)
		if err := session.HandleMessage(challenge, epoch); err != nil {
			b.Fatal(err)
		}
		hello, _ := session.NextTransmit()
		if err := s.HandleMessage(ConnID(id), hello, epoch); err != nil {
			b.Fatal(err)
		}
	}
	const batch = 32
	var m []byte
	for range batch {
		m, _ = AppendSendPacket(m, nodeKey(2).Public(), make([]byte, 1400))
	}
	buf := make([]byte, 0, MaxMessage)
	b.SetBytes(1400)
	b.ReportAllocs()
	now := epoch
	for i := 0; i < b.N; i += batch {
		now = now.Add(time.Millisecond)
		if err := s.HandleMessage(0, m, now); err != nil {
			b.Fatal(err)
		}
		for _, ok := s.NextCommand(); ok; _, ok = s.NextCommand() {
		}
		for _, ok := s.NextMessage(1, buf); ok; _, ok = s.NextMessage(1, buf) {
		}
	}
	if st := s.Snapshot().Stats; st.DroppedQueue+st.DroppedRate != 0 {
		b.Fatalf("dropped: %+v", st)
	}
}

// forwarder is a server with two members whose addresses are bound, and a burst
// of datagrams from one to the other, each as long as a tunnel's over Ethernet.
type forwarder struct {
	tb       testing.TB
	server   *Server
	from, to netip.AddrPort
	header   [DatagramHeader]byte
	burst    [64][]byte
}

func newForwarder(tb testing.TB, rate int64) *forwarder {
	tb.Helper()
	r := newDatagramRig(tb, rate)
	a, b := r.joinUDP(1, "net1", "192.0.2.7:1000"), r.joinUDP(2, "net1", "198.51.100.9:2000")
	r.wire(a, b.key.Public(), "asks for the number")
	header, ok := a.session.Link().Header(b.key.Public())
	if !ok {
		tb.Fatal("no number of the other member")
	}
	f := &forwarder{tb: tb, server: r.server, from: a.addr, to: b.addr, header: header}
	for i := range f.burst {
		f.burst[i] = make([]byte, DatagramHeader+tunnelled)
	}
	return f
}

// tunnelled is a packet of WireGuard's with 1,420 bytes in it, of which a stream
// of TCP has streamed, with time stamps.
const (
	tunnelled = 1452
	streamed  = 1420 - 20 - 32
)

// forward has the server forward the burst, as a shell does.
func (f *forwarder) forward(now time.Time) {
	for _, b := range f.burst {
		copy(b, f.header[:])
	}
	to, out, handled := f.server.HandleDatagrams(f.from, f.burst[:], now)
	if to != f.to || len(out) != len(f.burst) || handled != len(f.burst) {
		f.tb.Fatalf("%d datagrams of %d to %v: %+v", len(out), handled, to, f.server.Snapshot().Stats)
	}
	f.server.HandleBacklog(false, now)
}

// BenchmarkForwardDatagram is what one packet of 1,452 bytes costs the server's
// core as a datagram, in bursts of 64.
func BenchmarkForwardDatagram(b *testing.B) {
	f := newForwarder(b, 1<<50)
	b.SetBytes(tunnelled)
	b.ReportAllocs()
	for i := 0; i < b.N; i += len(f.burst) {
		f.forward(epoch)
	}
}

func TestForwardDatagramAllocatesNothing(t *testing.T) {
	f := newForwarder(t, 0)
	now := epoch
	n := testing.AllocsPerRun(200, func() {
		now = now.Add(time.Millisecond)
		f.forward(now)
	})
	if n != 0 {
		t.Errorf("%v allocations for %d packets", n, len(f.burst))
	}
}

// TestGigabitInATunnel is that the rate of one key leaves a stream of TCP inside a
// tunnel its Gigabit per second, for longer than a burst lasts.
func TestGigabitInATunnel(t *testing.T) {
	f := newForwarder(t, 0)
	rate := &f.server.datagrams.bySource[f.from].rate
	every := time.Duration(len(f.burst)) * streamed * 8 // nanoseconds at 1 Gbit/s
	for now := epoch; now.Before(epoch.Add(20 * time.Second)); now = now.Add(every) {
		if !rate.take(int64(len(f.burst))*tunnelled, now) {
			t.Fatalf("cut after %v", now.Sub(epoch))
		}
	}
}
