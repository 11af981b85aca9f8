package pcp

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var nonce = Nonce{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}

// grant is a MAP response by the figures 7 and 10 of RFC 6887, laid out by
// hand.
const grant = `
	02 81 00 00  00 00 0e 10  00 00 00 07  000000000000000000000000
	01 02 03 04 05 06 07 08 09 0a 0b 0c  11 00 00 00  a2 a9  11 22
	00 00 00 00 00 00 00 00 00 00 ff ff c6 33 64 07`

// TestRequests holds requests against bytes laid out by hand from the figures
// of the RFCs.
func TestRequests(t *testing.T) {
	client := netip.MustParseAddr("192.168.1.2")
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{"map anything", AppendMap(nil, client, Mapping{Nonce: nonce, Internal: 41641, Lifetime: 2 * time.Hour}), `
			02 01 00 00  00 00 1c 20  00 00 00 00 00 00 00 00 00 00 ff ff c0 a8 01 02
			01 02 03 04 05 06 07 08 09 0a 0b 0c  11 00 00 00  a2 a9  00 00
			00 00 00 00 00 00 00 00 00 00 ff ff 00 00 00 00`},
		{"map the same again", AppendMap(nil, client, Mapping{Nonce: nonce, Internal: 41641, External: netip.MustParseAddrPort("198.51.100.7:4386"), Lifetime: 1500 * time.Millisecond}), `
			02 01 00 00  00 00 00 01  00 00 00 00 00 00 00 00 00 00 ff ff c0 a8 01 02
			01 02 03 04 05 06 07 08 09 0a 0b 0c  11 00 00 00  a2 a9  11 22
			00 00 00 00 00 00 00 00 00 00 ff ff c6 33 64 07`},
		{"delete, IPv6", AppendMap(nil, netip.MustParseAddr("2001:db8::1"), Mapping{Nonce: nonce, Internal: 41641}), `
			02 01 00 00  00 00 00 00  20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 01
			01 02 03 04 05 06 07 08 09 0a 0b 0c  11 00 00 00  a2 a9  00 00
			00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00`},
		{"NAT-PMP address", AppendNATPMPAddress(nil), "00 00"},
		{"NAT-PMP map", AppendNATPMPMap(nil, Mapping{Internal: 41641, External: netip.AddrPortFrom(netip.Addr{}, 4386), Lifetime: time.Hour}), "00 01 00 00 a2 a9 11 22 00 00 0e 10"},
		{"NAT-PMP longest", AppendNATPMPMap(nil, Mapping{Internal: 41641, Lifetime: 1000 * time.Hour}), "00 01 00 00 a2 a9 00 00 00 01 51 80"},
		{"NAT-PMP shortest", AppendNATPMPMap(nil, Mapping{Internal: 41641, Lifetime: time.Millisecond}), "00 01 00 00 a2 a9 00 00 00 00 00 01"},
		{"NAT-PMP delete", AppendNATPMPMap(nil, Mapping{Internal: 41641, External: netip.AddrPortFrom(netip.Addr{}, 4386)}), "00 01 00 00 a2 a9 00 00 00 00 00 00"},
	} {
		if want := unhex(t, c.want); !bytes.Equal(c.got, want) {
			t.Errorf("%s:\n% x, want\n% x", c.name, c.got, want)
		}
	}
}

