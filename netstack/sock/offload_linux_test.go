package sock

import (
	"bytes"
	"errors"
	"net/netip"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// refusing makes a sendBatch that answers errno to every message of several
// datagrams, as a kernel or a driver without segmentation does.
func refusing(errno syscall.Errno) (b *sendBatch, refused *int) {
	b, refused = newSendBatch(), new(int)
	b.call = func(fd uintptr) bool {
		for i := b.start; i < b.end; i++ {
			if b.runs[i] == 1 {
				continue
			}
			if i == b.start {
				*refused++
				b.errno = errno
				return true
			}
			end := b.end
			b.end = i // the kernel takes what comes before
			defer func() { b.end = end }()
			break
		}
		return b.send(fd)
	}
	return b, refused
}

func TestRefusedCoalescing(t *testing.T) {
	bufs := append(pattern(1, 900), pattern(100, 1000)...)
	for _, tc := range []struct {
		errno     syscall.Errno
		turnedOff bool
	}{{unix.EIO, true}, {unix.EINVAL, false}, {unix.EMSGSIZE, false}} {
		a, b := listen(t, Config{}).(*udpConn), listen(t, Config{})
		if !a.v4.segment.Load() {
			t.Skip("this kernel has no UDP_SEGMENT")
		}
		batch, refused := refusing(tc.errno)
		nameLen := batch.name.set(netip.AddrPortFrom(loopback4, b.LocalPort()))
		if err := batch.writePart(a.v4, bufs, nameLen); err != nil {
			t.Fatalf("%v: %v", tc.errno, err)
		}
		got, _ := receive(t, b.Readers()[0], b, newInbox(128, 2000), len(bufs))
		for i := range bufs {
			if !bytes.Equal(got[i], bufs[i]) {
				t.Fatalf("%v: datagram %d differs: was it sent twice?", tc.errno, i)
			}
		}
		if *refused != 1 || a.v4.segment.Load() == tc.turnedOff {
			t.Errorf("%v: refused %d times, coalescing still on: %v", tc.errno, *refused, a.v4.segment.Load())
		}
	}
}

func TestOtherErrorsAreReported(t *testing.T) {
	a := listen(t, Config{}).(*udpConn)
	if !a.v4.segment.Load() {
		t.Skip("this kernel has no UDP_SEGMENT")
	}
	batch, refused := refusing(unix.EPERM)
	nameLen := batch.name.set(netip.AddrPortFrom(loopback4, 9))
	if err := batch.writePart(a.v4, pattern(2, 10), nameLen); err == nil || *refused != 1 {
		t.Fatalf("err %v after %d refusals", err, *refused)
	}
}

// TestSmallMTU sends datagrams that do not fit the interface: the kernel refuses
// them, in segments and alone, and takes the others. Where they may be
// fragmented, they arrive.
func TestSmallMTU(t *testing.T) {
	runtime.LockOSThread() // and never unlock: the thread ends with its namespace
	ns, err := netns.New()
	if err != nil {
		t.Skip("a network namespace is not permitted here:", err)
	}
	defer ns.Close()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetMTU(lo, 1280); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	a, b := listen(t, Config{}), listen(t, Config{})
	bufs := pattern(20, 1400)
	for i := range 10 {
		bufs[2*i] = bufs[2*i][:1200]
	}
	check := func(reader int, want [][]byte) {
		t.Helper()
		got, _ := receive(t, b.Readers()[reader], b, newInbox(128, 2000), len(want))
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("datagram %d differs", i)
			}
		}
	}
	for reader, ip := range []netip.Addr{loopback4, netip.IPv6Loopback()} {
		if reader == len(b.Readers()) {
			t.Log("no IPv6 here")
			break
		}
		to := netip.AddrPortFrom(ip, b.LocalPort())
		if err := a.WriteBatch(bufs, to); !errors.Is(err, ErrTooLong) {
			t.Fatalf("%v: datagrams longer than the interface carries: %v", ip, err)
		}
		if err := a.WriteBatch(pattern(20, 1400), to); !errors.Is(err, ErrTooLong) {
			t.Fatalf("%v: segments longer than the interface carries: %v", ip, err)
		}
		var short [][]byte
		for i := range 10 {
			short = append(short, bufs[2*i])
		}
		check(reader, short)
		if err := a.WriteFragmented(bufs, to); err != nil {
			t.Fatal(err)
		}
		check(reader, bufs)
	}
}

func TestCoalescible(t *testing.T) {
	sized := func(sizes ...int) [][]byte {
		bufs := make([][]byte, len(sizes))
		for i, n := range sizes {
			bufs[i] = make([]byte, n)
		}
		return bufs
	}
	for _, tc := range []struct {
		bufs  [][]byte
		limit int
		want  int
	}{
		{sized(10), 100, 1},
		{sized(10, 10, 10), 100, 3},
		{sized(10, 10, 9, 10), 100, 3},
		{sized(10, 9, 9), 100, 2},
		{sized(10, 11), 100, 1},
		{sized(10, 0), 100, 1},
		{sized(0, 0), 100, 1},
		{sized(50, 50, 1), 100, 2},
		{sized(50, 51), 100, 1},
		{sized(200, 10), 100, 1},
		{pattern(100, 5), 1 << 15, maxSegments},
		{pattern(64, 5), 1 << 15, 64},
	} {
		if got := coalescible(tc.bufs, tc.limit); got != tc.want {
			t.Errorf("coalescible(%d buffers of %d…, %d) = %d, want %d", len(tc.bufs), len(tc.bufs[0]), tc.limit, got, tc.want)
		}
	}
}

