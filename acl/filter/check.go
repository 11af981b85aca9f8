package filter

import (
	"time"

	"github.com/warren-overlay/warren/acl/packet"
)

// Receive parses and checks a packet that was decrypted from this peer. i is
// filled in as by packet.Parse.
func (p *Peer) Receive(b []byte, i *packet.Info, now time.Time) Decision {
	if fault := packet.Parse(b, i); fault != packet.None {
		return p.drop(Inbound, i.Version, FaultReason(fault))
	}
	return p.CheckInbound(i, now)
}

// Send parses and checks a packet that the local side sends to this peer. i is
// filled in as by packet.Parse.
func (p *Peer) Send(b []byte, i *packet.Info, now time.Time) Decision {
	if fault := packet.Parse(b, i); fault != packet.None {
		return p.drop(Outbound, i.Version, FaultReason(fault))
	}
	return p.CheckOutbound(i, now)
}

// CheckInbound decides on a packet that was decrypted from this peer and that
// packet.Parse has accepted.
func (p *Peer) CheckInbound(i *packet.Info, now time.Time) Decision {
	d := p.check(i, Inbound, now)
	p.count(Inbound, i.Version, d.Reason)
	return d
}

// CheckOutbound decides on a packet that the local side sends to this peer and
// that packet.Parse has accepted.
func (p *Peer) CheckOutbound(i *packet.Info, now time.Time) Decision {
	d := p.check(i, Outbound, now)
	p.count(Outbound, i.Version, d.Reason)
	return d
}

func (p *Peer) drop(d Direction, version uint8, r Reason) Decision {
	p.count(d, version, r)
	return Decision{Reason: r}
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

// check is the filter. The order of its questions is part of what it does: who
// sent the packet and to whom comes before everything that is remembered of
// earlier ones.
func (p *Peer) check(i *packet.Info, d Direction, now time.Time) Decision {
	tick := p.tick(now)
	if p.removed {
		return Decision{Reason: DropRemoved}
	}
	onlyReply, reason := p.addresses(i, d)
	if reason != Passed {
		return Decision{Reason: reason}
	}
	if i.Protocol == p.shared.ControlProtocol && i.Protocol != 0 {
		return p.control(i, d)
	}
	if i.Fragment() {
		if i.Kind == packet.LaterFragment {
			reason = p.laterFragment(i, tick)
		} else {
			reason = p.firstFragment(i, tick)
		}
		if reason != Passed || i.Kind == packet.LaterFragment {
			return Decision{Verdict: verdictOf(reason), Reason: reason}
		}
	}
	switch i.Kind {
	case packet.ICMPOther:
		return Decision{Reason: DropICMPType}
	case packet.ICMPError:
		return p.icmpError(i, d, onlyReply, tick, now)
	case packet.TCPSegment:
		if !legalTCP(i.Flags) {
			return Decision{Reason: DropTCPFlags}
		}
	}
	return p.flow(i, d, onlyReply, tick, now)
}

func verdictOf(r Reason) Verdict {
	if r == Passed {
		return Pass
	}
	return Drop
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
func (p *Peer) control(i *packet.Info, d Direction) Decision {
	if d == Outbound || i.Fragment() || !p.peer.owns(i.Source) || !p.self.owns(i.Destination) {
		return Decision{Reason: DropControl}
	}
	return Decision{Verdict: Control}
}

// keyOf returns the key of the flow that the packet belongs to.
func keyOf(i *packet.Info, d Direction) key {
	k := key{protocol: i.Protocol}
	if d == Inbound {
		k.local, k.remote = i.Destination, i.Source
		k.localPort, k.remotePort = i.DestinationPort, i.SourcePort
	} else {
		k.local, k.remote = i.Source, i.Destination
		k.localPort, k.remotePort = i.SourcePort, i.DestinationPort
	}
	switch i.Kind {
	case packet.EchoRequest:
		k.echo(i.Identifier, d)
	case packet.EchoReply:
		k.echo(i.Identifier, 1-d)
	}
	return k
}

// echo makes k the key of the echo that was asked in a direction.
func (k *key) echo(identifier uint16, asked Direction) {
	if asked == Outbound {
		k.localPort, k.asked = identifier, askedByUs
	} else {
		k.remotePort, k.asked = identifier, askedByPeer
	}
}
