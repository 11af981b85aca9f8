package packet

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"testing"
)

// checksumsHold computes the checksums of b the slow way, byte pair by byte
// pair over a pseudo-header that is really built (RFC 1071, RFC 8200 8.1).
func checksumsHold(t *testing.T, b []byte) {
	t.Helper()
	add := func(b []byte) (total uint32) {
		if len(b)%2 == 1 {
			b = append(bytes.Clone(b), 0)
		}
		for i := 0; i < len(b); i += 2 {
			total += uint32(binary.BigEndian.Uint16(b[i:]))
			total = total&0xffff + total>>16
		}
		return total
	}
	var i Info
	if fault := Parse(b, &i); fault != None || int(i.Length) != len(b) {
		t.Fatalf("%x does not parse: %v", b, fault)
	}
	segment := b[i.HeaderLength:]
	var pseudo []byte
	if i.Version == 4 {
		if add(b[:20]) != 0xffff {
			t.Errorf("IPv4 header checksum of %x is wrong", b)
		}
		pseudo = append(pseudo, b[12:20]...)
	} else {
		pseudo = append(pseudo, b[8:40]...)
	}
	if i.Protocol == ICMP {
		pseudo = nil
	} else {
		pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(segment)))
		pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(i.Protocol))
	}
	if add(append(pseudo, segment...)) != 0xffff {
		t.Errorf("transport checksum of %x is wrong", b)
	}
}

func TestAppendReject(t *testing.T) {
	const ack = "d431 0016 00000001 00000fff 5010 ffff 0000 0000 6869"
	quote4, quote6 := hex.EncodeToString(ip4(t, UDP, 0, udpEmpty)), hex.EncodeToString(ip6(t, UDP, udpEmpty))
	for _, test := range []struct {
		name   string
		packet []byte
		// want is a part of the answer: for TCP "sequence acknowledgment
		// offset-and-flags", for ICMP type and code; empty for no answer.
		want string
		at   int
	}{
		{"ipv4 syn", ip4(t, TCP, 0, tcpSYN), "0016 d431 00000000 00000002 5014", 20},
		{"ipv6 syn", ip6(t, TCP, tcpSYN), "0016 d431 00000000 00000002 5014", 40},
		{"ipv4 data", ip4(t, TCP, 0, ack), "0016 d431 00000fff 00000000 5004", 20},
		{"ipv6 data", ip6(t, TCP, ack), "0016 d431 00000fff 00000000 5004", 40},
		{"ipv4 datagram", ip4(t, UDP, 0, udpEmpty), "030d", 20},
		{"ipv6 datagram", ip6(t, UDP, udpEmpty), "0101", 40},
		{"echo request", ip4(t, ICMP, 0, echo4), "030d", 20},
		{"gre", ip6(t, 47, udpEmpty), "0101", 40},
		{"large datagram", append(ip4(t, UDP, 0, udpEmpty+hex.EncodeToString(make([]byte, 1200))), 9), "030d", 20},
		{"reset", ip4(t, TCP, 0, "d431 0016 00000001 00000000 5004 ffff 0000 0000"), "", 0},
		{"echo reply", ip4(t, ICMP, 0, "0000 0000 1234 0001"), "", 0},
		{"ipv4 error", ip4(t, ICMP, 0, "0303 0000 0000 0000"+quote4), "", 0},
		{"ipv6 error", ip6(t, ICMPv6, "0104 0000 0000 0000"+quote6), "", 0},
		{"redirect", ip4(t, ICMP, 0, "0501 0000 64400003"), "", 0},
		{"first fragment", ip4(t, UDP, 0x2000, udpEmpty), "", 0},
		{"later fragment", ip4(t, UDP, 0x0001, udpEmpty), "", 0},
		{"malformed", ip4(t, UDP, 0, "d431"), "", 0},
		{"multicast", setDestination(ip4(t, UDP, 0, udpEmpty), "224.0.0.251"), "", 0},
		{"broadcast", setDestination(ip4(t, UDP, 0, udpEmpty), "255.255.255.255"), "", 0},
		{"ipv6 multicast", setDestination(ip6(t, UDP, udpEmpty), "ff02::1"), "", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := AppendReject([]byte("head"), test.packet)
			if string(got[:4]) != "head" {
				t.Fatalf("overwrote what was there: %x", got)
			}
			got = got[4:]
			if test.want == "" {
				if len(got) != 0 {
					t.Fatalf("answered %x", got)
				}
				return
			}
			want := unhex(t, test.want)
			if len(got) < test.at+len(want) || !bytes.Equal(got[test.at:test.at+len(want)], want) {
				t.Fatalf("answer %x has not %x at %d", got, want, test.at)
			}
			checksumsHold(t, got)
			var sent, answer Info
			Parse(test.packet, &sent)
			Parse(got, &answer)
			if answer.Source != sent.Destination || answer.Destination != sent.Source {
				t.Fatalf("answer goes from %v to %v", answer.Source, answer.Destination)
			}
			if answer.Kind == ICMPError {
				q := answer.Quoted
				if q.Source != sent.Source || q.Destination != sent.Destination || q.Protocol != sent.Protocol ||
					q.SourcePort != sent.SourcePort || q.DestinationPort != sent.DestinationPort || len(got) > 576 {
					t.Fatalf("answer of %d bytes quotes %+v", len(got), q)
				}
			}
		})
	}
}

