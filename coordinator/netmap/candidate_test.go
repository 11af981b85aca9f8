package netmap

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/coordinator/registry"
)

// outlook is what a node makes of its map: whether by the candidate it may open
// a TCP port of a peer, and whether it may by its rules.
func (o *org) outlook(from, to ident.NodeID, port uint16) (candidate, rules, known bool) {
	o.t.Helper()
	m := o.nodes[from]
	a, err := authority.New(o.cfg.Genesis, o.state.Device(from).NodeKey, authority.State{})
	if err != nil {
		o.t.Fatal(err)
	}
	self, err := a.AdmitSelf(m.Self, o.now)
	if err != nil {
		o.t.Fatal(err)
	}
	peer, err := a.Admit(m.Peers[to].Certificate, o.now)
	if err != nil {
		o.t.Fatal(err)
	}
	enforced, err := a.AdmitRules(m.Rules, from)
	if err != nil {
		o.t.Fatal(err)
	}
	flow := ruleset.Flow{Source: self.Identity().Addresses[0], Destination: peer.Identity().Addresses[0], Protocol: packet.TCP, Port: port}
	rules = enforced.Set().ForPeer(self.Identity(), peer.Identity()).Decide(ruleset.Out, flow, o.now).Allowed
	if m.Candidate == nil {
		return false, rules, false
	}
	c, err := a.AdmitCandidate(m.Candidate, from)
	if err != nil {
		o.t.Fatal(err)
	}
	narrowed := c.ForPeer(self.Identity(), peer.Identity())
	if narrowed == nil {
		return false, rules, false
	}
	return narrowed.Decide(ruleset.Out, flow, o.now).Allowed, rules, true
}

// TestCandidateIsToldBesideTheRules has a candidate with another group of the
// same name, a rule more and one less, and looks with the eyes of the nodes.
func TestCandidateIsToldBesideTheRules(t *testing.T) {
	o := newOrg(t)
	alice, bob, carol, db := o.register(1, "ali"), o.register(2, "bob"), o.register(3, "car"), o.register(4, "db")
	o.mustRun(registry.SetPolicy{Text: `{
		"groups": {"group:eng": ["alice@example.com", "bob@example.com"]}, "tagOwners": {"tag:db": []},
		"acls": [{"action": "accept", "src": ["group:eng"], "dst": ["tag:db:5432"]}]}`})
	devices := []*registry.Device{alice, bob, carol, db}
	for _, d := range devices {
		o.connect(d.ID)
	}
	saw := map[ident.NodeID][]ident.NodeID{}
	self := map[ident.NodeID]string{}
	for _, d := range devices {
		saw[d.ID], self[d.ID] = o.sees(d.ID), string(o.nodes[d.ID].Self)
	}
	o.mustRun(registry.SetCandidate{Text: `{
		"groups": {"group:eng": ["bob@example.com", "carol@example.com"], "group:ops": ["alice@example.com"]}, "tagOwners": {"tag:db": []},
		"acls": [
			{"action": "accept", "src": ["group:eng"], "dst": ["tag:db:5432", "tag:db:22"]},
			{"action": "accept", "src": ["group:ops"], "dst": ["tag:db:9100"]}]}`})
	o.check()
	for _, d := range devices {
		if got := o.sees(d.ID); !slices.Equal(got, saw[d.ID]) {
			t.Errorf("%s sees %v by a candidate, before %v", d.Name, got, saw[d.ID])
		}
		if string(o.nodes[d.ID].Self) != self[d.ID] {
			t.Errorf("%s has another certificate by a candidate", d.Name)
		}
	}
	type outlook struct{ candidate, rules, known bool }
	look := func(of *registry.Device, port uint16, want outlook) {
		t.Helper()
		candidate, rules, known := o.outlook(of.ID, db.ID, port)
		if got := (outlook{candidate, rules, known}); got != want {
			t.Errorf("%s to port %d: %+v, want %+v", of.Name, port, got, want)
		}
	}
	look(alice, 5432, outlook{false, true, true})
	look(alice, 9100, outlook{true, false, true})
	look(bob, 5432, outlook{true, true, true})
	look(bob, 22, outlook{true, false, true})
	if o.nodes[carol.ID].Candidate == nil || len(o.nodes[carol.ID].Peers) > 0 {
		t.Errorf("carol's device is told %+v", o.nodes[carol.ID])
	}
	// What a device becomes is followed, and a restart changes nothing.
	before := map[ident.NodeID]string{}
	for id, m := range maps.All(o.nodes) {
		before[id] = string(m.Candidate)
	}
	o.restart()
	for _, d := range devices {
		o.connect(d.ID)
		if string(o.nodes[d.ID].Candidate) != before[d.ID] {
			t.Errorf("%s has another candidate after a restart", d.Name)
		}
	}
	o.mustRun(registry.SetTags{Node: db.ID, Tags: []ident.Tag{"tag:db", "tag:x"}})
	o.check()
	look(bob, 22, outlook{true, false, true})
	// Promoted, it is what is enforced, and there is no candidate.
	o.mustRun(registry.PromoteCandidate{})
	o.check()
	look(alice, 5432, outlook{}) // she does not lose sight of it: 9100
	look(alice, 9100, outlook{rules: true})
	look(bob, 22, outlook{rules: true})
	if got := o.sees(db.ID); !slices.Equal(got, []ident.NodeID{alice.ID, bob.ID, carol.ID}) {
		t.Errorf("the database sees %v", got)
	}
}

// TestCandidateThatDoesNotCompileIsLeftOut restarts with a candidate that a
// program before this one took.
func TestCandidateThatDoesNotCompileIsLeftOut(t *testing.T) {
	o := newOrg(t)
	alice := o.register(1, "ali")
	o.mustRun(registry.SetCandidate{Text: `{"acls": [{"action": "accept", "src": ["group:none"], "dst": ["*:*"]}]}`})
	if err := o.net.CandidateError(); err == nil || !strings.Contains(err.Error(), "group:none") {
		t.Errorf("it compiles: %v", err)
	}
	o.restart()
	if err := o.net.CandidateError(); err == nil {
		t.Error("it compiles after a restart")
	}
	o.connect(alice.ID)
	if o.nodes[alice.ID].Candidate != nil {
		t.Error("it is told all the same")
	}
	o.mustRun(registry.ClearCandidate{})
	if err := o.net.CandidateError(); err != nil {
		t.Errorf("after it was cleared: %v", err)
	}
}
