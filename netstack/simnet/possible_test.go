package simnet

import (
	"net/netip"
	"testing"
)

// byHand is DirectPossible for two hosts behind a NAT each, derived with pencil
// and paper.
func byHand(a, b NAT) bool {
	aFixed := a.Mapping == EndpointIndependent || a.Allocation == Overloading
	bFixed := b.Mapping == EndpointIndependent || b.Allocation == Overloading
	switch {
	case aFixed && bFixed:
		// Each sends to exactly where the other sends from.
		return true
	case bFixed, aFixed:
		// The one's port is guessed by the other, who sends from where it is known to
		// be: as if both were fixed.
		return true
	}
	// Neither sends from where the other was told. One of them must let strangers
	// in at the address that STUN saw, the other must not mind that the answer
	// comes from another port, and one must send every packet to that address from
	// one port, or they would go on answering each other from new ports for ever.
	if a.Mapping == AddressAndPortDependent && b.Mapping == AddressAndPortDependent {
		return false
	}
	return a.Filtering == EndpointIndependent && b.Filtering != AddressAndPortDependent ||
		b.Filtering == EndpointIndependent && a.Filtering != AddressAndPortDependent
}

// luckByHand is GuessNeeded, likewise.
func luckByHand(a, b NAT) bool {
	aFixed := a.Mapping == EndpointIndependent || a.Allocation == Overloading
	bFixed := b.Mapping == EndpointIndependent || b.Allocation == Overloading
	switch {
	case aFixed == bFixed:
		return false
	case bFixed && a.Allocation == Sequential, aFixed && b.Allocation == Sequential:
		// The next port is known, not guessed.
		return false
	case bFixed:
		// A sends from a port that B does not know. B has sent to A's address, so
		// B's filter lets it in unless it asks for the port. B learns the port from
		// the packet, and answers from where A sent to.
		return b.Filtering == AddressAndPortDependent
	}
	return a.Filtering == AddressAndPortDependent
}

// everyNAT returns all kinds that differ in what RFC 4787 asks of them.
func everyNAT() (all []NAT) {
	for m := EndpointIndependent; m <= AddressAndPortDependent; m++ {
		for f := EndpointIndependent; f <= AddressAndPortDependent; f++ {
			for a := Random; a <= Overloading; a++ {
				all = append(all, NAT{Mapping: m, Filtering: f, Allocation: a}, NAT{Mapping: m, Filtering: f, Allocation: a, Hairpin: true})
			}
		}
	}
	return all
}

// TestDirectPossible: what is derived step by step is what is derived by hand,
// for every pair.
func TestDirectPossible(t *testing.T) {
	possible, lucky, inRow := 0, 0, 0
	for _, ka := range everyNAT() {
		for _, kb := range everyNAT() {
			n := NewNetwork(1)
			lanA, _ := n.Internet().NewLAN("a", ka, addr("1.1.1.1"), netip.Prefix{})
			lanB, _ := n.Internet().NewLAN("b", kb, addr("2.2.2.2"), netip.Prefix{})
			a, b := lanA.NewHost("a", addr("192.168.1.2")), lanB.NewHost("b", addr("192.168.1.2"))
			got := DirectPossible(a, b)
			if got != byHand(ka, kb) || got != DirectPossible(b, a) {
				t.Errorf("%v and %v: %v", ka, kb, got)
			}
			if luck := GuessNeeded(a, b); luck != luckByHand(ka, kb) || luck != GuessNeeded(b, a) {
				t.Errorf("%v and %v: luck is needed: %v", ka, kb, luck)
			} else if luck {
				lucky++
			}
			if known := DirectUnguessed(a, b); known && (!got || GuessNeeded(a, b)) {
				t.Errorf("%v and %v: possible without guesses, and not so with them", ka, kb)
			} else if got && !known && !GuessNeeded(a, b) {
				if inRow++; ka.Allocation != Sequential && kb.Allocation != Sequential {
					t.Errorf("%v and %v: ports in a row are needed", ka, kb)
				}
			}
			if got {
				possible++
			}
		}
	}
	if possible < 1000 || possible > 72*72-900 || lucky < 500 || inRow < 100 {
		t.Errorf("%d of %d pairs are possible, %d by luck, %d by ports in a row: the test sees one side only", possible, 72*72, lucky, inRow)
	}
}

