package filter

import (
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// Cut is a flow that was ended while both sides may still believe in it. The
// caller tells them: AppendLocal for the local stack, AppendPeer for the peer;
// where it has other means to end the local side (destroying the socket,
// closing the endpoint), Flow says which it is.
type Cut struct {
	// Flow has this device's side as the source.
	Flow packet.Tuple
	// Opener is Outbound where this device opened the flow.
	Opener Direction
	End    End
	// Rule is the rule that had admitted the flow.
	Rule ruleset.RuleID
	// end is the next sequence number in each direction.
	end [2]uint32
}

func cutOf(e *entry, why End) Cut {
	return Cut{
		Flow:   tupleOf(&e.key),
		Opener: e.opener(), End: why, Rule: e.rule, end: e.end,
	}
}

// AppendLocal appends the packet that tells the local stack that the flow is
// over, as if it came from the peer: a TCP reset, or for other protocols ICMP
// "communication administratively prohibited".
func (c *Cut) AppendLocal(b []byte) []byte {
	if c.Flow.Protocol == packet.TCP {
		return packet.AppendReset(b, c.Flow.Reverse(), c.end[Inbound], c.end[Outbound])
	}
	return packet.AppendProhibited(b, c.Flow)
}

// AppendPeer appends the packet that tells the peer so. It is to be sent
// without asking CheckOutbound. A peer that was removed is told nothing: b
// comes back as it was.
func (c *Cut) AppendPeer(b []byte) []byte {
	if c.End == EndRemoved {
		return b
	}
	if c.Flow.Protocol == packet.TCP {
		return packet.AppendReset(b, c.Flow, c.end[Outbound], c.end[Inbound])
	}
	return packet.AppendProhibited(b, c.Flow.Reverse())
}

// NextCut returns flows that were ended by a change of rules, identities or
// shields, by the time of a rule, or by Remove, in the order in which they
// ended, and false where there is none. At most MaxFlows wait to be asked for;
// what comes on top is forgotten.
func (p *Peer) NextCut() (Cut, bool) { return p.cuts.pop() }

// queue is a first-in first-out list that keeps no memory while it is empty.
type queue[T any] struct {
	items []T
	head  int
}

func (q *queue[T]) length() int { return len(q.items) - q.head }

func (q *queue[T]) push(v T) {
	if q.head > len(q.items)/2 {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, v)
}

func (q *queue[T]) pop() (T, bool) {
	var v T
	if q.head == len(q.items) {
		return v, false
	}
	v = q.items[q.head]
	if q.head++; q.head == len(q.items) {
		*q = queue[T]{}
	}
	return v, true
}
