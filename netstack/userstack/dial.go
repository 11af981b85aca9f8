package userstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// ErrAddress is returned for an address or a network that the stack cannot
// dial or listen on: it knows addresses, no names.
var ErrAddress = errors.New("userstack: want an IP address and a port, over tcp or udp")

// DialContext connects to an address of the overlay from one of the device's
// own addresses. Networks are tcp, tcp4, tcp6, udp, udp4 and udp6; address is
// IP:port. The returned TCP connection has a CloseWrite method.
//
// Errors: ErrAddress; net.ErrClosed after Close; the context's; else errors
// that errors.Is finds to be syscall.ECONNREFUSED, ECONNRESET, EHOSTUNREACH,
// ENETUNREACH, ETIMEDOUT or EADDRNOTAVAIL (the device has no address of the
// family), or that only have a text.
func (s *Stack) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("%w: %s %q", ErrAddress, network, address)
	}
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	if !familyMatches(network, to.Addr()) || to.Addr().Zone() != "" || to.Port() == 0 {
		return nil, fmt.Errorf("%w: %s %q", ErrAddress, network, address)
	}
	if s.isClosed() {
		return nil, net.ErrClosed
	}
	if !s.hasFamily(to.Addr()) {
		return nil, opError("dial", network, to, syscall.EADDRNOTAVAIL)
	}
	full := tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(to.Addr().AsSlice()), Port: to.Port()}
	if network[:3] == "udp" {
		conn, err := gonet.DialUDP(s.stack, nil, &full, protocolOf(to.Addr()))
		if err != nil {
			return nil, err
		}
		return conn, nil
	}
	return s.dialTCP(ctx, network, to, full)
}

func (s *Stack) dialTCP(ctx context.Context, network string, to netip.AddrPort, full tcpip.FullAddress) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, opError("dial", network, to, err)
	}
	var queue waiter.Queue
	endpoint, terr := s.stack.NewEndpoint(tcp.ProtocolNumber, protocolOf(to.Addr()), &queue)
	if terr != nil {
		return nil, opError("dial", network, to, translate(terr))
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents)
	queue.EventRegister(&entry)
	defer queue.EventUnregister(&entry)
	terr = endpoint.Connect(full)
	if _, ok := terr.(*tcpip.ErrConnectStarted); ok {
		select {
		case <-ctx.Done():
			endpoint.Close()
			return nil, opError("dial", network, to, context.Cause(ctx))
		case <-ready:
		}
		terr = endpoint.LastError()
	}
	if terr != nil {
		endpoint.Close()
		if s.isClosed() {
			return nil, net.ErrClosed
		}
		return nil, opError("dial", network, to, translate(terr))
	}
	return gonet.NewTCPConn(&queue, endpoint), nil
}

// ListenTCP listens on one of the device's own addresses, or on all of one
// family with the unspecified address, instead of forwarding the port to the
// host. Port zero chooses one.
func (s *Stack) ListenTCP(addr netip.AddrPort) (net.Listener, error) {
	full, err := s.listenAddress("tcp", addr)
	if err != nil {
		return nil, err
	}
	return gonet.ListenTCP(s.stack, full, protocolOf(addr.Addr()))
}

// ListenUDP receives datagrams as ListenTCP does connections.
func (s *Stack) ListenUDP(addr netip.AddrPort) (net.PacketConn, error) {
	full, err := s.listenAddress("udp", addr)
	if err != nil {
		return nil, err
	}
	return gonet.DialUDP(s.stack, &full, nil, protocolOf(addr.Addr()))
}

func (s *Stack) listenAddress(network string, addr netip.AddrPort) (tcpip.FullAddress, error) {
	if s.isClosed() {
		return tcpip.FullAddress{}, net.ErrClosed
	}
	if !addr.Addr().IsValid() || addr.Addr().Is4In6() {
		return tcpip.FullAddress{}, fmt.Errorf("%w: %s %s", ErrAddress, network, addr)
	}
	full := tcpip.FullAddress{NIC: nic, Port: addr.Port()}
	if addr.Addr().IsUnspecified() {
		return full, nil
	}
	if !(*s.own.Load())[addr.Addr()] {
		return full, opError("listen", network, addr, syscall.EADDRNOTAVAIL)
	}
	full.Addr = tcpip.AddrFromSlice(addr.Addr().AsSlice())
	return full, nil
}

func (s *Stack) isClosed() bool {
	select {
	case <-s.link.closed:
		return true
	default:
		return false
	}
}

// hasFamily reports whether the device has an address of addr's family.
func (s *Stack) hasFamily(addr netip.Addr) bool {
	for own := range *s.own.Load() {
		if own.Is4() == addr.Is4() {
			return true
		}
	}
	return false
}

func familyMatches(network string, addr netip.Addr) bool {
	switch network {
	case "tcp", "udp":
		return true
	case "tcp4", "udp4":
		return addr.Is4()
	case "tcp6", "udp6":
		return addr.Is6()
	}
	return false
}

func opError(op, network string, addr netip.AddrPort, err error) error {
	var netAddr net.Addr = net.TCPAddrFromAddrPort(addr)
	if network[:3] == "udp" {
		netAddr = net.UDPAddrFromAddrPort(addr)
	}
	return &net.OpError{Op: op, Net: network, Addr: netAddr, Err: err}
}

// translate makes the stack's errors those of the operating system, by which
// callers tell them apart.
func translate(err tcpip.Error) error {
	switch err.(type) {
	case *tcpip.ErrConnectionRefused:
		return os.NewSyscallError("connect", syscall.ECONNREFUSED)
	case *tcpip.ErrConnectionReset, *tcpip.ErrConnectionAborted:
		return os.NewSyscallError("connect", syscall.ECONNRESET)
	case *tcpip.ErrHostUnreachable, *tcpip.ErrHostDown:
		return os.NewSyscallError("connect", syscall.EHOSTUNREACH)
	case *tcpip.ErrNetworkUnreachable:
		return os.NewSyscallError("connect", syscall.ENETUNREACH)
	case *tcpip.ErrTimeout:
		return os.NewSyscallError("connect", syscall.ETIMEDOUT)
	case *tcpip.ErrBadLocalAddress:
		return os.NewSyscallError("connect", syscall.EADDRNOTAVAIL)
	}
	return errors.New(err.String())
}
