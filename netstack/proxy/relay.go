package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// copySize is the buffer of each direction of a connection.
const copySize = 32 << 10

var copyBuffers = sync.Pool{New: func() any { return new([copySize]byte) }}

// relay copies both ways until both ends have finished sending, one of them
// fails, or ctx ends, and then closes both. What the client sent is read from
// clientReader, which may hold some of it already.
func relay(ctx context.Context, client net.Conn, clientReader io.Reader, remote net.Conn) {
	defer client.Close()
	defer remote.Close()
	// A deadline in the past ends the copying; the connections are closed
	// when nothing uses them any more.
	interrupt := func() {
		_ = client.SetDeadline(time.Unix(1, 0)) // fails only on a closed connection
		_ = remote.SetDeadline(time.Unix(1, 0))
	}
	defer context.AfterFunc(ctx, interrupt)()
	var inbound sync.WaitGroup
	inbound.Go(func() {
		if err := copyHalf(client, remote); err != nil {
			interrupt()
		}
	})
	if err := copyHalf(remote, clientReader); err != nil {
		interrupt()
	}
	inbound.Wait()
}

// copyHalf copies until the source has finished, which it passes on.
func copyHalf(dst net.Conn, src io.Reader) error {
	buf := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(buf)
	// The wrappers keep io from using ReadFrom and WriteTo, which would
	// allocate.
	if _, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf[:]); err != nil {
		return err
	}
	return closeWrite(dst)
}

// closeWrite ends the sending side of a connection; errors.ErrUnsupported
// where that cannot be done alone.
func closeWrite(conn net.Conn) error {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}
