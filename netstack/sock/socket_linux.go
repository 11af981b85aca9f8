package sock

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const batchSize = MaxBatchSize

// bufferSize is what the sockets ask for as send and receive buffer. The
// kernel's default of some 200 KiB overflows within two milliseconds at
// 1 Gbit/s, before a reader that shares its core is scheduled again; with 7 MiB
// the losses at 125 µs round trip vanish. What a relay's port would lose with less
// is in netstack/relay/DESIGN.md.
const bufferSize = 7 << 20

const errAddrInUse = syscall.EADDRINUSE

// socket is one address family's UDP socket.
type socket struct {
	conn      *net.UDPConn
	raw       syscall.RawConn
	is6       bool
	fragments bool        // whether datagrams may always be fragmented
	receive   bool        // the kernel coalesces what arrives (UDP_GRO)
	segment   atomic.Bool // the kernel splits what we send (UDP_SEGMENT); turned off for good when it refuses

	mu   sync.Mutex // protects mark
	mark uint32

	// fragmenting is held by whoever has the kernel fragment datagrams, and for
	// reading by all others that send.
	fragmenting sync.RWMutex
}

// controlSocket sets the options that must stand before bind. All are
// best-effort: without them the socket is slower, not wrong.
func controlSocket(c syscall.RawConn, disableOffload bool) error {
	return c.Control(func(fd uintptr) {
		for _, option := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF, unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
			// The plain options are capped by net.core.?mem_max; the forced
			// ones need CAP_NET_ADMIN.
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, bufferSize)
		}
		if !disableOffload {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1)
		}
	})
}

func newSocket(conn *net.UDPConn, cfg Config) (*socket, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &socket{conn: conn, raw: raw, fragments: cfg.Fragment, is6: conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().Is6()}
	if err := s.setFragmentation(cfg.Fragment); err != nil {
		return nil, err
	}
	if cfg.DisableOffload {
		return s, nil
	}
	err = raw.Control(func(fd uintptr) {
		_, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT)
		s.segment.Store(err == nil)
		// Kernels before 5.12 cannot be asked whether the option took; there
		// it is as if it did not, although messages may come coalesced: turn
		// it off again.
		on, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO)
		s.receive = err == nil && on == 1
		if !s.receive {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 0)
		}
	})
	return s, err
}

func (s *socket) setMark(mark uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if mark == s.mark {
		return nil // a process that may not set marks has none, and may say so
	}
	var optErr error
	if err := s.raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark))
	}); err != nil {
		return err
	}
	if optErr != nil {
		return os.NewSyscallError("setsockopt", optErr)
	}
	s.mark = mark
	return nil
}

// mmsghdr is struct mmsghdr of recvmmsg(2). The compiler pads it as C does,
// because Msghdr holds pointers.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// sockaddr is large enough for the socket addresses of both families.
type sockaddr struct {
	inet6 unix.RawSockaddrInet6
}

// set stores the address and returns its length.
func (a *sockaddr) set(to netip.AddrPort) uint32 {
	if to.Addr().Is4() {
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(a))
		*sa = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to.Addr().As4()}
		putPort(&sa.Port, to.Port())
		return unix.SizeofSockaddrInet4
	}
	a.inet6 = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: to.Addr().As16(), Scope_id: zoneIndex(to.Addr().Zone())}
	putPort(&a.inet6.Port, to.Port())
	return unix.SizeofSockaddrInet6
}

// get returns the address, the zero value for a family that is none of ours.
func (a *sockaddr) get() netip.AddrPort {
	switch a.inet6.Family {
	case unix.AF_INET:
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(a))
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), getPort(&sa.Port))
	case unix.AF_INET6:
		addr := netip.AddrFrom16(a.inet6.Addr).Unmap()
		if a.inet6.Scope_id != 0 && addr.Is6() {
			addr = addr.WithZone(strconv.FormatUint(uint64(a.inet6.Scope_id), 10))
		}
		return netip.AddrPortFrom(addr, getPort(&a.inet6.Port))
	}
	return netip.AddrPort{}
}

func putPort(field *uint16, port uint16) {
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(field))[:], port)
}

func getPort(field *uint16) uint16 {
	return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(field))[:])
}

// zoneIndex returns the interface index that an IPv6 zone means, zero for none
// and for an interface that does not exist.
func zoneIndex(zone string) uint32 {
	if zone == "" {
		return 0
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n)
	}
	ifi, err := net.InterfaceByName(zone)
	if err != nil {
		return 0
	}
	return uint32(ifi.Index)
}

// control is room for the one control message that we send or receive: the
// size of a segment, an int when received and 16 bits when sent.
type control struct {
	header unix.Cmsghdr
	data   [8]byte
}

// setSegment writes a UDP_SEGMENT message and returns the length of it.
func (c *control) setSegment(size uint16) int {
	c.header.Level = unix.SOL_UDP
	c.header.Type = unix.UDP_SEGMENT
	c.header.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(c.data[:], size)
	return unix.CmsgSpace(2)
}

// segment returns the segment size of a UDP_GRO message that fills n bytes,
// zero when there is none.
func (c *control) segment(n int) int {
	if n < unix.CmsgLen(4) || c.header.Level != unix.SOL_UDP || c.header.Type != unix.UDP_GRO {
		return 0
	}
	return int(int32(binary.NativeEndian.Uint32(c.data[:])))
}
