package netmap

import (
	"bytes"
	"errors"
	"testing"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/coordinator/registry"
)

// TestRulesOfBeforeAreOlder: rules that changed without a new policy have a
// higher serial, so that nobody can give the former ones back to a device; what
// did not change is signed as before, after a restart too.
func TestRulesOfBeforeAreOlder(t *testing.T) {
	o := newOrg(t)
	o.mustRun(registry.SetPolicy{Text: `{"tagOwners": {"tag:web": []}, "acls": [
		{"action": "accept", "src": ["*"], "dst": ["alice@example.com:22"]},
		{"action": "accept", "src": ["*"], "dst": ["tag:web:443"]},
	]}`})
	d := o.register(1, "ali")
	former, err := o.net.Map(d.ID)
	if err != nil {
		t.Fatal(err)
	}
	o.restart()
	if again, err := o.net.Map(d.ID); err != nil || !bytes.Equal(again.Rules, former.Rules) {
		t.Errorf("after a restart the same rules are signed anew: %v", err)
	}
	// The device joins anew and is a tagged one from now on.
	o.mustRun(registry.RegisterDevice{
		Machine: d.Machine, NodeKey: d.NodeKey, Key: "web", Secret: hash("web"), Hostname: "x",
	})
	present, err := o.net.Map(d.ID)
	if err != nil {
		t.Fatal(err)
	}
	a, err := authority.New(o.cfg.Genesis, d.NodeKey, authority.State{})
	if err != nil {
		t.Fatal(err)
	}
	before, err := a.AdmitRules(former.Rules, d.ID)
	if err != nil {
		t.Fatal(err)
	}
	after, err := a.AdmitRules(present.Rules, d.ID)
	if err != nil {
		t.Fatal(err)
	}
	if before.Set().Epoch != after.Set().Epoch || after.Serial() <= before.Serial() {
		t.Errorf("epoch and serial %d, %d after %d, %d", after.Set().Epoch, after.Serial(), before.Set().Epoch, before.Serial())
	}
	if _, err := a.AdmitRules(former.Rules, d.ID); !errors.Is(err, authority.ErrRollback) {
		t.Errorf("the former rules: %v, want ErrRollback", err)
	}
}
