package compile

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// template is a rule as every device of some subjects gets it. Two things only
// differ between devices: whose devices "self" is, and which subnets a router
// may speak for.
type template struct {
	rule    ruleset.Rule
	ordinal int // within its policy rule, so that sets have one order
	// self says that the peers must belong to the device's own user.
	self bool
	// ownSubnets says that the rule also covers what the device routes, except
	// default routes.
	ownSubnets bool
	// content is equal for templates that make equal rules.
	content [sha256.Size]byte
}

// linkSide is one side of a link, as a subject on it has it.
type linkSide struct {
	link   *link
	source bool
}

// compiledRule is what one policy rule came to.
type compiledRule struct {
	rule *policy.Rule
	key  string
	// in and out pair subjects with the templates that their devices get.
	in, out []placement
	// links are those in force; pairs all that the rule is about, denies and
	// audits too.
	links, pairs []*link
	// uses lists every subject of the rule, with repeats.
	uses []*subject
	// templates counts the templates made, to number them.
	templates int
}

type placement struct {
	subject  *subject
	template *template
}

// link says that the devices of the sources and those of the targets see each
// other.
type link struct {
	sources, targets []*subject
	// self restricts it to devices of the same user.
	self bool
}

// others returns the subjects of the far side.
func (s linkSide) others() []*subject {
	if s.source {
		return s.link.targets
	}
	return s.link.sources
}

// destinationGroup is destinations of one rule that admit the same. Without
// services it is for the rule's capabilities.
type destinationGroup struct {
	protocols  []uint8
	services   []ruleset.Service
	labels     []string // what a source must hold besides
	maxSession time.Duration
	patterns   []pattern
	self       bool
}

// companion returns the capability that is granted in the opposite direction
// together with a capability, because the program asks for it at both ends, or
// "".
func companion(capability string) string {
	switch capability {
	case "tailscale.com/cap/drive":
		return "tailscale.com/cap/drive-sharer"
	case "tailscale.com/cap/relay":
		return "tailscale.com/cap/relay-target"
	default:
		return ""
	}
}

// builder makes compiled rules and the subjects that they use.
type builder struct {
	doc       *policy.Document
	table     *labelTable
	index     *subjectIndex
	resources map[string]*policy.Resource
	levels    map[string]*policy.Level
	// defaults is part of the key of rules that take the default posture.
	defaults string
	created  []*subject
	// collision wraps ErrCollision where a rule names a label that another name
	// has.
	collision error
}

func newBuilder(doc *policy.Document, table *labelTable, index *subjectIndex) *builder {
	b := &builder{doc: doc, table: table, index: index, resources: map[string]*policy.Resource{}, levels: map[string]*policy.Level{}}
	for i := range doc.Resources {
		b.resources[doc.Resources[i].Name] = &doc.Resources[i]
	}
	for i := range doc.Levels {
		b.levels[doc.Levels[i].Name] = &doc.Levels[i]
	}
	for _, n := range doc.DefaultSrc {
		b.defaults += n.Name + "\x00"
	}
	return b
}

// key is equal for rules that compile to the same.
func (b *builder) key(r *policy.Rule) string {
	var s strings.Builder
	s.Write(r.Digest[:])
	if r.SrcPosture == nil {
		s.WriteString(b.defaults)
	}
	for _, to := range r.Dst {
		if to.Kind != policy.ResourceName {
			continue
		}
		resource := b.resources[strings.TrimPrefix(to.Name, "resource:")]
		fmt.Fprintf(&s, "%s %v ", resource.Sensitivity, resource.Services)
		for _, t := range resource.Target {
			fmt.Fprintf(&s, "%d %s %v ", t.Kind, t.Name, t.Prefixes)
		}
		if l := b.levels[resource.Sensitivity]; l != nil {
			fmt.Fprintf(&s, "%v %v ", l.JIT, l.MaxSession)
		}
	}
	return s.String()
}

func (b *builder) subject(c *compiledRule, p pattern) *subject {
	key := p.key()
	s := b.index.all[key]
	if s == nil {
		s = &subject{pattern: p, key: key}
		labels := make([]ident.Label, len(p.labels))
		for i, name := range p.labels {
			if labels[i] = b.table.label(name); labels[i] == 0 {
				b.collision = fmt.Errorf("%w: one is %q of rule %s", ErrCollision, name, c.rule.ID)
			}
		}
		s.set = ident.NewLabelSet(labels...)
		b.index.insert(s)
		b.created = append(b.created, s)
	}
	c.uses = append(c.uses, s)
	return s
}

