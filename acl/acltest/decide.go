package acltest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/warren-overlay/warren/acl/compile"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/acl/zone"
)

// Question asks the policy about one flow between two devices.
type Question struct {
	From, To ident.NodeID
	Flow     ruleset.Flow
	Now      time.Time
	// MFAAge, Risk and Granted are what is known of the source at present.
	// Where they are nil, the directory's attributes and grants hold.
	MFAAge  *time.Duration
	Risk    *float64
	Granted []string
}

// Answer is the reference's decision.
type Answer struct {
	Allowed bool
	// Rule is the ID of a rule that decided, "" where none matched.
	Rule string
	// Reasons says, for each rule in the order of the document, "matches" or
	// what does not.
	Reasons []string
}

// Decide is the reference evaluator. It reads the document and the directory,
// rule by rule and selector by selector, with no regard for speed; what is
// compiled and filtered must decide the same.
func Decide(doc *policy.Document, dir *compile.Directory, q Question) Answer {
	from, to := findNode(dir, q.From), findNode(dir, q.To)
	if from == nil || to == nil || from == to {
		return Answer{Reasons: []string{"there is no such pair of devices"}}
	}
	source := *from
	source.Attributes = overrideFacts(from.Attributes, q)
	if q.Granted != nil {
		source.Granted = q.Granted
	}
	var a Answer
	denied := ""
	for i := range doc.Rules {
		r := &doc.Rules[i]
		why := mismatch(doc, dir, r, &source, to, q)
		if why != "" {
			a.Reasons = append(a.Reasons, r.ID+": "+why)
			continue
		}
		a.Reasons = append(a.Reasons, r.ID+": matches")
		switch {
		case r.Mode == policy.Audit:
		case r.Deny:
			denied = r.ID
		case !a.Allowed:
			a.Allowed, a.Rule = true, r.ID
		}
	}
	if denied != "" {
		a.Allowed, a.Rule = false, denied
	}
	return a
}

func findNode(dir *compile.Directory, id ident.NodeID) *compile.Node {
	for i := range dir.Nodes {
		if dir.Nodes[i].ID == id {
			return &dir.Nodes[i]
		}
	}
	return nil
}

func overrideFacts(attributes map[string]string, q Question) map[string]string {
	out := map[string]string{}
	for k, v := range attributes {
		out[k] = v
	}
	if q.MFAAge != nil {
		out["warren:mfaAge"] = fmt.Sprint(q.MFAAge.Seconds())
	}
	if q.Risk != nil {
		out["warren:risk"] = fmt.Sprint(*q.Risk)
	}
	return out
}

// mismatch says why a rule is not about the flow, or "".
func mismatch(doc *policy.Document, dir *compile.Directory, r *policy.Rule, source, target *compile.Node, q Question) string {
	if !r.NotBefore.IsZero() && q.Now.Before(r.NotBefore) || !r.NotAfter.IsZero() && !q.Now.Before(r.NotAfter) {
		return "it does not hold at this time"
	}
	if r.Schedule != nil && !scheduleOpen(r.Schedule, q.Now) {
		return "its schedule is closed"
	}
	if !postureAllows(doc, r, source) {
		return "the source satisfies none of its postures"
	}
	why := "its dst is empty"
	for _, to := range r.Dst {
		if why = destinationMismatch(doc, dir, r, to, source, target, q); why == "" {
			return ""
		}
	}
	return why
}

func postureAllows(doc *policy.Document, r *policy.Rule, source *compile.Node) bool {
	names := r.SrcPosture
	if names == nil {
		names = doc.DefaultSrc
	}
	if len(names) == 0 {
		return true
	}
	for _, n := range names {
		if satisfies(doc, n.Name, source) {
			return true
		}
	}
	return false
}

func satisfies(doc *policy.Document, posture string, n *compile.Node) bool {
	attributes := map[string]policy.Value{}
	for k, v := range n.Attributes {
		attributes[k] = policy.Value{Text: v}
	}
	for _, p := range doc.Postures {
		if p.Name != posture {
			continue
		}
		for _, c := range p.Conditions {
			if !c.Holds(attributes) {
				return false
			}
		}
		return true
	}
	return false
}

