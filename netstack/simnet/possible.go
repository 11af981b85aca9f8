package simnet

import (
	"fmt"
	"net/netip"
	"slices"
)

// DirectPossible reports whether two hosts can prove a direct path to each
// other, each way, when each is told the other's own addresses and the one that
// a STUN server on the internet saw (over IPv4), both send to all that they
// know, and both learn from where packets come. Ports are guessed by one that sends
// from one port: of a host behind one NAT that gives them in a row, which is sure
// to succeed, and by the birthday method of a host that opens many sockets, which
// is as good as sure where it is tried for long enough (GuessNeeded).
//
// It is derived from the topology as it stands and from the kinds of its NATs,
// in another way than packets are simulated: without time, mappings or numbers.
// A port is a name that says how it came to be, so that two ports are one where
// they came to be in the same way. The derivation repeats everything that can
// be done until nothing new comes of it. It holds where mappings last for as
// long as it takes, and where no two hosts behind one NAT that overloads ports
// use the same one.
func DirectPossible(a, b *Host) bool { return derive(a, b, true, true) }

// GuessNeeded reports whether a direct path is possible, but by the birthday
// method only, so that it takes luck to have one in a given time.
func GuessNeeded(a, b *Host) bool { return DirectPossible(a, b) && !derive(a, b, true, false) }

// DirectUnguessed reports whether a direct path is possible without any port that
// is guessed. Ports in a row are sure to be found only where nothing but the pair has
// the NAT give some: with other peers, those that follow the servers' are theirs.
func DirectUnguessed(a, b *Host) bool { return derive(a, b, false, false) }

func derive(a, b *Host, inRow, birthday bool) bool {
	d := derivation{hosts: [2]*Host{a, b}, sent: make(map[*Router][]passage)}
	for i := range d.hosts {
		d.tell(i)
	}
	for range maxRounds {
		before := len(d.known[0]) + len(d.known[1])
		for i := range d.hosts {
			for _, to := range slices.Clone(d.known[i]) {
				d.probe(i, to)
			}
		}
		for i := range d.hosts {
			if inRow && sequential(d.hosts[i]) && fixed(d.hosts[1-i]) {
				d.guess(i)
			}
			if birthday && !fixed(d.hosts[i]) && !givesInRow(d.hosts[i]) && fixed(d.hosts[1-i]) {
				d.birthday(i)
			}
		}
		// A round more after the last news: who is let in depends on what the
		// other side sent in the same one.
		same := len(d.known[0])+len(d.known[1]) == before
		if same && d.quiet {
			break
		}
		d.quiet = same
	}
	return d.proved[0] && d.proved[1]
}

// maxRounds is enough for every chain of lessons that ends; two NATs that take a
// new port for every answer go on for ever.
const maxRounds = 8

// place is an address and the name of a port.
type place struct {
	addr netip.Addr
	port string
}

// passage says that a router passed a packet on from the inside: by what name,
// and to whom.
type passage struct {
	inside, outside, remote place
}

// derivation is what two hosts know and what their routers saw.
type derivation struct {
	hosts  [2]*Host
	known  [2][]place // where the other one may be
	public [2]place   // as which a STUN server saw each, the zero value where none did
	proved [2]bool    // has an answer from where it sent to
	sent   map[*Router][]passage
	quiet  bool
}

// observer is a STUN server's address on the internet, which no host has.
var observer = netip.AddrFrom4([4]byte{0, 0, 0, 1})

// self is the place from which a host sends to an address.
func (d *derivation) self(i int, to netip.Addr) (place, bool) {
	addr, ok := d.hosts[i].source(to)
	return place{addr, fmt.Sprint("host", i)}, ok && !d.hosts[i].down
}

// learn adds to what a host knows of the other.
func (d *derivation) learn(i int, p place) {
	if !slices.Contains(d.known[i], p) {
		d.known[i] = append(d.known[i], p)
	}
}

// tell tells the other host where this one is.
func (d *derivation) tell(i int) {
	for _, a := range d.hosts[i].addrs {
		d.learn(1-i, place{a, fmt.Sprint("host", i)})
	}
	if seen, _, ok := d.send(i, place{observer, "stun"}); ok {
		d.learn(1-i, seen)
		d.public[i] = seen
	}
}

// birthday tells the other host the port that host i has towards where the STUN
// server saw the other, if it is one of the address where the server saw i. With
// many sockets it is one of many, which the other finds by trying; a name does for
// all of them.
func (d *derivation) birthday(i int) {
	if !d.public[0].addr.IsValid() || !d.public[1].addr.IsValid() {
		return
	}
	if seen, _, _ := d.send(i, d.public[1-i]); seen.addr == d.public[i].addr {
		d.learn(1-i, seen)
	}
}

// guess tells the other host all external ports that host i has.
func (d *derivation) guess(i int) {
	for _, p := range d.sent[d.hosts[i].segment.router] {
		if d.hosts[i].segment.hosts[p.inside.addr] == d.hosts[i] && p.outside.addr.Is4() {
			d.learn(1-i, p.outside)
		}
	}
}

