package compile

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
)

// SSHRule admits logins from some devices to one device. The rules of a device
// are asked in order; the first that matches the peer and the requested user
// decides.
type SSHRule struct {
	// From lists the devices that may log in, by their addresses, sorted.
	From []netip.Addr
	// Users maps the user that is asked for to the local user: itself where
	// it is "=". "*" stands for every other name. An empty local user is not
	// admitted by this rule.
	Users map[string]string
	// Check asks for a fresh sign-in, which then holds for CheckPeriod; 0 is
	// each time.
	Check       bool
	CheckPeriod time.Duration
	// AcceptEnv lists the environment variables that the client may set.
	AcceptEnv []string
	// Recorders are the devices that record the session, by address; Enforce
	// refuses the session where none can be reached.
	Recorders []netip.Addr
	Enforce   bool
	// Line is where the rule stands in the document.
	Line int
}

// SSH returns the rules for logins to the device, rules that check before
// rules that accept, each in the order of the document. It is nil where there
// is no such device.
func (p *Policy) SSH(id ident.NodeID) []SSHRule {
	at, ok := p.byID[id]
	if !ok {
		return nil
	}
	target := p.slots[at]
	var out []SSHRule
	for _, r := range sshOrder(p.doc.SSH) {
		out = append(out, p.sshRules(r, target)...)
	}
	return out
}

// sshOrder puts the stricter action first, so that an accept elsewhere does
// not take a check away.
func sshOrder(rules []policy.SSHRule) []*policy.SSHRule {
	out := make([]*policy.SSHRule, len(rules))
	for i := range rules {
		out[i] = &rules[i]
	}
	slices.SortStableFunc(out, func(a, b *policy.SSHRule) int {
		rank := func(r *policy.SSHRule) int {
			if r.Check {
				return 0
			}
			return 1
		}
		return cmp.Compare(rank(a), rank(b))
	})
	return out
}

func (p *Policy) sshRules(r *policy.SSHRule, target *slot) []SSHRule {
	base := SSHRule{
		Check: r.Check, CheckPeriod: r.CheckPeriod, AcceptEnv: slices.Clone(r.AcceptEnv), Enforce: r.Enforce, Line: r.Pos.Line,
		Recorders: p.recorders(r),
	}
	users, perUser := sshUserMap(r)
	var together []netip.Addr
	var out []SSHRule
	for _, source := range p.sorted() {
		if !p.sshSource(r, source) || !sshTarget(r, source, target) {
			continue
		}
		if !perUser {
			together = append(together, source.identity.Addresses...)
			continue
		}
		own := base
		own.From = sortedAddresses(source.identity.Addresses)
		own.Users = users
		out = append(out, own)
		if u := p.users[source.identity.Owner]; u != nil {
			if local := sshLocalPart(r, &u.user); local != "" {
				own.Users = map[string]string{local: local}
				out = append(out, own)
			}
		}
	}
	if len(together) > 0 {
		base.From, base.Users = sortedAddresses(together), users
		out = append(out, base)
	}
	return out
}

// sorted returns the devices by id.
func (p *Policy) sorted() []*slot {
	out := slices.DeleteFunc(slices.Clone(p.slots), func(s *slot) bool { return s == nil })
	slices.SortFunc(out, func(a, b *slot) int { return cmp.Compare(a.node.ID, b.node.ID) })
	return out
}

