package registry

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/audit"
)

var (
	begin = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	small = Network{Prefix4: netip.MustParsePrefix("100.64.0.0/28"), Prefix6: netip.MustParsePrefix("fd12:3456:789a::/48")}
	whole = Network{Prefix4: netip.MustParsePrefix("100.64.0.0/10"), Prefix6: netip.MustParsePrefix("fd12:3456:789a::/48")}
)

func secret(text string) KeyHash { return sha256.Sum256([]byte(text)) }

// run decides and applies, and checks what holds for every command.
func run(t *testing.T, s *State, cmd Command, now time.Time) (Result, error) {
	t.Helper()
	before := s.Export()
	changes, result, err := Decide(s, "test", cmd, now)
	if !reflect.DeepEqual(s.Export(), before) {
		t.Fatalf("%T wrote to the state", cmd)
	}
	if err != nil {
		if !reflect.DeepEqual(changes, Changes{}) || !reflect.DeepEqual(result, Result{}) {
			t.Fatalf("%T refused, with changes %+v", cmd, changes)
		}
		return result, err
	}
	changed := changes
	changed.Audit, changed.Counters = nil, Counters{}
	if changes.Empty() != reflect.DeepEqual(changed, Changes{}) {
		t.Fatalf("%T: changes and audit entry do not go together: %+v", cmd, changes)
	}
	s.Apply(&changes)
	check(t, s)
	return result, nil
}

// check compares the state with one rebuilt from its export, and looks for
// what must be unique.
func check(t *testing.T, s *State) {
	t.Helper()
	again := NewState(s.network)
	export := s.Export()
	again.Apply(&export)
	if !reflect.DeepEqual(again, s) {
		t.Fatalf("a rebuilt state differs:\n%+v\n%+v", again, s)
	}
	seen := map[any]ident.NodeID{}
	for _, d := range s.Devices() {
		for _, v := range []any{d.Machine, d.NodeKey, d.Name, d.IPv4, d.IPv6} {
			if other, twice := seen[v]; twice {
				t.Fatalf("%v and %v share %v", other, d.ID, v)
			}
			seen[v] = d.ID
		}
		if (d.Owner == 0) == (len(d.Tags) == 0) {
			t.Fatalf("%v has owner %v and tags %v", d.ID, d.Owner, d.Tags)
		}
		if s.RevokedMachine(d.Machine) {
			t.Fatalf("%v was revoked", d.ID)
		}
	}
}

func mustRun(t *testing.T, s *State, cmd Command, now time.Time) Result {
	t.Helper()
	r, err := run(t, s, cmd, now)
	if err != nil {
		t.Fatalf("%T: %v", cmd, err)
	}
	return r
}

// world is a state with alice, and a key of each kind.
func world(t *testing.T, n Network) *State {
	s := NewState(n)
	mustRun(t, s, CreateUser{Login: "Alice@Example.com"}, begin)
	mustRun(t, s, CreateUser{Login: "bob@example.com"}, begin)
	for _, k := range []CreateKey{
		{ID: "once", Login: "alice@example.com"},
		{ID: "many", Login: "alice@example.com", Reusable: true},
		{ID: "bobs", Login: "bob@example.com", Reusable: true},
		{ID: "db", Tags: []ident.Tag{"tag:db", "tag:a", "tag:db"}, Reusable: true, Ephemeral: true},
	} {
		k.Hash, k.Expires = secret(k.ID), begin.Add(time.Hour)
		mustRun(t, s, k, begin)
	}
	return s
}

func register(n byte, key string) RegisterDevice {
	return RegisterDevice{Machine: ident.MachineKey{n, 1}, NodeKey: ident.NodeKey{n, 2}, Key: key, Secret: secret(key), Hostname: "laptop"}
}

