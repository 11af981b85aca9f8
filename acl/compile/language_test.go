package compile_test

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/acl/compile"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// network is office with two routers more: one of a subnet, one of everything.
func network() compile.Directory {
	dir := office()
	dir.Nodes[3].Routes = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}
	exit := dir.Nodes[3]
	exit.ID, exit.Name, exit.Tags = 7, "exit", []ident.Tag{"tag:exit"}
	exit.Addresses = []netip.Addr{netip.MustParseAddr("100.64.0.7"), netip.MustParseAddr("fd00::7")}
	exit.Routes = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	dir.Nodes = append(dir.Nodes, exit)
	return dir
}

// TestLanguage goes through testdata/language.txt: what policies mean that use
// the language as its documentation describes it, each case with the reason.
// Every flow is asked of the compiled rules at both ends, of the reference and
// of what explanations are made of.
func TestLanguage(t *testing.T) {
	whole, err := os.ReadFile("testdata/language.txt")
	if err != nil {
		t.Fatal(err)
	}
	cases := strings.Split(string(whole), "----\n")
	for _, c := range cases[1:] {
		title, rest, _ := strings.Cut(c, "\n")
		text, outcome, ok := strings.Cut(rest, "=>\n")
		if !ok {
			t.Fatalf("%q has no =>", title)
		}
		t.Run(title, func(t *testing.T) { checkLanguage(t, text, outcome) })
	}
	t.Logf("%d cases", len(cases)-1)
}

func checkLanguage(t *testing.T, text, outcome string) {
	const definitions = `"groups": {"group:staff": ["bob@example.com", "alice@example.com"]},
		"tagOwners": {"tag:db": ["group:staff"], "tag:router": ["group:staff"], "tag:exit": ["group:staff"]},
		"hosts": {"dbhost": "100.64.0.3", "lan": "10.1.0.0/16"},`
	doc, err := policy.Parse([]byte("{" + definitions + text + "}"))
	dir := network()
	var p *compile.Policy
	if err == nil {
		p, err = compile.Compile(doc, dir, ident.LabelKey{}, 1)
	}
	if err == nil {
		if failed := p.RunTests(); len(failed) > 0 {
			err = errors.New(failed[0].Message)
		}
	}
	if want, ok := strings.CutPrefix(outcome, "refused: "); ok {
		if want = strings.TrimSpace(want); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it refused with %q", err, want)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	e := &ends{p, map[[2]ident.NodeID][2]*ruleset.PeerRules{}}
	for line := range strings.Lines(outcome) {
		fields := strings.Fields(line)
		if len(fields) == 1 && fields[0] == "accepted" {
			continue
		}
		if len(fields) != 4 || fields[0] != "allow" && fields[0] != "deny" {
			t.Fatalf("%q is not an outcome", line)
		}
		q := flowOf(t, &dir, fields[1], fields[2], fields[3])
		want := fields[0] == "allow"
		out, in := e.decide(q)
		if reference := acltest.Decide(doc, &dir, q); out.Allowed != want || in.Allowed != want || reference.Allowed != want {
			t.Errorf("%s: out %v, in %v, reference %+v", strings.TrimSpace(line), out.Allowed, in.Allowed, reference)
		}
		if judged := judge(t, p, &dir, q); judged != want {
			t.Errorf("%s: the explanation says %v", strings.TrimSpace(line), judged)
		}
	}
}

// flowOf reads the ends of a flow, each a device or an address and the device
// that it is behind ("10.1.2.3@router"), and "tcp:22".
func flowOf(t *testing.T, dir *compile.Directory, from, to, service string) acltest.Question {
	q := acltest.Question{Now: policyTime}
	end := func(text string, six bool) (ident.NodeID, netip.Addr) {
		address, name, behind := strings.Cut(text, "@")
		if !behind {
			name = text
		}
		at := slices.IndexFunc(dir.Nodes, func(n compile.Node) bool { return n.Name == name })
		if at < 0 {
			t.Fatalf("no device %q", name)
		}
		if behind {
			return dir.Nodes[at].ID, netip.MustParseAddr(address)
		}
		own := dir.Nodes[at].Addresses[0]
		if six {
			own = dir.Nodes[at].Addresses[1]
		}
		return dir.Nodes[at].ID, own
	}
	six := strings.Contains(from+to, "::")
	q.From, q.Flow.Source = end(from, six)
	q.To, q.Flow.Destination = end(to, six)
	protocol, port, _ := strings.Cut(service, ":")
	number, ok := policy.ParseProtocol(protocol)
	n, err := strconv.ParseUint("0"+port, 10, 16)
	if !ok || err != nil {
		t.Fatalf("%q is not a service", service)
	}
	q.Flow.Protocol, q.Flow.Port = number, uint16(n)
	return q
}

func judge(t *testing.T, p *compile.Policy, dir *compile.Directory, q acltest.Question) bool {
	end := func(id ident.NodeID) compile.Endpoint {
		n := dir.Nodes[slices.IndexFunc(dir.Nodes, func(n compile.Node) bool { return n.ID == id })]
		list, _, problem := p.Endpoints(n.Name)
		if problem != "" || len(list) != 1 {
			t.Fatalf("%s: %s", n.Name, problem)
		}
		return list[0]
	}
	allowed, _ := p.Judge(compile.Query{
		From: end(q.From), To: end(q.To), Source: q.Flow.Source, Destination: q.Flow.Destination,
		Protocol: q.Flow.Protocol, Port: q.Flow.Port, Now: q.Now,
	})
	return allowed
}
