package simnet

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// Path describes what happens to packets between two hosts, each way.
type Path struct {
	// Delay is the time one way. Zero means that packets arrive at once.
	Delay time.Duration
	// Jitter is added at random, evenly from 0; packets overtake each other.
	Jitter time.Duration
	// Loss and Duplicate are probabilities from 0 to 1.
	Loss, Duplicate float64
	// Reorder is the probability that a packet takes twice the time.
	Reorder float64
	// Corrupt is the probability that one bit of the payload flips.
	Corrupt float64
}

// Packet is a UDP datagram.
type Packet struct {
	From, To netip.AddrPort
	Payload  []byte
	// Fragmented says that the packet goes in fragments through links that it is
	// too long for.
	Fragmented bool
}

// fits reports whether the packet passes a link with an MTU.
func (p *Packet) fits(mtu int) bool {
	return p.Fragmented || !tooLong(len(p.Payload), p.To.Addr(), mtu)
}

// Delivery is a packet that reached a host.
type Delivery struct {
	Host   *Host
	Packet Packet
}

// Stats counts what became of packets.
type Stats struct {
	Sent, Delivered, Lost, Duplicated, Corrupted uint64
	Unroutable                                   uint64 // no host or router with the address
	Filtered                                     uint64 // stopped by a NAT, firewall, cut or blocked host
	TooLong                                      uint64 // longer than the MTU of a link
}

// Network is the pure simulation. It is not safe for concurrent use.
type Network struct {
	rand     *rand.Rand
	internet *Segment
	path     Path
	mtu      int
	queue    queue
	order    uint64
	arrived  []Delivery
	cut      map[[2]*Host]bool
	stats    Stats
}

// NewNetwork returns an internet without hosts, on which packets arrive at
// once. Equal seeds and calls give equal simulations.
func NewNetwork(seed uint64) *Network {
	n := &Network{rand: rand.New(rand.NewPCG(seed, 0x77617272656e)), cut: make(map[[2]*Host]bool)}
	n.internet = &Segment{network: n, name: "internet", hosts: make(map[netip.Addr]*Host), routers: make(map[netip.Addr]*Router)}
	return n
}

// Internet returns the outermost segment.
func (n *Network) Internet() *Segment { return n.internet }

// SetPath says how packets fare on the internet and between segments; those
// that stay in one LAN arrive after a twentieth of the delay and without faults.
func (n *Network) SetPath(p Path) { n.path = p }

// Stats returns the counters.
func (n *Network) Stats() Stats { return n.stats }

// Segment is a stretch of network without translation.
type Segment struct {
	network *Network
	name    string
	router  *Router // towards the internet, nil for the internet itself
	hosts   map[netip.Addr]*Host
	routers map[netip.Addr]*Router // by external address
	routed  []routed               // prefixes behind routers that are not translated
}

type routed struct {
	prefix netip.Prefix
	router *Router
}

// Router joins an inner segment to an outer one.
type Router struct {
	inside, outside *Segment
	external        netip.Addr // IPv4, outside; the zero value where nothing is translated
	nat             *translator
	firewall        *translator // for what is not translated
	prefixes        []netip.Prefix
	blockUDP        bool
	blockTCP        bool
	mtu             int
}

// Host is a machine.
type Host struct {
	network *Network
	name    string
	segment *Segment
	addrs   []netip.Addr
	path    Path // added to the network's
	mtu     int
	down    bool
	world   *hostWorld
	// unrouted hosts have no default route: they reach their own segment only.
	unrouted bool
}

// NewLAN adds a segment behind a NAT of the given kind with the external IPv4
// address, in the outer segment. prefix6, where valid, is the LAN's global IPv6
// prefix, reached through a firewall that lets in what was sent to.
func (s *Segment) NewLAN(name string, kind NAT, external netip.Addr, prefix6 netip.Prefix) (*Segment, *Router) {
	inner, r := s.newSegment(name, AddressAndPortDependent, kind.Timeout)
	r.nat = newTranslator(kind, s.network.rand)
	if external.IsValid() {
		s.vacant(external)
		r.external = external
		s.routers[external] = r
	}
	if prefix6.IsValid() {
		r.route(prefix6)
	}
	return inner, r
}

