package compile

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
)

// Warning is something about a policy that is allowed and probably not meant.
type Warning struct {
	policy.Position
	// Kind is a stable name: "shadowed", "matches-nothing", "vacuous-test",
	// "unowned-tag", "via-device", "unknown-attribute".
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
// destination that via can never reach, a condition on an attribute that no
// device reports.
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
	for _, posture := range p.doc.Postures {
		for _, c := range posture.Conditions {
			if hint := unknownAttribute(c.Attribute); hint != "" {
				add(c.Pos, "unknown-attribute", "nothing reports %s, so %s counts it as not set; %s", c.Attribute, posture.Name, hint)
			}
		}
	}
	for i := range p.doc.Rules {
		r := &p.doc.Rules[i]
		if len(p.order) > 0 || len(p.byID) > 0 {
			if missing := p.emptySide(i); missing != "" {
				add(r.Pos, "matches-nothing", "rule %s matches nothing: no device of this network %s", r.ID, missing)
			}
		}
		for _, to := range r.Dst {
			if want, ok := destinationPattern(to.Selector); len(r.Via) > 0 && (!ok || len(want.prefixes) == 0) {
				add(to.Pos, "via-device", "%s is not routed, so that via never leads to it", to.Name)
			}
		}
	}
	out = append(out, p.shadowed()...)
	asserted := map[string]int{}
	for i := range p.doc.Tests {
		t := &p.doc.Tests[i]
		if t.Malformed == "" && len(t.Accept)+len(t.Deny) == 0 {
			add(t.Pos, "vacuous-test", "the test asserts nothing")
		}
		if t.Attributes != nil {
			continue
		}
		key := testKey(t)
		if line, ok := asserted[key]; ok {
			add(t.Pos, "vacuous-test", "the test asserts nothing that the one at line %d does not", line)
			continue
		}
		asserted[key] = t.Pos.Line
	}
	slices.SortStableFunc(out, func(a, b Warning) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	return out
}

// testKey is equal for tests that assert the same, attributes aside.
func testKey(t *policy.Test) string {
	b := fmt.Appendf(nil, "%q %d", t.Src.Name, t.Protocol)
	for _, list := range [2][]policy.Name{t.Accept, t.Deny} {
		b = append(b, ';')
		for _, n := range list {
			b = fmt.Appendf(b, "%q", n.Name)
		}
	}
	return string(b)
}

// emptySide says which side of a rule no device is on, or "".
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
	case sources == 0 && len(p.doc.Rules[i].Dst) > 0 && p.conditionsAlone(i):
		return "in its src has what it asks for (posture, sensitivity or request)"
	case sources == 0 && len(p.doc.Rules[i].Dst) > 0:
		return "is in its src"
	case targets == 0:
		return "is in its dst"
	default:
		return ""
	}
}

// conditionsAlone reports whether a rule would have sources if devices were
// not asked for their state.
func (p *Policy) conditionsAlone(i int) bool {
	for _, l := range p.rules[p.keys[i]].pairs {
		for _, s := range l.sources {
			var who []ident.Label
			for _, name := range s.labels {
				if !isCondition(name) {
					who = append(who, p.table.label(name))
				}
			}
			if len(who) == len(s.labels) {
				continue
			}
			unconditional := &subject{pattern: pattern{prefixes: s.prefixes}, set: ident.NewLabelSet(who...)}
			if slices.ContainsFunc(p.slots, func(n *slot) bool { return n != nil && unconditional.picks(n) }) {
				return true
			}
		}
	}
	return false
}

// shadowed reports, for each accept, the denies that take all or a part of it
// away.
func (p *Policy) shadowed() []Warning {
	c := &coverage{p: p, ids: map[string]uint32{}, patterns: map[string]bitmap{}}
	c.known = [2]map[[2]uint32]extent{{}, {}}
	var accepts, denies []prepared
	for i := range p.doc.Rules {
		switch r := &p.doc.Rules[i]; {
		case !r.Deny:
			accepts = append(accepts, c.prepare(r))
		case r.Mode == policy.Enforce:
			denies = append(denies, c.prepare(r))
		}
	}
	var out []Warning
	for i := range accepts {
		for j := range denies {
			if len(out) == maxShadowed {
				return out
			}
			r, d := accepts[i].rule, denies[j].rule
			switch c.overlap(&accepts[i], &denies[j]) {
			case wholly:
				out = append(out, Warning{r.Pos, "shadowed", fmt.Sprintf("rule %s admits nothing: the deny %s at line %d takes all of it away", r.ID, d.ID, d.Pos.Line)})
			case partly:
				out = append(out, Warning{r.Pos, "shadowed", fmt.Sprintf("the deny %s at line %d takes a part of rule %s away", d.ID, d.Pos.Line, r.ID)})
			case apart:
			}
		}
	}
	return out
}

// maxShadowed bounds the warnings about denies.
const maxShadowed = 1_000

