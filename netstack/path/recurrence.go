package path

import "time"

// recurrence tells when something happens more often than it should: as often as it
// remembers times, within a while.
type recurrence struct {
	at     []time.Time // of the last ones, as a ring
	within time.Duration
	next   int
	told   bool
}

func newRecurrence(limit int, within time.Duration) recurrence {
	return recurrence{at: make([]time.Time, limit), within: within}
}

// note notes n of them at a time, and reports whether they are the ones that make it
// too often. That comes again only after a while without.
func (r *recurrence) note(n uint64, now time.Time) (begins bool) {
	r.told = r.told && r.over(now)
	for range min(n, uint64(len(r.at))) {
		r.at[r.next] = now
		r.next = (r.next + 1) % len(r.at)
	}
	begins = !r.told && r.over(now)
	r.told = r.told || begins
	return begins
}

// over reports whether it is too often.
func (r *recurrence) over(now time.Time) bool {
	oldest := r.at[r.next]
	return !oldest.IsZero() && now.Sub(oldest) < r.within
}
