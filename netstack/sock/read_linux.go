package sock

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxMessage is the longest message the kernel hands over: a run of
	// coalesced datagrams never exceeds one IP packet.
	maxMessage = 1<<16 - 1

	// coalescedMessages is how many messages one call takes from a socket
	// that coalesces. Each may be 64 datagrams; what does not fit into the
	// caller's buffers waits for its next call.
	coalescedMessages = 8
)

// batchReader reads one socket with recvmmsg.
type batchReader struct {
	socket *socket
	conn   *udpConn
	call   func(fd uintptr) bool // r.receive, bound once so that a call allocates nothing

	mu       sync.Mutex // protects all below
	messages []mmsghdr
	iovecs   []unix.Iovec
	names    []sockaddr
	controls []control
	asked    int           // messages offered to the kernel in this call
	received int           // messages it filled
	errno    syscall.Errno // what it said

	// What a socket that coalesces left over: messages[next:received] in
	// slabs, the first of them from offset on.
	slabs  [][]byte // empty when the socket does not coalesce
	next   int
	offset int
}

func newReader(s *socket, c *udpConn) Reader {
	n := batchSize
	if s.receive {
		n = coalescedMessages
	}
	r := &batchReader{
		socket:   s,
		conn:     c,
		messages: make([]mmsghdr, n),
		iovecs:   make([]unix.Iovec, n),
		names:    make([]sockaddr, n),
		controls: make([]control, n),
	}
	r.call = r.receive
	for i := range r.messages {
		hdr := &r.messages[i].hdr
		hdr.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		hdr.Iov = &r.iovecs[i]
		hdr.SetIovlen(1)
		hdr.Control = (*byte)(unsafe.Pointer(&r.controls[i]))
	}
	if s.receive {
		r.slabs = make([][]byte, n)
		for i := range r.slabs {
			r.slabs[i] = make([]byte, maxMessage)
			r.iovecs[i].Base = &r.slabs[i][0]
			r.iovecs[i].SetLen(maxMessage)
		}
		return viewReader{r}
	}
	return r
}

// ReadBatch implements Reader.
func (r *batchReader) ReadBatch(bufs [][]byte, sizes []int, from []netip.AddrPort) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		if r.conn.closed.Load() {
			return 0, net.ErrClosed
		}
		var n int
		var err error
		if len(r.slabs) > 0 {
			n, err = r.readCoalesced(bufs, sizes, from)
		} else {
			n, err = r.readDirect(bufs, sizes, from)
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// viewReader is a batchReader of a socket that coalesces.
type viewReader struct{ *batchReader }

var _ ViewReader = viewReader{}

// ReadViews implements ViewReader.
func (r viewReader) ReadViews(views [][]byte, from []netip.AddrPort) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		if r.conn.closed.Load() {
			return 0, net.ErrClosed
		}
		if r.next >= r.received {
			r.next, r.offset = 0, 0
			if err := r.recvmmsg(len(r.messages)); err != nil {
				r.received = 0
				return 0, err
			}
		}
		n := 0
		for r.next < r.received && n < len(views) {
			source, segment, length := r.pending()
			for n < len(views) {
				end := min(r.offset+segment, length)
				views[n] = r.slabs[r.next][r.offset:end:end]
				from[n] = source
				n++
				r.offset = end
				if end == length {
					r.next++
					r.offset = 0
					break
				}
			}
		}
		if n > 0 {
			return n, nil
		}
	}
}

// pending returns who sent the first message that is left, how long its
// datagrams are, and how long it is.
func (r *batchReader) pending() (source netip.AddrPort, segment, length int) {
	message := &r.messages[r.next]
	length = int(message.len)
	segment = r.controls[r.next].segment(int(message.hdr.Controllen))
	if segment <= 0 {
		segment = length
	}
	return r.names[r.next].get(), segment, length
}

// readDirect receives one datagram into each of bufs.
func (r *batchReader) readDirect(bufs [][]byte, sizes []int, from []netip.AddrPort) (int, error) {
	n := min(len(bufs), len(r.messages))
	for i, buf := range bufs[:n] {
		r.iovecs[i].Base = unsafe.SliceData(buf)
		r.iovecs[i].SetLen(len(buf))
	}
	err := r.recvmmsg(n)
	for i := range r.iovecs[:n] {
		r.iovecs[i].Base = nil
	}
	if err != nil {
		return 0, err
	}
	for i := range r.received {
		sizes[i] = int(r.messages[i].len)
		from[i] = r.names[i].get()
	}
	return r.received, nil
}

// readCoalesced copies datagrams out of the slabs, which it fills when they
// are empty.
func (r *batchReader) readCoalesced(bufs [][]byte, sizes []int, from []netip.AddrPort) (n int, err error) {
	if r.next >= r.received {
		r.next, r.offset = 0, 0
		if err := r.recvmmsg(len(r.messages)); err != nil {
			r.received = 0
			return 0, err
		}
	}
	for r.next < r.received && n < len(bufs) {
		source, segment, length := r.pending()
		for n < len(bufs) {
			end := min(r.offset+segment, length)
			sizes[n] = copy(bufs[n], r.slabs[r.next][r.offset:end])
			from[n] = source
			n++
			r.offset = end
			if end == length {
				r.next++
				r.offset = 0
				break
			}
		}
	}
	return n, nil
}

// recvmmsg blocks until at least one message has come and leaves the number in
// r.received.
func (r *batchReader) recvmmsg(n int) error {
	for i := range r.messages[:n] {
		hdr := &r.messages[i].hdr
		hdr.Namelen = uint32(unsafe.Sizeof(r.names[i]))
		hdr.SetControllen(int(unsafe.Sizeof(r.controls[i])))
		hdr.Flags = 0
	}
	r.asked, r.received, r.errno = n, 0, 0
	if err := r.socket.raw.Read(r.call); err != nil {
		if r.conn.closed.Load() {
			return net.ErrClosed
		}
		return fmt.Errorf("sock: receiving: %w", err)
	}
	if r.errno != 0 {
		return fmt.Errorf("sock: receiving: %w", os.NewSyscallError("recvmmsg", r.errno))
	}
	return nil
}

// receive makes one system call; false means that nothing was there.
func (r *batchReader) receive(fd uintptr) bool {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.messages[0])), uintptr(r.asked), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			r.received = int(n)
			return true
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		}
		r.errno = errno
		return true
	}
}