type extent uint8

const (
	apart extent = iota
	partly
	wholly
)

// prepared is a rule with its selectors numbered.
type prepared struct {
	rule    *policy.Rule
	sources []uint32
	targets []preparedTarget
}

type preparedTarget struct {
	selector uint32
	services []policy.Service
}

// coverage compares selectors, each pair once.
type coverage struct {
	p         *Policy
	ids       map[string]uint32
	selectors []policy.Selector // by number
	patterns  map[string]bitmap
	known     [2]map[[2]uint32]extent // of destinations, of sources
}

func (c *coverage) number(s policy.Selector) uint32 {
	key := string(rune(s.Kind)) + s.Name
	id, ok := c.ids[key]
	if !ok {
		id = uint32(len(c.selectors))
		c.ids[key] = id
		c.selectors = append(c.selectors, s)
	}
	return id
}

func (c *coverage) prepare(r *policy.Rule) prepared {
	out := prepared{rule: r}
	for _, s := range r.Src {
		out.sources = append(out.sources, c.number(s))
	}
	for _, to := range r.Dst {
		for _, t := range c.p.targetsOf(to) {
			out.targets = append(out.targets, preparedTarget{c.number(t.Selector), t.services})
		}
	}
	return out
}

// overlap says how much of an accept a deny takes away, as far as selectors
// and services tell without a directory, and where they do not, by who is in
// the directory at present.
func (c *coverage) overlap(accept, deny *prepared) extent {
	if !deny.rule.NotAfter.IsZero() && !accept.rule.NotBefore.IsZero() && !accept.rule.NotBefore.Before(deny.rule.NotAfter) {
		return apart
	}
	all, some := true, false
	for _, to := range accept.targets {
		best := apart
		for _, no := range deny.targets {
			if services := coverServices(to.services, no.services); services > best {
				best = max(best, min(c.cover(to.selector, no.selector, 0), services))
			}
		}
		all = all && best == wholly
		some = some || best != apart
	}
	if !some {
		return apart
	}
	sources := c.coverSources(accept.sources, deny.sources)
	conditional := deny.rule.SrcPosture != nil || deny.rule.Schedule != nil || !deny.rule.NotBefore.IsZero() || !deny.rule.NotAfter.IsZero()
	switch {
	case sources == apart:
		return apart
	case all && sources == wholly && !conditional && len(accept.rule.App) == 0:
		return wholly
	default:
		return partly
	}
}

func (c *coverage) coverSources(accept, deny []uint32) extent {
	all, some := len(accept) > 0, false
	for _, a := range accept {
		best := apart
		for _, d := range deny {
			best = max(best, c.cover(a, d, 1))
		}
		all = all && best == wholly
		some = some || best != apart
	}
	return extentOf(all, some)
}

// cover says how much of what the first selector picks the second picks too,
// as destinations (0) or as sources (1).
func (c *coverage) cover(a, b uint32, side int) extent {
	e, ok := c.known[side][[2]uint32{a, b}]
	if !ok {
		of := destinationPattern
		if side == 1 {
			of = sourcePattern
		}
		e = c.compare(c.selectors[a], c.selectors[b], of)
		c.known[side][[2]uint32{a, b}] = e
	}
	return e
}

// picked returns the devices that the pattern picks.
func (c *coverage) picked(want pattern) bitmap {
	key := want.key()
	b, ok := c.patterns[key]
	if !ok {
		b = newBitmap(len(c.p.slots))
		for at, s := range c.p.slots {
			if s != nil && matchesPattern(want, s) {
				b.set(int32(at))
			}
		}
		c.patterns[key] = b
	}
	return b
}

func (c *coverage) compare(a, b policy.Selector, of func(policy.Selector) (pattern, bool)) extent {
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
	first, second := c.picked(x), c.picked(y)
	both, all := false, true
	for i, word := range first {
		both = both || word&second[i] != 0
		all = all && word&^second[i] == 0
	}
	switch {
	case !both:
		return apart
	case all && len(y.prefixes) == 0:
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
	return extentOf(all, some)
}

// extentOf is how far something is covered of which all or some is.
func extentOf(all, some bool) extent {
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
	return extentOf(all, some)
}

// DescribeLabel says in words what a rule asks for with the label of that
// name.
func DescribeLabel(name string) string { return strings.TrimSpace(describeLabel(name)) }

// unknownAttribute says what to do about an attribute that neither devices nor
// the coordinator report, or "" where one does. Names of custom: are the
// network's own.
func unknownAttribute(name string) string {
	switch name {
	case "node:os", "node:osVersion", "node:version", countryAttribute, mfaAgeAttribute, riskAttribute:
		return ""
	case "node:tsVersion":
		return "the version of this program is node:version"
	}
	if strings.HasPrefix(name, "custom:") {
		return ""
	}
	return "use node:os, node:osVersion, node:version, ip:country, or custom: and a name that you set yourself"
}
