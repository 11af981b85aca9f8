package statefile_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/client/control"
	"github.com/warren-overlay/warren/client/statefile"
)

func open(t *testing.T, path string) *statefile.Directory {
	t.Helper()
	d, err := statefile.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d := open(t, path)
	if _, ok, err := d.LoadKeys(); ok || err != nil {
		t.Errorf("an empty directory has keys: %v, %v", ok, err)
	}
	if got, err := d.LoadMembership(); !errors.Is(err, statefile.ErrForgotten) || !reflect.DeepEqual(got, control.Saved{}) {
		t.Errorf("an empty directory has a membership: %+v, %v", got, err)
	}
	keys, err := statefile.NewKeys(rand.NewChaCha8([32]byte{1}))
	must(t, err)
	preferences := statefile.Preferences{LoginServer: "http://c:8080", Network: ident.Fingerprint{1}, Hostname: "h", WantRunning: true}
	saved := control.Saved{
		Genesis: []byte("g"), Map: []byte("m"), Revoked: true,
		Authority: authority.State{Epoch: 4, Rules: 5, Devices: map[ident.NodeID]authority.Seen{3: {Serial: 9, NotAfter: time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)}}},
	}
	must(t, d.SaveKeys(keys))
	must(t, d.SavePreferences(preferences))
	must(t, d.SaveMembership(saved))
	must(t, d.Close())

	d = open(t, path)
	gotKeys, ok, err := d.LoadKeys()
	if err != nil || !ok || gotKeys.Machine.Public() != keys.Machine.Public() || gotKeys.Node.Public() != keys.Node.Public() {
		t.Errorf("keys: %v, %v", ok, err)
	}
	if got, err := d.LoadPreferences(); err != nil || !got.Equal(&preferences) {
		t.Errorf("preferences %+v, %v", got, err)
	}
	if got, err := d.LoadMembership(); err != nil || !reflect.DeepEqual(got, saved) {
		t.Errorf("membership %+v, %v", got, err)
	}
	must(t, d.Forget())
	if entries, _ := os.ReadDir(path); len(entries) != 1 || entries[0].Name() != "lock" {
		t.Errorf("after Forget: %v", entries)
	}
}

// TestModes is X-46: who else may read the state, may not be.
func TestModes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d := open(t, path)
	keys, err := statefile.NewKeys(rand.NewChaCha8([32]byte{1}))
	must(t, err)
	must(t, d.SaveKeys(keys))
	must(t, d.SavePreferences(statefile.Preferences{}))
	must(t, d.SaveMembership(control.Saved{}))
	for name, want := range map[string]os.FileMode{".": 0o700, "keys.json": 0o600, "preferences.json": 0o600, "membership.json": 0o600, "memory.json": 0o600, "lock": 0o600} {
		info, err := os.Stat(filepath.Join(path, name))
		must(t, err)
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %04o, want %04o", name, info.Mode().Perm(), want)
		}
	}
	must(t, d.Close())
	for name, change := range map[string]func() error{
		"directory for the group":  func() error { return os.Chmod(path, 0o750) },
		"directory for others":     func() error { return os.Chmod(path, 0o701) },
		"keys for others":          func() error { return os.Chmod(filepath.Join(path, "keys.json"), 0o604) },
		"keys for the group":       func() error { return os.Chmod(filepath.Join(path, "keys.json"), 0o640) },
		"membership for others":    func() error { return os.Chmod(filepath.Join(path, "membership.json"), 0o644) },
		"memory for others":        func() error { return os.Chmod(filepath.Join(path, "memory.json"), 0o604) },
		"preferences for everyone": func() error { return os.Chmod(filepath.Join(path, "preferences.json"), 0o666) },
	} {
		must(t, change())
		if d, err := statefile.Open(path); !errors.Is(err, statefile.ErrPermissions) {
			t.Errorf("%s: %v, want ErrPermissions", name, err)
			if d != nil {
				d.Close()
			}
		}
		must(t, os.Chmod(path, 0o700))
		for _, file := range []string{"keys.json", "preferences.json", "membership.json", "memory.json"} {
			must(t, os.Chmod(filepath.Join(path, file), 0o600))
		}
	}
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(path, link))
	if _, err := statefile.Open(link); !errors.Is(err, statefile.ErrPermissions) {
		t.Errorf("a link: %v, want ErrPermissions", err)
	}
	open(t, path)
}

func TestOneProcess(t *testing.T) {
	path := t.TempDir()
	must(t, os.Chmod(path, 0o700))
	d := open(t, path)
	if _, err := statefile.Open(path); !errors.Is(err, statefile.ErrLocked) {
		t.Errorf("a second Open: %v, want ErrLocked", err)
	}
	must(t, d.Close())
	open(t, path)
}