func TestResponses(t *testing.T) {
	m, err := ParseMap(unhex(t, grant))
	want := Mapping{Nonce: nonce, Internal: 41641, External: netip.MustParseAddrPort("198.51.100.7:4386"), Lifetime: time.Hour}
	if err != nil || m != want {
		t.Errorf("%+v, %v", m, err)
	}
	if m, err := ParseMap(append(unhex(t, grant), 1, 0, 0, 0)); err != nil || m != want {
		t.Errorf("with an option: %+v, %v", m, err)
	}
	long := unhex(t, grant)
	copy(long[4:], []byte{255, 255, 255, 255})
	if m, err := ParseMap(long); err != nil || m.Lifetime != 24*time.Hour {
		t.Errorf("for 136 years: %+v, %v", m, err)
	}
	a, err := ParseNATPMPAddress(unhex(t, "00 80 00 00 00 00 00 07 c6 33 64 07"))
	if err != nil || a != netip.MustParseAddr("198.51.100.7") {
		t.Errorf("%v, %v", a, err)
	}
	m, err = ParseNATPMPMap(unhex(t, "00 81 00 00 00 00 00 07 a2 a9 11 22 00 00 0e 10"))
	if err != nil || m != (Mapping{Internal: 41641, External: netip.AddrPortFrom(netip.Addr{}, 4386), Lifetime: time.Hour}) {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestRefusals(t *testing.T) {
	parseMap := func(b []byte) error { _, err := ParseMap(b); return err }
	parseAddress := func(b []byte) error { _, err := ParseNATPMPAddress(b); return err }
	parseNATPMPMap := func(b []byte) error { _, err := ParseNATPMPMap(b); return err }
	for _, c := range []struct {
		name  string
		parse func([]byte) error
		bytes string
		want  error
	}{
		{"empty", parseMap, "", ErrMalformed},
		{"a request", parseMap, strings.Replace(grant, "02 81", "02 01", 1), ErrMalformed},
		{"another opcode", parseMap, strings.Replace(grant, "02 81", "02 80", 1), ErrMalformed},
		{"TCP", parseMap, strings.Replace(grant, "11 00 00 00", "06 00 00 00", 1), ErrMalformed},
		{"cut off", parseMap, strings.Replace(grant, "ff ff c6 33 64 07", "ff ff", 1), ErrMalformed},
		{"odd length", parseMap, grant + " 00", ErrMalformed},
		{"too long", parseMap, grant + strings.Repeat("00", MaxSize), ErrMalformed},
		{"header only", parseMap, grant[:len("\n\t02 81 00 00  00 00 0e 10  00 00 00 07  000000000000000000000000")], ErrMalformed},
		{"knows NAT-PMP only", parseMap, "00 81 00 01 00 00 00 07", ErrVersion},
		{"knows another version", parseMap, strings.Replace(grant, "02 81 00 00", "03 81 00 01", 1), ErrVersion},
		{"does not know this version", parseMap, strings.Replace(grant, "02 81 00 00", "02 81 00 01", 1), ErrVersion},
		{"NAT-PMP: empty", parseAddress, "", ErrMalformed},
		{"NAT-PMP: a request", parseAddress, "00 00 00 00", ErrMalformed},
		{"NAT-PMP: cut off", parseAddress, "00 80 00 00 00 00 00 07 c6 33", ErrMalformed},
		{"NAT-PMP: more", parseAddress, "00 80 00 00 00 00 00 07 c6 33 64 07 00", ErrMalformed},
		{"NAT-PMP: another opcode", parseAddress, "00 81 00 00 00 00 00 07 c6 33 64 07", ErrMalformed},
		{"NAT-PMP: knows PCP only", parseAddress, "02 80 00 01 00 00 00 07", ErrVersion},
		{"NAT-PMP: version", parseNATPMPMap, "00 81 00 01 00 00 00 07", ErrVersion},
		{"NAT-PMP: cut off map", parseNATPMPMap, "00 81 00 00 00 00 00 07 a2 a9 11 22 00 00 0e", ErrMalformed},
	} {
		if err := c.parse(unhex(t, c.bytes)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	for _, c := range []struct {
		parse func([]byte) error
		bytes string
		want  RefusedError
		text  string
	}{
		{parseMap, strings.Replace(grant, "02 81 00 00", "02 81 00 08", 1), RefusedError{Code: 8, Wait: time.Hour}, "PCP code 8 (no resources)"},
		{parseMap, strings.Replace(grant, "02 81 00 00", "02 81 00 ff", 1), RefusedError{Code: 255, Wait: time.Hour}, "PCP code 255 (unknown)"},
		{parseMap, "02 81 00 02 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00", RefusedError{Code: 2}, "PCP code 2 (not authorized)"},
		{parseAddress, "00 80 00 03 00 00 00 07", RefusedError{NATPMP: true, Code: 3}, "NAT-PMP code 3 (network failure)"},
		{parseNATPMPMap, "00 81 00 04 00 00 00 07", RefusedError{NATPMP: true, Code: 4}, "NAT-PMP code 4 (out of resources)"},
	} {
		var got *RefusedError
		if err := c.parse(unhex(t, c.bytes)); !errors.As(err, &got) || *got != c.want || !strings.HasSuffix(got.Error(), c.text) {
			t.Errorf("%s: %v, want %+v", c.bytes, err, c.want)
		}
	}
}

// FuzzParse reads anything: nothing panics, lifetimes and addresses are within
// bounds, and what one parser takes the other does not.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		grant, "00 80 00 00 00 00 00 07 c6 33 64 07", "00 81 00 00 00 00 00 07 a2 a9 11 22 00 00 0e 10",
		"00 81 00 01 00 00 00 07", "02 81 00 08 00 00 00 3c 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
	} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseMap(b)
		if err == nil && (m.Lifetime < 0 || m.Lifetime > maxLifetime || m.External.Addr().Is4In6() || !m.External.IsValid()) {
			t.Errorf("%+v", m)
		}
		p, errP := ParseNATPMPMap(b)
		if errP == nil && (p.Lifetime < 0 || p.Lifetime > maxLifetime) {
			t.Errorf("%+v", p)
		}
		_, errA := ParseNATPMPAddress(b)
		if err == nil && errP == nil || errP == nil && errA == nil || err == nil && errA == nil {
			t.Errorf("% x is two things", b)
		}
		for _, err := range []error{err, errP, errA} {
			var refused *RefusedError
			if errors.As(err, &refused) && (refused.Code < 2 || refused.Wait < 0 || refused.Wait > maxLifetime || refused.Error() == "") {
				t.Errorf("%+v", refused)
			}
		}
	})
}
