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