func (b *builder) build(r *policy.Rule, key string) *compiledRule {
	c := &compiledRule{rule: r, key: key}
	postures := r.SrcPosture
	if postures == nil {
		postures = b.doc.DefaultSrc
	}
	sources := map[string]*sourceSide{}
	for _, g := range b.destinations(r) {
		key := strings.Join(g.labels, "\x00")
		if g.self {
			key += "\x00self"
		}
		side := sources[key]
		if side == nil {
			side = b.sources(c, g, postures)
			sources[key] = side
		}
		if len(side.patterns) > 0 {
			b.place(c, g, side)
		}
	}
	return c
}

// sourceSide is the sources of a rule, as all destinations share them that ask
// the same of a source.
type sourceSide struct {
	patterns  []pattern
	subjects  []*subject // nil for autogroup:self, which has subjects of its own
	selectors []ruleset.Selector
}

func (b *builder) sources(c *compiledRule, g *destinationGroup, postures []policy.Name) *sourceSide {
	var sources []pattern
	for _, sel := range c.rule.Src {
		source, ok := sourcePattern(sel)
		if !ok {
			continue
		}
		source = source.with(g.labels...)
		if len(postures) == 0 {
			sources = append(sources, source)
		}
		for _, posture := range postures {
			sources = append(sources, source.with(posture.Name))
		}
	}
	side := &sourceSide{patterns: distinct(sources)}
	if !g.self {
		for _, p := range side.patterns {
			s := b.subject(c, p)
			side.subjects, side.selectors = append(side.subjects, s), append(side.selectors, s.selector())
		}
	}
	return side
}

// distinct drops repeats and keeps the order.
func distinct(patterns []pattern) []pattern {
	if len(patterns) < 2 {
		return patterns
	}
	seen := make(map[string]bool, len(patterns))
	return slices.DeleteFunc(patterns, func(p pattern) bool {
		key := p.key()
		repeated := seen[key]
		seen[key] = true
		return repeated
	})
}

// destinations sorts a rule's destinations into groups that admit the same.
func (b *builder) destinations(r *policy.Rule) []*destinationGroup {
	var groups []*destinationGroup
	byKey := map[string]*destinationGroup{}
	group := func(services []policy.Service, self bool, labels []string, maxSession time.Duration) []*destinationGroup {
		var out []*destinationGroup
		for _, protocols := range protocolSets(services) {
			compiled := compileServices(services, protocols)
			key := fmt.Sprint(protocols, compiled, self, labels, maxSession)
			g := byKey[key]
			if g == nil {
				g = &destinationGroup{protocols: protocols, services: compiled, self: self, labels: labels, maxSession: maxSession}
				byKey[key] = g
				groups = append(groups, g)
			}
			out = append(out, g)
		}
		return out
	}
	add := func(sel policy.Selector, services []policy.Service, labels []string, maxSession time.Duration) {
		self := sel.Kind == policy.Autogroup && sel.Name == "autogroup:self"
		patterns := viaPatterns(sel, r.Via)
		if !self && len(patterns) == 0 {
			return
		}
		var into []*destinationGroup
		if len(services) > 0 {
			into = group(services, self, labels, maxSession)
		}
		if len(r.App) > 0 {
			into = append(into, group(nil, self, labels, maxSession)...)
		}
		for _, g := range into {
			g.patterns = append(g.patterns, patterns...)
		}
	}
	for _, to := range r.Dst {
		if to.Kind != policy.ResourceName {
			add(to.Selector, to.Services, nil, 0)
			continue
		}
		resource := b.resources[strings.TrimPrefix(to.Name, "resource:")]
		var labels []string
		var maxSession time.Duration
		if l := b.levels[resource.Sensitivity]; l != nil {
			labels, maxSession = append(labels, levelLabel(l.Name)), l.MaxSession
			if l.JIT {
				labels = append(labels, grantedLabel(resource.Name))
			}
		}
		for _, target := range resource.Target {
			add(target, resource.Services, labels, maxSession)
		}
	}
	for _, g := range groups {
		g.patterns = distinct(g.patterns)
	}
	return groups
}

