package ruleset

import (
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

// PeerRules is a rule set narrowed to the flows between this device and one
// peer.
type PeerRules struct {
	epoch      Epoch
	self, peer ident.Identity
	rules      [2][]Rule // by Direction
}

// ForPeer narrows the set to the rules that can match between self and peer. A
// nil set denies everything. The identities are kept and must not be written
// to afterwards.
func (s *RuleSet) ForPeer(self, peer *ident.Identity) *PeerRules {
	p := &PeerRules{self: *self, peer: *peer}
	if s == nil {
		return p
	}
	p.epoch = s.Epoch
	for dir, rules := range [2][]Rule{In: s.In, Out: s.Out} {
		for _, r := range rules {
			var peers []Selector
			for _, sel := range r.Peers {
				if peer.Labels.HasAll(sel.Labels) {
					peers = append(peers, sel)
				}
			}
			if len(peers) > 0 {
				r.Peers = peers
				p.rules[dir] = append(p.rules[dir], r)
			}
		}
	}
	return p
}

// Epoch returns the epoch of the set that the rules came from.
func (p *PeerRules) Epoch() Epoch { return p.epoch }

// Decide answers whether a flow may be opened in the given direction at the
// given time. Without a matching rule the answer is no.
func (p *PeerRules) Decide(dir Direction, f Flow, now time.Time) Verdict {
	theirs, ours := f.Source, f.Destination
	if dir == Out {
		theirs, ours = ours, theirs
	}
	var verdict Verdict
	for i := range p.rules[dir] {
		r := &p.rules[dir][i]
		if r.Mode != Enforce || !p.picksPeer(r, theirs) || !within(r.Own, &p.self, ours) || !r.serves(f) {
			continue
		}
		verdict.Until = earlier(verdict.Until, r.Boundary(now))
		if !r.Holds(now) {
			continue
		}
		switch r.Action {
		case Accept:
			if !verdict.Allowed && verdict.Rule == "" {
				verdict.Allowed, verdict.Rule = true, r.ID
			}
		case Deny:
			if verdict.Allowed || verdict.Rule == "" {
				verdict.Allowed, verdict.Rule = false, r.ID
			}
		}
	}
	return verdict
}

func (p *PeerRules) picksPeer(r *Rule, theirs netip.Addr) bool {
	for i := range r.Peers {
		if within(r.Peers[i].Prefixes, &p.peer, theirs) || r.Peers[i].Subnets && len(r.Peers[i].Prefixes) == 0 && inSubnets(&p.peer, theirs) {
			return true
		}
	}
	return false
}

// within reports whether a is an address of the device's that the prefixes
// speak of; without prefixes these are its own addresses.
func within(prefixes []netip.Prefix, device *ident.Identity, a netip.Addr) bool {
	if len(prefixes) == 0 {
		return device.OwnsAddress(a)
	}
	for _, p := range prefixes {
		if p.Contains(a) {
			return device.OwnsAddress(a) || device.RoutesAddress(a)
		}
	}
	return false
}

// inSubnets reports whether a lies in a subnet that the device routes, default
// routes left out.
func inSubnets(device *ident.Identity, a netip.Addr) bool {
	for _, p := range device.Routes {
		if p.Bits() > 0 && p.Contains(a) {
			return true
		}
	}
	return false
}

func (r *Rule) serves(f Flow) bool {
	for _, s := range r.Services {
		if (s.Protocol == AnyProtocol || s.Protocol == f.Protocol) && s.First <= f.Port && f.Port <= s.Last {
			return true
		}
	}
	return false
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
