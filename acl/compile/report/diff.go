package report

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/warren-overlay/warren/acl/compile"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// Change is an access that someone gains or loses.
type Change struct {
	Change string `json:"change"` // "gains" or "loses"
	// Who is the user or the tags of the devices that the access is from.
	Who string `json:"who"`
	// From names the devices.
	From []string `json:"from"`
	// To is the device that is reached, Destination the address where that is
	// not the device itself.
	To          string `json:"to"`
	Destination string `json:"destination,omitempty"`
	// Access is protocols and ports, a capability, or a login.
	Access []string `json:"access"`
}

// access is one thing that one device may do at another.
type access struct {
	from, to    ident.NodeID
	destination string
	what        string
}

// Diff lists who gains and who loses which access when the second policy
// replaces the first, at the given time. Both are compiled for the same
// directory. Rules in audit mode change nothing. The list is never nil.
func Diff(before, after *compile.Policy, now time.Time) []Change {
	gained, lost := map[access]bool{}, map[access]bool{}
	for _, to := range after.Nodes() {
		self, _ := after.Identity(to)
		was, is := before.RuleSet(to), after.RuleSet(to)
		peers := append(before.Peers(to), after.Peers(to)...)
		slices.Sort(peers)
		for _, from := range slices.Compact(peers) {
			old, _ := before.Identity(from)
			peer, _ := after.Identity(from)
			b := side{was, &old, was.ForPeer(&self, &old)}
			a := side{is, &peer, is.ForPeer(&self, &peer)}
			more, less := compareFlows(b, a, &self, now)
			maps.Copy(gained, more)
			maps.Copy(lost, less)
		}
		had, has := map[access]bool{}, map[access]bool{}
		extras(had, before, to, now)
		extras(has, after, to, now)
		for _, a := range sortedAccesses(had) {
			if !has[a] {
				lost[a] = true
			}
		}
		for _, a := range sortedAccesses(has) {
			if !had[a] {
				gained[a] = true
			}
		}
	}
	rows := append(changes(lost, "loses", before), changes(gained, "gains", after)...)
	if rows = fold(rows); rows == nil {
		rows = []Change{}
	}
	return rows
}

func changes(set map[access]bool, change string, p *compile.Policy) []Change {
	var out []Change
	for _, a := range sortedAccesses(set) {
		from, _ := p.Node(compile.Endpoint{Node: a.from})
		to, _ := p.Node(compile.Endpoint{Node: a.to})
		out = append(out, Change{change, who(p, &from), []string{from.Name}, to.Name, a.destination, []string{a.what}})
	}
	return out
}

func sortedAccesses(set map[access]bool) []access {
	return slices.SortedFunc(maps.Keys(set), func(a, b access) int {
		return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to), cmp.Compare(a.destination, b.destination), cmp.Compare(a.what, b.what))
	})
}

// who names the user of a device, or its tags.
func who(p *compile.Policy, n *compile.Node) string {
	if len(n.Tags) > 0 {
		tags := make([]string, len(n.Tags))
		for i, t := range n.Tags {
			tags[i] = string(t)
		}
		return strings.Join(tags, ",")
	}
	for _, label := range p.LabelNames(n.ID) {
		if login, ok := strings.CutPrefix(label, "user:"); ok && !strings.HasSuffix(login, "@") && strings.Contains(login, "@") {
			return login
		}
	}
	for _, label := range p.LabelNames(n.ID) {
		if login, ok := strings.CutPrefix(label, "user:"); ok {
			return login
		}
	}
	return n.Name
}

// fold joins changes that differ in the access or the device only.
func fold(rows []Change) []Change {
	byAccess := joinRows(rows, func(c *Change) string {
		return fmt.Sprintf("%q %q %q %q %q", c.Change, c.Who, c.From, c.To, c.Destination)
	}, func(to, from *Change) { to.Access = append(to.Access, from.Access...) })
	for i := range byAccess {
		slices.Sort(byAccess[i].Access)
	}
	byDevice := joinRows(byAccess, func(c *Change) string {
		return fmt.Sprintf("%q %q %q %q %q", c.Change, c.Who, c.To, c.Destination, c.Access)
	}, func(to, from *Change) { to.From = append(to.From, from.From...) })
	slices.SortStableFunc(byDevice, func(a, b Change) int {
		return cmp.Or(cmp.Compare(a.Change, b.Change), cmp.Compare(a.Who, b.Who), cmp.Compare(a.To, b.To), cmp.Compare(a.Destination, b.Destination))
	})
	return byDevice
}