func setDestination(b []byte, a string) []byte {
	destination := netip.MustParseAddr(a).AsSlice()
	copy(b[map[int]int{4: 16, 16: 24}[len(destination)]:], destination)
	return b
}

func TestAppendForAFlow(t *testing.T) {
	for _, addresses := range [][2]string{{"100.64.0.1", "100.64.0.2"}, {"fd00::1", "fd00::2"}} {
		tuple := Tuple{
			AddressOf(netip.MustParseAddr(addresses[0])), AddressOf(netip.MustParseAddr(addresses[1])), 1234, 80, TCP,
		}
		reset := AppendReset(nil, tuple, 0x01020304, 0x05060708)
		checksumsHold(t, reset)
		var i Info
		Parse(reset, &i)
		if i.Flags != RST|ACK || i.Sequence != 0x01020304 || i.Acknowledgment != 0x05060708 ||
			i.SourcePort != 1234 || i.DestinationPort != 80 || i.Source != tuple.Source {
			t.Errorf("AppendReset made %+v", i)
		}
		echo := ICMP
		if !tuple.Source.Is4() {
			echo = ICMPv6
		}
		for _, protocol := range []uint8{UDP, TCP, SCTP, echo} {
			tuple.Protocol = protocol
			if protocol == echo {
				tuple.DestinationPort = 0
			}
			prohibited := AppendProhibited(nil, tuple)
			checksumsHold(t, prohibited)
			Parse(prohibited, &i)
			q := i.Quoted
			if i.Kind != ICMPError || i.Source != tuple.Destination || i.Destination != tuple.Source ||
				q.Source != tuple.Source || q.Protocol != protocol || q.SourcePort+q.Identifier != 1234 || q.DestinationPort != tuple.DestinationPort {
				t.Errorf("AppendProhibited made %+v", i)
			}
		}
	}
}

func TestReverse(t *testing.T) {
	a, b := Address{1, 2}, Address{3, 4}
	if got := (Tuple{a, b, 5, 6, TCP}).Reverse(); got != (Tuple{b, a, 6, 5, TCP}) {
		t.Errorf("TCP: %+v", got)
	}
	if got := (Tuple{a, b, 5, 0, ICMP}).Reverse(); got != (Tuple{b, a, 5, 0, ICMP}) {
		t.Errorf("echo: %+v", got)
	}
}