// viaPatterns returns what a destination picks. With via, only addresses that
// are routed can be meant, and only the routers with one of the tags.
func viaPatterns(sel policy.Selector, via []policy.Name) []pattern {
	target, ok := destinationPattern(sel)
	switch {
	case !ok:
		return nil
	case len(via) == 0:
		return []pattern{target}
	case len(target.prefixes) == 0:
		return nil
	}
	var out []pattern
	for _, tag := range via {
		out = append(out, target.with(tag.Name))
	}
	return out
}

// protocolSets returns the distinct sets of protocols among the services, in
// order of appearance; one nil set where there are no services.
func protocolSets(services []policy.Service) [][]uint8 {
	if len(services) == 0 {
		return [][]uint8{nil}
	}
	var out [][]uint8
	for _, s := range services {
		if !slices.ContainsFunc(out, func(p []uint8) bool { return slices.Equal(p, s.Protocols) }) {
			out = append(out, s.Protocols)
		}
	}
	return out
}

// compileServices returns the services of one set of protocols, sorted, port
// ranges that meet joined. Protocols without ports are admitted whole.
func compileServices(services []policy.Service, protocols []uint8) []ruleset.Service {
	type portRange struct{ first, last uint16 }
	var ranges []portRange
	for _, s := range services {
		if slices.Equal(s.Protocols, protocols) {
			ranges = append(ranges, portRange{s.First, s.Last})
		}
	}
	slices.SortFunc(ranges, func(a, b portRange) int { return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(a.last, b.last)) })
	var joined []portRange
	for _, r := range ranges {
		if n := len(joined); n > 0 && int(r.first) <= int(joined[n-1].last)+1 {
			joined[n-1].last = max(joined[n-1].last, r.last)
			continue
		}
		joined = append(joined, r)
	}
	var out []ruleset.Service
	for _, protocol := range protocols {
		if !policy.HasPorts(protocol) {
			out = append(out, ruleset.Service{Protocol: protocol, First: 0, Last: 65535})
			continue
		}
		for _, r := range joined {
			out = append(out, ruleset.Service{Protocol: protocol, First: r.first, Last: r.last})
		}
	}
	return out
}

// place makes the templates and links of one group of destinations.
func (b *builder) place(c *compiledRule, g *destinationGroup, sources *sourceSide) {
	base := ruleset.Rule{
		ID: ruleset.RuleID(c.rule.ID), Services: g.services,
		NotBefore: c.rule.NotBefore, NotAfter: c.rule.NotAfter, Schedule: compileSchedule(c.rule.Schedule), MaxSession: g.maxSession,
	}
	if c.rule.Deny {
		base.Action = ruleset.Deny
	}
	if c.rule.Mode == policy.Audit {
		base.Mode = ruleset.Audit
	}
	if g.self {
		b.placeSelf(c, base, sources.patterns)
		return
	}
	l := &link{sources: sources.subjects}
	from := sources.selectors
	var to []ruleset.Selector
	for _, p := range g.patterns {
		s := b.subject(c, p)
		l.targets, to = append(l.targets, s), append(to, s.selector())
	}
	b.placeLink(c, l)
	if len(g.services) > 0 {
		c.in = b.spread(c, c.in, l.targets, base, from, false)
		c.out = b.spread(c, c.out, l.sources, base, to, false)
		return
	}
	base.Capabilities = capabilities(c.rule.App)
	c.in = b.spread(c, c.in, l.targets, base, from, false)
	if backward := companions(c.rule.App); len(backward) > 0 {
		base.Capabilities = backward
		for i := range to {
			if slices.Equal(to[i].Prefixes, everywhere) && to[i].Labels.Len() == 0 {
				to[i] = ruleset.Selector{Subnets: true}
			}
		}
		c.in = b.spread(c, c.in, l.sources, base, to, false)
	}
}

// placeLink adds a link where the rule lets traffic through: an audited rule
// does not, and a deny takes away.
func (b *builder) placeLink(c *compiledRule, l *link) {
	c.pairs = append(c.pairs, l)
	if !c.rule.Deny && c.rule.Mode == policy.Enforce {
		c.links = append(c.links, l)
	}
}

