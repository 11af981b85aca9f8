package compile

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// Endpoint is one end of a flow for explanations and tests: a device of the
// directory, or one that might join.
type Endpoint struct {
	// Name is how the endpoint was asked for.
	Name string
	// Node is the device, 0 for one that might join.
	Node ident.NodeID
	// Labels are its labels' names, sorted.
	Labels    []string
	Owner     ident.UserID
	Addresses []netip.Addr
	Routes    []netip.Prefix
}

func endpointOf(name string, s *slot) Endpoint {
	return Endpoint{
		Name: name, Node: s.node.ID, Labels: s.names, Owner: s.identity.Owner,
		Addresses: s.identity.Addresses, Routes: s.identity.Routes,
	}
}

// Gap is one thing that kept a rule from matching a flow.
type Gap struct {
	// Kind is "source", "posture", "sensitivity", "request", "destination",
	// "port", "protocol", "time", "self" or "via".
	Kind string `json:"kind"`
	// Text says it in words.
	Text string `json:"text"`
}

// Outcome is what one rule says of a flow.
type Outcome struct {
	Rule *policy.Rule
	// Matches says that the rule is about the flow and holds; Gaps is empty
	// then.
	Matches bool
	// Gaps lists what is missing, of the closest source and destination.
	Gaps []Gap
	// Reverse says that the rule would match the flow the other way round.
	Reverse bool
	// Until is when a matching rule may stop to hold, zero for never.
	Until time.Time
}

// Query is a flow to be judged.
type Query struct {
	From, To Endpoint
	// Source and Destination are the flow's addresses.
	Source, Destination netip.Addr
	Protocol            uint8
	Port                uint16
	Now                 time.Time
}

// Judge returns whether the flow is allowed and what each rule says of it, in
// the order of the document. It reads the document and not what it was
// compiled to.
func (p *Policy) Judge(q Query) (allowed bool, outcomes []Outcome) {
	denied := false
	for i := range p.doc.Rules {
		o := p.outcome(&p.doc.Rules[i], q)
		if !o.Matches && len(o.Gaps) > 0 {
			back := q
			back.From, back.To, back.Source, back.Destination = q.To, q.From, q.Destination, q.Source
			o.Reverse = p.outcome(&p.doc.Rules[i], back).Matches
		}
		if o.Matches && o.Rule.Mode == policy.Enforce {
			allowed = allowed || !o.Rule.Deny
			denied = denied || o.Rule.Deny
		}
		outcomes = append(outcomes, o)
	}
	return allowed && !denied, outcomes
}

func (p *Policy) outcome(r *policy.Rule, q Query) Outcome {
	o := Outcome{Rule: r}
	best := []Gap(nil)
	consider := func(gaps []Gap) {
		if best == nil || len(gaps) < len(best) {
			best = gaps
		}
		if gaps == nil {
			best = []Gap{}
		}
	}
	for _, to := range r.Dst {
		for _, target := range p.targetsOf(to) {
			gaps := p.targetGaps(r, target, q)
			consider(append(p.sourceGaps(r, target, q), gaps...))
			if len(best) == 0 && best != nil {
				break
			}
		}
	}
	if best == nil {
		best = []Gap{{"destination", "the rule has no destination"}}
	}
	rule := ruleset.Rule{NotBefore: r.NotBefore, NotAfter: r.NotAfter, Schedule: compileSchedule(r.Schedule)}
	if !rule.Holds(q.Now) {
		best = append(best, Gap{"time", whenHolds(r, q.Now)})
	}
	o.Gaps = best
	o.Matches = len(best) == 0
	if o.Matches {
		o.Until = rule.Boundary(q.Now)
	}
	return o
}

func whenHolds(r *policy.Rule, now time.Time) string {
	switch {
	case !r.NotBefore.IsZero() && now.Before(r.NotBefore):
		return "the rule holds from " + r.NotBefore.Format(time.RFC3339)
	case !r.NotAfter.IsZero() && !now.Before(r.NotAfter):
		return "the rule held until " + r.NotAfter.Format(time.RFC3339)
	default:
		return "the rule's schedule is closed at " + now.UTC().Format(time.RFC3339)
	}
}

// target is a destination with a resource replaced by what it stands for.
type target struct {
	policy.Selector
	services []policy.Service
	level    *policy.Level
	resource string
}

func (p *Policy) targetsOf(to policy.Destination) []target {
	if to.Kind != policy.ResourceName {
		return []target{{Selector: to.Selector, services: to.Services}}
	}
	name := strings.TrimPrefix(to.Name, "resource:")
	for i := range p.doc.Resources {
		r := &p.doc.Resources[i]
		if r.Name != name {
			continue
		}
		var level *policy.Level
		for j := range p.doc.Levels {
			if p.doc.Levels[j].Name == r.Sensitivity {
				level = &p.doc.Levels[j]
			}
		}
		var out []target
		for _, s := range r.Target {
			out = append(out, target{s, r.Services, level, r.Name})
		}
		return out
	}
	return nil
}

