package engine

import (
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/netstack/aqm"
)

// maxWindows is how many connections with a peer are known by their windows, at
// least; twice as many at most. Those that were silent for longest are forgotten, and
// then are treated like all that is not TCP.
const maxWindows = 1024

// connection names a TCP connection, as seen from here.
type connection struct {
	local, remote         packet.Address
	localPort, remotePort uint16
}

// windows are the windows of a connection.
type windows struct {
	// options are those of the SYNs, by the filter.Direction that they went in, and
	// seen that there was one.
	options [2]packet.WindowOptions
	seen    [2]bool
	// bounds are by the filter.Direction of the data that is bounded.
	bounds [2]aqm.Window
}

// connections are those with one peer whose windows are known.
type connections struct {
	recent, former map[connection]*windows
	last           connection // the one that was asked for last
	found          *windows   // and its windows, nil for none
}

// find returns the windows of the connection that a segment in direction d belongs
// to, nil where they are not known.
func (c *connections) find(i *packet.Info, d filter.Direction) *windows {
	name := connection{i.Source, i.Destination, i.SourcePort, i.DestinationPort}
	if d == filter.Inbound {
		name = connection{i.Destination, i.Source, i.DestinationPort, i.SourcePort}
	}
	if name == c.last {
		return c.found
	}
	c.last, c.found = name, c.recent[name]
	if c.found == nil {
		if c.found = c.former[name]; c.found != nil {
			c.keep(c.found)
		}
	}
	return c.found
}

// keep notes w as the windows of the connection that was asked for last.
func (c *connections) keep(w *windows) {
	if len(c.recent) >= maxWindows {
		c.former, c.recent = c.recent, nil
	}
	if c.recent == nil {
		c.recent = make(map[connection]*windows)
	}
	c.found = w
	c.recent[c.last] = w
}

// begin notes what b, a segment with SYN that goes in direction d, says about the
// windows of its connection.
func (c *connections) begin(b []byte, i *packet.Info, d filter.Direction) {
	w := c.find(i, d)
	if w == nil || w.seen[d] && i.Flags&packet.ACK == 0 {
		// The first, or another connection between the same ports, or the same
		// SYN once more.
		w = new(windows)
		c.keep(w)
	}
	w.options[d], w.seen[d] = packet.ReadWindowOptions(b, i), true
}

// scale returns by how many bits the windows are shifted that segments in direction d
// offer; false where that is not known, or they may not be changed.
func (w *windows) scale(d filter.Direction) (shift uint8, ok bool) {
	if !w.seen[0] || !w.seen[1] || w.options[0].Fixed || w.options[1].Fixed {
		return 0, false
	}
	if w.options[0].Scaled && w.options[1].Scaled {
		shift = w.options[d].Scale
	}
	return shift, true
}

// pass notes the data of b, a segment in direction d, and lowers the window that it
// offers, where the data that it is offered for goes through a queue that is too long.
// c controls that queue. It reports whether it did. The segment acknowledges something:
// the filter passes none without, but SYN and RST.
func (w *windows) pass(c *aqm.Control, b []byte, i *packet.Info, d filter.Direction, now time.Time) bool {
	if i.PayloadLength > 0 {
		w.bounds[d].Sent(i.SequenceEnd())
	}
	shift, ok := w.scale(d)
	if !ok {
		return false
	}
	field := packet.Window(b, i)
	offered := uint32(field) << shift
	allowed := w.bounds[1-d].Bound(c, i.Acknowledgment, offered, shift, now)
	if allowed >= offered {
		return false
	}
	packet.SetWindow(b, i, uint16(allowed>>shift))
	return true
}