// sequential reports whether a host is behind one NAT that takes the next port
// for every destination.
func sequential(h *Host) bool {
	r := h.segment.router
	return r != nil && r.nat != nil && r.outside.router == nil && r.external.IsValid() &&
		r.nat.kind.Mapping != EndpointIndependent && r.nat.kind.Allocation == Sequential
}

// fixed reports whether a host sends from one port to every destination.
func fixed(h *Host) bool {
	for s := h.segment; s.router != nil; s = s.router.outside {
		if nat := s.router.nat; nat != nil && nat.kind.Mapping != EndpointIndependent && nat.kind.Allocation != Overloading {
			return false
		}
	}
	return true
}

// givesInRow reports whether one of the NATs that a host is behind gives ports in a row.
// Such ports are predicted, and many sockets would spoil that.
func givesInRow(h *Host) bool {
	for s := h.segment; s.router != nil; s = s.router.outside {
		if nat := s.router.nat; nat != nil && nat.kind.Allocation == Sequential {
			return true
		}
	}
	return false
}

// GuessPossible reports whether a port of one of the hosts may be guessed by good
// luck: one of the NATs that it is behind gives ports in a row. What
// DirectPossible says is impossible may then be possible.
func GuessPossible(a, b *Host) bool { return givesInRow(a) || givesInRow(b) }

// probe sends from host i to a place, and an answer back if the probe arrives.
func (d *derivation) probe(i int, to place) {
	seen, at, ok := d.send(i, to)
	if !ok || at != d.hosts[1-i] {
		return
	}
	d.learn(1-i, seen)
	from, at, ok := d.send(1-i, seen)
	if ok && at == d.hosts[i] && from == to {
		d.proved[i] = true
	}
}

// send sends from host i to a place, and says where it arrives and from where
// it seems to come.
func (d *derivation) send(i int, to place) (seen place, at *Host, ok bool) {
	from, ok := d.self(i, to.addr)
	if !ok {
		return from, nil, false
	}
	s := d.hosts[i].segment
	if d.hosts[i].unrouted && s.hosts[to.addr] == nil {
		return from, nil, false
	}
	return d.within(s, from, to, false, 0)
}

// within carries a packet on in a segment, out of which it does not go if it
// came from there.
func (d *derivation) within(s *Segment, from, to place, inward bool, depth int) (seen place, at *Host, ok bool) {
	if depth > maxHops {
		return from, nil, false
	}
	if to.addr == observer && s.router == nil {
		return from, nil, true
	}
	if h := s.hosts[to.addr]; h != nil {
		for i := range d.hosts {
			if d.hosts[i] == h && to.port == fmt.Sprint("host", i) {
				return from, h, !h.down
			}
		}
		return from, nil, false
	}
	if r := s.routers[to.addr]; r != nil {
		return d.inward(r, r.nat.kind.Filtering, from, to, depth)
	}
	for _, via := range s.routed {
		if via.prefix.Contains(to.addr) {
			return d.inward(via.router, via.router.firewall.kind.Filtering, from, to, depth)
		}
	}
	if s.router == nil || s.router.blockUDP || inward {
		return from, nil, false
	}
	return d.outward(s.router, from, to, depth)
}

// outward carries a packet from the inside of a router to its outside.
func (d *derivation) outward(r *Router, from, to place, depth int) (seen place, at *Host, ok bool) {
	outside := from
	if r.translates(from.addr) {
		if !r.external.IsValid() || to.addr == r.external && !r.nat.kind.Hairpin {
			return from, nil, false
		}
		outside = place{r.external, r.name(from, to)}
	}
	if p := (passage{from, outside, to}); !slices.Contains(d.sent[r], p) {
		d.sent[r] = append(d.sent[r], p)
	}
	if to.addr == r.external {
		return d.inward(r, r.nat.kind.Filtering, outside, to, depth+1)
	}
	return d.within(r.outside, outside, to, false, depth+1)
}

// name names the external port of r for what goes from one place to another:
// after everything that its mapping depends on.
func (r *Router) name(from, to place) string {
	if r.nat.kind.Allocation == Overloading {
		return from.port
	}
	name := fmt.Sprintf("%v(%v:%s", r.external, from.addr, from.port)
	switch r.nat.kind.Mapping {
	case EndpointIndependent:
		return name + ")"
	case AddressDependent:
		return name + fmt.Sprintf(" to %v)", to.addr)
	default:
		return name + fmt.Sprintf(" to %v:%s)", to.addr, to.port)
	}
}

// inward carries a packet to the inside of a router, if it lets it in.
func (d *derivation) inward(r *Router, filtering Behavior, from, to place, depth int) (seen place, at *Host, ok bool) {
	if r.blockUDP {
		return from, nil, false
	}
	for _, p := range d.sent[r] {
		if p.outside != to {
			continue
		}
		if filtering == EndpointIndependent ||
			p.remote.addr == from.addr && (filtering == AddressDependent || p.remote.port == from.port) {
			return d.within(r.inside, from, p.inside, true, depth+1)
		}
	}
	return from, nil, false
}
