package acltest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"github.com/warren-overlay/warren/acl/compile"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// PolicyTime is about when generated policies' bounds in time lie.
var PolicyTime = time.Date(2026, 7, 6, 12, 0, 0, 0, time.UTC)

var (
	genUsers = []string{"ann@example.com", "ben@example.com", "cat@example.com", "dan@example.org", "eve@example.com", "fay@example.com"}
	genTags  = []string{"tag:db", "tag:web", "tag:router", "tag:exit"}
	genHosts = []string{"lan", "single", "six", "node"}
	genRoles = []string{"owner", "admin", "member", "member", "it-admin", "auditor"}
)

func pick(r *rand.Rand, list []string) string { return list[r.IntN(len(list))] }

func quoteList(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = fmt.Sprintf("%q", s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

func genAddress(r *rand.Rand) string {
	switch r.IntN(6) {
	case 0:
		return fmt.Sprintf("100.64.0.%d", 1+r.IntN(20))
	case 1:
		return fmt.Sprintf("100.64.0.%d/30", r.IntN(6)*4)
	case 2:
		return fmt.Sprintf("10.%d.0.0/16", r.IntN(4))
	case 3:
		return "10.0.0.0/8"
	case 4:
		return fmt.Sprintf("fd7a::%x", 1+r.IntN(20))
	default:
		return fmt.Sprintf("10.1.2.%d-10.1.3.%d", r.IntN(200), r.IntN(200))
	}
}

func genSource(r *rand.Rand) string {
	switch r.IntN(12) {
	case 0, 1:
		return "*"
	case 2, 3:
		return pick(r, genUsers)
	case 4:
		return pick(r, []string{"group:a", "group:b", "group:empty"})
	case 5, 6:
		return pick(r, genTags)
	case 7:
		return pick(r, []string{"autogroup:member", "autogroup:tagged", "autogroup:admin", "autogroup:owner", "autogroup:auditor", "autogroup:shared", "autogroup:danger-all"})
	case 8:
		return pick(r, genHosts)
	case 9:
		return genAddress(r)
	case 10:
		return "user:*@example.com"
	default:
		return "ipset:mix"
	}
}

func genUserSource(r *rand.Rand) string {
	return pick(r, []string{"autogroup:member", "group:a", "ann@example.com", "autogroup:admin", "user:*@example.com"})
}

func genDestination(r *rand.Rand) string {
	for {
		s := genSource(r)
		if r.IntN(10) == 0 {
			s = "autogroup:internet"
		}
		if s != "autogroup:danger-all" {
			return s
		}
	}
}

func genPorts(r *rand.Rand) string {
	switch r.IntN(4) {
	case 0:
		return "*"
	case 1:
		return fmt.Sprint(1 + r.IntN(5))
	case 2:
		return fmt.Sprintf("%d-%d", 1+r.IntN(3), 4+r.IntN(4))
	default:
		return fmt.Sprintf("%d,%d-%d", 1+r.IntN(3), 4, 4+r.IntN(4))
	}
}

func genService(r *rand.Rand) string {
	return pick(r, []string{"*", "3", "2-5", "tcp:4", "udp:*", "icmp:*", "sctp:1-3", "tcp:6-7", "ipv6-icmp:*", "gre:*"})
}

func several(r *rand.Rand, one func(*rand.Rand) string) []string {
	var out []string
	for range 1 + r.IntN(3) {
		out = append(out, one(r))
	}
	return out
}

func genConditions(r *rand.Rand, id int) string {
	var b strings.Builder
	if r.IntN(3) == 0 {
		fmt.Fprintf(&b, `"id": "rule-%d", `, id)
	}
	if r.IntN(5) == 0 {
		fmt.Fprintf(&b, `"srcPosture": %s, `, quoteList(several(r, func(r *rand.Rand) string { return pick(r, []string{"posture:mac", "posture:new"}) })))
	}
	if r.IntN(8) == 0 {
		b.WriteString(`"mode": "audit", `)
	}
	at := func() string { return PolicyTime.Add(time.Duration(r.IntN(41)-20) * time.Hour).Format(time.RFC3339) }
	switch r.IntN(10) {
	case 0:
		fmt.Fprintf(&b, `"notBefore": %q, `, at())
	case 1:
		fmt.Fprintf(&b, `"notAfter": %q, `, at())
	case 2:
		fmt.Fprintf(&b, `"schedule": {"zone": %q, "windows": [{"days": ["mon-wed", "sat"], "from": "%02d:30", "to": "%02d:00"}]}, `,
			pick(r, []string{"", "Europe/Berlin", "Asia/Kolkata"}), r.IntN(24), r.IntN(24))
	}
	return b.String()
}

func genACL(r *rand.Rand, id int) string {
	action := "accept"
	if r.IntN(5) == 0 {
		action = "deny"
	}
	if r.IntN(6) == 0 {
		src := []string{genUserSource(r)}
		if r.IntN(4) == 0 {
			src = []string{"*"}
		}
		return fmt.Sprintf(`{%s"action": %q, "src": %s, "dst": ["autogroup:self:%s"]}`, genConditions(r, id), action, quoteList(src), genPorts(r))
	}
	proto := pick(r, []string{"", "", "", "tcp", "udp", "sctp", "icmp", "47"})
	dst := several(r, func(r *rand.Rand) string {
		if r.IntN(8) == 0 {
			return pick(r, []string{"resource:open", "resource:secret"})
		}
		ports := genPorts(r)
		if proto == "icmp" || proto == "47" {
			ports = "*"
		}
		return genDestination(r) + ":" + ports
	})
	return fmt.Sprintf(`{%s"action": %q, "proto": %q, "src": %s, "dst": %s}`, genConditions(r, id), action, proto, quoteList(several(r, genSource)), quoteList(dst))
}

func genGrant(r *rand.Rand, id int) string {
	if r.IntN(8) == 0 {
		return fmt.Sprintf(`{%s"src": %s, "dst": ["resource:secret"]}`, genConditions(r, id), quoteList(several(r, genSource)))
	}
	if r.IntN(6) == 0 {
		return fmt.Sprintf(`{%s"src": [%q], "dst": ["autogroup:self"], "ip": [%q]}`, genConditions(r, id), genUserSource(r), genService(r))
	}
	extra := ""
	if r.IntN(4) == 0 {
		extra = fmt.Sprintf(`"via": %s, `, quoteList(several(r, func(r *rand.Rand) string { return pick(r, genTags) })))
	}
	dst := several(r, genDestination)
	if r.IntN(5) == 0 {
		extra += pick(r, []string{
			`"app": {"example.com/cap/x": [{"a": 1}]}, `,
			`"app": {"example.com/cap/x": [{"a": 1}], "tailscale.com/cap/drive": [{}]}, `,
		})
		for i, d := range dst {
			if d == "autogroup:internet" {
				dst[i] = "tag:web"
			}
		}
		if r.IntN(2) == 0 { // capabilities alone
			return fmt.Sprintf(`{%s%s"src": %s, "dst": %s,}`, genConditions(r, id), extra, quoteList(several(r, genSource)), quoteList(dst))
		}
	}
	return fmt.Sprintf(`{%s%s"src": %s, "dst": %s, "ip": %s}`, genConditions(r, id), extra, quoteList(several(r, genSource)), quoteList(dst), quoteList(several(r, genService)))
}

// GenRule returns one rule of a generated policy, as text, and its section.
// The id makes the name unique, where the rule has one.
func GenRule(r *rand.Rand, id int) (section, text string) {
	if r.IntN(2) == 0 {
		return "acls", genACL(r, id)
	}
	return "grants", genGrant(r, id)
}

// PolicyParts is a generated policy in parts that can be edited one by one.
type PolicyParts struct {
	Groups       map[string][]string
	ACLs, Grants []string
	Default      bool // defaultSrcPosture
	Version      int  // of posture:new
}

// GenParts returns a policy of the given number of rules.
func GenParts(r *rand.Rand, rules int) *PolicyParts {
	p := &PolicyParts{Groups: map[string][]string{}, Default: r.IntN(6) == 0, Version: 10 + r.IntN(4)}
	for _, name := range []string{"group:a", "group:b"} {
		p.Groups[name] = several(r, func(r *rand.Rand) string { return pick(r, genUsers) })
	}
	for i := range rules {
		if section, text := GenRule(r, i); section == "acls" {
			p.ACLs = append(p.ACLs, text)
		} else {
			p.Grants = append(p.Grants, text)
		}
	}
	return p
}

// String returns the policy's text.
func (p *PolicyParts) String() string {
	def := ""
	if p.Default {
		def = `"defaultSrcPosture": ["posture:new"],`
	}
	return fmt.Sprintf(`{
	"groups": {"group:a": %s, "group:b": %s, "group:empty": []},
	"tagOwners": {"tag:db": [], "tag:web": ["ann@example.com"], "tag:router": ["group:a"], "tag:exit": []},
	"hosts": {"lan": "10.1.0.0/16", "single": "10.2.0.7", "six": "fd7a::/120", "node": "100.64.0.3"},
	"ipsets": {"ipset:mix": ["10.0.0.0/8", "remove 10.3.0.0/16", "add 100.64.0.4", "host:six"]},
	"postures": {"posture:mac": ["node:os == 'macos'"], "posture:new": ["node:osVersion >= '%d.2'"]},
	%s
	"sensitivity": {"internal": {"maxSession": "1h"}, "restricted": {"mfaMaxAge": "1h", "maxRisk": 50, "country": ["DE", "FR"], "jit": true, "posture": ["posture:new"]}},
	"resources": {
		"open": {"target": ["tag:db", "10.1.0.0/16"], "ip": ["tcp:4"], "sensitivity": "internal"},
		"secret": {"target": ["tag:db", "ben@example.com"], "ip": ["tcp:1-7", "icmp:*"], "sensitivity": "restricted"},
	},
	"acls": [
		%s
	],
	"grants": [
		%s
	],
}
`, quoteList(p.Groups["group:a"]), quoteList(p.Groups["group:b"]), p.Version, def, strings.Join(p.ACLs, ",\n\t\t"), strings.Join(p.Grants, ",\n\t\t"))
}

// GenUsers returns the users of generated directories, with random roles.
func GenUsers(r *rand.Rand) []compile.User {
	var out []compile.User
	for i, email := range genUsers {
		name, _, _ := strings.Cut(email, "@")
		u := compile.User{ID: ident.UserID(i + 1), Name: name, Email: email, Role: pick(r, genRoles)}
		if r.IntN(4) == 0 {
			u.Name, u.Email = email, ""
		}
		out = append(out, u)
	}
	// Without an owner of the domain that rules speak of, they are refused.
	out[0].Role = "owner"
	return out
}

// GenNode returns a device with the given id.
func GenNode(r *rand.Rand, id int) compile.Node {
	n := compile.Node{
		ID: ident.NodeID(id), Name: fmt.Sprintf("node-%d", id),
		Addresses: []netip.Addr{
			netip.AddrFrom4([4]byte{100, 64, byte(id >> 8), byte(id)}),
			netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x7a, 14: byte(id >> 8), 15: byte(id)}),
		},
		Attributes: map[string]string{},
	}
	if r.IntN(2) == 0 {
		n.Owner = ident.UserID(1 + r.IntN(len(genUsers)))
	} else {
		for range 1 + r.IntN(2) {
			n.Tags = append(n.Tags, ident.Tag(pick(r, genTags)))
		}
	}
	if r.IntN(3) == 0 {
		n.Routes = append(n.Routes, netip.MustParsePrefix(pick(r, []string{"10.1.0.0/16", "10.0.0.0/8", "10.2.0.0/24", "fd99::/64", "10.1.2.0/24"})))
	}
	if r.IntN(6) == 0 {
		n.Routes = append(n.Routes, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"))
	}
	if r.IntN(3) > 0 {
		n.Attributes["node:os"] = pick(r, []string{"macos", "linux"})
		n.Attributes["node:osVersion"] = fmt.Sprintf("%d.%d", 9+r.IntN(6), r.IntN(4))
	}
	if r.IntN(2) == 0 {
		n.Attributes["warren:mfaAge"] = fmt.Sprint(r.IntN(5000))
		n.Attributes["warren:risk"] = fmt.Sprint(r.IntN(70))
		n.Attributes["ip:country"] = pick(r, []string{"DE", "FR", "US"})
		n.Attributes["node:osVersion"] = "20.1"
	}
	if r.IntN(2) == 0 {
		n.Granted = []string{"secret"}
	}
	return n
}

// GenDirectory returns a directory of the given number of devices.
func GenDirectory(r *rand.Rand, nodes int) compile.Directory {
	dir := compile.Directory{Users: GenUsers(r)}
	for id := 1; id <= nodes; id++ {
		dir.Nodes = append(dir.Nodes, GenNode(r, id))
	}
	return dir
}

// GenQuestion returns a flow between two devices of the directory, which has
// at least two: mostly between addresses that they own or route.
func GenQuestion(r *rand.Rand, dir *compile.Directory) Question {
	from, to := r.IntN(len(dir.Nodes)), r.IntN(len(dir.Nodes)-1)
	if to >= from {
		to++
	}
	q := Question{From: dir.Nodes[from].ID, To: dir.Nodes[to].ID}
	six := r.IntN(4) == 0
	q.Flow = ruleset.Flow{
		Source: genEnd(r, &dir.Nodes[from], six), Destination: genEnd(r, &dir.Nodes[to], six),
		Protocol: []uint8{6, 6, 6, 17, 1, 58, 132, 47}[r.IntN(8)],
	}
	if p := q.Flow.Protocol; p == 6 || p == 17 || p == 132 {
		q.Flow.Port = uint16(r.IntN(9))
	}
	q.Now = PolicyTime.Add(time.Duration(r.IntN(3*24*60)-36*60) * time.Minute)
	return q
}

func genEnd(r *rand.Rand, n *compile.Node, six bool) netip.Addr {
	own := n.Addresses[0]
	if six {
		own = n.Addresses[1]
	}
	switch r.IntN(6) {
	case 0:
		if len(n.Routes) > 0 {
			p := n.Routes[r.IntN(len(n.Routes))]
			if p.Addr().Is4() == own.Is4() {
				b := p.Addr().AsSlice()
				for i := range b {
					if i >= p.Bits()/8 {
						b[i] = byte(r.IntN(8))
					}
				}
				a, _ := netip.AddrFromSlice(b)
				return a
			}
		}
		fallthrough
	case 1:
		if six {
			return netip.MustParseAddr("2001:db8::7")
		}
		return netip.AddrFrom4([4]byte{10, byte(r.IntN(4)), byte(r.IntN(4)), byte(r.IntN(9))})
	case 2:
		if !six && r.IntN(2) == 0 {
			return netip.MustParseAddr("8.8.8.8")
		}
	}
	return own
}
