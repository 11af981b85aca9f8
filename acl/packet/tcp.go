package packet

import (
	"encoding/binary"
	"iter"
)

// The kinds of TCP options that are looked at (IANA).
const (
	endOfOptions       = 0
	noOperation        = 1
	maximumSegmentSize = 2
	windowScale        = 3
	md5Signature       = 19
	authentication     = 29
	multipath          = 30
)

// maxWindowScale is the largest shift that counts (RFC 7323, 2.3).
const maxWindowScale = 14

// tcpOptions yields the options of a TCP segment whose header is whole, each from
// its kind to its end, with its offset in the segment. It stops before one that is
// malformed, which is the receiver's to refuse.
func tcpOptions(segment []byte) iter.Seq2[int, []byte] {
	return func(yield func(int, []byte) bool) {
		for at, stop := headerTCP, int(segment[12]>>4)*4; at < stop; {
			switch segment[at] {
			case endOfOptions:
				return
			case noOperation:
				at++
				continue
			}
			if at+1 >= stop || segment[at+1] < 2 || at+int(segment[at+1]) > stop {
				return
			}
			next := at + int(segment[at+1])
			if !yield(at, segment[at:next]) {
				return
			}
			at = next
		}
	}
}

// WindowOptions are what a SYN says about the windows of its connection.
type WindowOptions struct {
	// Scaled reports whether its sender would scale windows, which both do where
	// both would, and Scale by how many bits it would shift those that it offers, at
	// most 14 (RFC 7323, 2.2).
	Scaled bool
	Scale  uint8
	// Fixed reports whether the windows of the connection mean something else, or
	// may not be changed on their way: it is one of several (RFC 8684), or its
	// segments are signed (RFC 2385, RFC 5925).
	Fixed bool
}

// ReadWindowOptions returns what b, a TCP segment with SYN, says about windows. i is
// what Parse read from it.
func ReadWindowOptions(b []byte, i *Info) (o WindowOptions) {
	for _, option := range tcpOptions(b[i.HeaderLength:i.Length]) {
		switch option[0] {
		case windowScale:
			if len(option) == 3 {
				o.Scaled, o.Scale = true, min(option[2], maxWindowScale)
			}
		case md5Signature, authentication, multipath:
			o.Fixed = true
		}
	}
	return o
}

// Window returns the window field of b, a TCP segment. i is what Parse read from it.
func Window(b []byte, i *Info) uint16 {
	return binary.BigEndian.Uint16(b[i.HeaderLength+14:])
}

// SetWindow sets the window field of b, a TCP segment, and corrects the checksum. i
// is what Parse read from it.
func SetWindow(b []byte, i *Info, window uint16) {
	segment := b[i.HeaderLength:i.Length]
	old := binary.BigEndian.Uint16(segment[14:])
	binary.BigEndian.PutUint16(segment[14:], window)
	updateChecksum(segment[16:18], old, window, false)
}
