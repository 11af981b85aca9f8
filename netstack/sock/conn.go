package sock

import (
	"errors"
	"net/netip"
)

// MaxBatchSize is the largest BatchSize any Conn returns. 128 is what the
// WireGuard device allocates for, and two full runs of 64 datagrams, the most
// that the kernel takes as one message.
const MaxBatchSize = 128

var (
	// ErrNoFamily is returned by Listen when neither IPv4 nor IPv6 can be
	// used, and by Conn.WriteBatch when the destination's address family has
	// no socket.
	ErrNoFamily = errors.New("sock: address family not available")

	// ErrPortInUse is returned by Listen when Config.Port is taken by another
	// program in one of the families.
	ErrPortInUse = errors.New("sock: UDP port is in use by another program")

	// ErrTooLong is wrapped by errors of Conn.WriteBatch about a datagram that
	// is longer than this host's interface carries whole.
	ErrTooLong = errors.New("sock: datagram is too long for the interface")
)

// A Conn is one UDP port, open for IPv4, IPv6 or both. All methods may be
// called concurrently. After the port's network has changed, close the Conn
// and open a new one; a Conn is never rebound.
type Conn interface {
	// Readers returns one Reader for each socket of the port: one or two, in
	// a fixed order. Every Reader needs a goroutine of its own that reads it,
	// or datagrams of one address family are lost. The caller must not modify
	// the slice.
	Readers() []Reader

	// WriteBatch sends the datagrams bufs to one destination, in order. It
	// neither changes nor keeps the buffers. Any number is allowed; BatchSize
	// is the number from which a larger batch saves nothing. It blocks while
	// the socket's send buffer is full.
	//
	// Errors: net.ErrClosed after Close; ErrNoFamily; else an error of the
	// operating system, in which case datagrams from some index on were not
	// sent. Datagrams may always be lost; retrying is the business of the
	// protocol above.
	//
	// Where DontFragment says so, a datagram is sent whole or not at all: neither
	// this host nor a router makes fragments of it. Where some are too long for
	// this host's interface, the error wraps ErrTooLong, and all others were sent.
	WriteBatch(bufs [][]byte, to netip.AddrPort) error

	// WriteFragmented is WriteBatch for datagrams that are too long for their
	// path and must go all the same: they may be fragmented, by this host for its
	// interface, and by routers where they are IPv4. It is slow.
	WriteFragmented(bufs [][]byte, to netip.AddrPort) error

	// LocalPort returns the UDP port, the same in both families.
	LocalPort() uint16

	// BatchSize returns the number of datagrams with which ReadBatch and
	// WriteBatch are best called; it never changes and is at most
	// MaxBatchSize.
	BatchSize() int

	// SetMark sets the routing mark of every datagram sent from now on
	// (SO_MARK on Linux; zero means none). It returns errors.ErrUnsupported
	// for a mark other than zero on systems without such marks.
	SetMark(mark uint32) error

	// Close closes the port. Blocked and later calls of ReadBatch and
	// WriteBatch return net.ErrClosed. A second Close does nothing.
	Close() error
}

// A Reader receives the datagrams of one socket of a Conn.
type Reader interface {
	// ReadBatch blocks until at least one datagram is there and fills
	// bufs[i][:sizes[i]] and from[i] for i < n. Sizes may be zero (an empty
	// datagram). len(sizes) and len(from) must be at least len(bufs), which
	// must be at least one. A datagram longer than its buffer is cut off.
	// Nothing of the arguments is kept after the return. One call at a time:
	// callers of the same Reader exclude each other.
	//
	// Errors: net.ErrClosed after Close of the Conn, for ever; any other error
	// concerns this call only, and the caller may go on reading.
	ReadBatch(bufs [][]byte, sizes []int, from []netip.AddrPort) (n int, err error)
}

// A ViewReader is a Reader that can hand out its own memory, for those who send
// on what they receive: nothing is copied on the way. The Readers of Listen are
// some where the system coalesces datagrams.
type ViewReader interface {
	Reader

	// ReadViews is ReadBatch, but for where the datagrams lie: it sets views[i]
	// for i < n. Datagrams that the kernel coalesced lie one behind the other,
	// and WriteBatch sends such without copying them. They may be written to, and
	// hold until the next call of either method. At most MaxViews are returned.
	ReadViews(views [][]byte, from []netip.AddrPort) (n int, err error)
}

// MaxViews is the most datagrams that ReadViews returns: eight coalesced messages
// of 64.
const MaxViews = 512

// Config says what Listen opens. The zero value means: any free port, all
// local addresses of both families, offloads where the kernel has them.
type Config struct {
	// Port is the UDP port; zero lets the system choose one that is free in
	// both families.
	Port uint16

	// Addresses restricts the port to these local addresses, at most one of
	// each family; a family without one is then not opened. Empty means all
	// local addresses of both families, in which case a family that the
	// system lacks is silently left out.
	Addresses []netip.Addr

	// DisableOffload keeps the kernel from coalescing datagrams (UDP_SEGMENT
	// and UDP_GRO). For measuring, and for drivers that get it wrong.
	DisableOffload bool

	// Fragment lets datagrams be fragmented on their way, as far as the system can
	// keep them from it: for those who send on what others send and cannot ask what
	// the path carries. Routers fragment IPv4 only (RFC 8200, section 5).
	Fragment bool
}
