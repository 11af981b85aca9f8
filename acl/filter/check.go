package filter

import (
	"time"

	"github.com/warren-overlay/warren/acl/packet"
)

// Receive parses and checks a packet that was decrypted from this peer. i is
// filled in as by packet.Parse.
func (p *Peer) Receive(b []byte, i *packet.Info, now time.Time) (d Decision) {
	if d.Reason = FaultReason(packet.Parse(b, i)); d.Reason == Passed {
		p.check(i, Inbound, now, &d)
		if d.Reason != Passed {
			p.noteDenied(i, Inbound, &d, now)
		}
	}
	p.count(Inbound, i.Version, d.Reason)
	return d
}

// Send parses and checks a packet that the local side sends to this peer. i is
// filled in as by packet.Parse.
func (p *Peer) Send(b []byte, i *packet.Info, now time.Time) (d Decision) {
	if d.Reason = FaultReason(packet.Parse(b, i)); d.Reason == Passed {
		p.check(i, Outbound, now, &d)
		if d.Reason != Passed {
			p.noteDenied(i, Outbound, &d, now)
		}
	}
	p.count(Outbound, i.Version, d.Reason)
	return d
}

// CheckInbound decides on a packet that was decrypted from this peer and that
// packet.Parse has accepted.
func (p *Peer) CheckInbound(i *packet.Info, now time.Time) (d Decision) {
	p.check(i, Inbound, now, &d)
	if d.Reason != Passed {
		p.noteDenied(i, Inbound, &d, now)
	}
	p.count(Inbound, i.Version, d.Reason)
	return d
}

// CheckOutbound decides on a packet that the local side sends to this peer and
// that packet.Parse has accepted.
func (p *Peer) CheckOutbound(i *packet.Info, now time.Time) (d Decision) {
	p.check(i, Outbound, now, &d)
	if d.Reason != Passed {
		p.noteDenied(i, Outbound, &d, now)
	}
	p.count(Outbound, i.Version, d.Reason)
	return d
}

func (p *Peer) count(d Direction, version uint8, r Reason) {
	if r == Passed {
		p.passed[d][family(version)]++
		return
	}
	if p.drops == nil {
		p.drops = &Counters{}
	}
	p.drops.Count(d, version, r)
}

// check is the filter. It writes its answer into decision, which must be zero: a
// Drop. The order of its questions is part of what it does: who sent the packet
// and to whom comes before everything that is remembered of earlier ones.
func (p *Peer) check(i *packet.Info, d Direction, now time.Time, decision *Decision) {
	if p.removed || p.ends != never && p.clock(now) >= p.ends {
		decision.Reason = DropRemoved
		return
	}
	onlyReply, reason := p.addresses(i, d)
	if reason != Passed {
		decision.Reason = reason
		return
	}
	if i.Protocol == p.shared.ControlProtocol && i.Protocol != 0 {
		p.control(i, d, decision)
		return
	}
	tick := p.tick(now)
	if i.Fragment() {
		if i.Kind == packet.LaterFragment {
			if decision.Reason = p.laterFragment(i, tick); decision.Reason == Passed {
				decision.Verdict = Pass
			}
			return
		}
		if decision.Reason = p.firstFragment(i, tick); decision.Reason != Passed {
			return
		}
	}
	switch i.Kind {
	case packet.ICMPOther:
		decision.Reason = DropICMPType
	case packet.ICMPError:
		p.icmpError(i, d, onlyReply, tick, now, decision)
	case packet.TCPSegment:
		if !legalTCP(i.Flags) {
			decision.Reason = DropTCPFlags
			return
		}
		fallthrough
	default:
		p.flow(i, d, onlyReply, tick, now, decision)
	}
}

// addresses checks source and destination (P2, P3, P4). onlyReply is set where
// the packet may pass only as a part of a flow that was opened from the other
// side: it comes from behind a default route.
func (p *Peer) addresses(i *packet.Info, d Direction) (onlyReply bool, r Reason) {
	sender, receiver := &p.peer, &p.self
	if d == Outbound {
		// What the local stack sends to groups and neighbours is not meant
		// for any peer.
		if p.undirected(i.Destination) {
			return false, DropMulticast
		}
		sender, receiver = receiver, sender
	}
	if !sender.owns(i.Source) {
		from := sender.place(i.Source)
		if from == nowhere || p.unreachable(i.Source) {
			return false, DropSpoof
		}
		onlyReply = from == beyond
	}
	if !receiver.owns(i.Destination) {
		if p.undirected(i.Destination) {
			return false, DropMulticast
		}
		if receiver.place(i.Destination) == nowhere || p.unreachable(i.Destination) {
			return false, DropDestination
		}
	}
	return onlyReply, Passed
}

// control decides on the in-band control protocol (P12): a peer may speak it
// with this device itself, and the local side with nobody.
func (p *Peer) control(i *packet.Info, d Direction, decision *Decision) {
	if d == Outbound || i.Fragment() || !p.peer.owns(i.Source) || !p.self.owns(i.Destination) {
		decision.Reason = DropControl
		return
	}
	decision.Verdict = Control
}

// set makes k the key of the flow that a packet in direction d belongs to.
func (k *key) set(i *packet.Info, d Direction) {
	localPort, remotePort, by := i.SourcePort, i.DestinationPort, notEcho
	asking := d
	switch i.Kind {
	case packet.EchoReply:
		asking = 1 - d
		fallthrough
	case packet.EchoRequest:
		localPort, remotePort, by = i.Identifier, 0, askedByUs
		if asking == Inbound {
			by = askedByPeer
		}
		if asking != d {
			localPort, remotePort = remotePort, localPort
		}
	default:
	}
	if d == Inbound {
		k.local, k.remote = i.Destination, i.Source
		k.tail = tailOf(remotePort, localPort, i.Protocol, by)
	} else {
		k.local, k.remote = i.Source, i.Destination
		k.tail = tailOf(localPort, remotePort, i.Protocol, by)
	}
}
