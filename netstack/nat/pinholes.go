package nat

import (
	"net/netip"
	"slices"
	"time"
)

// MaxPinholes bounds the IPv6 addresses of this device whose port is kept open
// at the gateway. A machine has one that stays and one or two temporary ones
// for each network it is in (RFC 8981, section 3.4); what a gateway is asked for
// is bounded thus.
const MaxPinholes = 4

// maxReleases bounds the grants that wait to be deleted: each address has one,
// and those of answers that came too late are as many at most.
const maxReleases = 2 * MaxPinholes

// PinholesStats counts what happened in a Pinholes, of all addresses there ever
// were.
type PinholesStats struct {
	MapperStats
	OverCap uint64 // addresses that were left out, each time they were given
}

// Pinholes keeps one UDP port of this device open in its gateway's IPv6 firewall,
// at each of its global addresses. Where IPv4 needs a mapping since addresses are
// translated, IPv6 needs one since most home routers drop what comes unasked (RFC
// 6092); so that a peer gets in whose own NAT or firewall shows another port than
// this device was told. There is a Mapper for each address, and one request at a
// time for all: a gateway answers within milliseconds or not at all.
//
// It has the shape of the Mapper, is pure, and not safe for concurrent use.
type Pinholes struct {
	refuse func(netip.Addr) bool
	now    time.Time
	on     bool
	port   uint16
	holes  []*Mapper
	id     uint64 // of the last request
	// asked is the Mapper of the request that is outstanding, nil for none, and
	// askedID that request's id by the Mapper's count.
	asked    *Mapper
	askedID  uint64
	releases []Grant
	changed  bool // whether addresses came or went
	retired  MapperStats
	stats    PinholesStats // OverCap and Stale alone
}

// NewPinholes returns a Pinholes that is off. refuse is as that of NewMapper.
func NewPinholes(refuse func(netip.Addr) bool, now time.Time) *Pinholes {
	return &Pinholes{refuse: refuse, now: now}
}

// globalIPv6 reports whether a is an address at which all of the internet can
// reach a device: no unique local one (RFC 4193), and none with a zone.
func globalIPv6(a netip.Addr) bool {
	return a.Is6() && !a.Is4In6() && a.Zone() == "" && a.IsGlobalUnicast() && !a.IsPrivate()
}

// Set says which UDP port is to be kept open, at which addresses, and whether to.
// Of the addresses, those count that are global IPv6 addresses and not refused;
// of more than MaxPinholes, those of before and then the first ones. The slice is
// not kept.
//
// What was opened and is not wanted any more is to be deleted (NextRelease); not
// so for an address that is gone, since only it may ask for that (RFC 6887,
// section 8.2): its pinhole ends by itself.
func (p *Pinholes) Set(on bool, port uint16, addrs []netip.Addr, now time.Time) {
	p.advance(now)
	p.on, p.port = on && port != 0, port
	kept := p.holes[:0:0]
	for _, m := range p.holes {
		if slices.Contains(addrs, m.internal) {
			kept = append(kept, m)
		} else {
			p.retire(m)
		}
	}
	for _, a := range addrs {
		switch {
		case !p.on, !globalIPv6(a), p.refuse != nil && p.refuse(a):
		case slices.ContainsFunc(kept, func(m *Mapper) bool { return m.internal == a }):
		case len(kept) == MaxPinholes:
			p.stats.OverCap++
		default:
			m := NewMapper(p.refuse, p.now)
			m.internal = a
			kept = append(kept, m)
			p.changed = true
		}
	}
	p.holes = kept
	for _, m := range p.holes {
		m.Set(p.on, port, p.now)
		if m == p.asked && !m.asking {
			p.asked = nil // its port changed
		}
	}
	if p.on {
		return
	}
	for _, m := range p.holes {
		if g, ok := m.NextRelease(); ok {
			p.release(g)
		}
		p.retire(m)
	}
	p.holes = nil
}

