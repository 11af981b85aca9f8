package disco

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"

	"github.com/warren-overlay/warren/acl/ident"
)

func key(t testing.TB, seed byte) ident.NodePrivate {
	t.Helper()
	k, err := ident.NewNodePrivate(rand.NewChaCha8([32]byte{seed}))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func pair(t testing.TB, self, peer byte) (*Sealer, *Opener) {
	t.Helper()
	s, o, err := NewPair(key(t, self), key(t, peer).Public())
	if err != nil {
		t.Fatal(err)
	}
	return s, o
}

func samples() []Message {
	v4, v6 := netip.MustParseAddrPort("192.0.2.7:1000"), netip.MustParseAddrPort("[2001:db8::1]:1")
	full := make([]netip.AddrPort, MaxEndpoints)
	for i := range full {
		full[i] = netip.AddrPortFrom(v6.Addr(), uint16(i+1))
	}
	return []Message{
		Ping{TxID{1, 2, 3}, 1 << 63, 7, 0},
		Ping{TxID{1, 2, 3}, 1 << 63, 7, 1},
		Ping{TxID{1, 2, 3}, 1 << 63, 7, MaxPadding},
		Pong{TxID: TxID{4}, Observed: v4},
		Pong{TxID: TxID{4}, Observed: v6},
		Pong{TxID: TxID{4}, InTunnel: true},
		Pong{TxID: TxID{4}}, // over a relay
		CallMe{[]netip.AddrPort{}},
		CallMe{[]netip.AddrPort{v4, v6}},
		CallMe{full},
		Mapping{Public: v4},
		Mapping{Public: v6, Varies: true},
		Mapping{v4, true, MaxPorts, 1 << 63},
	}
}

func TestRoundTrip(t *testing.T) {
	rng := rand.NewChaCha8([32]byte{1})
	sealer, _ := pair(t, 1, 2)
	_, opener := pair(t, 2, 1)
	for _, m := range samples() {
		packet, err := sealer.Seal([]byte("keep"), m, rng)
		if err != nil || !bytes.HasPrefix(packet, []byte("keep")) {
			t.Fatalf("%#v: %v", m, err)
		}
		packet = packet[4:]
		before := bytes.Clone(packet)
		if tag, ok := PeekTag(packet); !ok || tag != opener.Tag() {
			t.Errorf("%#v: tag %x, want %x", m, tag, opener.Tag())
		}
		got, err := opener.Open(packet)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%#v came out as %#v, %v", m, got, err)
		}
		if !bytes.Equal(packet, before) {
			t.Errorf("%#v: packet was changed", m)
		}
	}
}

// TestInTunnelIsAnAddressToOlderNodes: they take a pong's 18 bytes for zeros or for
// an address that a packet can come from, and refuse any other pong.
func TestInTunnelIsAnAddressToOlderNodes(t *testing.T) {
	plain, err := Pong{TxID: TxID{4}, InTunnel: true}.appendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	if observed, err := parseAddrPort(plain[13:31]); err != nil || len(plain) != plainSize || plain[31] != 0 {
		t.Errorf("%x: address %v, %v", plain, observed, err)
	}
}

// TestPongNotLongerThanPing: whoever replays pings from a forged address gets no
// more bytes sent there than it spent (F16).
func TestPongNotLongerThanPing(t *testing.T) {
	rng := rand.NewChaCha8([32]byte{1})
	sealer, _ := pair(t, 1, 2)
	for _, m := range []Message{Ping{}, Pong{Observed: netip.MustParseAddrPort("[2001:db8::1]:1")}} {
		packet, err := sealer.Seal(nil, m, rng)
		if err != nil || len(packet) != PingSize {
			t.Errorf("%#v has %d bytes, want %d (%v)", m, len(packet), PingSize, err)
		}
	}
}

// TestPaddingIsAuthentic: a padded ping that lost its end on the way is no ping,
// or it would prove that the path carries what it cut off.
func TestPaddingIsAuthentic(t *testing.T) {
	sealer, _ := pair(t, 1, 2)
	_, opener := pair(t, 2, 1)
	const padding = 1300
	packet, err := sealer.Seal(nil, Ping{TxID: TxID{1}, Padding: padding}, rand.NewChaCha8([32]byte{1}))
	if err != nil || len(packet) != PingSize+padding || !Is(packet) {
		t.Fatalf("%d bytes, want %d (%v)", len(packet), PingSize+padding, err)
	}
	if _, err := opener.Open(packet); err != nil {
		t.Fatal(err)
	}
	for _, cut := range []int{1, 16, padding, padding + 1} {
		if m, err := opener.Open(packet[:len(packet)-cut]); !errors.Is(err, ErrForged) {
			t.Errorf("%d bytes cut off: %#v, %v", cut, m, err)
		}
	}
	if Is(append(packet, make([]byte, MaxSize)...)) {
		t.Error("longer than any ping, and taken for one")
	}
}

