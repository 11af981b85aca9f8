package filter

import "github.com/warren-overlay/warren/acl/packet"

// state is how far a flow has come. Protocols other than TCP know only opening
// and established.
type state uint8

const (
	// opening: only the opener has spoken. For TCP: its SYN was seen.
	opening state = iota
	// crossing: both sides sent a SYN (simultaneous open, RFC 9293 3.5).
	crossing
	// answered: a SYN-ACK was seen.
	answered
	// established: both sides have spoken. For TCP: the handshake is complete.
	established
	// finishing: one side sent a FIN.
	finishing
	// lastAck: both sides did.
	lastAck
	// timeWait: and the first one acknowledged it.
	timeWait
	// closed: a RST was seen.
	closed
)

// halfOpen reports whether a flow in the state counts as half-open (P7).
func (s state) halfOpen() bool { return s < established }

const handshakeFlags = packet.SYN | packet.ACK | packet.RST | packet.FIN

// legalTCP reports whether any segment may have the flags, in any state (P9):
// SYN, SYN-ACK, ACK, FIN-ACK, RST and RST-ACK may; PSH, URG, ECE and CWR are of
// no account.
func legalTCP(f packet.TCPFlags) bool {
	switch f & handshakeFlags {
	case packet.SYN, packet.SYN | packet.ACK, packet.ACK, packet.FIN | packet.ACK, packet.RST, packet.RST | packet.ACK:
		return true
	}
	return false
}

// step is what a segment does to a connection.
type step uint8

const (
	// refuse: the segment is not possible in this state.
	refuse step = iota
	// keep: it changes nothing, not even how long the state lasts.
	keep
	// refresh: it renews the state, or begins the one that is now set.
	refresh
	// reopen: it opens a new connection in place of this one.
	reopen
	// answer: it is the first one of the other side (not for TCP).
	answer
)

// tcpStep applies a segment with legal flags to the flow's state (P9).
func (e *entry) tcpStep(f packet.TCPFlags, fromOpener bool) step {
	switch f & handshakeFlags {
	case packet.SYN:
		return e.tcpSYN(fromOpener)
	case packet.SYN | packet.ACK:
		return e.tcpSYNACK(fromOpener)
	case packet.RST, packet.RST | packet.ACK:
		if e.state == opening && fromOpener {
			return refuse
		}
		if e.state == closed {
			return keep
		}
		e.state = closed
		return refresh
	}
	return e.tcpACK(f, fromOpener)
}

func (e *entry) tcpSYN(fromOpener bool) step {
	switch e.state {
	case opening:
		if !fromOpener {
			e.state = crossing
			e.flags |= simultaneous
		}
		return refresh
	case crossing:
		return refresh
	case timeWait, closed:
		return reopen
	case answered, established, finishing, lastAck:
	}
	// A SYN inside a connection is either a repetition or asks whether the
	// connection still lives (RFC 5961 4); the rule that admitted the first one
	// admits it. From the other side it would be a new flow.
	if fromOpener || e.state == answered && e.flags&simultaneous != 0 {
		return keep
	}
	return refuse
}

func (e *entry) tcpSYNACK(fromOpener bool) step {
	either := e.flags&simultaneous != 0
	switch e.state {
	case opening:
		if fromOpener {
			return refuse
		}
		e.state = answered
		return refresh
	case crossing:
		e.state = answered
		return refresh
	case timeWait, closed:
		return refuse
	case answered, established, finishing, lastAck:
	}
	if fromOpener && !either {
		return refuse
	}
	return keep
}

// tcpACK is for segments with ACK and without SYN and RST.
func (e *entry) tcpACK(f packet.TCPFlags, fromOpener bool) step {
	switch e.state {
	case opening, crossing:
		return refuse
	case answered:
		if !fromOpener && e.flags&simultaneous == 0 {
			// The acknowledgment may have been lost between here and there;
			// what completes the handshake is still the opener's.
			if f&packet.FIN != 0 {
				e.fin(fromOpener)
			}
			return keep
		}
		e.state = established
		if e.flags&(finOpener|finResponder) != 0 {
			e.state = finishing
		}
	case timeWait, closed:
		return keep
	case established, finishing, lastAck:
	}
	if f&packet.FIN != 0 {
		e.fin(fromOpener)
		e.state = finishing
		if e.flags&(finOpener|finResponder) == finOpener|finResponder {
			e.state = lastAck
		}
		return refresh
	}
	if e.state == lastAck && fromOpener == (e.flags&finOpenerFirst != 0) {
		e.state = timeWait
	}
	return refresh
}

// fin notes that a side has finished.
func (e *entry) fin(fromOpener bool) {
	if e.flags&(finOpener|finResponder) == 0 && fromOpener {
		e.flags |= finOpenerFirst
	}
	if fromOpener {
		e.flags |= finOpener
	} else {
		e.flags |= finResponder
	}
}
