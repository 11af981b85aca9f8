package compile

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// TestFailure is an assertion of tests or sshTests that does not hold.
type TestFailure struct {
	policy.Position
	// Section is "tests" or "sshTests".
	Section string
	Message string
}

// String returns the place and the message in one line.
func (f TestFailure) String() string {
	return fmt.Sprintf("line %d, column %d: %s: %s", f.Line, f.Column, f.Section, f.Message)
}

// maxPairs bounds the pairs of a source and a destination that one assertion
// is tried on. Devices that rules cannot tell apart count once.
const maxPairs = 2_000

// RunTests runs the document's tests and sshTests against the present
// directory, in the order of the text. A name stands for each of its devices,
// or where it has none for one that might join: an accept must hold for all of
// them, a deny for each. Rules are taken to hold whatever the time.
func (p *Policy) RunTests() []TestFailure {
	var out []TestFailure
	for i := range p.doc.Tests {
		t := &p.doc.Tests[i]
		for _, message := range p.runTest(t) {
			out = append(out, TestFailure{t.Pos, "tests", message})
		}
	}
	for i := range p.doc.SSHTests {
		t := &p.doc.SSHTests[i]
		for _, message := range p.runSSHTest(t) {
			out = append(out, TestFailure{t.Pos, "sshTests", message})
		}
	}
	return out
}

func (p *Policy) runTest(t *policy.Test) []string {
	if t.Malformed != "" {
		return []string{t.Malformed}
	}
	sources, message := p.resolve(t.Src.Name, t.Attributes)
	if message != "" {
		return []string{fmt.Sprintf("src %q: %s", t.Src.Name, message)}
	}
	protocols := []uint8{6, 17}
	if t.Protocol != 0 {
		protocols = []uint8{t.Protocol}
	}
	var out []string
	for _, list := range []struct {
		destinations []policy.Name
		want         bool
	}{{t.Accept, true}, {t.Deny, false}} {
		for _, n := range list.destinations {
			if message := p.tryDestination(sources, n.Name, protocols, list.want); message != "" {
				out = append(out, message)
			}
		}
	}
	return out
}

func (p *Policy) tryDestination(sources []*slot, text string, protocols []uint8, want bool) string {
	at := strings.LastIndexByte(text, ':')
	if at < 0 {
		return fmt.Sprintf("%q has no port: write a host, a colon and one port", text)
	}
	host := strings.Trim(text[:at], "[]")
	port, ok := onePort(text[at+1:])
	if !ok {
		return fmt.Sprintf("%q: %q is not one port", text, text[at+1:])
	}
	verb := "deny"
	if want {
		verb = "accept"
	}
	pairs := 0
	rules := map[*slot]*ruleset.RuleSet{}
	for _, source := range sources {
		targets, address, message := p.resolveTarget(host, source)
		if message != "" {
			return fmt.Sprintf("%s %q: %s", verb, text, message)
		}
		for _, target := range targets {
			if pairs++; pairs > maxPairs {
				return fmt.Sprintf("%s %q: more than %d pairs of devices to try; name fewer", verb, text, maxPairs)
			}
			allowed := slices.ContainsFunc(protocols, func(protocol uint8) bool {
				return reaches(p.remembered(rules, source), p.remembered(rules, target), source, target, address, protocol, port)
			})
			if allowed != want {
				found := "denied"
				if allowed {
					found = "allowed"
				}
				return fmt.Sprintf("want %s of %s, but %s to %s is %s", verb, text, describeSlot(source), describeSlot(target), found)
			}
		}
	}
	return ""
}

func describeSlot(s *slot) string {
	switch {
	case s.node.ID != 0 && s.node.Name != "":
		return s.node.Name
	case s.node.Name != "":
		return "a device of " + s.node.Name
	default:
		return "a device"
	}
}

func onePort(text string) (uint16, bool) {
	n := 0
	for i := range len(text) {
		if text[i] < '0' || text[i] > '9' || i > 4 {
			return 0, false
		}
		n = n*10 + int(text[i]-'0')
	}
	return uint16(n), text != "" && n > 0 && n <= 65535
}

// resolve returns the devices that a test's src stands for, one of each kind
// that rules can tell apart. The second result says why there is none.
func (p *Policy) resolve(name string, attributes map[string]policy.Value) ([]*slot, string) {
	found, message := p.named(name)
	if message != "" {
		return nil, message
	}
	if attributes != nil {
		texts := map[string]string{}
		for _, key := range slices.Sorted(maps.Keys(attributes)) {
			texts[key] = strings.Trim(attributes[key].String(), "'")
		}
		for i, s := range found {
			n := s.node
			n.Attributes = texts
			found[i] = p.describe(n)
		}
	}
	return p.distinguishable(found), ""
}

