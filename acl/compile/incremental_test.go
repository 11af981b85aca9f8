package compile_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/acl/compile"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// world is a policy under edits and what it was edited to.
type world struct {
	parts *acltest.PolicyParts
	dir   compile.Directory
	next  int // id of the next device
	most  int // devices at most
	epoch ruleset.Epoch
	doc   *policy.Document
	p     *compile.Policy
}

// scratch compiles anew.
func (w *world) scratch(t *testing.T) *compile.Policy {
	p, err := compile.Compile(w.doc, w.dir, ident.LabelKey{1}, 1)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// view is all that a device gets, in a form that compares.
type view struct {
	labels ident.LabelSet
	rules  []byte
	peers  []ident.NodeID
}

func viewOf(p *compile.Policy, id ident.NodeID) view {
	set := *p.RuleSet(id)
	set.Epoch = 0
	return view{p.Labels(id), set.AppendBinary(nil), p.Peers(id)}
}

func (v view) equal(w view) bool {
	return v.labels.Equal(w.labels) && bytes.Equal(v.rules, w.rules) && slices.Equal(v.peers, w.peers)
}

func views(p *compile.Policy) map[ident.NodeID]view {
	out := map[ident.NodeID]view{}
	for _, id := range p.Nodes() {
		out[id] = viewOf(p, id)
	}
	return out
}

// edit makes one random change and returns what it was and whom the policy
// says that it touched. exact says that nobody else may be named.
func (w *world) edit(t *testing.T, r *rand.Rand) (what string, changed []ident.NodeID, exact bool) {
	at := func() int { return r.IntN(len(w.dir.Nodes)) }
	switch k := r.IntN(10); {
	case k == 0 && len(w.dir.Nodes) < w.most:
		n := acltest.GenNode(r, w.next)
		w.next++
		w.dir.Nodes = append(w.dir.Nodes, n)
		return "join", w.p.SetNode(n), true
	case k == 1 && len(w.dir.Nodes) > 4:
		i := at()
		id := w.dir.Nodes[i].ID
		w.dir.Nodes = slices.Delete(w.dir.Nodes, i, i+1)
		return "leave", w.p.RemoveNode(id), true
	case k <= 3:
		i := at()
		n := acltest.GenNode(r, int(w.dir.Nodes[i].ID))
		switch r.IntN(3) {
		case 0: // the same identity in another state
			n.Tags, n.Owner, n.Routes = w.dir.Nodes[i].Tags, w.dir.Nodes[i].Owner, w.dir.Nodes[i].Routes
		case 1: // other routes alone
			routes := n.Routes
			n = w.dir.Nodes[i]
			n.Routes = routes
		}
		w.dir.Nodes[i] = n
		return "retag, posture or routes", w.p.SetNode(n), true
	case k == 4:
		w.dir.Users = acltest.GenUsers(r)
		return "users", w.p.SetUsers(w.dir.Users), false
	case k == 5:
		name := []string{"group:a", "group:b"}[r.IntN(2)]
		w.parts.Groups[name] = acltest.GenParts(r, 0).Groups[name]
	case k == 6:
		w.parts.Default = !w.parts.Default
		w.parts.Version = 9 + r.IntN(6)
	default:
		section, text := acltest.GenRule(r, w.next)
		w.next++
		list := &w.parts.ACLs
		if section == "grants" {
			list = &w.parts.Grants
		}
		switch n := len(*list); {
		case n == 0 || n < 6 && r.IntN(2) == 0:
			*list = slices.Insert(*list, r.IntN(n+1), text)
		case r.IntN(2) == 0:
			i := r.IntN(n)
			*list = slices.Delete(*list, i, i+1)
		default:
			(*list)[r.IntN(n)] = text
		}
	}
	w.epoch++
	w.doc = parse(t, w.parts.String())
	changed, err := w.p.SetDocument(w.doc, w.epoch)
	if err != nil {
		t.Fatal(err)
	}
	return "document", changed, false
}

// After any edit the policy is what compiling from scratch makes, and the edit
// names the devices that it touched.
func TestIncrementalEqualsFull(t *testing.T) {
	edits := 10_000
	if testing.Short() {
		edits = 2_000
	}
	const perSeed = 250
	touched, spared := 0, 0
	for seed, made := uint64(0), 0; made < edits; seed++ {
		r := rand.New(rand.NewPCG(seed, 2))
		// Now and then a network in which sets of devices are large.
		devices, perSeed := 12, perSeed
		if seed%20 == 3 {
			devices, perSeed = 200, 25
		}
		w := &world{parts: acltest.GenParts(r, 6), dir: acltest.GenDirectory(r, devices), next: 1000, most: 2 * devices, epoch: 1}
		made += perSeed
		w.doc = parse(t, w.parts.String())
		w.p = w.scratch(t)
		before := views(w.p)
		epochs := map[ident.NodeID]ruleset.Epoch{}
		for i := range perSeed {
			what, changed, exact := w.edit(t, r)
			scratch := views(w.scratch(t))
			if len(scratch) != len(w.p.Nodes()) {
				t.Fatalf("seed %d, edit %d (%s): %d devices, want %d", seed, i, what, len(w.p.Nodes()), len(scratch))
			}
			for id, want := range scratch {
				got := viewOf(w.p, id)
				if !got.equal(want) {
					t.Fatalf("seed %d, edit %d (%s): device %v is\n%+v\nfrom scratch it is\n%+v\n%s\n%v\n%v", seed, i, what, id, got, want, w.parts, w.p.RuleSet(id), w.scratch(t).RuleSet(id))
				}
				old, known := before[id]
				named := slices.Contains(changed, id)
				if differs := !known || !old.equal(want); differs != named && (differs || exact) {
					t.Fatalf("seed %d, edit %d (%s): device %v changed %v, named %v\n%+v\n%+v", seed, i, what, id, differs, named, old, want)
				}
				epoch, last := w.p.RuleSet(id).Epoch, epochs[id]
				switch changedRules := !known || !bytes.Equal(old.rules, want.rules); {
				case changedRules && epoch != w.p.Epoch(),
					!changedRules && last != 0 && epoch != last && exact,
					epoch < last:
					t.Fatalf("seed %d, edit %d (%s): device %v went from epoch %d to %d of %d, its rules changed: %v", seed, i, what, id, last, epoch, w.p.Epoch(), changedRules)
				}
				epochs[id] = epoch
				if named {
					touched++
				} else {
					spared++
				}
			}
			before = scratch
		}
	}
	t.Logf("%d devices touched, %d spared", touched, spared)
}

func TestEpochFollowsRules(t *testing.T) {
	dir := acltest.GenDirectory(rand.New(rand.NewPCG(1, 1)), 6)
	for i := range dir.Nodes {
		dir.Nodes[i].Tags, dir.Nodes[i].Owner, dir.Nodes[i].Routes = []ident.Tag{"tag:db"}, 0, nil
	}
	dir.Nodes[0].Tags = []ident.Tag{"tag:web"}
	dir.Nodes[1].Tags = []ident.Tag{"tag:router"}
	const head = `{"tagOwners": {"tag:db": [], "tag:web": [], "tag:router": []}, "acls": [
		{"action": "accept", "src": ["tag:db"], "dst": ["tag:db:1"]},
		{"action": "accept", "src": ["tag:web"], "dst": ["tag:router:%d"]}]}`
	p := build(t, fmt.Sprintf(head, 1), dir)
	changed, err := p.SetDocument(parse(t, fmt.Sprintf(head, 2)), 7)
	if err != nil {
		t.Fatal(err)
	}
	if want := []ident.NodeID{1, 2}; !slices.Equal(changed, want) {
		t.Errorf("changed %v, want %v", changed, want)
	}
	for id, want := range map[ident.NodeID]ruleset.Epoch{1: 7, 2: 7, 3: 1, 4: 1} {
		if got := p.RuleSet(id).Epoch; got != want {
			t.Errorf("device %v has epoch %d, want %d", id, got, want)
		}
	}
	// A comment, another order and a group that nobody is in touch no device.
	changed, err = p.SetDocument(parse(t, `{"tagOwners": {"tag:db": [], "tag:web": [], "tag:router": []}, "groups": {"group:x": []}, "acls": [
		{"action": "accept", "src": ["tag:web"], "dst": ["tag:router:2"]}, // moved up
		{"action": "accept", "src": ["tag:db"], "dst": ["tag:db:1"]}]}`), 8)
	if err != nil || len(changed) != 0 {
		t.Errorf("reordering changed %v, %v", changed, err)
	}
}

// A device that passes from one user to another gets rules for the other's
// devices, though the policy's rule is the same.
func TestOwnerChangesSelf(t *testing.T) {
	const text = `{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}`
	dir := office()
	p := build(t, text, dir)
	if _, err := p.SetDocument(parse(t, text), 5); err != nil {
		t.Fatal(err)
	}
	if got := p.RuleSet(1).Epoch; got != 1 {
		t.Fatalf("the same document gave epoch %d", got)
	}
	n := dir.Nodes[0]
	n.Owner = 2
	if got, want := p.SetNode(n), []ident.NodeID{1, 2, 5}; !slices.Equal(got, want) {
		t.Errorf("changed %v, want %v", got, want)
	}
	if got := p.RuleSet(1).Epoch; got != 5 {
		t.Errorf("the new rules have epoch %d, want 5", got)
	}
}

// A capability gives its source no rule, but shows it the device that has it.
func TestCapabilityAloneIsSeen(t *testing.T) {
	const text = `{"tagOwners": {"tag:db": [], "tag:router": []}, "grants": [{"src": ["tag:db"], "dst": ["tag:router"], "app": {"example.com/cap/x": [{}]}}]}`
	p := build(t, "{}", office())
	for _, c := range []struct {
		text string
		want []ident.NodeID
	}{{text, []ident.NodeID{4}}, {"{}", nil}} {
		changed, err := p.SetDocument(parse(t, c.text), 5)
		if err != nil || !slices.Equal(changed, []ident.NodeID{3, 4}) {
			t.Errorf("changed %v, %v, want the two devices", changed, err)
		}
		if got := p.Peers(3); !slices.Equal(got, c.want) {
			t.Errorf("the source sees %v, want %v", got, c.want)
		}
		if set := p.RuleSet(3); len(set.In)+len(set.Out) != 0 {
			t.Errorf("the source has rules %+v", set)
		}
	}
}
