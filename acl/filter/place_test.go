package filter

import (
	"net/netip"
	"testing"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
)

// TestMetadataServicesAreOutOfReach asks an exit node that admits everything for
// the addresses at which clouds give machines their credentials.
func TestMetadataServicesAreOutOfReach(t *testing.T) {
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	self := &ident.Identity{
		Addresses: []netip.Addr{addr("100.64.0.1"), addr("fd00::1")},
		Routes:    []netip.Prefix{prefix("0.0.0.0/0"), prefix("::/0"), prefix("168.63.129.0/24"), prefix("100.100.0.0/16")},
	}
	peer := &ident.Identity{Addresses: []netip.Addr{addr("100.64.0.2"), addr("100.100.100.200"), addr("fd00::2")}}
	p := NewPeer(NewDevice(Config{Overlay: []netip.Prefix{prefix("100.64.0.0/16"), prefix("fd00::/48")}}), self, peer, nil, benchStart)
	for a, want := range map[string]bool{
		"168.63.129.16": true, "192.0.0.192": true, "100.100.100.200": true, "169.254.169.254": true,
		"fd00:ec2::254": true, "64:ff9b::a83f:8110": true, "2002:6464:64c8::1": true,
		"168.63.129.17": false, "192.0.0.193": false, "100.100.100.201": false, "fd00:ec2::253": false, "64:ff9b::a83f:8111": false,
	} {
		if got := p.unreachable(packet.AddressOf(addr(a))); got != want {
			t.Errorf("%s: unreachable is %v", a, got)
		}
		remote := addr("100.64.0.2")
		if addr(a).Is6() {
			remote = addr("fd00::2")
		}
		answer := p.Why(Question{Opener: Inbound, Local: addr(a), Remote: remote, Protocol: packet.TCP, Port: 80}, benchStart)
		if left := answer.Reason == DropNoRule; left == want {
			t.Errorf("%s: left to the rules: %v (%v)", a, left, answer.Reason)
		}
	}
	// A device's own address is no metadata service.
	if got := p.peer.place(packet.AddressOf(addr("100.100.100.200"))); got != owned {
		t.Errorf("the peer's own address is in place %v", got)
	}
}
