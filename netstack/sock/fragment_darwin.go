package sock

import (
	"os"

	"golang.org/x/sys/unix"
)

// DontFragment says that datagrams of this system's sockets are sent whole or
// not at all, so that one that arrives proves what its path carries. What is here
// for macOS is compiled and was never run: it follows ip(4) and ip6(4) of macOS 11.
const DontFragment = true

// errTooLong is the system's error about a datagram that is too long to be sent
// whole.
const errTooLong = unix.EMSGSIZE

// setDontFragment sets whether datagrams of a socket are sent whole or not at all.
func setDontFragment(fd uintptr, is6, dont bool) error {
	level, option, value := unix.IPPROTO_IP, unix.IP_DONTFRAG, 0
	if is6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG
	}
	if dont {
		value = 1
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), level, option, value))
}
