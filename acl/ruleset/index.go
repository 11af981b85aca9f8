package ruleset

import (
	"net/netip"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

// index finds the rules of one direction that match a flow. It asks three
// questions, each in a time that hardly grows with the number of rules:
//
//   - Which conditions on the peer's address does the peer's address of the flow
//     satisfy, and which conditions on the own address the own one? Rules whose
//     two conditions are the same share a scope; each address belongs to a class
//     that lists the scopes which speak of it. A device that routes nothing has
//     as many classes as it has addresses. The scopes in both lists match.
//   - What does a scope say of the flow's protocol and port? That is a table of
//     port ranges, with the outcome of all rules worked out beforehand.
//   - Rules that do not hold at all times are listed there and asked one by one.
//
// In nearly every network nearly all rules are in one scope: they speak of the
// devices' own addresses.
type index struct {
	rules  []Rule
	scopes []scope
	// briefs has what most scopes say, one for each scope, and cells what the
	// spans of the briefs mean.
	briefs       []brief
	cells        []cell
	theirs, ours classes
	timed        bool // one of the rules does not hold at all times
	// devices are there where the classes would take too much memory: the
	// conditions are then asked one by one.
	devices *devices
}

// scope is a set of rules with the same conditions on both addresses.
type scope struct {
	theirs, ours condition
	services     services
}

// condition says which addresses of a device a rule speaks of.
type condition struct {
	own      bool // the device's own
	subnets  bool // those that it routes, default routes left out
	prefixes []netip.Prefix
}

func (c *condition) appendKey(b []byte) []byte {
	b = append(b, 0)
	if c.own {
		b[len(b)-1] |= 1
	}
	if c.subnets {
		b[len(b)-1] |= 2
	}
	return appendPrefixes(b, c.prefixes)
}

// newIndex narrows rules to those that can match between self and peer.
func newIndex(rules []Rule, self, peer *ident.Identity) index {
	x := index{rules: rules}
	members := [][]place{}
	known := map[string]int{}
	var key []byte
	for at := range rules {
		r := &rules[at]
		theirs, ok := r.peerCondition(peer)
		if !ok || len(r.Services) == 0 {
			continue
		}
		ours := condition{own: len(r.Own) == 0, prefixes: r.Own}
		key = ours.appendKey(theirs.appendKey(key[:0]))
		n, ok := known[string(key)]
		if !ok {
			n = len(x.scopes)
			known[string(key)] = n
			x.scopes = append(x.scopes, scope{theirs: theirs, ours: ours})
			members = append(members, nil)
		}
		members[n] = append(members[n], place(at))
		x.timed = x.timed || r.timed()
	}
	if len(x.scopes) == 0 {
		return index{}
	}
	x.scopes = slices.Clip(x.scopes)
	for n := range x.scopes {
		x.scopes[n].services = newServices(rules, members[n])
		x.addBrief(&x.scopes[n].services)
	}
	x.cells = slices.Clip(x.cells)
	var fits [2]bool
	x.theirs, fits[0] = newClasses(peer, x.scopes, func(s *scope) *condition { return &s.theirs })
	x.ours, fits[1] = newClasses(self, x.scopes, func(s *scope) *condition { return &s.ours })
	if !fits[0] || !fits[1] {
		x.theirs, x.ours = classes{}, classes{}
		x.devices = newDevices(self, peer, len(x.scopes))
	}
	return x
}

// peerCondition joins the selectors that pick the peer, and reports whether
// there is one.
func (r *Rule) peerCondition(peer *ident.Identity) (c condition, ok bool) {
	for i := range r.Peers {
		sel := &r.Peers[i]
		if !peer.Labels.HasAll(sel.Labels) {
			continue
		}
		ok = true
		if len(sel.Prefixes) == 0 {
			c.own = true
			c.subnets = c.subnets || sel.Subnets
		} else {
			c.prefixes = append(c.prefixes, sel.Prefixes...)
		}
	}
	return c, ok
}

// matches returns two sets; the scopes that are in both speak of the flow's
// addresses. The first is an ascending list and not the larger one.
func (x *index) matches(dir Direction, f *Flow) (few []int32, many scopeSet) {
	if len(x.scopes) == 0 {
		return nil, scopeSet{}
	}
	theirs, ours := f.Source, f.Destination
	if dir == Out {
		theirs, ours = ours, theirs
	}
	if x.devices != nil {
		return x.devices.all, scopeSet{asked: &question{x, theirs, ours}}
	}
	few, bits := x.theirs.of(theirs)
	list, ourBits := x.ours.of(ours)
	if len(few) > len(list) {
		return list, scopeSet{list: few, bits: bits}
	}
	return few, scopeSet{list: list, bits: ourBits}
}

// tally collects what the index knows of a flow.
func (x *index) tally(dir Direction, f Flow, now time.Time) tally {
	t := newTally(x.rules)
	few, many := x.matches(dir, &f)
	for _, n := range few {
		if !many.has(n) {
			continue
		}
		c := x.find(n, f.Protocol, f.Port)
		if c == nil {
			continue
		}
		t.merge(c.always)
		for _, at := range c.timed {
			t.add(at, now)
		}
	}
	return t
}

// scopeSet is a set of scopes.
type scopeSet struct {
	list []int32 // ascending
	// bits has one for each scope, where it is there: a long list is not
	// searched for each flow.
	bits []uint64
	// asked, where it is there, says what is in the set instead.
	asked *question
}

func (s *scopeSet) has(n int32) bool {
	if len(s.list) == 1 {
		return s.list[0] == n
	}
	if s.bits != nil {
		return s.bits[n>>6]>>(n&63)&1 != 0
	}
	if s.asked != nil {
		return s.asked.concerns(n)
	}
	_, ok := slices.BinarySearch(s.list, n)
	return ok
}

// classes finds, for an address of one device, the scopes that speak of it.
type classes struct {
	own []ownClass
	// hosts has the addresses behind the device that are a class alone, as
	// where rules name hosts behind a router: there may be thousands.
	hosts hostTable
	// starts are where the address space behind the device changes its class,
	// ascending; routed has the class from each start on.
	starts []netip.Addr
	routed [][]int32
}

type ownClass struct {
	address netip.Addr
	scopes  scopeSet
}

// of returns the scopes that speak of an address, as the two parts of a scopeSet.
func (c *classes) of(a netip.Addr) ([]int32, []uint64) {
	for i := range c.own {
		if own := &c.own[i]; own.address == a {
			return own.scopes.list, own.scopes.bits
		}
	}
	if scopes, ok := c.hosts.find(a); ok {
		return scopes, nil
	}
	low, high := 0, len(c.starts)
	for low < high {
		if middle := (low + high) / 2; c.starts[middle].Compare(a) <= 0 {
			low = middle + 1
		} else {
			high = middle
		}
	}
	if low == 0 {
		return nil, nil
	}
	return c.routed[low-1], nil
}

// maxMarks bounds the entries in the classes of one device, to 16 MB: where many
// rules each speak of many prefixes behind a router, their number is the product
// of the two. What a coordinator can sign is ten times as much.
const maxMarks = 4 << 20

// newClasses returns the classes, and false where they would have more than
// maxMarks entries.
func newClasses(device *ident.Identity, scopes []scope, of func(*scope) *condition) (c classes, fits bool) {
	for _, a := range device.Addresses {
		own := ownClass{address: a}
		for n := range scopes {
			if cond := of(&scopes[n]); cond.own || inAny(cond.prefixes, a) {
				own.scopes.list = append(own.scopes.list, int32(n))
			}
		}
		own.scopes.list = slices.Clip(own.scopes.list)
		own.scopes.bits = make([]uint64, (len(scopes)+63)/64)
		for _, n := range own.scopes.list {
			own.scopes.bits[n>>6] |= 1 << (n & 63)
		}
		c.own = append(c.own, own)
	}
	if len(device.Routes) == 0 {
		return c, true
	}
	all := Covered(device.Routes)
	var subnets []netip.Prefix
	for _, p := range device.Routes {
		if p.Bits() > 0 {
			subnets = append(subnets, p)
		}
	}
	bounds := appendBounds(nil, all)
	for n := range scopes {
		bounds = appendBounds(bounds, of(&scopes[n]).prefixes)
	}
	slices.SortFunc(bounds, netip.Addr.Compare)
	c.starts = slices.Clip(slices.Compact(bounds))
	c.routed = make([][]int32, len(c.starts))
	behind := c.covered(all)
	behindSubnets := c.covered(subnets)
	marks := 0
	for n := range scopes {
		cond := of(&scopes[n])
		concerned := intersect(c.covered(cond.prefixes), behind)
		if cond.subnets {
			concerned = append(concerned, behindSubnets...)
		}
		for _, within := range concerned {
			if marks += within.to - within.from; marks > maxMarks {
				return classes{}, false
			}
			c.mark(within, int32(n))
		}
	}
	c.compress()
	return c, true
}

// compress moves classes of one address to hosts and joins what then are
// neighbours of one class.
func (c *classes) compress() {
	var starts []netip.Addr
	var routed [][]int32
	var hosts []host
	for at, start := range c.starts {
		if at+1 < len(c.starts) && c.starts[at+1] == start.Next() {
			hosts = append(hosts, host{start, c.routed[at]})
			continue
		}
		if n := len(routed); n == 0 && len(c.routed[at]) > 0 || n > 0 && !slices.Equal(routed[n-1], c.routed[at]) {
			starts = append(starts, start)
			routed = append(routed, slices.Clip(c.routed[at]))
		}
	}
	c.starts, c.routed = slices.Clip(starts), slices.Clip(routed)
	c.hosts = newHostTable(hosts)
}

func inAny(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// appendBounds appends where each prefix begins and where what follows it
// begins; what follows the last IPv4 address is the first IPv6 address.
func appendBounds(bounds []netip.Addr, prefixes []netip.Prefix) []netip.Addr {
	for _, p := range prefixes {
		if !p.IsValid() {
			continue
		}
		bounds = append(bounds, p.Masked().Addr())
		if next := afterLast(p); next.IsValid() {
			bounds = append(bounds, next)
		}
	}
	return bounds
}

// afterLast returns the address that follows the last one of p, the zero Addr
// where none does.
func afterLast(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < 8*len(b); bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	if next := last.Next(); next.IsValid() {
		return next
	}
	if last.Is4() {
		return netip.IPv6Unspecified()
	}
	return netip.Addr{}
}

// span is a range of places in classes.starts, the end not included.
type span struct{ from, to int }

// covered returns which parts of the address space the prefixes cover, as
// ascending spans that do not touch. All their bounds must be in c.starts.
func (c *classes) covered(prefixes []netip.Prefix) []span {
	var spans []span
	for _, p := range prefixes {
		if !p.IsValid() {
			continue
		}
		from, _ := slices.BinarySearchFunc(c.starts, p.Masked().Addr(), netip.Addr.Compare)
		to := len(c.starts)
		if next := afterLast(p); next.IsValid() {
			to, _ = slices.BinarySearchFunc(c.starts, next, netip.Addr.Compare)
		}
		spans = append(spans, span{from, to})
	}
	slices.SortFunc(spans, func(a, b span) int { return a.from - b.from })
	var merged []span
	for _, s := range spans {
		if n := len(merged); n > 0 && s.from <= merged[n-1].to {
			merged[n-1].to = max(merged[n-1].to, s.to)
		} else {
			merged = append(merged, s)
		}
	}
	return merged
}

func intersect(a, b []span) []span {
	var both []span
	for len(a) > 0 && len(b) > 0 {
		if s := (span{max(a[0].from, b[0].from), min(a[0].to, b[0].to)}); s.from < s.to {
			both = append(both, s)
		}
		if a[0].to < b[0].to {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return both
}

// mark adds a scope to the classes of a span. Scopes come in ascending order.
func (c *classes) mark(s span, scope int32) {
	for at := s.from; at < s.to; at++ {
		if n := len(c.routed[at]); n == 0 || c.routed[at][n-1] != scope {
			c.routed[at] = append(c.routed[at], scope)
		}
	}
}