func (p *Policy) sourceGaps(r *policy.Rule, to target, q Query) []Gap {
	var gaps []Gap
	self := to.Kind == policy.Autogroup && to.Name == "autogroup:self"
	if !slices.ContainsFunc(r.Src, func(s policy.Selector) bool { return sourceMatches(s, &q.From, q.Source, self) }) {
		gaps = append(gaps, Gap{"source", fmt.Sprintf("%s is not in src %s", q.From.Name, nameList(r.Src))})
	}
	postures := r.SrcPosture
	if postures == nil {
		postures = p.doc.DefaultSrc
	}
	if len(postures) > 0 && !slices.ContainsFunc(postures, func(n policy.Name) bool { return slices.Contains(q.From.Labels, n.Name) }) {
		names := make([]string, len(postures))
		for i, n := range postures {
			names[i] = n.Name
		}
		gaps = append(gaps, Gap{"posture", fmt.Sprintf("%s does not satisfy %s", q.From.Name, strings.Join(names, " or "))})
	}
	if to.level != nil {
		if !slices.Contains(q.From.Labels, levelLabel(to.level.Name)) {
			gaps = append(gaps, Gap{"sensitivity", fmt.Sprintf("%s does not satisfy what sensitivity %q takes", q.From.Name, to.level.Name)})
		}
		if to.level.JIT && !slices.Contains(q.From.Labels, grantedLabel(to.resource)) {
			gaps = append(gaps, Gap{"request", fmt.Sprintf("%s has no approved request for resource %q", q.From.Name, to.resource)})
		}
	}
	return gaps
}

func sourceMatches(s policy.Selector, e *Endpoint, a netip.Addr, self bool) bool {
	want, ok := sourcePattern(s)
	if !ok || !hasAll(e.Labels, want.labels) {
		return false
	}
	own := slices.Contains(e.Addresses, a)
	switch {
	case len(want.prefixes) > 0:
		return contains(want.prefixes, a) && (own || contains(ruleset.Covered(e.Routes), a))
	case own:
		return true
	default:
		return want.subnets && !self && slices.ContainsFunc(e.Routes, func(p netip.Prefix) bool { return p.Bits() > 0 && p.Contains(a) })
	}
}

func (p *Policy) targetGaps(r *policy.Rule, to target, q Query) []Gap {
	var gaps []Gap
	switch {
	case to.Kind == policy.Autogroup && to.Name == "autogroup:self":
		if q.From.Owner == 0 || q.From.Owner != q.To.Owner {
			gaps = append(gaps, Gap{"self", fmt.Sprintf("%s and %s are not devices of the same user", q.From.Name, q.To.Name)})
		} else if !slices.Contains(q.To.Addresses, q.Destination) {
			gaps = append(gaps, Gap{"destination", fmt.Sprintf("%v is not an address of the device itself", q.Destination)})
		}
	default:
		want, ok := destinationPattern(to.Selector)
		switch own := slices.Contains(q.To.Addresses, q.Destination); {
		case !ok || !hasAll(q.To.Labels, want.labels),
			len(want.prefixes) == 0 && !own,
			len(want.prefixes) > 0 && (!contains(want.prefixes, q.Destination) || !own && !contains(ruleset.Covered(q.To.Routes), q.Destination)):
			gaps = append(gaps, Gap{"destination", fmt.Sprintf("%s is not %s", q.To.Name, to.Name)})
		case len(r.Via) > 0 && (len(want.prefixes) == 0 || !slices.ContainsFunc(r.Via, func(n policy.Name) bool { return slices.Contains(q.To.Labels, n.Name) })):
			gaps = append(gaps, Gap{"via", fmt.Sprintf("%s is not one of the routers of via", q.To.Name)})
		}
	}
	if gap, ok := serviceGap(to.services, q); !ok {
		gaps = append(gaps, gap)
	}
	return gaps
}

func serviceGap(services []policy.Service, q Query) (Gap, bool) {
	protocol := false
	for _, s := range services {
		if !slices.Contains(s.Protocols, q.Protocol) {
			continue
		}
		protocol = true
		if !policy.HasPorts(q.Protocol) || s.First <= q.Port && q.Port <= s.Last {
			return Gap{}, true
		}
	}
	switch {
	case len(services) == 0:
		return Gap{"port", "the rule grants capabilities only and opens no port"}, false
	case !protocol:
		return Gap{"protocol", fmt.Sprintf("protocol %s is not admitted, only %s", policy.ProtocolName(q.Protocol), DescribeServices(services))}, false
	default:
		return Gap{"port", fmt.Sprintf("port %d is not admitted, only %s", q.Port, DescribeServices(services))}, false
	}
}

func hasAll(have, want []string) bool {
	for _, l := range want {
		if !slices.Contains(have, l) {
			return false
		}
	}
	return true
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

func nameList(list []policy.Selector) string {
	if len(list) == 0 {
		return "(empty)"
	}
	names := make([]string, 0, 4)
	for i, s := range list {
		if i == 3 && len(list) > 4 {
			names = append(names, fmt.Sprintf("%d more", len(list)-3))
			break
		}
		names = append(names, selectorText(s))
	}
	return strings.Join(names, ", ")
}

func selectorText(s policy.Selector) string {
	if s.Kind == policy.Domain {
		return "user:*@" + s.Name
	}
	return s.Name
}

// DescribeServices says in the policy's own words what services are admitted.
func DescribeServices(services []policy.Service) string {
	var out []string
	for _, s := range services {
		ports := "*"
		switch {
		case s.First == s.Last:
			ports = fmt.Sprint(s.First)
		case s.First != 0 || s.Last != 65535:
			ports = fmt.Sprintf("%d-%d", s.First, s.Last)
		}
		if len(s.Protocols) == 1 {
			ports = policy.ProtocolName(s.Protocols[0]) + ":" + ports
		}
		if !slices.Contains(out, ports) {
			out = append(out, ports)
		}
	}
	return strings.Join(out, ", ")
}
