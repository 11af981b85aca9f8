package engine

import (
	"errors"
	"os"
	"sync/atomic"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/netstack/tun"
	"github.com/warren-overlay/warren/netstack/wg"
)

// maxInjected bounds the packets of our own that wait to be sealed: a change of
// rules can end all flows of a peer, and each is worth a reset, or programs on
// the other side would wait for nothing. It takes 200 KB.
const maxInjected = filter.MaxFlows

// hostReader reads the TUN device on behalf of WireGuard, and lets packets of
// our own in between: pings, and resets of flows that ended.
//
// A read of the device can not be interrupted, so a goroutine of its own does
// it, straight into WireGuard's buffers: all but the last one, which is kept
// for packets of our own. When one comes while a read is going on, read returns
// with the last buffer alone, and the next call goes on with the same read.
// This relies on the caller to pass the same buffers again until they were
// filled, which WireGuard's reader does; read checks it.
type hostReader struct {
	device   tun.Device
	requests chan struct{}
	results  chan readResult
	injected chan ownPacket
	closing  chan struct{} // closed by close
	ended    chan struct{} // closed when run has returned
	overflow atomic.Uint64
	onError  func(error)

	// These belong to the goroutine of run while a request is out, else to the
	// caller of read.
	bufs   [][]byte
	sizes  []int
	offset int

	pending bool // a request is out; the caller's
}

// ownPacket is a packet of our own.
type ownPacket struct {
	data []byte
	// over is the relay that it is to go over, nil for the path of its peer.
	over wg.Relay
}

type readResult struct {
	n   int
	err error
}

func newHostReader(device tun.Device, onError func(error)) *hostReader {
	return &hostReader{
		device:   device,
		requests: make(chan struct{}, 1),
		results:  make(chan readResult, 1),
		injected: make(chan ownPacket, maxInjected),
		closing:  make(chan struct{}),
		ended:    make(chan struct{}),
		sizes:    make([]int, device.BatchSize()),
		onError:  onError,
	}
}

// run reads until the device ends or close is called.
func (r *hostReader) run() {
	defer close(r.ended)
	for {
		select {
		case <-r.requests:
		case <-r.closing:
			return
		}
		n, err := r.device.Read(r.bufs, r.sizes, r.offset)
		r.results <- readResult{n, err}
		if err != nil && !errors.Is(err, tun.ErrTooManySegments) {
			r.onError(err)
			return
		}
	}
}

// batchSize returns the number of buffers that read must be given.
func (r *hostReader) batchSize() int { return r.device.BatchSize() + 1 }

// inject has a packet sealed without asking the filter. It reports whether
// there was room. The packet must not be written to afterwards.
func (r *hostReader) inject(packet []byte) bool { return r.injectOver(packet, nil) }

// injectOver is inject for a packet that is to go over a relay, whatever the path of
// its peer is.
func (r *hostReader) injectOver(packet []byte, over wg.Relay) bool {
	select {
	case r.injected <- ownPacket{packet, over}:
		return true
	default:
		r.overflow.Add(1)
		return false
	}
}

// read returns packets of the device, or the last of bufs with one of our own and
// own set. One call at a time.
func (r *hostReader) read(bufs [][]byte, sizes []int, offset int) (n int, own *ownPacket, err error) {
	last := len(bufs) - 1
	if r.pending {
		if &r.bufs[0][0] != &bufs[0][0] || len(r.bufs) != last || r.offset != offset {
			panic("BUG: engine: buffers changed during a read of the TUN device")
		}
	} else {
		r.bufs, r.offset = bufs[:last], offset
		if len(r.sizes) < last {
			r.sizes = make([]int, last)
		}
		r.pending = true
		r.requests <- struct{}{}
	}
	select {
	case result := <-r.results:
		r.pending = false
		copy(sizes, r.sizes[:result.n])
		return result.n, nil, result.err
	case <-r.closing:
		<-r.ended // until then run may write into bufs, which the caller gives away
		return 0, nil, os.ErrClosed
	case packet := <-r.injected:
		clear(sizes[:last])
		sizes[last] = copy(bufs[last][offset:], packet.data)
		return len(bufs), &packet, nil
	}
}

// close ends run and read after the device was closed. It is called once.
func (r *hostReader) close() {
	close(r.closing)
	<-r.ended
}