func destinationMismatch(doc *policy.Document, dir *compile.Directory, r *policy.Rule, to policy.Destination, source, target *compile.Node, q Question) string {
	if to.Kind == policy.ResourceName {
		return resourceMismatch(doc, dir, r, to, source, target, q)
	}
	if !serves(to.Services, q.Flow) {
		return "it does not admit the protocol and port"
	}
	self := to.Kind == policy.Autogroup && to.Name == "autogroup:self"
	if self {
		if len(source.Tags) > 0 || len(target.Tags) > 0 || source.Owner == 0 || source.Owner != target.Owner {
			return "the devices are not of one user"
		}
		if !owns(source, q.Flow.Source) || !owns(target, q.Flow.Destination) {
			return "an address is not the device's own"
		}
	} else if !destinationPicks(doc, dir, to.Selector, target, q.Flow.Destination, r.Via) {
		return "the destination is not in its dst"
	}
	for _, s := range r.Src {
		if sourcePicks(doc, dir, s, source, q.Flow.Source) {
			return ""
		}
	}
	return "the source is not in its src"
}

func resourceMismatch(doc *policy.Document, dir *compile.Directory, r *policy.Rule, to policy.Destination, source, target *compile.Node, q Question) string {
	why := "the resource has no target"
	for _, resource := range doc.Resources {
		if "resource:"+resource.Name != to.Name {
			continue
		}
		if missing := levelMissing(doc, &resource, source); missing != "" {
			return missing
		}
		for _, selector := range resource.Target {
			d := policy.Destination{Selector: selector, Services: resource.Services}
			if why = destinationMismatch(doc, dir, r, d, source, target, q); why == "" {
				return ""
			}
		}
	}
	return why
}

// levelMissing says what of a resource's sensitivity the source lacks, or "".
func levelMissing(doc *policy.Document, resource *policy.Resource, source *compile.Node) string {
	for _, l := range doc.Levels {
		if l.Name != resource.Sensitivity {
			continue
		}
		var number float64
		read := func(name string) bool {
			_, err := fmt.Sscanf(source.Attributes[name], "%g", &number)
			return err == nil
		}
		switch {
		case l.MFAMaxAge > 0 && (!read("warren:mfaAge") || number > l.MFAMaxAge.Seconds()):
			return "the last strong sign-in is too long ago"
		case l.MaxRisk != nil && (!read("warren:risk") || number > *l.MaxRisk):
			return "the risk is too high"
		case l.Country != nil && !slices.Contains(l.Country, strings.ToUpper(source.Attributes["ip:country"])):
			return "the country is not admitted"
		case l.JIT && !slices.Contains(source.Granted, resource.Name):
			return "no approved request covers it"
		}
		for _, posture := range l.Posture {
			if !satisfies(doc, posture.Name, source) {
				return "the source does not satisfy " + posture.Name
			}
		}
	}
	return ""
}

func serves(services []policy.Service, f ruleset.Flow) bool {
	for _, s := range services {
		if !slices.Contains(s.Protocols, f.Protocol) {
			continue
		}
		ported := f.Protocol == 6 || f.Protocol == 17 || f.Protocol == 132
		if !ported || s.First <= f.Port && f.Port <= s.Last {
			return true
		}
	}
	return false
}

func owns(n *compile.Node, a netip.Addr) bool { return slices.Contains(n.Addresses, a) }

func routes(n *compile.Node, a netip.Addr, defaults bool) bool {
	for _, p := range n.Routes {
		if p.Contains(a) && (p.Bits() > 0 || defaults && publicInternet(a)) {
			return true
		}
	}
	return false
}