// TestDamage: every cut and every flipped bit of a file is found, or changes
// nothing.
func TestDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d := open(t, path)
	keys, err := statefile.NewKeys(rand.NewChaCha8([32]byte{1}))
	must(t, err)
	saved := control.Saved{Genesis: []byte("genesis"), Map: []byte("map"), Authority: authority.State{Epoch: 4}}
	must(t, d.SaveKeys(keys))
	must(t, d.SaveMembership(saved))
	file := filepath.Join(path, "membership.json")
	good, err := os.ReadFile(file)
	must(t, err)
	damaged := func(b []byte, what string, i int) {
		must(t, os.WriteFile(file, b, 0o600))
		got, err := d.LoadMembership()
		if err == nil && !reflect.DeepEqual(got, saved) {
			t.Errorf("%s at %d gives %+v", what, i, got)
		}
		if !reflect.DeepEqual(got.Authority, saved.Authority) {
			t.Errorf("%s at %d loses what was remembered: %+v", what, i, got.Authority)
		}
		if err != nil && !errors.Is(err, statefile.ErrCorrupt) {
			t.Errorf("%s at %d: %v", what, i, err)
		}
	}
	for i := range good {
		damaged(good[:i], "cut", i)
		flipped := bytes.Clone(good)
		flipped[i] ^= 1
		damaged(flipped, "flip", i)
	}
	must(t, os.WriteFile(file, nil, 0o600))
	if _, err := d.LoadMembership(); !errors.Is(err, statefile.ErrCorrupt) {
		t.Errorf("an empty file: %v", err)
	}
	keyFile := filepath.Join(path, "keys.json")
	good, err = os.ReadFile(keyFile)
	must(t, err)
	for i := range good {
		must(t, os.WriteFile(keyFile, good[:i], 0o600))
		if _, ok, err := d.LoadKeys(); i < len(good)-1 && (ok || !errors.Is(err, statefile.ErrCorrupt)) {
			t.Errorf("keys cut at %d: %v, %v", i, ok, err)
		}
	}
}

// TestMemory: what protects from the past is there as long as one of the two
// files is whole, and its loss is told.
func TestMemory(t *testing.T) {
	saved := control.Saved{
		Genesis: []byte("genesis"), Map: []byte("map"), Authority: authority.State{Epoch: 4, Rules: 7},
		Time: time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC),
	}
	remembered := control.Saved{Authority: saved.Authority, Time: saved.Time}
	const absent, damaged, whole = "absent", "damaged", "whole"
	for _, c := range []struct {
		membership, memory string
		want               control.Saved
		err                error
	}{
		{whole, whole, saved, nil},
		{whole, absent, saved, nil},
		{whole, damaged, saved, nil},
		{absent, whole, remembered, nil},
		{damaged, whole, remembered, statefile.ErrCorrupt},
		{absent, absent, control.Saved{}, statefile.ErrForgotten},
		{absent, damaged, control.Saved{}, statefile.ErrForgotten},
		{damaged, absent, control.Saved{}, statefile.ErrForgotten},
		{damaged, damaged, control.Saved{}, statefile.ErrForgotten},
	} {
		t.Run(c.membership+" membership, "+c.memory+" memory", func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			d := open(t, path)
			must(t, d.SaveMembership(saved))
			for name, how := range map[string]string{"membership.json": c.membership, "memory.json": c.memory} {
				switch how {
				case absent:
					must(t, os.Remove(filepath.Join(path, name)))
				case damaged:
					must(t, os.WriteFile(filepath.Join(path, name), []byte(`{"version":1}`), 0o600))
				}
			}
			got, err := d.LoadMembership()
			if !errors.Is(err, c.err) || !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v, %v, want %+v, %v", got, err, c.want, c.err)
			}
		})
	}
}

// TestCrash: a file that was being written is gone after the next start, and
// the old one is there.
func TestCrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d := open(t, path)
	want := statefile.Preferences{Hostname: "old"}
	must(t, d.SavePreferences(want))
	must(t, d.Close())
	must(t, os.WriteFile(filepath.Join(path, "preferences.json.new"), []byte(`{"version":1,"pref`), 0o600))
	d = open(t, path)
	if got, err := d.LoadPreferences(); err != nil || !got.Equal(&want) {
		t.Errorf("preferences %+v, %v", got, err)
	}
	if _, err := os.Stat(filepath.Join(path, "preferences.json.new")); !os.IsNotExist(err) {
		t.Errorf("the unfinished file is still there: %v", err)
	}
}
