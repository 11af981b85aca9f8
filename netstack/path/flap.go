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
func (a *Agent) Flapping(now time.Time) bool { return a.flaps.flapping(now) }

// flaps are the times of the last changes of the primary, as a ring.
type flaps struct {
	at   [flapLimit]time.Time
	next int
	told bool
}

// note notes a change, and reports whether it is the one that makes the path
// flapping. That comes again only after a window without.
func (f *flaps) note(now time.Time) (begins bool) {
	f.told = f.told && f.flapping(now)
	f.at[f.next] = now
	f.next = (f.next + 1) % flapLimit
	begins = !f.told && f.flapping(now)
	f.told = f.told || begins
	return begins
}

// flapping reports whether the last flapLimit changes were within the window.
func (f *flaps) flapping(now time.Time) bool {
	oldest := f.at[f.next]
	return !oldest.IsZero() && now.Sub(oldest) < flapWindow
}
