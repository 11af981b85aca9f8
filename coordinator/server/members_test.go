package server

import (
	"crypto/rand"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/registry"
	"github.com/warren-overlay/warren/coordinator/wire"
)

// told returns the keys that relays are told of now.
func (o *site) told(t *testing.T) []ident.NodeKey {
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

// again stops the coordinator and starts it with what it has written.
func (o *site) again() {
	o.stop()
	o.restart()
	synctest.Wait()
}

// TestRevocationsOutliveARestart: a relay that starts after the coordinator was
// started again is told of whom was revoked before, for as long as any token of
// theirs may hold, and of whom is suspended; not of whom is a member again.
func TestRevocationsOutliveARestart(t *testing.T) {
	bubble(t, func(t *testing.T, o *site) {
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
		if got := o.told(t); !slices.Equal(got, want) {
			t.Fatalf("told of %v, want %v", got, want)
		}
		o.again()
		if got := o.told(t); !slices.Equal(got, want) {
			t.Errorf("after a restart told of %v, want %v", got, want)
		}
		o.must(registry.ResumeUser{Login: "alice@example.com"})
		time.Sleep(goneLife - 90*time.Second)
		o.again()
		if got := o.told(t); !slices.Equal(got, want[1:2]) {
			t.Errorf("half an hour later told of %v, want %v", got, want[1:2])
		}
	})
}

// TestFormerKeysOutliveARestart: so is it told of keys that their devices gave up: of
// one that another took the place of, also in a new registration, and of who logged
// out; not of one that a device has again.
func TestFormerKeysOutliveARestart(t *testing.T) {
	bubble(t, func(t *testing.T, o *site) {
		rotated, anew, out, back := o.join(o.alices(), "rotated"), o.join(o.alices(), "anew"), o.join(o.bobs(), "out"), o.join(o.bobs(), "back")
		for _, d := range []*device{rotated, anew, out, back} {
			d.close()
		}
		synctest.Wait()
		id := func(name string) ident.NodeID { return o.state.DeviceByName(name).ID }
		want := []ident.NodeKey{rotated.node, anew.node, out.node}
		o.must(registry.RotateNodeKey{Node: id("rotated"), NodeKey: ident.NodeKey{1, 1}})
		time.Sleep(time.Minute)
		anew.take(newDevice(t))
		anew.connect(o)
		if _, refused := anew.register(o.alices(), "anew"); refused != nil {
			t.Fatal(refused)
		}
		anew.ch.Close()
		synctest.Wait()
		time.Sleep(time.Minute)
		o.must(registry.Logout{Node: id("out")})
		was := back.node
		o.must(registry.RotateNodeKey{Node: id("back"), NodeKey: ident.NodeKey{3, 3}})
		o.must(registry.RotateNodeKey{Node: id("back"), NodeKey: was})
		want = append(want, ident.NodeKey{3, 3})
		if got := o.told(t); !slices.Equal(got, want) {
			t.Fatalf("told of %v, want %v", got, want)
		}
		for range 2 {
			o.again()
			got := o.told(t)
			slices.SortStableFunc(got, func(a, b ident.NodeKey) int { return slices.Index(want, a) - slices.Index(want, b) }) // two are of one moment
			if !slices.Equal(got, want) {
				t.Errorf("after a restart told of %v, want %v", got, want)
			}
		}
		time.Sleep(goneLife - 30*time.Second)
		o.again()
		if got := o.told(t); len(got) != 2 || slices.Contains(got, rotated.node) || slices.Contains(got, want[1]) {
			t.Errorf("half an hour later told of %v, want %v", got, want[2:])
		}
	})
}

// TestRegainedKeyOfAResumedUser: relays are told of a suspended user's key once, even
// where its device gave it up earlier and took it up again, and not when it is a
// member's again.
func TestRegainedKeyOfAResumedUser(t *testing.T) {
	bubble(t, func(t *testing.T, o *site) {
		rotated, out := o.join(o.alices(), "rotated"), o.join(o.alices(), "out")
		rotated.close()
		out.close()
		synctest.Wait()
		other := ident.NodeKey{1, 1}
		id := o.state.DeviceByName("rotated").ID
		o.must(registry.RotateNodeKey{Node: id, NodeKey: other})
		o.must(registry.RotateNodeKey{Node: id, NodeKey: rotated.node})
		o.must(registry.Logout{Node: o.state.DeviceByName("out").ID})
		out.connect(o)
		if _, refused := out.register(o.alices(), "out"); refused != nil {
			t.Fatal(refused)
		}
		out.ch.Close()
		synctest.Wait()
		ended := time.Now()
		time.Sleep(time.Minute)
		o.must(registry.SuspendUser{Login: "alice@example.com"})
		o.again()
		suspended := []ident.NodeKey{other, rotated.node, out.node}
		if got := o.told(t); !slices.Equal(got, suspended) {
			t.Errorf("while suspended told of %v, want %v", got, suspended)
		}
		// The database of an earlier release has records of regained keys.
		o.state.Apply(&registry.Changes{FormerKeys: []registry.FormerKey{{NodeKey: rotated.node, Ended: ended}, {NodeKey: out.node, Ended: ended}}})
		var got []ident.NodeKey
		for _, g := range newMembers(o.Genesis(), "default", o.state, time.Now()).gone {
			got = append(got, g.key)
		}
		if !slices.Equal(got, suspended) {
			t.Errorf("with old records told of %v, want %v", got, suspended)
		}
		o.must(registry.ResumeUser{Login: "alice@example.com"})
		if got := o.told(t); !slices.Equal(got, []ident.NodeKey{other}) {
			t.Errorf("when resumed told of %v, want only %v", got, other)
		}
	})
}

// TestAdmitsByItsOwnName: a token that was signed for other relays only does not admit
// to the one beside the coordinator, and where there is none it admits to nothing.
func TestAdmitsByItsOwnName(t *testing.T) {
	bubble(t, func(t *testing.T, o *site) {
		d := o.join(o.alices(), "a")
		synctest.Wait()
		token := func(relays ...string) []byte {
			signed, err := authority.IssueRelayToken(o.Genesis(), authority.RelayToken{
				NodeKey: d.node, NotAfter: time.Now().Add(5 * time.Minute), Relays: relays,
			}, o.keys.Signing)
			if err != nil {
				t.Fatal(err)
			}
			return signed
		}
		for _, c := range []struct {
			token []byte
			want  error
		}{
			{d.held().RelayToken, nil},
			{token("fra-1", "default"), nil},
			{token("fra-1"), authority.ErrNotOurs},
			{token(), authority.ErrNotOurs},
		} {
			if _, _, err := o.Members().Admit(d.node, c.token, time.Now()); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		}
		without := newMembers(o.Genesis(), "", o.state, time.Now())
		if _, _, err := without.Admit(d.node, token("fra-1", "default"), time.Now()); !errors.Is(err, authority.ErrNotOurs) {
			t.Errorf("without a relay: %v", err)
		}
	})
}

// TestRelayIsTold: the relay beside the coordinator has to be one that devices are
// told of, or their tokens would not name it.
func TestRelayIsTold(t *testing.T) {
	c := Config{Dir: "data", Rand: rand.Reader, Logger: slog.New(slog.DiscardHandler), Relays: []wire.Relay{{Name: "default", URL: "ws://:1/"}}}
	for name, want := range map[string]error{"": nil, "default": nil, "fra-1": ErrConfig} {
		c.Relay = name
		if err := c.Validate(); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", name, err, want)
		}
	}
}
