package sock

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxSegments is the most datagrams that every kernel with UDP_SEGMENT
	// takes as one message (UDP_MAX_SEGMENTS; later kernels take 128).
	maxSegments = 64

	// maxPayload4 and maxPayload6 bound the payload of one message: it is one
	// IP packet to the kernel until the last moment.
	maxPayload4 = 1<<16 - 1 - 20 - 8
	maxPayload6 = 1<<16 - 1 - 8

	// maxPieces is how many pieces of memory the kernel gathers for one message.
	// What a ViewReader hands out lies in one or two: the kernel coalesced it
	// elsewhere than it is coalesced again.
	maxPieces = 4

	// slabSize holds a whole batch of datagrams of the usual MTU of 1500.
	slabSize = batchSize * 1500
)

// sendBatch is the memory of one sendmmsg call.
//
// Datagrams that go as one message are first copied together, unless they lie in
// few pieces already. To let the kernel gather them with an iovec each saves the
// copy and costs more: many short copies from buffers that lie 64 KiB apart, and
// so in the same cache sets, took up to three times the processor time per byte
// (measured on AMD Zen 4).
type sendBatch struct {
	slab     []byte
	messages [batchSize]mmsghdr
	runs     [batchSize]int // datagrams in each message
	iovecs   [batchSize]unix.Iovec
	controls [batchSize]control
	name     sockaddr
	call     func(fd uintptr) bool // b.send, bound once so that a call allocates nothing

	start, end int           // messages to send
	sent       int           // messages that the kernel took in the last call
	errno      syscall.Errno // what it said
}

var sendBatches = sync.Pool{New: func() any {
	b := newSendBatch()
	b.call = b.send
	return b
}}

func newSendBatch() *sendBatch { return &sendBatch{slab: make([]byte, slabSize)} }

// writeBatch sends bufs to an unmapped address of the socket's family.
func (s *socket) writeBatch(bufs [][]byte, to netip.AddrPort) error {
	s.fragmenting.RLock()
	defer s.fragmenting.RUnlock()
	return s.send(bufs, to)
}

func (s *socket) send(bufs [][]byte, to netip.AddrPort) error {
	b := sendBatches.Get().(*sendBatch)
	defer sendBatches.Put(b)
	nameLen := b.name.set(to)
	defer runtime.KeepAlive(bufs)
	var tooLong error
	for len(bufs) > 0 {
		part := bufs[:min(len(bufs), batchSize)]
		bufs = bufs[len(part):]
		err := b.writePart(s, part, nameLen)
		for i := range part {
			b.iovecs[i].Base = nil // keep nothing of the caller's
		}
		if err != nil {
			if !errors.Is(err, ErrTooLong) {
				return err
			}
			tooLong = err
		}
	}
	return tooLong
}

// writePart sends at most batchSize datagrams.
func (b *sendBatch) writePart(s *socket, bufs [][]byte, nameLen uint32) error {
	coalesce := s.segment.Load()
	var tooLong error
	first := 0 // the datagram with which messages[b.start] begins
	b.start, b.end = 0, b.fill(s, bufs, 0, nameLen, coalesce)
	for b.start < b.end {
		if err := b.sendmmsg(s); err != nil {
			return err
		}
		for range b.sent {
			first += b.runs[b.start]
			b.start++
		}
		if b.errno == 0 {
			continue
		}
		if b.runs[b.start] == 1 || !coalescingRefused(b.errno) {
			err := os.NewSyscallError("sendmmsg", b.errno)
			if b.errno == unix.EMSGSIZE && b.runs[b.start] == 1 {
				tooLong = fmt.Errorf("%w: %w", ErrTooLong, err)
				b.start++
				first++
				continue
			}
			return fmt.Errorf("sock: sending: %w", err)
		}
		if b.errno == unix.EIO {
			// The device has no transmit checksum offload (udp(7)): it never
			// will, so do not try again.
			s.segment.Store(false)
		}
		// Otherwise the segments exceed the interface's MTU, or the path's where
		// they may be fragmented: another destination may do.
		coalesce = false
		b.start, b.end = 0, b.fill(s, bufs, first, nameLen, coalesce)
	}
	return tooLong
}

