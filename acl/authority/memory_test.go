package authority_test

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// crowd returns the memory of as many devices as there is room for, whose
// certificates end at a time.
func crowd(n int, end time.Time) authority.State {
	s := authority.State{Devices: make(map[ident.NodeID]authority.Seen, n)}
	for i := range n {
		s.Devices[ident.NodeID(1000+i)] = authority.Seen{Serial: uint64(i + 1), NotAfter: end}
	}
	return s
}

// TestDevicesAreForgotten: devices that came and went do not keep new ones out,
// or this one.
func TestDevicesAreForgotten(t *testing.T) {
	n := acltest.NewNetwork(1, start)
	self, other := n.NodeKey().Public(), n.NodeKey().Public()
	own, peer := n.Issue(n.Certificate(1, self, "me")), n.Issue(n.Certificate(2, other, "db"))
	for _, c := range []struct {
		name  string
		state authority.State
		want  error
		left  int
	}{
		{"ended long ago", crowd(authority.MaxDevices, start.Add(-authority.ForgetAfter-time.Hour)), nil, 2},
		{"ended two days ago", crowd(authority.MaxDevices, start.Add(-48*time.Hour)), nil, 2},
		{"ended an hour ago", crowd(authority.MaxDevices, start.Add(-time.Hour)), authority.ErrOutOfBounds, authority.MaxDevices + 1},
		{"valid", crowd(authority.MaxDevices, start.Add(time.Hour)), authority.ErrOutOfBounds, authority.MaxDevices + 1},
		{"few that ended two days ago", crowd(3000, start.Add(-48*time.Hour)), nil, 3002},
		{"few that ended long ago", crowd(3000, start.Add(-authority.ForgetAfter-time.Hour)), nil, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, err := authority.New(n.Genesis, self, c.state)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := a.AdmitSelf(own, start); err != nil {
				t.Errorf("the own certificate: %v", err)
			}
			if _, err := a.Admit(peer, start); !errors.Is(err, c.want) {
				t.Errorf("a new device: %v, want %v", err, c.want)
			}
			if left := len(a.State().Devices); left != c.left {
				t.Errorf("%d devices are remembered, want %d", left, c.left)
			}
		})
	}
}

// TestForgettingRevivesNothing: what a forgotten device once had has ended, and
// the longest of its certificates counts.
func TestForgettingRevivesNothing(t *testing.T) {
	n := acltest.NewNetwork(1, start)
	self, other := n.NodeKey().Public(), n.NodeKey().Public()
	first := n.Certificate(7, other, "db")
	first.NotAfter = start.Add(300 * 24 * time.Hour)
	longer, newer := n.Issue(first), n.Issue(n.Certificate(7, other, "db"))
	a := n.Authority(self)
	for _, signed := range [][]byte{longer, newer} {
		if _, err := a.Admit(signed, start); err != nil {
			t.Fatal(err)
		}
	}
	if seen := a.State().Devices[7]; seen.Serial != 2 || !seen.NotAfter.Equal(first.NotAfter) {
		t.Errorf("remembered %+v", seen)
	}
	state := crowd(authority.MaxDevices, start)
	state.Devices[7] = a.State().Devices[7]
	later := start.Add(200 * 24 * time.Hour)
	if a, _ = authority.New(n.Genesis, self, state); a == nil {
		t.Fatal("no authority")
	}
	c := n.Certificate(8, n.NodeKey().Public(), "new")
	c.NotAfter = later.Add(time.Hour)
	if _, err := a.Admit(n.Issue(c), later); err != nil {
		t.Errorf("a new device: %v", err)
	}
	if _, err := a.Admit(longer, later); !errors.Is(err, authority.ErrRollback) {
		t.Errorf("the older certificate, which still holds: %v", err)
	}
}

func TestRulesHaveSerials(t *testing.T) {
	n := acltest.NewNetwork(1, start)
	a := n.Authority(n.NodeKey().Public())
	wide := n.IssueRules(1, &ruleset.RuleSet{Epoch: 5, In: []ruleset.Rule{{ID: "wide"}}})
	narrow := n.IssueRules(1, &ruleset.RuleSet{Epoch: 5})
	for i, signed := range [][]byte{wide, narrow, narrow} {
		if _, err := a.AdmitRules(signed, 1); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	before := a.State()
	if _, err := a.AdmitRules(wide, 1); !errors.Is(err, authority.ErrRollback) || !reflect.DeepEqual(before, a.State()) {
		t.Errorf("older rules of the same epoch: %v", err)
	}
	again, err := authority.New(n.Genesis, n.NodeKey().Public(), a.State())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.AdmitRules(wide, 1); !errors.Is(err, authority.ErrRollback) {
		t.Errorf("older rules of the same epoch after a restart: %v", err)
	}
}

// TestUnreadableRules: what is signed and newer and cannot be read keeps older
// rules from coming back; what could be as old as those changes nothing.
func TestUnreadableRules(t *testing.T) {
	n := acltest.NewNetwork(1, start)
	self := n.NodeKey().Public()
	forge := func(node ident.NodeID, serial uint64, epoch ruleset.Epoch, set []byte, version byte) []byte {
		return authority.ForgeRules(n.Genesis, node, serial, epoch, set, version, n.Signer)
	}
	other := (&ruleset.RuleSet{Epoch: 9}).AppendBinary(nil)
	for _, c := range []struct {
		name   string
		signed []byte
		want   error
	}{
		{"unknown encoding", forge(1, 2, 6, []byte{99}, 1), authority.ErrUnreadable},
		{"nothing", forge(1, 2, 5, nil, 1), authority.ErrUnreadable},
		{"another epoch inside", forge(1, 2, 6, other, 1), authority.ErrUnreadable},
		{"a version to come", forge(1, 2, 6, []byte{1}, 2), authority.ErrUnreadable},
		{"as old as the present ones", forge(1, 1, 5, []byte{99}, 1), authority.ErrMalformed},
		{"of a lower epoch", forge(1, 2, 4, []byte{99}, 1), authority.ErrRollback},
		{"for another device", forge(2, 2, 6, []byte{99}, 1), authority.ErrNotOurs},
		{"version 0", forge(1, 2, 6, other, 0), authority.ErrMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := n.Authority(self)
			old := authority.ForgeRules(n.Genesis, 1, 1, 5, (&ruleset.RuleSet{Epoch: 5}).AppendBinary(nil), 1, n.Signer)
			if _, err := a.AdmitRules(old, 1); err != nil {
				t.Fatal(err)
			}
			before := a.State()
			if r, err := a.AdmitRules(c.signed, 1); r != nil || !errors.Is(err, c.want) {
				t.Errorf("got %v, %v, want %v", r, err, c.want)
			}
			_, err := a.AdmitRules(old, 1)
			if errors.Is(c.want, authority.ErrUnreadable) && !errors.Is(err, authority.ErrRollback) {
				t.Errorf("the older rules after it: %v", err)
			}
			if !errors.Is(c.want, authority.ErrUnreadable) && (err != nil || !reflect.DeepEqual(before, a.State())) {
				t.Errorf("the rules in force are refused: %v", err)
			}
		})
	}
}
