package localapi

import "golang.org/x/sys/unix"

// peerUser returns the user at the other end of a socket (unix(7), SO_PEERCRED).
func peerUser(fd int) (uid int, err error) {
	credentials, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, err
	}
	return int(credentials.Uid), nil
}
