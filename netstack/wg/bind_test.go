package wg

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/sock"
)

// lengthConn notes how long the datagrams were that it was given.
type lengthConn struct {
	sock.Conn
	calls [][]int // of WriteFragmented negative
	err   error   // of WriteBatch
}

func (c *lengthConn) note(bufs [][]byte, sign int) {
	var lengths []int
	for _, b := range bufs {
		lengths = append(lengths, sign*len(b))
	}
	c.calls = append(c.calls, lengths)
}

func (c *lengthConn) WriteBatch(bufs [][]byte, _ netip.AddrPort) error {
	c.note(bufs, 1)
	return c.err
}

func (c *lengthConn) WriteFragmented(bufs [][]byte, _ netip.AddrPort) error {
	c.note(bufs, -1)
	return nil
}

// lengthRelay notes how long the packets were that it was given.
type lengthRelay struct{ lengths []int }

func (r *lengthRelay) SendPackets(_ ident.NodeKey, packets [][]byte) {
	for _, p := range packets {
		r.lengths = append(r.lengths, len(p))
	}
}

// TestLongDatagramsGoByTheRelay where the path has one.
func TestLongDatagramsGoByTheRelay(t *testing.T) {
	c, r := &lengthConn{}, &lengthRelay{}
	path := Path{Direct: netip.MustParseAddrPort("[2001:db8::1]:1"), Whole: 100, Relay: r}
	bufs := [][]byte{make([]byte, 101), make([]byte, 100), make([]byte, 102)}
	if err := path.write(c, ident.NodeKey{}, bufs); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.lengths, []int{101, 102}) || !slices.EqualFunc(c.calls, [][]int{{100}}, slices.Equal[[]int]) {
		t.Errorf("%v by the relay, %v directly", r.lengths, c.calls)
	}
}

// TestLongDatagramsMayBeFragmented: those alone, and all in order; an error of
// some does not keep back the others.
func TestLongDatagramsMayBeFragmented(t *testing.T) {
	failed := errors.New("no")
	for _, test := range []struct {
		whole   int
		lengths []int
		want    [][]int
	}{
		{0, []int{1400, 32, 1400}, [][]int{{1400, 32, 1400}}},
		{1400, []int{1400, 32, 1400}, [][]int{{1400, 32, 1400}}},
		{1399, []int{1400, 1400, 32, 1400}, [][]int{{-1400, -1400}, {32}, {-1400}}},
		{100, []int{32, 100, 101, 32}, [][]int{{32, 100}, {-101}, {32}}},
	} {
		var bufs [][]byte
		for _, n := range test.lengths {
			bufs = append(bufs, make([]byte, n))
		}
		c := &lengthConn{err: failed}
		path := Path{Direct: netip.MustParseAddrPort("192.0.2.1:1"), Whole: test.whole}
		if err := path.write(c, ident.NodeKey{}, bufs); !errors.Is(err, failed) {
			t.Errorf("%+v: %v", test, err)
		}
		if !slices.EqualFunc(c.calls, test.want, slices.Equal[[]int]) {
			t.Errorf("whole up to %d: %v was written as %v", test.whole, test.lengths, c.calls)
		}
	}
}
