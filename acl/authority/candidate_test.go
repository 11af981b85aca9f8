package authority_test

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/canonical"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// sshFrom admits tcp:22 from who has the label.
func sshFrom(epoch ruleset.Epoch, label ident.Label) *ruleset.RuleSet {
	return &ruleset.RuleSet{Epoch: epoch, In: []ruleset.Rule{{
		ID: "ssh", Peers: []ruleset.Selector{{Labels: ident.NewLabelSet(label)}},
		Services: []ruleset.Service{{Protocol: packet.TCP, First: 22, Last: 22}},
	}}}
}

func TestCandidate(t *testing.T) {
	n := acltest.NewNetwork(1, start)
	self := n.NodeKey().Public()
	a := n.Authority(self)
	ours, err := a.AdmitSelf(n.Issue(n.Certificate(1, self, "me", 5)), start)
	if err != nil {
		t.Fatal(err)
	}
	admit := func(node ident.NodeID, labels ...ident.Label) *authority.Peer {
		t.Helper()
		p, err := a.Admit(n.Issue(n.Certificate(node, n.NodeKey().Public(), "peer", labels...)), start)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	member, stranger, unknown := admit(2, 7), admit(3, 9), admit(4, 9)
	// The candidate knows 2 and 3 by other labels than their certificates have.
	signed := n.IssueCandidate(1, sshFrom(4, 9), authority.Labels{Node: 1}, authority.Labels{Node: 2, Labels: ident.NewLabelSet(9, 10)}, authority.Labels{Node: 3})
	c, err := a.AdmitCandidate(signed, 1)
	if err != nil || c.Epoch() != 4 || c.Node() != 1 {
		t.Fatalf("%+v, %v", c, err)
	}
	for _, test := range []struct {
		peer *authority.Peer
		want bool
	}{{member, true}, {stranger, false}} {
		flow := ruleset.Flow{
			Source: test.peer.Identity().Addresses[0], Destination: ours.Identity().Addresses[0], Protocol: packet.TCP, Port: 22,
		}
		rules := c.ForPeer(ours.Identity(), test.peer.Identity())
		if v := rules.Decide(ruleset.In, flow, start); v.Allowed != test.want || rules.Epoch() != 4 {
			t.Errorf("%v: %+v at epoch %d", test.peer.Node(), v, rules.Epoch())
		}
	}
	if rules := c.ForPeer(ours.Identity(), unknown.Identity()); rules != nil {
		t.Errorf("of a device that the candidate does not know: %+v", rules)
	}
	if labels := member.Identity().Labels; !labels.Equal(ident.NewLabelSet(7)) {
		t.Errorf("the peer's own labels are %v now", labels)
	}
}

// TestCandidateIsNoRules hands each in for the other, and takes candidates back
// in time.
func TestCandidateIsNoRules(t *testing.T) {
	n, foreign := acltest.NewNetwork(1, start), acltest.NewNetwork(2, start)
	a := n.Authority(n.NodeKey().Public())
	candidate := n.IssueCandidate(1, sshFrom(9, 1), authority.Labels{Node: 1})
	rules := n.IssueRules(1, sshFrom(3, 1))
	if _, err := a.AdmitRules(candidate, 1); !errors.Is(err, authority.ErrSignature) {
		t.Errorf("a candidate as what is enforced: %v", err)
	}
	if _, err := a.AdmitCandidate(rules, 1); !errors.Is(err, authority.ErrSignature) {
		t.Errorf("rules as a candidate: %v", err)
	}
	if !reflect.DeepEqual(a.State(), n.Authority(n.NodeKey().Public()).State()) {
		t.Errorf("refusing has changed what is remembered: %+v", a.State())
	}
	if _, err := a.AdmitRules(rules, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := a.AdmitCandidate(candidate, 1); err != nil {
		t.Fatal(err)
	}
	// Each counts its own epochs.
	if s := a.State(); s.Epoch != 3 || s.Candidate != 9 {
		t.Errorf("remembered %+v", s)
	}
	roleless := n.Genesis
	signers := roleless.Signers
	roleless.Signers = []authority.Signer{{Key: n.Signer.Public(), Roles: authority.SignDevices}}
	if _, err := authority.IssueCandidate(roleless, 1, sshFrom(9, 1), nil, n.Signer); !errors.Is(err, authority.ErrSigner) {
		t.Errorf("signed without the role: %v", err)
	}
	roleless.Signers = signers
	record := func(node, epoch uint64, set []byte, labels ...uint64) []byte {
		b := canonical.AppendUint(canonical.AppendArray(nil, 5), 1)
		b = canonical.AppendBytes(canonical.AppendUint(canonical.AppendUint(b, node), epoch), set)
		b = canonical.AppendArray(b, len(labels))
		for _, node := range labels {
			b = canonical.AppendUint(canonical.AppendArray(canonical.AppendUint(canonical.AppendArray(b, 2), node), 1), 5)
		}
		return authority.ForgeCandidate(n.Genesis, b, n.Signer)
	}
	set := sshFrom(9, 1).AppendBinary(nil)
	if _, err := a.AdmitCandidate(record(1, 9, set, 1, 2), 1); err != nil {
		t.Fatalf("the record that the others are made of: %v", err)
	}
	for _, c := range []struct {
		name   string
		signed []byte
		want   error
	}{
		{"of another network", foreign.IssueCandidate(1, sshFrom(9, 1)), authority.ErrSigner},
		{"for another device", n.IssueCandidate(2, sshFrom(9, 1)), authority.ErrNotOurs},
		{"of an earlier epoch", n.IssueCandidate(1, sshFrom(8, 1)), authority.ErrRollback},
		{"of no epoch", n.IssueCandidate(1, sshFrom(0, 1)), authority.ErrMalformed},
		{"of two epochs", record(1, 10, set), authority.ErrMalformed},
		{"without rules", record(1, 9, nil), authority.ErrMalformed},
		{"a device twice", record(1, 9, set, 2, 2), authority.ErrMalformed},
		{"devices out of order", record(1, 9, set, 3, 2), authority.ErrMalformed},
		{"no device", record(1, 9, set, 0), authority.ErrMalformed},
		{"nothing", nil, authority.ErrMalformed},
		{"cut off", candidate[:len(candidate)-1], authority.ErrMalformed},
		{"a bit changed", append(bytes.Clone(candidate[:len(candidate)-1]), candidate[len(candidate)-1]^1), authority.ErrSignature},
	} {
		before := a.State()
		if got, err := a.AdmitCandidate(c.signed, 1); got != nil || !errors.Is(err, c.want) || !reflect.DeepEqual(before, a.State()) {
			t.Errorf("%s: %+v, %v, want %v", c.name, got, err, c.want)
		}
	}
	for name, labels := range map[string][]authority.Labels{
		"devices out of order": {{Node: 2}, {Node: 1}},
		"a device twice":       {{Node: 2}, {Node: 2}},
		"too many labels":      {{Node: 1, Labels: ident.NewLabelSet(manyLabels(authority.MaxLabels + 1)...)}},
	} {
		if _, err := authority.IssueCandidate(n.Genesis, 1, sshFrom(9, 1), labels, n.Signer); !errors.Is(err, authority.ErrOutOfBounds) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := authority.IssueCandidate(n.Genesis, 1, sshFrom(9, 1), []authority.Labels{{Node: 1, Labels: ident.NewLabelSet(manyLabels(authority.MaxLabels)...)}}, n.Signer); err != nil {
		t.Errorf("as many labels as there may be: %v", err)
	}
	// A restart remembers.
	again, err := authority.New(n.Genesis, ident.NodeKey{}, a.State())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.AdmitCandidate(n.IssueCandidate(1, sshFrom(8, 1)), 1); !errors.Is(err, authority.ErrRollback) {
		t.Errorf("an earlier epoch after a restart: %v", err)
	}
}

func manyLabels(n int) (out []ident.Label) {
	for l := range n {
		out = append(out, ident.Label(l+1))
	}
	return out
}
