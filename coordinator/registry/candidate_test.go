package registry

import (
	"errors"
	"testing"

	"github.com/warren-overlay/warren/coordinator/audit"
)

// TestCandidate follows a document from audit to force: the two epochs are
// counted apart, and none goes back.
func TestCandidate(t *testing.T) {
	s := world(t, whole)
	mustRun(t, s, SetPolicy{Text: "one"}, begin)
	if s.Candidate() != nil {
		t.Errorf("before any: %+v", s.Candidate())
	}
	if changes, _, err := Decide(s, "test", ClearCandidate{}, begin); err != nil || !changes.Empty() {
		t.Errorf("clearing nothing: %+v, %v", changes, err)
	}
	c := mustRun(t, s, SetCandidate{Text: "two"}, begin).Candidate
	if c.Epoch != 1 || c.Text != "two" || s.Policy().Epoch != 1 || s.Policy().Text != "one" {
		t.Errorf("%+v beside %+v", c, s.Policy())
	}
	if changes, r, err := Decide(s, "test", SetCandidate{Text: "two"}, begin); err != nil || !changes.Empty() || r.Candidate.Epoch != 1 {
		t.Errorf("the same again: %+v, %v", changes, err)
	}
	if c = mustRun(t, s, SetCandidate{Text: "three", If: 1}, begin).Candidate; c.Epoch != 2 {
		t.Errorf("%+v", c)
	}
	for _, cmd := range []Command{SetCandidate{Text: "four", If: 1}, PromoteCandidate{If: 1}} {
		if _, err := run(t, s, cmd, begin); !errors.Is(err, ErrConflict) {
			t.Errorf("%T for an older candidate: %v", cmd, err)
		}
	}
	if was := mustRun(t, s, ClearCandidate{}, begin).Candidate; was.Text != "three" || s.Candidate() != nil {
		t.Errorf("cleared %+v, left %+v", was, s.Candidate())
	}
	if c = mustRun(t, s, SetCandidate{Text: "three"}, begin).Candidate; c.Epoch != 4 {
		t.Errorf("a candidate after none: %+v", c)
	}
	changes, _, err := Decide(s, "admin", PromoteCandidate{If: 4}, begin)
	if err != nil || changes.Policy.Text != "three" || changes.Candidate.Text != "" || changes.Audit.Action != "policy.audit.promote" {
		t.Fatalf("%+v, %v", changes, err)
	}
	for _, d := range []audit.Detail{{Key: "epoch", Value: "2"}, {Key: "candidate epoch", Value: "4"}, {Key: "sha256", Value: digest("three")}} {
		found := false
		for _, has := range changes.Audit.Details {
			found = found || has == d
		}
		if !found {
			t.Errorf("the audit entry does not say %+v: %+v", d, changes.Audit.Details)
		}
	}
	if p := mustRun(t, s, PromoteCandidate{If: 4}, begin).Policy; p.Epoch != 2 || p.Text != "three" || s.Candidate() != nil || s.Policy().Text != "three" {
		t.Errorf("promoted %+v, left %+v", p, s.Candidate())
	}
	if c = mustRun(t, s, SetCandidate{Text: "five"}, begin).Candidate; c.Epoch != 6 {
		t.Errorf("a candidate after a promotion: %+v", c)
	}
	// Another policy leaves it in audit.
	mustRun(t, s, SetPolicy{Text: "six"}, begin)
	if c := s.Candidate(); c == nil || c.Text != "five" || c.Epoch != 6 {
		t.Errorf("after another policy: %+v", c)
	}
}
