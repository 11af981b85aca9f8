package simnet

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"
)

// MaxPlaces is how many sites Places can make: one byte of their addresses.
const MaxPlaces = 255

// Places makes up where hosts are: on the internet itself, behind a NAT of any
// kind or a firewall that translates nothing, with IPv6 beside IPv4 or instead of
// it, one behind another, or several behind one carrier. Every LAN behind a NAT has
// the same private addresses, as homes have.
//
// It uses 6.0.0.0/7, 8.8.0.0/16, 100.64.0.0/16 and 2001:db8::/40 of the network,
// and no more than MaxPlaces sites, beyond which it panics.
type Places struct {
	network *Network
	rand    *rand.Rand
	made    func(site string)
	sites   int
}

// Place is where one host is to be.
type Place struct {
	Segment *Segment
	// Router is the one in front of Segment, nil on the internet itself.
	Router *Router
	// Addrs are addresses for the host, one of each family at most.
	Addrs []netip.Addr
}

// NewPlaces returns what makes up places on a network. Equal sequences of r give
// equal places. made is told of each site in words, for who reads a failure.
func NewPlaces(n *Network, r *rand.Rand, made func(site string)) *Places {
	return &Places{network: n, rand: r, made: made}
}

func (p *Places) chance(oneIn int) bool { return p.rand.IntN(oneIn) == 0 }

func (p *Places) next() byte {
	if p.sites == MaxPlaces {
		panic(fmt.Sprintf("simnet: more than %d sites", MaxPlaces))
	}
	p.sites++
	return byte(p.sites)
}

// Kind makes up a NAT.
func (p *Places) Kind() NAT {
	return NAT{
		Mapping: Behavior(p.rand.IntN(3)), Filtering: Behavior(p.rand.IntN(3)),
		Allocation: Allocation(p.rand.IntN(4)), Hairpin: p.chance(2),
		Timeout: []time.Duration{30 * time.Second, time.Minute, 2 * time.Minute}[p.rand.IntN(3)],
	}
}

// site makes up a segment within another.
func (p *Places) site(outer *Segment, carried bool) Place {
	id := p.next()
	var six netip.Prefix
	var addrs []netip.Addr
	if p.chance(3) {
		six = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, id}), 64)
		addrs = append(addrs, netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, id, 15: 2}))
	}
	name := fmt.Sprint("site", id)
	if p.chance(8) {
		prefixes := []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{7, id, 0, 0}), 24)}
		filtering := Behavior(p.rand.IntN(3))
		if six.IsValid() {
			prefixes = append(prefixes, six)
		}
		lan, router := outer.NewFirewalledLAN(name, filtering, prefixes...)
		p.made(fmt.Sprintf("%s: firewall filter-%v in %s, IPv6 %v", name, filtering, outer.name, six.IsValid()))
		return Place{lan, router, append(addrs, netip.AddrFrom4([4]byte{7, id, 0, 2}))}
	}
	kind := p.Kind()
	external := netip.AddrFrom4([4]byte{8, 8, id, 1})
	if carried {
		external = netip.AddrFrom4([4]byte{100, 64, id, 1})
	}
	lan, router := outer.NewLAN(name, kind, external, six)
	p.made(fmt.Sprintf("%s: %v for %v in %s, IPv6 %v", name, kind, kind.Timeout, outer.name, six.IsValid()))
	if six.IsValid() && p.chance(4) {
		return Place{lan, router, addrs} // no IPv4
	}
	return Place{lan, router, append(addrs, netip.AddrFrom4([4]byte{192, 168, 1, 2}))}
}

// One makes up a place for a host alone.
func (p *Places) One() Place {
	if p.chance(8) {
		return Place{Segment: p.network.internet, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{6, 6, p.next(), 1})}}
	}
	at := p.site(p.network.internet, false)
	if p.chance(4) {
		at = p.site(at.Segment, true)
	}
	return at
}

// Two makes up places for two hosts: in one LAN, behind one carrier, or anywhere.
func (p *Places) Two() [2]Place {
	switch p.rand.IntN(6) {
	case 0: // one LAN
		at := p.One()
		beside := Place{Segment: at.Segment, Router: at.Router}
		for _, a := range at.Addrs {
			beside.Addrs = append(beside.Addrs, a.Next())
		}
		return [2]Place{at, beside}
	case 1: // one carrier
		carrier := p.site(p.network.internet, false)
		return [2]Place{p.site(carrier.Segment, true), p.site(carrier.Segment, true)}
	}
	return [2]Place{p.One(), p.One()}
}
