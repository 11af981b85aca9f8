package packet

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"testing"
)

func TestAppendTooBig(t *testing.T) {
	long := fmt.Sprintf("d431 0035 %04x 0000", 1400) + hex.EncodeToString(make([]byte, 1392))
	tcp := "d431 0016 00000001 00000fff 5010 ffff 0000 0000" + hex.EncodeToString(make([]byte, 1400))
	for _, test := range []struct {
		name   string
		packet []byte
		mtu    uint16
		want   string // type, code and second word; empty for no answer
	}{
		{"UDP 4", ip4(t, UDP, 0x4000, long), 1280, "0304 00000500"},
		{"UDP 6", ip6(t, UDP, long), 1280, "0200 00000500"},
		{"TCP 4", ip4(t, TCP, 0x4000, tcp), 1300, "0304 00000514"},
		{"TCP 6", ip6(t, TCP, tcp), 1300, "0200 00000514"},
		{"echo reply", ip4(t, ICMP, 0x4000, "0000 0000 0001 0001"), 1300, "0304 00000514"},
		{"later fragment", ip4(t, UDP, 0x0001, long), 1280, ""},
		{"error", ip4(t, ICMP, 0, "0303 0000 00000000"+hex.EncodeToString(ip4(t, UDP, 0, udpEmpty))), 1280, ""},
		{"nothing", nil, 1280, ""},
	} {
		got := AppendTooBig([]byte("keep"), test.packet, test.mtu)
		if !bytes.HasPrefix(got, []byte("keep")) {
			t.Fatalf("%s: dst was changed", test.name)
		}
		if got = got[4:]; test.want == "" {
			if len(got) != 0 {
				t.Errorf("%s: answered with %x", test.name, got)
			}
			continue
		}
		checksumsHold(t, got)
		var i, about Info
		if Parse(got, &i) != None || Parse(test.packet, &about) != None {
			t.Fatalf("%s: %x does not parse", test.name, got)
		}
		if !i.TooBig() || i.MTU != uint32(test.mtu) || i.Source != about.Destination || i.Destination != about.Source {
			t.Errorf("%s: %+v", test.name, i)
		}
		if q := i.Quoted; q.Source != about.Source || q.Destination != about.Destination ||
			q.SourcePort != about.SourcePort || q.DestinationPort != about.DestinationPort {
			t.Errorf("%s: quotes %+v", test.name, q)
		}
		m := got[i.HeaderLength:]
		if head := fmt.Sprintf("%x %x", m[:2], m[4:8]); head != test.want {
			t.Errorf("%s: %s, want %s", test.name, head, test.want)
		}
		if limit := map[uint8]int{4: 576, 6: 1280}[i.Version]; len(got) > limit {
			t.Errorf("%s: %d bytes", test.name, len(got))
		}
	}
}

// synWith returns a SYN of the family with the given options, which must be
// whole words, and a right checksum.
func synWith(t testing.TB, version int, flags TCPFlags, options []byte) []byte {
	header := fmt.Sprintf("d431 0016 00000001 00000000 %02x%02x ffff 0000 0000", (20+len(options))/4<<4, byte(flags))
	b := ip4(t, TCP, 0x4000, header+hex.EncodeToString(options))
	if version == 6 {
		b = ip6(t, TCP, header+hex.EncodeToString(options))
	}
	if version == 4 {
		binary.BigEndian.PutUint16(b[10:], ^fold(sum(0, b[:header4])))
	}
	var i Info
	if fault := Parse(b, &i); fault != None {
		t.Fatal(fault)
	}
	segment := b[i.HeaderLength:]
	binary.BigEndian.PutUint16(segment[16:], transportChecksum(i.Source, i.Destination, TCP, segment))
	return b
}

