package userstack

import (
	"context"
	"io"
	"net"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// localDialTimeout bounds the wait for a service of the host whose queue
	// of connections is full; the peer repeats its SYN meanwhile.
	localDialTimeout = 5 * time.Second
	// routedDialTimeout bounds the wait for a host behind this one: its kernel
	// sends a SYN four times until then.
	routedDialTimeout = 10 * time.Second

	// A peer that vanished without a FIN is noticed after keepaliveIdle plus
	// keepaliveCount intervals, and the service of the host is told.
	keepaliveIdle     = time.Minute
	keepaliveInterval = 15 * time.Second
	keepaliveCount    = 6

	// copySize is the buffer of each direction of a connection.
	copySize = 32 << 10
)

var copyBuffers = sync.Pool{New: func() any { return new([copySize]byte) }}

// handleTCP serves a SYN of a peer; gvisor calls it in a goroutine of its own.
// The handshake is completed only after the service of the host has answered,
// so that the peer sees what it would see of a host with a TUN device.
func (f *forwarder) handleTCP(request *tcp.ForwarderRequest) {
	if !f.begin() {
		request.Complete(true)
		return
	}
	defer f.running.Done()
	to, ok := f.target(request.ID())
	if !ok {
		f.tcp.refused.Add(1)
		request.Complete(true)
		return
	}
	if !f.handshakes.acquire(to.peer) {
		request.Complete(false)
		return
	}
	if !f.tcp.acquire(to.peer) {
		f.handshakes.release(to.peer)
		request.Complete(true)
		return
	}
	defer f.tcp.release(to.peer)
	ctx, done := f.carry(to.destination)
	defer done()
	endpoint, queue, local := f.openTCP(ctx, request, to)
	f.handshakes.release(to.peer)
	if endpoint == nil {
		return
	}
	f.tcp.opened.Add(1)
	setKeepalive(endpoint)
	relayTCP(ctx, gonet.NewTCPConn(queue, endpoint), endpoint, local)
}

// openTCP connects to the service of the host and completes the request; a nil
// endpoint says that there is no connection.
func (f *forwarder) openTCP(ctx context.Context, request *tcp.ForwarderRequest, to target) (tcpip.Endpoint, *waiter.Queue, *net.TCPConn) {
	local, err := f.dialTCP(ctx, to)
	if err != nil {
		f.tcp.refused.Add(1)
		// A host behind this one that says nothing says nothing.
		request.Complete(!to.routed || !isTimeout(err))
		return nil, nil, nil
	}
	queue := new(waiter.Queue)
	endpoint, terr := request.CreateEndpoint(queue)
	request.Complete(terr != nil)
	if terr != nil {
		resetLocal(local)
		return nil, nil, nil
	}
	return endpoint, queue, local
}

// dialTCP connects to the first host that takes the connection: many services
// listen on the loopback address of one family only.
func (f *forwarder) dialTCP(ctx context.Context, to target) (*net.TCPConn, error) {
	limit := localDialTimeout
	if to.routed {
		limit = routedDialTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var err error
	for _, host := range to.hosts {
		var conn net.Conn
		if conn, err = f.dial(ctx, "tcp", host); err == nil {
			return conn.(*net.TCPConn), nil
		}
	}
	return nil, err
}

func setKeepalive(endpoint tcpip.Endpoint) {
	idle, interval := tcpip.KeepaliveIdleOption(keepaliveIdle), tcpip.KeepaliveIntervalOption(keepaliveInterval)
	// These options cannot be refused by a TCP endpoint.
	_ = endpoint.SetSockOpt(&idle)
	_ = endpoint.SetSockOpt(&interval)
	_ = endpoint.SetSockOptInt(tcpip.KeepaliveCountOption, keepaliveCount)
	endpoint.SocketOptions().SetKeepAlive(true)
}

// relayTCP copies both ways until both ends have finished sending, one of them
// fails, or ctx ends. A failure of one end resets the other.
func relayTCP(ctx context.Context, remote *gonet.TCPConn, endpoint tcpip.Endpoint, local *net.TCPConn) {
	abort := func() {
		endpoint.Abort()
		resetLocal(local)
	}
	defer context.AfterFunc(ctx, abort)()
	var outbound sync.WaitGroup
	var outboundErr error
	outbound.Go(func() {
		outboundErr = copyHalf(remote, local)
		if outboundErr != nil {
			abort()
		}
	})
	inboundErr := copyHalf(local, remote)
	if inboundErr != nil {
		abort()
	}
	outbound.Wait()
	if inboundErr == nil && outboundErr == nil {
		local.Close()
		remote.Close()
	}
}

// halfCloser is a connection whose sending side can be closed alone.
type halfCloser interface {
	io.ReadWriter
	CloseWrite() error
}

// copyHalf copies until the source has finished, which it passes on.
func copyHalf(dst, src halfCloser) error {
	buf := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(buf)
	// The wrappers keep io from using ReadFrom, which would allocate.
	if _, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf[:]); err != nil {
		return err
	}
	return dst.CloseWrite()
}

// resetLocal closes a connection to the host so that its other end sees a
// reset instead of an orderly end.
func resetLocal(conn *net.TCPConn) {
	_ = conn.SetLinger(0) // fails only on a connection already closed
	conn.Close()
}
