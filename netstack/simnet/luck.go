package simnet

import (
	"fmt"
	"math"
	"sync/atomic"
)

// Luck counts how pairs fared that need some to be direct in a given time
// (GuessNeeded). It may be used by several goroutines; the zero value is ready.
type Luck struct{ tries, misses atomic.Int64 }

// Note takes the outcome of one.
func (l *Luck) Note(direct bool) {
	l.tries.Add(1)
	if !direct {
		l.misses.Add(1)
	}
}

// String returns how many had none, for a log.
func (l *Luck) String() string {
	return fmt.Sprintf("%d of %d pairs had no luck", l.misses.Load(), l.tries.Load())
}

// Check returns an error where more had no luck than one in a thousand explains, or
// where fewer than least were tried. The bound is passed once in ten thousand times,
// but not by a seed that was tried before.
func (l *Luck) Check(least int) error {
	expected := float64(l.tries.Load()) / 1000
	if limit := expected + 4*math.Sqrt(expected) + 1; float64(l.misses.Load()) > limit {
		return fmt.Errorf("simnet: %v, want %.1f at most", l, limit)
	}
	if l.tries.Load() < int64(least) {
		return fmt.Errorf("simnet: %d pairs needed luck, want %d", l.tries.Load(), least)
	}
	return nil
}
