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
	conn      *net.UDPConn
	raw       syscall.RawConn
	is6       bool
	fragments bool // whether datagrams may always be fragmented
	// fragmenting is held by whoever has the system fragment datagrams, and for
	// reading by everybody else who sends.
	fragmenting sync.RWMutex
}

func controlSocket(syscall.RawConn, bool) error { return nil }

func newSocket(conn *net.UDPConn, cfg Config) (*socket, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("sock: %w", err)
	}
	s := &socket{conn: conn, raw: raw, fragments: cfg.Fragment, is6: conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().Is6()}
	// Best effort: smaller buffers are slower, not wrong.
	_ = conn.SetReadBuffer(bufferSize)
	_ = conn.SetWriteBuffer(bufferSize)
	// Fragments would be wrong where DontFragment says that there are none: a datagram
	// that arrives is taken for a proof that its path carries it whole.
	if err := s.setFragmentation(cfg.Fragment); err != nil {
		return nil, fmt.Errorf("setting whether to fragment: %w", err)
	}
	return s, nil
}

// setFragmentation sets whether datagrams may be fragmented. It does nothing where
// DontFragment says that they always may.
func (s *socket) setFragmentation(may bool) error {
	var err error
	if controlErr := s.raw.Control(func(fd uintptr) { err = setDontFragment(fd, s.is6, !may) }); controlErr != nil {
		return controlErr
	}
	return err
}

func (s *socket) setMark(mark uint32) error {
	if mark == 0 {
		return nil
	}
	return errors.ErrUnsupported
}

func (s *socket) writeBatch(bufs [][]byte, to netip.AddrPort) error {
	s.fragmenting.RLock()
	defer s.fragmenting.RUnlock()
	return s.send(bufs, to)
}

func (s *socket) send(bufs [][]byte, to netip.AddrPort) error {
	var tooLong error
	for _, buf := range bufs {
		switch _, err := s.conn.WriteToUDPAddrPort(buf, to); {
		case errors.Is(err, errTooLong):
			tooLong = fmt.Errorf("%w: %w", ErrTooLong, err)
		case err != nil:
			return fmt.Errorf("sock: sending: %w", err)
		}
	}
	return tooLong
}

// writeFragmented has the system fragment while it sends. Nothing else is sent
// meanwhile, so that only these can be.
func (s *socket) writeFragmented(bufs [][]byte, to netip.AddrPort) error {
	s.fragmenting.Lock()
	defer s.fragmenting.Unlock()
	if err := s.setFragmentation(true); err != nil {
		return fmt.Errorf("sock: sending: %w", err)
	}
	err := s.send(bufs, to)
	if restore := s.setFragmentation(s.fragments); err == nil && restore != nil {
		return fmt.Errorf("sock: sending: %w", restore)
	}
	return err
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
