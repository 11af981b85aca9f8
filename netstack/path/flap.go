package path

import "time"

const (
	// flapWindow and flapLimit are how many changes of the primary path in which
	// time are more than networks cause: a NAT that forgets every 20 s causes six,
	// to the relay and back (F08). What causes more is a path that works by turns,
	// or somebody on the way who has packets come from elsewhere (F19).
	flapWindow = time.Minute
	flapLimit  = 8
)

// Flapping reports whether the primary changed more often in the last minute than
// networks make it.
func (a *Agent) Flapping(now time.Time) bool { return a.flaps.over(now) }
