package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/tailscale/hujson"
	"github.com/warren-overlay/warren/acl/ident"
)

// selectorSet says which kinds of selectors a place takes.
type selectorSet struct {
	what       string // the place, for messages
	kinds      []Kind
	autogroups []string
	// want is what would be right, for messages.
	want string
}

var roleAutogroups = []string{
	"autogroup:member", "autogroup:admin", "autogroup:owner", "autogroup:it-admin",
	"autogroup:network-admin", "autogroup:auditor", "autogroup:billing-admin",
}

func autogroups(more ...string) []string { return append(slices.Clone(roleAutogroups), more...) }

// everyAutogroup is every name that is one, whatever the place.
var everyAutogroup = autogroups("autogroup:tagged", "autogroup:self", "autogroup:internet", "autogroup:nonroot",
	"autogroup:shared", "autogroup:danger-all", "autogroup:members")

var (
	anySource = selectorSet{
		what:       "src",
		kinds:      []Kind{Any, User, Domain, GroupName, TagName, Autogroup, Address},
		autogroups: autogroups("autogroup:tagged", "autogroup:shared", "autogroup:danger-all"),
		want:       `write "*", a user, group:NAME, tag:NAME, autogroup:NAME, a host, an ipset or an address`,
	}
	anyDestination = selectorSet{
		what:       "dst",
		kinds:      []Kind{Any, User, Domain, GroupName, TagName, Autogroup, Address, ResourceName},
		autogroups: autogroups("autogroup:tagged", "autogroup:self", "autogroup:internet", "autogroup:shared"),
		want:       `write "*", a user, group:NAME, tag:NAME, autogroup:NAME, a host, an ipset, an address or resource:NAME`,
	}
	resourceTarget = selectorSet{
		what:       "target",
		kinds:      []Kind{User, GroupName, TagName, Autogroup, Address},
		autogroups: autogroups("autogroup:tagged", "autogroup:internet"),
		want:       "write a user, group:NAME, tag:NAME, autogroup:NAME, a host, an ipset or an address",
	}
	sshSource = selectorSet{
		what:       "src",
		kinds:      []Kind{User, Domain, GroupName, TagName, Autogroup},
		autogroups: autogroups("autogroup:tagged", "autogroup:shared"),
		want:       "write a user, group:NAME, tag:NAME or autogroup:NAME",
	}
	sshDestination = selectorSet{
		what:       "dst",
		kinds:      []Kind{User, TagName, Autogroup},
		autogroups: []string{"autogroup:self", "autogroup:member", "autogroup:tagged"},
		want:       "write tag:NAME, autogroup:self or the user that is the only src",
	}
	groupMember = selectorSet{what: "a group's member", kinds: []Kind{User}, want: "write a user's login name, such as alice@example.com"}
	people      = selectorSet{
		what:       "an entry",
		kinds:      []Kind{User, GroupName, TagName, Autogroup},
		autogroups: autogroups("autogroup:tagged"),
		want:       "write a user, group:NAME, tag:NAME or an autogroup of users",
	}
	requester = selectorSet{
		what:       "an entry",
		kinds:      []Kind{User, GroupName, Autogroup},
		autogroups: roleAutogroups,
		want:       "write a user, group:NAME or an autogroup of users",
	}
	attributeTarget = selectorSet{
		what:       "target",
		kinds:      []Kind{Any, User, Domain, GroupName, TagName, Autogroup, Address},
		autogroups: autogroups("autogroup:tagged", "autogroup:shared"),
		want:       `write "*", a user, group:NAME, tag:NAME, autogroup:NAME, a host or an address`,
	}
)

// selectors reads a list of selectors.
func (d *decoder) selectors(v *hujson.Value, what string, set *selectorSet) []Selector {
	out := make([]Selector, 0, elements(v))
	d.list(v, what, MaxSelectors, func(v *hujson.Value) {
		text, ok := d.string(v, "an entry of "+what)
		if !ok {
			return
		}
		if s, ok := d.selector(text, d.at(v), set); ok {
			out = append(out, s)
		}
	})
	return out
}

