package simnet

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
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
	// Overloading takes the inside port always, even where another mapping has
	// it ("port overloading", RFC 4787, section 4.2.1, which forbids it): what
	// comes in goes to whoever sent last to where it comes from.
	Overloading
)

// String returns the name in lower case.
func (a Allocation) String() string {
	return [...]string{"random", "preserving", "sequential", "overloading"}[a]
}

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

// String returns mapping and filtering, then what differs from the zero value.
func (n NAT) String() string {
	s := fmt.Sprintf("map-%v/filter-%v", n.Mapping, n.Filtering)
	if n.Allocation != Random {
		s += "/" + n.Allocation.String()
	}
	if n.Hairpin {
		s += "/hairpin"
	}
	return s
}

// The kinds that have names.
var (
	FullCone       = NAT{EndpointIndependent, EndpointIndependent, Random, false, 0}
	RestrictedCone = NAT{EndpointIndependent, AddressDependent, Random, false, 0}
	PortRestricted = NAT{EndpointIndependent, AddressAndPortDependent, Random, false, 0}
	Symmetric      = NAT{AddressAndPortDependent, AddressAndPortDependent, Random, false, 0}
)

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
	byPort  map[uint16][]*mapping // oldest first; several only where ports are overloaded
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
	t.byFlow, t.byPort = make(map[flow]*mapping), make(map[uint16][]*mapping)
}

// out returns the external port for a packet, making a mapping where there is
// none.
func (t *translator) out(inside, remote netip.AddrPort, now time.Time) uint16 {
	f := flow{inside, depend(t.kind.Mapping, remote)}
	m := t.byFlow[f]
	if m != nil && !now.Before(m.expires) {
		t.forget(m)
		m = nil
	}
	if m == nil {
		m = &mapping{flow: f, external: t.allocate(inside.Port(), now), contacts: make(map[netip.AddrPort]time.Time)}
		t.byFlow[f] = m
		t.byPort[m.external] = append(t.byPort[m.external], m)
	}
	m.expires = now.Add(t.kind.Timeout)
	m.contacts[depend(t.kind.Filtering, remote)] = now
	return m.external
}

// in returns the inside address for a packet to an external port, if the NAT
// lets it in.
func (t *translator) in(external uint16, remote netip.AddrPort, now time.Time) (netip.AddrPort, bool) {
	var to *mapping
	var latest time.Time
	for _, m := range t.byPort[external] {
		if last, ok := t.admits(m, remote, now); ok && (to == nil || !last.Before(latest)) {
			to, latest = m, last
		}
	}
	if to == nil {
		return netip.AddrPort{}, false
	}
	return to.flow.inside, true
}

// admits reports whether a packet of the remote may use m, and when m was last
// used towards it.
func (t *translator) admits(m *mapping, remote netip.AddrPort, now time.Time) (last time.Time, ok bool) {
	if !now.Before(m.expires) {
		return last, false
	}
	last, ok = m.contacts[depend(t.kind.Filtering, remote)]
	return last, ok && now.Sub(last) < t.kind.Timeout
}

// passes reports whether a firewall that translates nothing lets a packet in to
// an inside address.
func (t *translator) passes(inside, remote netip.AddrPort, now time.Time) bool {
	m := t.byFlow[flow{inside: inside}]
	if m == nil {
		return false
	}
	_, ok := t.admits(m, remote, now)
	return ok
}

func (t *translator) allocate(want uint16, now time.Time) uint16 {
	free := func(p uint16) bool {
		return p >= 1024 && !slices.ContainsFunc(t.byPort[p], func(m *mapping) bool { return now.Before(m.expires) })
	}
	switch {
	case t.kind.Allocation == Overloading:
		return want
	case t.kind.Allocation == Preserving && free(want):
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

// claim takes over the port of mappings that expired.
func (t *translator) claim(p uint16) uint16 {
	for _, m := range slices.Clone(t.byPort[p]) {
		t.forget(m)
	}
	return p
}

// forget ends a mapping.
func (t *translator) forget(m *mapping) {
	delete(t.byFlow, m.flow)
	rest := slices.DeleteFunc(t.byPort[m.external], func(o *mapping) bool { return o == m })
	if len(rest) == 0 {
		delete(t.byPort, m.external)
		return
	}
	t.byPort[m.external] = rest
}
