package stun

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"testing"
)

// The sample IPv4 and IPv6 responses of RFC 5769, sections 2.2 and 2.3. They end
// with MESSAGE-INTEGRITY, which is not looked at, and FINGERPRINT.
const (
	sample4 = "0101003c2112a442b7e7a701bc34d686fa87dfae" +
		"8022000b7465737420766563746f7220" +
		"002000080001a147e112a643" +
		"000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7" +
		"80280004c07d4c96"
	sample6 = "010100482112a442b7e7a701bc34d686fa87dfae" +
		"8022000b7465737420766563746f7220" +
		"002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9" +
		"00080014a382954e4be67bf11784c97c8292c275bfe3ed41" +
		"80280004c8fb0b4c"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseRFC5769(t *testing.T) {
	for sample, want := range map[string]string{
		sample4: "192.0.2.1:32853",
		sample6: "[2001:db8:1234:5678:11:2233:4455:6677]:32853",
	} {
		// MESSAGE-INTEGRITY must be understood by those who agreed on a password;
		// a Binding response of a public server has none.
		b := unhex(t, sample)
		if _, err := Parse(b); !errors.Is(err, ErrUnsupported) {
			t.Errorf("with MESSAGE-INTEGRITY: %v", err)
		}
		at := len(b) - 8 - 24
		b = append(b[:at:at], b[len(b)-8:]...)
		b[3] -= 24
		b = appendFingerprint(b[:len(b)-8], 0)
		m, err := Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		if m.Kind != Response || m.Mapped != netip.MustParseAddrPort(want) || m.TxID != TxID(b[8:20]) {
			t.Errorf("got %+v, want %v", m, want)
		}
	}
}

func TestRespondRoundTrip(t *testing.T) {
	id := TxID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	request := AppendRequest([]byte("x"), id)[1:]
	if len(request) != RequestSize {
		t.Fatalf("request has %d bytes, RequestSize is %d", len(request), RequestSize)
	}
	for _, from := range []string{"192.0.2.7:1", "[2001:db8::1]:65535", "[::ffff:192.0.2.7]:80"} {
		addr := netip.MustParseAddrPort(from)
		reply, ok := Respond([]byte("keep"), request, addr)
		if !ok || !bytes.HasPrefix(reply, []byte("keep")) {
			t.Fatalf("%v: no answer", from)
		}
		reply = reply[4:]
		if len(reply) > len(request) {
			t.Errorf("%v: answer of %d bytes to a request of %d", from, len(reply), len(request))
		}
		m, err := Parse(reply)
		want := netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
		if err != nil || m.Kind != Response || m.TxID != id || m.Mapped != want {
			t.Errorf("%v: %+v, %v", from, m, err)
		}
	}
}

// TestNoAmplification: a forged source gains nothing, whatever the request
// (F16).
func TestNoAmplification(t *testing.T) {
	v4, v6 := netip.MustParseAddrPort("192.0.2.7:1000"), netip.MustParseAddrPort("[2001:db8::1]:1000")
	bare := appendHeader(nil, typeRequest, 0, TxID{1})
	padded := func(n int) []byte {
		b := appendHeader(nil, typeRequest, 4+n, TxID{1})
		return append(append(b, attrSoftware>>8, attrSoftware&0xff, 0, byte(n)), make([]byte, n)...)
	}
	for _, c := range []struct {
		name    string
		request []byte
		from    netip.AddrPort
		answer  bool
	}{
		{"bare v4", bare, v4, false},
		{"bare v6", bare, v6, false},
		{"just enough v4", padded(8), v4, true},
		{"one word short v4", padded(4), v4, false},
		{"just enough v6", padded(20), v6, true},
		{"one word short v6", padded(16), v6, false},
		{"response", AppendResponse(nil, TxID{1}, v6, true), v4, false},
		{"port zero", AppendRequest(nil, TxID{1}), netip.MustParseAddrPort("192.0.2.7:0"), false},
	} {
		reply, ok := Respond(nil, c.request, c.from)
		if ok != c.answer || len(reply) > len(c.request) {
			t.Errorf("%s: answered %v with %d bytes to %d", c.name, ok, len(reply), len(c.request))
		}
	}
}

func TestParseRefuses(t *testing.T) {
	good := AppendResponse(nil, TxID{9}, netip.MustParseAddrPort("192.0.2.7:1000"), true)
	if _, err := Parse(good); err != nil {
		t.Fatal(err)
	}
	changed := func(f func(b []byte) []byte) []byte { return f(append([]byte(nil), good...)) }
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"empty":             {nil, ErrNotSTUN},
		"short":             {good[:19], ErrNotSTUN},
		"cut":               {good[:len(good)-4], ErrNotSTUN},
		"trailing":          {append(append([]byte(nil), good...), 0, 0, 0, 0), ErrNotSTUN},
		"cookie":            {changed(func(b []byte) []byte { b[4] ^= 1; return b }), ErrNotSTUN},
		"wireguard":         {append([]byte{1, 0, 0, 0}, make([]byte, 144)...), ErrNotSTUN},
		"type":              {changed(func(b []byte) []byte { b[1] = 3; return b }), ErrUnsupported},
		"fingerprint":       {changed(func(b []byte) []byte { b[len(b)-1] ^= 1; return b }), ErrMalformed},
		"flipped address":   {changed(func(b []byte) []byte { b[30] ^= 1; return b }), ErrMalformed},
		"unknown required":  {append(appendHeader(nil, typeRequest, 4, TxID{}), 0x7f, 0xff, 0, 0), ErrUnsupported},
		"attribute too far": {append(appendHeader(nil, typeRequest, 4, TxID{}), 0xff, 0xff, 0, 8), ErrMalformed},
		"no address":        {appendHeader(nil, typeResponse, 0, TxID{}), ErrMalformed},
		"bad family": {
			append(appendHeader(nil, typeResponse, 12, TxID{}), 0, 0x20, 0, 8, 0, 3, 1, 1, 1, 1, 1, 1), ErrMalformed,
		},
	} {
		if m, err := Parse(c.b); !errors.Is(err, c.want) || m != (Message{}) {
			t.Errorf("%s: %+v, %v, want %v", name, m, err, c.want)
		}
	}
}

func TestParseFailure(t *testing.T) {
	b := append(appendHeader(nil, typeFailure, 8, TxID{1}), 0, 9, 0, 4, 0, 0, 4, 20)
	if m, err := Parse(b); err != nil || m.Kind != Failure || m.Code != 420 {
		t.Errorf("%+v, %v", m, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(AppendRequest(nil, TxID{1}))
	f.Add(AppendResponse(nil, TxID{1}, netip.MustParseAddrPort("192.0.2.7:1000"), false))
	f.Add(AppendResponse(nil, TxID{1}, netip.MustParseAddrPort("[2001:db8::1]:1000"), true))
	f.Add(unhex(f, sample4))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Parse(b)
		if err != nil {
			if m != (Message{}) {
				t.Fatalf("error and %+v", m)
			}
		} else if m.Kind == Response && (!m.Mapped.IsValid() || m.Mapped.Port() == 0) {
			t.Fatalf("response without an address: %+v", m)
		}
		for _, from := range []string{"192.0.2.7:1000", "[2001:db8::1]:1000"} {
			if reply, ok := Respond(nil, b, netip.MustParseAddrPort(from)); ok && (len(reply) > len(b) || m.Kind != Request) {
				t.Fatalf("answer of %d bytes to %d", len(reply), len(b))
			}
		}
	})
}
