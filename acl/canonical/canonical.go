package canonical

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unicode/utf8"
)

// ErrMalformed is wrapped by every error of a Reader.
var ErrMalformed = errors.New("canonical: malformed record")

// major is a CBOR major type (RFC 8949, section 3.1), in the high three bits.
type major byte

const (
	majorUint  major = 0 << 5
	majorBytes major = 2 << 5
	majorText  major = 3 << 5
	majorArray major = 4 << 5
)

func (m major) String() string {
	switch m {
	case majorUint:
		return "unsigned integer"
	case majorBytes:
		return "byte string"
	case majorText:
		return "text string"
	case majorArray:
		return "array"
	}
	return fmt.Sprintf("CBOR major type %d", byte(m)>>5)
}

func appendHead(b []byte, m major, n uint64) []byte {
	switch {
	case n < 24:
		return append(b, byte(m)|byte(n))
	case n <= math.MaxUint8:
		return append(b, byte(m)|24, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(b, byte(m)|25), uint16(n))
	case n <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(b, byte(m)|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, byte(m)|27), n)
}

// AppendUint appends an unsigned integer.
func AppendUint(b []byte, n uint64) []byte { return appendHead(b, majorUint, n) }

// AppendBytes appends a byte string.
func AppendBytes(b, v []byte) []byte { return append(appendHead(b, majorBytes, uint64(len(v))), v...) }

// AppendText appends a text string. The caller has checked that it is valid
// UTF-8; a Reader refuses it otherwise.
func AppendText(b []byte, s string) []byte {
	return append(appendHead(b, majorText, uint64(len(s))), s...)
}

// AppendArray appends the head of an array; its n elements follow.
func AppendArray(b []byte, n int) []byte { return appendHead(b, majorArray, uint64(n)) }

// Reader reads one record. After the first error every read returns zero
// values, so that a caller checks Err (through Close) once. It never reads
// past its input and never allocates more than the input is long.
type Reader struct {
	rest []byte
	err  error
}

// NewReader returns a Reader of b, which it does not copy; what Bytes returns
// shares its storage.
func NewReader(b []byte) *Reader { return &Reader{rest: b} }

// Err returns the first error, nil if there was none. It wraps ErrMalformed.
func (r *Reader) Err() error { return r.err }

// Fail makes err the Reader's first error, unless there is one already. Use it
// for a value that is well-formed and still not allowed.
func (r *Reader) Fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
	}
	r.rest = nil
}

// Close returns the first error; input that is left over is one.
func (r *Reader) Close() error {
	if r.err == nil && len(r.rest) > 0 {
		r.Fail("%d bytes left over", len(r.rest))
	}
	return r.err
}

func (r *Reader) head(want major) uint64 {
	if r.err != nil {
		return 0
	}
	if len(r.rest) == 0 {
		r.Fail("ends where %s is wanted", article(want))
		return 0
	}
	first := r.rest[0]
	if got := major(first &^ 31); got != want {
		r.Fail("%v where %s is wanted", got, article(want))
		return 0
	}
	info := first & 31
	if info < 24 {
		r.rest = r.rest[1:]
		return uint64(info)
	}
	size := 0
	var least uint64
	switch info {
	case 24:
		size, least = 1, 24
	case 25:
		size, least = 2, math.MaxUint8+1
	case 26:
		size, least = 4, math.MaxUint16+1
	case 27:
		size, least = 8, math.MaxUint32+1
	default:
		r.Fail("indefinite or reserved length")
		return 0
	}
	if len(r.rest) < 1+size {
		r.Fail("ends inside a number")
		return 0
	}
	var n uint64
	for _, c := range r.rest[1 : 1+size] {
		n = n<<8 | uint64(c)
	}
	if n < least {
		r.Fail("number not in its shortest form")
		return 0
	}
	r.rest = r.rest[1+size:]
	return n
}

func article(m major) string {
	if m == majorUint || m == majorArray {
		return "an " + m.String()
	}
	return "a " + m.String()
}

// Uint reads an unsigned integer.
func (r *Reader) Uint() uint64 { return r.head(majorUint) }

// Bytes reads a byte string of at most limit bytes. It shares the Reader's
// input.
func (r *Reader) Bytes(limit int) []byte { return r.str(majorBytes, limit) }

// Fixed reads a byte string of exactly len(dst) bytes into dst.
func (r *Reader) Fixed(dst []byte) {
	v := r.str(majorBytes, len(dst))
	if r.err == nil && len(v) != len(dst) {
		r.Fail("byte string of %d bytes where %d are wanted", len(v), len(dst))
		return
	}
	copy(dst, v)
}

// Text reads a text string of at most limit bytes.
func (r *Reader) Text(limit int) string {
	v := r.str(majorText, limit)
	if !utf8.Valid(v) {
		r.Fail("text is not valid UTF-8")
		return ""
	}
	return string(v)
}

func (r *Reader) str(m major, limit int) []byte {
	n := r.head(m)
	if r.err != nil {
		return nil
	}
	if n > uint64(limit) {
		r.Fail("%v of %d bytes, at most %d are allowed", m, n, limit)
		return nil
	}
	if n > uint64(len(r.rest)) {
		r.Fail("ends inside a %v", m)
		return nil
	}
	v := r.rest[:n:n]
	r.rest = r.rest[n:]
	return v
}

// Array reads the head of an array of at most limit elements and returns how
// many follow.
func (r *Reader) Array(limit int) int {
	n := r.head(majorArray)
	if r.err == nil && n > uint64(limit) {
		r.Fail("array of %d elements, at most %d are allowed", n, limit)
	}
	// Every element takes a byte at least: a larger count is a lie, and a loop
	// over it would be work that the sender did not pay for.
	if r.err == nil && n > uint64(len(r.rest)) {
		r.Fail("ends inside an array")
	}
	if r.err != nil {
		return 0
	}
	return int(n)
}

// Record reads the head of a record of exactly n fields and its version, and
// fails for another count or version.
func (r *Reader) Record(n int, version uint64) {
	if got := r.Array(n); r.err == nil && got != n {
		r.Fail("record of %d fields where %d are wanted", got, n)
	}
	if got := r.Uint(); r.err == nil && got != version {
		r.Fail("record of version %d where %d is wanted; a newer version of this program may know it", got, version)
	}
}
