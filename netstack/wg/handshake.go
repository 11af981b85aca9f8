package wg

import (
	"bytes"
	"encoding/binary"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

const (
	// pendingLife is how long a handshake message is worth sending: until the
	// device sends the next one (RekeyTimeout).
	pendingLife = 5 * time.Second
	// yieldTime is how long a device that began a handshake itself lets the peer's
	// wait: for a round trip over a relay on another continent. Where its own was
	// lost, that is what is lost with it.
	yieldTime = 500 * time.Millisecond
	// answerTime is how long the device has to answer an initiation that it was given
	// before it began a handshake itself, until its own is sent after all. It takes it
	// a millisecond, on a machine with more work than it can do a hundred times that.
	answerTime = 100 * time.Millisecond
	// replyInterval spaces the repetitions of a response to one initiation: as many
	// as an initiation is repeated are enough.
	replyInterval = 100 * time.Millisecond
)

// apart is how long the device is left alone with one message of a handshake
// before it is given another of the same peer. Its goroutines, of which each CPU has
// one, take such messages from one queue: where an initiation and a response are
// handled at the same moment they mix up what belongs to the one and to the other,
// and the session that comes of it is dead in one direction, which is noticed only
// after 15 s (KeepaliveTimeout and RekeyTimeout). It takes a millisecond at most to
// handle one, on a busy machine some. And it refuses a second initiation within 20 ms
// of when it handled the first (HandshakeInitationRate).
const apart = 30 * time.Millisecond

// repeatDelays are the distances in which an initiation is sent again that nothing
// came for. The device makes a new one only after 5 s, whatever was lost. The first
// is well above yieldTime: when the peer's initiation has waited that long the
// device answers it, and its own, arriving with that answer, would confuse the peer.
var repeatDelays = [...]time.Duration{800 * time.Millisecond, 1200 * time.Millisecond, 2 * time.Second}

// handshake is what is under way of handshakes with one peer, as far as the bind
// can see. The device sends each message once, by the path of that moment, and if
// it is lost, makes another after 5 s; and two devices that begin at the same time
// give up their own for the other's, so that neither gets an answer and both begin
// again 5 s later. What is here sends the same messages again, which the receiver
// knows as such, and lets one of two that begin together wait. Nothing of it is
// authentic; it is all about messages that the device of one end or the other
// judges.
type handshake struct {
	// last is the last message that this device sent, nil once a packet came that
	// only its receiver can make, or it is too old.
	last    []byte
	at      time.Time // when the device sent it
	sent    time.Time // when it was sent last
	repeats int       // how often it was repeated because nothing came
	replied time.Time // when a response was sent last
	timer   *time.Timer

	// heard is the last initiation that seemed to be the peer's: the same again is a
	// repetition. It is kept whole, because anybody can make others with its first
	// half.
	heard [initiationSize]byte
	// cameOver says which relays the peer's last initiations came over, at most
	// maxCameOver, the oldest first.
	cameOver []cameOver
	// held are initiations of the peer's that wait for the answer to ours.
	held [][]byte

	// taken is when the device was given an initiation of the peer's, or is to be
	// given a waiting one; zero once it has sent a response. responses counts those.
	taken     time.Time
	responses uint64
	// given is when the device was given a message of the peer's last, or is to be
	// given one of the waiting ones.
	given   time.Time
	waiting int
}

// maxHeld bounds the initiations of one peer that wait for the answer to ours, and
// the messages that wait for their turn: anybody can make some in its name, which the
// device refuses, and the peer's own has to be among the first.
const maxHeld = 4

// cameOver is the relay that an initiation came over last. It is known by the index in
// it, which the response to it repeats: anybody can make others in the peer's name, and
// they must not draw the response to its own elsewhere.
type cameOver struct {
	index uint32
	over  Relay
}

// maxCameOver is above the initiations that relays may bring in a peer's name while its
// own waits for the device: peerBurst at once, and those of peerRate in the half second
// of yieldTime and some moments more.
const maxCameOver = 32

// comes notes the relay that an initiation came over, nil for none. p.mu is held.
func (h *handshake) comes(initiation []byte, over Relay) {
	index := binary.LittleEndian.Uint32(initiation[4:])
	i := slices.IndexFunc(h.cameOver, func(c cameOver) bool { return c.index == index })
	switch {
	case over == nil && i < 0:
	case over == nil:
		h.cameOver = slices.Delete(h.cameOver, i, i+1)
	case i >= 0:
		h.cameOver[i].over = over
	default:
		if len(h.cameOver) == maxCameOver {
			h.cameOver = slices.Delete(h.cameOver, 0, 1)
		}
		h.cameOver = append(h.cameOver, cameOver{index, over})
	}
}

// isInitiation reports whether a message of a handshake begins it.
func isInitiation(message []byte) bool { return messageType(message) == typeInitiation }

// sends notes a message of a handshake that the device sends.
func (p *Peer) sends(message []byte, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.removed {
		return
	}
	h := &p.handshake
	h.stop()
	h.last, h.at, h.sent, h.repeats, h.replied = bytes.Clone(message), now, now, 0, now
	if !isInitiation(message) {
		h.taken, h.responses = time.Time{}, h.responses+1
	}
	p.awaited.Store(uint64(binary.LittleEndian.Uint32(message[4:])) + 1)
	if isInitiation(message) {
		p.repeatLater()
	}
}

// defers reports whether an initiation that the device sends is not to be sent now:
// this device has the lesser key, and one of the peer's is just being answered. Which
// of the two the device handled first cannot be seen from here. If it made its own
// first, it gives that up for the peer's; sent all the same, it would have the peer
// give up its own, too, and neither would be answered. So it is sent only where the
// device did not answer the peer's in time.
func (p *Peer) defers(initiation []byte, own ident.NodeKey, now time.Time) bool {
	if bytes.Compare(own[:], p.key[:]) >= 0 {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	h := &p.handshake
	left := h.taken.Add(answerTime).Sub(now)
	if h.taken.IsZero() || left <= 0 || p.removed {
		return false
	}
	message, before := bytes.Clone(initiation), h.responses
	time.AfterFunc(left, func() {
		p.mu.Lock()
		needed := h.responses == before && !p.removed
		p.mu.Unlock()
		if needed {
			p.sends(message, time.Now())
			p.bind.send(p, p.path.Load(), [][]byte{message})
		}
	})
	p.bind.counters.yielded.Add(1)
	return true
}

func (h *handshake) stop() {
	if h.timer != nil {
		h.timer.Stop()
	}
}

// arrived notes a message for an index that this device gave out: if it is that
// of the last handshake message, that one has arrived.
func (p *Peer) arrived(index uint32) {
	if awaited := p.awaited.Load(); awaited != uint64(index)+1 || !p.awaited.CompareAndSwap(awaited, 0) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handshake.stop()
	p.handshake.last, p.handshake.held = nil, nil
}

// underway returns the last handshake message where it may not have arrived, nil
// for none. p.mu is held.
func (p *Peer) underway(now time.Time) []byte {
	h := &p.handshake
	if h.last == nil || p.awaited.Load() == 0 || now.Sub(h.at) >= pendingLife {
		return nil
	}
	return h.last
}

// repeatLater has the initiation sent again after a while. p.mu is held.
func (p *Peer) repeatLater() {
	h := &p.handshake
	if h.repeats == len(repeatDelays) {
		return
	}
	delay, message := repeatDelays[h.repeats], h.last
	h.repeats++
	h.timer = time.AfterFunc(delay, func() { p.repeat(message) })
}

// repeat sends an initiation again where it is still the last message, and goes
// on with the peer's that waits for it.
func (p *Peer) repeat(message []byte) {
	p.mu.Lock()
	now := time.Now()
	again := p.underway(now)
	if again == nil || &again[0] != &message[0] {
		p.mu.Unlock()
		return
	}
	p.handshake.sent = now
	p.repeatLater()
	p.mu.Unlock()
	if path := p.path.Load(); path.Direct.IsValid() || path.Relay != nil {
		p.bind.send(p, path, [][]byte{again})
		p.bind.counters.repeated.Add(1)
	}
}

// takes reports whether the device is to be given an initiation of the peer's now.
//
// It is not where it repeats the last one, unless the device answered another since,
// and so may have refused this one for coming too soon after that; the answer to that, which may have been
// lost, is sent again then, by the peer's path. And not where this device sent an
// initiation itself a moment ago, for the first time or again, and has the lesser key:
// the peer answers ours, and is answered only if it does not.
func (p *Peer) takes(initiation []byte, own ident.NodeKey, link Link, over Relay, now time.Time) bool {
	p.mu.Lock()
	h := &p.handshake
	h.comes(initiation, over)
	if message := [initiationSize]byte(initiation); message == h.heard && !h.answersAnother() {
		p.bind.counters.replayed.count.Add(1)
		answer := p.underway(now)
		if answer == nil || isInitiation(answer) || now.Sub(h.replied) < replyInterval {
			p.mu.Unlock()
			return false
		}
		h.replied = now
		p.mu.Unlock()
		p.bind.send(p, p.wayBack(p.path.Load(), answer), [][]byte{answer})
		p.bind.counters.repeated.Add(1)
		return false
	}
	defer p.mu.Unlock()
	h.heard = [initiationSize]byte(initiation)
	if bytes.Compare(own[:], p.key[:]) < 0 {
		if left := p.yields(now); left > 0 && len(h.held) < maxHeld {
			held := bytes.Clone(initiation)
			h.held = append(h.held, held)
			p.bind.counters.yielded.Add(1)
			p.bind.counters.received[link].addOne(len(initiation))
			time.AfterFunc(left, func() { p.release(held) })
			return false
		}
	}
	return p.inTurn(initiation, link, now)
}

// yields returns for how long an initiation of the peer's is to wait, which has the
// greater key, for the answer to ours; not where ours has had no path yet, so that the
// peer can have none of it. p.mu is held.
func (p *Peer) yields(now time.Time) time.Duration {
	ours := p.underway(now)
	if path := p.path.Load(); ours == nil || !isInitiation(ours) || !path.Direct.IsValid() && path.Relay == nil {
		return 0
	}
	return yieldTime - now.Sub(p.handshake.sent)
}

// answersAnother reports whether the last message is a response, and to another
// initiation than the last one that was heard: each repeats the other's index.
func (h *handshake) answersAnother() bool {
	return h.last != nil && !isInitiation(h.last) && !bytes.Equal(h.last[8:12], h.heard[4:8])
}

// answers notes a response that came from the peer, and reports whether the device
// is to be given it now.
func (p *Peer) answers(response []byte, link Link, now time.Time) bool {
	p.isHeard()
	p.arrived(binary.LittleEndian.Uint32(response[8:]))
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inTurn(response, link, now)
}

// inTurn reports whether the device is to be given a message of a handshake now. If
// not, it is counted, and the device is given it when its time has come. p.mu is held.
func (p *Peer) inTurn(message []byte, link Link, now time.Time) bool {
	turn := p.takeTurn(message, now)
	if turn == turnLater {
		p.bind.counters.received[link].addOne(len(message))
	}
	return turn == turnNow
}

// turn says when the device is given a message of a handshake.
type turn uint8

const (
	turnNow turn = iota
	turnLater
	turnNever // too many wait
)

// takeTurn says when a message's turn is. The device is given it then where that is
// later; what has none is counted. p.mu is held.
func (p *Peer) takeTurn(message []byte, now time.Time) turn {
	h := &p.handshake
	next := h.given.Add(apart)
	switch {
	case !next.After(now):
		h.gives(message, now)
		return turnNow
	case h.waiting == maxHeld || p.removed:
		p.bind.counters.limited.Add(1)
		return turnNever
	}
	h.waiting++
	h.gives(message, next)
	message = bytes.Clone(message)
	time.AfterFunc(next.Sub(now), func() {
		p.mu.Lock()
		h.waiting--
		p.mu.Unlock()
		p.give(message)
	})
	return turnLater
}

// gives notes that the device is given a message at a time.
func (h *handshake) gives(message []byte, at time.Time) {
	h.given = at
	if isInitiation(message) {
		h.taken = at
	}
}

// give gives the device a message that has waited.
func (p *Peer) give(message []byte) {
	select {
	case p.bind.relayed <- queued{of: p, data: message}:
	default:
		p.bind.counters.relayOverflow.Add(1)
	}
}

// release gives the device an initiation that has waited in vain, in its turn.
func (p *Peer) release(held []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := &p.handshake
	i := slices.IndexFunc(h.held, func(other []byte) bool { return &other[0] == &held[0] })
	if i < 0 {
		return // ours was answered
	}
	if left := p.yields(time.Now()); left > 0 {
		// Ours went by another path meanwhile. The peer, answering that one, has given
		// its own up.
		time.AfterFunc(left, func() { p.release(held) })
		return
	}
	h.held = slices.Delete(h.held, i, i+1)
	if p.takeTurn(held, time.Now()) == turnNow {
		p.give(held)
	}
}

// wayBack returns how a response to an initiation of the peer's goes, where packets to
// the peer have the given path: over the relay that the initiation came over, if it is
// a relay that they go over, and that one is known. The peer may have left the path's,
// which carries no packets of the tunnel.
func (p *Peer) wayBack(path *Path, response []byte) *Path {
	if path.Direct.IsValid() || path.Relay == nil {
		return path
	}
	index := binary.LittleEndian.Uint32(response[8:])
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.handshake.cameOver {
		if c.index == index {
			return &Path{Relay: c.over}
		}
	}
	return path
}

// sendAgain sends the last handshake message by a path that it did not go by,
// where it may not have arrived. Where the device was just given an initiation of the
// peer's it is about to answer that, and its own would confuse the peer: that goes only
// where there is no answer in time.
func (p *Peer) sendAgain(path *Path) {
	p.mu.Lock()
	now := time.Now()
	h := &p.handshake
	message := p.underway(now)
	if message == nil {
		p.mu.Unlock()
		return
	}
	wait := time.Duration(0)
	if isInitiation(message) && !h.taken.IsZero() {
		wait = h.taken.Add(answerTime).Sub(now)
	}
	if wait <= 0 {
		h.sent = now
	}
	p.mu.Unlock()
	if wait <= 0 {
		p.bind.send(p, path, [][]byte{message})
		return
	}
	time.AfterFunc(wait, func() {
		p.mu.Lock()
		again := p.underway(time.Now())
		unanswered := again != nil && &again[0] == &message[0]
		if unanswered {
			h.sent = time.Now()
		}
		p.mu.Unlock()
		if unanswered {
			p.bind.send(p, path, [][]byte{again})
		}
	})
}
