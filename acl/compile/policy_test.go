package compile

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
	"github.com/warren-overlay/warren/acl/ruleset"
)

func mustParse(t testing.TB, text string) *policy.Document {
	t.Helper()
	doc, err := policy.Parse([]byte(text))
	if err != nil {
		t.Fatalf("parsing the test's policy: %v", err)
	}
	return doc
}

func smallDirectory() Directory {
	address := func(last byte) []netip.Addr {
		return []netip.Addr{netip.AddrFrom4([4]byte{100, 64, 0, last}), netip.AddrFrom16([16]byte{0xfd, 0x7a, 15: last})}
	}
	return Directory{
		Users: []User{
			{ID: 1, Name: "alice@example.com", Role: "owner"},
			{ID: 2, Name: "bob", Email: "bob@example.com"},
		},
		Nodes: []Node{
			{ID: 1, Name: "alice-laptop", Owner: 1, Addresses: address(1)},
			{ID: 2, Name: "bob-laptop", Owner: 2, Addresses: address(2)},
			{ID: 3, Name: "db", Tags: []ident.Tag{"tag:db"}, Addresses: address(3)},
			{ID: 4, Name: "alice-phone", Owner: 1, Addresses: address(4)},
			{ID: 5, Name: "router", Tags: []ident.Tag{"tag:router"}, Addresses: address(5), Routes: []netip.Prefix{netip.MustParsePrefix("10.33.0.0/16")}},
		},
	}
}

// decide asks both ends, as a packet would.
func decide(t testing.TB, p *Policy, from, to ident.NodeID, f ruleset.Flow, now time.Time) bool {
	t.Helper()
	source, _ := p.Identity(from)
	target, _ := p.Identity(to)
	out := p.RuleSet(from).ForPeer(&source, &target).Decide(ruleset.Out, f, now)
	in := p.RuleSet(to).ForPeer(&target, &source).Decide(ruleset.In, f, now)
	if out.Allowed != in.Allowed {
		t.Errorf("the ends disagree on %v: out %+v, in %+v", f, out, in)
	}
	return out.Allowed && in.Allowed
}

func TestCompileDecides(t *testing.T) {
	doc := mustParse(t, `{
		"groups": {"group:eng": ["bob@example.com"]},
		"tagOwners": {"tag:db": [], "tag:router": []},
		"acls": [
			{"action": "accept", "src": ["alice@example.com"], "dst": ["tag:db:5432"]},
			{"action": "accept", "src": ["group:eng"], "dst": ["10.33.0.0/16:443"], "proto": "tcp"},
			{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]},
		],
	}`)
	p, err := Compile(doc, smallDirectory(), ident.LabelKey{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_800_000_000, 0)
	v4 := func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{100, 64, 0, last}) }
	for _, c := range []struct {
		from, to ident.NodeID
		dst      netip.Addr
		proto    uint8
		port     uint16
		want     bool
	}{
		{1, 3, v4(3), 6, 5432, true},
		{1, 3, v4(3), 1, 0, true},
		{1, 3, v4(3), 6, 5433, false},
		{1, 3, v4(3), 132, 5432, false},
		{2, 3, v4(3), 6, 5432, false},
		{3, 1, v4(1), 6, 5432, false},
		{2, 5, netip.MustParseAddr("10.33.1.1"), 6, 443, true},
		{2, 5, netip.MustParseAddr("10.33.1.1"), 17, 443, false},
		{2, 5, v4(5), 6, 443, false},
		{1, 5, netip.MustParseAddr("10.33.1.1"), 6, 443, false},
		{1, 4, v4(4), 17, 9, true},
		{4, 1, v4(1), 17, 9, true},
		{1, 2, v4(2), 17, 9, false},
	} {
		f := ruleset.Flow{Source: v4(byte(c.from)), Destination: c.dst, Protocol: c.proto, Port: c.port}
		if got := decide(t, p, c.from, c.to, f, now); got != c.want {
			t.Errorf("%d to %d, %v: %v, want %v", c.from, c.to, f, got, c.want)
		}
	}
	for id, want := range map[ident.NodeID][]ident.NodeID{1: {3, 4}, 2: {5}, 3: {1, 4}, 4: {1, 3}, 5: {2}} {
		if got := p.Peers(id); !slices.Equal(got, want) {
			t.Errorf("Peers(%d) = %v, want %v", id, got, want)
		}
	}
}

func TestNoDocumentDeniesAll(t *testing.T) {
	for name, doc := range map[string]*policy.Document{"nil": nil, "empty": mustParse(t, "{}")} {
		p, err := Compile(doc, smallDirectory(), ident.LabelKey{}, 1)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range p.Nodes() {
			if set := p.RuleSet(id); len(set.In)+len(set.Out) != 0 || p.Peers(id) != nil {
				t.Errorf("%s: node %d has rules %v and peers %v", name, id, set, p.Peers(id))
			}
		}
	}
}