func inPrefixes(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func sourcePicks(doc *policy.Document, dir *compile.Directory, s policy.Selector, n *compile.Node, a netip.Addr) bool {
	switch {
	case s.Kind == policy.Any:
		return owns(n, a) || routes(n, a, false)
	case s.Kind == policy.Autogroup && s.Name == "autogroup:danger-all":
		return owns(n, a) || routes(n, a, true)
	case s.Kind == policy.Address:
		return inPrefixes(s.Prefixes, a) && (owns(n, a) || routes(n, a, true))
	default:
		return owns(n, a) && is(doc, dir, s, n)
	}
}

// publicInternet reports whether an address is one of the internet's: not
// private, shared, local, multicast or reserved, and in IPv6 global unicast.
func publicInternet(a netip.Addr) bool {
	if a.Is6() {
		return netip.MustParsePrefix("2000::/3").Contains(a)
	}
	b := a.As4()
	switch {
	case b[0] == 0, b[0] == 10, b[0] == 127, b[0] >= 224:
		return false
	case b[0] == 100 && b[1]&0xc0 == 64, b[0] == 169 && b[1] == 254, b[0] == 172 && b[1]&0xf0 == 16, b[0] == 192 && b[1] == 168:
		return false
	}
	return true
}

func destinationPicks(doc *policy.Document, dir *compile.Directory, s policy.Selector, n *compile.Node, a netip.Addr, via []policy.Name) bool {
	if len(via) > 0 {
		tagged := false
		for _, t := range via {
			tagged = tagged || slices.Contains(n.Tags, ident.Tag(t.Name))
		}
		if !tagged {
			return false
		}
	}
	reached := owns(n, a) || routes(n, a, true)
	switch {
	case s.Kind == policy.Any:
		return reached
	case s.Kind == policy.Autogroup && s.Name == "autogroup:internet":
		return reached && publicInternet(a)
	case s.Kind == policy.Address:
		return reached && inPrefixes(s.Prefixes, a)
	default:
		return len(via) == 0 && owns(n, a) && is(doc, dir, s, n)
	}
}

// is reports whether the device is one that the selector names by who it is.
func is(doc *policy.Document, dir *compile.Directory, s policy.Selector, n *compile.Node) bool {
	if s.Kind == policy.TagName {
		return slices.Contains(n.Tags, ident.Tag(s.Name))
	}
	if len(n.Tags) > 0 {
		return s.Kind == policy.Autogroup && s.Name == "autogroup:tagged"
	}
	var user *compile.User
	for i := range dir.Users {
		if dir.Users[i].ID == n.Owner && n.Owner != 0 {
			user = &dir.Users[i]
		}
	}
	if user == nil {
		return false
	}
	logins := []string{strings.ToLower(user.Name), strings.ToLower(user.Email)}
	if !strings.Contains(user.Name, "@") {
		logins = append(logins, strings.ToLower(user.Name)+"@")
	}
	switch s.Kind {
	case policy.User:
		return slices.Contains(logins, s.Name)
	case policy.Domain:
		return strings.HasSuffix(logins[1], "@"+s.Name) || logins[1] == "" && strings.HasSuffix(logins[0], "@"+s.Name)
	case policy.GroupName:
		for _, g := range doc.Groups {
			for _, m := range g.Members {
				if g.Name == s.Name && slices.Contains(logins, m.Name) {
					return true
				}
			}
		}
		return false
	}
	switch role := strings.TrimPrefix(s.Name, "autogroup:"); role {
	case "member":
		return true
	case "admin":
		return user.Role == "admin" || user.Role == "owner"
	case "owner", "it-admin", "network-admin", "auditor", "billing-admin":
		return user.Role == role
	default:
		return false
	}
}

func scheduleOpen(s *policy.Schedule, now time.Time) bool {
	location, err := zone.Load(s.Zone)
	if err != nil {
		return false
	}
	local := now.In(location)
	minute := uint16(local.Hour()*60 + local.Minute())
	for _, w := range s.Windows {
		for _, day := range []int{0, -1} { // windows that begin today and yesterday
			weekday := (int(local.Weekday()) + day + 7) % 7
			if w.Days&(1<<weekday) == 0 {
				continue
			}
			at := minute
			end := w.End
			if end <= w.Start {
				end += 24 * 60
			}
			if day < 0 {
				at += 24 * 60
			}
			if w.Start <= at && at < end {
				return true
			}
		}
	}
	return false
}
