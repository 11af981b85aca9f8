package filter

import (
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// Question is about the first packet of a flow that somebody might open.
type Question struct {
	// Opener is Outbound for a flow of this device's, Inbound for one of the
	// peer's.
	Opener Direction
	// Local and Remote are the addresses of this device's side and the peer's.
	Local, Remote netip.Addr
	// Protocol is the flow's; ICMP and ICMPv6 stand for an echo request.
	Protocol uint8
	// Port is the destination port, 0 for a protocol that has none.
	Port uint16
}

// Answer is what Why says.
type Answer struct {
	// Reason is Passed where the flow may be opened now.
	Reason Reason
	// Verdict is what the rules say; zero where they were not asked, because
	// the addresses or the shields forbid it.
	Verdict ruleset.Verdict
	// Epoch is that of the rules, 0 where there are none.
	Epoch ruleset.Epoch
	// Services lists what the rules let be opened between these addresses in
	// this direction, as ruleset.PeerRules.Services does.
	Services []ruleset.Service
}

// Epoch returns that of the rules in force, 0 where there are none.
func (p *Peer) Epoch() ruleset.Epoch {
	if p.rules == nil {
		return 0
	}
	return p.rules.Epoch()
}

// Why says whether a flow could be opened now, and by which rule or why not. It
// asks what CheckInbound and CheckOutbound ask, and changes nothing. What only
// packets decide is left out: fragments, quotas, and that some protocols begin
// with a certain packet.
func (p *Peer) Why(q Question, now time.Time) Answer {
	a := Answer{Reason: DropRemoved}
	if p.removed {
		return a
	}
	local, remote := packet.AddressOf(q.Local), packet.AddressOf(q.Remote)
	a.Epoch = p.Epoch()
	if p.rules != nil {
		a.Services = p.services(q, now)
	}
	i := packet.Info{Source: local, Destination: remote}
	if q.Opener == Inbound {
		i.Source, i.Destination = remote, local
	}
	onlyReply, reason := p.addresses(&i, q.Opener)
	if reason != Passed {
		a.Reason = reason
		return a
	}
	if q.Protocol == p.shared.ControlProtocol && q.Protocol != 0 {
		a.Reason = DropControl
		return a
	}
	k := key{local: local, remote: remote}
	switch {
	case (q.Protocol == packet.ICMP || q.Protocol == packet.ICMPv6) && q.Opener == Outbound:
		k.tail = tailOf(0, 0, q.Protocol, askedByUs)
	case q.Protocol == packet.ICMP || q.Protocol == packet.ICMPv6:
		k.tail = tailOf(0, 0, q.Protocol, askedByPeer)
	case q.Opener == Outbound:
		k.tail = tailOf(0, q.Port, q.Protocol, notEcho)
	default:
		k.tail = tailOf(q.Port, 0, q.Protocol, notEcho)
	}
	a.Verdict, a.Reason = p.admit(&k, q.Opener, onlyReply, now)
	return a
}

func (p *Peer) services(q Question, now time.Time) []ruleset.Service {
	if q.Opener == Outbound {
		return p.rules.Services(ruleset.Out, q.Local, q.Remote, p.wall(now))
	}
	return p.rules.Services(ruleset.In, q.Remote, q.Local, p.wall(now))
}
