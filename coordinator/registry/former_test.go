package registry

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

// TestFormerKeys: a node key that its device gives up is remembered, by whichever
// command, for FormerKeyLife at least; that of a revoked device is remembered as that.
func TestFormerKeys(t *testing.T) {
	s := world(t, whole)
	for n := range byte(4) {
		mustRun(t, s, register(n+1, "many"), begin)
	}
	mustRun(t, s, register(5, "db"), begin) // ephemeral
	device := func(n byte) ident.NodeID { return s.DeviceByMachine(register(n, "many").Machine).ID }
	key := func(n byte) ident.NodeKey { return register(n, "many").NodeKey }
	now := begin
	var want []FormerKey
	former := func(what string) {
		t.Helper()
		var got []FormerKey
		for _, k := range s.FormerKeys() {
			got = append(got, *k)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%s: %v, want %v", what, got, want)
		}
	}
	former("at first")
	next := func(k ident.NodeKey, cmd Command, what string) {
		t.Helper()
		now = now.Add(time.Minute)
		mustRun(t, s, cmd, now)
		want = append(want, FormerKey{k, now})
		former(what)
	}
	next(key(1), RotateNodeKey{Node: device(1), NodeKey: ident.NodeKey{9, 1}}, "rotated")
	again := register(2, "many")
	again.NodeKey = ident.NodeKey{9, 2}
	next(key(2), again, "registered again")
	next(key(3), Logout{Node: device(3)}, "logged out")
	next(key(5), RemoveExpired{OfflineSince: map[ident.NodeID]time.Time{device(5): now.Add(-EphemeralGrace)}}, "removed")
	mustRun(t, s, RevokeDevice{Node: device(4), KeepKey: true}, now)
	former("revoked")
	mustRun(t, s, RotateNodeKey{Node: device(1), NodeKey: ident.NodeKey{9, 1}}, now)
	former("the same key")
	// A key that its device takes up again is none of them, until it is given up once
	// more and ends anew.
	mustRun(t, s, RotateNodeKey{Node: device(1), NodeKey: key(1)}, now)
	want = append(want[1:], FormerKey{ident.NodeKey{9, 1}, now})
	former("taken up again")
	mustRun(t, s, register(3, "many"), now)
	want = slices.DeleteFunc(want, func(k FormerKey) bool { return k.NodeKey == key(3) })
	former("registered after logging out")
	gone := want[0]
	now = gone.Ended.Add(FormerKeyLife - time.Minute)
	want = want[1:]
	next(key(1), RotateNodeKey{Node: device(1), NodeKey: ident.NodeKey{9, 3}}, "later")
}

// TestFormerKeysAreFew: however many keys end, each command forgets more old ones than
// it adds.
func TestFormerKeysAreFew(t *testing.T) {
	s := world(t, whole)
	mustRun(t, s, register(1, "many"), begin)
	now := begin
	rotate := func(n int) {
		changes, _, err := Decide(s, "test", RotateNodeKey{Node: 1, NodeKey: ident.NodeKey{byte(n), byte(n >> 8), 7}}, now)
		if err != nil {
			t.Fatal(err)
		}
		if len(changes.ForgottenKeys) > maxForgotten {
			t.Fatalf("%d are forgotten at once", len(changes.ForgottenKeys))
		}
		s.Apply(&changes)
	}
	const burst = 10 * maxForgotten
	for n := range burst {
		rotate(n)
	}
	if n := len(s.FormerKeys()); n != burst {
		t.Fatalf("%d are remembered, want %d", n, burst)
	}
	now = now.Add(FormerKeyLife)
	for n := range burst/maxForgotten + 1 {
		rotate(burst + n)
	}
	if n := len(s.FormerKeys()); n != burst/maxForgotten+1 {
		t.Errorf("%d are remembered, want %d", n, burst/maxForgotten+1)
	}
}