// distinguishable keeps one device of each kind that rules can tell apart.
func (p *Policy) distinguishable(list []*slot) []*slot {
	seen := map[string]bool{}
	return slices.DeleteFunc(slices.Clone(list), func(s *slot) bool {
		var key strings.Builder
		fmt.Fprint(&key, s.identity.Owner, " ")
		for _, subject := range p.index.find(s) {
			fmt.Fprintf(&key, "%d:%s", len(subject.key), subject.key)
		}
		repeated := seen[key.String()]
		seen[key.String()] = true
		return repeated
	})
}

// named returns the devices that a name stands for, or one that might join.
func (p *Policy) named(name string) ([]*slot, string) {
	kind, _, _ := strings.Cut(name, ":")
	switch {
	case name == "*":
		return nil, "a test names who it is about; \"*\" does not"
	case kind == "group":
		return p.group(name)
	case kind == "tag":
		if !slices.ContainsFunc(p.doc.TagOwners, func(o policy.TagOwner) bool { return string(o.Tag) == name }) {
			return nil, "tag not found"
		}
		if found := p.holders(name); len(found) > 0 {
			return found, ""
		}
		return []*slot{p.mightJoin(Node{Name: name, Tags: []ident.Tag{ident.Tag(name)}})}, ""
	case kind == "autogroup":
		switch name {
		case "autogroup:member", "autogroup:members", "autogroup:tagged", "autogroup:admin", "autogroup:owner", "autogroup:it-admin",
			"autogroup:network-admin", "autogroup:auditor", "autogroup:billing-admin":
		default:
			return nil, "this autogroup stands for no devices here"
		}
		if name == "autogroup:members" {
			name = "autogroup:member"
		}
		if found := p.holders(name); len(found) > 0 {
			return found, ""
		}
		return nil, "no device is in it"
	case strings.Contains(name, "@"):
		return p.user(strings.ToLower(name))
	default:
		return p.address(name)
	}
}

func (p *Policy) holders(label string) []*slot {
	var out []*slot
	for _, s := range p.sorted() {
		if slices.Contains(s.names, label) {
			out = append(out, s)
		}
	}
	return out
}

func (p *Policy) user(login string) ([]*slot, string) {
	for _, u := range p.order {
		if !slices.Contains(u.logins(), login) {
			continue
		}
		if found := p.holders(ownerLabel(u.ID)); len(found) > 0 {
			return found, ""
		}
		return []*slot{p.mightJoin(Node{Name: login, Owner: u.ID})}, ""
	}
	return nil, "there is no such user"
}

func (p *Policy) group(name string) ([]*slot, string) {
	for _, g := range p.doc.Groups {
		if g.Name != name {
			continue
		}
		var out []*slot
		for _, m := range g.Members {
			found, message := p.user(m.Name)
			if message == "" {
				out = append(out, found...)
			}
		}
		if len(out) == 0 {
			return nil, "no user of the network is in it"
		}
		return out, ""
	}
	return nil, "group not found"
}

// address returns the device that owns or routes an address.
func (p *Policy) address(text string) ([]*slot, string) {
	prefix, message := p.host(text)
	if message != "" {
		return nil, message
	}
	a := prefix.Addr()
	var routers []*slot
	for _, s := range p.sorted() {
		if slices.Contains(s.identity.Addresses, a) {
			return []*slot{s}, ""
		}
		if contains(s.reach, a) {
			routers = append(routers, s)
		}
	}
	if len(routers) > 0 {
		return routers, ""
	}
	return []*slot{p.mightJoin(Node{Name: text, Addresses: []netip.Addr{a}})}, ""
}

func (p *Policy) host(text string) (netip.Prefix, string) {
	prefix := netip.Prefix{}
	for _, h := range p.doc.Hosts {
		if h.Name == text {
			prefix = h.Prefix
		}
	}
	if !prefix.IsValid() {
		if a, err := netip.ParseAddr(text); err == nil {
			prefix = netip.PrefixFrom(a, a.BitLen())
		} else if q, err := netip.ParsePrefix(text); err == nil {
			prefix = q
		} else {
			return prefix, "it is not a user, a group, a tag, a host or an address"
		}
	}
	if !prefix.IsSingleIP() {
		return prefix, fmt.Sprintf("%v is not one address; a test tries one", prefix)
	}
	return prefix, ""
}

// resolveTarget returns the devices that a destination stands for, and the
// address that is meant, zero for their own.
func (p *Policy) resolveTarget(host string, source *slot) ([]*slot, netip.Addr, string) {
	if host == "autogroup:self" {
		if source.identity.Owner == 0 {
			return nil, netip.Addr{}, "a tagged device has no self"
		}
		twin := source.node
		twin.ID, twin.Addresses, twin.Routes = 0, nil, nil
		return []*slot{p.mightJoin(twin)}, netip.Addr{}, ""
	}
	found, message := p.named(host)
	if message != "" {
		return nil, netip.Addr{}, message
	}
	var address netip.Addr
	if prefix, message := p.host(host); message == "" {
		address = prefix.Addr()
	}
	return found, address, ""
}

