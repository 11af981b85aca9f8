package netmap

import (
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/registry"
)

// sees returns whom the device is told of, by deltas.
func (o *org) sees(id ident.NodeID) []ident.NodeID {
	return slices.Sorted(maps.Keys(o.nodes[id].Peers))
}

func TestSuspendedUsersDevicesAreTakenOut(t *testing.T) {
	o := newOrg(t)
	alice, other, bob, db := o.register(1, "ali"), o.register(2, "ali"), o.register(3, "bob"), o.register(4, "db")
	o.mustRun(registry.SetPolicy{Text: policyC})
	for _, d := range []*registry.Device{alice, other, bob, db} {
		o.connect(d.ID)
	}
	serial := o.state.Certificate(alice.ID).Serial
	o.mustRun(registry.SuspendUser{Login: "alice@example.com"})
	for _, d := range []*registry.Device{alice, other} {
		if _, err := o.net.Map(d.ID); !errors.Is(err, ErrNoView) {
			t.Errorf("a suspended user's device has a map: %v", err)
		}
		if _, _, err := o.net.RelayToken(d.ID, o.now); !errors.Is(err, ErrNoView) {
			t.Errorf("a suspended user's device has a relay token: %v", err)
		}
		if got := o.net.SetPresence(d.ID, Presence{Online: true}); got != nil {
			t.Errorf("a suspended user's device is announced to %v", got)
		}
	}
	if got := o.sees(bob.ID); !slices.Equal(got, []ident.NodeID{db.ID}) {
		t.Errorf("bob sees %v", got)
	}
	o.check()
	// A restart, and time, change nothing about it.
	o.restart()
	o.now = o.now.Add(DefaultValidity)
	o.net.HandleTimeout(o.now)
	o.tell(o.renew())
	o.check()
	if got := o.state.Certificate(alice.ID).Serial; got != serial {
		t.Errorf("a suspended user's device got certificate %d after %d", got, serial)
	}
	// What the policy means does not depend on who is suspended.
	if _, err := o.net.CheckPolicy(`{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
		"tests": [{"src": "alice@example.com", "accept": ["` + bob.IPv4.String() + `:22"]}]}`); err != nil {
		t.Errorf("a policy that was good is refused: %v", err)
	}
	o.mustRun(registry.ResumeUser{Login: "alice@example.com"})
	if got := o.sees(bob.ID); !slices.Equal(got, []ident.NodeID{alice.ID, other.ID, db.ID}) {
		t.Errorf("bob sees %v", got)
	}
	o.connect(alice.ID)
	o.check()
	if got := o.state.Certificate(alice.ID).Serial; got <= serial {
		t.Errorf("the certificate of before is used again")
	}
}

func TestOtherTagsChangeWhoMeets(t *testing.T) {
	o := newOrg(t)
	alice, db, web := o.register(1, "ali"), o.register(4, "db"), o.register(5, "web")
	o.mustRun(registry.SetPolicy{Text: policyA})
	for _, d := range []*registry.Device{alice, db, web} {
		o.connect(d.ID)
	}
	for _, step := range []struct {
		of   *registry.Device
		tags []ident.Tag
		// what alice and the database see then
		alice, db []ident.NodeID
	}{
		{web, []ident.Tag{"tag:web", "tag:db"}, []ident.NodeID{db.ID, web.ID}, []ident.NodeID{alice.ID, web.ID}},
		{web, []ident.Tag{"tag:x"}, []ident.NodeID{db.ID}, []ident.NodeID{alice.ID}},
		// Without her a rule about her matches nothing of the device's.
		{alice, []ident.Tag{"tag:web"}, []ident.NodeID{db.ID}, []ident.NodeID{alice.ID}},
		{db, []ident.Tag{"tag:x"}, nil, nil},
	} {
		o.mustRun(registry.SetTags{Node: step.of.ID, Tags: step.tags})
		if a, b := o.sees(alice.ID), o.sees(db.ID); !slices.Equal(a, step.alice) || !slices.Equal(b, step.db) {
			t.Errorf("after %v of %s: alice's device sees %v, the database %v", step.tags, step.of.Name, a, b)
		}
		o.check()
	}
}
