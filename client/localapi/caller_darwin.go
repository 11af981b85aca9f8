package localapi

import "golang.org/x/sys/unix"

// peerUser returns the user at the other end of a socket (unix(4), LOCAL_PEERCRED).
func peerUser(fd int) (uid int, err error) {
	credentials, err := unix.GetsockoptXucred(fd, unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	if err != nil {
		return 0, err
	}
	return int(credentials.Uid), nil
}