func TestRegister(t *testing.T) {
	s := world(t, whole)
	d := mustRun(t, s, register(1, "once"), begin).Device
	if d.ID != 1 || d.Name != "laptop" || d.Owner != 1 || d.Tags != nil || d.Ephemeral ||
		d.IPv4 != netip.MustParseAddr("100.64.0.1") || d.IPv6 != netip.MustParseAddr("fd12:3456:789a::6440:1") {
		t.Errorf("%+v", d)
	}
	if k := s.Key("once"); k.Uses != 1 || k.Usable(begin) != "spent" {
		t.Errorf("key after use: %+v", k)
	}
	tagged := mustRun(t, s, register(2, "db"), begin).Device
	if tagged.Owner != 0 || !slices.Equal(tagged.Tags, []ident.Tag{"tag:a", "tag:db"}) || !tagged.Ephemeral || tagged.Name != "laptop-1" {
		t.Errorf("%+v", tagged)
	}
}

func TestRegisterRefuses(t *testing.T) {
	with := func(c RegisterDevice, f func(*RegisterDevice)) RegisterDevice { f(&c); return c }
	for _, c := range []struct {
		name string
		prep []Command
		cmd  RegisterDevice
		late time.Duration
		want error
	}{
		{name: "unknown key", cmd: register(9, "none"), want: ErrAuthKey},
		{name: "no key at all", cmd: with(register(9, "once"), func(c *RegisterDevice) { c.Key = "" }), want: ErrAuthKey},
		{name: "wrong secret", cmd: with(register(9, "once"), func(c *RegisterDevice) { c.Secret = secret("x") }), want: ErrAuthKey},
		{name: "spent key", prep: []Command{register(1, "once")}, cmd: register(9, "once"), want: ErrAuthKey},
		{name: "spent key, same device", prep: []Command{register(9, "once")}, cmd: register(9, "once"), want: ErrAuthKey},
		{name: "expired key", cmd: register(9, "once"), late: time.Hour, want: ErrAuthKey},
		{name: "revoked key", prep: []Command{RevokeKey{"many"}}, cmd: register(9, "many"), want: ErrAuthKey},
		{name: "revoked device", prep: []Command{register(9, "once"), RevokeDevice{Node: 1}}, cmd: register(9, "many"), want: ErrRevoked},
		{name: "revoked device, spent key", prep: []Command{register(9, "once"), RevokeDevice{Node: 1}}, cmd: register(9, "once"), want: ErrRevoked},
		{
			name: "node key of a revoked device", prep: []Command{register(9, "once"), RevokeDevice{Node: 1}},
			cmd: with(register(9, "many"), func(c *RegisterDevice) { c.Machine = ident.MachineKey{77} }), want: ErrRevoked,
		},
		{
			name: "node key of another device", prep: []Command{register(1, "once")},
			cmd: with(register(9, "many"), func(c *RegisterDevice) { c.NodeKey = ident.NodeKey{1, 2} }), want: ErrKeyInUse,
		},
		{
			name: "node key of another device, by a member", prep: []Command{register(1, "once"), register(9, "many")},
			cmd: with(register(9, "many"), func(c *RegisterDevice) { c.NodeKey = ident.NodeKey{1, 2} }), want: ErrKeyInUse,
		},
		{name: "a tag that the key lacks", cmd: with(register(9, "db"), func(c *RegisterDevice) { c.Tags = []ident.Tag{"tag:x"} }), want: ErrDenied},
		{name: "a tag with a user's key", cmd: with(register(9, "many"), func(c *RegisterDevice) { c.Tags = []ident.Tag{"tag:db"} }), want: ErrDenied},
		{name: "no machine key", cmd: with(register(9, "many"), func(c *RegisterDevice) { c.Machine = ident.MachineKey{} }), want: ErrInvalid},
		{name: "no node key", cmd: with(register(9, "many"), func(c *RegisterDevice) { c.NodeKey = ident.NodeKey{} }), want: ErrInvalid},
		{name: "a long description", cmd: with(register(9, "many"), func(c *RegisterDevice) { c.Host.OS = strings.Repeat("x", 1000) }), want: ErrInvalid},
		{name: "a description with an escape", cmd: with(register(9, "many"), func(c *RegisterDevice) { c.Host.OSVersion = "a\x1b[31m" }), want: ErrInvalid},
		{name: "a description in another direction", cmd: with(register(9, "many"), func(c *RegisterDevice) { c.Host.OSVersion = "a\u202eb" }), want: ErrInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := world(t, whole)
			for _, p := range c.prep {
				mustRun(t, s, p, begin)
			}
			if _, err := run(t, s, c.cmd, begin.Add(c.late)); !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			refused := Refused(s, "mkey:x", c.cmd, c.want, begin)
			if refused.Empty() || refused.Audit.Action != "device.register.refused" {
				t.Errorf("nothing written down: %+v", refused)
			}
		})
	}
}

