//go:build !linux

package sock

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
)

const batchSize = 1

// bufferSize is what the sockets ask for as send and receive buffer; the
// systems cap it as they like.
const bufferSize = 7 << 20

// socket is one address family's UDP socket.
type socket struct {
	conn *net.UDPConn
}

func controlSocket(syscall.RawConn, bool) error { return nil }

func newSocket(conn *net.UDPConn, _ Config) (*socket, error) {
	// Best effort: smaller buffers are slower, not wrong.
	_ = conn.SetReadBuffer(bufferSize)
	_ = conn.SetWriteBuffer(bufferSize)
	return &socket{conn: conn}, nil
}

func (s *socket) setMark(mark uint32) error {
	if mark == 0 {
		return nil
	}
	return errors.ErrUnsupported
}

func (s *socket) writeBatch(bufs [][]byte, to netip.AddrPort) error {
	for _, buf := range bufs {
		if _, err := s.conn.WriteToUDPAddrPort(buf, to); err != nil {
			return fmt.Errorf("sock: sending: %w", err)
		}
	}
	return nil
}

// DontFragment says that datagrams of this system's sockets are sent whole or
// not at all, so that one that arrives proves what its path carries.
const DontFragment = false

func (s *socket) writeFragmented(bufs [][]byte, to netip.AddrPort) error {
	return s.writeBatch(bufs, to)
}

// singleReader reads one datagram at a time.
type singleReader struct {
	socket *socket
	conn   *udpConn
	mu     sync.Mutex // makes the callers exclude each other
}

func newReader(s *socket, c *udpConn) *singleReader { return &singleReader{socket: s, conn: c} }

// ReadBatch implements Reader.
func (r *singleReader) ReadBatch(bufs [][]byte, sizes []int, from []netip.AddrPort) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		if r.conn.closed.Load() {
			return 0, net.ErrClosed
		}
		n, addr, err := r.socket.conn.ReadFromUDPAddrPort(bufs[0])
		if err != nil {
			if r.conn.closed.Load() {
				return 0, net.ErrClosed
			}
			if ignorable(err) {
				continue
			}
			return 0, fmt.Errorf("sock: receiving: %w", err)
		}
		sizes[0] = n
		from[0] = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
		return 1, nil
	}
}
