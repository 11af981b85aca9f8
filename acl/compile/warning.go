package compile

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/warren-overlay/warren/acl/policy"
)

// Warning is something about a policy that is allowed and probably not meant.
type Warning struct {
	policy.Position
	// Kind is a stable name: "shadowed", "matches-nothing", "vacuous-test",
	// "unowned-tag", "via-device".
	Kind    string
	Message string
}

// String returns the place and the message in one line.
func (w Warning) String() string {
	return fmt.Sprintf("line %d, column %d: %s", w.Line, w.Column, w.Message)
}

// Warnings returns what is probably not meant, in the order of the text: an
// accept that denies take away wholly or partly, a rule that matches no device
// of the directory, a test that repeats itself, a tag that nobody may give, a
// destination that via can never reach.
func (p *Policy) Warnings() []Warning {
	var out []Warning
	add := func(pos policy.Position, kind, format string, args ...any) {
		out = append(out, Warning{pos, kind, fmt.Sprintf(format, args...)})
	}
	for _, o := range p.doc.TagOwners {
		if len(o.Owners) == 0 {
			add(o.Pos, "unowned-tag", "%s has no owners: only an administrator can give it", o.Tag)
		}
	}
	for i := range p.doc.Rules {
		r := &p.doc.Rules[i]
		if len(p.order) > 0 || len(p.byID) > 0 {
			if side := p.emptySide(i); side != "" {
				add(r.Pos, "matches-nothing", "rule %s matches nothing: no device of this network is in its %s", r.ID, side)
			}
		}
		for _, to := range r.Dst {
			if want, ok := destinationPattern(to.Selector); len(r.Via) > 0 && (!ok || len(want.prefixes) == 0) {
				add(to.Pos, "via-device", "%s is not routed, so that via never leads to it", to.Name)
			}
		}
	}
	out = append(out, p.shadowed()...)
	for i := range p.doc.Tests {
		t := &p.doc.Tests[i]
		if t.Malformed == "" && len(t.Accept)+len(t.Deny) == 0 {
			add(t.Pos, "vacuous-test", "the test asserts nothing")
		}
		for j := range i {
			if sameTest(t, &p.doc.Tests[j]) {
				add(t.Pos, "vacuous-test", "the test asserts nothing that the one at line %d does not", p.doc.Tests[j].Pos.Line)
				break
			}
		}
	}
	slices.SortStableFunc(out, func(a, b Warning) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	return out
}

func sameTest(a, b *policy.Test) bool {
	same := func(x, y []policy.Name) bool {
		return slices.EqualFunc(x, y, func(m, n policy.Name) bool { return m.Name == n.Name })
	}
	return a.Src.Name == b.Src.Name && a.Protocol == b.Protocol && a.Attributes == nil && b.Attributes == nil && same(a.Accept, b.Accept) && same(a.Deny, b.Deny)
}

// emptySide names the side of a rule that no device is on, or "".
func (p *Policy) emptySide(i int) string {
	sources, targets := 0, 0
	for _, l := range p.rules[p.keys[i]].pairs {
		for _, s := range l.sources {
			sources += s.members.n
		}
		for _, s := range l.targets {
			targets += s.members.n
		}
	}
	switch {
	case sources == 0 && len(p.doc.Rules[i].Dst) > 0:
		return "src"
	case targets == 0:
		return "dst"
	default:
		return ""
	}
}

// shadowed reports, for each accept, the denies that take all or a part of it
// away.
func (p *Policy) shadowed() []Warning {
	var denies []*policy.Rule
	for i := range p.doc.Rules {
		if r := &p.doc.Rules[i]; r.Deny && r.Mode == policy.Enforce {
			denies = append(denies, r)
		}
	}
	var out []Warning
	for i := range p.doc.Rules {
		r := &p.doc.Rules[i]
		if r.Deny || len(denies) == 0 {
			continue
		}
		for _, d := range denies {
			switch p.overlap(r, d) {
			case wholly:
				out = append(out, Warning{r.Pos, "shadowed", fmt.Sprintf("rule %s admits nothing: the deny %s at line %d takes all of it away", r.ID, d.ID, d.Pos.Line)})
			case partly:
				out = append(out, Warning{r.Pos, "shadowed", fmt.Sprintf("the deny %s at line %d takes a part of rule %s away", d.ID, d.Pos.Line, r.ID)})
			}
		}
	}
	return out
}

type extent uint8

const (
	apart extent = iota
	partly
	wholly
)

// overlap says how much of an accept a deny takes away, as far as selectors
// and services tell without a directory, and where they do not, by who is in
// the directory at present.
func (p *Policy) overlap(accept, deny *policy.Rule) extent {
	if !deny.NotAfter.IsZero() && !accept.NotBefore.IsZero() && !accept.NotBefore.Before(deny.NotAfter) {
		return apart
	}
	sources := p.coverSources(accept.Src, deny.Src)
	if sources == apart {
		return apart
	}
	if deny.SrcPosture != nil || deny.Schedule != nil || !deny.NotBefore.IsZero() || !deny.NotAfter.IsZero() {
		sources = partly
	}
	all, some := true, false
	for _, to := range accept.Dst {
		best := apart
		for _, t := range p.targetsOf(to) {
			for _, no := range deny.Dst {
				for _, n := range p.targetsOf(no) {
					best = max(best, min(p.coverSelector(t.Selector, n.Selector, destinationPattern), coverServices(t.services, n.services)))
				}
			}
		}
		all = all && best == wholly
		some = some || best != apart
	}
	switch {
	case !some:
		return apart
	case all && sources == wholly && len(accept.App) == 0:
		return wholly
	default:
		return partly
	}
}

func (p *Policy) coverSources(accept, deny []policy.Selector) extent {
	all, some := len(accept) > 0, false
	for _, a := range accept {
		best := apart
		for _, d := range deny {
			best = max(best, p.coverSelector(a, d, sourcePattern))
		}
		all = all && best == wholly
		some = some || best != apart
	}
	switch {
	case all:
		return wholly
	case some:
		return partly
	default:
		return apart
	}
}

// coverSelector says how much of what the first selector picks the second
// picks too.
func (p *Policy) coverSelector(a, b policy.Selector, of func(policy.Selector) (pattern, bool)) extent {
	x, ok1 := of(a)
	y, ok2 := of(b)
	switch {
	case a.Kind == b.Kind && a.Name == b.Name:
		return wholly
	case b.Kind == policy.Any:
		return wholly
	case !ok1 || !ok2:
		// autogroup:self is a part of whatever its user's devices are in.
		return partly
	}
	if len(x.prefixes) > 0 && len(y.prefixes) > 0 && len(y.labels) == 0 {
		return coverPrefixes(x.prefixes, y.prefixes)
	}
	inBoth, inFirst := 0, 0
	for _, s := range p.slots {
		if s == nil || !matchesPattern(x, s) {
			continue
		}
		inFirst++
		if matchesPattern(y, s) {
			inBoth++
		}
	}
	switch {
	case inBoth == 0:
		return apart
	case inBoth == inFirst && len(y.prefixes) == 0:
		return wholly
	default:
		return partly
	}
}

func matchesPattern(want pattern, s *slot) bool {
	return hasAll(s.names, want.labels) && (len(want.prefixes) == 0 || s.reaches(want.prefixes))
}

func coverPrefixes(x, y []netip.Prefix) extent {
	all, some := true, false
	for _, p := range x {
		covered := false
		for _, q := range y {
			some = some || p.Overlaps(q)
			covered = covered || q.Bits() <= p.Bits() && q.Overlaps(p)
		}
		all = all && covered
	}
	switch {
	case all:
		return wholly
	case some:
		return partly
	default:
		return apart
	}
}

func coverServices(accept, deny []policy.Service) extent {
	all, some := len(accept) > 0, false
	for _, a := range accept {
		for _, protocol := range a.Protocols {
			covered := false
			for _, d := range deny {
				if !slices.Contains(d.Protocols, protocol) {
					continue
				}
				if !policy.HasPorts(protocol) {
					covered, some = true, true
					continue
				}
				covered = covered || d.First <= a.First && a.Last <= d.Last
				some = some || d.First <= a.Last && a.First <= d.Last
			}
			all = all && covered
		}
	}
	switch {
	case all:
		return wholly
	case some:
		return partly
	default:
		return apart
	}
}

// DescribeLabel says in words what a rule asks for with the label of that
// name.
func DescribeLabel(name string) string { return strings.TrimSpace(describeLabel(name)) }