// TestRevokedDeviceDoesNotComeBackByItsKey revokes a device that joined by a
// reusable key: the key goes with it, unless it is to be kept.
func TestRevokedDeviceDoesNotComeBackByItsKey(t *testing.T) {
	for _, c := range []struct {
		name, key string
		prep      []Command
		keep      bool
		revoked   string
	}{
		{name: "a reusable key", key: "bobs", revoked: "bobs"},
		{name: "a key to keep", key: "bobs", keep: true},
		{name: "a spent key", key: "once"},
		{name: "a key that was revoked before", key: "bobs", prep: []Command{RevokeKey{"bobs"}}},
	} {
		s := world(t, whole)
		mustRun(t, s, register(1, c.key), begin)
		for _, p := range c.prep {
			mustRun(t, s, p, begin)
		}
		before := map[string]Key{}
		for _, k := range s.Keys() {
			before[k.ID] = *k
		}
		cmd := RevokeDevice{Node: 1, KeepKey: c.keep}
		changes, _, err := Decide(s, "test", cmd, begin)
		if err != nil {
			t.Fatal(err)
		}
		named := slices.Contains(changes.Audit.Details, audit.Detail{Key: "key revoked", Value: c.revoked})
		result := mustRun(t, s, cmd, begin)
		if c.revoked == "" && result.Key != nil || c.revoked != "" && (result.Key == nil || result.Key.ID != c.revoked || !named) {
			t.Errorf("%s: it revoked %+v, named in the audit entry: %v", c.name, result.Key, named)
		}
		for _, k := range s.Keys() {
			old := before[k.ID]
			if k.ID == c.revoked {
				old.Revoked = begin
			}
			if !reflect.DeepEqual(*k, old) {
				t.Errorf("%s: the key %s is %+v", c.name, k.ID, k)
			}
		}
		_, err = run(t, s, register(2, c.key), begin)
		if back := err == nil; back != c.keep {
			t.Errorf("%s: the device is back with new keys: %v", c.name, back)
		}
	}
}

// TestDeviceCannotBeCalledLikeAnother lets a device call itself by the id of
// another: what names that one goes on naming it.
func TestDeviceCannotBeCalledLikeAnother(t *testing.T) {
	s := world(t, whole)
	victim := mustRun(t, s, register(1, "bobs"), begin).Device
	for i, hostname := range []string{victim.ID.String(), "N1", "n1.example.com", "n2", "n99", "n" + strings.Repeat("7", 80)} {
		c := register(byte(2+i), "bobs")
		c.Hostname = hostname
		d := mustRun(t, s, c, begin).Device
		if _, err := ident.ParseNodeID(d.Name); err == nil {
			t.Errorf("the hostname %q gives the name %q", hostname, d.Name)
		}
		if len(d.Name) > 63 {
			t.Errorf("the hostname %q gives the name %q", hostname, d.Name)
		}
		if got := s.DeviceByName(d.Name); got == nil || got.ID != d.ID {
			t.Errorf("%q names %+v", d.Name, got)
		}
		if got := s.DeviceByName(d.ID.String()); got == nil || got.ID != d.ID {
			t.Errorf("%v names %+v", d.ID, got)
		}
	}
	if got := s.DeviceByName(victim.ID.String()); got.ID != victim.ID {
		t.Errorf("%v names %v", victim.ID, got.ID)
	}
	// A name of before counts for less than an id, of this device or of none.
	decoy := *s.Device(2)
	decoy.Name = "n1"
	s.Apply(&Changes{Devices: []Device{decoy}})
	if got := s.DeviceByName("n1"); got.ID != victim.ID {
		t.Errorf("n1 names %v", got.ID)
	}
	decoy.Name = "n500"
	s.Apply(&Changes{Devices: []Device{decoy}})
	if got := s.DeviceByName("n500"); got != nil {
		t.Errorf("the id of nobody names %v", got.ID)
	}
}

