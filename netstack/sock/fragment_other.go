//go:build !linux && !darwin && !windows

package sock

import "syscall"

// DontFragment says that datagrams of this system's sockets are sent whole or
// not at all, so that one that arrives proves what its path carries.
const DontFragment = false

// errTooLong is the system's error about a datagram that is too long to be sent
// whole.
const errTooLong = syscall.EMSGSIZE

// setDontFragment does nothing: the system fragments as it likes.
func setDontFragment(uintptr, bool, bool) error { return nil }
