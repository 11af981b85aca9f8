package engine

import (
	"bytes"
	"maps"
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/packet"
)

// inbandAddresses are pairs of one family each.
var inbandAddresses = [][2]netip.Addr{
	{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("100.64.0.2")},
	{netip.MustParseAddr("fd64::1"), netip.MustParseAddr("fd64::2")},
}

// inbandExamples are messages, and how long their packets are over IPv4 and IPv6.
var inbandExamples = []struct {
	inband
	lengths [2]int
}{
	{inband{kind: kindAsk, nonce: 1 << 60}, [2]int{32, 52}},
	{inband{kind: kindAnswer, flags: flagServing, nonce: 7}, [2]int{32, 52}},
	{inband{kind: kindAsk, nonce: 1, length: 1000}, [2]int{32, 52}},
	{inband{kind: kindRelayAsk, nonce: 8}, [2]int{32, 52}},
	{inband{kind: kindRelayAsk, nonce: 9, length: 52}, [2]int{52, 52}},
	{inband{kind: kindRelayAnswer, nonce: 10, length: 1280}, [2]int{1280, 1280}},
	{inband{kind: kindRelayAsk, nonce: 11, length: maxInband + 1}, [2]int{maxInband, maxInband}},
}

func inbandPackets() (packets [][]byte) {
	for _, m := range inbandExamples {
		for _, a := range inbandAddresses {
			packets = append(packets, appendInband(nil, a[0], a[1], m.inband))
		}
	}
	return packets
}

func TestInbandSurvives(t *testing.T) {
	for i, b := range inbandPackets() {
		example, family := inbandExamples[i/2], i%2
		var info packet.Info
		if fault := packet.Parse(b, &info); fault != packet.None {
			t.Fatalf("%d: %v", i, fault)
		}
		want := example.inband
		if want.length = 0; want.padded() {
			want.length = example.lengths[family]
		}
		m, err := parseInband(b, &info)
		if err != nil || m != want || info.Protocol != inbandProtocol || int(info.Length) != len(b) || len(b) != example.lengths[family] {
			t.Errorf("%d: %+v in %d bytes, %v; want %+v in %d", i, m, len(b), err, want, example.lengths[family])
		}
		if sum := checksum(b); info.Version == 4 && sum != 0 {
			t.Errorf("%d: header checksum is off by %x", i, sum)
		}
	}
}

// TestInbandRefusals: only a relay ask and its answer are padded, with zeros, and not
// beyond what asks may have.
func TestInbandRefusals(t *testing.T) {
	addresses := inbandAddresses[0]
	for name, change := range map[string]func(b []byte) []byte{
		"padding of an ask":       func(b []byte) []byte { b[21] = kindAsk; return b },
		"padding of an answer":    func(b []byte) []byte { b[21] = kindAnswer; return b },
		"an unknown kind":         func(b []byte) []byte { b[21] = kindRelayAnswer + 1; return b },
		"another version":         func(b []byte) []byte { b[20]++; return b },
		"padding that says more":  func(b []byte) []byte { b[len(b)-1] = 1; return b },
		"a message that is short": func(b []byte) []byte { return b[:20+inbandLength-1] },
		"one that is too long":    func(b []byte) []byte { return append(b, make([]byte, maxInband)...) },
	} {
		b := appendInband(nil, addresses[0], addresses[1], inband{kind: kindRelayAsk, nonce: 1, length: 100})
		info := packet.Info{Version: 4}
		if _, err := parseInband(b, &info); err != nil {
			t.Fatalf("unchanged: %v", err)
		}
		if m, err := parseInband(change(bytes.Clone(b)), &info); err == nil {
			t.Errorf("%s: taken for %+v", name, m)
		}
	}
}

// TestLengths: what is picked is the length of a packet that left lately, half of the
// times that of the longest, and otherwise what is given.
func TestLengths(t *testing.T) {
	var l lengths
	now := time.Unix(1000, 0)
	if got := l.pick(77, 84); got != 84 {
		t.Errorf("without a packet: %d", got)
	}
	want := func(what string, want map[int]int) {
		t.Helper()
		got := make(map[int]int)
		for draw := range 256 {
			got[l.pick(byte(draw), 84)]++
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	l.note(100, 100, now)
	l.note(9000, 9000, now)
	want("two packets", map[int]int{100: 64, maxInband: 192})
	l.note(60, 1000, now)
	for i := range 20 {
		now = now.Add(lengthsFor / 20)
		l.note(200+i%2, 200+i%2, now)
	}
	want("many short ones", map[int]int{200: 64, 201: 64, maxInband: 128})
	now = now.Add(lengthsFor)
	l.note(200, 200, now)
	want("long after", map[int]int{200: 64, 201: 64 + 128})
	now = now.Add(2 * lengthsFor)
	l.note(300, 300, now)
	want("longer after", map[int]int{200: 64, 201: 48, 300: 16 + 128})
}

// checksum sums an IPv4 header as RFC 791 does; a right one gives 0.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// FuzzInband reads anything that the parser accepts.
func FuzzInband(f *testing.F) {
	for _, b := range inbandPackets() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var info packet.Info
		if packet.Parse(b, &info) != packet.None || info.Protocol != inbandProtocol {
			return
		}
		m, err := parseInband(b[:info.Length], &info)
		if err != nil {
			return
		}
		again := appendInband(nil, info.Source.Addr(), info.Destination.Addr(), m)
		if got, err := parseInband(again, &info); err != nil || got != m {
			t.Fatalf("%+v becomes %+v, %v", m, got, err)
		}
	})
}