// TestPruneKeys forgets keys that are over and that nobody joined by, in
// commands that name each of them.
func TestPruneKeys(t *testing.T) {
	s := world(t, whole) // four keys that hold for an hour
	for i := range 50 {
		id := fmt.Sprintf("k%02d", i)
		mustRun(t, s, CreateKey{ID: id, Hash: secret(id), Login: "alice@example.com", Expires: begin.Add(300 * 24 * time.Hour)}, begin)
	}
	gone := mustRun(t, s, register(1, "k00"), begin).Device
	mustRun(t, s, register(2, "k01"), begin)
	mustRun(t, s, register(3, "bobs"), begin)
	mustRun(t, s, Logout{gone.ID}, begin)
	mustRun(t, s, RevokeKey{"k02"}, begin)
	ids := func() (out []string) {
		for _, k := range s.Keys() {
			out = append(out, k.ID)
		}
		return out
	}
	before := ids()
	prune := func(now time.Time) []string {
		t.Helper()
		had := ids()
		changes, _, err := Decide(s, "test", PruneKeys{}, now)
		if err != nil {
			t.Fatal(err)
		}
		if changes.Audit != nil && len(changes.Audit.Details) != len(changes.RemovedKeys) {
			t.Errorf("%d keys go, %d are named", len(changes.RemovedKeys), len(changes.Audit.Details))
		}
		mustRun(t, s, PruneKeys{}, now)
		return slices.DeleteFunc(had, func(id string) bool { return s.Key(id) != nil })
	}
	if got := prune(begin.Add(KeyGrace)); len(got) != 0 {
		t.Errorf("within the time %v go of %v", got, before)
	}
	// Spent, revoked and expired ones go; not k01 and bobs, which have a device.
	later := begin.Add(KeyGrace + 2*time.Hour)
	if got := prune(later); !slices.Equal(got, []string{"db", "k00", "k02", "many", "once"}) {
		t.Errorf("after the time %v go", got)
	}
	if got := prune(later); len(got) != 0 {
		t.Errorf("at the second time %v go", got)
	}
	later = begin.Add(310 * 24 * time.Hour)
	if first, second := prune(later), prune(later); len(first) != maxRemoved || len(second) != 47-maxRemoved {
		t.Errorf("%d and %d go", len(first), len(second))
	}
	if got := ids(); !slices.Equal(got, []string{"bobs", "k01"}) {
		t.Errorf("%v are left", got)
	}
}

func TestUserGivesTags(t *testing.T) {
	s := world(t, whole)
	c := register(1, "many")
	c.Tags, c.Granted = []ident.Tag{"tag:web", "tag:db"}, []ident.Tag{"tag:db", "tag:web", "tag:x"}
	d := mustRun(t, s, c, begin).Device
	if d.Owner != 0 || !slices.Equal(d.Tags, []ident.Tag{"tag:db", "tag:web"}) {
		t.Errorf("owner %v, tags %v", d.Owner, d.Tags)
	}
	c = register(2, "many")
	c.Tags, c.Granted = []ident.Tag{"tag:web", "tag:y"}, []ident.Tag{"tag:web"}
	if _, err := run(t, s, c, begin); !errors.Is(err, ErrDenied) {
		t.Errorf("a tag that the user may not give: %v", err)
	}
}

// TestRegisterAgain proves that the new key's identity holds exactly, and that
// the device stays the same one.
func TestRegisterAgain(t *testing.T) {
	s := world(t, whole)
	first := mustRun(t, s, register(1, "db"), begin).Device
	second := register(1, "bobs")
	second.NodeKey = ident.NodeKey{42}
	result := mustRun(t, s, second, begin)
	d := result.Device
	if d.ID != first.ID || d.IPv4 != first.IPv4 || d.Name != first.Name {
		t.Errorf("another device: %+v after %+v", d, first)
	}
	if d.Owner != 2 || d.Tags != nil || d.Ephemeral || d.NodeKey != second.NodeKey {
		t.Errorf("what it was stays: %+v", d)
	}
	if !slices.Equal(result.Revoked, []ident.NodeKey{first.NodeKey}) {
		t.Errorf("keys that ended: %v", result.Revoked)
	}
	second.Hostname = "other"
	if d := mustRun(t, s, second, begin).Device; d.Name != "other" {
		t.Errorf("name %q", d.Name)
	}
}