// TestDirectPossibleByTopology names the places that matter.
func TestDirectPossibleByTopology(t *testing.T) {
	v6 := netip.MustParsePrefix("2001:db8:a::/64")
	for name, c := range map[string]struct {
		build func(n *Network) (a, b *Host)
		want  bool
	}{
		"same LAN": {func(n *Network) (a, b *Host) {
			lan, _ := n.Internet().NewLAN("lan", Symmetric, addr("1.1.1.1"), netip.Prefix{})
			return lan.NewHost("a", addr("192.168.1.2")), lan.NewHost("b", addr("192.168.1.3"))
		}, true},
		"one carrier, no hairpin": {func(n *Network) (a, b *Host) { return carrier(n, FullCone) }, false},
		"one carrier, hairpin": {func(n *Network) (a, b *Host) {
			return carrier(n, NAT{Filtering: AddressAndPortDependent, Hairpin: true})
		}, true},
		"one symmetric carrier, hairpin": {func(n *Network) (a, b *Host) {
			return carrier(n, NAT{Mapping: AddressAndPortDependent, Filtering: AddressAndPortDependent, Hairpin: true})
		}, false},
		"symmetric, but both have IPv6": {func(n *Network) (a, b *Host) {
			lan, _ := n.Internet().NewLAN("a", Symmetric, addr("1.1.1.1"), v6)
			other, _ := n.Internet().NewLAN("b", Symmetric, addr("2.2.2.2"), netip.MustParsePrefix("2001:db8:b::/64"))
			return lan.NewHost("a", addr("192.168.1.2"), addr("2001:db8:a::2")), other.NewHost("b", addr("192.168.1.2"), addr("2001:db8:b::2"))
		}, true},
		"IPv6 only and IPv4 only": {func(n *Network) (a, b *Host) {
			return n.Internet().NewHost("a", addr("2001:db8:c::1")), n.Internet().NewHost("b", addr("9.0.0.1"))
		}, false},
		"firewall, no NAT, to symmetric": {func(n *Network) (a, b *Host) {
			lan, _ := n.Internet().NewFirewalledLAN("a", AddressAndPortDependent, netip.MustParsePrefix("5.0.0.0/24"))
			other, _ := n.Internet().NewLAN("b", Symmetric, addr("2.2.2.2"), netip.Prefix{})
			return lan.NewHost("a", addr("5.0.0.2")), other.NewHost("b", addr("192.168.1.2"))
		}, true},
		"symmetric at home and with the carrier, to port-restricted": {func(n *Network) (a, b *Host) {
			c, _ := n.Internet().NewLAN("carrier", Symmetric, addr("1.1.1.1"), netip.Prefix{})
			lan, _ := c.NewLAN("a", Symmetric, addr("100.64.0.2"), netip.Prefix{})
			other, _ := n.Internet().NewLAN("b", PortRestricted, addr("2.2.2.2"), netip.Prefix{})
			return lan.NewHost("a", addr("192.168.1.2")), other.NewHost("b", addr("192.168.1.2"))
		}, true},
		"symmetric to port-restricted twice": {func(n *Network) (a, b *Host) {
			c, _ := n.Internet().NewLAN("carrier", PortRestricted, addr("1.1.1.1"), netip.Prefix{})
			lan, _ := c.NewLAN("a", PortRestricted, addr("100.64.0.2"), netip.Prefix{})
			other, _ := n.Internet().NewLAN("b", Symmetric, addr("2.2.2.2"), netip.Prefix{})
			return lan.NewHost("a", addr("192.168.1.2")), other.NewHost("b", addr("192.168.1.2"))
		}, true},
		"symmetric on both sides": {func(n *Network) (a, b *Host) {
			lan, _ := n.Internet().NewLAN("a", Symmetric, addr("1.1.1.1"), netip.Prefix{})
			other, _ := n.Internet().NewLAN("b", Symmetric, addr("2.2.2.2"), netip.Prefix{})
			return lan.NewHost("a", addr("192.168.1.2")), other.NewHost("b", addr("192.168.1.2"))
		}, false},
		"one carrier, no hairpin, symmetric at home": {func(n *Network) (a, b *Host) {
			a, b = carrier(n, FullCone)
			b.segment.router.SetNAT(Symmetric)
			return a, b
		}, false},
		"firewalls, no NAT": {func(n *Network) (a, b *Host) {
			lan, _ := n.Internet().NewFirewalledLAN("a", AddressAndPortDependent, netip.MustParsePrefix("5.0.0.0/24"))
			other, _ := n.Internet().NewFirewalledLAN("b", AddressAndPortDependent, netip.MustParsePrefix("6.0.0.0/24"))
			return lan.NewHost("a", addr("5.0.0.2")), other.NewHost("b", addr("6.0.0.2"))
		}, true},
		"UDP blocked": {func(n *Network) (a, b *Host) {
			lan, r := n.Internet().NewLAN("a", FullCone, addr("1.1.1.1"), netip.Prefix{})
			r.BlockUDP(true)
			return lan.NewHost("a", addr("192.168.1.2")), n.Internet().NewHost("b", addr("9.0.0.1"))
		}, false},
		"no default route": {func(n *Network) (a, b *Host) {
			a, b = n.Internet().NewHost("a", addr("9.0.0.2")), n.Internet().NewHost("b", addr("9.0.0.1"))
			lan, _ := n.Internet().NewLAN("c", FullCone, addr("1.1.1.1"), netip.Prefix{})
			b.Move(lan, addr("192.168.1.2"))
			b.SetDefaultRoute(false)
			return a, b
		}, false},
	} {
		if got := DirectPossible(c.build(NewNetwork(1))); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// carrier returns two hosts behind homes of their own behind one carrier's NAT.
func carrier(n *Network, kind NAT) (a, b *Host) {
	c, _ := n.Internet().NewLAN("carrier", kind, addr("1.1.1.1"), netip.Prefix{})
	homeA, _ := c.NewLAN("a", PortRestricted, addr("100.64.0.2"), netip.Prefix{})
	homeB, _ := c.NewLAN("b", PortRestricted, addr("100.64.0.3"), netip.Prefix{})
	return homeA.NewHost("a", addr("192.168.1.2")), homeB.NewHost("b", addr("192.168.1.2"))
}
