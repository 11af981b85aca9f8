package userstack

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// maxDatagram is the longest UDP payload.
const maxDatagram = 1<<16 - 1 - 8

var datagrams = sync.Pool{New: func() any { return new([maxDatagram]byte) }}

// handleUDP opens a flow for a peer's first datagram. The caller is the
// goroutine that writes packets into the stack, so nothing here may wait. False
// makes the stack answer that the port is unreachable.
func (f *forwarder) handleUDP(request *udp.ForwarderRequest) bool {
	to, ok := f.target(request.ID())
	if !ok {
		f.udp.refused.Add(1)
		return false
	}
	if !f.udp.acquire(to.peer) {
		return true
	}
	if !f.openUDP(request, to) {
		f.udp.refused.Add(1)
		f.udp.release(to.peer)
		return false
	}
	return true
}

// openUDP starts the flow's two goroutines, which release the flow's place.
func (f *forwarder) openUDP(request *udp.ForwarderRequest, to target) bool {
	// Unlike TCP there is no telling whether a service listens: only the
	// address of the peer's own family is tried.
	conn, err := f.dial(f.ctx, "udp", to.hosts[0])
	if err != nil {
		return false
	}
	if !f.begin() {
		conn.Close()
		return false
	}
	var queue waiter.Queue
	endpoint, terr := request.CreateEndpoint(&queue)
	if terr != nil {
		conn.Close()
		f.running.Done()
		return false
	}
	flow := &udpFlow{remote: gonet.NewUDPConn(&queue, endpoint), local: conn, idle: f.cfg.UDPIdle, start: time.Now()}
	f.udp.opened.Add(1)
	go func() {
		defer f.running.Done()
		defer f.udp.release(to.peer)
		ctx, done := f.carry(to.destination)
		defer done()
		flow.run(ctx)
	}()
	return true
}

// udpFlow is one peer's socket and the local service it talks to.
type udpFlow struct {
	remote *gonet.UDPConn
	local  net.Conn
	idle   time.Duration
	start  time.Time
	last   atomic.Int64 // when a datagram last passed: nanoseconds since start
}

// run copies both ways until the flow was idle for long enough, one end fails,
// or ctx ends.
func (u *udpFlow) run(ctx context.Context) {
	closeBoth := func() {
		u.remote.Close()
		u.local.Close()
	}
	defer context.AfterFunc(ctx, closeBoth)()
	var inbound sync.WaitGroup
	inbound.Go(func() {
		u.copy(u.local, u.remote)
		closeBoth()
	})
	u.copy(u.remote, u.local)
	closeBoth()
	inbound.Wait()
}

// copy passes datagrams on until src fails or nothing passed in either
// direction for the idle time.
func (u *udpFlow) copy(dst, src net.Conn) {
	buf := datagrams.Get().(*[maxDatagram]byte)
	defer datagrams.Put(buf)
	for {
		deadline := u.start.Add(time.Duration(u.last.Load()) + u.idle)
		if err := src.SetReadDeadline(deadline); err != nil {
			return
		}
		n, err := src.Read(buf[:])
		if isTimeout(err) {
			if time.Since(u.start)-time.Duration(u.last.Load()) >= u.idle {
				return
			}
			continue
		}
		if err != nil {
			return // among others that no service listens on the port
		}
		u.last.Store(int64(time.Since(u.start)))
		if _, err := dst.Write(buf[:n]); err != nil && !isTimeout(err) {
			return
		}
	}
}

func isTimeout(err error) bool {
	var netErr net.Error
	return errors.As(err, &netErr) && netErr.Timeout()
}
