package nat

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// MapProtocol is how a gateway was asked for a mapping.
type MapProtocol uint8

// The protocols, in the order in which they are preferred.
const (
	MapNone   MapProtocol = iota
	MapPCP                // RFC 6887
	MapNATPMP             // RFC 6886
	MapUPnP               // UPnP Internet Gateway Device, version 1 or 2
)

// String returns the protocol as people know it.
func (p MapProtocol) String() string {
	switch p {
	case MapNone:
		return "none"
	case MapPCP:
		return "PCP"
	case MapNATPMP:
		return "NAT-PMP"
	case MapUPnP:
		return "UPnP"
	}
	return "unknown"
}

// MapRequest asks a gateway to forward one of its UDP ports to this device's.
type MapRequest struct {
	// ID is repeated in the answer.
	ID uint64
	// Internal is this device's IPv6 address whose port is to be let in, and from
	// which the gateway is asked; the zero Addr is for IPv4, where there is one.
	Internal netip.Addr
	// Port is this device's UDP port, and the only one that is ever asked for.
	Port uint16
	// Wish is the mapping of before, whose address and port outside would be
	// best, the zero value for any.
	Wish netip.AddrPort
	// Lifetime is for how long.
	Lifetime time.Duration
}

// Grant is a gateway's answer.
type Grant struct {
	Protocol MapProtocol
	// Gateway is who answered; the zone of a link-local address says where.
	Gateway netip.Addr
	// Internal is that of the request.
	Internal netip.Addr
	// Pinhole is what the gateway calls it, where UPnP opened an IPv6 firewall.
	Pinhole uint16
	// Port is the port inside that the gateway forwards to.
	Port uint16
	// External is where the gateway forwards from.
	External netip.AddrPort
	// Lifetime is for how long, zero for until it is deleted.
	Lifetime time.Duration
}

// MappingState says how port mapping stands.
type MappingState uint8

const (
	// MappingOff: it is switched off, or there is no port to map.
	MappingOff MappingState = iota
	// MappingAsking: the gateway is being asked, for the first time on this
	// network.
	MappingAsking
	// MappingNone: the gateway does not answer, or refuses.
	MappingNone
	// MappingActive: there is a mapping.
	MappingActive
)

// String returns the state in one word, which never changes.
func (s MappingState) String() string {
	switch s {
	case MappingOff:
		return "off"
	case MappingAsking:
		return "asking"
	case MappingNone:
		return "none"
	case MappingActive:
		return "active"
	}
	return "unknown"
}

// Mapping is how port mapping stands, for people and for those who tell peers.
type Mapping struct {
	State    MappingState
	Protocol MapProtocol
	Gateway  netip.Addr
	// Internal is this device's IPv6 address that it is for; the zero Addr for
	// IPv4.
	Internal netip.Addr
	External netip.AddrPort
	// Until is when the mapping ends unless it is renewed.
	Until time.Time
	// Error is why there is none, or why it could not be renewed; nil for no
	// reason.
	Error error
}

var (
	// ErrStaleGrant means that an answer is to no request that is outstanding.
	ErrStaleGrant = errors.New("nat: answer to no request for a mapping")
	// ErrGrant is wrapped by the reasons why a grant is not believed.
	ErrGrant = errors.New("nat: the gateway grants what cannot be")
)

const (
	// mapLifetime is what is asked for: the two hours that RFC 6886, section 3.3
	// recommends, after which a gateway forgets a device that went away without
	// a word.
	mapLifetime = 2 * time.Hour
	// minLifetime is the least that is believed: a gateway that grants less, or
	// an attacker in its place, would have this device ask without end.
	minLifetime = time.Minute
	// minRenewal is the least distance of two renewals (RFC 6887, section
	// 11.2.1 allows 4 s).
	minRenewal = 10 * time.Second
	// minMapBackoff and maxMapBackoff bound the wait after the gateway did not
	// answer or refused; it doubles from the one to the other. Most networks
	// without a mapping never have one, and a router that was restarted should
	// be noticed within the hour.
	minMapBackoff = time.Minute
	maxMapBackoff = time.Hour
	// minAsking is the least distance of two requests, however often the network
	// changes: what it costs the gateway is bounded thus.
	minAsking = 2 * time.Second
)

// MapperStats counts what happened in a Mapper.
type MapperStats struct {
	ClockBack uint64 // calls with a time before the last one's
	Requests  uint64
	Grants    uint64
	Failures  uint64 // requests without a grant
	Refused   uint64 // grants that were not believed
	Stale     uint64 // answers to no outstanding request
	Lost      uint64 // mappings that ended without a renewal
}

