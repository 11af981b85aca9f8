//go:build unix && !linux

package sock

import "syscall"

const errAddrInUse = syscall.EADDRINUSE

// ignorable reports whether a receive error says nothing about the socket.
func ignorable(error) bool { return false }