func joinRows(rows []Change, key func(*Change) string, join func(to, from *Change)) []Change {
	at := map[string]int{}
	var out []Change
	for i := range rows {
		k := key(&rows[i])
		if j, ok := at[k]; ok {
			join(&out[j], &rows[i])
			continue
		}
		at[k] = len(out)
		out = append(out, rows[i])
	}
	return out
}

// side is one of the two policies, for one pair of devices.
type side struct {
	set   *ruleset.RuleSet
	peer  *ident.Identity
	rules *ruleset.PeerRules
}

// relevant returns the rules that are about the peer.
func (s *side) relevant() []ruleset.Rule {
	return slices.DeleteFunc(slices.Clone(s.set.In), func(r ruleset.Rule) bool {
		return r.Mode != ruleset.Enforce || !slices.ContainsFunc(r.Peers, func(sel ruleset.Selector) bool { return s.peer.Labels.HasAll(sel.Labels) })
	})
}

// compareFlows asks both policies at every point at which either can differ.
func compareFlows(before, after side, self *ident.Identity, now time.Time) (gained, lost map[access]bool) {
	gained, lost = map[access]bool{}, map[access]bool{}
	rules := append(before.relevant(), after.relevant()...)
	if len(rules) == 0 {
		return nil, nil
	}
	var own, theirs []netip.Prefix
	for i := range rules {
		own = append(own, rules[i].Own...)
		for _, s := range rules[i].Peers {
			theirs = append(theirs, s.Prefixes...)
			if s.Subnets {
				theirs = append(theirs, after.peer.Routes...)
			}
		}
	}
	targets, origins := places(own, self), places(theirs, after.peer)
	for _, protocol := range protocols(rules) {
		cuts := portCuts(rules, protocol)
		for _, d := range targets {
			for _, s := range origins {
				if s.point.Is4() != d.point.Is4() {
					continue
				}
				f := ruleset.Flow{Source: s.point, Destination: d.point, Protocol: protocol}
				add := func(to map[access]bool, first, last int) {
					what := policy.ProtocolName(protocol)
					if policy.HasPorts(protocol) {
						what += ":" + portText(first, last)
					}
					if s.text != "" {
						what += " from " + s.text
					}
					to[access{after.peer.Node, self.Node, d.text, what}] = true
				}
				runs(cuts, func(port int) int {
					f.Port = uint16(port)
					was, is := before.rules.Decide(ruleset.In, f, now).Allowed, after.rules.Decide(ruleset.In, f, now).Allowed
					switch {
					case is && !was:
						return 1
					case was && !is:
						return -1
					default:
						return 0
					}
				}, func(change, first, last int) {
					if change > 0 {
						add(gained, first, last)
					} else {
						add(lost, first, last)
					}
				})
			}
		}
	}
	for _, set := range [2]map[access]bool{gained, lost} {
		dropNested(set, targets)
	}
	return gained, lost
}

// runs calls report for each longest run of ports between cuts at which ask
// gives the same answer other than 0.
func runs(cuts []int, ask func(port int) int, report func(answer, first, last int)) {
	start, current := 0, 0
	for _, cut := range append(slices.Clone(cuts), 65536) {
		answer := 0
		if cut < 65536 {
			answer = ask(cut)
		}
		if answer == current {
			continue
		}
		if current != 0 {
			report(current, start, cut-1)
		}
		start, current = cut, answer
	}
}

// portCuts returns the first port of each part of the ports that the rules do
// not tell apart, from 0.
func portCuts(rules []ruleset.Rule, protocol uint8) []int {
	cuts := []int{0}
	if !policy.HasPorts(protocol) {
		return cuts
	}
	for i := range rules {
		for _, s := range rules[i].Services {
			if s.Protocol == protocol {
				cuts = append(cuts, int(s.First), min(int(s.Last)+1, 65535))
			}
		}
	}
	slices.Sort(cuts)
	return slices.Compact(cuts)
}

// dropNested leaves out a change to a part of a subnet where the whole subnet
// changes in the same way.
func dropNested(set map[access]bool, targets []place) {
	for _, inner := range targets {
		for _, outer := range targets {
			if inner.text == "" || outer.text == "" || !within(inner.text, outer.text) {
				continue
			}
			for _, a := range sortedAccesses(set) {
				whole := a
				whole.destination = outer.text
				if a.destination == inner.text && set[whole] {
					delete(set, a)
				}
			}
		}
	}
}

func within(inner, outer string) bool {
	p, err1 := netip.ParsePrefix(inner)
	q, err2 := netip.ParsePrefix(outer)
	return err1 == nil && err2 == nil && q.Bits() < p.Bits() && q.Contains(p.Addr())
}