// mightJoin returns a device that is not in the directory.
func (p *Policy) mightJoin(n Node) *slot {
	if len(n.Addresses) == 0 {
		n.Addresses = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	return p.describe(n)
}

// reaches reports whether a flow from the source to the target is allowed, as
// both of them decide it, between any of their addresses of one family.
func reaches(sourceRules, targetRules *ruleset.RuleSet, source, target *slot, address netip.Addr, protocol uint8, port uint16) bool {
	targets := target.identity.Addresses
	if address.IsValid() {
		targets = []netip.Addr{address}
	}
	if !policy.HasPorts(protocol) {
		port = 0
	}
	out := sourceRules.ForPeer(&source.identity, &target.identity)
	in := targetRules.ForPeer(&target.identity, &source.identity)
	for _, from := range source.identity.Addresses {
		for _, to := range targets {
			f := ruleset.Flow{Source: from, Destination: to, Protocol: protocol, Port: port}
			if from.Is4() == to.Is4() && out.Decide(ruleset.Out, f, time.Time{}).Allowed && in.Decide(ruleset.In, f, time.Time{}).Allowed {
				return true
			}
		}
	}
	return false
}

// remembered returns a device's rules without regard to time, worked out once.
func (p *Policy) remembered(rules map[*slot]*ruleset.RuleSet, s *slot) *ruleset.RuleSet {
	if rules[s] == nil {
		rules[s] = p.timeless(s)
	}
	return rules[s]
}

// timeless returns a device's rules as if they held at all times.
func (p *Policy) timeless(s *slot) *ruleset.RuleSet {
	in, out := templatesOf(p.index.find(s), s)
	set := &ruleset.RuleSet{}
	owner := p.ownerOf(s)
	for _, direction := range []struct {
		from []*template
		to   *[]ruleset.Rule
	}{{in, &set.In}, {out, &set.Out}} {
		for _, t := range direction.from {
			r := t.instance(s, owner)
			r.NotBefore, r.NotAfter, r.Schedule = time.Time{}, time.Time{}, nil
			*direction.to = append(*direction.to, r)
		}
	}
	return set
}

// sshVerdict is what the rules say of a login.
type sshVerdict string

const (
	sshDenied  sshVerdict = "denied"
	sshAccept  sshVerdict = "accepted"
	sshChecked sshVerdict = "accepted after a check"
)

func (p *Policy) login(source, target *slot, user string) sshVerdict {
	for _, r := range sshOrder(p.doc.SSH) {
		if !p.sshSource(r, source) || !sshTarget(r, source, target) {
			continue
		}
		users, _ := sshUserMap(r)
		local, named := users[user]
		if !named {
			local = users["*"]
		}
		if u := p.users[source.identity.Owner]; u != nil && user != "" && sshLocalPart(r, &u.user) == user {
			local = user
		}
		if local == "" {
			continue
		}
		if r.Check {
			return sshChecked
		}
		return sshAccept
	}
	return sshDenied
}

func (p *Policy) runSSHTest(t *policy.SSHTest) []string {
	switch {
	case t.Src.Name == "":
		return []string{"it has no src"}
	case len(t.Dst) == 0:
		return []string{"it has no dst"}
	case len(t.Accept)+len(t.Deny)+len(t.Check) == 0:
		return []string{"it asserts nothing: write accept, deny or check"}
	}
	sources, message := p.named(t.Src.Name)
	if message != "" {
		return []string{fmt.Sprintf("src %q: %s", t.Src.Name, message)}
	}
	var out []string
	for _, to := range t.Dst {
		out = append(out, p.trySSH(t, sources, to.Name)...)
	}
	return out
}

func (p *Policy) trySSH(t *policy.SSHTest, sources []*slot, to string) []string {
	var out []string
	for _, list := range []struct {
		users []string
		want  sshVerdict
	}{{t.Accept, sshAccept}, {t.Deny, sshDenied}, {t.Check, sshChecked}} {
		for _, user := range list.users {
			if message := p.tryLogins(sources, to, user, list.want); message != "" {
				out = append(out, message)
			}
		}
	}
	return out
}

func (p *Policy) tryLogins(sources []*slot, to, user string, want sshVerdict) string {
	pairs := 0
	for _, source := range sources {
		targets, _, message := p.resolveTarget(to, source)
		if message != "" {
			return fmt.Sprintf("dst %q: %s", to, message)
		}
		for _, target := range targets {
			if pairs++; pairs > maxPairs {
				return fmt.Sprintf("dst %q: more than %d pairs of devices to try; name fewer", to, maxPairs)
			}
			got := p.login(source, target, user)
			if got != want && (want != sshAccept || got != sshChecked) {
				return fmt.Sprintf("want %q %s, but from %s to %s it is %s", user, want, describeSlot(source), describeSlot(target), got)
			}
		}
	}
	return ""
}
