package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/config"
)

// TestDeviceOfAddress tells devices by their addresses and by what they route.
func TestDeviceOfAddress(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	n := acltest.NewNetwork(1, now)
	a := n.Authority(ident.NodeKey{1})
	peer := func(id ident.NodeID, routes ...string) config.Peer {
		c := &authority.Certificate{
			Serial: uint64(id), Node: id, NodeKey: ident.NodeKey{byte(id)}, Name: id.String(), Owner: 7,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{100, 64, 0, byte(id)})},
			NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		}
		for _, r := range routes {
			c.Routes = append(c.Routes, netip.MustParsePrefix(r))
		}
		signed, err := authority.IssueCertificate(n.Genesis, c, n.Signer)
		if err != nil {
			t.Fatal(err)
		}
		member, err := a.Admit(signed, now)
		if err != nil {
			t.Fatal(err)
		}
		return config.Peer{Member: member}
	}
	c := &config.Config{Peers: []config.Peer{peer(2), peer(3, "10.0.0.0/8"), peer(4, "10.1.0.0/16"), peer(5, "0.0.0.0/0")}}
	for addr, want := range map[string]uint64{
		"100.64.0.2": 2, "100.64.0.5": 5, "100.64.0.9": 0, "10.2.0.1": 3, "10.1.0.1": 4, "10.1.9.9": 4, "198.51.100.1": 0,
	} {
		if got := deviceOf(c, netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s is of device %d, want %d", addr, got, want)
		}
	}
	if got := deviceOf(nil, netip.MustParseAddr("100.64.0.2")); got != 0 {
		t.Errorf("without a network: %d", got)
	}
}
