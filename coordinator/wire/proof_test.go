package wire

import (
	"crypto/rand"
	"errors"
	"testing"

	"github.com/warren-overlay/warren/acl/ident"
)

func TestProofShowsOneKeyOnOneChannel(t *testing.T) {
	node, err := ident.NewNodePrivate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ident.NewNodePrivate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	coordinator, err := ident.NewChannelPrivate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := ident.NewChannelPrivate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p, err := ProveNodeKey(node, coordinator.Public(), Binding{1})
	if err != nil {
		t.Fatal(err)
	}
	flipped := p
	flipped[31] ^= 1
	for name, c := range map[string]struct {
		proof       Proof
		node        ident.NodeKey
		coordinator ident.ChannelPrivate
		channel     Binding
		want        bool
	}{
		"as it was made":        {p, node.Public(), coordinator, Binding{1}, true},
		"on another channel":    {p, node.Public(), coordinator, Binding{2}, false},
		"to another network":    {p, node.Public(), elsewhere, Binding{1}, false},
		"for another key":       {p, other.Public(), coordinator, Binding{1}, false},
		"with another bit":      {flipped, node.Public(), coordinator, Binding{1}, false},
		"no proof":              {Proof{}, node.Public(), coordinator, Binding{1}, false},
		"no key":                {p, ident.NodeKey{}, coordinator, Binding{1}, false},
		"no key, and no proof":  {Proof{}, ident.NodeKey{}, coordinator, Binding{1}, false},
		"a key of low order":    {Proof{}, ident.NodeKey{1}, coordinator, Binding{1}, false},
		"a proof by the public": {proof([32]byte(node.Public()), node.Public(), Binding{1}), node.Public(), coordinator, Binding{1}, false},
	} {
		if got := c.proof.Shows(c.node, c.coordinator, c.channel); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if _, err := ProveNodeKey(node, ident.ChannelKey{1}, Binding{}); !errors.Is(err, ident.ErrMalformedKey) {
		t.Errorf("a channel key of low order: %v", err)
	}
}
