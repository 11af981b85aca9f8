package compile_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/acl/acltest/cputime"
	"github.com/warren-overlay/warren/acl/compile"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
	"github.com/warren-overlay/warren/acl/ruleset"
)

func office() compile.Directory {
	node := func(id int, name string, owner ident.UserID, tags ...ident.Tag) compile.Node {
		return compile.Node{ID: ident.NodeID(id), Name: name, Owner: owner, Tags: tags, Addresses: []netip.Addr{
			netip.AddrFrom4([4]byte{100, 64, 0, byte(id)}), netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(id)}),
		}}
	}
	router := node(4, "router", 0, "tag:router")
	router.AdvertisedRoutes = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("0.0.0.0/0")}
	return compile.Directory{
		Users: []compile.User{
			{ID: 1, Name: "alice@example.com", Role: "owner"},
			{ID: 2, Name: "bob", Email: "Bob@Example.com", Role: "admin"},
			{ID: 3, Name: "eve@partner.example", Role: "member"},
		},
		Nodes: []compile.Node{node(1, "laptop", 1), node(2, "phone", 1), node(3, "db", 0, "tag:db"), router, node(5, "bobs", 2), node(6, "eves", 3)},
	}
}

func TestMayTag(t *testing.T) {
	p := build(t, `{"groups": {"group:ops": ["bob@example.com"]}, "tagOwners": {
		"tag:db": ["group:ops"], "tag:web": ["autogroup:owner"], "tag:any": ["tag:db"], "tag:loop": ["tag:loop"], "tag:none": []}}`, office())
	for _, c := range []struct {
		user ident.UserID
		tag  ident.Tag
		want bool
	}{
		{2, "tag:db", true},
		{1, "tag:db", false},
		{1, "tag:web", true},
		{2, "tag:web", false},
		{2, "tag:any", true},
		{1, "tag:loop", false},
		{1, "tag:none", false},
		{1, "tag:undefined", false},
		{9, "tag:db", false},
	} {
		if got := p.MayTag(c.user, c.tag); got != c.want {
			t.Errorf("MayTag(%v, %s) = %v", c.user, c.tag, got)
		}
	}
	if !p.MayTagAs("tag:db", "tag:any") || p.MayTagAs("tag:any", "tag:db") {
		t.Error("MayTagAs is wrong")
	}
}

func TestAutoApproved(t *testing.T) {
	p := build(t, `{"tagOwners": {"tag:router": [], "tag:db": []}, "autoApprovers": {
		"routes": {"10.0.0.0/8": ["tag:router"], "0.0.0.0/0": ["tag:db"], "192.168.0.0/16": ["alice@example.com"]}, "exitNode": ["tag:router"]}}`, office())
	for _, c := range []struct {
		node  ident.NodeID
		route string
		want  bool
	}{
		{4, "10.1.0.0/16", true},
		{4, "10.0.0.0/8", true},
		{4, "0.0.0.0/0", true},
		{4, "::/0", true},
		{4, "192.168.1.0/24", false},
		{3, "10.1.0.0/16", false}, // an approver of everything approves exit nodes, not every subnet
		{3, "0.0.0.0/0", true},
		{1, "192.168.1.0/24", true},
		{5, "192.168.1.0/24", false},
		{99, "10.0.0.0/8", false},
	} {
		if got := p.AutoApproved(c.node, netip.MustParsePrefix(c.route)); got != c.want {
			t.Errorf("AutoApproved(%v, %s) = %v", c.node, c.route, got)
		}
	}
}

func TestForeignDomainIsRefused(t *testing.T) {
	for text, want := range map[string]string{
		`{"acls": [{"action": "accept", "src": ["user:*@partner.example"], "dst": ["*:1"]}]}`:                                                              "[acls] partner.example",
		`{"tagOwners": {"tag:db": []}, "ssh": [{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:db"], "users": ["localpart:*@x.example"]}]}`: "[ssh] x.example",
	} {
		doc := parse(t, text)
		_, err := compile.Compile(doc, office(), ident.LabelKey{}, 1)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "line 1") {
			t.Errorf("%s: %v", text, err)
		}
		p := build(t, "{}", office())
		if changed, err := p.SetDocument(doc, 9); err == nil || changed != nil || p.Epoch() != 1 {
			t.Errorf("SetDocument took it: %v, %v, epoch %d", changed, err, p.Epoch())
		}
	}
}