func TestSockaddrRoundTrip(t *testing.T) {
	for _, s := range []string{"192.0.2.1:1", "[2001:db8::1]:65535", "[fe80::1%7]:80", "0.0.0.0:0", "[::]:0"} {
		want := netip.MustParseAddrPort(s)
		var a sockaddr
		a.set(want)
		if got := a.get(); got != want {
			t.Errorf("%v came back as %v", want, got)
		}
	}
	var none sockaddr
	if got := none.get(); got.IsValid() {
		t.Errorf("no address came back as %v", got)
	}
}

func TestBatchesDoNotAllocate(t *testing.T) {
	a, b := listen(t, Config{}).(*udpConn), listen(t, Config{})
	bufs := pattern(64, 1200)
	in := newInbox(128, 2000)
	// Not through WriteBatch: its pool forgets at random under the race
	// detector.
	batch := newSendBatch()
	batch.call = batch.send
	nameLen := batch.name.set(netip.AddrPortFrom(loopback4, b.LocalPort()))
	allocs := testing.AllocsPerRun(100, func() {
		if err := batch.writePart(a.v4, bufs, nameLen); err != nil {
			t.Fatal(err)
		}
		for n := 0; n < len(bufs); {
			m, err := b.Readers()[0].ReadBatch(in.bufs, in.sizes, in.from)
			if err != nil {
				t.Fatal(err)
			}
			n += m
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations per batch of 64 sent and received", allocs)
	}
}

// TestViews sends on what was received without copying it, changed in place, and
// in between what was copied: every datagram arrives as it was.
func TestViews(t *testing.T) {
	a, relay, b := listen(t, Config{}), listen(t, Config{}), listen(t, Config{})
	reader, ok := relay.Readers()[0].(ViewReader)
	if !ok {
		t.Skip("this kernel has no UDP_GRO")
	}
	bufs := append(pattern(100, 1000), pattern(30, 700)...)
	if err := a.WriteBatch(bufs, netip.AddrPortFrom(loopback4, relay.LocalPort())); err != nil {
		t.Fatal(err)
	}
	views, from := make([][]byte, 7), make([]netip.AddrPort, 7) // fewer than a message has
	copied := pattern(1, 500)
	var want [][]byte
	runs := 0 // of views that lie one behind the other
	for got := 0; got < len(bufs); {
		n, err := reader.ReadViews(views, from)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			if !bytes.Equal(views[i], bufs[got+i]) || from[i].Port() != a.LocalPort() {
				t.Fatalf("datagram %d differs", got+i)
			}
			if cap(views[i]) != len(views[i]) {
				t.Fatal("a view reaches into the next one")
			}
			views[i][0] ^= 0xff
			want = append(want, bytes.Clone(views[i]))
		}
		if n > 1 && gather(make([]unix.Iovec, 1), views[:n]) == 1 {
			runs++
		}
		out := append(views[:n:n], copied...)
		if err := relay.WriteBatch(out, netip.AddrPortFrom(loopback4, b.LocalPort())); err != nil {
			t.Fatal(err)
		}
		want = append(want, copied[0])
		got += n
	}
	if runs < len(bufs)/len(views)/2 {
		t.Errorf("only %d calls returned views that lie one behind the other", runs)
	}
	got, _ := receive(t, b.Readers()[0], b, newInbox(128, 2000), len(want))
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("datagram %d differs", i)
		}
	}
}

// TestGather lays out datagrams in the pieces of memory that they lie in: where
// those are few, a message is of the caller's memory, else of a copy.
func TestGather(t *testing.T) {
	a := listen(t, Config{}).(*udpConn)
	if !a.v4.segment.Load() {
		t.Skip("this kernel has no UDP_SEGMENT")
	}
	const size = 1000
	slab := make([]byte, 2*64*size)
	// datagrams are two for each letter: those of a lie apart from those of b.
	datagrams := func(order string) (bufs [][]byte) {
		var next [2]int
		for _, letter := range order {
			which := int(letter - 'a')
			for range 2 {
				begin := which*64*size + next[which]
				bufs = append(bufs, slab[begin:begin+size:begin+size])
				next[which] += size
			}
		}
		return bufs
	}
	for _, tc := range []struct {
		order  string
		pieces int // zero for a copy
	}{
		{"a", 1},
		{"aaaa", 1},
		{"aaab", 2},
		{"abab", 4},
		{"ababa", 0},
	} {
		bufs := datagrams(tc.order)
		b := newSendBatch()
		if n := b.fill(a.v4, bufs, 0, 0, true); n != 1 || b.runs[0] != len(bufs) {
			t.Fatalf("%s: %d messages, the first of %d", tc.order, n, b.runs[0])
		}
		hdr := b.messages[0].hdr
		own := hdr.Iov.Base == &b.slab[0]
		if want := max(tc.pieces, 1); int(hdr.Iovlen) != want || own != (tc.pieces == 0) {
			t.Errorf("%s: %d pieces, copied: %v", tc.order, hdr.Iovlen, own)
		}
		total := 0
		for _, piece := range b.iovecs[:hdr.Iovlen] {
			total += int(piece.Len)
		}
		if total != len(bufs)*size {
			t.Errorf("%s: %d bytes of %d", tc.order, total, len(bufs)*size)
		}
	}
}
