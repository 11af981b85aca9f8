package packet

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Sample headers; lengths and protocols are filled in by ip4 and ip6.
const (
	tcpSYN   = "d431 0016 00000001 00000000 5002 ffff 0000 0000"
	udpEmpty = "d431 0035 0008 0000"
	sctpInit = "d431 0016 00000000 00000000 0100 0014 00000001 00010000 00010001 00000001"
	echo4    = "0800 0000 1234 0001"
	echo6    = "8000 0000 1234 0001"
)

func ip4(t testing.TB, protocol uint8, offset uint16, payload string) []byte {
	b := append(unhex(t, "4500 0000 abcd 0000 4000 0000 64400001 64400002"), unhex(t, payload)...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[6:], offset)
	b[9] = protocol
	return b
}

func ip6(t testing.TB, next uint8, payload string) []byte {
	b := append(unhex(t, "6000 0000 0000 0040"+strings.Repeat("fd00000000000000 0000000000000001", 2)), unhex(t, payload)...)
	b[39] = 2
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	b[6] = next
	return b
}

func TestParse(t *testing.T) {
	source4, destination4 := AddressOf(netip.MustParseAddr("100.64.0.1")), AddressOf(netip.MustParseAddr("100.64.0.2"))
	source6, destination6 := AddressOf(netip.MustParseAddr("fd00::1")), AddressOf(netip.MustParseAddr("fd00::2"))
	quoted4 := hex.EncodeToString(ip4(t, UDP, 0, udpEmpty))
	quoted6 := hex.EncodeToString(ip6(t, TCP, tcpSYN))[:96]
	for _, test := range []struct {
		name   string
		packet []byte
		fault  Fault
		want   Info
	}{
		{"empty", nil, Truncated, Info{}},
		{"version 5", []byte{0x50}, Version, Info{}},
		{"tcp in ipv4", ip4(t, TCP, 0, tcpSYN), None, Info{
			Source: source4, Destination: destination4, Version: 4, Length: 40, HeaderLength: 20, Protocol: TCP,
			Kind: TCPSegment, SourcePort: 0xd431, DestinationPort: 22, Sequence: 1, Flags: SYN,
		}},
		{"tcp in ipv6", ip6(t, TCP, tcpSYN), None, Info{
			Source: source6, Destination: destination6, Version: 6, Length: 60, HeaderLength: 40, Protocol: TCP,
			Kind: TCPSegment, SourcePort: 0xd431, DestinationPort: 22, Sequence: 1, Flags: SYN,
		}},
		{"trailing bytes", append(ip4(t, UDP, 0, udpEmpty), 1, 2, 3), None, Info{
			Source: source4, Destination: destination4, Version: 4, Length: 28, HeaderLength: 20, Protocol: UDP,
			Kind: Datagram, SourcePort: 0xd431, DestinationPort: 53, PayloadLength: 8,
		}},
		{"longer than the buffer", ip4(t, UDP, 0, udpEmpty)[:27], Truncated, Info{Version: 4}},
		{"ipv6 longer than the buffer", ip6(t, UDP, udpEmpty)[:47], Truncated, Info{Version: 6}},
		{"udp longer than the packet", ip4(t, UDP, 0, "d431 0035 0009 0000"), Transport, Info{Version: 4}},
		{"udp shorter than its header", ip4(t, UDP, 0, "d431 0035 0007 0000"), Transport, Info{Version: 4}},
		{"tcp offset beyond the packet", ip4(t, TCP, 0, strings.Replace(tcpSYN, "5002", "6002", 1)), Transport, Info{Version: 4}},
		{"tcp offset 4", ip4(t, TCP, 0, strings.Replace(tcpSYN, "5002", "4002", 1)), Transport, Info{Version: 4}},
		{"loose source route", unhex(t, "4700 0030 0000 0000 4006 0000 64400001 64400002 83070464400003 00"+tcpSYN), Options, Info{Version: 4}},
		{"icmpv6 in ipv4", ip4(t, ICMPv6, 0, echo6), Version, Info{Version: 4}},
		{"icmp in ipv6", ip6(t, ICMP, echo4), Version, Info{Version: 6}},
		{"hop by hop", ip6(t, 0, "0600 0000 0000 0000"+tcpSYN), Extension, Info{Version: 6}},
		{"routing type 0", ip6(t, 43, "0600 0000 0000 0000"+tcpSYN), Extension, Info{Version: 6}},
		{"no next header", ip6(t, 59, ""), Extension, Info{Version: 6}},
		{"two fragment headers", ip6(t, 44, "2c00 0000 00000007 0600 0000 00000007"+tcpSYN), Extension, Info{Version: 6}},
		{"options behind a fragment header", ip6(t, 44, "3c00 0000 00000007 0600 0000 0000 0000"+tcpSYN), Extension, Info{Version: 6}},
		{"fragment header cut off", ip6(t, 44, "0600 0000"), Truncated, Info{Version: 6}},
		{"atomic fragment", ip6(t, 44, "0600 0000 00000007"+tcpSYN), None, Info{
			Source: source6, Destination: destination6, Version: 6, Length: 68, HeaderLength: 48, Protocol: TCP, FragmentID: 7,
			Kind: TCPSegment, SourcePort: 0xd431, DestinationPort: 22, Sequence: 1, Flags: SYN,
		}},
		{"first fragment", ip4(t, UDP, 0x2000, "d431 0035 0400 0000 0000000000000000"), None, Info{
			Source: source4, Destination: destination4, Version: 4, Length: 36, HeaderLength: 20, Protocol: UDP,
			FragmentID: 0xabcd, MoreFragments: true,
			Kind: Datagram, SourcePort: 0xd431, DestinationPort: 53, PayloadLength: 16,
		}},
		{"first fragment of an odd length", ip4(t, UDP, 0x2000, "d431 0035 0400 0000 00"), Fragmented, Info{Version: 4}},
		{"tiny first fragment", ip4(t, TCP, 0x2000, tcpSYN[:19]), Fragmented, Info{Version: 4}},
		{"fragment that may not be one", ip4(t, UDP, 0x6000, udpEmpty), Fragmented, Info{Version: 4}},
		{"later fragment", ip4(t, TCP, 0x0001, tcpSYN), None, Info{
			Source: source4, Destination: destination4, Version: 4, Length: 40, HeaderLength: 20, Protocol: TCP,
			FragmentID: 0xabcd, FragmentOffset: 8, Kind: LaterFragment, PayloadLength: 20,
		}},
		{"empty later fragment", ip4(t, TCP, 0x0001, ""), Fragmented, Info{Version: 4}},
		{"icmp error in fragments", ip4(t, ICMP, 0x2000, "0303 0000 0000 0000"+quoted4+"00000000"), Fragmented, Info{Version: 4}},
		{"mapped source", func() []byte {
			b := ip6(t, TCP, tcpSYN)
			copy(b[8:], unhex(t, "00000000000000000000ffff64400001"))
			return b
		}(), Embedded4, Info{Version: 6}},
		{"compatible destination", func() []byte {
			b := ip6(t, TCP, tcpSYN)
			copy(b[24:], unhex(t, "0000000000000000000000007f000001"))
			return b
		}(), Embedded4, Info{Version: 6}},
		{"sctp init", ip4(t, SCTP, 0, sctpInit), None, Info{
			Source: source4, Destination: destination4, Version: 4, Length: 52, HeaderLength: 20, Protocol: SCTP,
			Kind: SCTPInit, SourcePort: 0xd431, DestinationPort: 22, PayloadLength: 32,
		}},
		{"sctp init with company", ip4(t, SCTP, 0, sctpInit+"0b000004"), None, Info{
			Source: source4, Destination: destination4, Version: 4, Length: 56, HeaderLength: 20, Protocol: SCTP,
			Kind: SCTPPacket, SourcePort: 0xd431, DestinationPort: 22, PayloadLength: 36,
		}},
		{"gre around tcp", ip4(t, 47, 0, tcpSYN), None, Info{
			Source: source4, Destination: destination4, Version: 4, Length: 40, HeaderLength: 20, Protocol: 47,
			PayloadLength: 20,
		}},
		{"echo request", ip4(t, ICMP, 0, echo4), None, Info{
			Source: source4, Destination: destination4, Version: 4, Length: 28, HeaderLength: 20, Protocol: ICMP,
			Kind: EchoRequest, Type: 8, Identifier: 0x1234, PayloadLength: 8,
		}},
		{"redirect", ip4(t, ICMP, 0, "0501 0000 64400003"), None, Info{
			Source: source4, Destination: destination4, Version: 4, Length: 28, HeaderLength: 20, Protocol: ICMP,
			Kind: ICMPOther, Type: 5, Code: 1, PayloadLength: 8,
		}},
		{"fragmentation needed", ip4(t, ICMP, 0, "0304 0000 0000 0500"+quoted4), None, Info{
			Source: source4, Destination: destination4, Version: 4, Length: 56, HeaderLength: 20, Protocol: ICMP,
			Kind: ICMPError, Type: 3, Code: 4, MTU: 1280, PayloadLength: 36,
			Quoted: Quote{source4, destination4, 0xd431, 53, 0, UDP, Datagram},
		}},
		{"packet too big", ip6(t, ICMPv6, "0200 0000 0000 04ff"+quoted6), None, Info{
			Source: source6, Destination: destination6, Version: 6, Length: 96, HeaderLength: 40, Protocol: ICMPv6,
			Kind: ICMPError, Type: 2, MTU: 1279, PayloadLength: 56,
			Quoted: Quote{source6, destination6, 0xd431, 22, 0, TCP, TCPSegment},
		}},
		{"quote cut off", ip6(t, ICMPv6, "0200 0000 0000 04ff"+quoted6[:94]), Quoted, Info{Version: 6}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got Info
			fault := Parse(test.packet, &got)
			if fault != None {
				got = Info{Version: got.Version}
			}
			if fault != test.fault || got != test.want {
				t.Fatalf("Parse = %v, %+v\nwant %v, %+v", fault, got, test.fault, test.want)
			}
			compare(t, test.packet)
		})
	}
}

