package engine

import (
	"crypto/rand"
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/disco"
	"github.com/warren-overlay/warren/netstack/enginetest"
	"github.com/warren-overlay/warren/netstack/path"
	"github.com/warren-overlay/warren/netstack/stun"
)

// TestFloodLeavesProbesAlone: while the control goroutine is busy, garbage,
// lookalikes, answers of STUN servers that nobody asked, and copies of a peer's
// tag from elsewhere come in by the ten thousand (F15). A probe of that peer from
// where its path goes, and one of another peer from a new address, are answered
// all the same; and each kind of garbage is counted.
func TestFloodLeavesProbesAlone(t *testing.T) {
	network, a, b := two(t)
	c := network.Join("laptop2", nil)
	now := time.Now()
	a.apply(t, a.Config(now, enginetest.AllowAll(b.Member, c), b.Member, c))
	b.apply(t, b.Config(now, enginetest.AllowAll(a.Member), a.Member))
	go func() {
		request := <-b.tun.Received()
		b.tun.Send(enginetest.EchoReply(request))
	}()
	if _, err := a.ping(t, b.Addr4()); err != nil {
		t.Fatal(err)
	}
	sealed := func(from *enginetest.Member, m disco.Message) []byte {
		sealer, _, err := disco.NewPair(from.Private, a.Key)
		if err != nil {
			t.Fatal(err)
		}
		packet, err := sealer.Seal(nil, m, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return packet
	}
	ping := func(seq uint64) disco.Ping { return disco.Ping{TxID: disco.TxID{byte(seq)}, Session: 77, Seq: seq} }
	stats := func(m *enginetest.Member) path.Stats {
		p, err := a.engine.Paths(m.Addr4())
		if err != nil {
			t.Fatal(err)
		}
		return p.Paths.Stats
	}
	beforeB, beforeC, drops := stats(b.Member), stats(c), a.engine.Status().Drops

	busy, release := make(chan struct{}), make(chan struct{})
	go func() {
		a.engine.requests <- func(*control) { close(busy); <-release }
	}()
	<-busy
	const flood = 10_000
	copied := sealed(b.Member, ping(1))
	lookalike := append([]byte(nil), copied...)
	answer, ok := stun.Respond(nil, stun.AppendRequest(nil, stun.TxID{1}), netip.MustParseAddrPort("9.9.9.9:9"))
	if !ok {
		t.Fatal("no STUN answer to flood with")
	}
	garbage := make([]byte, 100)
	for i := range flood {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1000)
		garbage[0] = byte(i%3) + 100
		if _, err := rand.Read(lookalike[4:]); err != nil {
			t.Fatal(err)
		}
		for _, packet := range [][]byte{lookalike, answer, copied, garbage} {
			a.engine.handleDatagram(packet, from)
		}
	}
	a.engine.handleDatagram(sealed(b.Member, ping(2)), b.Endpoints[0])
	a.engine.handleDatagram(sealed(c, ping(1)), netip.MustParseAddrPort("127.0.0.1:1"))
	close(release)

	deadline := time.Now().Add(patience)
	for stats(b.Member).PongsSent < beforeB.PongsSent+2 || stats(c).PongsSent == beforeC.PongsSent {
		if time.Now().After(deadline) {
			t.Fatalf("not answered: %+v, %+v", stats(b.Member), stats(c))
		}
	}
	after := a.engine.Status().Drops
	for reason, want := range map[string]uint64{
		"unknown_probe": flood, "unknown_stun": flood, "unknown_protocol": flood,
		"control_share": flood - peerShare, "control_overflow": 0,
	} {
		if got := after[reason] - drops[reason]; got != want {
			t.Errorf("%s: %d, want %d", reason, got, want)
		}
	}
}
