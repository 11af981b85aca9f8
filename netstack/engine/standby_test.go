package engine

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

// drive runs the standby of one prefix for a time, in steps of 100 ms, with
// packets to the holder all the while. alive says which routers answer. It
// returns who was asked how often, and when the holder changed.
func drive(s *standby, from time.Time, lasting time.Duration, alive func(ident.NodeKey, time.Time) bool) (asked map[ident.NodeKey]int, moved []time.Time) {
	prefix := netip.MustParsePrefix("10.1.0.0/16")
	asked = make(map[ident.NodeKey]int)
	for now := from; now.Before(from.Add(lasting)); now = now.Add(100 * time.Millisecond) {
		s.routers[s.holders[prefix]].used = now
		due, _ := s.step(now)
		for _, key := range due {
			asked[key]++
			if alive(key, now) {
				s.routers[key].answer(true)
			}
		}
		before := s.holders[prefix]
		if s.holders[prefix] = s.choose(s.groups[prefix], before, true); s.holders[prefix] != before {
			moved = append(moved, now)
		}
	}
	return asked, moved
}

func newStandby(keys ...ident.NodeKey) *standby {
	prefix := netip.MustParsePrefix("10.1.0.0/16")
	s := &standby{
		holders: map[netip.Prefix]ident.NodeKey{prefix: keys[0]}, groups: map[netip.Prefix][]ident.NodeKey{prefix: keys},
		routers: make(map[ident.NodeKey]*routerHealth),
	}
	for _, k := range keys {
		s.routers[k] = &routerHealth{}
	}
	return s
}

func TestStandby(t *testing.T) {
	a, b, c := ident.NodeKey{1}, ident.NodeKey{2}, ident.NodeKey{3}
	prefix := netip.MustParsePrefix("10.1.0.0/16")
	begin := time.Unix(1e9, 0)
	s := newStandby(a, b, c)

	all := func(ident.NodeKey, time.Time) bool { return true }
	asked, moved := drive(s, begin, 20*time.Second, all)
	if asked[a] < 19 || asked[a] > 21 || asked[b] != 0 || len(moved) != 0 {
		t.Errorf("while all is well: asked %v, moved %v", asked, moved)
	}

	// One lost answer is nothing.
	loses := begin.Add(25 * time.Second)
	_, moved = drive(s, begin.Add(20*time.Second), 10*time.Second, func(k ident.NodeKey, now time.Time) bool {
		return k != a || now.Sub(loses).Abs() > 600*time.Millisecond
	})
	if len(moved) != 0 {
		t.Errorf("a lost answer moved the prefix at %v", moved)
	}

	// The first dies, and the second was dead before: the third gets it.
	died := begin.Add(30 * time.Second)
	asked, moved = drive(s, died, 20*time.Second, func(k ident.NodeKey, _ time.Time) bool { return k == c })
	if len(moved) != 1 || moved[0].Sub(died) > askInterval+silenceLimit || s.holders[prefix] != c {
		t.Errorf("moved at %v, to %v; died at %v", moved, s.holders[prefix], died)
	}
	if asked[b] == 0 {
		t.Error("the second was chosen over, unasked")
	}

	// They come back: nothing moves, but they count again.
	_, moved = drive(s, begin.Add(50*time.Second), 20*time.Second, all)
	if len(moved) != 0 || s.routers[a].dead || s.routers[b].dead {
		t.Errorf("moved %v; dead %v %v", moved, s.routers[a].dead, s.routers[b].dead)
	}

	// One that says that it does not serve is as good as dead, at once.
	if !s.routers[c].answer(false) {
		t.Error("nothing changed")
	}
	if got := s.choose(s.groups[prefix], c, true); got != a {
		t.Errorf("chosen %v", got)
	}

	// Nobody is asked for a prefix that nobody uses.
	idle := newStandby(a, b)
	if due, _ := idle.step(begin); len(due) != 0 || !idle.next.IsZero() {
		t.Errorf("asked %v, next %v", due, idle.next)
	}
	idle.routers[a].used = begin
	if due, _ := idle.step(begin); !slices.Equal(due, []ident.NodeKey{a}) || idle.next != begin.Add(askInterval) {
		t.Errorf("asked %v, next %v", due, idle.next)
	}
	if due, _ := idle.step(begin.Add(useLimit)); len(due) != 0 || !idle.next.IsZero() {
		t.Errorf("long after its use: asked %v, next %v", due, idle.next)
	}
	// Where all are dead the prefix stays.
	idle.routers[a].dead, idle.routers[b].dead = true, true
	if got := idle.choose([]ident.NodeKey{a, b}, b, true); got != b {
		t.Errorf("all dead: chosen %v", got)
	}
}