// TestNotMistaken: no packet looks like WireGuard or STUN.
func TestNotMistaken(t *testing.T) {
	if magic[0] < 192 {
		t.Errorf("first byte %#x is taken (RFC 7983)", magic[0])
	}
	for kind := byte(1); kind <= 4; kind++ {
		if Is(append([]byte{kind, 0, 0, 0}, make([]byte, 144)...)) {
			t.Errorf("WireGuard type %d is taken for ours", kind)
		}
	}
	if Is(magic[:]) || Is(make([]byte, 52)) {
		t.Error("too short or of another kind, and taken for ours")
	}
}

func TestForgery(t *testing.T) {
	rng := rand.NewChaCha8([32]byte{1})
	sealer, own := pair(t, 1, 2)
	_, opener := pair(t, 2, 1)
	packet, err := sealer.Seal(nil, Ping{TxID: TxID{1}}, rng)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := opener.Open(packet); err != nil {
		t.Fatal(err)
	}
	for i := range packet {
		bad := bytes.Clone(packet)
		bad[i] ^= 0x40
		if _, err := opener.Open(bad); !errors.Is(err, ErrForged) && !errors.Is(err, ErrNotDisco) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	if _, err := own.Open(packet); !errors.Is(err, ErrForged) {
		t.Errorf("our own packet sent back to us: %v", err)
	}
	stranger, _ := pair(t, 3, 2)
	forged, err := stranger.Seal(nil, Ping{TxID: TxID{1}}, rng)
	if err != nil {
		t.Fatal(err)
	}
	copy(forged[len(magic):], opener.tag[:])
	if _, err := opener.Open(forged); !errors.Is(err, ErrForged) {
		t.Errorf("a stranger with our tag: %v", err)
	}
}

func TestPairsDiffer(t *testing.T) {
	_, ab := pair(t, 1, 2)
	_, ba := pair(t, 2, 1)
	_, ac := pair(t, 1, 3)
	if ab.Tag() == ba.Tag() || ab.Tag() == ac.Tag() {
		t.Error("two directions or pairs share a tag")
	}
	if _, _, err := NewPair(key(t, 1), ident.NodeKey{}); !errors.Is(err, ident.ErrMalformedKey) {
		t.Errorf("low-order key: %v", err)
	}
}

func TestSealRefuses(t *testing.T) {
	rng := rand.NewChaCha8([32]byte{1})
	sealer, _ := pair(t, 1, 2)
	for _, m := range []Message{
		Ping{Padding: -1},
		Ping{Padding: MaxPadding + 1},
		Pong{Observed: netip.MustParseAddrPort("1.2.3.4:0")},
		Pong{Observed: netip.MustParseAddrPort("[fe80::1%eth0]:1")},
		Pong{Observed: netip.MustParseAddrPort("224.0.0.1:1")},
		Pong{Observed: netip.MustParseAddrPort("192.0.2.1:1"), InTunnel: true},
		Pong{Observed: netip.MustParseAddrPort("[100::1]:1")},
		CallMe{make([]netip.AddrPort, MaxEndpoints+1)},
		CallMe{make([]netip.AddrPort, 1)},
		Mapping{Varies: true},
		Mapping{Public: netip.MustParseAddrPort("1.2.3.4:5"), Varies: true, Ports: MaxPorts + 1, Attempt: 1},
		Mapping{Public: netip.MustParseAddrPort("1.2.3.4:5"), Ports: 1, Attempt: 1},
		Mapping{Public: netip.MustParseAddrPort("1.2.3.4:5"), Varies: true, Ports: 1},
		Mapping{Public: netip.MustParseAddrPort("1.2.3.4:5"), Varies: true, Attempt: 1},
	} {
		if _, err := sealer.Seal(nil, m, rng); !errors.Is(err, ErrMalformed) {
			t.Errorf("%#v: %v", m, err)
		}
	}
	if _, err := sealer.Seal(nil, Ping{}, bytes.NewReader(make([]byte, 23))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short random source: %v", err)
	}
}

// FuzzMessage: what parses is written back the same, byte for byte.
func FuzzMessage(f *testing.F) {
	for _, m := range samples() {
		b, err := m.appendTo(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMessage(b)
		if err != nil {
			if m != nil || !errors.Is(err, ErrMalformed) {
				t.Fatalf("%#v, %v", m, err)
			}
			return
		}
		again, err := m.appendTo(nil)
		if err != nil {
			t.Fatalf("%#v does not write: %v", m, err)
		}
		// An IPv4 address has one form only: mapped.
		if !bytes.Equal(again, b) {
			t.Fatalf("%x reads as %#v and writes as %x", b, m, again)
		}
	})
}

// FuzzOpen: no packet of a stranger opens or panics.
func FuzzOpen(f *testing.F) {
	_, opener := pair(f, 2, 1)
	f.Add(append(append(magic[:], opener.tag[:]...), make([]byte, 72)...))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := opener.Open(b); err == nil {
			t.Fatalf("opened %#v", m)
		}
	})
}
