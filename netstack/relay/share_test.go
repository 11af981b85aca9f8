package relay

import (
	"testing"
	"time"
)

// TestFairShare: a server takes half of what comes. Nine senders ask for a
// twentieth of that each, and a tenth one for everything: the nine lose less than
// a tenth, and the flood is what is dropped.
func TestFairShare(t *testing.T) {
	const capacity = 10 << 20 // bytes a window
	const modest = capacity / 20
	const packet = 1400
	f := fairShare{window: 1}
	windows := make([]senderWindow, 10)
	now := epoch
	var asked, got [10]int
	for round := range 200 {
		backlog := false
		for step := range 10 {
			now = now.Add(shareWindow / 10)
			taken := 0
			for i := range windows {
				want := modest / 10
				if i == 9 {
					want = 2 * capacity / 10
				}
				for want >= packet {
					want -= packet
					ok := f.admit(&windows[i], packet)
					if ok {
						taken += packet
					}
					if round >= 20 {
						asked[i] += packet
						if ok {
							got[i] += packet
						}
					}
				}
			}
			backlog = taken > capacity/10
			f.observe(backlog, now)
			_ = step
		}
	}
	for i := range 9 {
		if lost := 1 - float64(got[i])/float64(asked[i]); lost > 0.1 {
			t.Errorf("sender %d lost %.0f %% to a flood", i, 100*lost)
		}
	}
	if got[9] > asked[9]/2 {
		t.Errorf("the flood got %d of %d bytes", got[9], asked[9])
	}
	for range 200 {
		now = now.Add(shareWindow)
		f.observe(false, now)
	}
	if f.limit != 0 {
		t.Errorf("a limit of %d bytes long after the flood", f.limit)
	}
	// A sender alone has nobody to share with.
	now = now.Add(time.Second)
	f.observe(true, now)
	f.admit(&windows[0], packet)
	f.observe(true, now.Add(shareWindow))
	if f.limit != 0 {
		t.Error("the only sender is limited")
	}
}
