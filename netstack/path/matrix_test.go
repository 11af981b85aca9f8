package path_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/path"
	"github.com/warren-overlay/warren/netstack/simnet"
)

// ordinary is a path across a continent.
var ordinary = simnet.Path{Delay: 15 * time.Millisecond, Jitter: time.Millisecond}

// natsOf returns all kinds of NAT with one of the given hairpinnings.
func natsOf(hairpin ...bool) (all []simnet.NAT) {
	for m := simnet.EndpointIndependent; m <= simnet.AddressAndPortDependent; m++ {
		for f := simnet.EndpointIndependent; f <= simnet.AddressAndPortDependent; f++ {
			for a := simnet.Random; a <= simnet.Overloading; a++ {
				for _, h := range hairpin {
					all = append(all, simnet.NAT{Mapping: m, Filtering: f, Allocation: a, Hairpin: h})
				}
			}
		}
	}
	return all
}

// settle lets a pair that has just become known to each other be used for 10 s
// and fails unless both are direct where that is possible, and on the relay
// where it is not. Where it takes luck, the outcome is noted.
func (l *lab) settle(luck *simnet.Luck, use ...*node) {
	l.t.Helper()
	l.run(10*time.Second, use...)
	if simnet.GuessNeeded(l.nodes[0].host, l.nodes[1].host) {
		direct := l.nodes[0].primary.Kind == path.Direct && l.nodes[1].primary.Kind == path.Direct
		if luck.Note(direct); !direct {
			return
		}
	}
	want := path.Relay
	if simnet.DirectPossible(l.nodes[0].host, l.nodes[1].host) {
		want = path.Direct
	}
	lucky := want == path.Relay && simnet.GuessPossible(l.nodes[0].host, l.nodes[1].host)
	for _, n := range l.nodes {
		if n.primary.Kind != want && !lucky {
			l.fail("%s: %v after 10 s, want %v", n.name, n.primary, want)
		}
	}
}

// separate returns a lab with two hosts behind a NAT each.
func separate(t *testing.T, seed uint64, ka, kb simnet.NAT) (l *lab, a, b *node) {
	l = newLab(t, seed, ordinary)
	lanA, _ := l.net.Internet().NewLAN("a", ka, addr4(1, 1, 1, 1), netip.Prefix{})
	lanB, _ := l.net.Internet().NewLAN("b", kb, addr4(2, 2, 2, 2), netip.Prefix{})
	// The same private address on both sides: each finds itself where the other
	// is said to be.
	a = l.join(0, lanA.NewHost("a", addr4(192, 168, 1, 2)), seed)
	b = l.join(1, lanB.NewHost("b", addr4(192, 168, 1, 2)), seed)
	l.setRelay(true)
	return l, a, b
}

// TestEveryPairOfNATs: for every mapping, filtering and port allocation of both
// NATs, a pair for which a direct path is possible has one within 10 s, both
// ways, whoever begins, and the others stay on the relay. Until it is used a
// peer sends nothing, and once the choice is made it stays. With -short a fifth of
// the pairs is tried.
func TestEveryPairOfNATs(t *testing.T) {
	kinds, every := natsOf(false), sized(1, 5)
	luck := new(simnet.Luck)
	t.Cleanup(func() { checkLuck(t, luck, 100/every) })
	for i, ka := range kinds {
		t.Run(ka.String(), func(t *testing.T) {
			t.Parallel()
			for j, kb := range kinds {
				if (i+j)%every != 0 {
					continue
				}
				l, a, b := separate(t, uint64(i*len(kinds)+j), ka, kb)
				l.log = append(l.log, kb.String())
				l.run(time.Second)
				if a.primary.Kind != path.Relay || a.agent.Snapshot().Stats.PingsSent != 0 {
					l.fail("idle peer: primary %v, %d pings", a.primary, a.agent.Snapshot().Stats.PingsSent)
				}
				l.settle(luck, a)
				if (i+j)%8 != 0 {
					continue
				}
				changes := a.changes + b.changes
				l.run(time.Minute, a, b)
				if a.changes+b.changes != changes {
					l.fail("the primary goes on changing")
				}
			}
		})
	}
}

// TestEveryCarrier: two homes behind one carrier's NAT of every kind, and one
// home behind it with the other host on the internet; with -short a fifth of them.
func TestEveryCarrier(t *testing.T) {
	homes := []simnet.NAT{simnet.FullCone, simnet.PortRestricted, simnet.Symmetric, {Allocation: simnet.Preserving, Filtering: simnet.AddressDependent, Hairpin: true}}
	direct, luck, every := 0, new(simnet.Luck), sized(1, 5)
	for i, carrier := range natsOf(false, true) {
		for j, ka := range homes {
			for k, kb := range homes {
				if (i+j+k)%every != 0 {
					continue
				}
				for _, shared := range []bool{true, false} {
					l := newLab(t, uint64(i*64+j*8+k), ordinary)
					l.log = append(l.log, carrier.String(), ka.String(), kb.String())
					c, _ := l.net.Internet().NewLAN("carrier", carrier, addr4(1, 1, 1, 1), netip.Prefix{})
					outer := c
					if !shared {
						outer = l.net.Internet()
					}
					homeA, _ := c.NewLAN("a", ka, addr4(100, 64, 0, 2), netip.Prefix{})
					homeB, _ := outer.NewLAN("b", kb, addr4(100, 64, 0, 3), netip.Prefix{})
					a := l.join(0, homeA.NewHost("a", addr4(192, 168, 1, 2)), uint64(i))
					l.join(1, homeB.NewHost("b", addr4(192, 168, 1, 2)), uint64(i))
					l.setRelay(true)
					l.run(time.Second)
					l.settle(luck, a)
					if a.primary.Kind == path.Direct {
						direct++
					}
				}
			}
		}
	}
	checkLuck(t, luck, 50/every)
	if direct < 200/every {
		t.Errorf("%d pairs are direct: the test sees one side only", direct)
	}
}

// TestBehindOneNAT: two hosts in one LAN go by the LAN, whatever their NAT is
// and does about hairpinning.
func TestBehindOneNAT(t *testing.T) {
	for i, kind := range natsOf(false, true) {
		l := newLab(t, uint64(i), ordinary)
		lan, _ := l.net.Internet().NewLAN("lan", kind, addr4(1, 1, 1, 1), netip.Prefix{})
		l.join(0, lan.NewHost("a", addr4(192, 168, 1, 2)), uint64(i))
		b := l.join(1, lan.NewHost("b", addr4(192, 168, 1, 3)), uint64(i))
		l.setRelay(true)
		l.run(time.Second)
		l.settle(new(simnet.Luck), b)
		for _, n := range l.nodes {
			if !n.primary.Addr.Addr().IsPrivate() {
				l.fail("%v: %s goes by %v", kind, n.name, n.primary)
			}
			// A NAT that hairpins and takes a new port for every destination shows
			// each to the other under ever new addresses; following them must end.
			if s := n.agent.Snapshot().Stats; s.Losses > 0 || s.PingsSent > 150 {
				l.fail("%v: %s lost its path, or never stops: %+v", kind, n.name, s)
			}
		}
	}
}
