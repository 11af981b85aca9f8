package compile

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// pattern is a selector in the terms of rules: labels that a device must hold
// and where its address must lie.
type pattern struct {
	labels   []string // sorted
	prefixes []netip.Prefix
	subnets  bool
}

// everywhere is every address of both families.
var everywhere = []netip.Prefix{
	netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0),
}

// internet is every public address.
var internet = ruleset.Public()

// key is equal for equal patterns.
func (s pattern) key() string {
	var b strings.Builder
	for _, l := range s.labels {
		b.WriteString(l)
		b.WriteByte(0)
	}
	if s.subnets {
		b.WriteByte(1)
	}
	for _, p := range s.prefixes {
		b.WriteByte(2)
		raw, _ := p.MarshalBinary()
		b.Write(raw)
		b.WriteByte(byte(len(raw)))
	}
	return b.String()
}

func (s pattern) with(labels ...string) pattern {
	if len(labels) == 0 {
		return s
	}
	s.labels = append(slices.Clone(s.labels), labels...)
	slices.Sort(s.labels)
	s.labels = slices.Compact(s.labels)
	return s
}

// sourcePattern returns what a selector picks as a source. The second result
// is false where that is nothing.
func sourcePattern(s policy.Selector) (pattern, bool) {
	switch s.Kind {
	case policy.Any:
		return pattern{subnets: true}, true
	case policy.Autogroup:
		switch s.Name {
		case "autogroup:danger-all":
			return pattern{prefixes: everywhere}, true
		case "autogroup:self", "autogroup:internet":
			return pattern{}, false
		}
	default: // a set of devices
	}
	return devicePattern(s)
}

// destinationPattern returns what a selector picks as a destination. The
// second result is false where that is nothing, or not a matter of patterns,
// as for autogroup:self and resources.
func destinationPattern(s policy.Selector) (pattern, bool) {
	switch s.Kind {
	case policy.Any:
		return pattern{prefixes: everywhere}, true
	case policy.Autogroup:
		switch s.Name {
		case "autogroup:internet":
			return pattern{prefixes: internet}, true
		case "autogroup:self", "autogroup:danger-all":
			return pattern{}, false
		}
	default: // a set of devices
	}
	return devicePattern(s)
}

func devicePattern(s policy.Selector) (pattern, bool) {
	switch s.Kind {
	case policy.User:
		return pattern{labels: []string{userLabel(s.Name)}}, true
	case policy.Domain:
		return pattern{labels: []string{domainLabel(s.Name)}}, true
	case policy.GroupName, policy.TagName, policy.Autogroup:
		// Devices that other networks share with this one would be in
		// autogroup:shared; there are none, so nobody holds its label.
		return pattern{labels: []string{s.Name}}, true
	case policy.Address:
		// A selector without prefixes would mean a device's own addresses.
		return pattern{prefixes: s.Prefixes}, len(s.Prefixes) > 0
	default:
		return pattern{}, false
	}
}

// subject is a pattern that rules use, with the devices that it picks.
type subject struct {
	pattern
	key     string
	set     ident.LabelSet
	members members
	refs    int    // uses by rules
	visited uint64 // the last walk that saw it
	// in and out are the rules that devices of the subject get, links the
	// sides of the links that they have.
	in, out []*template
	links   []linkSide
}

func (s *subject) selector() ruleset.Selector {
	return ruleset.Selector{Labels: s.set, Prefixes: s.prefixes, Subnets: s.subnets}
}

// picks reports whether the device has the labels and an address, of its own
// or behind it, where the pattern says.
func (s *subject) picks(n *slot) bool {
	if !n.identity.Labels.HasAll(s.set) {
		return false
	}
	return len(s.prefixes) == 0 || n.reaches(s.prefixes)
}

func (n *slot) reaches(prefixes []netip.Prefix) bool {
	for _, p := range prefixes {
		for _, a := range n.identity.Addresses {
			if p.Contains(a) {
				return true
			}
		}
		for _, route := range n.reach {
			if route.Overlaps(p) {
				return true
			}
		}
	}
	return false
}

