package acltest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// FilterWorld draws rules, identities and packets from few values, so that they
// meet often. Start is the time from which schedules and bounds of rules are
// drawn.
type FilterWorld struct {
	Rand  *rand.Rand
	Start time.Time
	// sent are the latest packets that passed, to be answered, repeated and
	// complained about; last is the one that Packet gave.
	sent []sentPacket
	last sentPacket
}

type sentPacket struct {
	packet    Packet
	direction filter.Direction
}

func choose[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func addresses(list ...string) (all []netip.Addr) {
	for _, s := range list {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

func prefixes(list ...string) (all []netip.Prefix) {
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

var (
	worldSelf = addresses("100.64.0.1", "fd00::1")
	worldPeer = addresses("100.64.0.2", "fd00::2")
	// worldFar are hosts behind routers, and addresses that nobody may use.
	worldFar = addresses("10.1.2.3", "10.9.9.9", "8.8.8.8", "fd01::5", "2001:db8::8", "192.168.7.7", "192.168.7.255", "10.1.255.255",
		"100.64.0.3", "fd00::3", "127.0.0.1", "169.254.169.254", "224.0.0.251", "255.255.255.255", "0.0.0.0", "::1", "::",
		"fe80::1", "ff02::fb", "64:ff9b::7f00:1", "2002:a09:909::1", "2002:6440:1::1", "fd00:ec2::254",
		"168.63.129.16", "192.0.0.192", "100.100.100.200", "64:ff9b::a83f:8110")
	worldRoutes = prefixes("10.1.0.0/16", "10.0.0.0/8", "fd01::/64", "0.0.0.0/0", "::/0", "64:ff9b::/96", "192.168.7.0/24")
	worldPorts  = []uint16{22, 80, 443, 5353}
)

// Config returns a configuration of the world.
func (w *FilterWorld) Config() filter.Config {
	cfg := filter.Config{
		Seed:            [2]uint64{w.Rand.Uint64(), w.Rand.Uint64()},
		Overlay:         prefixes("100.64.0.0/10", "fd00::/48"),
		Protected:       prefixes("192.168.7.0/24", "203.0.113.9/32"),
		Connected:       prefixes("10.1.0.0/16", "fd01::/64"),
		ControlProtocol: choose(w.Rand, uint8(0), 253),
		MTU:             choose(w.Rand, uint16(0), 1420),
		StrictEcho:      w.Rand.IntN(2) == 0,
	}
	if w.Rand.IntN(2) == 0 {
		cfg.Started = w.Start.Add(-time.Duration(w.Rand.IntN(100)) * time.Second)
	}
	return cfg
}

// Identities returns the identities of this device and of the peer.
func (w *FilterWorld) Identities() (self, peer *ident.Identity) {
	r := w.Rand
	draw := func(own []netip.Addr, node ident.NodeID) *ident.Identity {
		id := &ident.Identity{Node: node, Addresses: own}
		for l := ident.Label(1); l <= 3; l++ {
			if r.IntN(3) > 0 {
				id.Labels = ident.NewLabelSet(append(slices.Clone(id.Labels.Slice()), l)...)
			}
		}
		for range max(0, r.IntN(5)-2) {
			id.Routes = append(id.Routes, choose(r, worldRoutes...))
		}
		return id
	}
	self, peer = draw(worldSelf, 1), draw(worldPeer, 2)
	if r.IntN(20) == 0 {
		peer.Addresses = addresses("100.64.0.2", "100.64.0.1", "127.0.0.1", "fd00::2")
	}
	return self, peer
}

// Rules returns a random rule set.
func (w *FilterWorld) Rules(epoch ruleset.Epoch) *ruleset.RuleSet {
	r := w.Rand
	s := &ruleset.RuleSet{Epoch: epoch}
	for n := range r.IntN(10) {
		rule := ruleset.Rule{ID: ruleset.RuleID(fmt.Sprint("rule-", n))}
		for range 1 + r.IntN(2) {
			sel := ruleset.Selector{Subnets: r.IntN(3) == 0}
			if r.IntN(2) == 0 {
				sel.Labels = ident.NewLabelSet(ident.Label(1 + r.IntN(3)))
			}
			if r.IntN(5) == 0 {
				sel.Prefixes = []netip.Prefix{choose(r, worldRoutes...)}
			}
			rule.Peers = append(rule.Peers, sel)
		}
		if r.IntN(6) == 0 {
			rule.Own = []netip.Prefix{choose(r, worldRoutes...)}
		}
		for range 1 + r.IntN(2) {
			svc := ruleset.Service{
				Protocol: choose(r, packet.TCP, packet.TCP, packet.UDP, packet.ICMP, packet.ICMPv6, packet.SCTP, 47, ruleset.AnyProtocol),
				Last:     65535,
			}
			if r.IntN(3) == 0 && svc.Protocol != 47 {
				svc.First = choose(r, worldPorts...)
				svc.Last = svc.First + uint16(r.IntN(100))
			}
			rule.Services = append(rule.Services, svc)
		}
		if r.IntN(6) == 0 {
			rule.Action = ruleset.Deny
		}
		if r.IntN(6) == 0 {
			rule.Mode = ruleset.Audit
		}
		if r.IntN(6) == 0 {
			rule.NotBefore = w.Start.Add(time.Duration(r.IntN(200)) * time.Second)
		}
		if r.IntN(6) == 0 {
			rule.NotAfter = w.Start.Add(time.Duration(r.IntN(400)) * time.Second)
		}
		if r.IntN(6) == 0 {
			rule.MaxSession = time.Duration(1+r.IntN(100)) * time.Second
		}
		if r.IntN(2) == 0 {
			s.In = append(s.In, rule)
		} else {
			s.Out = append(s.Out, rule)
		}
	}
	return s
}

// Step returns how long to wait before the next packet: mostly not at all, and
// often one of the times at which something ends.
func (w *FilterWorld) Step() time.Duration {
	r := w.Rand
	if r.IntN(4) > 0 {
		return time.Duration(r.IntN(20)) * time.Millisecond
	}
	d := choose(r, 1, 5, 10, 29, 30, 31, 60, 90, 119, 120, 121, 300)
	if r.IntN(200) == 0 {
		d = 2*3600 + 4*60
	}
	return time.Duration(d) * time.Second
}

// Passed tells that the packet that Packet gave last has passed; later ones will
// have to do with it.
func (w *FilterWorld) Passed() {
	if w.sent = append(w.sent, w.last); len(w.sent) > 12 {
		w.sent = w.sent[1:]
	}
}

// Packet returns a packet and its direction: a new one, or one that has to do
// with an earlier one.
func (w *FilterWorld) Packet() ([]byte, filter.Direction) {
	r := w.Rand
	var p Packet
	d := filter.Direction(r.IntN(2))
	if len(w.sent) > 0 && r.IntN(4) > 0 {
		s := choose(r, w.sent...)
		p, d = s.packet, s.direction
		kind := r.IntN(8)
		if p.Fragmented && r.IntN(3) > 0 {
			kind = 7
		}
		switch kind {
		case 0:
			// the same again
		case 1, 2, 3, 4:
			p, d = p.Reply(), 1-d
			p.Flags = w.flags()
		case 5:
			p.Flags = w.flags()
		case 6:
			if p.About == nil {
				p, d = w.complaint(p), 1-d
			}
		case 7:
			if p.Fragmented {
				p.Offset, p.More = choose(r, 0, 8, 16, 24, 32, 48, 64, 64, 65528), r.IntN(3) > 0
				p.Length = choose(r, 8, 16, 24, 7)
			}
		}
	} else {
		p = w.fresh(d)
	}
	w.last = sentPacket{p, d}
	b := p.Bytes()
	if r.IntN(100) == 0 {
		b[r.IntN(min(len(b), 60))] ^= 1 << r.IntN(8)
	}
	return b, d
}

func (w *FilterWorld) flags() packet.TCPFlags {
	const s, a, f, t = packet.SYN, packet.ACK, packet.FIN, packet.RST
	return choose(w.Rand, s, s, s|a, s|a, a, a, a, a, f|a, f|a, t, t|a, a|packet.PSH,
		0, s|f, s|t, f, f|packet.PSH|packet.URG, s|a|f, t|f)
}

func (w *FilterWorld) fresh(d filter.Direction) Packet {
	r := w.Rand
	family := r.IntN(2)
	p := Packet{
		Source: worldPeer[family], Destination: worldSelf[family],
		SourcePort: choose(r, append([]uint16{40000, 40001}, worldPorts...)...), DestinationPort: choose(r, worldPorts...),
		Protocol:   choose(r, packet.TCP, packet.TCP, packet.TCP, packet.UDP, packet.UDP, packet.ICMP, packet.SCTP, 47, 253),
		Flags:      packet.SYN,
		Init:       r.IntN(3) > 0,
		Type:       choose(r, uint8(8), 8, 8, 0, 5, 13),
		Identifier: uint16(r.IntN(3)),
		Sequence:   r.Uint32(), Acknowledgment: r.Uint32(),
	}
	if d == filter.Outbound {
		p.Source, p.Destination = p.Destination, p.Source
	}
	if r.IntN(4) == 0 {
		p.Flags = w.flags()
	}
	replace := func(a *netip.Addr) {
		for {
			if b := choose(r, worldFar...); b.Is4() == a.Is4() {
				*a = b
				return
			}
		}
	}
	if r.IntN(9) == 0 {
		replace(&p.Source)
	}
	if r.IntN(9) == 0 {
		replace(&p.Destination)
	}
	if p.Protocol == packet.ICMP && family == 1 {
		p.Protocol = packet.ICMPv6
		p.Type = choose(r, uint8(128), 128, 128, 129, 133, 137)
	}
	if r.IntN(8) == 0 {
		p.Fragmented, p.More, p.FragmentID, p.Length = true, r.IntN(5) > 0, uint32(r.IntN(3)), choose(r, 0, 4, 4, 8, 8, 12)
		p.Protocol = choose(r, p.Protocol, packet.UDP, packet.TCP)
		if r.IntN(4) == 0 {
			p.Offset = choose(r, 8, 16, 24, 32)
		}
	}
	return p
}

// complaint is an ICMP error about p.
func (w *FilterWorld) complaint(p Packet) Packet {
	r := w.Rand
	c := Packet{Source: p.Destination, Destination: p.Source, Protocol: packet.ICMP, Type: choose(r, uint8(3), 3, 3, 11, 12), About: &p}
	if r.IntN(4) == 0 {
		c.Code, c.MTU = 4, choose(r, uint32(68), 576, 1000, 1420)
	}
	if !p.Source.Is4() {
		c.Protocol, c.Code = packet.ICMPv6, 0
		c.Type, c.MTU = choose(r, uint8(1), 1, 3), 0
		if r.IntN(3) == 0 {
			c.Type, c.MTU = 2, choose(r, uint32(68), 1279, 1280, 1400, 1500)
		}
	}
	switch r.IntN(10) {
	case 0:
		c.Source, c.Destination = c.Destination, c.Source
	case 1:
		c.Keep = 27
	}
	return c
}