func compare(t *testing.T, b []byte) {
	t.Helper()
	var got Info
	fault := Parse(b, &got)
	want, wantFault := slowParse(b)
	if fault != None || wantFault != None {
		got, want = Info{Version: got.Version}, Info{Version: want.Version}
	}
	if fault != wantFault || got != want {
		t.Fatalf("Parse(%x) =\n%v, %+v, want\n%v, %+v", b, fault, got, wantFault, want)
	}
}

func samples(t testing.TB) [][]byte {
	quote4, quote6 := hex.EncodeToString(ip4(t, TCP, 0, tcpSYN)), hex.EncodeToString(ip6(t, UDP, udpEmpty))
	atomic := hex.EncodeToString(ip6(t, 44, "0600 0000 00000007"+tcpSYN))
	return [][]byte{
		ip4(t, TCP, 0, tcpSYN), ip6(t, TCP, tcpSYN), ip4(t, UDP, 0x2000, udpEmpty), ip4(t, UDP, 0x1fff, udpEmpty),
		ip6(t, 44, "1100 0001 00000007"+udpEmpty), ip6(t, 44, "1100 0108 00000007"+udpEmpty),
		ip4(t, SCTP, 0, sctpInit), ip6(t, SCTP, sctpInit), ip4(t, ICMP, 0, echo4), ip6(t, ICMPv6, echo6),
		ip4(t, ICMP, 0, "0304 0000 0000 0044"+quote4), ip6(t, ICMPv6, "0104 0000 0000 0000"+quote6),
		ip6(t, ICMPv6, "0104 0000 0000 0000"+atomic), ip4(t, ICMP, 0, "0b00 0000 0000 0000"+hex.EncodeToString(ip4(t, ICMP, 0, echo4))),
		ip6(t, ICMPv6, "8600 0000 0000 0000"), ip4(t, 47, 0, tcpSYN), ip6(t, 60, "06ff 0000 0000 0000"+tcpSYN),
	}
}

