package acltest

import (
	"net/netip"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// decide searches the whole rule set for what is said of a flow that is opened
// in direction d (P16).
func (m *Filter) decide(f *flow, d filter.Direction, now time.Time) ruleset.Verdict {
	if m.rules == nil {
		return ruleset.Verdict{}
	}
	rules, port := m.rules.In, f.localPort
	if d == filter.Outbound {
		rules, port = m.rules.Out, f.remotePort
	}
	if f.echo {
		port = 0
	}
	verdict, decided := m.search(rules, f, now, speaks(f.protocol, port))
	if decided || !f.echo || m.Config.StrictEcho {
		return verdict
	}
	reaches := m.reach(rules, f, now)
	reaches.Until = sooner(verdict.Until, reaches.Until)
	would, by := verdict.Would, verdict.WouldRule
	if reaches.Allowed && would == ruleset.WouldAllow {
		would, by = ruleset.WouldChangeNothing, ""
	}
	reaches.Would, reaches.WouldRule = would, by
	return reaches
}

// speaks is the condition that a rule speaks of the protocol and port.
func speaks(protocol uint8, port uint16) func(*ruleset.Rule) bool {
	return func(r *ruleset.Rule) bool {
		for _, s := range r.Services {
			if (s.Protocol == protocol || s.Protocol == ruleset.AnyProtocol) && s.First <= port && port <= s.Last {
				return true
			}
		}
		return false
	}
}

// reach answers P13: who may open any flow but an echo may ask whether the host
// is there. It tries every protocol, and every port at which a rule begins or
// ends; a protocol that no rule names comes last.
func (m *Filter) reach(rules []ruleset.Rule, f *flow, now time.Time) ruleset.Verdict {
	ports, named := []int{0}, map[int]bool{}
	var until time.Time
	for i := range rules {
		r := &rules[i]
		if !m.speaksOf(r, f) {
			continue
		}
		open := false
		for _, s := range r.Services {
			if s.First <= s.Last {
				ports = append(ports, int(s.First), int(s.Last)+1)
				named[int(s.Protocol)] = true
				open = open || s.Protocol != packet.ICMP && s.Protocol != packet.ICMPv6
			}
		}
		if open && r.Mode == ruleset.Enforce {
			until = sooner(until, r.Boundary(now))
		}
	}
	slices.Sort(ports)
	var protocols []uint8
	var others []uint8
	for n := 1; n <= 255; n++ {
		switch {
		case n == int(packet.ICMP) || n == int(packet.ICMPv6):
		case named[n]:
			protocols = append(protocols, uint8(n))
		default:
			others = []uint8{uint8(n)}
		}
	}
	for _, protocol := range append(protocols, others...) {
		for _, port := range ports {
			if port > 65535 {
				continue
			}
			if v, _ := m.search(rules, f, now, speaks(protocol, uint16(port))); v.Allowed {
				v.Until = until
				return v
			}
		}
	}
	return ruleset.Verdict{Until: until}
}

// search collects the rules that speak of the flow's addresses and satisfy the
// condition. Deny wins; of those that admit, the one without or with the longest
// session, else the first.
func (m *Filter) search(rules []ruleset.Rule, f *flow, now time.Time, condition func(*ruleset.Rule) bool) (v ruleset.Verdict, decided bool) {
	var accepts, denies, auditAccepts, auditDenies []*ruleset.Rule
	for i := range rules {
		r := &rules[i]
		if !m.speaksOf(r, f) || !condition(r) {
			continue
		}
		if r.Mode == ruleset.Enforce {
			v.Until = sooner(v.Until, r.Boundary(now))
		}
		if !r.Holds(now) {
			continue
		}
		list := map[[2]bool]*[]*ruleset.Rule{
			{false, false}: &accepts, {false, true}: &denies, {true, false}: &auditAccepts, {true, true}: &auditDenies,
		}[[2]bool{r.Mode == ruleset.Audit, r.Action == ruleset.Deny}]
		*list = append(*list, r)
	}
	switch {
	case len(denies) > 0:
		v.Rule, decided = denies[0].ID, true
	case len(accepts) > 0:
		best := accepts[0]
		for _, r := range accepts {
			if best.MaxSession != 0 && (r.MaxSession == 0 || r.MaxSession > best.MaxSession) {
				best = r
			}
		}
		v.Allowed, v.Rule, v.MaxSession, decided = true, best.ID, best.MaxSession, true
		if len(auditDenies) > 0 {
			v.Would, v.WouldRule = ruleset.WouldDeny, auditDenies[0].ID
		}
	case len(auditDenies) == 0 && len(auditAccepts) > 0:
		v.Would, v.WouldRule = ruleset.WouldAllow, auditAccepts[0].ID
	}
	return v, decided
}

func (m *Filter) speaksOf(r *ruleset.Rule, f *flow) bool {
	if !lies(f.local, m.self, r.Own, false) {
		return false
	}
	for _, sel := range r.Peers {
		if m.peer.Labels.HasAll(sel.Labels) && lies(f.remote, m.peer, sel.Prefixes, sel.Subnets) {
			return true
		}
	}
	return false
}

// stands reports whether a is an address that the device routes, by a default
// route a public one only.
func stands(device *ident.Identity, a netip.Addr) bool {
	for _, p := range device.Routes {
		if p.Contains(a) && (p.Bits() > 0 || publicInternet(a)) {
			return true
		}
	}
	return false
}

// lies reports whether a is an address of the device's where a rule says.
func lies(a netip.Addr, device *ident.Identity, prefixes []netip.Prefix, subnets bool) bool {
	if device.OwnsAddress(a) && len(prefixes) == 0 {
		return true
	}
	if len(prefixes) == 0 {
		for _, p := range device.Routes {
			if subnets && p.Bits() > 0 && p.Contains(a) {
				return true
			}
		}
		return false
	}
	for _, p := range prefixes {
		if p.Contains(a) {
			return device.OwnsAddress(a) || stands(device, a)
		}
	}
	return false
}
