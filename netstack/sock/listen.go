package sock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
)

// sameportAttempts bounds how often Listen asks the system for a port before
// it gives up finding one that is free in both families. Clashes are rare; the
// bound only ends the search on a host whose ports are exhausted.
const sameportAttempts = 100

// udpConn is the Conn of the operating system's sockets.
type udpConn struct {
	v4, v6  *socket // nil where the family is not open
	readers []Reader
	port    uint16
	closed  atomic.Bool
}

var _ Conn = (*udpConn)(nil)

// Listen opens a port as cfg says.
//
// Errors: ErrNoFamily; ErrPortInUse; an error about cfg.Addresses when it holds
// two addresses of one family; else what the operating system said. After an
// error nothing is open.
func Listen(cfg Config) (Conn, error) {
	v4, v6, err := bindAddresses(cfg.Addresses)
	if err != nil {
		return nil, err
	}
	required := len(cfg.Addresses) > 0
	for attempt := 1; ; attempt++ {
		conn, err := listenBoth(cfg, v4, v6, required)
		if err == nil {
			return conn, nil
		}
		if cfg.Port == 0 && errors.Is(err, ErrPortInUse) && attempt < sameportAttempts {
			continue
		}
		return nil, err
	}
}

// bindAddresses returns the address to bind in each family, the zero Addr for
// a family that is not wanted.
func bindAddresses(addresses []netip.Addr) (v4, v6 netip.Addr, err error) {
	if len(addresses) == 0 {
		return netip.IPv4Unspecified(), netip.IPv6Unspecified(), nil
	}
	for _, addr := range addresses {
		family := &v6
		if addr = addr.Unmap(); addr.Is4() {
			family = &v4
		}
		if !addr.IsValid() || family.IsValid() {
			return v4, v6, fmt.Errorf("sock: listen addresses %v: want at most one valid address of each family", addresses)
		}
		*family = addr
	}
	return v4, v6, nil
}

// listenBoth opens the families whose address is valid on one port. Where
// required is false, a family that the system lacks is left out.
func listenBoth(cfg Config, v4, v6 netip.Addr, required bool) (*udpConn, error) {
	c := &udpConn{port: cfg.Port}
	for _, addr := range []netip.Addr{v4, v6} {
		if !addr.IsValid() {
			continue
		}
		s, port, err := openSocket(netip.AddrPortFrom(addr, c.port), cfg)
		if err != nil {
			if !required && errors.Is(err, ErrNoFamily) {
				continue
			}
			c.closeSockets()
			return nil, err
		}
		c.port = port
		if addr.Is4() {
			c.v4 = s
		} else {
			c.v6 = s
		}
		c.readers = append(c.readers, newReader(s, c))
	}
	if len(c.readers) == 0 {
		return nil, ErrNoFamily
	}
	return c, nil
}

// openSocket opens one family and returns the port it got.
func openSocket(local netip.AddrPort, cfg Config) (*socket, uint16, error) {
	network := "udp6"
	if local.Addr().Is4() {
		network = "udp4"
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return controlSocket(c, cfg.DisableOffload)
	}}
	pc, err := lc.ListenPacket(context.Background(), network, local.String())
	if err != nil {
		switch {
		case errors.Is(err, errAddrInUse):
			return nil, 0, fmt.Errorf("%w: listening on %s: %w", ErrPortInUse, local, err)
		case errors.Is(err, syscall.EAFNOSUPPORT), errors.Is(err, syscall.EPROTONOSUPPORT), errors.Is(err, syscall.EADDRNOTAVAIL):
			return nil, 0, fmt.Errorf("%w: listening on %s: %w", ErrNoFamily, local, err)
		}
		return nil, 0, fmt.Errorf("sock: listening on %s: %w", local, err)
	}
	conn, ok := pc.(*net.UDPConn)
	if !ok {
		panic("BUG: sock: a UDP listener is no *net.UDPConn")
	}
	s, err := newSocket(conn, cfg)
	if err != nil {
		conn.Close()
		return nil, 0, fmt.Errorf("sock: preparing socket on %s: %w", local, err)
	}
	return s, conn.LocalAddr().(*net.UDPAddr).AddrPort().Port(), nil
}

// Readers implements Conn.
func (c *udpConn) Readers() []Reader { return c.readers }

// LocalPort implements Conn.
func (c *udpConn) LocalPort() uint16 { return c.port }

// BatchSize implements Conn.
func (c *udpConn) BatchSize() int { return batchSize }

// WriteBatch implements Conn.
func (c *udpConn) WriteBatch(bufs [][]byte, to netip.AddrPort) error {
	return c.write(bufs, to, (*socket).writeBatch)
}

// WriteFragmented implements Conn.
func (c *udpConn) WriteFragmented(bufs [][]byte, to netip.AddrPort) error {
	return c.write(bufs, to, (*socket).writeFragmented)
}

func (c *udpConn) write(bufs [][]byte, to netip.AddrPort, write func(*socket, [][]byte, netip.AddrPort) error) error {
	if c.closed.Load() {
		return net.ErrClosed
	}
	addr := to.Addr().Unmap()
	s := c.v6
	if addr.Is4() {
		s = c.v4
	}
	if s == nil || !addr.IsValid() {
		return fmt.Errorf("%w: sending to %s", ErrNoFamily, to)
	}
	err := write(s, bufs, netip.AddrPortFrom(addr, to.Port()))
	if err != nil && c.closed.Load() {
		return net.ErrClosed
	}
	return err
}

// SetMark implements Conn.
func (c *udpConn) SetMark(mark uint32) error {
	if c.closed.Load() {
		return net.ErrClosed
	}
	for _, s := range []*socket{c.v4, c.v6} {
		if s == nil {
			continue
		}
		if err := s.setMark(mark); err != nil {
			return fmt.Errorf("sock: setting mark %#x: %w", mark, err)
		}
	}
	return nil
}

// Close implements Conn.
func (c *udpConn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	return c.closeSockets()
}

func (c *udpConn) closeSockets() error {
	var errs []error
	for _, s := range []*socket{c.v4, c.v6} {
		if s != nil {
			errs = append(errs, s.conn.Close())
		}
	}
	return errors.Join(errs...)
}
