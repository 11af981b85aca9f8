//go:build !linux

package clock

import "time"

// Suspension returns a function that says that the machine was never suspended:
// on Windows the program's own clock counts that time, on macOS the wall clock
// alone tells of it.
func Suspension() func() time.Duration {
	return func() time.Duration { return 0 }
}