// Mapper keeps one UDP port of this device open at its gateway. It decides when
// to ask, and what to believe; somebody else asks. It has the shape of the
// Discoverer, is pure, and not safe for concurrent use.
//
// What a gateway says is not authenticated, and anybody in the local network
// can stand in its place. A mapping is a hint to give to peers, who prove it
// before they use it; and an address is believed only where it can be one of
// the gateway's outside (plausible).
type Mapper struct {
	now time.Time
	// internal is the IPv6 address whose port it is, zero for IPv4.
	internal netip.Addr
	on       bool
	port     uint16
	refuse   func(netip.Addr) bool
	seen     netip.Addr // the public IPv4 address as STUN servers see it
	id       uint64     // of the last request
	asking   bool       // whether a request is outstanding
	asked    time.Time  // when the last one was made, zero for never
	next     time.Time  // when to ask, zero for not
	due      bool
	backoff  time.Duration
	mapping  Mapping
	// granted is what the gateway granted last, zero for nothing: what is to be
	// deleted, and what is wished for next.
	granted  Grant
	release  bool // whether granted is to be deleted
	released Grant
	changed  bool
	stats    MapperStats
}

// NewMapper returns a Mapper for IPv4 that is off. refuse, where not nil, says which
// addresses are not the gateway's whatever it says: the overlay's own. It must
// be a pure function.
func NewMapper(refuse func(netip.Addr) bool, now time.Time) *Mapper {
	return &Mapper{now: now, refuse: refuse}
}

// Set says which UDP port is to be mapped, and whether to. A mapping that is not
// wanted any more is to be deleted (NextRelease).
func (m *Mapper) Set(on bool, port uint16, now time.Time) {
	m.advance(now)
	on = on && port != 0
	if on == m.on && port == m.port {
		return
	}
	m.drop()
	m.on, m.port = on, port
	m.asking, m.due, m.next, m.backoff = false, false, time.Time{}, 0
	m.set(Mapping{State: MappingOff})
	if on {
		m.set(Mapping{State: MappingAsking})
		m.soon()
	}
}

// SetSeen says under which public IPv4 address STUN servers see this device, the
// zero Addr for none: a mapping is at that address or a public one.
func (m *Mapper) SetSeen(a netip.Addr, now time.Time) {
	m.advance(now)
	if a == m.seen {
		return
	}
	m.seen = a
	switch {
	case !m.on, !a.IsValid():
	case m.mapping.State == MappingActive && a != m.mapping.External.Addr():
		// The gateway may have another address now; it knows.
		m.soon()
	case m.mapping.State == MappingNone && errors.Is(m.mapping.Error, ErrGrant):
		m.soon() // what was not believed may be now
	}
}

// HandleNetworkChange says that this machine's addresses or routes changed, or
// that it woke up: the mapping is another gateway's, or gone. It is asked for
// again at once.
func (m *Mapper) HandleNetworkChange(now time.Time) {
	m.advance(now)
	if !m.on {
		return
	}
	// An answer that is on its way is of the old network. What the old gateway
	// forwards ends by itself: it may not be there to be asked.
	m.asking, m.backoff, m.granted = false, 0, Grant{}
	m.set(Mapping{State: MappingAsking})
	m.soon()
}

// HandleGrant takes the answer to the request with the id: a grant, or the
// error why there is none.
//
// The error is ErrStaleGrant, and nothing changes then but that what was granted
// is to be deleted; or one that wraps ErrGrant, where the grant is not believed.
func (m *Mapper) HandleGrant(id uint64, g Grant, failure error, now time.Time) error {
	m.advance(now)
	if !m.asking || id != m.id {
		m.stats.Stale++
		if failure == nil && (!m.on || g.Port != m.port) {
			m.released, m.release = g, true // of a port that is not wanted any more
		}
		return ErrStaleGrant
	}
	m.asking = false
	if failure != nil {
		m.fail(failure)
		return nil
	}
	if err := m.plausible(g); err != nil {
		m.stats.Refused++
		m.fail(err)
		return err
	}
	m.stats.Grants++
	m.backoff = 0
	m.granted = g
	lifetime := g.Lifetime
	if lifetime == 0 || lifetime > mapLifetime {
		// One without an end, or a long one, is looked at as often as any other:
		// routers forget.
		lifetime = mapLifetime
	}
	lifetime = max(lifetime, minLifetime)
	m.set(Mapping{State: MappingActive, Protocol: g.Protocol, Gateway: g.Gateway, External: g.External, Until: m.now.Add(lifetime)})
	m.next = m.now.Add(lifetime / 2) // RFC 6887, section 11.2.1
	return nil
}

// fail notes that there is no grant.
func (m *Mapper) fail(failure error) {
	m.stats.Failures++
	if m.mapping.State == MappingActive {
		// It holds until its end: half of the rest, again and again.
		m.mapping.Error = failure
		m.next = m.now.Add(max(m.mapping.Until.Sub(m.now)/2, minRenewal))
		return
	}
	m.backoff = min(max(2*m.backoff, minMapBackoff), maxMapBackoff)
	m.next = m.now.Add(m.backoff)
	m.set(Mapping{State: MappingNone, Error: failure})
}

