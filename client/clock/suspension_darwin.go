package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// Suspension returns a function that tells for how long the machine was
// suspended: what CLOCK_MONOTONIC counts here and CLOCK_UPTIME_RAW, by which
// programs measure, does not (clock_gettime(3)). It never falls, and is for one
// goroutine at a time.
func Suspension() func() time.Duration {
	longest := time.Duration(0)
	return func() time.Duration {
		var all, running unix.Timespec
		// In this order what passes between the two readings makes the result
		// less, and never more than it is.
		if unix.ClockGettime(unix.CLOCK_MONOTONIC, &all) != nil || unix.ClockGettime(unix.CLOCK_UPTIME_RAW, &running) != nil {
			return longest
		}
		longest = max(longest, time.Duration(all.Nano()-running.Nano()))
		return longest
	}
}
