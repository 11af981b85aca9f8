package admin

import (
	"fmt"
	"net/http"

	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/coordinator/registry"
)

func describeCandidate(p *registry.Policy) Candidate {
	return Candidate{Epoch: uint64(p.Epoch), Set: p.Set, Text: p.Text}
}

func (h *Handler) candidate(r *http.Request) (Candidate, error) {
	return look(h, r, func(v *View) (Candidate, error) {
		p := v.State.Candidate()
		if p == nil {
			return Candidate{}, noCandidate()
		}
		c := describeCandidate(p)
		if err := v.Network.CandidateError(); err != nil {
			c.Error = err.Error()
		}
		return c, nil
	})
}

func noCandidate() error {
	return fmt.Errorf("%w: there is no candidate policy; `warren-coordinator policy audit set` puts one into audit", registry.ErrNotFound)
}

func (h *Handler) setCandidate(r *http.Request) (Candidate, error) {
	var body SetPolicy
	if err := decode(r, &body); err != nil {
		return Candidate{}, err
	}
	check, err := h.check(r, body.Text)
	if err != nil {
		return Candidate{}, err
	}
	result, err := h.execute(r, registry.SetCandidate{Text: body.Text, If: ruleset.Epoch(body.IfEpoch)})
	if err != nil {
		return Candidate{}, err
	}
	c := describeCandidate(result.Candidate)
	c.Warnings = check.Warnings
	return c, nil
}

func (h *Handler) clearCandidate(r *http.Request) (Candidate, error) {
	result, err := h.execute(r, registry.ClearCandidate{})
	if err != nil {
		return Candidate{}, err
	}
	if result.Candidate == nil {
		return Candidate{}, noCandidate()
	}
	return describeCandidate(result.Candidate), nil
}

// promoteCandidate checks the candidate as any policy that is to be set: users
// and devices are others than when it was put into audit.
func (h *Handler) promoteCandidate(r *http.Request) (Policy, error) {
	var body PromoteCandidate
	if err := decode(r, &body); err != nil {
		return Policy{}, err
	}
	c, err := h.candidate(r)
	if err != nil {
		return Policy{}, err
	}
	epoch := ruleset.Epoch(c.Epoch)
	if body.IfEpoch != 0 {
		epoch = ruleset.Epoch(body.IfEpoch)
	}
	check, err := h.check(r, c.Text)
	if err != nil {
		return Policy{}, err
	}
	result, err := h.execute(r, registry.PromoteCandidate{If: epoch})
	if err != nil {
		return Policy{}, err
	}
	p := describePolicy(result.Policy)
	p.Warnings = check.Warnings
	return p, nil
}