func sortedAddresses(list []netip.Addr) []netip.Addr {
	out := slices.Clone(list)
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

func (p *Policy) recorders(r *policy.SSHRule) []netip.Addr {
	var out []netip.Addr
	for _, s := range p.sorted() {
		if slices.ContainsFunc(r.Recorder, func(sel policy.Selector) bool { return holds(sel, s.names) }) {
			out = append(out, s.identity.Addresses...)
		}
	}
	return sortedAddresses(out)
}

func (p *Policy) sshSource(r *policy.SSHRule, source *slot) bool {
	return sshSourceNamed(p.doc, r, source.names)
}

func sshSourceNamed(doc *policy.Document, r *policy.SSHRule, names []string) bool {
	if !slices.ContainsFunc(r.Src, func(s policy.Selector) bool { return holds(s, names) }) {
		return false
	}
	postures := r.SrcPosture
	if postures == nil {
		postures = doc.DefaultSrc
	}
	return len(postures) == 0 || slices.ContainsFunc(postures, func(n policy.Name) bool { return slices.Contains(names, n.Name) })
}

// sshTarget reports whether the rule leads from the source to the target. Of
// the devices that users own only the source's user's own can be meant. Where
// the rule speaks of local parts, a device also leads to itself: the captured
// answers of the service that the language comes from have it so.
func sshTarget(r *policy.SSHRule, source, target *slot) bool {
	sameOwner := source.identity.Owner != 0 && source.identity.Owner == target.identity.Owner
	for _, to := range r.Dst {
		switch {
		case to.Kind == policy.Autogroup && to.Name == "autogroup:self":
			if sameOwner {
				return true
			}
		case holds(to, target.names) && (target.identity.Owner == 0 || sameOwner):
			return true
		}
	}
	_, perUser := sshUserMap(r)
	return perUser && source == target && len(r.Dst) > 0
}

// sshUserMap returns whom everyone that the rule names may log in as, and
// whether the rule has local parts, which differ from user to user.
func sshUserMap(r *policy.SSHRule) (users map[string]string, perUser bool) {
	users = map[string]string{"root": ""}
	for _, n := range r.Users {
		if _, ok := localPartDomain(n.Name); ok {
			perUser = true
		} else if n.Name == "autogroup:nonroot" {
			users["*"] = "="
		} else {
			users[n.Name] = n.Name
		}
	}
	return users, perUser
}

// sshLocalPart returns the part before the @ of the user's address where the
// rule admits it, or "".
func sshLocalPart(r *policy.SSHRule, u *User) string {
	for _, n := range r.Users {
		if domain, ok := localPartDomain(n.Name); ok && strings.EqualFold(domain, u.domain()) {
			return u.localPart()
		}
	}
	return ""
}

// Attribute is a node attribute with its parameters.
type Attribute struct {
	Name string
	// Values are the parameters, each one JSON value; empty for a plain
	// attribute.
	Values []string
}

// Attributes returns what nodeAttrs gives the device, sorted by name.
func (p *Policy) Attributes(id ident.NodeID) []Attribute {
	at, ok := p.byID[id]
	if !ok {
		return nil
	}
	found := map[string][]string{}
	for _, a := range p.doc.NodeAttrs {
		if !slices.ContainsFunc(a.Target, func(s policy.Selector) bool { return p.targets(s, p.slots[at]) }) {
			continue
		}
		for _, n := range a.Attr {
			found[n.Name] = append(found[n.Name], []string(nil)...)
		}
		for _, app := range a.App {
			found[app.Name] = append(found[app.Name], app.Values...)
		}
	}
	var out []Attribute
	for _, name := range slices.Sorted(maps.Keys(found)) {
		out = append(out, Attribute{name, found[name]})
	}
	return out
}

// AddressPools returns the prefixes from which nodeAttrs lets the device's
// addresses be taken, in the order of the document.
func (p *Policy) AddressPools(id ident.NodeID) []netip.Prefix {
	at, ok := p.byID[id]
	if !ok {
		return nil
	}
	var out []netip.Prefix
	for _, a := range p.doc.NodeAttrs {
		if slices.ContainsFunc(a.Target, func(s policy.Selector) bool { return p.targets(s, p.slots[at]) }) {
			out = append(out, a.IPPool...)
		}
	}
	return out
}

// targets reports whether the selector names the device itself: by who it is,
// or by an address of its own.
func (p *Policy) targets(s policy.Selector, n *slot) bool {
	switch s.Kind {
	case policy.Any:
		return true
	case policy.Address:
		return slices.ContainsFunc(n.identity.Addresses, func(a netip.Addr) bool {
			return slices.ContainsFunc(s.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
		})
	default:
		return holds(s, n.names)
	}
}
