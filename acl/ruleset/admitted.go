package ruleset

import (
	"net/netip"
	"slices"
	"time"
)

// Services lists what may be opened in the given direction from source to
// destination at the given time: ranges that do not touch, in ascending order of
// protocol and port. AnyProtocol, which comes first, stands for all protocols
// that are not listed by themselves; one of which nothing may be opened while
// others may is listed with First 1 and Last 0. The list is for people to read:
// it takes as long as the peer has rules, and allocates.
func (p *PeerRules) Services(dir Direction, source, destination netip.Addr, now time.Time) []Service {
	x := &p.index[dir]
	var protocols []byte
	bounds := map[uint8][]uint16{} // where each protocol's answer may change
	for n := range x.scopes {
		s := &x.scopes[n].services
		protocols = append(protocols, s.protocols...)
		for i, protocol := range s.protocols {
			bounds[protocol] = append(bounds[protocol], s.tables[i].starts...)
		}
		others := s.tables[len(s.protocols)].starts
		bounds[AnyProtocol] = append(bounds[AnyProtocol], others...)
	}
	slices.Sort(protocols)
	protocols = slices.Compact(protocols)
	flow := Flow{Source: source, Destination: destination}
	var others []Service
	if unlisted, ok := firstMissing(protocols); ok {
		flow.Protocol = unlisted
		others = p.admitted(dir, flow, bounds[AnyProtocol], now)
	}
	all := relabelled(others, AnyProtocol)
	for _, protocol := range protocols {
		flow.Protocol = protocol
		// A scope that does not list the protocol has it among the others.
		own := p.admitted(dir, flow, slices.Concat(bounds[protocol], bounds[AnyProtocol]), now)
		switch {
		case slices.Equal(relabelled(own, AnyProtocol), relabelled(others, AnyProtocol)):
		case len(own) == 0:
			all = append(all, Service{Protocol: protocol, First: 1, Last: 0})
		default:
			all = append(all, own...)
		}
	}
	return all
}

// admitted returns the ranges of ports of the flow's protocol that are
// admitted; the answer changes at bounds only.
func (p *PeerRules) admitted(dir Direction, flow Flow, bounds []uint16, now time.Time) []Service {
	starts := append([]uint16{0}, bounds...)
	slices.Sort(starts)
	var ranges []Service
	open := false
	for _, first := range slices.Compact(starts) {
		flow.Port = first
		allowed := p.Decide(dir, flow, now).Allowed
		switch {
		case allowed && !open:
			ranges = append(ranges, Service{Protocol: flow.Protocol, First: first, Last: 65535})
		case !allowed && open:
			ranges[len(ranges)-1].Last = first - 1
		}
		open = allowed
	}
	return ranges
}

// relabelled returns the services as ones of another protocol.
func relabelled(services []Service, protocol uint8) []Service {
	services = slices.Clone(services)
	for i := range services {
		services[i].Protocol = protocol
	}
	return services
}

// firstMissing returns a protocol number that is not in the ascending list.
func firstMissing(protocols []byte) (uint8, bool) {
	for n := 1; n <= 255; n++ {
		if _, ok := slices.BinarySearch(protocols, byte(n)); !ok {
			return byte(n), true
		}
	}
	return 0, false
}
