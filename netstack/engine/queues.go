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
	tcp     connections
}

// shedding counts what was done about long queues: packets that were dropped and
// marked, and segments whose window was lowered.
type shedding struct{ dropped, marked, lowered atomic.Uint64 }

// outbound looks at what of total, the sums of packets to the peer, is new.
func (q *queues) outbound(total wg.Waiting, way aqm.Way, now time.Time) {
	bytes, byteMicroseconds := total.Bytes-q.sent.Bytes, total.ByteMicroseconds-q.sent.ByteMicroseconds
	another := total.Bytes < q.sent.Bytes // the sums are of another tunnel with the peer
	if q.sent = total; bytes == 0 || another {
		return
	}
	q.left(filter.Outbound, int(bytes), time.Duration(byteMicroseconds/bytes)*time.Microsecond, way, now)
}

func (q *queues) left(d filter.Direction, bytes int, waited time.Duration, way aqm.Way, now time.Time) {
	q.control[d].SetWay(way)
	q.control[d].Left(bytes, waited, now)
}

// pass looks at a packet that the filter passed in direction d, and reports false
// where it is dropped so that its sender sends less. TCP is told to by the windows
// that its segments offer.
func (q *queues) pass(d filter.Direction, b []byte, i *packet.Info, counted *[2]shedding, now time.Time) bool {
	var w *windows
	if i.Kind == packet.TCPSegment && i.Flags&packet.RST == 0 {
		if i.Flags&packet.SYN != 0 {
			q.tcp.begin(b, i, d)
		} else if w = q.tcp.find(i, d); w != nil && w.pass(&q.control[1-d], b, i, d, now) {
			counted[1-d].lowered.Add(1)
		}
	}
	return !q.shed(d, b, i, w, counted, now)
}

// shed reports whether a packet is dropped so that its sender sends less. It prefers
// long packets: what stands in a queue is made of them, and the loss of others
// (questions, keystrokes, acknowledgements) tells nobody to send less of it. It spares a
// connection that its window slows; w is nil where that is not known.
func (q *queues) shed(d filter.Direction, b []byte, i *packet.Info, w *windows, counted *[2]shedding, now time.Time) bool {
	since, due := q.control[d].Due()
	if !due || i.Length < largePacket && now.Sub(since) < aqm.Interval {
		return false
	}
	if w != nil && w.bounds[d].Slows() {
		q.control[d].Spared()
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

// setWay tells the data path which way packets to p go and how long that takes, as far
// as known. Of a way over a relay our half is.
func (c *control) setWay(p *peer) {
	rtt, relayed := p.agent.RTT(), p.agent.Primary().Kind == path.Relay
	if relayed && p.relay != nil {
		rtt = 2 * c.relays.machine.RTT(p.relay.relay.Name)
	}
	p.relayed.Store(relayed)
	p.roundTrip.Store(int64(rtt))
}

// way returns what setWay told last.
func (p *peer) way() aqm.Way {
	return aqm.Way{Relayed: p.relayed.Load(), RoundTrip: time.Duration(p.roundTrip.Load())}
}
