package relay

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

const (
	// idleBind is how often an address is bound anew that carries nothing: NATs
	// forget a UDP mapping after 30 s, some sooner (RFC 4787, REQ-5).
	idleBind = 15 * time.Second
	// busyBind is the same while packets are sent: that they arrive nowhere must
	// show soon. It is counted from the last answer, however late HandleUsed says
	// that there are packets.
	busyBind = time.Second
	// bindWait is how long an answer may take before the request is repeated.
	bindWait = 500 * time.Millisecond
	// bindAttempts is after how many requests without an answer the address is
	// given up, and packets go by the stream: 3 s after the last answer, with the
	// 5 s in mind that a failover may take.
	bindAttempts = 4
	// wideAttempts is how many of them are as long as the longest datagram: where
	// only shorter ones are answered, packets of that length would vanish.
	wideAttempts = 2
	// wideRetry is after what time a path that did not carry the longest datagrams
	// is asked again: it costs a second in which a relay that is gone does not show.
	wideRetry = 30 * time.Second
	// The wait before another try doubles from the one to the other.
	minBindRetry = time.Second
	maxBindRetry = time.Minute
	// resolveWait is how long a question for a peer's number is not repeated.
	resolveWait = time.Second
)

// datagramBinding is a client's side of the exchange that binds its address.
type datagramBinding struct {
	offered  bool
	number   uint32
	tag      tag
	key      []byte
	sequence uint64 // of the last request
	answered uint64 // of the last one that was answered

	bound    bool
	wide     bool      // whether the path carries the longest datagrams
	wideBy   uint64    // the last request whose Bind is that long
	wideFrom time.Time // from when on to ask for that
	changed  bool      // whether the Link is another one than the last
	used     bool      // whether packets were sent since the last answer
	attempts int       // requests without an answer
	// due is when the next request is sent; zero for never.
	due   time.Time
	asked time.Time // of the first request without an answer
	heard time.Time // when the last answer came
	retry time.Duration
	rtt   time.Duration

	out   [][]byte
	peers peers
	asks  map[ident.NodeKey]time.Time // open questions
}

// maxDatagramsOut bounds the messages that wait for the shell, which takes them
// after every call.
const maxDatagramsOut = 8

// offered takes the relay's offer of datagrams.
func (s *Session) offered(f Frame) error {
	if len(f.Body) != 4+tagSize || s.datagrams.offered {
		return fmt.Errorf("%w: offer of datagrams", ErrFrame)
	}
	d := &s.datagrams
	d.offered = true
	d.number, d.tag = binary.BigEndian.Uint32(f.Body), tag(f.Body[4:])
	d.retry = minBindRetry
	if s.cfg.Datagrams.IsValid() {
		d.due = s.now
	}
	return nil
}

// named takes what the relay says of a peer's number.
func (s *Session) named(f Frame) error {
	if len(f.Body) != ident.KeySize+4 {
		return fmt.Errorf("%w: peer", ErrFrame)
	}
	key, number := ident.NodeKey(f.Body), binary.BigEndian.Uint32(f.Body[ident.KeySize:])
	d := &s.datagrams
	if key.IsZero() {
		var known bool
		if key, known = d.peers.key[number]; !known {
			return nil
		}
		number = 0
	}
	if !d.peers.set(key, number) {
		s.stats.PeersFull++
		return nil
	}
	if number != 0 {
		delete(d.asks, key)
	}
	s.relink()
	return nil
}

func (s *Session) relink() {
	if !s.datagrams.changed {
		s.datagrams.changed = true
		s.event(Event{Kind: EventLink})
	}
}

// Link returns how packets go as datagrams, nil for not. An EventLink says that
// it is another one.
func (s *Session) Link() *Link {
	d := &s.datagrams
	d.changed = false
	if !d.bound || s.failed {
		return nil
	}
	limit := safePayload
	if d.wide {
		limit = MaxDatagramPayload(s.cfg.Datagrams.Addr())
	}
	return d.peers.link(s.cfg.Datagrams, limit, d.tag)
}

// HandleWanted tells that there are packets for a peer whose number is not
// known. They go by the stream until the relay has said it.
func (s *Session) HandleWanted(key ident.NodeKey, now time.Time) {
	s.clock(now)
	d := &s.datagrams
	if !s.Ready() || !d.bound {
		return
	}
	if _, known := d.peers.number[key]; known {
		return
	}
	if at, open := d.asks[key]; open && s.now.Sub(at) < resolveWait {
		return
	}
	if d.asks == nil {
		d.asks = make(map[ident.NodeKey]time.Time)
	}
	if _, open := d.asks[key]; !open && len(d.asks) >= maxPeers {
		s.stats.PeersFull++
		return
	}
	d.asks[key] = s.now
	s.out = AppendFrame(s.out, FrameResolve, key[:])
}