// retire forgets a Mapper but for what it counted.
func (p *Pinholes) retire(m *Mapper) {
	if m == p.asked {
		p.asked = nil
	}
	p.retired.add(m.stats)
	p.changed = true
}

func (p *Pinholes) release(g Grant) {
	if len(p.releases) < maxReleases {
		p.releases = append(p.releases, g)
	}
}

// HandleNetworkChange is as the Mapper's.
func (p *Pinholes) HandleNetworkChange(now time.Time) {
	p.advance(now)
	p.asked = nil
	for _, m := range p.holes {
		m.HandleNetworkChange(p.now)
	}
}

// HandleGrant is as the Mapper's.
func (p *Pinholes) HandleGrant(id uint64, g Grant, failure error, now time.Time) error {
	p.advance(now)
	m := p.asked
	if m == nil || id != p.id {
		p.stats.Stale++
		if failure == nil && (!p.on || g.Port != p.port) {
			p.release(g)
		}
		return ErrStaleGrant
	}
	p.asked = nil
	return m.HandleGrant(p.askedID, g, failure, p.now)
}

// Mappings returns how things stand, one for each address; none where it is off
// or there are no such addresses. The slice is the caller's.
func (p *Pinholes) Mappings() []Mapping {
	var out []Mapping
	for _, m := range p.holes {
		out = append(out, m.mapping)
	}
	return out
}

// Stats returns the counters.
func (p *Pinholes) Stats() PinholesStats {
	total := p.stats
	total.add(p.retired)
	for _, m := range p.holes {
		total.add(m.stats)
	}
	return total
}

func (s *MapperStats) add(o MapperStats) {
	s.ClockBack += o.ClockBack
	s.Requests += o.Requests
	s.Grants += o.Grants
	s.Failures += o.Failures
	s.Refused += o.Refused
	s.Stale += o.Stale
	s.Lost += o.Lost
}

// NextRequest is as the Mapper's.
func (p *Pinholes) NextRequest() (MapRequest, bool) {
	if p.asked != nil {
		return MapRequest{}, false
	}
	for _, m := range p.holes {
		if r, ok := m.NextRequest(); ok {
			p.asked, p.askedID = m, r.ID
			p.id++
			r.ID = p.id
			return r, true
		}
	}
	return MapRequest{}, false
}

// NextRelease is as the Mapper's.
func (p *Pinholes) NextRelease() (Grant, bool) {
	if len(p.releases) > 0 {
		g := p.releases[0]
		p.releases = p.releases[1:]
		return g, true
	}
	for _, m := range p.holes {
		if g, ok := m.NextRelease(); ok {
			return g, true
		}
	}
	return Grant{}, false
}

// NextEvent reports whether what Mappings returns has changed, once after each
// change.
func (p *Pinholes) NextEvent() (changed bool) {
	changed, p.changed = p.changed, false
	for _, m := range p.holes {
		if _, ok := m.NextEvent(); ok {
			changed = true
		}
	}
	return changed
}

// NextTimeout is as the Mapper's.
func (p *Pinholes) NextTimeout() (next time.Time, ok bool) {
	if p.changed || len(p.releases) > 0 {
		return p.now, true
	}
	for _, m := range p.holes {
		t, wanted := m.NextTimeout()
		if m.due && p.asked != nil && !m.changed && !m.release {
			t, wanted = m.deadline() // it waits for the other's answer
		}
		if wanted && (!ok || t.Before(next)) {
			next, ok = t, true
		}
	}
	return next, ok
}

// HandleTimeout does what is due at now.
func (p *Pinholes) HandleTimeout(now time.Time) { p.advance(now) }

// advance moves the clock to now.
func (p *Pinholes) advance(now time.Time) {
	if now.Before(p.now) {
		p.stats.ClockBack++
		return
	}
	p.now = now
	for _, m := range p.holes {
		m.advance(now)
	}
}