func TestNames(t *testing.T) {
	for host, want := range map[string]string{
		"Laptop": "laptop", "db.internal.example": "db", "Alice's MacBook Pro": "alice-s-macbook-pro", "": "device", "...": "device",
		"--x--": "x", "\"; rm -rf /": "rm-rf", "жук": "device", "a_b__c": "a-b-c", strings.Repeat("y", 200): strings.Repeat("y", maxNameBase),
	} {
		if got := nameBase(host); got != want {
			t.Errorf("%q becomes %q, want %q", host, got, want)
		}
	}
	s := world(t, whole)
	for i, want := range []string{"laptop", "laptop-1", "laptop-2"} {
		if d := mustRun(t, s, register(byte(i+1), "many"), begin).Device; d.Name != want {
			t.Errorf("device %d is %q, want %q", i, d.Name, want)
		}
	}
	mustRun(t, s, Logout{2}, begin)
	if d := mustRun(t, s, register(7, "many"), begin).Device; d.Name != "laptop-1" || d.ID != 4 {
		t.Errorf("%+v", d)
	}
}

func TestLogins(t *testing.T) {
	for login, want := range map[string]string{
		"Alice@Example.COM": "alice@example.com", "a.b+c@x": "a.b+c@x", "": "", "alice": "", "@x": "", "a@": "", "a@b@c": "",
		"a b@x": "", "a@x..y": "", "a\"@x": "", "a@x/y": "", "ä@x": "", strings.Repeat("a", 300) + "@x": "",
	} {
		got, err := NormalLogin(login)
		if got != want || (err == nil) != (want != "") || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%.20q: %q, %v", login, got, err)
		}
	}
}

func TestCommandsRefuse(t *testing.T) {
	hour := begin.Add(time.Hour)
	for _, c := range []struct {
		cmd  Command
		want error
	}{
		{CreateUser{"ALICE@example.com"}, ErrExists},
		{CreateUser{"x"}, ErrInvalid},
		{CreateKey{ID: "n", Hash: secret("n"), Login: "carol@example.com", Expires: hour}, ErrNotFound},
		{CreateKey{ID: "n", Hash: secret("n"), Expires: hour}, ErrInvalid},
		{CreateKey{ID: "n", Hash: secret("n"), Login: "alice@example.com", Tags: []ident.Tag{"tag:x"}, Expires: hour}, ErrInvalid},
		{CreateKey{ID: "n", Hash: secret("n"), Tags: []ident.Tag{"x"}, Expires: hour}, ErrInvalid},
		{CreateKey{ID: "n", Hash: secret("n"), Login: "alice@example.com", Expires: begin}, ErrInvalid},
		{CreateKey{ID: "n", Hash: secret("n"), Login: "alice@example.com", Expires: begin.Add(MaxKeyLifetime + time.Second)}, ErrInvalid},
		{CreateKey{ID: "", Hash: secret("n"), Login: "alice@example.com", Expires: hour}, ErrInvalid},
		{CreateKey{ID: "n", Login: "alice@example.com", Expires: hour}, ErrInvalid},
		{CreateKey{ID: "once", Hash: secret("n"), Login: "alice@example.com", Expires: hour}, ErrExists},
		{SuspendUser{"carol@example.com"}, ErrNotFound},
		{ResumeUser{"x"}, ErrNotFound},
		{SetTags{Node: 7, Tags: []ident.Tag{"tag:a"}}, ErrNotFound},
		{SetTags{Node: 1}, ErrInvalid},
		{SetTags{Node: 1, Tags: []ident.Tag{"tag:a", "db"}}, ErrInvalid},
		{SetTags{Node: 1, Tags: manyTags(maxTags + 1)}, ErrInvalid},
		{RevokeKey{"none"}, ErrNotFound},
		{RevokeDevice{Node: 7}, ErrNotFound},
		{Logout{7}, ErrNotFound},
		{RotateNodeKey{Node: 7, NodeKey: ident.NodeKey{1}}, ErrNotFound},
		{RotateNodeKey{Node: 1, NodeKey: ident.NodeKey{}}, ErrInvalid},
		{RotateNodeKey{Node: 1, NodeKey: ident.NodeKey{2, 2}}, ErrKeyInUse},
		{RotateNodeKey{Node: 1, NodeKey: ident.NodeKey{3, 2}}, ErrRevoked},
		{SetPolicy{Text: "{}", If: 4}, ErrConflict},
		{SetCandidate{Text: "{}", If: 4}, ErrConflict},
		{SetCandidate{}, ErrInvalid},
		{SetCandidate{Text: strings.Repeat(" ", MaxPolicy+1)}, ErrInvalid},
		{PromoteCandidate{}, ErrNotFound},
		{SetPolicy{Text: strings.Repeat(" ", MaxPolicy+1)}, ErrInvalid},
		{RenewCertificates{[]Certificate{{Node: 1, Serial: 2, Signed: []byte{1}}}}, ErrConflict},
		{RenewCertificates{[]Certificate{{Node: 9, Serial: 1, Signed: []byte{1}}}}, ErrNotFound},
	} {
		s := world(t, whole)
		for n := range byte(3) {
			mustRun(t, s, register(n+1, "many"), begin)
		}
		mustRun(t, s, RevokeDevice{Node: 3}, begin)
		mustRun(t, s, SetPolicy{Text: "{}"}, begin)
		if _, err := run(t, s, c.cmd, begin); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", c.cmd, err, c.want)
		}
	}
}

