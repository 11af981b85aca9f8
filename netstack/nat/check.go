package nat

import "time"

// HandleCheck begins a round as soon as may be, for somebody who wants to know
// how things are now. What was answered before counts on until then.
func (d *Discoverer) HandleCheck(now time.Time) {
	d.advance(now)
	if len(d.servers) > 0 && !d.Asking() {
		d.again()
	}
	d.flush()
}

// Asking reports whether a round is about to begin, or under way: whether a
// server has neither answered nor been given up.
func (d *Discoverer) Asking() bool {
	if len(d.servers) == 0 {
		return false
	}
	for _, s := range d.servers {
		if !s.sent.IsZero() {
			return true
		}
	}
	// again puts a round minRound ahead at most; every other is further off.
	return !d.round.IsZero() && d.round.Sub(d.now) <= minRound
}
