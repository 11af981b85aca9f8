package ruleset

import (
	"net/netip"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

// linearRules is a rule set narrowed to the flows between this device and one
// peer, searched from the first rule to the last: the reference that PeerRules
// must equal.
type linearRules struct {
	self, peer ident.Identity
	rules      [2][]Rule // by Direction
}

// forPeerLinear narrows the set to the rules that can match between self and peer. A
// nil set denies everything. The identities are kept and must not be written
// to afterwards.
func forPeerLinear(s *RuleSet, self, peer *ident.Identity) *linearRules {
	p := &linearRules{self: *self, peer: *peer}
	if s == nil {
		return p
	}
	for dir, rules := range [2][]Rule{In: s.In, Out: s.Out} {
		for _, r := range rules {
			var peers []Selector
			for _, sel := range r.Peers {
				if peer.Labels.HasAll(sel.Labels) {
					peers = append(peers, sel)
				}
			}
			if len(peers) > 0 {
				r.Peers = peers
				p.rules[dir] = append(p.rules[dir], r)
			}
		}
	}
	return p
}

// Decide answers whether a flow may be opened in the given direction at the
// given time. Without a matching rule the answer is no.
func (p *linearRules) Decide(dir Direction, f Flow, now time.Time) Verdict {
	t := p.collect(dir, f, now)
	return t.verdict()
}

func (p *linearRules) collect(dir Direction, f Flow, now time.Time) (t linearTally) {
	for i := range p.rules[dir] {
		if r := &p.rules[dir][i]; p.spans(r, dir, f) && r.serves(f) {
			t.add(r, now)
		}
	}
	return t
}

// DecideEcho asks, where no rule says anything of the echo itself, of every
// protocol and every port at which a rule begins or ends, whether a flow may be
// opened; the first one that may is the answer.
func (p *linearRules) DecideEcho(dir Direction, f Flow, now time.Time) Verdict {
	f = f.echo()
	icmp := p.collect(dir, f, now)
	if icmp.decided() {
		return icmp.verdict()
	}
	var until time.Time
	listed := map[int]bool{}
	ports := []int{0}
	for i := range p.rules[dir] {
		r := &p.rules[dir][i]
		if !p.spans(r, dir, f) {
			continue
		}
		echoesOnly := true
		for _, s := range r.Services {
			if s.First > s.Last {
				continue
			}
			ports = append(ports, int(s.First), int(s.Last)+1)
			listed[int(s.Protocol)] = true
			echoesOnly = echoesOnly && (s.Protocol == protocolICMP || s.Protocol == protocolICMPv6)
		}
		if r.Mode == Enforce && !echoesOnly {
			until = earlier(until, r.Boundary(now))
		}
	}
	slices.Sort(ports)
	protocols := []int{}
	others := 0
	for n := 1; n <= 255; n++ {
		switch {
		case n == protocolICMP || n == protocolICMPv6:
		case listed[n]:
			protocols = append(protocols, n)
		default:
			others = n
		}
	}
	if others != 0 {
		protocols = append(protocols, others)
	}
	verdict := Verdict{}
search:
	for _, protocol := range protocols {
		for _, port := range ports {
			if port > 65535 {
				continue
			}
			f.Protocol, f.Port = uint8(protocol), uint16(port)
			t := p.collect(dir, f, now)
			if v := t.verdict(); v.Allowed {
				verdict = v
				break search
			}
		}
	}
	verdict.Until = until
	icmpVerdict := icmp.verdict()
	return icmpVerdict.or(verdict)
}

func (f Flow) echo() Flow {
	f.Protocol, f.Port = protocolICMP, 0
	if f.Destination.Is6() {
		f.Protocol = protocolICMPv6
	}
	return f
}

// linearTally collects the rules that match one flow.
type linearTally struct {
	accept, deny           *Rule
	auditAccept, auditDeny *Rule
	until                  time.Time
}

func (t *linearTally) add(r *Rule, now time.Time) {
	if r.Mode == Enforce {
		t.until = earlier(t.until, r.Boundary(now))
	}
	if !r.Holds(now) {
		return
	}
	switch {
	case r.Mode == Enforce && r.Action == Accept:
		if t.accept == nil || r.outlasts(t.accept) {
			t.accept = r
		}
	case r.Mode == Enforce:
		if t.deny == nil {
			t.deny = r
		}
	case r.Action == Accept:
		if t.auditAccept == nil {
			t.auditAccept = r
		}
	default:
		if t.auditDeny == nil {
			t.auditDeny = r
		}
	}
}

// outlasts reports whether r lets a flow last longer than s does.
func (r *Rule) outlasts(s *Rule) bool {
	return s.MaxSession != 0 && (r.MaxSession == 0 || r.MaxSession > s.MaxSession)
}

// decided reports whether an enforced rule holds.
func (t *linearTally) decided() bool { return t.accept != nil || t.deny != nil }

func (t *linearTally) verdict() Verdict {
	v := Verdict{Until: t.until}
	switch {
	case t.deny != nil:
		v.Rule = t.deny.ID
	case t.accept != nil:
		v.Allowed, v.Rule, v.MaxSession = true, t.accept.ID, t.accept.MaxSession
	}
	switch {
	case v.Allowed && t.auditDeny != nil:
		v.Would, v.WouldRule = WouldDeny, t.auditDeny.ID
	case !t.decided() && t.auditDeny == nil && t.auditAccept != nil:
		v.Would, v.WouldRule = WouldAllow, t.auditAccept.ID
	}
	return v
}

// spans reports whether the flow's addresses are ones that the rule speaks of.
func (p *linearRules) spans(r *Rule, dir Direction, f Flow) bool {
	theirs, ours := f.Source, f.Destination
	if dir == Out {
		theirs, ours = ours, theirs
	}
	return p.picksPeer(r, theirs) && within(r.Own, &p.self, ours)
}

func (p *linearRules) picksPeer(r *Rule, theirs netip.Addr) bool {
	for i := range r.Peers {
		if within(r.Peers[i].Prefixes, &p.peer, theirs) || r.Peers[i].Subnets && len(r.Peers[i].Prefixes) == 0 && inSubnets(&p.peer, theirs) {
			return true
		}
	}
	return false
}

// within reports whether a is an address of the device's that the prefixes
// speak of; without prefixes these are its own addresses.
func within(prefixes []netip.Prefix, device *ident.Identity, a netip.Addr) bool {
	if len(prefixes) == 0 {
		return device.OwnsAddress(a)
	}
	for _, p := range prefixes {
		if p.Contains(a) {
			return device.OwnsAddress(a) || inSubnets(device, a) || device.RoutesAddress(a) && isPublic(a)
		}
	}
	return false
}

// isPublic says of a default route which addresses it is for.
func isPublic(a netip.Addr) bool {
	if a.Is6() {
		return netip.MustParsePrefix("2000::/3").Contains(a)
	}
	b := a.As4()
	return b[0] != 0 && b[0] < 224 && !a.IsPrivate() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && (b[0] != 100 || b[1]&0xc0 != 64)
}

// inSubnets reports whether a lies in a subnet that the device routes, default
// routes left out.
func inSubnets(device *ident.Identity, a netip.Addr) bool {
	for _, p := range device.Routes {
		if p.Bits() > 0 && p.Contains(a) {
			return true
		}
	}
	return false
}

func (r *Rule) serves(f Flow) bool {
	for _, s := range r.Services {
		if (s.Protocol == AnyProtocol || s.Protocol == f.Protocol) && s.First <= f.Port && f.Port <= s.Last {
			return true
		}
	}
	return false
}
