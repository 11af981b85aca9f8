package wg

import (
	"fmt"
	"testing"
)

// TestStrays: packets are counted by where they came from, where that is not where the
// path leads, for as many places as are told apart, and those of the path are not.
func TestStrays(t *testing.T) {
	a, b, atA, atB := connected(t)
	if places, others := atB.TakeStrays(); len(places) != 0 || others != 0 {
		t.Fatalf("%v and %d more though all came by the path", places, others)
	}
	for content := range byte(3) {
		carried(t, a, b, content) // each by another stranger
	}
	atA.SetPath(Path{Direct: b.at})
	pass(t, a, b, 3)
	places, others := atB.TakeStrays()
	if len(places) != 3 || others != 0 {
		t.Fatalf("%v and %d more, want 3", places, others)
	}
	for _, p := range places {
		if p.Packets != 1 || p.From.Addr == a.at || p.From.Addr.Addr() != a.at.Addr() {
			t.Errorf("stray %+v", p)
		}
	}
	if places, others := atB.TakeStrays(); len(places) != 0 || others != 0 {
		t.Errorf("%v and %d more are told twice", places, others)
	}

	// Copies count, too.
	packets := captured(t, a, typeTransport)[:1]
	before := b.device.Counters().ReplayedPackets
	for range maxStrays + 2 {
		stranger(t, b.at, packets...)
	}
	eventually(t, func() error {
		if n := b.device.Counters().ReplayedPackets - before; n != maxStrays+2 {
			return fmt.Errorf("%d came", n)
		}
		return nil
	})
	if places, others = atB.TakeStrays(); len(places) != maxStrays || others != 2 {
		t.Errorf("%d places and %d packets of others, want %d and 2", len(places), others, maxStrays)
	}

	// And those over a relay do not, whatever the path is.
	atA.SetPath(Path{Relay: pipe{a.key, b.device, &recordingRelay{}}})
	pass(t, a, b, 4)
	if places, others := atB.TakeStrays(); len(places) != 0 || others != 0 {
		t.Errorf("%v and %d more of relayed packets", places, others)
	}
	atB.SetPath(Path{Relay: &recordingRelay{}})
	atA.SetPath(Path{Direct: b.at})
	pass(t, a, b, 5)
	if places, _ := atB.TakeStrays(); len(places) != 1 || places[0].From != (Origin{Addr: a.at}) {
		t.Errorf("%v, want direct packets where the path is a relay", places)
	}
}