func TestPolicyEpochs(t *testing.T) {
	s := world(t, whole)
	for i, text := range []string{"{}", `{"acls": []}`, "{}"} {
		if p := mustRun(t, s, SetPolicy{Text: text}, begin).Policy; int(p.Epoch) != i+1 || s.Policy().Text != text {
			t.Errorf("%+v", p)
		}
	}
	mustRun(t, s, SetPolicy{Text: "{}"}, begin) // no change
	mustRun(t, s, SetPolicy{Text: "[]", If: 3}, begin)
	if s.Policy().Epoch != 4 {
		t.Errorf("epoch %d", s.Policy().Epoch)
	}
}

func TestEphemeralDevicesVanish(t *testing.T) {
	s := world(t, whole)
	mustRun(t, s, register(1, "many"), begin)
	mustRun(t, s, register(2, "db"), begin)
	mustRun(t, s, register(3, "db"), begin)
	offline := map[ident.NodeID]time.Time{1: begin.Add(-24 * time.Hour), 2: begin, 9: begin}
	mustRun(t, s, RemoveExpired{offline}, begin.Add(EphemeralGrace-time.Millisecond))
	if len(s.Devices()) != 3 {
		t.Fatalf("%d devices before the time", len(s.Devices()))
	}
	r := mustRun(t, s, RemoveExpired{offline}, begin.Add(EphemeralGrace))
	if s.Device(2) != nil || len(s.Devices()) != 2 || !slices.Equal(r.Revoked, []ident.NodeKey{{2, 2}}) {
		t.Fatalf("%+v", r)
	}
	if _, err := run(t, s, register(2, "db"), begin); err != nil {
		t.Errorf("it may not come back: %v", err)
	}
}

// TestAddresses fills a range of 14 addresses, and checks that one that became
// free is given last.
func TestAddresses(t *testing.T) {
	s := world(t, small)
	for n := range byte(14) {
		mustRun(t, s, register(n+1, "many"), begin)
	}
	if _, err := run(t, s, register(99, "many"), begin); !errors.Is(err, ErrFull) {
		t.Fatalf("a 15th address: %v", err)
	}
	freed := s.Device(4).IPv4
	mustRun(t, s, Logout{4}, begin)
	if d := mustRun(t, s, register(99, "many"), begin).Device; d.IPv4 != freed {
		t.Errorf("%v, want the one that is free, %v", d.IPv4, freed)
	}

	s = world(t, whole)
	mustRun(t, s, register(1, "many"), begin)
	mustRun(t, s, Logout{1}, begin)
	if d := mustRun(t, s, register(2, "many"), begin).Device; d.IPv4 != netip.MustParseAddr("100.64.0.2") {
		t.Errorf("the address of the device that just left is given again: %v", d.IPv4)
	}
	for _, r := range reserved4 {
		for a := r.Addr(); r.Contains(a); a = a.Next() {
			if !isReserved(a) {
				t.Fatal(a)
			}
		}
	}
	s.counters.Host = (100-64)<<16 | 99<<8 | 255 // 100.100.99.255
	if d := mustRun(t, s, register(3, "many"), begin).Device; d.IPv4 != netip.MustParseAddr("100.100.101.0") {
		t.Errorf("after 100.100.99.255 comes %v", d.IPv4)
	}
}

