package aqm

import "time"

const (
	// MinWindow is the least that a flow is left: some segments of any length, so
	// that losses are noticed by what comes after them and the receiver does not
	// wait for a second segment before it acknowledges.
	MinWindow = 32 << 10
	// piece is what a sender hands over at once, at most.
	piece = 64 << 10
	// gain is the part of what is in excess that one judgement takes away: the next
	// comes when the effect has been seen, but both ends of a way may judge.
	gain = 0.5
	// maxChange is the part of a window that one judgement moves it by, at most.
	maxChange = 0.25
)

// Window bounds what one TCP flow has on its way through a queue: the receive window
// that its receiver offers, which every sender obeys whatever it makes of lost
// packets, is lowered until no more than the flow's part of the queue waits there (as
// FAST TCP does, Wei and others 2006, III, but with a wait that was measured where it
// is, rather than a difference of round trips). What is on its way elsewhere does not
// count: on a long way without a queue the window stays as it was offered. The zero
// value bounds nothing yet. It is not safe for concurrent use.
type Window struct {
	size   float64 // in bytes; 0 for no bound
	edge   uint32  // the sequence number up to which the sender may send
	full   bool    // whether it sent up to there since size was looked at
	narrow bool    // whether it did before, and size cannot be less
	busy   bool    // whether it had a part in what waits
	judged uint64  // Control's number when size was looked at
	acked  uint32  // up to where was acknowledged then
	at     time.Time
}

// Sent notes that the flow's data up to the sequence number end was seen.
func (w *Window) Sent(end uint32) {
	if int32(w.edge-end) < MinWindow/2 {
		w.full = true
	}
}

// Bound returns the window that the flow's sender is to be told instead of offered
// bytes with an acknowledgment of acked, at now; it is never more. c controls the
// queue that the flow's data goes through. What was allowed once is not taken back
// (RFC 9293, 3.8.6: a receiver should not shrink the window), and the window opens by
// large steps: a sender that may send a few segments more with every acknowledgment
// sends them one by one, and each wakes every processor on the way.
func (w *Window) Bound(c *Control, acked, offered uint32, now time.Time) uint32 {
	if w.judged != c.judged {
		w.adjust(c, acked, offered, now)
	}
	if w.size == 0 {
		return offered
	}
	size := min(uint32(w.size), offered)
	if limit := acked + size; int32(limit-w.edge) >= int32(min(size/2, max(uint32(c.part), piece))) {
		w.edge = limit
	}
	return min(uint32(max(int32(w.edge-acked), 0)), offered)
}

// Slows reports whether the window slows the flow, or will where the queue is too
// long, and could slow it further: its sender need not lose packets.
func (w *Window) Slows() bool { return w.busy && !w.narrow }

// adjust changes the bound by what the last judgement says about what the flow sent
// since the one before.
func (w *Window) adjust(c *Control, acked, offered uint32, now time.Time) {
	first, passed, took, full := w.at.IsZero(), int32(acked-w.acked), now.Sub(w.at), w.full
	w.judged, w.acked, w.at, w.full, w.narrow = c.judged, acked, now, false, false
	w.busy = !first && passed >= MinWindow && took > 0
	if !w.busy {
		return // it has no part in what waits
	}
	if w.size == 0 {
		if !c.long {
			return
		}
		w.size, w.edge, full = float64(offered), acked+offered, false
	}
	change := maxChange * w.size // one that its sender does not fill may shrink fast
	if full {
		waits := float64(passed) / took.Seconds() * c.wait
		change = min(max(gain*(waits-c.part), -change), change)
	} else if !c.long {
		return
	}
	w.size = max(w.size-change, MinWindow)
	w.narrow = full && w.size == MinWindow
	if w.size >= float64(offered) {
		w.size = 0
	}
}