// subjectIndex finds the subjects that a device belongs to without looking at
// all of them.
type subjectIndex struct {
	all map[string]*subject
	// byLabel holds the subjects with labels, under their anchor; plain those
	// with neither labels nor prefixes.
	byLabel map[ident.Label][]*subject
	plain   []*subject
	// byPrefix holds the subjects with prefixes and no labels, under each of
	// their prefixes; lengths counts the prefixes of each family and length.
	byPrefix map[netip.Prefix][]*subject
	lengths  [2][129]int
	// sorted is the keys of byPrefix in order, nil where it must be made anew.
	sorted []netip.Prefix
}

func newSubjectIndex() *subjectIndex {
	return &subjectIndex{all: map[string]*subject{}, byLabel: map[ident.Label][]*subject{}, byPrefix: map[netip.Prefix][]*subject{}}
}

// anchor is the one of its labels under which a subject is found.
func (s *subject) anchor() ident.Label { return s.set.Slice()[0] }

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func (x *subjectIndex) insert(s *subject) {
	x.all[s.key] = s
	switch {
	case s.set.Len() > 0:
		x.byLabel[s.anchor()] = append(x.byLabel[s.anchor()], s)
	case len(s.prefixes) == 0:
		x.plain = append(x.plain, s)
	default:
		for _, p := range s.prefixes {
			if len(x.byPrefix[p]) == 0 {
				x.sorted = nil
			}
			x.byPrefix[p] = append(x.byPrefix[p], s)
			x.lengths[family(p.Addr())][p.Bits()]++
		}
	}
}

func (x *subjectIndex) drop(s *subject) {
	delete(x.all, s.key)
	is := func(t *subject) bool { return t == s }
	switch {
	case s.set.Len() > 0:
		if rest := slices.DeleteFunc(x.byLabel[s.anchor()], is); len(rest) > 0 {
			x.byLabel[s.anchor()] = rest
		} else {
			delete(x.byLabel, s.anchor())
		}
	case len(s.prefixes) == 0:
		x.plain = slices.DeleteFunc(x.plain, is)
	default:
		for _, p := range s.prefixes {
			if rest := slices.DeleteFunc(x.byPrefix[p], is); len(rest) > 0 {
				x.byPrefix[p] = rest
			} else {
				delete(x.byPrefix, p)
				x.sorted = nil
			}
			x.lengths[family(p.Addr())][p.Bits()]--
		}
	}
}

// find returns the subjects that the device belongs to, each once.
func (x *subjectIndex) find(n *slot) []*subject { return x.findInto(nil, n) }

// findInto is find, in the space of a list that is no longer needed.
func (x *subjectIndex) findInto(out []*subject, n *slot) []*subject {
	out = append(out[:0], x.plain...)
	for _, l := range n.identity.Labels.Slice() {
		for _, s := range x.byLabel[l] {
			if s.picks(n) {
				out = append(out, s)
			}
		}
	}
	before := len(out)
	for _, a := range n.identity.Addresses {
		out = x.around(out, netip.PrefixFrom(a, a.BitLen()))
	}
	for _, route := range n.reach {
		out = x.around(out, route)
		out = x.inside(out, route)
	}
	if len(out)-before > 1 {
		slices.SortFunc(out[before:], func(a, b *subject) int { return cmp.Compare(a.key, b.key) })
		rest := slices.Compact(out[before:])
		out = out[:before+len(rest)]
	}
	return out
}

// around adds the subjects of the prefixes that contain p.
func (x *subjectIndex) around(out []*subject, p netip.Prefix) []*subject {
	lengths := &x.lengths[family(p.Addr())]
	for bits := range p.Bits() + 1 {
		if lengths[bits] > 0 {
			out = append(out, x.byPrefix[netip.PrefixFrom(p.Addr(), bits).Masked()]...)
		}
	}
	return out
}

// inside adds the subjects of the longer prefixes within p.
func (x *subjectIndex) inside(out []*subject, p netip.Prefix) []*subject {
	if x.sorted == nil {
		x.sorted = slices.SortedFunc(maps.Keys(x.byPrefix), func(a, b netip.Prefix) int {
			return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
		})
	}
	at, _ := slices.BinarySearchFunc(x.sorted, p.Masked().Addr(), func(q netip.Prefix, a netip.Addr) int { return q.Addr().Compare(a) })
	for ; at < len(x.sorted) && p.Contains(x.sorted[at].Addr()); at++ {
		if x.sorted[at].Bits() > p.Bits() {
			out = append(out, x.byPrefix[x.sorted[at]]...)
		}
	}
	return out
}
