package statefile_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/warren-overlay/warren/client/statefile"
)

// TestFlowsAreTakenOnce: what was saved comes back whole, once, and what is
// damaged does not come back at all.
func TestFlowsAreTakenOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d := open(t, path)
	if got, err := d.TakeFlows(); got != nil || err != nil {
		t.Errorf("an empty directory has flows: %x, %v", got, err)
	}
	want := []byte{0, 1, 2, 0xff}
	file := filepath.Join(path, "flows.json")
	must(t, d.SaveFlows(want))
	info, err := os.Stat(file)
	must(t, err)
	if info.Mode().Perm() != 0o600 && os.PathSeparator == '/' {
		t.Errorf("mode %v", info.Mode())
	}
	if got, err := d.TakeFlows(); !bytes.Equal(got, want) || err != nil {
		t.Errorf("took %x, %v", got, err)
	}
	if got, err := d.TakeFlows(); got != nil || err != nil {
		t.Errorf("taken twice: %x, %v", got, err)
	}

	must(t, d.SaveFlows(want))
	good, err := os.ReadFile(file)
	must(t, err)
	for name, b := range map[string][]byte{
		"cut off": good[:len(good)/2], "empty": {}, "another version": bytes.Replace(good, []byte(`"version":1`), []byte(`"version":2`), 1),
		"another content": bytes.Replace(good, []byte(`"AAEC/w=="`), []byte(`"AAEC/g=="`), 1),
	} {
		if bytes.Equal(b, good) {
			t.Fatalf("%s: not changed: %s", name, good)
		}
		must(t, os.WriteFile(file, b, 0o600))
		if got, err := d.TakeFlows(); got != nil || !errors.Is(err, statefile.ErrCorrupt) {
			t.Errorf("%s: took %x, %v", name, got, err)
		}
		if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: it is still there: %v", name, err)
		}
	}
	must(t, d.SaveFlows(want))
	must(t, d.Forget())
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("not forgotten: %v", err)
	}
}
