package userstack

import (
	"os"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// queueLength is how many packets wait for Read at most. It holds the window of
// a fast connection on a short path; beyond it packets are dropped, which TCP
// takes as the sign of congestion that it is.
const queueLength = 1024

// link is the stack's link endpoint: what the stack sends waits in a queue.
type link struct {
	queue   chan *stack.PacketBuffer
	closed  chan struct{}
	mtu     atomic.Uint32
	dropped atomic.Uint64 // packets that met a full queue

	mu         sync.RWMutex // protects dispatcher
	dispatcher stack.NetworkDispatcher
}

var _ stack.LinkEndpoint = (*link)(nil)

func newLink(mtu int) *link {
	l := &link{queue: make(chan *stack.PacketBuffer, queueLength), closed: make(chan struct{})}
	l.mtu.Store(uint32(mtu))
	return l
}

// WritePackets implements stack.LinkWriter.
func (l *link) WritePackets(packets stack.PacketBufferList) (int, tcpip.Error) {
	n := 0
	for _, packet := range packets.AsSlice() {
		clone := packet.Clone()
		select {
		case l.queue <- clone:
			n++
		default:
			clone.DecRef()
			l.dropped.Add(1)
		}
	}
	if n == 0 {
		return 0, &tcpip.ErrNoBufferSpace{}
	}
	return n, nil
}

// read waits for packets and copies as many as there are, or as there are
// buffers, to bufs[i][offset:].
func (l *link) read(bufs [][]byte, sizes []int, offset int) (int, error) {
	var packet *stack.PacketBuffer
	select {
	case packet = <-l.queue:
	case <-l.closed:
		return 0, os.ErrClosed
	}
	for n := 0; ; {
		sizes[n] = 0
		for _, part := range packet.AsSlices() {
			sizes[n] += copy(bufs[n][offset+sizes[n]:], part)
		}
		packet.DecRef()
		n++
		if n == len(bufs) {
			return n, nil
		}
		select {
		case packet = <-l.queue:
		default:
			return n, nil
		}
	}
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

// The rest of stack.LinkEndpoint: there is no link layer.

func (l *link) MaxHeaderLength() uint16                      { return 0 }
func (l *link) LinkAddress() tcpip.LinkAddress               { return "" }
func (l *link) SetLinkAddress(tcpip.LinkAddress)             {}
func (l *link) Capabilities() stack.LinkEndpointCapabilities { return stack.CapabilityNone }
func (l *link) Wait()                                        {}
func (l *link) ARPHardwareType() header.ARPHardwareType      { return header.ARPHardwareNone }
func (l *link) AddHeader(*stack.PacketBuffer)                {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool         { return true }
func (l *link) Close()                                       {}
func (l *link) SetOnCloseAction(func())                      {}
