package sock

import (
	"errors"

	"golang.org/x/sys/windows"
)

const errAddrInUse = windows.WSAEADDRINUSE

// ignorable reports whether a receive error says nothing about the socket:
// Windows reports there that an earlier datagram could not be delivered
// (WSAECONNRESET, WSAENETRESET) or that one was longer than the buffer.
func ignorable(err error) bool {
	return errors.Is(err, windows.WSAECONNRESET) || errors.Is(err, windows.WSAENETRESET) || errors.Is(err, windows.WSAEMSGSIZE)
}
