//go:build !linux && !darwin

package clock

import "time"

// Suspension returns a function that says that the machine was never suspended:
// on Windows the program's own clock counts that time.
func Suspension() func() time.Duration {
	return func() time.Duration { return 0 }
}
