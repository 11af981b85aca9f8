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
	size    float64 // in bytes; 0 for no bound
	known   bool    // whether edge is
	edge    uint32  // the sequence number up to which the sender may send
	sent    uint32  // the one up to which it was seen to
	full    bool    // whether that came close to edge since size was looked at
	most    uint32  // the largest window that was offered since there is a bound
	busy    bool    // whether the flow had a part in what waits
	judged  uint64  // Control's number when size was looked at
	acked   uint32  // up to where was acknowledged then
	at      time.Time
	offered uint32 // and the window that was offered
}

// Sent notes that the flow's data up to the sequence number end was seen.
func (w *Window) Sent(end uint32) {
	w.sent = end
	w.full = w.full || w.reached()
}

// reached reports whether the sender has no room for much more.
func (w *Window) reached() bool { return int32(w.edge-w.sent) < MinWindow/2 }

// Bound returns the window that the flow's sender is to be told instead of offered
// bytes with an acknowledgment of acked, at now; it is never more, and like offered a
// multiple of 1<<scale. c controls the queue that the flow's data goes through. What
// was allowed once is not taken back (RFC 9293, 3.8.6: a receiver should not shrink the
// window), so it is rounded up; and the window opens by large steps: a sender that may
// send a few segments more with every acknowledgment sends them one by one, and each
// wakes every processor on the way.
func (w *Window) Bound(c *Control, acked, offered uint32, scale uint8, now time.Time) uint32 {
	if w.judged != c.judged {
		w.adjust(c, acked, offered, now)
	}
	if !w.known {
		w.known, w.edge = true, acked
	}
	size, step := offered, uint32(0)
	if w.size > 0 {
		size = min(uint32(w.size), offered)
		step = min(size/2, max(uint32(c.part), piece))
	}
	if limit := acked + size; int32(limit-w.edge) >= int32(step) {
		w.edge = limit
	}
	if w.size == 0 {
		return offered
	}
	unit := uint32(1) << scale
	allowed := min((uint32(max(int32(w.edge-acked), 1))+unit-1)&^(unit-1), offered)
	if told := acked + allowed; int32(told-w.edge) > 0 {
		w.edge = told
	}
	return allowed
}

// Slows reports whether the window slows the flow, or will where the queue is too
// long, and could slow it further: its sender need not lose packets.
func (w *Window) Slows() bool {
	return w.busy && (w.size == 0 || w.size > MinWindow) && w.offered > MinWindow
}

// adjust changes the bound by what the last judgement says about what the flow sent
// since the one before.
func (w *Window) adjust(c *Control, acked, offered uint32, now time.Time) {
	first, passed, took, full := w.at.IsZero(), int32(acked-w.acked), now.Sub(w.at), w.full || w.reached()
	w.judged, w.acked, w.at, w.offered, w.full = c.judged, acked, now, offered, false
	w.busy = !first && passed >= MinWindow && took > 0
	if w.size == 0 {
		if !w.busy || !c.long {
			return
		}
		w.size, w.most, full = float64(offered), 0, false
	}
	w.most = max(w.most, offered)
	var change float64
	switch {
	case full && c.short:
		change = -maxChange * w.size // others have left
	case full && w.busy:
		waits := float64(passed) / took.Seconds() * c.wait
		change = min(max(gain*(waits-c.part), -maxChange*w.size), maxChange*w.size)
	case !full && w.busy && c.long:
		change = maxChange * w.size // what is not filled may shrink fast
	}
	// The largest that was offered counts: less is for a moment.
	if w.size = max(w.size-change, MinWindow); w.size >= float64(w.most) {
		w.size = 0
	}
}