// selector reads one selector and refuses what is not defined, or not taken
// here.
func (d *decoder) selector(text string, pos Position, set *selectorSet) (Selector, bool) {
	text = strings.TrimSpace(text)
	s := Selector{Name: text, Pos: pos}
	refuse := func(message, hint string) (Selector, bool) {
		d.fail(pos, text, message, hint)
		return s, false
	}
	prefix, rest, _ := strings.Cut(text, ":")
	switch {
	case text == "":
		return refuse("the entry is empty", set.want)
	case text == "*":
		s.Kind = Any
	case prefix == "user" && strings.HasPrefix(rest, "*@"):
		s.Kind, s.Name = Domain, strings.ToLower(rest[2:])
		if s.Name == "" || strings.ContainsAny(s.Name, "*@ ") {
			return refuse(fmt.Sprintf("%q names no domain", text), "write user:*@ and a domain, such as user:*@example.com")
		}
	case prefix == "group":
		s.Kind = GroupName
		if set == &groupMember {
			return refuse(fmt.Sprintf("%q: group members cannot be recursive", text), "list the users themselves")
		}
		if !d.groups[text] {
			return refuse(fmt.Sprintf("group not found: %q", text), definition("groups", text, d.groupNames()))
		}
	case prefix == "tag":
		s.Kind = TagName
		if !d.tags[ident.Tag(text)] {
			return refuse(fmt.Sprintf("tag not found: %q", text), definition("tagOwners", text, d.tagNames()))
		}
	case prefix == "autogroup":
		s.Kind = Autogroup
		if text == "autogroup:members" { // the older spelling
			text, s.Name = "autogroup:member", "autogroup:member"
		}
		if !slices.Contains(everyAutogroup, text) {
			return refuse(fmt.Sprintf("unknown autogroup %q", text), didYouMean(text, everyAutogroup))
		}
		if slices.Contains(set.kinds, Autogroup) && !slices.Contains(set.autogroups, text) {
			message := fmt.Sprintf("%q is not valid here", text)
			if set.what == "src" || set.what == "dst" {
				message = fmt.Sprintf("%q not valid on the %s side of a rule", text, set.what)
			}
			return refuse(message, "it may be "+strings.Join(set.autogroups, ", "))
		}
	case prefix == "resource":
		s.Kind = ResourceName
		if slices.Contains(set.kinds, ResourceName) && !d.resources[rest] {
			return refuse(fmt.Sprintf("resource not found: %q", rest), "define it under resources")
		}
	case prefix == "ipset":
		s.Kind = Address
		if s.Prefixes = d.ipsets[text]; s.Prefixes == nil {
			return refuse(fmt.Sprintf("ipset not found: %q", text), "define it under ipsets")
		}
	case strings.Contains(text, "@"):
		s.Kind, s.Name = User, strings.ToLower(text)
		if strings.ContainsAny(text, " \t*:/") || len(text) > MaxNameLength {
			return refuse(fmt.Sprintf("%q is not a user's login name", text), set.want)
		}
	default:
		s.Kind = Address
		name, _ := strings.CutPrefix(text, "host:")
		if p, ok := d.hosts[name]; ok {
			s.Prefixes = []netip.Prefix{p}
			break
		}
		prefixes, err := parseAddresses(text)
		if err != "" {
			switch {
			case set == &groupMember:
				return refuse(fmt.Sprintf("%q is not a user's login name", text), set.want)
			case slices.Contains(set.kinds, Address) && !strings.ContainsAny(text, ":/[]"):
				hint := set.want
				if meant := didYouMean(text, d.hostNames()); meant != "" {
					hint = meant
				}
				return refuse(fmt.Sprintf("%q is neither a host that is defined nor an address", text), hint)
			}
			return refuse(fmt.Sprintf("%q: %s", text, err), set.want)
		}
		s.Prefixes = prefixes
	}
	if !slices.Contains(set.kinds, s.Kind) {
		message := fmt.Sprintf("invalid %s %q", set.what, text)
		if strings.Contains(set.what, " ") {
			message = fmt.Sprintf("%q is not valid here", text)
		}
		return refuse(message, set.want)
	}
	return s, true
}

// parseAddresses reads an address, a prefix, or a range of addresses with a
// dash. The second result says what is wrong.
func parseAddresses(text string) ([]netip.Prefix, string) {
	if from, to, ok := strings.Cut(text, "-"); ok && strings.ContainsAny(from, ".:") {
		first, err1 := netip.ParseAddr(from)
		last, err2 := netip.ParseAddr(to)
		if err1 == nil && err2 == nil && first.Zone() == "" && last.Zone() == "" {
			if first.BitLen() != last.BitLen() || last.Less(first) {
				return nil, "invalid address range"
			}
			return rangePrefixes(first, last), ""
		}
	}
	if strings.Contains(text, "/") {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, "invalid prefix"
		}
		if p.Masked() != p {
			return nil, fmt.Sprintf("the address has bits beyond its prefix length (did you mean %s?)", p.Masked())
		}
		return []netip.Prefix{p}, ""
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return nil, "invalid address"
	}
	return []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}, ""
}