// extras adds the capabilities and logins that a device admits.
func extras(out map[access]bool, p *compile.Policy, to ident.NodeID, now time.Time) {
	set := p.RuleSet(to)
	for _, from := range p.Peers(to) {
		peer, _ := p.Identity(from)
		s := side{set: set, peer: &peer}
		for _, r := range s.relevant() {
			if !r.Holds(now) {
				continue
			}
			for _, c := range r.Capabilities {
				what := "app " + c.Name
				if len(c.Values) > 0 {
					what += " " + strings.Join(c.Values, ",")
				}
				out[access{from, to, "", what}] = true
			}
		}
	}
	logins(out, p, to)
}

func portText(first, last int) string {
	switch {
	case first == 0 && last == 65535:
		return "*"
	case first == last:
		return fmt.Sprint(first)
	default:
		return fmt.Sprintf("%d-%d", first, last)
	}
}

// place is a set of addresses that the rules do not tell apart, with one of
// them.
type place struct {
	point netip.Addr
	text  string
}

// places lists the device itself, by an address of each family, and what it
// routes as far as the prefixes name it.
func places(prefixes []netip.Prefix, device *ident.Identity) []place {
	var out []place
	for _, a := range device.Addresses {
		if !slices.ContainsFunc(out, func(p place) bool { return p.point.Is4() == a.Is4() }) {
			out = append(out, place{point: a})
		}
	}
	all := ownPrefixes(prefixes, device)
	for _, p := range all {
		if p.IsSingleIP() && device.OwnsAddress(p.Addr()) {
			continue
		}
		if point, ok := ownPoint(p, all, device); ok {
			out = append(out, place{point, p.String()})
		}
	}
	return out
}

// ownPoint returns an address that the device routes, in the prefix and in
// none of the longer ones within it. The second result is false where the
// longer ones leave nothing.
func ownPoint(p netip.Prefix, all []netip.Prefix, device *ident.Identity) (netip.Addr, bool) {
	candidates := []netip.Addr{p.Addr()}
	routes := ruleset.Covered(device.Routes)
	for _, q := range slices.Concat(all, routes) {
		if p.Overlaps(q) && q.Bits() > p.Bits() {
			candidates = append(candidates, q.Addr(), lastOf(q).Next())
		}
	}
	for _, a := range candidates {
		if !a.IsValid() || !p.Contains(a) || !slices.ContainsFunc(routes, func(q netip.Prefix) bool { return q.Contains(a) }) {
			continue
		}
		if !slices.ContainsFunc(all, func(q netip.Prefix) bool { return q.Bits() > p.Bits() && q.Contains(a) }) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func protocols(rules []ruleset.Rule) []uint8 {
	var out []uint8
	for i := range rules {
		for _, s := range rules[i].Services {
			if !slices.Contains(out, s.Protocol) {
				out = append(out, s.Protocol)
			}
		}
	}
	return out
}

// logins adds the SSH logins that a device admits.
func logins(out map[access]bool, p *compile.Policy, to ident.NodeID) {
	byAddress := map[netip.Addr]ident.NodeID{}
	rules := p.SSH(to)
	if len(rules) == 0 {
		return
	}
	for _, id := range p.Nodes() {
		identity, _ := p.Identity(id)
		for _, a := range identity.Addresses {
			byAddress[a] = id
		}
	}
	for _, r := range rules {
		for _, a := range r.From {
			for _, user := range slices.Sorted(maps.Keys(r.Users)) {
				if r.Users[user] == "" || byAddress[a] == to {
					continue
				}
				what := "ssh as " + strings.Replace(user, "*", "anyone but root", 1)
				if r.Check {
					what += " after a check"
				}
				out[access{byAddress[a], to, "", what}] = true
			}
		}
	}
}

// Table returns the changes as lines of text for people, in columns.
func Table(changes []Change) string {
	if len(changes) == 0 {
		return "nobody gains or loses any access\n"
	}
	rows := [][]string{{"CHANGE", "WHO", "FROM", "TO", "ACCESS"}}
	for _, c := range changes {
		from := strings.Join(c.From, ", ")
		if len(c.From) > 3 {
			from = fmt.Sprintf("%s and %d more", strings.Join(c.From[:3], ", "), len(c.From)-3)
		}
		to := c.To
		if c.Destination != "" {
			to = c.Destination + " via " + c.To
		}
		rows = append(rows, []string{c.Change, c.Who, from, to, strings.Join(c.Access, ", ")})
	}
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], len(cell))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		for i, cell := range row {
			if i == len(row)-1 {
				b.WriteString(cell)
				break
			}
			fmt.Fprintf(&b, "%-*s  ", widths[i], cell)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
