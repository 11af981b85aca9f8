package registry

import (
	"strconv"
)

// replaceCandidate gives the next candidate its epoch; an empty text is none.
func (d *decision) replaceCandidate(text string) {
	d.changes.Candidate = &Policy{Epoch: d.state.candidate.Epoch + 1, Text: text, Set: d.now}
}

func (d *decision) setCandidate(c SetCandidate) error {
	current := d.state.candidate
	switch {
	case c.If != 0 && c.If != current.Epoch:
		return refuse(ErrConflict, "the candidate is at epoch %d, not %d; get it again", current.Epoch, c.If)
	case len(c.Text) > MaxPolicy:
		return refuse(ErrInvalid, "a candidate policy of %d bytes; at most %d are allowed", len(c.Text), MaxPolicy)
	case c.Text == "":
		return refuse(ErrInvalid, "a candidate policy without text; `policy audit clear` ends the audit")
	case c.Text == current.Text:
		d.result.Candidate = current
		return nil
	}
	d.replaceCandidate(c.Text)
	d.result.Candidate = d.changes.Candidate
	d.tell("policy.audit.set", "")
	d.detail("epoch", strconv.FormatUint(uint64(d.changes.Candidate.Epoch), 10))
	d.detail("sha256", digest(c.Text))
	d.detail("sha256 before", digest(current.Text))
	return nil
}

func (d *decision) clearCandidate() {
	current := d.state.Candidate()
	if current == nil {
		return
	}
	d.replaceCandidate("")
	d.result.Candidate = current
	d.tell("policy.audit.clear", "")
	d.detail("epoch", strconv.FormatUint(uint64(current.Epoch), 10))
	d.detail("sha256 before", digest(current.Text))
}

func (d *decision) promoteCandidate(c PromoteCandidate) error {
	candidate := d.state.Candidate()
	switch {
	case candidate == nil:
		return refuse(ErrNotFound, "there is no candidate policy; `policy audit set` puts one into audit")
	case c.If != 0 && c.If != candidate.Epoch:
		return refuse(ErrConflict, "the candidate is at epoch %d, not %d; get it again", candidate.Epoch, c.If)
	}
	current := d.state.policy
	p := Policy{Epoch: current.Epoch + 1, Text: candidate.Text, Set: d.now}
	d.changes.Policy, d.result.Policy = &p, &p
	d.replaceCandidate("")
	d.tell("policy.audit.promote", "")
	d.detail("epoch", strconv.FormatUint(uint64(p.Epoch), 10))
	d.detail("candidate epoch", strconv.FormatUint(uint64(candidate.Epoch), 10))
	d.detail("sha256", digest(p.Text))
	d.detail("sha256 before", digest(current.Text))
	return nil
}
