package compile

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/warren-overlay/warren/acl/ident"
)

// colliding numbers labels so that two names share one.
func colliding(a, b string) func(string) ident.Label {
	return func(name string) ident.Label {
		if name == b {
			name = a
		}
		return ident.LabelKey{1}.Label(name)
	}
}

func collisionDirectory() Directory {
	return Directory{
		Users: []User{{ID: 1, Name: "alice", Email: "alice@example.com"}},
		Nodes: []Node{{ID: 1, Name: "laptop", Owner: 1, Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.1")}}},
	}
}

const denyGroup = `{
	"groups": {"group:guests": ["alice@example.com"]},
	"acls": [
		{"action": "accept", "src": ["*"], "dst": ["*:*"]},
		{"action": "deny", "src": ["group:guests"], "dst": ["*:22"]},
	],
}`

// A deny of a name that collides would match nobody, which widens access: the
// policy is refused, when it comes first and when it comes later.
func TestCollisionRefusesThePolicy(t *testing.T) {
	doc := mustParse(t, denyGroup)
	names := colliding("user:alice@example.com", "group:guests")
	if _, err := compileWith(doc, collisionDirectory(), newLabelTable(names), 1); !errors.Is(err, ErrCollision) {
		t.Errorf("Compile: %v, want ErrCollision", err)
	}
	p, err := compileWith(nil, collisionDirectory(), newLabelTable(names), 1)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time as well: nothing of the first is left
		if _, err := p.SetDocument(doc, 2); !errors.Is(err, ErrCollision) {
			t.Errorf("SetDocument: %v, want ErrCollision", err)
		}
	}
	if p.Epoch() != 1 || len(p.index.all) != 0 {
		t.Errorf("epoch %d and %d subjects after a refused document", p.Epoch(), len(p.index.all))
	}
	if _, err := compileWith(doc, collisionDirectory(), newLabelTable(ident.LabelKey{1}.Label), 1); err != nil {
		t.Errorf("without a collision: %v", err)
	}
}

// A device that comes to hold a name that collides cannot be described by
// labels: it gets neither certificate nor rules.
func TestCollisionLeavesTheDeviceOut(t *testing.T) {
	names := colliding("group:guests", "user:bob@example.com")
	p, err := compileWith(mustParse(t, denyGroup), collisionDirectory(), newLabelTable(names), 1)
	if err != nil {
		t.Fatal(err)
	}
	p.SetUsers([]User{{ID: 1, Name: "alice", Email: "alice@example.com"}, {ID: 2, Name: "bob", Email: "bob@example.com"}})
	p.SetNode(Node{ID: 2, Name: "desk", Owner: 2, Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.2")}})
	if _, ok := p.Identity(2); ok || p.RuleSet(2) != nil || p.Labels(2).Len() != 0 {
		t.Error("the device has an identity, rules or labels")
	}
	if _, ok := p.Identity(1); !ok {
		t.Error("another device is affected")
	}
}