// parsePorts reads "*", a port, a range, or several with commas between.
func parsePorts(text string) (ranges [][2]uint16, message string) {
	if text == "*" {
		return [][2]uint16{{0, 65535}}, ""
	}
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		from, to, isRange := strings.Cut(part, "-")
		first, ok := parsePort(from)
		if !ok {
			return nil, fmt.Sprintf("%q is not a port", part)
		}
		last := first
		if isRange {
			if last, ok = parsePort(to); !ok {
				return nil, fmt.Sprintf("port range %q: %q is not a port", part, to)
			}
		}
		switch {
		case first == 0:
			return nil, fmt.Sprintf("port range %q: the first port must be above 0, or \"*\" for all ports", part)
		case last < first:
			return nil, fmt.Sprintf("port range %q: the first port is above the last", part)
		}
		if ranges = append(ranges, [2]uint16{first, last}); len(ranges) > MaxServices {
			return nil, fmt.Sprintf("more than %d port ranges", MaxServices)
		}
	}
	return ranges, ""
}

func parsePort(s string) (uint16, bool) {
	if s == "" || len(s) > 5 {
		return 0, false
	}
	n := 0
	for i := range len(s) {
		if !isDigit(s[i]) {
			return 0, false
		}
		n = n*10 + int(s[i]-'0')
	}
	return uint16(n), n <= 65535
}

// Protocol numbers of the names that a policy may use.
var protocolNames = []struct {
	name   string
	number uint8
}{
	{"icmp", 1},
	{"igmp", 2},
	{"ipv4", 4},
	{"ip-in-ip", 4},
	{"tcp", 6},
	{"egp", 8},
	{"igp", 9},
	{"udp", 17},
	{"gre", 47},
	{"esp", 50},
	{"ah", 51},
	{"ipv6-icmp", 58},
	{"icmpv6", 58},
	{"sctp", 132},
}

// defaultProtocols is what a rule without a protocol admits, portedProtocols
// what a deny of ports without a protocol refuses.
var (
	defaultProtocols = []uint8{6, 17, 1, 58}
	portedProtocols  = []uint8{6, 17}
)

// ParseProtocol reads a protocol's name or number, 1 to 255. Case does not
// matter.
func ParseProtocol(text string) (uint8, bool) {
	for _, p := range protocolNames {
		if strings.EqualFold(p.name, text) {
			return p.number, true
		}
	}
	n, ok := parsePort(text)
	return uint8(n), ok && 1 <= n && n <= 255
}

// ProtocolName returns the name of a protocol number, or the number.
func ProtocolName(number uint8) string {
	for _, p := range protocolNames {
		if p.number == number {
			return p.name
		}
	}
	return fmt.Sprint(number)
}

// HasPorts reports whether the protocol has ports that rules can name.
func HasPorts(protocol uint8) bool { return protocol == 6 || protocol == 17 || protocol == 132 }

const protocolHint = "write tcp, udp, sctp, icmp, ipv6-icmp, igmp, gre, esp, ah, ipv4, egp, igp or a number from 1 to 255"

// parseService reads one entry of a grant's ip: "*", ports, or a protocol and
// ports with a colon between.
func parseService(text string) (services []Service, message, hint string) {
	const form = `write "*", a port, a range, or a protocol and a port, such as "tcp:443"`
	protocols, ports := defaultProtocols, text
	if name, rest, ok := strings.Cut(text, ":"); ok || !ok && protocolOnly(text) {
		if !ok {
			rest = "*"
		}
		ports = strings.TrimSpace(rest)
		if name = strings.TrimSpace(name); name != "*" {
			number, ok := ParseProtocol(name)
			if !ok {
				return nil, fmt.Sprintf("unknown protocol %q", name), protocolHint
			}
			protocols = []uint8{number}
		}
	}
	ranges, message := parsePorts(ports)
	if message != "" {
		return nil, message, form
	}
	if len(protocols) == 1 && !HasPorts(protocols[0]) && ports != "*" {
		return nil, fmt.Sprintf("protocol %s has no ports", ProtocolName(protocols[0])), fmt.Sprintf("write %q", ProtocolName(protocols[0])+":*")
	}
	for _, p := range ranges {
		services = append(services, Service{protocols, p[0], p[1]})
	}
	return services, "", ""
}

func protocolOnly(text string) bool {
	_, ok := ParseProtocol(text)
	return ok && !isDigit(text[0])
}
