package wire

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"

	"github.com/warren-overlay/warren/acl/ident"
)

func randomPeer(r *rand.Rand) Peer {
	p := Peer{Certificate: []byte{byte(r.IntN(3))}, State: PeerState{Online: r.IntN(2) == 0, OS: []string{"linux", "macos"}[r.IntN(2)], HomeRelay: []string{"", "default"}[r.IntN(2)]}}
	for range r.IntN(3) {
		p.State.Endpoints = append(p.State.Endpoints, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(3))}), uint16(1+r.IntN(3))))
	}
	return p
}

func randomMap(r *rand.Rand) *Map {
	m := &Map{
		Self: []byte{byte(r.IntN(3))}, Rules: []byte{byte(r.IntN(3))}, RelayToken: []byte{byte(r.IntN(3))},
		Peers:    make(map[ident.NodeID]Peer),
		Settings: Settings{STUN: []string{fmt.Sprint(r.IntN(2))}, Users: []User{{ident.UserID(1 + r.IntN(2)), "alice"}}, Relays: []Relay{{Name: "default", Region: []string{"", "eu"}[r.IntN(2)], URL: "u"}}},
	}
	if r.IntN(2) == 0 {
		m.Candidate = []byte{byte(r.IntN(3))}
	}
	for range r.IntN(5) {
		m.Peers[ident.NodeID(1+r.IntN(6))] = randomPeer(r)
	}
	return m
}

// TestDeltasBuildTheMap sends random views through a Stream, the codec and
// Apply: what the node then has is the view, and its hash that of the view.
func TestDeltasBuildTheMap(t *testing.T) {
	deltas, patches := 0, 0
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		view := randomMap(r)
		view.Sequence = 7
		s := Begin(cloneMap(view))
		first, err := DecodeServer(EncodeServer(s.Map()))
		if err != nil {
			t.Fatal(err)
		}
		node := first.(*Map)
		for step := range 30 {
			var d *Delta
			if r.IntN(5) == 0 {
				var gone []ident.NodeID
				for range 1 + r.IntN(3) {
					id := ident.NodeID(1 + r.IntN(6))
					gone = append(gone, id)
					delete(view.Peers, id)
				}
				d = s.Remove(gone)
			} else if r.IntN(2) == 0 {
				token := view.RelayToken
				view = randomMap(r)
				if r.IntN(2) == 0 {
					view.RelayToken = nil
				}
				d = s.Whole(cloneMap(view))
				if view.RelayToken == nil {
					view.RelayToken = token
				}
			} else {
				peers := map[ident.NodeID]Peer{}
				for range r.IntN(4) {
					id := ident.NodeID(1 + r.IntN(6))
					peers[id] = randomPeer(r)
					if _, seen := view.Peers[id]; seen {
						view.Peers[id] = peers[id]
					}
				}
				d = s.Peers(peers, nil)
				patches++
			}
			if d != nil {
				deltas++
				again, err := DecodeServer(EncodeServer(d))
				if err != nil {
					t.Fatal(err)
				}
				next, err := node.Apply(again.(*Delta))
				if err != nil {
					t.Fatalf("seed %d, step %d: %v", seed, step, err)
				}
				if next.Sequence != node.Sequence+1 {
					t.Fatalf("sequence %d after %d", next.Sequence, node.Sequence)
				}
				node = next
			}
			view.Sequence = node.Sequence
			if !reflect.DeepEqual(node, view) || s.Hash() != view.Hash() || !reflect.DeepEqual(s.Map(), view) {
				t.Fatalf("seed %d, step %d: the node has\n%+v, not\n%+v", seed, step, node, view)
			}
		}
	}
	if deltas < 1000 || patches < 1000 {
		t.Fatalf("only %d deltas and %d patches", deltas, patches)
	}
}

func cloneMap(m *Map) *Map {
	c := *m
	c.Peers = make(map[ident.NodeID]Peer)
	for id, p := range m.Peers {
		c.Peers[id] = p
	}
	return &c
}