func TestSetMTU(t *testing.T) {
	for _, test := range []struct {
		packet       []byte
		old, set, to uint32
	}{
		{ip4(t, ICMP, 0, "0304 0000 0000 0044"+hex.EncodeToString(ip4(t, UDP, 0, udpEmpty))), 68, 576, 576},
		{ip4(t, ICMP, 0, "0304 0000 0000 0500"+hex.EncodeToString(ip4(t, UDP, 0, udpEmpty))), 1280, 576, 1280},
		{ip6(t, ICMPv6, "0200 0000 0000 04ff"+hex.EncodeToString(ip6(t, UDP, udpEmpty))), 1279, 1280, 1280},
		{ip6(t, ICMPv6, "0300 0000 0000 04ff"+hex.EncodeToString(ip6(t, UDP, udpEmpty))), 0, 1280, 0},
	} {
		before := bytes.Clone(test.packet)
		SetMTU(test.packet, uint16(test.set))
		var i Info
		if Parse(test.packet, &i); i.MTU != test.to {
			t.Errorf("SetMTU(%d) of %d gave %d", test.set, test.old, i.MTU)
		}
		if test.old == test.to {
			if !bytes.Equal(before, test.packet) {
				t.Errorf("SetMTU(%d) of %d changed the packet", test.set, test.old)
			}
			continue
		}
		if i.Version == 4 { // the sample's IP header has no checksum
			binary.BigEndian.PutUint16(test.packet[10:], ^fold(sum(0, test.packet[:20])))
		}
		checksumsHold(t, test.packet)
	}
}

func TestEcho(t *testing.T) {
	for _, addresses := range [][2]string{{"100.64.0.1", "100.64.0.2"}, {"fd00::1", "fd00::2"}} {
		e := Echo{
			Source: netip.MustParseAddr(addresses[0]), Destination: netip.MustParseAddr(addresses[1]),
			Identifier: 7, Sequence: 9, Data: []byte("odd"),
		}
		request := AppendEchoRequest(nil, e)
		checksumsHold(t, request)
		var i Info
		if Parse(request, &i); i.Kind != EchoRequest || i.Identifier != 7 || i.Source.Addr() != e.Source {
			t.Fatalf("AppendEchoRequest made %+v", i)
		}
		if _, ok := ParseEchoReply(request); ok {
			t.Error("a request was taken for a reply")
		}
		reply := bytes.Clone(request)
		at := int(i.HeaderLength)
		reply[at] = map[byte]byte{8: 0, 128: 129}[reply[at]]
		if _, ok := ParseEchoReply(reply); ok {
			t.Error("a reply with a wrong checksum was accepted")
		}
		reply[at+2], reply[at+3] = 0, 0
		binary.BigEndian.PutUint16(reply[at+2:], transportChecksum(i.Source, i.Destination, i.Protocol, reply[at:]))
		got, ok := ParseEchoReply(append(reply, 1, 2))
		if !ok || got.Identifier != 7 || got.Sequence != 9 || string(got.Data) != "odd" ||
			got.Source != e.Source || got.Destination != e.Destination {
			t.Errorf("ParseEchoReply = %+v, %v", got, ok)
		}
	}
	mixed := Echo{Source: netip.MustParseAddr("100.64.0.1"), Destination: netip.MustParseAddr("fd00::1")}
	if got := AppendEchoRequest(nil, mixed); got != nil {
		t.Errorf("two families made %x", got)
	}
}

func TestBuildersDoNotAllocate(t *testing.T) {
	room := make([]byte, 0, 2048)
	datagram := ip6(t, UDP, udpEmpty)
	tuple := Tuple{AddressOf(netip.MustParseAddr("fd00::1")), AddressOf(netip.MustParseAddr("fd00::2")), 1, 2, UDP}
	if n := testing.AllocsPerRun(100, func() {
		AppendReject(room, datagram)
		AppendReset(room, tuple, 1, 2)
		AppendProhibited(room, tuple)
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func TestAddress(t *testing.T) {
	for _, s := range []string{"0.0.0.0", "1.2.3.4", "255.255.255.255", "::", "::1", "fd00::1", "2001:db8::ff"} {
		a := netip.MustParseAddr(s)
		got := AddressOf(a)
		if got.Addr() != a || got.Is4() != a.Is4() || got.String() != s {
			t.Errorf("AddressOf(%v) is %v", a, got)
		}
	}
	if AddressOf(netip.Addr{}) != (Address{}) {
		t.Error("the zero Addr is not the zero Address")
	}
}
