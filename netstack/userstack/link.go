package userstack

import (
	"os"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// The queue for Read holds at most queueLength packets, which may be long
// segments, and queueBytes bytes of them: the window of a fast connection on a
// short path. Beyond it packets are dropped, which TCP takes as the sign of
// congestion that it is.
const (
	queueLength = 1024
	queueBytes  = 4 << 20
)

// link is the stack's link endpoint: what the stack sends waits in a queue.
type link struct {
	queue   chan *stack.PacketBuffer
	closed  chan struct{}
	queued  atomic.Int64 // bytes in queue
	mtu     atomic.Uint32
	dropped atomic.Uint64 // packets that met a full queue

	mu         sync.RWMutex // protects dispatcher
	dispatcher stack.NetworkDispatcher

	readMu    sync.Mutex // held by one read at a time, protects segmenter
	segmenter segmenter
}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

func newLink(mtu int) *link {
	l := &link{queue: make(chan *stack.PacketBuffer, queueLength), closed: make(chan struct{})}
	l.mtu.Store(uint32(mtu))
	return l
}

// WritePackets implements stack.LinkWriter.
func (l *link) WritePackets(packets stack.PacketBufferList) (int, tcpip.Error) {
	n := 0
	for _, packet := range packets.AsSlice() {
		if l.enqueue(packet.Clone()) {
			n++
		}
	}
	if n == 0 {
		return 0, &tcpip.ErrNoBufferSpace{}
	}
	return n, nil
}

// enqueue takes over a reference to packet. It returns false when the queue is
// full.
func (l *link) enqueue(packet *stack.PacketBuffer) bool {
	size := int64(packet.Size())
	if l.queued.Add(size) <= queueBytes {
		select {
		case l.queue <- packet:
			return true
		default:
		}
	}
	l.queued.Add(-size)
	packet.DecRef()
	l.dropped.Add(1)
	return false
}

// read waits for packets and writes as many as there are, or as there are
// buffers, to bufs[i][offset:].
func (l *link) read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	l.readMu.Lock()
	defer l.readMu.Unlock()
	if l.segmenter.packet == nil {
		select {
		case packet := <-l.queue:
			l.take(packet)
		case <-l.closed:
			return 0, os.ErrClosed
		}
	}
	for {
		var last bool
		sizes[n], last = l.segmenter.next(bufs[n][offset:])
		n++
		if n == len(bufs) {
			return n, nil
		}
		if !last {
			continue
		}
		select {
		case packet := <-l.queue:
			l.take(packet)
		default:
			return n, nil
		}
	}
}

// take begins with a packet from the queue.
func (l *link) take(packet *stack.PacketBuffer) {
	l.queued.Add(-int64(packet.Size()))
	l.segmenter.begin(packet)
}

// close unblocks read for good.
func (l *link) close() { close(l.closed) }

// Attach implements stack.NetworkLinkEndpoint.
func (l *link) Attach(dispatcher stack.NetworkDispatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dispatcher = dispatcher
}

// IsAttached implements stack.NetworkLinkEndpoint.
func (l *link) IsAttached() bool { return l.attached() != nil }

// attached returns the stack's side, nil before the link belongs to it and
// after.
func (l *link) attached() stack.NetworkDispatcher {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.dispatcher
}

// MTU implements stack.NetworkLinkEndpoint.
func (l *link) MTU() uint32 { return l.mtu.Load() }

// SetMTU implements stack.NetworkLinkEndpoint.
func (l *link) SetMTU(mtu uint32) { l.mtu.Store(mtu) }

// SupportedGSO implements stack.GSOEndpoint: long TCP segments are taken, and
// cut by the segmenter.
func (l *link) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// GSOMaxSize implements stack.GSOEndpoint: the longest IP packet.
func (l *link) GSOMaxSize() uint32 { return 1<<16 - 1 }

// Capabilities implements stack.NetworkLinkEndpoint. Checksums of what arrives
// are not looked at: it has been authenticated as what the peer sent, so it was
// not damaged on the way. The kernel's WireGuard does the same.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// The rest of stack.LinkEndpoint: there is no link layer.

func (l *link) MaxHeaderLength() uint16                 { return 0 }
func (l *link) LinkAddress() tcpip.LinkAddress          { return "" }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) Wait()                                   {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (l *link) AddHeader(*stack.PacketBuffer)           {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}