// TestDeletesTouchOnlyTheirOwn counts the rows that each end takes.
func TestDeletesTouchOnlyTheirOwn(t *testing.T) {
	for _, cmd := range []Command{Logout{2}, RevokeDevice{Node: 2}, RevokeKey{"many"}} {
		s := world(t, whole)
		for n := range byte(4) {
			mustRun(t, s, register(n+1, []string{"many", "db"}[n%2]), begin)
		}
		before := s.Export()
		mustRun(t, s, cmd, begin)
		after := s.Export()
		if len(after.Users) != len(before.Users) || len(after.Keys) != len(before.Keys) {
			t.Errorf("%T took users or keys", cmd)
		}
		if _, isKey := cmd.(RevokeKey); isKey {
			if !reflect.DeepEqual(after.Devices, before.Devices) {
				t.Errorf("%T touched devices", cmd)
			}
			continue
		}
		want := slices.DeleteFunc(slices.Clone(before.Devices), func(d Device) bool { return d.ID == 2 })
		if !reflect.DeepEqual(after.Devices, want) {
			t.Errorf("%T left %v", cmd, after.Devices)
		}
	}
}

// TestRandomCommands runs random commands and relies on run's checks.
func TestRandomCommands(t *testing.T) {
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 0))
		s := world(t, small)
		now := begin
		for range 300 {
			now = now.Add(time.Duration(r.IntN(60)) * time.Second)
			var cmd Command
			switch n := byte(r.IntN(20)); r.IntN(11) {
			case 0, 1:
				c := register(n, []string{"once", "many", "bobs", "db"}[r.IntN(4)])
				c.NodeKey = ident.NodeKey{byte(r.IntN(20)), 2}
				c.Hostname = fmt.Sprint("h", r.IntN(3))
				cmd = c
			case 2:
				cmd = RotateNodeKey{Node: ident.NodeID(n), NodeKey: ident.NodeKey{byte(r.IntN(20)), 2}}
			case 3:
				cmd = RevokeDevice{Node: ident.NodeID(n), KeepKey: r.IntN(4) > 0}
				if r.IntN(4) > 0 {
					cmd = Logout{ident.NodeID(n)}
				}
			case 4:
				cmd = RemoveExpired{map[ident.NodeID]time.Time{ident.NodeID(n): now.Add(-time.Duration(r.IntN(60)) * time.Minute)}}
			case 5:
				cmd = SetPolicy{Text: fmt.Sprint(r.IntN(3))}
			case 6:
				cmd = CreateKey{ID: fmt.Sprint("k", r.IntN(50)), Hash: secret("x"), Tags: []ident.Tag{"tag:db"}, Expires: now.Add(time.Hour)}
			case 7:
				var certs []Certificate
				for i, d := range s.Devices() {
					certs = append(certs, Certificate{Node: d.ID, Serial: s.Counters().Serial + 1 + uint64(i), Signed: []byte{1}})
				}
				cmd = RenewCertificates{certs}
			case 8:
				cmd = ResumeUser{"alice@example.com"}
				if r.IntN(3) == 0 {
					cmd = SuspendUser{"alice@example.com"}
				}
			case 10:
				cmd = []Command{SetCandidate{Text: fmt.Sprint(r.IntN(3))}, ClearCandidate{}, PromoteCandidate{}}[r.IntN(3)]
			case 9:
				cmd = SetTags{Node: ident.NodeID(n), Tags: manyTags(r.IntN(4))}
			}
			run(t, s, cmd, now)
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
	}
}
