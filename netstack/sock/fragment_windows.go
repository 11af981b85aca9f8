package sock

import (
	"os"

	"golang.org/x/sys/windows"
)

// DontFragment says that datagrams of this system's sockets are sent whole or
// not at all, so that one that arrives proves what its path carries. What is here
// for Windows is compiled and was never run: it follows what Microsoft says of
// IPPROTO_IP and IPPROTO_IPV6 socket options.
const DontFragment = true

// errTooLong is the system's error about a datagram that is too long to be sent
// whole.
const errTooLong = windows.WSAEMSGSIZE

// setDontFragment sets whether datagrams of a socket are sent whole or not at all. If
// so, the system does not heed what ICMP says of the path, either, which anybody can
// forge.
func setDontFragment(fd uintptr, is6, dont bool) error {
	level, option, value := windows.IPPROTO_IP, windows.IP_MTU_DISCOVER, windows.IP_PMTUDISC_DONT
	if is6 {
		level, option = windows.IPPROTO_IPV6, windows.IPV6_MTU_DISCOVER
	}
	if dont {
		value = windows.IP_PMTUDISC_PROBE
	}
	return os.NewSyscallError("setsockopt", windows.SetsockoptInt(windows.Handle(fd), level, option, value))
}
