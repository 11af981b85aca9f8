package packet

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"testing"
)

func TestReadWindowOptions(t *testing.T) {
	for _, test := range []struct {
		name    string
		options string
		want    WindowOptions
	}{
		{"none", "", WindowOptions{}},
		{"of Linux", "020405b40402080a000000010000000001030307", WindowOptions{Scaled: true, Scale: 7}},
		{"by nothing", "03030001", WindowOptions{Scaled: true}},
		{"too far", "030320 01", WindowOptions{Scaled: true, Scale: 14}},
		{"of another length", "0304070001010101", WindowOptions{}},
		{"behind the end", "00030307", WindowOptions{}},
		{"cut off", "01010303", WindowOptions{}},
		{"signed", "0303070113120000000000000000000000000000000001010101", WindowOptions{Scaled: true, Scale: 7, Fixed: true}},
		{"authenticated", "1d100000000000000000000000000000030307 01", WindowOptions{Scaled: true, Scale: 7, Fixed: true}},
		{"one of several", "1e0c008100000000000000000303070101010101", WindowOptions{Scaled: true, Scale: 7, Fixed: true}},
	} {
		options, err := hex.DecodeString(string(bytes.ReplaceAll([]byte(test.options), []byte(" "), nil)))
		if err != nil {
			t.Fatal(err)
		}
		for len(options)%4 != 0 {
			options = append(options, noOperation)
		}
		for _, version := range []int{4, 6} {
			b := synWith(t, version, SYN|ACK, options)
			var i Info
			Parse(b, &i)
			if got := ReadWindowOptions(b, &i); got != test.want {
				t.Errorf("%s, IPv%d: %+v, want %+v", test.name, version, got, test.want)
			}
		}
	}
}

// TestSetWindow: the window is another, the checksum stays right, and nothing else
// changes.
func TestSetWindow(t *testing.T) {
	for _, version := range []int{4, 6} {
		for _, window := range []uint16{0, 1, 0x7f, 0xff00, 0xfffe, 0xffff} {
			b := synWith(t, version, ACK, nil)
			before := bytes.Clone(b)
			var i Info
			Parse(b, &i)
			SetWindow(b, &i, window)
			if got := Window(b, &i); got != window {
				t.Errorf("IPv%d: window %d, want %d", version, got, window)
			}
			checksumsHold(t, b)
			for at := range b {
				inHeader := at - int(i.HeaderLength)
				if b[at] != before[at] && (inHeader < 14 || inHeader > 17) {
					t.Errorf("IPv%d: byte %d changed", version, at)
				}
			}
		}
	}
}

// FuzzReadWindowOptions compares what is read with what a receiver reads.
func FuzzReadWindowOptions(f *testing.F) {
	f.Add([]byte{2, 4, 5, 0xb4, 1, 3, 3, 7}, uint16(1), false)
	f.Add([]byte{19, 18, 17: 0, 18: 1, 19: 1}, uint16(0xffff), true)
	f.Fuzz(func(t *testing.T, options []byte, window uint16, six bool) {
		b, i := fuzzedSYN(t, options, six)
		if got, want := ReadWindowOptions(b, &i), windowOptions(b[i.HeaderLength+headerTCP:]); got != want {
			t.Fatalf("%+v, want %+v: %x", got, want, b)
		}
		want := bytes.Clone(b)
		binary.BigEndian.PutUint16(want[i.HeaderLength+14:], window)
		SetWindow(b, &i, window)
		checksumsHold(t, b)
		copy(want[i.HeaderLength+16:][:2], b[i.HeaderLength+16:])
		if !bytes.Equal(b, want) {
			t.Fatalf("%x, want %x", b, want)
		}
	})
}

func windowOptions(options []byte) (o WindowOptions) {
	for _, option := range receivedOptions(options) {
		if option[0] == 3 && len(option) == 3 {
			o.Scaled, o.Scale = true, min(option[2], 14)
		}
		o.Fixed = o.Fixed || option[0] == 19 || option[0] == 29 || option[0] == 30
	}
	return o
}