func TestParseEqualsSlowParse(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	faults := map[Fault]int{}
	all := samples(t)
	for range 50_000 {
		b := slices.Clone(all[r.IntN(len(all))])
		for range r.IntN(4) {
			at := r.IntN(min(len(b), 64))
			b[at] = [...]byte{0, 1, 4, 6, 44, 255, byte(r.Uint32()), b[at] ^ 1<<r.IntN(8)}[r.IntN(8)]
		}
		switch r.IntN(6) {
		case 0:
			b = b[:r.IntN(len(b)+1)]
		case 1:
			b = append(b, make([]byte, r.IntN(9))...)
		}
		compare(t, b)
		var i Info
		faults[Parse(b, &i)]++
	}
	for f := range Fault(NumFaults) {
		if faults[f] == 0 {
			t.Errorf("no sample met the fault %v", f)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, b := range samples(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		compare(t, b)
		var i, j Info
		if Parse(b, &i) == None {
			// What lies behind the packet does not matter.
			if Parse(b[:i.Length], &j) != None || i != j {
				t.Fatalf("the packet alone parses as %+v, with trailing bytes as %+v", j, i)
			}
		}
		if reject := AppendReject(nil, b); reject != nil {
			if fault := Parse(reject, &j); fault != None || j.Source != i.Destination || j.Destination != i.Source {
				t.Fatalf("AppendReject(%x) = %x: %v, %+v", b, reject, fault, j)
			}
		}
	})
}

func TestParseDoesNotAllocate(t *testing.T) {
	all := samples(t)
	var i Info
	if n := testing.AllocsPerRun(100, func() {
		for _, b := range all {
			Parse(b, &i)
		}
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func TestFaultNames(t *testing.T) {
	seen := map[string]bool{}
	for f := range Fault(NumFaults) {
		if name := f.String(); name == "" || seen[name] {
			t.Errorf("fault %d is called %q", f, name)
		} else {
			seen[name] = true
		}
	}
	if Fault(200).String() != "unknown" {
		t.Error("an unknown fault has a name")
	}
}

func BenchmarkParse(b *testing.B) {
	for _, bench := range []struct {
		name   string
		packet []byte
	}{
		{"ipv4-tcp", ip4(b, TCP, 0, tcpSYN)},
		{"ipv6-tcp", ip6(b, TCP, tcpSYN)},
		{"ipv6-udp", ip6(b, UDP, udpEmpty)},
		{"ipv4-icmp-error", ip4(b, ICMP, 0, "0304 0000 0000 0044"+hex.EncodeToString(ip4(b, TCP, 0, tcpSYN)))},
	} {
		b.Run(bench.name, func(b *testing.B) {
			var i Info
			for b.Loop() {
				if Parse(bench.packet, &i) != None {
					b.Fatal("refused")
				}
			}
		})
	}
}
