package relay

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

func FuzzServer(f *testing.F) {
	hello := answerForFuzz()
	f.Add(hello, []byte{})
	m, _ := AppendSendPacket(nil, ident.NodeKey{1}, []byte("x"))
	f.Add(hello, m)
	f.Add(hello, AppendFrame(AppendFrame(nil, FramePing, make([]byte, 8)), 99))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		s, err := NewServer(ServerConfig{Name: "r", Admitter: new(tokens), Rand: rand.NewChaCha8([32]byte{7})}, epoch)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.HandleConnect(1, netip.Addr{}, nil, epoch); err != nil {
			t.Fatal(err)
		}
		_ = s.HandleMessage(1, first, epoch)
		_ = s.HandleMessage(1, second, epoch.Add(time.Second))
		if snap := s.Snapshot(); snap.Admitted > 1 || snap.QueuedBytes > maxQueue {
			t.Fatalf("%+v", snap)
		}
		for m, ok := s.NextMessage(1, nil); ok; m, ok = s.NextMessage(1, nil) {
			if len(m) > MaxMessage {
				t.Fatalf("message of %d bytes", len(m))
			}
			for rest := m; len(rest) > 0; {
				if _, rest, err = Next(rest); err != nil {
					t.Fatalf("our own message: %v", err)
				}
			}
		}
		s.HandleDisconnect(1, epoch)
		if snap := s.Snapshot(); snap.Conns != 0 || snap.QueuedBytes != 0 {
			t.Fatalf("left: %+v", snap)
		}
	})
}

// answerForFuzz is the right answer to the challenge that FuzzServer's server
// gives, so that the fuzzer gets behind the admission.
func answerForFuzz() []byte {
	ask, _, err := newChallenge(rand.NewChaCha8([32]byte{7}))
	if err != nil {
		panic(err)
	}
	key := nodeKey(1)
	shared, err := key.SharedWith(ident.NodeKey(ask.ephemeral))
	if err != nil {
		panic(err)
	}
	h := hello{key: key.Public(), token: []byte("net1")}
	h.proof = prove(shared[:], "r", nil, &ask, h.key, h.token)
	return h.append(nil)
}

func FuzzSession(f *testing.F) {
	ask, _, err := newChallenge(rand.NewChaCha8([32]byte{5}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ask.append(nil), AppendFrame(AppendFrame(nil, FrameWelcome), FrameRecv, make([]byte, 40)))
	f.Add(ask.append(nil), AppendFrame(AppendFrame(nil, FrameWelcome), FramePeerGone, make([]byte, 32)))
	f.Add([]byte{}, AppendFrame(nil, FrameReject, []byte{3}))
	key := nodeKey(1)
	f.Fuzz(func(t *testing.T, first, second []byte) {
		s, err := NewSession(SessionConfig{Key: key, Relay: "r"}, epoch)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range [][]byte{first, second} {
			if err := s.HandleMessage(m, epoch); err != nil && !s.Failed() {
				t.Fatalf("%v, and the session goes on", err)
			}
			for e, ok := s.NextEvent(); ok; e, ok = s.NextEvent() {
				if e.Kind == EventPacket && (len(e.Packet) == 0 || !s.admitted) {
					t.Fatalf("%+v", e)
				}
			}
			if out, ok := s.NextTransmit(); ok {
				for rest := out; len(rest) > 0; {
					if _, rest, err = Next(rest); err != nil {
						t.Fatalf("our own message: %v", err)
					}
				}
			}
		}
	})
}

// fuzzRig is a server and one client whose datagrams are bound, for targets that
// begin behind the admission.
func fuzzRig(t *testing.T) (*rig, *client) {
	t.Helper()
	r := newDatagramRig(t, 0)
	return r, r.joinUDP(1, "net1", "198.51.100.1:1000")
}

// FuzzServerDatagram: whatever comes, the answer is no longer than it, and only
// goes where it came from or to a member's address.
func FuzzServerDatagram(f *testing.F) {
	f.Add([]byte{datagramData, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0}, true)
	f.Add(writeBinding(nil, datagramOpen, tag{1, 2, 3}, 4, 5, make([]byte, cookieSize), make([]byte, 32)), true)
	f.Add(writeBinding(nil, datagramBind, tag{1, 2, 3}, 4, 5, make([]byte, cookieSize), make([]byte, 32)), false)
	f.Add([]byte{datagramStale}, false)
	f.Fuzz(func(t *testing.T, b []byte, member bool) {
		r, c := fuzzRig(t)
		from := c.addr
		if !member {
			from = netip.MustParseAddrPort("203.0.113.9:9")
		}
		before := r.server.Snapshot().Stats.DatagramsBound
		for _, claim := range []bool{false, true} {
			d := slices.Clone(b)
			if claim && len(d) >= DatagramHeader {
				putHeader(d, d[0], c.session.datagrams.tag, c.session.datagrams.number)
			}
			to, out := r.server.HandleDatagram(from, d, r.now)
			if len(out) > len(b) || to.IsValid() != (out != nil) || to.IsValid() && to != from && to != c.addr {
				t.Fatalf("%d bytes to %v for %d bytes of %v", len(out), to, len(b), from)
			}
		}
		if n := r.server.Snapshot().Stats.DatagramsBound; n != before {
			t.Fatalf("an address was bound without the key")
		}
	})
}

// FuzzSessionDatagram: what the relay's address sends ends nothing.
func FuzzSessionDatagram(f *testing.F) {
	f.Add([]byte{datagramData, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0})
	f.Add(writeBinding(nil, datagramCookie, tag{1, 2, 3}, 4, 5, make([]byte, cookieSize), make([]byte, 32)))
	f.Add(writeBinding(nil, datagramBound, tag{1, 2, 3}, 4, 5, nil, make([]byte, 32)))
	f.Add([]byte{datagramStale, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, c := fuzzRig(t)
		link := c.session.Link()
		for _, claim := range []bool{false, true} {
			d := slices.Clone(b)
			if claim && len(d) >= DatagramHeader {
				putHeader(d, d[0], c.session.datagrams.tag, c.session.datagrams.number)
			}
			c.session.HandleDatagram(d, r.now)
			if _, payload, ok := link.Open(d); ok {
				t.Fatalf("a packet of nobody: %q", payload)
			}
		}
		r.pump()
		if !c.session.Ready() || !c.session.Snapshot().Datagrams.Bound {
			t.Fatal("the session or its datagrams ended")
		}
	})
}
