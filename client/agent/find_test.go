package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/client/control"
)

// TestIDGoesBeforeName has a device whose name is the id of another one: the
// id goes on standing for whose it is.
func TestIDGoesBeforeName(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	n := acltest.NewNetwork(1, now)
	a := n.Authority(ident.NodeKey{1})
	member := func(id ident.NodeID, name string) control.Peer {
		signed, err := authority.IssueCertificate(n.Genesis, &authority.Certificate{
			Serial: uint64(id), Node: id, NodeKey: ident.NodeKey{byte(id)}, Name: name, Owner: 7,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{100, 64, 0, byte(id)})},
			NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		}, n.Signer)
		if err != nil {
			t.Fatal(err)
		}
		peer, err := a.Admit(signed, now)
		if err != nil {
			t.Fatal(err)
		}
		return control.Peer{Member: peer}
	}
	v := &control.View{Self: member(9, "here").Member, Peers: []control.Peer{member(2, "n3"), member(3, "db"), member(4, "n12")}}
	for target, want := range map[string]ident.NodeID{
		"n2": 2, "n3": 3, "n3." + Domain: 3, "db": 3, "n4": 4, "here": 9, "n12": 0, "n5": 0, "nobody": 0,
	} {
		var got ident.NodeID
		if p := find(v, target); p != nil {
			got = p.Member.Node()
		}
		if got != want {
			t.Errorf("%q is %v, want %v", target, got, want)
		}
	}
}