// coalescingRefused reports whether a message of several datagrams may have
// been refused because it was one.
func coalescingRefused(errno syscall.Errno) bool {
	return errno == unix.EIO || errno == unix.EINVAL || errno == unix.EMSGSIZE
}

// fill lays out bufs[first:] as messages and returns their number.
func (b *sendBatch) fill(s *socket, bufs [][]byte, first int, nameLen uint32, coalesce bool) int {
	limit := maxPayload4
	if s.is6 {
		limit = maxPayload6
	}
	n, used, pieces := 0, 0, 0
	for first < len(bufs) {
		run := 1
		if coalesce {
			run = coalescible(bufs[first:], min(limit, slabSize-used))
		}
		hdr := &b.messages[n].hdr
		hdr.Name = (*byte)(unsafe.Pointer(&b.name))
		hdr.Namelen = nameLen
		hdr.Iov = &b.iovecs[pieces]
		hdr.Control = nil
		hdr.SetControllen(0)
		if run > 1 {
			hdr.Control = (*byte)(unsafe.Pointer(&b.controls[n]))
			hdr.SetControllen(b.controls[n].setSegment(uint16(len(bufs[first]))))
		}
		count := gather(b.iovecs[pieces:min(pieces+maxPieces, batchSize)], bufs[first:first+run])
		if count == 0 {
			begin := used
			for _, buf := range bufs[first : first+run] {
				used += copy(b.slab[used:], buf)
			}
			b.iovecs[pieces].Base = &b.slab[begin]
			b.iovecs[pieces].SetLen(used - begin)
			count = 1
		}
		hdr.SetIovlen(count)
		b.runs[n] = run
		pieces += count
		first += run
		n++
	}
	return n
}

// gather lays out datagrams as the pieces of memory that they lie in, wherever
// those were allocated, and returns how many there are: those of a ViewReader
// lie one behind the other. It is zero where there are more than iovecs.
func gather(iovecs []unix.Iovec, bufs [][]byte) (pieces int) {
	var end uintptr
	size := 0
	for _, buf := range bufs {
		start := uintptr(unsafe.Pointer(unsafe.SliceData(buf)))
		if pieces == 0 || start != end {
			if pieces == len(iovecs) {
				return 0
			}
			pieces++
			size = 0
			iovecs[pieces-1].Base = unsafe.SliceData(buf)
		}
		size += len(buf)
		iovecs[pieces-1].SetLen(size)
		end = start + uintptr(len(buf))
	}
	return pieces
}

// coalescible returns how many datagrams at the start of bufs may go as one
// message of at most limit bytes: all of one size, but for a shorter one at the
// end.
func coalescible(bufs [][]byte, limit int) int {
	size := len(bufs[0])
	if size == 0 {
		return 1
	}
	total := size
	for i, buf := range bufs[1:] {
		if i+1 == maxSegments || len(buf) == 0 || len(buf) > size || total+len(buf) > limit {
			return i + 1
		}
		total += len(buf)
		if len(buf) < size {
			return i + 2
		}
	}
	return len(bufs)
}

// sendmmsg sends messages[start:end], or some of them, and leaves the number
// in b.sent and the reason for sending none in b.errno. It blocks while the
// send buffer is full; the error is that of a closed socket.
func (b *sendBatch) sendmmsg(s *socket) error {
	b.sent, b.errno = 0, 0
	if err := s.raw.Write(b.call); err != nil {
		return fmt.Errorf("sock: sending: %w", err)
	}
	return nil
}

// send makes one system call; false means that the send buffer is full.
func (b *sendBatch) send(fd uintptr) bool {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&b.messages[b.start])), uintptr(b.end-b.start), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			b.sent = int(n)
			return true
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		}
		b.errno = errno
		return true
	}
}
