package path

import (
	"testing"
	"time"
)

// TestFlaps: changes at given distances, by how many of them begin an alarm and
// whether it goes on.
func TestFlaps(t *testing.T) {
	for name, test := range map[string]struct {
		changes  int
		distance time.Duration
		quiet    time.Duration
		alarms   int
		flapping bool
	}{
		"a NAT that forgets every 20 s":   {60, 10 * time.Second, 0, 0, false},
		"one below the limit in a minute": {flapLimit - 1, time.Second, 0, 0, false},
		"the limit in a minute":           {flapLimit, 8 * time.Second, 0, 1, true},
		"the limit in a minute and more":  {flapLimit, flapWindow/(flapLimit-1) + 1, 0, 0, false},
		"once a second for ten minutes":   {600, time.Second, 0, 1, true},
		"over after a minute":             {flapLimit, time.Second, flapWindow, 1, false},
		"just not over before the minute": {flapLimit, time.Second, flapWindow - 8*time.Second, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			f, now, alarms := newRecurrence(flapLimit, flapWindow), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), 0
			for range test.changes {
				now = now.Add(test.distance)
				if f.note(1, now) {
					alarms++
				}
			}
			if now = now.Add(test.quiet); alarms != test.alarms || f.over(now) != test.flapping {
				t.Errorf("%d alarms, flapping: %v", alarms, f.over(now))
			}
		})
	}
	// Another alarm comes after a quiet minute.
	f, now, alarms := newRecurrence(flapLimit, flapWindow), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), 0
	for range 2 {
		for range 2 * flapLimit {
			if now = now.Add(time.Second); f.note(1, now) {
				alarms++
			}
		}
		now = now.Add(flapWindow)
	}
	if alarms != 2 {
		t.Errorf("%d alarms of two times of flapping", alarms)
	}
}
