package registry

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

func manyTags(n int) (out []ident.Tag) {
	for i := range n {
		out = append(out, ident.Tag(fmt.Sprint("tag:t", i)))
	}
	return out
}

func TestSuspendedUser(t *testing.T) {
	s := world(t, whole)
	mustRun(t, s, register(1, "many"), begin)
	mustRun(t, s, register(2, "once"), begin)
	mustRun(t, s, register(3, "bobs"), begin)
	mustRun(t, s, register(4, "db"), begin)
	later := begin.Add(time.Minute)
	changes, _, err := Decide(s, "admin", SuspendUser{"ALICE@example.com"}, later)
	if err != nil || changes.Audit.Action != "user.suspend" || changes.Audit.Target != "u1" {
		t.Fatalf("%+v, %v", changes.Audit, err)
	}
	result := mustRun(t, s, SuspendUser{"alice@example.com"}, later)
	if want := []ident.NodeKey{{1, 2}, {2, 2}}; !slices.Equal(result.Revoked, want) || !result.User.Suspended.Equal(later) {
		t.Errorf("%+v", result)
	}
	for _, c := range []struct {
		what string
		cmd  Command
		want error
	}{
		{"a new device by the user's key", register(9, "many"), ErrAuthKey},
		{"a device of the user's again", register(1, "many"), ErrSuspended},
		{"a device of the user's by another's key", register(1, "bobs"), ErrSuspended},
		{"a device of the user's by a key for tags", register(2, "db"), ErrSuspended},
		{"a device of the user's, tagged", SetTags{Node: 1, Tags: []ident.Tag{"tag:db"}}, ErrSuspended},
		{"another key", CreateKey{ID: "n", Hash: secret("n"), Login: "alice@example.com", Expires: later.Add(time.Hour)}, ErrSuspended},
		{"the same name again", CreateUser{"alice@example.com"}, ErrExists},
		{"another's key", register(9, "bobs"), nil},
		{"a device with tags", register(4, "db"), nil},
		{"the user's device, revoked", RevokeDevice{Node: 2}, nil},
	} {
		if _, err := run(t, s, c.cmd, later); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, err, c.want)
		}
	}
	if changes, _, err := Decide(s, "admin", SuspendUser{"alice@example.com"}, later.Add(time.Hour)); err != nil || !changes.Empty() {
		t.Errorf("suspending again: %+v, %v", changes, err)
	}
	if !s.Suspended(1) || s.Suspended(2) || s.Suspended(0) {
		t.Error("the wrong users are suspended")
	}
	if u := mustRun(t, s, ResumeUser{"alice@example.com"}, later).User; !u.Suspended.IsZero() || s.Suspended(1) {
		t.Errorf("%+v", u)
	}
	if changes, _, err := Decide(s, "admin", ResumeUser{"alice@example.com"}, later); err != nil || !changes.Empty() {
		t.Errorf("resuming again: %+v, %v", changes, err)
	}
	mustRun(t, s, register(9, "many"), later)
	mustRun(t, s, register(1, "many"), later)
}

func TestSetTags(t *testing.T) {
	s := world(t, whole)
	mustRun(t, s, register(1, "many"), begin)
	route := netip.MustParsePrefix("10.0.0.0/8")
	approve := func() { mustRun(t, s, ApproveRoutes{Node: 1, Routes: []netip.Prefix{route}}, begin) }
	approve()
	changes, _, err := Decide(s, "admin", SetTags{Node: 1, Tags: []ident.Tag{"tag:b", "tag:a", "tag:b"}}, begin)
	if err != nil || changes.Audit.Action != "device.tag" {
		t.Fatalf("%+v, %v", changes.Audit, err)
	}
	d := mustRun(t, s, SetTags{Node: 1, Tags: []ident.Tag{"tag:b", "tag:a", "tag:b"}}, begin).Device
	if d.Owner != 0 || !slices.Equal(d.Tags, []ident.Tag{"tag:a", "tag:b"}) || len(d.Approved) > 0 {
		t.Errorf("%+v", d)
	}
	approve()
	if changes, _, err := Decide(s, "admin", SetTags{Node: 1, Tags: []ident.Tag{"tag:a", "tag:b"}}, begin); err != nil || !changes.Empty() {
		t.Errorf("the same tags again: %+v, %v", changes, err)
	}
	if d = mustRun(t, s, SetTags{Node: 1, Tags: []ident.Tag{"tag:b"}}, begin).Device; !slices.Equal(d.Tags, []ident.Tag{"tag:b"}) || len(d.Approved) > 0 {
		t.Errorf("%+v", d)
	}
	mustRun(t, s, SetTags{Node: 1, Tags: manyTags(maxTags)}, begin)
}
