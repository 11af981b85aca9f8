package control

import (
	"encoding/binary"
	"io"
	"time"
)

const (
	// firstDelay is short, so that a coordinator that restarts has its nodes
	// back within a second.
	firstDelay = 500 * time.Millisecond
	// longestDelay is how long a coordinator's return may go unnoticed: revocations
	// and changes of the policy wait for it. Drawn from the upper half, it has ten
	// thousand waiting nodes come back at 2,000 a second at most, over 5 s; the
	// coordinator then needs about 10 s to tell them their maps (L04).
	longestDelay = 10 * time.Second
	// replacedDelay is how long a device waits that another connection of it took
	// the place of: two copies of one device take turns no faster.
	replacedDelay = 30 * time.Second
	// longestRetryAfter bounds what a coordinator can ask for, so that it
	// cannot send its nodes away for good by one wrong number.
	longestRetryAfter = 10 * time.Minute
)

// backoff counts failed attempts. The zero value has none.
type backoff struct{ failures int }

// next counts a failure and returns how long to wait: twice as long each time
// up to longestDelay, and of that a random part between the half and the whole,
// so that nodes that lost one coordinator together do not come back together.
// A reader that fails counts as one that gives zeros.
func (b *backoff) next(rand io.Reader) time.Duration {
	delay := longestDelay
	if b.failures < 5 { // 500 ms << 5 is above longestDelay
		delay = firstDelay << b.failures
	}
	b.failures++
	var raw [8]byte
	if _, err := io.ReadFull(rand, raw[:]); err != nil {
		raw = [8]byte{}
	}
	half := uint64(delay / 2)
	return delay/2 + time.Duration(binary.BigEndian.Uint64(raw[:])%(half+1))
}

func (b *backoff) reset() { b.failures = 0 }
