//go:build linux || darwin

package localapi

import "net"

// callerOf asks the kernel who connected.
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
		if uid, err := peerUser(int(fd)); err == nil {
			out = caller{uid: uid, known: true}
		}
	})
	if err != nil {
		return caller{}
	}
	return out
}