// NewFirewalledLAN adds a segment whose hosts have public addresses, in the
// given prefixes, behind a firewall that translates nothing and lets in answers
// to what was sent, by the given filtering (RFC 4787, section 5; RFC 6092).
func (s *Segment) NewFirewalledLAN(name string, filtering Behavior, prefixes ...netip.Prefix) (*Segment, *Router) {
	inner, r := s.newSegment(name, filtering, 0)
	for _, p := range prefixes {
		r.route(p)
	}
	return inner, r
}

func (s *Segment) newSegment(name string, filtering Behavior, timeout time.Duration) (*Segment, *Router) {
	inner := &Segment{network: s.network, name: name, hosts: make(map[netip.Addr]*Host), routers: make(map[netip.Addr]*Router)}
	r := &Router{
		inside: inner, outside: s,
		firewall: newTranslator(NAT{Filtering: filtering, Timeout: timeout}, s.network.rand),
	}
	inner.router = r
	return inner, r
}

// route makes a prefix known to all that is outside of r.
func (r *Router) route(p netip.Prefix) {
	r.prefixes = append(r.prefixes, p)
	for outer := r.outside; outer != nil; outer = outer.outer() {
		outer.routed = append(outer.routed, routed{p, outer.towards(r)})
	}
}

// towards returns the router of s behind which r is.
func (s *Segment) towards(r *Router) *Router {
	for r.outside != s {
		r = r.outside.router
	}
	return r
}

// translates reports whether r translates packets of an inside address.
func (r *Router) translates(inside netip.Addr) bool {
	return inside.Is4() && !slices.ContainsFunc(r.prefixes, func(p netip.Prefix) bool { return p.Contains(inside) })
}

// vacant panics where an address is taken.
func (s *Segment) vacant(a netip.Addr) {
	if s.hosts[a] != nil || s.routers[a] != nil {
		panic(fmt.Sprintf("simnet: address %v is taken", a))
	}
}

// Name returns the segment's name.
func (s *Segment) Name() string { return s.name }

func (s *Segment) outer() *Segment {
	if s.router == nil {
		return nil
	}
	return s.router.outside
}

// NewHost adds a host with the given addresses.
func (s *Segment) NewHost(name string, addrs ...netip.Addr) *Host {
	h := &Host{network: s.network, name: name, segment: s}
	h.attach(s, addrs)
	return h
}

// Name returns the host's name.
func (h *Host) Name() string { return h.name }

// Addrs returns the host's addresses; the caller must not change them.
func (h *Host) Addrs() []netip.Addr { return h.addrs }

// SetPath adds delay and faults to all that the host sends and receives.
func (h *Host) SetPath(p Path) { h.path = p }

// SetDown cuts the host off, or joins it again.
func (h *Host) SetDown(down bool) { h.down = down }

// SetDefaultRoute gives the host a way out of its segment, which it has at
// first, or takes it away.
func (h *Host) SetDefaultRoute(up bool) { h.unrouted = !up }

// Move takes the host to another segment, or gives it other addresses in its
// own: roaming. Sockets stay open; what is in flight to old addresses is lost.
func (h *Host) Move(s *Segment, addrs ...netip.Addr) {
	for _, a := range h.addrs {
		delete(h.segment.hosts, a)
	}
	h.attach(s, addrs)
}

func (h *Host) attach(s *Segment, addrs []netip.Addr) {
	h.segment, h.addrs = s, append([]netip.Addr(nil), addrs...)
	for _, a := range addrs {
		s.vacant(a)
		s.hosts[a] = h
	}
}

// Rebind makes the router forget its mappings, as a restart does.
func (r *Router) Rebind() {
	if r.nat != nil {
		r.nat.reset()
	}
	r.firewall.reset()
}

// SetNAT replaces the kind of NAT of a router that has one, and forgets its
// mappings.
func (r *Router) SetNAT(kind NAT) { r.nat = newTranslator(kind, r.outside.network.rand) }

// SetExternal gives a router that translates another external address.
func (r *Router) SetExternal(a netip.Addr) {
	delete(r.outside.routers, r.external)
	r.external = a
	r.outside.routers[a] = r
	r.nat.reset()
}

// BlockUDP makes the router drop all UDP.
func (r *Router) BlockUDP(block bool) { r.blockUDP = block }

// BlockTCP makes the router refuse new streams and stall old ones.
func (r *Router) BlockTCP(block bool) { r.blockTCP = block }