// placeSelf makes the templates of autogroup:self: between two devices of one
// user, to the devices' own addresses.
func (b *builder) placeSelf(c *compiledRule, base ruleset.Rule, sources []pattern) {
	l := &link{self: true}
	var from []ruleset.Selector
	for _, p := range sources {
		p.subnets = false
		s := b.subject(c, p)
		l.sources = append(l.sources, s)
		from = append(from, s.selector())
	}
	// The destination is known by its user, who must be one that the source
	// names. What a source must satisfy besides is asked of the peer alone.
	for _, p := range sources {
		p.subnets = false
		p.labels = slices.DeleteFunc(slices.Clone(p.labels), isCondition)
		l.targets = append(l.targets, b.subject(c, p))
	}
	slices.SortFunc(l.targets, func(a, b *subject) int { return cmp.Compare(a.key, b.key) })
	l.targets = slices.Compact(l.targets)
	b.placeLink(c, l)
	if len(base.Services) > 0 {
		c.in = b.spread(c, c.in, l.targets, base, from, true)
		c.out = b.spread(c, c.out, l.sources, base, []ruleset.Selector{{}}, true)
		return
	}
	base.Capabilities = capabilities(c.rule.App)
	c.in = b.spread(c, c.in, l.targets, base, from, true)
	if backward := companions(c.rule.App); len(backward) > 0 {
		base.Capabilities = backward
		c.in = b.spread(c, c.in, l.sources, base, []ruleset.Selector{{}}, true)
	}
}

// isCondition reports whether a label tells of the state of a device and not
// of who it is.
func isCondition(label string) bool {
	kind, _, _ := strings.Cut(label, ":")
	return kind == "posture" || kind == "sensitivity" || kind == "granted"
}

// spread adds one placement for each subject. Subjects that need the same rule
// share a template, so that a device of several of them gets it once.
func (b *builder) spread(c *compiledRule, out []placement, subjects []*subject, base ruleset.Rule, peers []ruleset.Selector, self bool) []placement {
	base.Peers = peers
	common := ruleset.RuleSet{In: []ruleset.Rule{base}}
	shared := sha256.Sum256(common.AppendBinary(nil))
	made := map[string]*template{}
	for _, s := range subjects {
		key := pattern{prefixes: s.prefixes, subnets: s.subnets}.key()
		t := made[key]
		if t == nil {
			t = &template{rule: base, ordinal: c.templates, self: self, ownSubnets: s.subnets}
			t.rule.Own = s.prefixes
			t.content = sha256.Sum256(fmt.Appendf(shared[:], "%v %s", self, key))
			made[key] = t
			c.templates++
		}
		out = append(out, placement{s, t})
	}
	return out
}

func capabilities(apps []policy.App) []ruleset.Capability {
	out := make([]ruleset.Capability, len(apps))
	for i, app := range apps {
		out[i] = ruleset.Capability{Name: app.Name, Values: app.Values}
	}
	return out
}

// companions returns the capabilities that are granted in the opposite direction.
func companions(apps []policy.App) []ruleset.Capability {
	var out []ruleset.Capability
	for _, app := range apps {
		if name := companion(app.Name); name != "" {
			out = append(out, ruleset.Capability{Name: name})
		}
	}
	return out
}

func compileSchedule(s *policy.Schedule) *ruleset.Schedule {
	if s == nil {
		return nil
	}
	windows := make([]ruleset.Window, len(s.Windows))
	for i, w := range s.Windows {
		windows[i] = ruleset.Window(w)
	}
	schedule, err := ruleset.NewSchedule(s.Zone, windows)
	if err != nil {
		panic("BUG: compile: a schedule passed the parser that is none: " + err.Error())
	}
	return schedule
}

// instance makes the rule of a template for one device.
func (t *template) instance(n *slot, owner ident.Label) ruleset.Rule {
	r := t.rule
	if t.self {
		r.Peers = make([]ruleset.Selector, len(t.rule.Peers))
		for i, p := range t.rule.Peers {
			p.Labels = ident.NewLabelSet(append(slices.Clone(p.Labels.Slice()), owner)...)
			r.Peers[i] = p
		}
	}
	if t.ownSubnets {
		if routes := n.subnets(); len(routes) > 0 {
			for _, a := range n.identity.Addresses {
				r.Own = append(r.Own, netip.PrefixFrom(a, a.BitLen()))
			}
			r.Own = append(r.Own, routes...)
		}
	}
	return r
}

// subnets returns what the device routes except default routes.
func (n *slot) subnets() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range n.identity.Routes {
		if p.Bits() > 0 {
			out = append(out, p)
		}
	}
	return out
}