// plausible reports whether g can be: of our port, and of an address that is
// the gateway's outside. A private address is, where STUN servers see this
// device under it; otherwise another NAT stands behind the gateway, and its
// port is of no use.
func (m *Mapper) plausible(g Grant) error {
	a := g.External.Addr()
	switch {
	case g.Port != m.port:
		return fmt.Errorf("%w: port %d is forwarded, not %d", ErrGrant, g.Port, m.port)
	case g.External.Port() == 0, !a.IsValid(), g.Lifetime < 0:
		return fmt.Errorf("%w: %v for %v", ErrGrant, g.External, g.Lifetime)
	case g.Internal != m.internal:
		return fmt.Errorf("%w: it is for %v, not %v", ErrGrant, g.Internal, m.internal)
	case m.refuse != nil && m.refuse(a):
		return fmt.Errorf("%w: %v is an address of the overlay", ErrGrant, a)
	case m.internal.IsValid():
		// Mostly the same address. A gateway that translates prefixes (RFC 6296)
		// names another.
		if a != m.internal && !globalIPv6(a) {
			return fmt.Errorf("%w: %v is no global IPv6 address", ErrGrant, a)
		}
		return nil
	case !a.Is4():
		return fmt.Errorf("%w: %v is no IPv4 address", ErrGrant, a)
	case a == m.seen:
		return nil
	case !public(a):
		return fmt.Errorf("%w: %v is no public address, and not the one that this device is seen under, so another NAT stands behind the gateway", ErrGrant, a)
	}
	return nil
}

// notPublic are the ranges of IPv4 that are nobody's on the internet (RFC 6890)
// and that netip does not know.
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("192.0.0.0/24"), netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("240.0.0.0/4"),
}

// public reports whether an IPv4 address can be a gateway's on the internet.
func public(a netip.Addr) bool {
	if !a.IsGlobalUnicast() || a.IsPrivate() {
		return false
	}
	for _, p := range notPublic {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// Mapping returns how things stand.
func (m *Mapper) Mapping() Mapping { return m.mapping }

// Stats returns the counters.
func (m *Mapper) Stats() MapperStats { return m.stats }

// NextRequest returns what to ask the gateway, where something is to be asked.
// The answer, or that there is none, goes to HandleGrant; until then there is
// no other request.
func (m *Mapper) NextRequest() (MapRequest, bool) {
	if !m.due {
		return MapRequest{}, false
	}
	m.due, m.asking = false, true
	m.asked, m.next = m.now, time.Time{}
	m.id++
	m.stats.Requests++
	return MapRequest{ID: m.id, Internal: m.internal, Port: m.port, Wish: m.granted.External, Lifetime: mapLifetime}, true
}

// NextRelease returns a grant that is to be deleted at its gateway, if there is
// one.
func (m *Mapper) NextRelease() (Grant, bool) {
	if !m.release {
		return Grant{}, false
	}
	m.release = false
	return m.released, true
}

// NextEvent returns how things stand, once after each change.
func (m *Mapper) NextEvent() (Mapping, bool) {
	if !m.changed {
		return Mapping{}, false
	}
	m.changed = false
	return m.mapping, true
}

// NextTimeout returns when HandleTimeout wants to be called: the last time
// given where output is pending.
func (m *Mapper) NextTimeout() (time.Time, bool) {
	if m.due || m.changed || m.release {
		return m.now, true
	}
	return m.deadline()
}

// HandleTimeout does what is due at now.
func (m *Mapper) HandleTimeout(now time.Time) { m.advance(now) }

func (m *Mapper) deadline() (time.Time, bool) {
	next := m.next
	if m.mapping.State == MappingActive && (next.IsZero() || m.mapping.Until.Before(next)) {
		next = m.mapping.Until
	}
	return notBefore(next, m.now)
}

// advance moves the clock to now. However late it is, there is one request.
func (m *Mapper) advance(now time.Time) {
	if now.Before(m.now) {
		m.stats.ClockBack++
		return
	}
	m.now = now
	if m.mapping.State == MappingActive && !m.now.Before(m.mapping.Until) {
		m.stats.Lost++
		failure := m.mapping.Error
		m.granted = Grant{}
		m.set(Mapping{State: MappingNone, Error: failure})
		if !m.asking {
			m.soon()
		}
	}
	if !m.next.IsZero() && !m.next.After(m.now) && !m.asking {
		m.due, m.next = true, time.Time{}
	}
}

// soon asks as soon as may be.
func (m *Mapper) soon() {
	if m.asking {
		return // the answer decides what is next
	}
	m.next = m.now
	if earliest := m.asked.Add(minAsking); !m.asked.IsZero() && m.next.Before(earliest) {
		m.next = earliest
	}
	m.advance(m.now)
}

// drop has what was granted deleted.
func (m *Mapper) drop() {
	if m.granted.Protocol == MapNone {
		return
	}
	m.released, m.release, m.granted = m.granted, true, Grant{}
}

func (m *Mapper) set(mapping Mapping) {
	mapping.Internal = m.internal
	m.changed = m.changed || mapping.State != m.mapping.State || mapping.External != m.mapping.External
	m.mapping = mapping
}