// Cut stops everything from one host to another, in that direction; heal undoes
// it.
func (n *Network) Cut(from, to *Host, cut bool) { n.cut[[2]*Host{from, to}] = cut }

// Source returns the host's address for packets to a destination.
func (h *Host) source(to netip.Addr) (netip.Addr, bool) {
	for _, a := range h.addrs {
		if a.Is4() == to.Is4() {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// Send sends a packet from a host's port. The payload is copied. It reports
// whether the host has an address of the destination's family.
func (n *Network) Send(h *Host, port uint16, to netip.AddrPort, payload []byte, now time.Time) bool {
	return n.send(h, port, Packet{To: to, Payload: payload}, now)
}

func (n *Network) send(h *Host, port uint16, p Packet, now time.Time) bool {
	to := p.To
	src, ok := h.source(to.Addr())
	if !ok {
		return false
	}
	n.stats.Sent++
	p.From, p.Payload = netip.AddrPortFrom(src, port), append([]byte(nil), p.Payload...)
	if h.down {
		n.stats.Filtered++
		return true
	}
	if h.unrouted && h.segment.hosts[to.Addr()] == nil {
		n.stats.Unroutable++
		return true
	}
	dst, p, hops, fate := n.route(h.segment, p, now, 0)
	switch fate {
	case fateUnroutable:
		n.stats.Unroutable++
		return true
	case fateFiltered:
		n.stats.Filtered++
		return true
	case fateTooLong:
		n.stats.TooLong++
		return true
	}
	if n.cut[[2]*Host{h, dst}] {
		n.stats.Filtered++
		return true
	}
	if !p.fits(h.mtu) || !p.fits(dst.mtu) || (hops > 0 || h.segment == n.internet) && !p.fits(n.mtu) {
		n.stats.TooLong++
		return true
	}
	n.launch(h, dst, p, hops, now)
	return true
}

// launch decides the packet's fate on its way and queues what arrives.
func (n *Network) launch(from, to *Host, p Packet, hops int, now time.Time) {
	legs := []Path{from.path, n.path, to.path}
	if hops == 0 && from.segment != n.internet {
		legs[1] = Path{Delay: n.path.Delay / 20}
	}
	copies, delay := 1, time.Duration(0)
	for _, leg := range legs {
		if leg.Loss > 0 && n.rand.Float64() < leg.Loss {
			n.stats.Lost++
			return
		}
		if leg.Duplicate > 0 && n.rand.Float64() < leg.Duplicate {
			n.stats.Duplicated++
			copies++
		}
		if leg.Corrupt > 0 && len(p.Payload) > 0 && n.rand.Float64() < leg.Corrupt {
			n.stats.Corrupted++
			bit := n.rand.IntN(8 * len(p.Payload))
			p.Payload[bit/8] ^= 1 << (bit % 8)
		}
		d := leg.Delay
		if leg.Reorder > 0 && n.rand.Float64() < leg.Reorder {
			d *= 2
		}
		delay += d
	}
	for range copies {
		at := now.Add(delay)
		for _, leg := range legs {
			if leg.Jitter > 0 {
				at = at.Add(time.Duration(n.rand.Int64N(int64(leg.Jitter))))
			}
		}
		n.order++
		heap.Push(&n.queue, flight{at, n.order, Delivery{to, p}, to.segment})
	}
}

type fate uint8

const (
	fateArrives fate = iota
	fateUnroutable
	fateFiltered
	fateTooLong
)

// maxHops bounds the routers on a way; more is a loop in the test's topology.
const maxHops = 8

// route follows a packet through routers until it reaches a host. Translation
// happens at the time of sending, which is as if all delay came after it.
func (n *Network) route(s *Segment, p Packet, now time.Time, hops int) (*Host, Packet, int, fate) {
	if dst, q, h, fate, ok := n.local(s, p, now, hops); ok {
		return dst, q, h, fate
	}
	if s.router == nil {
		return nil, p, hops, fateUnroutable
	}
	if s.router.blockUDP {
		return nil, p, hops, fateFiltered
	}
	return n.outbound(s.router, p, now, hops)
}

// deliver takes a packet from a router to its inside, from where it does not
// leave again.
func (n *Network) deliver(r *Router, p Packet, now time.Time, hops int) (*Host, Packet, int, fate) {
	if dst, q, h, fate, ok := n.local(r.inside, p, now, hops+1); ok {
		return dst, q, h, fate
	}
	return nil, p, hops, fateUnroutable
}

// local takes a packet to a host of the segment, or into what is behind it. It
// reports false where the address is not known there.
func (n *Network) local(s *Segment, p Packet, now time.Time, hops int) (dst *Host, out Packet, h int, f fate, ok bool) {
	if hops > maxHops {
		return nil, p, hops, fateUnroutable, true
	}
	to := p.To.Addr()
	if h := s.hosts[to]; h != nil {
		if h.down {
			return nil, p, hops, fateFiltered, true
		}
		return h, p, hops, fateArrives, true
	}
	if r := s.routers[to]; r != nil {
		dst, out, h, f = n.inbound(r, p, now, hops)
		return dst, out, h, f, true
	}
	for _, via := range s.routed {
		if via.prefix.Contains(to) {
			dst, out, h, f = n.pass(via.router, p, now, hops)
			return dst, out, h, f, true
		}
	}
	return nil, p, hops, fateUnroutable, false
}

func (n *Network) outbound(r *Router, p Packet, now time.Time, hops int) (*Host, Packet, int, fate) {
	if !p.fits(r.mtu) {
		return nil, p, hops, fateTooLong
	}
	if !r.translates(p.From.Addr()) {
		r.firewall.out(p.From, p.To, now)
		return n.route(r.outside, p, now, hops+1)
	}
	if !r.external.IsValid() {
		return nil, p, hops, fateUnroutable
	}
	if p.To.Addr() == r.external && !r.nat.kind.Hairpin {
		return nil, p, hops, fateFiltered
	}
	p.From = netip.AddrPortFrom(r.external, r.nat.out(p.From, p.To, now))
	if p.To.Addr() == r.external {
		return n.inbound(r, p, now, hops+1)
	}
	return n.route(r.outside, p, now, hops+1)
}

func (n *Network) inbound(r *Router, p Packet, now time.Time, hops int) (*Host, Packet, int, fate) {
	if r.blockUDP {
		return nil, p, hops, fateFiltered
	}
	if !p.fits(r.mtu) {
		return nil, p, hops, fateTooLong
	}
	inside, ok := r.nat.in(p.To.Port(), p.From, now)
	if !ok {
		return nil, p, hops, fateFiltered
	}
	p.To = inside
	return n.deliver(r, p, now, hops)
}

// pass takes a packet to an address that r does not translate.
func (n *Network) pass(r *Router, p Packet, now time.Time, hops int) (*Host, Packet, int, fate) {
	if r.blockUDP || !r.firewall.passes(p.To, p.From, now) {
		return nil, p, hops, fateFiltered
	}
	if !p.fits(r.mtu) {
		return nil, p, hops, fateTooLong
	}
	return n.deliver(r, p, now, hops)
}

// NextTimeout returns when the next packet arrives.
func (n *Network) NextTimeout() (time.Time, bool) {
	if len(n.queue) == 0 {
		return time.Time{}, false
	}
	return n.queue[0].at, true
}

// HandleTimeout lets packets arrive that are due at now.
func (n *Network) HandleTimeout(now time.Time) {
	for len(n.queue) > 0 && !n.queue[0].at.After(now) {
		f := heap.Pop(&n.queue).(flight)
		if f.delivery.Host.down {
			n.stats.Filtered++
			continue
		}
		if f.to.hosts[f.delivery.Packet.To.Addr()] != f.delivery.Host {
			n.stats.Unroutable++ // it has moved
			continue
		}
		n.stats.Delivered++
		n.arrived = append(n.arrived, f.delivery)
	}
}

// NextDelivery returns the next packet that arrived, if there is one.
func (n *Network) NextDelivery() (Delivery, bool) {
	if len(n.arrived) == 0 {
		return Delivery{}, false
	}
	d := n.arrived[0]
	n.arrived = n.arrived[1:]
	return d, true
}

type flight struct {
	at       time.Time
	order    uint64
	delivery Delivery
	to       *Segment
}

// queue is a heap of packets under way, by time and order of sending.
type queue []flight

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	if q[i].at.Equal(q[j].at) {
		return q[i].order < q[j].order
	}
	return q[i].at.Before(q[j].at)
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(flight)) }
func (q *queue) Pop() any {
	old := *q
	f := old[len(old)-1]
	*q = old[:len(old)-1]
	return f
}
