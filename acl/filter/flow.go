package filter

import (
	"time"

	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// flow decides on a packet by its flow: the one that it belongs to, or the one
// that it opens.
func (p *Peer) flow(i *packet.Info, d Direction, onlyReply bool, tick int64, now time.Time, decision *Decision) {
	var k key
	k.set(i, d)
	h := hash(p.shared.Seed, &k)
	n := p.flows.find(&k, h)
	if n == 0 || !p.current(n, tick, now) {
		p.open(i, &k, h, d, onlyReply, tick, now, decision)
		return
	}
	e := p.flows.at(n)
	what := p.advance(n, i, d)
	switch what {
	case refuse:
		decision.Reason, decision.Rule = DropTCPState, e.rule
		return
	case reopen:
		p.end(n, EndReopened)
		p.open(i, &k, h, d, onlyReply, tick, now, decision)
		return
	case keep, refresh, answer:
	}
	p.extend(e, d, what, tick)
	e.account(i, d)
	if i.MoreFragments {
		p.rememberFragment(i, tick, e.until)
	}
	decision.Verdict, decision.Rule = Pass, e.rule
}

// advance applies the packet to the state of its flow.
func (p *Peer) advance(n handle, i *packet.Info, d Direction) step {
	e := p.flows.at(n)
	fromOpener := e.opener() == d
	wasHalfOpen := e.state.halfOpen()
	what := refresh
	switch {
	case i.Kind == packet.TCPSegment:
		what = e.tcpStep(i.Flags, fromOpener)
	case !fromOpener && wasHalfOpen && e.key.asked() == notEcho:
		e.state = established
		what = answer
	}
	if wasHalfOpen && !e.state.halfOpen() {
		p.flows.unlink(&p.flows.opening, n)
	}
	return what
}

// tcpLife is how long each state of a TCP connection lasts without a packet.
var tcpLife = [...]time.Duration{
	opening: tcpSynLife, crossing: tcpSynLife, answered: tcpSynLife, established: tcpEstablishedLife,
	finishing: tcpFinLife, lastAck: tcpLastAckLife, timeWait: tcpTimeWaitLife, closed: tcpClosedLife,
}

// extend sets how long the flow lasts after a packet in direction d.
func (p *Peer) extend(e *entry, d Direction, what step, tick int64) {
	var life time.Duration
	switch {
	case e.key.protocol() == packet.TCP:
		if what == keep {
			return
		}
		life = tcpLife[e.state]
	case e.key.asked() != notEcho:
		if e.opener() != d {
			return // only a request lets another reply pass
		}
		life = echoLife
	case e.key.protocol() == packet.SCTP:
		life = sctpOpenLife
		if e.state == established {
			life = sctpRepliedLife
		}
	default:
		open, replied := udpOpenLife, udpRepliedLife
		if e.key.protocol() != packet.UDP {
			open, replied = otherLife, otherLife
		}
		if d == Inbound && e.opener() == Outbound {
			// The peer cannot keep a flow alive that it has no rule for. Its
			// first answer only moves the end from the shorter time after our
			// last packet to the longer.
			if what == answer {
				e.deadline += int64(replied - open)
			}
			return
		}
		life = open
		if e.state == established {
			life = replied
		}
	}
	e.deadline = tick + int64(life)
	p.due = min(p.due, e.deadline)
}

// account counts the packet and notes what a reset of the connection needs.
func (e *entry) account(i *packet.Info, d Direction) {
	e.packets[d]++
	e.bytes[d] += uint64(i.Length)
	if i.Kind != packet.TCPSegment || i.Flags&packet.RST != 0 {
		return
	}
	spoke, end := spokeIn<<d, i.SequenceEnd()
	if e.flags&spoke == 0 || int32(end-e.end[d]) > 0 {
		e.end[d] = end
		e.flags |= spoke
	}
}

// open decides on a packet that belongs to no flow.
func (p *Peer) open(i *packet.Info, k *key, h uint32, d Direction, onlyReply bool, tick int64, now time.Time, decision *Decision) {
	opener, begin := d, opening
	switch i.Kind {
	case packet.EchoReply, packet.SCTPPacket:
		p.refuse(i, d, DropNoFlow, tick, decision)
		return
	case packet.TCPSegment:
		if i.Flags&handshakeFlags != packet.SYN {
			if i.Flags&(packet.SYN|packet.RST) != 0 || !p.mayPickUp(now) {
				p.refuse(i, d, DropNoFlow, tick, decision)
				return
			}
			begin = established
		}
	default: // any packet of the others opens a flow
	}
	verdict, reason := p.admit(k, opener, onlyReply, now)
	if reason != Passed && begin == established {
		// Who opened a connection that is joined in its middle is not known:
		// either side may have.
		if other, r := p.admit(k, 1-d, false, now); r == Passed {
			opener, verdict, reason = 1-d, other, Passed
		}
	}
	decision.Rule, decision.Would, decision.WouldRule, decision.Candidate = verdict.Rule, verdict.Would, verdict.WouldRule, verdict.Candidate
	if reason != Passed {
		p.refuse(i, d, reason, tick, decision)
		return
	}
	n := p.insert(k, h, begin)
	if n == 0 {
		decision.Reason = DropQuota
		return
	}
	e := p.flows.at(n)
	if opener == Inbound {
		e.flags |= openedByPeer
	}
	e.opened, e.generation, e.rule = tick, p.generation, verdict.Rule
	e.until = p.untilOf(&verdict, tick, now)
	p.due = min(p.due, e.until)
	if begin == established {
		e.advancePickedUp(i, d, opener == d)
	}
	p.extend(e, d, refresh, tick)
	e.account(i, d)
	if i.MoreFragments {
		p.rememberFragment(i, tick, e.until)
	}
	decision.Verdict, decision.NewFlow = Pass, true
	p.noteOpened(e, decision)
}

// advancePickedUp brings a connection that is joined in its middle to the state
// in which the first packet seen leaves it. What the other side has sent is
// known from what this packet acknowledges.
func (e *entry) advancePickedUp(i *packet.Info, d Direction, fromOpener bool) {
	e.tcpStep(i.Flags, fromOpener)
	e.end[1-d] = i.Acknowledgment
	e.flags |= spokeIn << (1 - d)
}

// admit asks whether a flow may be opened in direction d.
func (p *Peer) admit(k *key, d Direction, onlyReply bool, now time.Time) (verdict ruleset.Verdict, r Reason) {
	if onlyReply || !p.mayOpen(d, k.local, k.remote) {
		return verdict, DropUnsolicited
	}
	if d == Inbound && p.shieldsUp {
		return verdict, DropShields
	}
	verdict = p.decide(p.rules, d, k, now)
	if p.candidate != nil {
		other := p.decide(p.candidate, d, k, now)
		verdict.Candidate = verdict.Beside(&other, p.candidate.Epoch())
	}
	switch {
	case verdict.Allowed:
		return verdict, Passed
	case verdict.Rule != "":
		return verdict, DropDenied
	}
	return verdict, DropNoRule
}

// mayPickUp reports whether connections may be joined in their middle.
func (p *Peer) mayPickUp(now time.Time) bool {
	age := now.Sub(p.shared.Started)
	return !p.shared.Started.IsZero() && age >= 0 && age < PickUpWindow
}

// insert makes room for a flow and adds it, in state begin. It returns 0 where
// the device's table is full and this peer has no flow to give up (P7).
func (p *Peer) insert(k *key, h uint32, begin state) handle {
	t := &p.flows
	echo := k.asked() != notEcho
	switch {
	case echo && t.echoes.length >= MaxEchoes:
		p.end(t.echoes.oldest, EndEvicted)
	case !echo && begin.halfOpen() && t.opening.length >= MaxHalfOpen:
		p.end(t.opening.oldest, EndEvicted)
	}
	if t.length() >= MaxFlows {
		p.evict()
	}
	if quota := p.shared.Quota; quota != nil && !quota.TakeFlow() {
		if t.length() == 0 {
			return 0
		}
		p.evict()
		if !quota.TakeFlow() {
			return 0
		}
	}
	n := t.insert(k, h)
	e := t.at(n)
	e.state = begin
	t.classify(n)
	return n
}

// evict ends the oldest half-open flow, or where there is none the oldest.
func (p *Peer) evict() {
	oldest := p.flows.opening.oldest
	if oldest == 0 {
		oldest = p.flows.order.oldest
	}
	p.end(oldest, EndEvicted)
}

// refuse makes a refused packet's decision: the local side is told at once, the
// peer never (P17).
func (p *Peer) refuse(i *packet.Info, d Direction, r Reason, tick int64, decision *Decision) {
	decision.Reason = r
	if d == Outbound && !i.Fragment() && i.Kind != packet.EchoReply &&
		(i.Kind != packet.TCPSegment || i.Flags&packet.RST == 0) && p.mayReject(i.Destination, tick) {
		decision.Verdict = Reject
	}
}