func TestClampMSS(t *testing.T) {
	for _, test := range []struct {
		name    string
		version int
		flags   TCPFlags
		options string
		mtu     int
		want    string
	}{
		{"lowered", 4, SYN, "020405b4", 1420, "02040564"},
		{"lowered 6", 6, SYN, "020405a0", 1420, "02040550"},
		{"SYN-ACK", 4, SYN | ACK, "020405b4", 1280, "020404d8"},
		{"less already", 4, SYN, "02040500", 1420, "02040500"},
		{"equal", 4, SYN, "02040564", 1420, "02040564"},
		{"not a SYN", 4, ACK, "020405b4", 1280, "020405b4"},
		{"behind others", 4, SYN, "0402080a0000000100000000020405b401030307", 1280, "0402080a0000000100000000020404d801030307"},
		{"at an odd place", 4, SYN, "01020405b4010100", 1280, "01020404d8010100"},
		{"at an odd place 6", 6, SYN, "01020405b4010100", 1280, "01020404c4010100"},
		{"behind the end", 4, SYN, "00000000020405b4", 1280, "00000000020405b4"},
		{"of another length", 4, SYN, "020505b401010000", 1280, "020505b401010000"},
		{"cut off", 4, SYN, "01010204", 1280, "01010204"},
		{"no length", 4, SYN, "01010102", 1280, "01010102"},
		{"length nought", 4, SYN, "0500020405b40000", 1280, "0500020405b40000"},
		{"two of them", 4, SYN, "020405b4020405b4", 1280, "020404d8020404d8"},
		{"none", 4, SYN, "", 1280, ""},
		{"MTU under the headers", 4, SYN, "020405b4", 40, "020405b4"},
	} {
		options, err := hex.DecodeString(test.options)
		if err != nil {
			t.Fatal(err)
		}
		b := synWith(t, test.version, test.flags, options)
		before := bytes.Clone(b)
		var i Info
		Parse(b, &i)
		ClampMSS(b, &i, test.mtu)
		at := int(i.HeaderLength) + headerTCP
		if got := hex.EncodeToString(b[at:]); got != test.want {
			t.Errorf("%s: options %s, want %s", test.name, got, test.want)
		}
		checksumsHold(t, b)
		if test.want == test.options && !bytes.Equal(b, before) {
			t.Errorf("%s: changed", test.name)
		}
	}
}

// FuzzClampMSS: whatever the options are, nothing but one size and the checksum
// changes, the checksum stays right, and no size over the limit is left that a
// receiver would read.
func FuzzClampMSS(f *testing.F) {
	f.Add([]byte{2, 4, 5, 0xb4}, uint16(1280), false)
	f.Add([]byte{1, 2, 4, 5, 0xb4, 1, 1, 0}, uint16(1420), true)
	f.Fuzz(func(t *testing.T, options []byte, mtu uint16, six bool) {
		b, i := fuzzedSYN(t, options, six)
		before := bytes.Clone(b)
		ClampMSS(b, &i, int(mtu))
		checksumsHold(t, b)
		header := int(i.HeaderLength)
		overhead := header + headerTCP
		changed := 0
		for at := range b {
			if b[at] != before[at] && at != header+16 && at != header+17 {
				changed++
				if at < overhead {
					t.Fatalf("byte %d of the headers changed", at)
				}
			}
		}
		sizes := segmentSizes(b[overhead:])
		if changed > 2*len(sizes) {
			t.Fatalf("%d bytes changed: %x", changed, b)
		}
		for _, size := range sizes {
			if int(size) > int(mtu)-overhead && int(mtu) > overhead {
				t.Fatalf("size %d for an MTU of %d: %x", size, mtu, b)
			}
		}
	})
}

// fuzzedSYN returns a SYN with as many of the options as fit.
func fuzzedSYN(t testing.TB, options []byte, six bool) (b []byte, i Info) {
	version := 4
	if six {
		version = 6
	}
	b = synWith(t, version, SYN, options[:min(len(options), 40)&^3])
	Parse(b, &i)
	return b, i
}

// receivedOptions reads the options as a receiver does (RFC 9293 3.1), each from its
// kind to its end.
func receivedOptions(options []byte) (read [][]byte) {
	for len(options) > 0 && options[0] != 0 {
		if options[0] == 1 {
			options = options[1:]
			continue
		}
		if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
			break
		}
		read = append(read, options[:options[1]])
		options = options[options[1]:]
	}
	return read
}

// segmentSizes returns all that are named: some receivers take the first of several,
// some the last.
func segmentSizes(options []byte) (sizes []uint16) {
	for _, option := range receivedOptions(options) {
		if option[0] == 2 && len(option) == 4 {
			sizes = append(sizes, binary.BigEndian.Uint16(option[2:]))
		}
	}
	return sizes
}
