package filter

import (
	"time"

	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// EventKind says what an Event reports.
type EventKind uint8

const (
	// FlowOpened: a flow was admitted.
	FlowOpened EventKind = iota
	// FlowDenied: a packet that would have opened a flow was refused.
	FlowDenied
	// FlowEnded: a flow is over; Packets, Bytes and Lasted are its totals.
	FlowEnded
)

// String returns "opened", "denied" or "ended".
func (k EventKind) String() string {
	switch k {
	case FlowOpened:
		return "opened"
	case FlowDenied:
		return "denied"
	default:
		return "ended"
	}
}

// Event is one fact for the records of flows.
type Event struct {
	Kind EventKind
	// Flow has this device's side as the source. An echo has its identifier as
	// the port of the side that asked.
	Flow packet.Tuple
	// Opener is Outbound where this device opened the flow, or tried to.
	Opener Direction
	// Reason is why a flow was denied.
	Reason Reason
	// End is why a flow ended.
	End       End
	Rule      ruleset.RuleID
	Would     ruleset.Would
	WouldRule ruleset.RuleID
	// Packets and Bytes are totals by Direction.
	Packets [2]uint32
	Bytes   [2]uint64
	// Lasted is the time from opening to end, up to when the end was noticed.
	Lasted time.Duration
}

// MaxEvents bounds the events that wait to be asked for.
const MaxEvents = 256

// eventLog holds the events of one Peer. A nil eventLog records nothing.
type eventLog struct {
	waiting queue[Event]
	lost    uint64
}

func (l *eventLog) add(e Event) {
	if l.waiting.length() >= MaxEvents {
		l.lost++
		return
	}
	l.waiting.push(e)
}

func tupleOf(k *key) packet.Tuple {
	return packet.Tuple{
		Source: k.local, Destination: k.remote, SourcePort: k.localPort(), DestinationPort: k.remotePort(), Protocol: k.protocol(),
	}
}

func (l *eventLog) opened(e *entry, d *Decision) {
	if l != nil {
		l.add(Event{
			Kind: FlowOpened, Flow: tupleOf(&e.key), Opener: e.opener(),
			Rule: d.Rule, Would: d.Would, WouldRule: d.WouldRule,
		})
	}
}

func (l *eventLog) denied(k *key, opener Direction, d *Decision) {
	if l != nil {
		l.add(Event{
			Kind: FlowDenied, Flow: tupleOf(k), Opener: opener, Reason: d.Reason,
			Rule: d.Rule, Would: d.Would, WouldRule: d.WouldRule,
		})
	}
}

func (l *eventLog) ended(e *entry, why End, lasted int64) {
	if l != nil {
		l.add(Event{
			Kind: FlowEnded, Flow: tupleOf(&e.key), Opener: e.opener(), End: why, Rule: e.rule,
			Packets: e.packets, Bytes: e.bytes, Lasted: time.Duration(lasted),
		})
	}
}

// NextEvent returns what happened, oldest first, and false where there is
// nothing more. Config.Events must be set. At most MaxEvents wait; what comes
// on top is counted (LostEvents).
func (p *Peer) NextEvent() (Event, bool) {
	if p.events == nil {
		return Event{}, false
	}
	return p.events.waiting.pop()
}

// LostEvents returns how many events were not recorded since the last call
// because too many were waiting.
func (p *Peer) LostEvents() uint64 {
	if p.events == nil {
		return 0
	}
	lost := p.events.lost
	p.events.lost = 0
	return lost
}
