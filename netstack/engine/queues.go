package engine

import (
	"sync/atomic"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/netstack/aqm"
	"github.com/warren-overlay/warren/netstack/path"
	"github.com/warren-overlay/warren/netstack/wg"
)

// queues keeps what waits in WireGuard for one peer and from it short. Both
// directions are needed: whichever of two nodes is slower has the backlog.
type queues struct {
	control [2]aqm.Control // by filter.Direction
	sent    wg.Waiting     // of packets to the peer, as far as it was looked at
}

// shedding counts what was done about long queues.
type shedding struct{ dropped, marked atomic.Uint64 }

// outbound looks at what of total, the sums of packets to the peer, is new.
func (q *queues) outbound(total wg.Waiting, roundTrip time.Duration, now time.Time) {
	bytes, byteMicroseconds := total.Bytes-q.sent.Bytes, total.ByteMicroseconds-q.sent.ByteMicroseconds
	another := total.Bytes < q.sent.Bytes // the sums are of another tunnel with the peer
	if q.sent = total; bytes == 0 || another {
		return
	}
	q.left(filter.Outbound, int(bytes), time.Duration(byteMicroseconds/bytes)*time.Microsecond, roundTrip, now)
}

func (q *queues) left(d filter.Direction, bytes int, waited, roundTrip time.Duration, now time.Time) {
	q.control[d].SetRoundTrip(roundTrip)
	q.control[d].Left(bytes, waited, now)
}

// shed reports whether a packet that the filter passed is dropped so that its
// sender sends less. It prefers long packets: what stands in a queue is made of
// them, and the loss of others (questions, keystrokes, acknowledgements) tells
// nobody to send less of it.
func (q *queues) shed(d filter.Direction, b []byte, info *packet.Info, counted *[2]shedding, now time.Time) bool {
	since, due := q.control[d].Due()
	if !due || info.Length < largePacket && now.Sub(since) < aqm.Interval {
		return false
	}
	q.control[d].Dropped(now)
	if packet.MarkCongested(b) {
		counted[d].marked.Add(1)
		return false
	}
	counted[d].dropped.Add(1)
	return true
}

// setRoundTrip tells the data path how long the way to p takes, as far as known.
// Of a way over a relay our half is.
func (c *control) setRoundTrip(p *peer) {
	rtt := p.agent.RTT()
	if p.agent.Primary().Kind == path.Relay && p.relay != nil {
		rtt = 2 * c.relays.machine.RTT(p.relay.relay.Name)
	}
	p.roundTrip.Store(int64(rtt))
}
