package sock

import (
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// DontFragment says that datagrams of this system's sockets are sent whole or
// not at all, so that one that arrives proves what its path carries.
const DontFragment = true

// setFragmentation sets whether datagrams may be fragmented. Where they may not,
// the kernel does not heed what ICMP says of the path's MTU, either: anybody can
// forge it, and firewalls swallow it. Where they may, they are cut for the
// interface, and IPv4 by routers for what is narrower.
func (s *socket) setFragmentation(may bool) error {
	var err error
	set := func(fd uintptr, level, option, value int) {
		if e := unix.SetsockoptInt(int(fd), level, option, value); e != nil && err == nil {
			err = os.NewSyscallError("setsockopt", e)
		}
	}
	controlErr := s.raw.Control(func(fd uintptr) {
		switch {
		case s.is6 && may:
			set(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_OMIT)
		case s.is6:
			set(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
		case may:
			set(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_OMIT)
		default:
			set(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		}
	})
	if controlErr != nil {
		return controlErr
	}
	return err
}

// writeFragmented sends datagrams one by one, as few of them are. Nothing else
// is sent meanwhile, so that only they can be fragmented.
func (s *socket) writeFragmented(bufs [][]byte, to netip.AddrPort) error {
	s.fragmenting.Lock()
	defer s.fragmenting.Unlock()
	if err := s.setFragmentation(true); err != nil {
		return err
	}
	var err error
	for i := 0; i < len(bufs) && err == nil; i++ {
		err = s.send(bufs[i:i+1], to)
	}
	if restore := s.setFragmentation(s.fragments); err == nil {
		err = restore
	}
	return err
}
