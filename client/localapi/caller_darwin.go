package localapi

import (
	"net"

	"golang.org/x/sys/unix"
)

// callerOf asks the kernel who connected (unix(4), LOCAL_PEERCRED).
func callerOf(c net.Conn) caller {
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return caller{}
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return caller{}
	}
	var out caller
	err = raw.Control(func(fd uintptr) {
		if credentials, err := unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED); err == nil {
			out = caller{uid: int(credentials.Uid), known: true}
		}
	})
	if err != nil {
		return caller{}
	}
	return out
}
