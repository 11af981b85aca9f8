package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// Suspension returns a function that tells for how long the machine was
// suspended: what CLOCK_BOOTTIME counts and CLOCK_MONOTONIC, by which programs
// measure, does not (clock_gettime(2)). Where the system has no such clock it is
// zero. It never falls, and is for one goroutine at a time.
func Suspension() func() time.Duration {
	longest := time.Duration(0)
	return func() time.Duration {
		var boot, running unix.Timespec
		// In this order what passes between the two readings makes the result
		// less, and never more than it is.
		if unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil || unix.ClockGettime(unix.CLOCK_MONOTONIC, &running) != nil {
			return longest
		}
		longest = max(longest, time.Duration(boot.Nano()-running.Nano()))
		return longest
	}
}
