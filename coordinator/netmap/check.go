package netmap

import (
	"errors"
	"fmt"
	"strings"

	"github.com/warren-overlay/warren/acl/policy"
)

// Problem is one thing to say about a policy's text.
type Problem struct {
	// Line and Column count from 1; 0 is no place.
	Line, Column int
	Message      string
}

// String returns "line L, column C: message", or the message alone.
func (p Problem) String() string {
	if p.Line == 0 {
		return p.Message
	}
	return fmt.Sprintf("line %d, column %d: %s", p.Line, p.Column, p.Message)
}

// PolicyError is why a policy is refused: at least one problem. It wraps
// ErrPolicy.
type PolicyError struct{ Problems []Problem }

// Error returns one line for each problem.
func (e *PolicyError) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns ErrPolicy.
func (e *PolicyError) Unwrap() error { return ErrPolicy }

// CheckPolicy reports whether the text could be the network's policy now: it
// parses, says nothing that this version does not enforce, compiles for the
// users and devices that there are, and its own tests hold. The error is a
// *PolicyError. Warnings are about what is allowed and probably not meant.
func (n *Network) CheckPolicy(text string) (warnings []Problem, err error) {
	doc, err := policy.Parse([]byte(text))
	if err != nil {
		return nil, refused(err)
	}
	if problems := unsupported(doc); len(problems) > 0 {
		return nil, &PolicyError{problems}
	}
	// What a policy means does not depend on who happens to be suspended.
	p, err := n.compile(doc, n.policy.Epoch()+1, n.state.Devices())
	if err != nil {
		return nil, refused(err)
	}
	var failed []Problem
	for _, f := range p.RunTests() {
		failed = append(failed, Problem{f.Line, f.Column, f.Section + ": " + f.Message})
	}
	if len(failed) > 0 {
		return nil, &PolicyError{failed}
	}
	for _, w := range p.Warnings() {
		warnings = append(warnings, Problem{w.Line, w.Column, w.Kind + ": " + w.Message})
	}
	return warnings, nil
}

// refused makes problems of an error of the packages policy and compile.
func refused(err error) error {
	var list policy.ErrorList
	if !errors.As(err, &list) {
		return &PolicyError{[]Problem{{Message: err.Error()}}}
	}
	e := &PolicyError{}
	for _, p := range list {
		e.Problems = append(e.Problems, Problem{p.Line, p.Column, p.Description()})
	}
	return e
}

// unsupported names what the language has and nothing enforces yet: a rule
// that would be ignored must not look as if it held.
func unsupported(doc *policy.Document) []Problem {
	var out []Problem
	say := func(pos policy.Position, what string) {
		out = append(out, Problem{pos.Line, pos.Column, what + " is not supported by this version; remove it"})
	}
	for i := range doc.SSH {
		say(doc.SSH[i].Pos, "ssh")
	}
	for i := range doc.NodeAttrs {
		say(doc.NodeAttrs[i].Pos, "nodeAttrs")
	}
	for i := range doc.Approvers.Services {
		say(doc.Approvers.Services[i].Pos, "autoApprovers.services")
	}
	for i := range doc.JIT {
		say(doc.JIT[i].Pos, "jit")
	}
	for i := range doc.Levels {
		say(doc.Levels[i].Pos, "sensitivity")
	}
	for i := range doc.DefaultSrc {
		say(doc.DefaultSrc[i].Pos, "defaultSrcPosture")
	}
	for i := range doc.Rules {
		r := &doc.Rules[i]
		for j := range r.Via {
			say(r.Via[j].Pos, "via")
		}
		for j := range r.SrcPosture {
			say(r.SrcPosture[j].Pos, "srcPosture")
		}
	}
	if doc.Options.DisableIPv4 {
		say(policy.Position{}, "disableIPv4")
	}
	if doc.Options.DERPMap != "" {
		say(policy.Position{}, "derpMap")
	}
	return out
}
