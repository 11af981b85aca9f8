package server

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/registry"
)

// TestRevocationsOutliveARestart: a relay that starts after the coordinator was
// started again is told of whom was revoked before, for as long as any token of
// theirs may hold, and of whom is suspended; not of whom is a member again.
func TestRevocationsOutliveARestart(t *testing.T) {
	bubble(t, func(t *testing.T, o *site) {
		told := func() []ident.NodeKey {
			t.Helper()
			raw, err := o.Members().Revocations(o.keys.Signing, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			r, err := authority.VerifyRelayRevocations(o.Genesis(), raw)
			if err != nil {
				t.Fatal(err)
			}
			return r.Keys
		}
		again := func() {
			o.stop()
			o.restart()
			synctest.Wait()
		}
		b, c, a := o.join(o.bobs(), "b"), o.join(o.bobs(), "c"), o.join(o.alices(), "a")
		for _, d := range []*device{a, b, c} {
			d.close()
		}
		synctest.Wait()
		for _, name := range []string{"b", "c"} {
			o.must(registry.RevokeDevice{Node: o.state.DeviceByName(name).ID})
			time.Sleep(time.Minute)
		}
		o.must(registry.SuspendUser{Login: "alice@example.com"})
		want := []ident.NodeKey{b.node, c.node, a.node}
		if got := told(); !slices.Equal(got, want) {
			t.Fatalf("told of %v, want %v", got, want)
		}
		again()
		if got := told(); !slices.Equal(got, want) {
			t.Errorf("after a restart told of %v, want %v", got, want)
		}
		o.must(registry.ResumeUser{Login: "alice@example.com"})
		time.Sleep(goneLife - 90*time.Second)
		again()
		if got := told(); !slices.Equal(got, want[1:2]) {
			t.Errorf("half an hour later told of %v, want %v", got, want[1:2])
		}
	})
}
