package ruleset

import (
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

// PeerRules is a rule set narrowed to the flows between this device and one
// peer. It answers in a time that does not depend on how many rules there are
// (see index), and without allocating.
type PeerRules struct {
	epoch Epoch
	index [2]index // by Direction
}

// ForPeer narrows the set to the rules that can match between self and peer. A
// nil set denies everything. The rules of the set are kept and must not be
// written to afterwards; the identities are not kept.
func (s *RuleSet) ForPeer(self, peer *ident.Identity) *PeerRules {
	p := &PeerRules{}
	if s == nil {
		return p
	}
	p.epoch = s.Epoch
	for direction, rules := range [2][]Rule{In: s.In, Out: s.Out} {
		p.index[direction] = newIndex(rules, self, peer)
	}
	return p
}

// Epoch returns the epoch of the set that the rules came from.
func (p *PeerRules) Epoch() Epoch { return p.epoch }

// Timed reports whether an answer may depend on the time that is asked about.
func (p *PeerRules) Timed() bool { return p.index[In].timed || p.index[Out].timed }

// Decide answers whether a flow may be opened in the given direction at the
// given time. Without a matching rule the answer is no.
func (p *PeerRules) Decide(dir Direction, f Flow, now time.Time) Verdict {
	t := p.index[dir].tally(dir, f, now)
	return t.verdict()
}

// place is where a rule stands in its list. The order of a list carries no
// meaning but for which of several rules that say the same is named.
type place int32

// none stands for no rule.
const none place = -1

// tally collects the rules that match one flow: of each kind the one that
// counts.
type tally struct {
	rules                  []Rule
	accept, deny           place
	auditAccept, auditDeny place
	until                  time.Time
}

func newTally(rules []Rule) tally {
	return tally{rules: rules, accept: none, deny: none, auditAccept: none, auditDeny: none}
}

// add takes a rule into account that may not hold at all times.
func (t *tally) add(at place, now time.Time) {
	r := &t.rules[at]
	if r.Mode == Enforce {
		t.until = earlier(t.until, r.Boundary(now))
	}
	if r.Holds(now) {
		t.merge(r.only(at))
	}
}

// only returns what the rule alone says.
func (r *Rule) only(at place) outcome {
	o := nothing
	switch {
	case r.Mode == Enforce && r.Action == Accept:
		o.accept = at
	case r.Mode == Enforce:
		o.deny = at
	case r.Action == Accept:
		o.auditAccept = at
	default:
		o.auditDeny = at
	}
	return o
}

// merge takes rules into account that hold.
func (t *tally) merge(o outcome) {
	if o.accept != none && (t.accept == none || prefer(t.rules, o.accept, t.accept)) {
		t.accept = o.accept
	}
	t.deny = first(t.deny, o.deny)
	t.auditAccept = first(t.auditAccept, o.auditAccept)
	t.auditDeny = first(t.auditDeny, o.auditDeny)
}

// prefer reports whether the accepting rule a counts before b: where it lets a
// flow last longer, else where it comes first.
func prefer(rules []Rule, a, b place) bool {
	longer, than := rules[a].MaxSession, rules[b].MaxSession
	if longer == than {
		return a < b
	}
	return than != 0 && (longer == 0 || longer > than)
}

func first(a, b place) place {
	if a == none || b != none && b < a {
		return b
	}
	return a
}

// decided reports whether an enforced rule holds.
func (t *tally) decided() bool { return t.accept != none || t.deny != none }

func (t *tally) verdict() Verdict {
	v := Verdict{Until: t.until}
	switch {
	case t.deny != none:
		v.Rule = t.rules[t.deny].ID
	case t.accept != none:
		v.Allowed, v.Rule, v.MaxSession = true, t.rules[t.accept].ID, t.rules[t.accept].MaxSession
	}
	switch {
	case v.Allowed && t.auditDeny != none:
		v.Would, v.WouldRule = WouldDeny, t.rules[t.auditDeny].ID
	case !t.decided() && t.auditDeny == none && t.auditAccept != none:
		v.Would, v.WouldRule = WouldAllow, t.rules[t.auditAccept].ID
	}
	return v
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
