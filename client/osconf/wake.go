package osconf

import "time"

const (
	// wakeInterval is how often it is looked whether the machine slept: a sleeper
	// is noticed within it.
	wakeInterval = time.Second
	// wakeGap is how much of a second must have been lost to count as sleep: what
	// a busy machine or a short stop loses, paths survive by themselves.
	wakeGap = 5 * time.Second
)

// wake notices that the machine slept, or that the program was stopped: its
// timers, and the connections' at the other ends, have run on without it.
type wake struct {
	running, suspended time.Duration // as of the last look
}

// look takes what time has passed by the program's own clock, and for how long
// the machine was suspended, neither of which falls. It reports whether more than
// wakeGap of the time since the last look cannot be accounted for.
//
// On Linux the program's clock stands still while the machine sleeps, and
// suspended tells of it; on other systems, and where the program alone was
// stopped, the program's clock runs on and the look is late.
func (w *wake) look(running, suspended time.Duration) bool {
	late := running - w.running - wakeInterval
	slept := suspended - w.suspended
	w.running, w.suspended = running, suspended
	return late+slept > wakeGap || slept > wakeGap
}
