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
	// FlowDenied: a packet was refused, whether by the rules or by something
	// else that Reason names. Multicast and broadcast are refused without a
	// word (P4).
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
	// Opener is Outbound where this device opened the flow; of a denial it is
	// the direction of the packet.
	Opener Direction
	// At is when it happened, by the clock as it stood when the Peer was made
	// and the time that has passed since. At less Lasted is, to the
	// nanosecond, the same for the opening and the end of one flow.
	At time.Time
	// Epoch is that of the rules at that time.
	Epoch ruleset.Epoch
	// Reason is why a flow was denied.
	Reason Reason
	// End is why a flow ended.
	End       End
	Rule      ruleset.RuleID
	Would     ruleset.Would
	WouldRule ruleset.RuleID
	// Candidate is what a candidate document would have made of it.
	Candidate ruleset.Outlook
	// Packets and Bytes are totals by Direction.
	Packets [2]uint32
	Bytes   [2]uint64
	// Lasted is the time from opening to end, up to when the end was noticed.
	Lasted time.Duration
}

// MaxEvents bounds the events that wait to be asked for.
const MaxEvents = 256

// eventLog holds the events of one Peer.
type eventLog struct {
	waiting queue[Event]
	lost    uint64
}

// firstEvents is for how many events room is made at once.
const firstEvents = 16

// next returns a new event to fill in, nil where no more may wait. It is built
// in its place: an event is long, and a new flow waits for it.
func (l *eventLog) next() *Event {
	q := &l.waiting
	if q.length() >= MaxEvents {
		l.lost++
		return nil
	}
	if q.items == nil {
		q.items = make([]Event, 0, firstEvents)
	}
	q.push(Event{})
	return &q.items[len(q.items)-1]
}

func tupleOf(k *key) packet.Tuple {
	return packet.Tuple{
		Source: k.local, Destination: k.remote, SourcePort: k.localPort(), DestinationPort: k.remotePort(), Protocol: k.protocol(),
	}
}

// begin fills in what every event about something that happened at a tick has.
func (p *Peer) begin(e *Event, kind EventKind, k *key, opener Direction, tick int64) {
	e.Kind, e.Opener = kind, opener
	e.Flow.Source, e.Flow.Destination = k.local, k.remote
	e.Flow.SourcePort, e.Flow.DestinationPort, e.Flow.Protocol = k.localPort(), k.remotePort(), k.protocol()
	e.At, e.Epoch = p.base.Add(time.Duration(tick)), p.Epoch()
}

func (p *Peer) noteOpened(e *entry, d *Decision) {
	if p.events == nil {
		return
	}
	if event := p.events.next(); event != nil {
		p.begin(event, FlowOpened, &e.key, e.opener(), e.opened)
		event.Rule, event.Would, event.WouldRule, event.Candidate = d.Rule, d.Would, d.WouldRule, d.Candidate
	}
}

// noteDenied records a packet that was not admitted.
func (p *Peer) noteDenied(i *packet.Info, d Direction, decision *Decision, now time.Time) {
	if p.events == nil || decision.Reason == DropMulticast {
		return
	}
	if event := p.events.next(); event != nil {
		var k key
		k.set(i, d)
		p.begin(event, FlowDenied, &k, d, p.tick(now))
		event.Reason, event.Rule, event.Would, event.WouldRule = decision.Reason, decision.Rule, decision.Would, decision.WouldRule
		event.Candidate = decision.Candidate
	}
}

func (p *Peer) noteEnded(e *entry, why End) {
	if p.events == nil {
		return
	}
	if event := p.events.next(); event != nil {
		p.begin(event, FlowEnded, &e.key, e.opener(), p.lastTick)
		event.End, event.Rule, event.Packets, event.Bytes = why, e.rule, e.packets, e.bytes
		event.Lasted = time.Duration(p.lastTick - e.opened)
	}
}

// Waiting returns how many events wait to be asked for.
func (p *Peer) Waiting() int {
	if p.events == nil {
		return 0
	}
	return p.events.waiting.length()
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
