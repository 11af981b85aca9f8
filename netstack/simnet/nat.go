package simnet

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"
)

// Behavior says what a NAT's mapping or filtering depends on (RFC 4787, sections
// 4.1 and 5).
type Behavior uint8

const (
	// EndpointIndependent depends on nothing of the remote.
	EndpointIndependent Behavior = iota
	// AddressDependent depends on the remote's address.
	AddressDependent
	// AddressAndPortDependent depends on the remote's address and port.
	AddressAndPortDependent
)

// String returns the usual abbreviation.
func (b Behavior) String() string { return [...]string{"EI", "AD", "APD"}[b] }

// Allocation says which external port a new mapping gets.
type Allocation uint8

const (
	// Random takes any free port.
	Random Allocation = iota
	// Preserving takes the inside port where it is free, else any.
	Preserving
	// Sequential takes the next free port.
	Sequential
)

// NAT describes a translator. The zero value maps and filters independently of
// the remote: "full cone".
type NAT struct {
	Mapping, Filtering Behavior
	Allocation         Allocation
	// Hairpin lets hosts behind the NAT reach each other by external addresses.
	Hairpin bool
	// Timeout is how long a mapping lives without outbound packets; zero means
	// the two minutes of RFC 4787, section 4.3.
	Timeout time.Duration
}

// String returns mapping and filtering.
func (n NAT) String() string { return fmt.Sprintf("map-%v/filter-%v", n.Mapping, n.Filtering) }

// The kinds that have names.
var (
	FullCone       = NAT{EndpointIndependent, EndpointIndependent, Random, false, 0}
	RestrictedCone = NAT{EndpointIndependent, AddressDependent, Random, false, 0}
	PortRestricted = NAT{EndpointIndependent, AddressAndPortDependent, Random, false, 0}
	Symmetric      = NAT{AddressAndPortDependent, AddressAndPortDependent, Random, false, 0}
)

// DirectPossible reports whether two hosts, each behind a NAT of its own, can
// prove a direct path when each knows the other's address as a STUN server saw
// it, both send to what they know, and both learn from where packets come. No
// ports are guessed.
//
// It is derived by hand, not by running the simulation, and holds where
// external ports of different mappings differ.
func DirectPossible(a, b NAT) bool {
	aFixed, bFixed := a.Mapping == EndpointIndependent, b.Mapping == EndpointIndependent
	switch {
	case aFixed && bFixed:
		// Each sends to exactly where the other sends from.
		return true
	case bFixed:
		// A sends from a port that B does not know. B has sent to A's address, so
		// B's filter lets it in unless it asks for the port. B learns the port from
		// the packet, and answers from where A sent to.
		return b.Filtering != AddressAndPortDependent
	case aFixed:
		return a.Filtering != AddressAndPortDependent
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

// flow is what a mapping or a filter is kept for: inside address, and as much of
// the remote as the behaviour depends on.
type flow struct {
	inside netip.AddrPort
	remote netip.AddrPort
}

func depend(b Behavior, remote netip.AddrPort) netip.AddrPort {
	switch b {
	case EndpointIndependent:
		return netip.AddrPort{}
	case AddressDependent:
		return netip.AddrPortFrom(remote.Addr(), 0)
	}
	return remote
}

type mapping struct {
	flow     flow
	external uint16
	expires  time.Time
	contacts map[netip.AddrPort]time.Time // by depend(Filtering), when last sent to
}

// translator is the state of a NAT.
type translator struct {
	kind    NAT
	rand    *rand.Rand
	byFlow  map[flow]*mapping
	byPort  map[uint16]*mapping
	nextSeq uint16
}

func newTranslator(kind NAT, r *rand.Rand) *translator {
	if kind.Timeout == 0 {
		kind.Timeout = 2 * time.Minute
	}
	t := &translator{kind: kind, rand: r, nextSeq: 1024}
	t.reset()
	return t
}

// reset forgets every mapping, as a NAT does that restarts.
func (t *translator) reset() {
	t.byFlow, t.byPort = make(map[flow]*mapping), make(map[uint16]*mapping)
}

// out returns the external port for a packet, making a mapping where there is
// none.
func (t *translator) out(inside, remote netip.AddrPort, now time.Time) uint16 {
	f := flow{inside, depend(t.kind.Mapping, remote)}
	m := t.byFlow[f]
	if m != nil && !now.Before(m.expires) {
		delete(t.byFlow, f)
		delete(t.byPort, m.external)
		m = nil
	}
	if m == nil {
		m = &mapping{flow: f, external: t.allocate(inside.Port(), now), contacts: make(map[netip.AddrPort]time.Time)}
		t.byFlow[f], t.byPort[m.external] = m, m
	}
	m.expires = now.Add(t.kind.Timeout)
	m.contacts[depend(t.kind.Filtering, remote)] = now
	return m.external
}

// in returns the inside address for a packet to an external port, if the NAT
// lets it in.
func (t *translator) in(external uint16, remote netip.AddrPort, now time.Time) (netip.AddrPort, bool) {
	m := t.byPort[external]
	if m == nil || !now.Before(m.expires) {
		return netip.AddrPort{}, false
	}
	last, ok := m.contacts[depend(t.kind.Filtering, remote)]
	if !ok || now.Sub(last) >= t.kind.Timeout {
		return netip.AddrPort{}, false
	}
	return m.flow.inside, true
}

func (t *translator) allocate(want uint16, now time.Time) uint16 {
	free := func(p uint16) bool {
		m := t.byPort[p]
		return p >= 1024 && (m == nil || !now.Before(m.expires))
	}
	if t.kind.Allocation == Preserving && free(want) {
		return t.claim(want)
	}
	for {
		p := uint16(1024 + t.rand.IntN(65536-1024))
		if t.kind.Allocation == Sequential {
			t.nextSeq++
			p = t.nextSeq
		}
		if free(p) {
			return t.claim(p)
		}
	}
}

// claim takes over the port of a mapping that expired.
func (t *translator) claim(p uint16) uint16 {
	if m := t.byPort[p]; m != nil {
		delete(t.byFlow, m.flow)
		delete(t.byPort, p)
	}
	return p
}