func TestDirectoryIsRefused(t *testing.T) {
	for name, change := range map[string]func(*compile.Directory){
		"node without id": func(d *compile.Directory) { d.Nodes[0].ID = 0 },
		"node id twice":   func(d *compile.Directory) { d.Nodes[0].ID = d.Nodes[1].ID },
		"user without id": func(d *compile.Directory) { d.Users[0].ID = 0 },
		"user's id twice": func(d *compile.Directory) { d.Users[0].ID = d.Users[1].ID },
	} {
		dir := office()
		change(&dir)
		if _, err := compile.Compile(nil, dir, ident.LabelKey{}, 1); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestOwnersOfTaggedDevicesGiveNothing(t *testing.T) {
	dir := office()
	dir.Nodes[2].Owner = 1 // the registry should not, but if it does
	p := build(t, `{"tagOwners": {"tag:db": []}, "acls": [{"action": "accept", "src": ["alice@example.com"], "dst": ["*:*"]}, {"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}`, dir)
	for _, name := range p.LabelNames(3) {
		if name != "autogroup:tagged" && name != "tag:db" {
			t.Errorf("the tagged device holds %s", name)
		}
	}
	if set := p.RuleSet(3); len(set.Out) != 0 {
		t.Errorf("the tagged device opens flows: %+v", set.Out)
	}
}

func TestLabelKeyHidesNames(t *testing.T) {
	doc := parse(t, `{"acls": [{"action": "accept", "src": ["alice@example.com"], "dst": ["*:1"]}]}`)
	a, err := compile.Compile(doc, office(), ident.LabelKey{1}, 1)
	if err != nil {
		t.Fatal(err)
	}
	b, err := compile.Compile(doc, office(), ident.LabelKey{2}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if a.Labels(1).Equal(b.Labels(1)) {
		t.Error("labels do not depend on the key")
	}
}

func TestRunTests(t *testing.T) {
	const head = `{"groups": {"group:eng": ["alice@example.com", "bob@example.com"], "group:ghosts": ["ghost@example.com"]},
		"tagOwners": {"tag:db": [], "tag:web": [], "tag:router": []}, "hosts": {"dbhost": "100.64.0.3", "lan": "10.1.0.0/16"},
		"postures": {"posture:mac": ["node:os == 'macos'"]},
		"acls": [
			{"action": "accept", "src": ["group:eng"], "dst": ["tag:db:5432", "tag:web:443"], "proto": "tcp"},
			{"action": "accept", "src": ["alice@example.com"], "dst": ["tag:db:22"], "notAfter": "2020-01-01T00:00:00Z"},
			{"action": "accept", "src": ["bob@example.com"], "dst": ["tag:db:1000-2000"], "srcPosture": ["posture:mac"]},
			{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:80"]},
			{"action": "deny", "src": ["bob@example.com"], "dst": ["tag:web:443"]},
		],
		"tests": [`
	for test, want := range map[string]string{
		`{"src": "alice@example.com", "accept": ["tag:db:5432"], "deny": ["tag:db:5433"]}`:               "",
		`{"src": "alice@example.com", "accept": ["dbhost:5432", "100.64.0.3:5432", "[fd00::3]:5432"]}`:   "",
		`{"src": "group:eng", "accept": ["tag:db:5432"]}`:                                                "",
		`{"src": "group:eng", "accept": ["tag:web:443"]}`:                                                "want accept of tag:web:443",
		`{"src": "group:eng", "deny": ["tag:web:443"]}`:                                                  "want deny of tag:web:443",
		`{"src": "alice@example.com", "accept": ["tag:web:443"]}`:                                        "", // no such device yet
		`{"src": "alice@example.com", "accept": ["tag:db:5432"], "proto": "udp"}`:                        "is denied",
		`{"src": "alice@example.com", "accept": ["tag:db:22"]}`:                                          "", // whatever the time
		`{"src": "bob@example.com", "deny": ["tag:db:1500"]}`:                                            "",
		`{"src": "bob@example.com", "accept": ["tag:db:1500"], "srcPostureAttrs": {"node:os": "macos"}}`: "",
		`{"src": "alice@example.com", "accept": ["autogroup:self:80"], "deny": ["autogroup:self:81"]}`:   "",
		`{"src": "tag:db", "deny": ["autogroup:self:80"]}`:                                               "a tagged device has no self",
		`{"src": "100.64.0.1", "accept": ["dbhost:5432"]}`:                                               "",
		`{"src": "100.64.9.9", "deny": ["dbhost:5432"]}`:                                                 "",
		`{"src": "autogroup:admin", "accept": ["tag:db:5432"]}`:                                          "",
		`{"src": "autogroup:bogus", "deny": ["tag:db:1"]}`:                                               "stands for no devices",
		`{"src": "nobody@example.com", "deny": ["tag:db:1"]}`:                                            "no such user",
		`{"src": "group:ghosts", "deny": ["tag:db:1"]}`:                                                  "no user of the network",
		`{"src": "group:none", "deny": ["tag:db:1"]}`:                                                    "group not found",
		`{"src": "tag:none", "deny": ["tag:db:1"]}`:                                                      "tag not found",
		`{"src": "*", "deny": ["tag:db:1"]}`:                                                             "names who it is about",
		`{"src": "what", "deny": ["tag:db:1"]}`:                                                          "not a user, a group",
		`{"src": "alice@example.com", "deny": ["lan:1"]}`:                                                "not one address",
		`{"src": "alice@example.com", "deny": ["tag:db:1,2"]}`:                                           "not one port",
		`{"src": "alice@example.com", "deny": ["tag:db:0"]}`:                                             "not one port",
		`{"src": "alice@example.com", "deny": ["tag:db:*"]}`:                                             "not one port",
		`{"src": "alice@example.com", "deny": ["dbhost"]}`:                                               "no port",
		`{"src": "alice@example.com"}`:                                                                   "asserts nothing",
		`{"deny": ["tag:db:1"]}`:                                                                         "no src",
		`{"src": "alice@example.com", "proto": "x", "deny": ["tag:db:1"]}`:                               "unknown protocol",
		`{"src": "eve@partner.example", "proto": "icmp", "deny": ["tag:db:*"]}`:                          "a test tries a port",
		`{"src": "eve@partner.example", "proto": "132", "deny": ["tag:db:9"]}`:                           "",
	} {
		p := build(t, head+test+`]}`, office())
		failures := p.RunTests()
		switch {
		case want == "" && len(failures) > 0:
			t.Errorf("%s: %v", test, failures)
		case want != "" && (len(failures) == 0 || !strings.Contains(failures[0].Message, want)):
			t.Errorf("%s: %v, want %q", test, failures, want)
		case want != "" && (failures[0].Section != "tests" || failures[0].Line != 11):
			t.Errorf("%s: at %v", test, failures[0].Position)
		}
	}
}

func TestSSH(t *testing.T) {
	const head = `{"groups": {"group:eng": ["alice@example.com"]}, "tagOwners": {"tag:db": [], "tag:router": []},
		"postures": {"posture:mac": ["node:os == 'macos'"]},
		"ssh": [
			{"action": "accept", "src": ["group:eng"], "dst": ["tag:db"], "users": ["root", "autogroup:nonroot"]},
			{"action": "check", "src": ["alice@example.com"], "dst": ["tag:db"], "users": ["root"]},
			{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"]},
			{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:router"], "users": ["localpart:*@example.com"]},
			{"action": "accept", "src": ["bob@example.com"], "dst": ["tag:db"], "users": ["bob"], "srcPosture": ["posture:mac"]},
		], "sshTests": [`
	for test, want := range map[string]string{
		`{"src": "alice@example.com", "dst": ["tag:db"], "check": ["root"], "accept": ["postgres"]}`:        "",
		`{"src": "alice@example.com", "dst": ["tag:db"], "accept": ["root"]}`:                               "", // with a check is accepted too
		`{"src": "alice@example.com", "dst": ["tag:db"], "check": ["postgres"]}`:                            "it is accepted",
		`{"src": "alice@example.com", "dst": ["alice@example.com", "laptop-less"], "accept": ["root"]}`:     "not a user",
		`{"src": "alice@example.com", "dst": ["alice@example.com"], "accept": ["root"], "deny": ["x"]}`:     "",
		`{"src": "alice@example.com", "dst": ["bob@example.com"], "deny": ["root"]}`:                        "",
		`{"src": "alice@example.com", "dst": ["autogroup:self"], "accept": ["root"]}`:                       "",
		`{"src": "alice@example.com", "dst": ["tag:router"], "accept": ["alice"], "deny": ["root", "bob"]}`: "",
		`{"src": "eve@partner.example", "dst": ["tag:router"], "deny": ["eve", "root"]}`:                    "",
		`{"src": "bob@example.com", "dst": ["tag:db"], "deny": ["bob"]}`:                                    "",
		`{"src": "tag:db", "dst": ["tag:router"], "deny": ["root"]}`:                                        "",
		`{"src": "alice@example.com", "dst": ["100.64.0.3"], "check": ["root"]}`:                            "",
		`{"src": "alice@example.com", "dst": ["tag:db"]}`:                                                   "asserts nothing",
		`{"src": "alice@example.com", "accept": ["root"]}`:                                                  "no dst",
		`{"dst": ["tag:db"], "accept": ["root"]}`:                                                           "no src",
	} {
		p := build(t, head+test+`]}`, office())
		failures := p.RunTests()
		if want == "" && len(failures) > 0 || want != "" && (len(failures) == 0 || !strings.Contains(failures[0].Message, want)) {
			t.Errorf("%s: %v, want %q", test, failures, want)
		}
	}
}

func TestWarnings(t *testing.T) {
	text := `{
		"groups": {"group:empty": []},
		"tagOwners": {"tag:db": ["alice@example.com"], "tag:router": ["alice@example.com"],
			"tag:orphan": []},
		"postures": {"posture:x": ["node:os == 'linux'", "custom:y == 1", "node:tsVersion >= '1.60'", "edr:score > 5"]},
		"acls": [
			{"id": "a", "action": "accept", "src": ["alice@example.com"], "dst": ["tag:db:80-90"]},
			{"id": "b", "action": "accept", "src": ["group:empty"], "dst": ["tag:db:1"]},
			{"id": "c", "action": "accept", "src": ["alice@example.com"], "dst": ["tag:orphan:1"]},
			{"id": "d", "action": "accept", "src": ["bob@example.com"], "dst": ["tag:db:22"], "proto": "tcp"},
			{"id": "part", "action": "deny", "src": ["*"], "dst": ["tag:db:85"]},
			{"id": "whole", "action": "deny", "src": ["autogroup:admin"], "dst": ["tag:db:1-100"]},
			{"id": "audited", "mode": "audit", "action": "deny", "src": ["*"], "dst": ["*:*"]},
		],
		"grants": [{"src": ["*"], "dst": ["tag:db"], "ip": ["1"], "via": ["tag:router"]}],
		"tests": [{"src": "alice@example.com", "accept": ["tag:db:80"]},
			{"src": "alice@example.com", "accept": ["tag:db:80"]}],
	}`
	var got []string
	for _, w := range build(t, text, office()).Warnings() {
		got = append(got, w.Kind+" "+w.Position.String())
	}
	want := []string{
		"unowned-tag 4:4",
		"unknown-attribute 5:69", "unknown-attribute 5:97",
		"shadowed 7:4", // part
		"shadowed 7:4", // whole, of an owner, who is an admin
		"matches-nothing 8:4", "matches-nothing 9:4", "shadowed 10:4",
		"via-device 15:37", "matches-nothing 15:14", "shadowed 15:14", "vacuous-test 17:4",
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestDenyWinsWhateverTheOrder(t *testing.T) {
	for _, text := range []string{
		`{"tagOwners": {"tag:db": []}, "acls": [{"action": "deny", "src": ["bob@example.com"], "dst": ["*:*"]}, {"action": "accept", "src": ["*"], "dst": ["*:*"]}]}`,
		`{"tagOwners": {"tag:db": []}, "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}, {"action": "deny", "src": ["bob@example.com"], "dst": ["*:*"]}]}`,
	} {
		p := build(t, text, office())
		ask := func(from ident.NodeID) bool {
			source, _ := p.Identity(from)
			target, _ := p.Identity(3)
			f := ruleset.Flow{Source: source.Addresses[0], Destination: target.Addresses[0], Protocol: 6, Port: 1}
			return p.RuleSet(3).ForPeer(&target, &source).Decide(ruleset.In, f, policyTime).Allowed
		}
		if !ask(1) || ask(5) {
			t.Errorf("%s: alice %v, bob %v", text, ask(1), ask(5))
		}
	}
}

func TestAuditDocumentAllowsNothing(t *testing.T) {
	p := build(t, `{"mode": "audit", "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"], "mode": "enforce"}]}`, office())
	for _, id := range p.Nodes() {
		if len(p.Peers(id)) > 0 {
			t.Errorf("device %v has peers", id)
		}
		for _, r := range p.RuleSet(id).In {
			if r.Mode != ruleset.Audit {
				t.Errorf("rule %+v acts", r)
			}
		}
	}
}

var policyTime = acltest.PolicyTime

// hostileDocuments are accepted documents made to be expensive, each at a limit.
func hostileDocuments() map[string]string {
	list := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i/250, i%250)
		}
		return b.String()
	}
	wide := `{"action": "accept", "src": [` + list(1_000, `"10.1.%d.%d",`) + `], "dst": [` + list(1_000, `"10.2.%d.%d:1",`) + `]},`
	long := `{"action": "accept", "src": ["*"], "dst": [` + list(10_000, `"10.2.%d.%d:1-2,4,6-7",`) + `]},`
	return map[string]string{
		"wide rules":    `{"acls": [` + strings.Repeat(wide, 20) + `]}`,
		"long rules":    `{"acls": [` + strings.Repeat(long, 10) + `]}`,
		"many ports":    `{"acls": [{"action": "accept", "src": [` + list(1_000, `"10.1.%d.%d",`) + `], "dst": [` + list(490, `"10.2.0.1:1%d%03d",`) + `]}]}`,
		"many alike":    `{"acls": [` + strings.Repeat(`{"action": "accept", "src": ["*"], "dst": ["*:*"]},`, 20_000) + `]}`,
		"many postures": `{"postures": {` + list(5_000, `"posture:p%dx%d": ["a:b == 'c'"],`) + `}, "grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"], "srcPosture": [` + list(5_000, `"posture:p%dx%d",`) + `]}]}`,
		"many tests":    `{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}], "tests": [` + strings.Repeat(`{"src": "autogroup:member", "accept": ["autogroup:member:1"]},`, 5_000) + `]}`,
	}
}

// hostileTime bounds the processor's time that a document may take: more than twice
// what the slowest takes on a busy machine, whose caches others use as well, 3.9 s.
const hostileTime = 10 * time.Second

// Documents made to be expensive are compiled in bounded time.
func TestHostileDocuments(t *testing.T) {
	if testing.Short() {
		t.Skip("takes ten seconds of a processor")
	}
	for name, text := range hostileDocuments() {
		doc := parse(t, text)
		start := cputime.Used(t)
		p, err := compile.Compile(doc, office(), ident.LabelKey{}, 1)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, id := range p.Nodes() {
			p.RuleSet(id)
			p.Peers(id)
		}
		p.RunTests()
		p.Warnings()
		// Taken out and put in again.
		for _, next := range []*policy.Document{nil, doc} {
			if _, err := p.SetDocument(next, 2); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if took := cputime.Used(t) - start; took > hostileTime {
			t.Errorf("%s took %v", name, took)
		} else {
			t.Logf("%s took %v", name, took)
		}
	}
}

// A rule that only the state of devices keeps from matching is told from one
// that names nobody.
func TestWarningNamesConditions(t *testing.T) {
	const text = `{"tagOwners": {"tag:db": ["alice@example.com"], "tag:none": ["alice@example.com"]}, "postures": {"posture:l": ["node:os == 'linux'"]}, "acls": [
		{"id": "state", "action": "accept", "src": ["alice@example.com"], "dst": ["tag:db:1"], "srcPosture": ["posture:l"]},
		{"id": "who", "action": "accept", "src": ["tag:none"], "dst": ["tag:db:1"], "srcPosture": ["posture:l"]}]}`
	var got []string
	for _, w := range build(t, text, office()).Warnings() {
		got = append(got, w.Message)
	}
	want := []string{
		"rule state matches nothing: no device of this network in its src has what it asks for (posture, sensitivity or request)",
		"rule who matches nothing: no device of this network is in its src",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestEndpointsOfResource(t *testing.T) {
	const text = `{"tagOwners": {"tag:db": []}, "hosts": {"hosted": "100.64.0.1"}, "resources": {
		"payroll": {"target": ["tag:db"], "ip": ["tcp:5432"]}, "hosted": {"target": ["tag:db"], "ip": ["tcp:5432"]}}, "acls": []}`
	p := build(t, text, office())
	for name, want := range map[string]string{"payroll": "db", "resource:payroll": "db", "hosted": "laptop", "resource:hosted": "db"} {
		list, _, problem := p.Endpoints(name)
		if problem != "" || len(list) != 1 || list[0].Name != want {
			t.Errorf("%s is %+v, %q, want %s", name, list, problem, want)
		}
	}
}
