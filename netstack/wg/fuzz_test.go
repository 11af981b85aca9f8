package wg

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/warren-overlay/warren/acl/ident"
)

// fuzzKey is a private key made of one byte.
func fuzzKey(t testing.TB, b byte) ident.NodePrivate {
	t.Helper()
	raw := make([]byte, ident.KeySize)
	for i := range raw {
		raw[i] = b
	}
	key, err := ident.NodePrivateFromBytes(raw)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// FuzzReceive hands any packet to the bind, from a socket and from a relay.
// Whatever comes to the device has a peer; nothing else changes.
func FuzzReceive(f *testing.F) {
	const index = 0x01020304
	f.Fuzz(func(t *testing.T, packet []byte) {
		var other []byte
		b := newBind(&Config{Control: func(p []byte, _ netip.AddrPort) { other = p }})
		b.identity.Store(newIdentity(fuzzKey(t, 1)))
		p := newPeer(fuzzKey(t, 2).Public(), b)
		b.peers[p.key] = p
		b.indexes.sessions[index] = &session{peer: p}

		sizes, eps := []int{len(packet)}, make([]conn.Endpoint, 1)
		b.mapBatch([][]byte{packet}, sizes, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}, eps)
		kind := messageType(packet)
		switch {
		case sizes[0] != 0 && (eps[0] != conn.Endpoint(p) || kind == 0):
			t.Fatalf("type %d came to the device with %v", kind, eps[0])
		case kind == 0 && len(packet) > 0 && len(other) != len(packet):
			t.Fatal("a packet of another protocol was lost")
		case kind == typeTransport && (sizes[0] != 0) != (binary.LittleEndian.Uint32(packet[4:]) == index):
			t.Fatal("transport packets are told apart by their receiver index")
		}
		if taken := b.handleRelayed(nil, p.key, packet); taken != (kind != 0) {
			t.Fatalf("relayed packet of type %d: taken %v", kind, taken)
		}
	})
}

// TestFuzzSeedsAreWhatTheySay keeps the corpus useful: an initiation of the peer
// and a packet for its index must come through.
func TestFuzzSeedsAreWhatTheySay(t *testing.T) {
	id := newIdentity(fuzzKey(t, 1))
	initiation := craftInitiation(t, fuzzKey(t, 1), fuzzKey(t, 2))
	if !id.checkMAC1(initiation) {
		t.Fatal("MAC1 is wrong")
	}
	if key, ok := id.initiator(initiation); !ok || key != fuzzKey(t, 2).Public() {
		t.Fatalf("initiator %v, %v", key, ok)
	}
	for _, at := range []int{8, 50, 80} { // ephemeral, static, its tag
		bad := append([]byte(nil), initiation...)
		bad[at] ^= 1
		if id.checkMAC1(bad) {
			t.Errorf("MAC1 of a packet that was changed at %d", at)
		}
		if key, ok := id.initiator(bad); ok {
			t.Errorf("changed at %d: initiator %v", at, key)
		}
	}
}