// TestDeltaForAnotherMapIsAGap changes each part of the base.
func TestDeltaForAnotherMapIsAGap(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	old := randomMap(r)
	old.Peers[1] = randomPeer(r)
	next := randomMap(r)
	next.Sequence = 1
	d := next.diff(old, old.Hash(), next.Hash())
	if _, err := old.Apply(d); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Map){
		"sequence": func(m *Map) { m.Sequence++ },
		"self":     func(m *Map) { m.Self = []byte("x") },
		"rules":    func(m *Map) { m.Rules = []byte("x") },
		"settings": func(m *Map) { m.Settings.STUN = nil },
		"a peer":   func(m *Map) { delete(m.Peers, 1) },
	} {
		other := cloneMap(old)
		change(other)
		if got, err := other.Apply(d); err == nil || got != nil {
			t.Errorf("another %s: applied", name)
		}
	}
	for name, change := range map[string]func(*Delta){
		"a lost peer":    func(d *Delta) { d.Removed = append(d.Removed, 99) },
		"a strange peer": func(d *Delta) { d.Patches = append(d.Patches, PeerPatch{Node: 99}) },
		"another hash":   func(d *Delta) { d.Hash[0] ^= 1 },
	} {
		other := *d
		change(&other)
		if _, err := old.Apply(&other); err == nil {
			t.Errorf("%s: applied", name)
		}
	}
}

func clientMessages() []ClientMessage {
	e := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:41641"), netip.MustParseAddrPort("[2001:db8::1]:1")}
	routes := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("::/0")}
	return []ClientMessage{
		Hello{Version: 1, Host: HostInfo{"1.0", "linux", "6.1", "amd64"}},
		Register{AuthKey: "wkey-auth-x-y", NodeKey: ident.NodeKey{1}, Hostname: "laptop", Tags: []ident.Tag{"tag:db"}, Proof: Proof{5}},
		MapRequest{NodeKey: ident.NodeKey{1}, Endpoints: e, HaveSequence: 9, HaveHash: Hash{1}, Routes: routes, Proof: Proof{6}},
		Update{Endpoints: e, Routes: routes, HomeRelay: "fra-1"},
		Pong{Number: 4},
		Logout{},
	}
}

func serverMessages() []ServerMessage {
	r := rand.New(rand.NewPCG(9, 9))
	a, b := randomMap(r), randomMap(r)
	b.Sequence = 1
	b.Peers[3] = randomPeer(r)
	return []ServerMessage{
		Welcome{Version: 1, Registered: true},
		Registered{Node: 4, Name: "laptop"},
		a, b, b.diff(a, a.Hash(), b.Hash()),
		Ping{Number: 3},
		&Error{Code: CodeRevoked, Message: "gone", RetryAfter: 5e6},
	}
}

// FuzzDecodeClient decodes anything that a node may send; what decodes is a
// message that encodes and decodes to itself.
func FuzzDecodeClient(f *testing.F) {
	for _, m := range clientMessages() {
		f.Add(EncodeClient(m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeClient(b)
		if err != nil {
			return
		}
		again, err := DecodeClient(EncodeClient(m))
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("%+v\nbecomes %+v, %v", m, again, err)
		}
	})
}

// FuzzDecodeServer is FuzzDecodeClient for the other direction.
func FuzzDecodeServer(f *testing.F) {
	for _, m := range serverMessages() {
		f.Add(EncodeServer(m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeServer(b)
		if err != nil {
			return
		}
		encoded := EncodeServer(m)
		again, err := DecodeServer(encoded)
		if err != nil || !reflect.DeepEqual(EncodeServer(again), encoded) {
			t.Fatalf("%+v\nbecomes %+v, %v", m, again, err)
		}
	})
}

func TestMessagesSurviveTheWire(t *testing.T) {
	for _, m := range clientMessages() {
		if got, err := DecodeClient(EncodeClient(m)); err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%+v\nbecomes %+v, %v", m, got, err)
		}
	}
	for _, m := range serverMessages() {
		if _, err := DecodeServer(EncodeServer(m)); err != nil {
			t.Errorf("%+v: %v", m, err)
		}
	}
}
