package canonical

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	numbers := []uint64{0, 1, 23, 24, 255, 256, 65535, 65536, 1<<32 - 1, 1 << 32, 1<<64 - 1}
	var b []byte
	b = AppendArray(b, len(numbers)+2)
	for _, n := range numbers {
		b = AppendUint(b, n)
	}
	b = AppendBytes(b, []byte{0, 1, 2})
	b = AppendText(b, "warren ✓")

	r := NewReader(b)
	if got := r.Array(100); got != len(numbers)+2 {
		t.Fatalf("array of %d", got)
	}
	for _, n := range numbers {
		if got := r.Uint(); got != n {
			t.Errorf("got %d, want %d", got, n)
		}
	}
	if got := r.Bytes(3); !bytes.Equal(got, []byte{0, 1, 2}) {
		t.Errorf("bytes %v", got)
	}
	if got := r.Text(100); got != "warren ✓" {
		t.Errorf("text %q", got)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestVectors holds encodings of RFC 8949, appendix A.
func TestVectors(t *testing.T) {
	for want, got := range map[string][]byte{
		"\x00":                                 AppendUint(nil, 0),
		"\x17":                                 AppendUint(nil, 23),
		"\x18\x18":                             AppendUint(nil, 24),
		"\x18\x64":                             AppendUint(nil, 100),
		"\x19\x03\xe8":                         AppendUint(nil, 1000),
		"\x1a\x00\x0f\x42\x40":                 AppendUint(nil, 1000000),
		"\x1b\x00\x00\x00\xe8\xd4\xa5\x10\x00": AppendUint(nil, 1000000000000),
		"\x44\x01\x02\x03\x04":                 AppendBytes(nil, []byte{1, 2, 3, 4}),
		"\x64\x49\x45\x54\x46":                 AppendText(nil, "IETF"),
		"\x80":                                 AppendArray(nil, 0),
	} {
		if string(got) != want {
			t.Errorf("got %x, want %x", got, want)
		}
	}
}

func TestRefused(t *testing.T) {
	tests := []struct {
		name, in, want string
		read           func(*Reader)
	}{
		{"empty", "", "ends where an unsigned", func(r *Reader) { r.Uint() }},
		{"wrong type", "\x40", "byte string where an unsigned", func(r *Reader) { r.Uint() }},
		{"negative", "\x20", "major type 1", func(r *Reader) { r.Uint() }},
		{"long form of 23", "\x18\x17", "shortest", func(r *Reader) { r.Uint() }},
		{"long form of 255", "\x19\x00\xff", "shortest", func(r *Reader) { r.Uint() }},
		{"long form of 65535", "\x1a\x00\x00\xff\xff", "shortest", func(r *Reader) { r.Uint() }},
		{"long form of 2^32-1", "\x1b\x00\x00\x00\x00\xff\xff\xff\xff", "shortest", func(r *Reader) { r.Uint() }},
		{"indefinite", "\x5f", "indefinite", func(r *Reader) { r.Bytes(9) }},
		{"cut number", "\x19\x01", "inside a number", func(r *Reader) { r.Uint() }},
		{"cut bytes", "\x44\x01", "inside a byte string", func(r *Reader) { r.Bytes(9) }},
		{"too long", "\x44\x01\x02\x03\x04", "at most 3", func(r *Reader) { r.Bytes(3) }},
		{"huge length", "\x5b\xff\xff\xff\xff\xff\xff\xff\xff", "at most", func(r *Reader) { r.Bytes(1 << 20) }},
		{"not fixed", "\x43\x01\x02\x03", "where 4 are", func(r *Reader) { r.Fixed(make([]byte, 4)) }},
		{"bad UTF-8", "\x61\xff", "UTF-8", func(r *Reader) { r.Text(9) }},
		{"array that lies", "\x84\x01", "inside an array", func(r *Reader) { r.Array(9) }},
		{"array too long", "\x84\x01\x02\x03\x04", "at most 3", func(r *Reader) { r.Array(3) }},
		{"left over", "\x01\x02", "left over", func(r *Reader) { r.Uint() }},
		{"record of another size", "\x82\x01\x02", "where 3", func(r *Reader) { r.Record(3, 1) }},
		{"record of another version", "\x82\x02\x02", "version 2", func(r *Reader) { r.Record(2, 1) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := NewReader([]byte(tt.in))
			tt.read(r)
			err := r.Close()
			if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// FuzzReader checks that whatever can be read is written back to the same
// bytes: no value has two spellings.
func FuzzReader(f *testing.F) {
	f.Add([]byte("\x83\x01\x42\x01\x02\x61a"))
	f.Add([]byte("\x1b\x00\x00\x00\xe8\xd4\xa5\x10\x00"))
	f.Add([]byte("\x80"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var out []byte
		r := NewReader(in)
		for len(r.rest) > 0 && r.err == nil {
			switch major(r.rest[0] &^ 31) {
			case majorUint:
				out = AppendUint(out, r.Uint())
			case majorBytes:
				out = AppendBytes(out, r.Bytes(len(in)))
			case majorText:
				out = AppendText(out, r.Text(len(in)))
			case majorArray:
				out = AppendArray(out, r.Array(len(in)))
			default:
				return
			}
		}
		if r.Err() == nil && !bytes.Equal(in, out) {
			t.Fatalf("%x was read and written back as %x", in, out)
		}
	})
}
