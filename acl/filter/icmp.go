package filter

import (
	"time"

	"github.com/warren-overlay/warren/acl/packet"
)

// icmpError decides on an ICMP error: it must be about a packet that its
// receiver sent in a live flow, and never opens or prolongs anything (P14).
func (p *Peer) icmpError(i *packet.Info, d Direction, onlyReply bool, tick int64, now time.Time, decision *Decision) {
	// The packet that failed went the other way, from the error's receiver.
	q := &i.Quoted
	failed := packet.Info{
		Source: q.Source, Destination: q.Destination, SourcePort: q.SourcePort, DestinationPort: q.DestinationPort,
		Identifier: q.Identifier, Protocol: q.Protocol, Kind: q.Kind,
	}
	var k key
	k.set(&failed, 1-d)
	n := p.flows.find(&k, hash(p.shared.Seed, &k))
	if q.Source != i.Destination || n == 0 || !p.current(n, tick, now) {
		decision.Reason = DropICMPNoFlow
		return
	}
	e := p.flows.at(n)
	decision.Rule = e.rule
	if onlyReply && e.opener() == d {
		decision.Reason = DropUnsolicited
		return
	}
	least := uint16(0)
	if d == Inbound && i.TooBig() {
		least = minMTU4
		if i.Version == 6 {
			least = minMTU6
		}
		if max(i.MTU, uint32(least)) >= uint32(p.shared.MTU) {
			decision.Reason = DropMTU
			return
		}
	}
	if !p.icmpErrors[d].take(tick, icmpErrorRate) {
		decision.Reason = DropICMPRate
		return
	}
	decision.Verdict = Pass
	if i.MTU < uint32(least) {
		decision.MTU = least
	}
}

// bucket lets a number of events a second pass, and as many at once after a
// second of silence (the generic cell rate algorithm). The zero bucket is full.
type bucket struct {
	// booked is the tick up to which the events that passed have used up the
	// rate.
	booked int64
}

func (b *bucket) take(tick, rate int64) bool {
	interval := int64(time.Second) / rate
	booked := max(b.booked, tick)
	if booked-tick > (rate-1)*interval {
		return false
	}
	b.booked = booked + interval
	return true
}

// destinationBucket is the budget of answers about one destination.
type destinationBucket struct {
	destination packet.Address
	bucket      bucket
}

// mayReject reports whether the local side may be told that its packet to the
// destination was refused, and counts it.
func (p *Peer) mayReject(destination packet.Address, tick int64) bool {
	free := -1
	for at := range p.rejects {
		r := &p.rejects[at]
		if r.destination == destination {
			return r.bucket.take(tick, rejectRate)
		}
		if r.bucket.booked <= tick {
			free = at
		}
	}
	if free < 0 {
		if len(p.rejects) == maxRejectDestinations {
			return false
		}
		free = len(p.rejects)
		p.rejects = append(p.rejects, destinationBucket{})
	}
	p.rejects[free] = destinationBucket{destination: destination}
	return p.rejects[free].bucket.take(tick, rejectRate)
}
