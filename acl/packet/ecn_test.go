package packet

import (
	"bytes"
	"testing"
)

// TestMarkCongested: only senders that take part are marked, and nothing but the
// mark and the checksum of an IPv4 header changes.
func TestMarkCongested(t *testing.T) {
	for version, b := range map[int][]byte{4: ip4(t, UDP, 0x4000, udpEmpty), 6: ip6(t, UDP, udpEmpty)} {
		for codepoint := range byte(4) {
			for class := range byte(64) {
				before := bytes.Clone(b)
				set := func(b []byte, codepoint byte) {
					if version == 6 {
						b[0], b[1] = 0x60|class>>2, class<<6|codepoint<<4|b[1]&0xf
						return
					}
					b[1], b[10], b[11] = class<<2|codepoint, 0, 0
					sum := ^fold(sum(0, b[:20]))
					b[10], b[11] = byte(sum>>8), byte(sum)
				}
				set(before, codepoint)
				got, want := bytes.Clone(before), bytes.Clone(before)
				if codepoint != 0 {
					set(want, 3)
				}
				if marked := MarkCongested(got); marked != (codepoint != 0) {
					t.Errorf("IPv%d, codepoint %d: marked is %v", version, codepoint, marked)
				}
				if !bytes.Equal(got, want) {
					t.Fatalf("IPv%d, class %d, codepoint %d:\n%x, want\n%x", version, class, codepoint, got, want)
				}
			}
		}
	}
}
