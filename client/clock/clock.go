package clock

import (
	"sync"
	"sync/atomic"
	"time"
)

// lookInterval is how often the time of suspension is read, which takes a
// system call.
const lookInterval = time.Second

// Clock never goes back. Use New.
type Clock struct {
	// held says that the wall clock is not followed any more.
	held atomic.Bool

	// wall returns the system's time, running what has passed since the start
	// without the time of suspension, suspended that time: the latter two never
	// fall.
	wall      func() time.Time
	running   func() time.Duration
	suspended func() time.Duration

	// ahead is the clock's time, in Unix nanoseconds, less running. It never
	// falls, and so neither does the clock.
	ahead atomic.Int64
	// looked is when suspended was last read, by running.
	looked atomic.Int64

	mu    sync.Mutex    // protects slept, and is held while suspended is called
	slept time.Duration // what of suspended is in ahead
}

// New returns a Clock of the system's clocks.
func New() *Clock {
	start := time.Now()
	return newClock(time.Now, func() time.Duration { return time.Since(start) }, Suspension())
}

func newClock(wall func() time.Time, running, suspended func() time.Duration) *Clock {
	c := &Clock{wall: wall, running: running, suspended: suspended}
	c.slept = suspended()
	c.ahead.Store(wall().UnixNano() - int64(running()))
	return c
}

// Now returns the time, without a monotonic reading: two times differ by what
// has passed between them, or by more where the wall clock was set forward before
// Hold.
func (c *Clock) Now() time.Time {
	running := int64(c.running())
	if running-c.looked.Load() >= int64(lookInterval) && c.mu.TryLock() {
		if slept := c.suspended(); slept > c.slept {
			c.ahead.Add(int64(slept - c.slept))
			c.slept = slept
		}
		c.looked.Store(running)
		c.mu.Unlock()
	}
	if c.held.Load() {
		return time.Unix(0, running+c.ahead.Load())
	}
	return time.Unix(0, running+c.raise(c.wall().UnixNano()-running))
}

// Hold ends that the clock follows the wall clock: from here on it shows what
// passes, the time of a suspended machine included. It is for when the right time
// is known from elsewhere. To call it again does nothing.
func (c *Clock) Hold() {
	c.Now()
	c.held.Store(true)
}

// Raise makes the clock show t at least. It is for a time that is known to be
// past, such as one that was kept on disk.
func (c *Clock) Raise(t time.Time) {
	if !t.IsZero() {
		c.raise(t.UnixNano() - int64(c.running()))
	}
}

// raise makes ahead at least to, and returns it.
func (c *Clock) raise(to int64) int64 {
	for {
		ahead := c.ahead.Load()
		if ahead >= to {
			return ahead
		}
		if c.ahead.CompareAndSwap(ahead, to) {
			return to
		}
	}
}