// HandleUsed tells that packets were sent as datagrams. Once a second is enough.
func (s *Session) HandleUsed(now time.Time) {
	s.clock(now)
	d := &s.datagrams
	if !d.bound {
		return
	}
	s.HandleSent(now) // a relay that is dead must show at the connection, too
	if d.used {
		return
	}
	d.used = true
	soon := d.heard.Add(busyBind)
	if soon.Before(s.now) {
		soon = s.now
	}
	if d.attempts == 0 && soon.Before(d.due) {
		d.due = soon
	}
}

// HandleDatagram takes a datagram that came from the relay's address and
// carries no packet. What is not authentic, or answers nothing, is counted and
// does nothing: whoever forges one ends nothing (F17).
func (s *Session) HandleDatagram(b []byte, now time.Time) {
	s.clock(now)
	d := &s.datagrams
	if !s.Ready() || !d.offered || !s.cfg.Datagrams.IsValid() || !IsDatagram(b) {
		s.stats.DatagramsUnknown++
		return
	}
	if t, number := readHeader(b); t != d.tag || number != d.number && b[0] != datagramStale {
		s.stats.DatagramsUnknown++
		return
	}
	switch {
	case b[0] == datagramStale && len(b) == DatagramHeader:
		// Not authenticated, so no more than a question that is due sooner.
		s.stats.Stale++
		if d.bound && d.attempts == 0 && s.now.Sub(d.asked) >= busyBind {
			d.due = s.now
		}
	case b[0] == datagramCookie && len(b) == bindSize && s.answers(b):
		bind := writeBinding(nil, datagramBind, d.tag, d.number, readSequence(b), readCookie(b), d.key)
		if readSequence(b) <= d.wideBy {
			bind = append(bind, make([]byte, wideBindSize-len(bind))...)
		}
		s.transmit(bind)
	case b[0] == datagramBound && len(b) == boundSize && s.answers(b):
		s.bound(readSequence(b))
	default:
		s.stats.DatagramsUnknown++
	}
}

// answers reports whether b is the relay's answer to a request that has none yet:
// not only to the last one, or a long way would never be bound.
func (s *Session) answers(b []byte) bool {
	d := &s.datagrams
	sequence := readSequence(b)
	return sequence > d.answered && sequence <= d.sequence && authentic(b, d.key)
}

func (s *Session) bound(sequence uint64) {
	d := &s.datagrams
	d.answered = sequence
	if d.attempts == 1 {
		d.rtt = s.now.Sub(d.asked) / 2 // two round trips
	}
	d.attempts, d.used, d.retry = 0, false, minBindRetry
	d.heard, d.due = s.now, s.now.Add(idleBind)
	wide := sequence <= d.wideBy
	if !wide && !s.now.Before(d.wideFrom) {
		d.wideFrom = s.now.Add(wideRetry)
	}
	if wide != d.wide {
		d.wide = wide
		s.relink()
	}
	if !d.bound {
		d.bound = true
		s.stats.Bound++
		s.relink()
	}
}

// bind does what is due of the exchange.
func (s *Session) bind() {
	d := &s.datagrams
	switch {
	case d.attempts < bindAttempts:
		if d.attempts == 0 {
			d.asked = s.now
		}
		d.attempts++
		d.sequence++
		d.due = s.now.Add(bindWait)
		if d.attempts <= wideAttempts && s.cfg.Datagrams.Addr().Is4() && !s.now.Before(d.wideFrom) {
			d.wideBy = d.sequence
		}
		s.transmit(writeBinding(nil, datagramOpen, d.tag, d.number, d.sequence, make([]byte, cookieSize), d.key))
	default:
		d.attempts = 0
		d.due = s.now.Add(d.retry)
		d.retry = min(2*d.retry, maxBindRetry)
		if d.bound {
			d.bound, d.used = false, false
			s.stats.Silent++
			s.out = AppendFrame(s.out, FrameStream)
			s.relink()
		}
	}
}

func (s *Session) transmit(b []byte) {
	d := &s.datagrams
	if len(d.out) < maxDatagramsOut {
		d.out = append(d.out, b)
	}
}

// NextDatagram returns a datagram to send to SessionConfig.Datagrams, if there
// is one. It is the caller's.
func (s *Session) NextDatagram() ([]byte, bool) {
	d := &s.datagrams
	if len(d.out) == 0 || s.failed {
		return nil, false
	}
	b := d.out[0]
	d.out = append(d.out[:0], d.out[1:]...)
	return b, true
}

// HandleToken gives a newer token to the relay, so that the connection may last.
// One over MaxToken is ignored: no relay would take it.
func (s *Session) HandleToken(token []byte, now time.Time) {
	s.clock(now)
	if s.Ready() && len(token) <= MaxToken {
		s.out = AppendFrame(s.out, FrameToken, token)
	}
}

// DatagramSnapshot is the state of a session's datagrams for people.
type DatagramSnapshot struct {
	// Relay is where they go; invalid where they are not tried.
	Relay netip.AddrPort
	// Bound says that packets go as datagrams, and Wide that the longest do.
	Bound, Wide bool
	// RTT is the last measured round trip, zero for none.
	RTT time.Duration
	// Peers is how many peers' numbers are known.
	Peers int
}
