package relay

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

// SessionConfig is what a client needs for one connection to a relay.
type SessionConfig struct {
	Key ident.NodePrivate
	// Relay is the name under which the client knows the relay. The server must
	// have the same one.
	Relay string
	// Binding is what both ends know of the channel below and nobody else does,
	// such as a TLS exporter; empty where there is none. Both ends must have the
	// same.
	Binding []byte
	// Token is what the relay's Admitter wants to see; at most MaxToken bytes.
	Token []byte
	// Datagrams is where the relay takes datagrams; invalid for nowhere. They are
	// used beside the connection, which remains the way that always works.
	Datagrams netip.AddrPort
}

// EventKind says what happened in a Session.
type EventKind uint8

const (
	// EventReady says that the relay admitted the client: packets may be sent.
	EventReady EventKind = iota + 1
	// EventPacket is a packet from Peer, in Packet.
	EventPacket
	// EventPeerGone says that Peer is not connected to the relay. Only the relay
	// says so: it is a hint, never a reason to end anything.
	EventPeerGone
	// EventLink says that Session.Link returns another value than before.
	EventLink
	// EventLeaving says that the relay is about to stop: its packets should go
	// elsewhere within a second.
	EventLeaving
	// EventClosed says that the session is over, by Reason. The shell closes the
	// connection. Nothing follows.
	EventClosed
)

// Event is one thing that happened.
type Event struct {
	Kind EventKind
	Peer ident.NodeKey
	// Packet aliases the message in which it came, and is valid until the caller
	// reuses that one.
	Packet []byte
	Reason Reason
}

const (
	// idlePing keeps the mappings of NATs and proxies on the way alive; TCP
	// mappings last for minutes, proxies commonly close after 30 to 60 s.
	idlePing = 25 * time.Second
	// busyPing is how long a session that carries packets may hear nothing before
	// it asks. With answerWait it bounds the time in which a dead relay is noticed
	// to 3 s; the other 2 of the 5 s that a failover may take are for another one.
	busyPing   = time.Second
	answerWait = 2 * time.Second
	// busyFor is for how long after a packet, in whichever direction, a session
	// counts as carrying packets: who only receives must notice, too.
	busyFor = 30 * time.Second
	// admissionWait is how long connecting may take.
	admissionWait = 5 * time.Second
	// maxEvents bounds the events of one message: no message has more frames.
	maxEvents = MaxMessage/frameHeaderSize + 1
)

// ErrDead is returned by a Session that is over.
var ErrDead = errors.New("relay: session is over")

// Session is the client's side of one connection to a relay. The shell hands
// it every message that it reads (HandleMessage), writes what NextTransmit
// returns, sends packets with AppendSendPacket and tells of it (HandleSent),
// and makes a new Session for a new connection.
//
// A Session is not safe for concurrent use.
type Session struct {
	cfg      SessionConfig
	now      time.Time
	admitted bool
	proved   bool // the challenge was answered
	failed   bool
	reason   Reason

	started   time.Time
	heard     time.Time // last frame of the relay
	asked     time.Time // of the ping that is unanswered, zero for none
	pinged    time.Time // when the last ping was sent, zero where its pong came
	sentSince bool      // whether packets were sent after heard
	sentAt    time.Time // of the first of these
	carried   time.Time // when the last packet was sent or came, zero for never
	pings     uint64
	rtt       time.Duration

	out    []byte
	events []Event
	read   int

	datagrams datagramBinding

	stats SessionStats
}

// SessionStats counts what happened in a Session.
type SessionStats struct {
	ClockBack  uint64 // calls with a time before the last one's
	BadFrames  uint64
	PeerGone   uint64
	PacketsIn  uint64
	BytesIn    uint64
	UnknownIn  uint64 // frames of a type that this version does not know
	PingsSent  uint64
	PongsHeard uint64

	Bound            uint64 // times that datagrams began to be used
	Silent           uint64 // times that they were given up
	Stale            uint64 // notices that the relay does not know our address
	PeersFull        uint64 // numbers of peers that there was no room for
	DatagramsUnknown uint64 // not authentic, or the answer to nothing
}

// SessionSnapshot is the state of a Session for people.
type SessionSnapshot struct {
	Admitted bool
	Failed   bool
	Reason   Reason
	// RTT is the last measured round trip to the relay, zero for none.
	RTT       time.Duration
	Datagrams DatagramSnapshot
	Stats     SessionStats
}

// NewSession returns a session that waits for the relay's challenge. The error
// wraps ErrTooLarge for a token over the limit, and ident.ErrMalformedKey where
// there is no key.
func NewSession(cfg SessionConfig, now time.Time) (*Session, error) {
	if len(cfg.Token) > MaxToken {
		return nil, fmt.Errorf("%w: token of %d bytes", ErrTooLarge, len(cfg.Token))
	}
	if cfg.Key.IsZero() {
		return nil, fmt.Errorf("relay: a session needs a node key: %w", ident.ErrMalformedKey)
	}
	cfg.Token = append([]byte(nil), cfg.Token...)
	cfg.Binding = append([]byte(nil), cfg.Binding...)
	return &Session{cfg: cfg, now: now, started: now, heard: now}, nil
}

// Ready reports whether the relay admitted the client and the session lives.
func (s *Session) Ready() bool { return s.admitted && !s.failed }

// Failed reports whether the session is over.
func (s *Session) Failed() bool { return s.failed }

// HandleMessage takes one message of the relay. The message is not kept, but
// packets of events alias it: drain NextEvent before it is reused. The error is
// ErrDead, or wraps ErrFrame; the session is over in both cases.
func (s *Session) HandleMessage(message []byte, now time.Time) error {
	s.clock(now)
	if s.failed {
		return ErrDead
	}
	s.compact()
	if len(message) > MaxMessage {
		return s.protocol(fmt.Errorf("%w: message of %d bytes", ErrFrame, len(message)))
	}
	for rest := message; ; {
		var f Frame
		var err error
		if f, rest, err = Next(rest); err == nil {
			err = s.frame(f)
		}
		if err != nil {
			return s.protocol(err)
		}
		if len(rest) == 0 || s.failed {
			return nil
		}
	}
}

func (s *Session) protocol(err error) error {
	s.stats.BadFrames++
	s.end(ReasonProtocol)
	return err
}

func (s *Session) frame(f Frame) error {
	if !s.admitted {
		return s.admission(f)
	}
	s.heard, s.sentSince, s.asked = s.now, false, s.answered(f)
	switch f.Type {
	case FrameRecv:
		key, payload, err := ParsePacket(f)
		if err != nil {
			return err
		}
		s.carried = s.now
		s.stats.PacketsIn++
		s.stats.BytesIn += uint64(len(payload))
		s.event(Event{Kind: EventPacket, Peer: key, Packet: payload})
	case FramePeerGone:
		if len(f.Body) != ident.KeySize {
			return fmt.Errorf("%w: peer gone", ErrFrame)
		}
		s.stats.PeerGone++
		s.event(Event{Kind: EventPeerGone, Peer: ident.NodeKey(f.Body)})
	case FramePing:
		if len(f.Body) != 8 {
			return fmt.Errorf("%w: ping", ErrFrame)
		}
		s.out = AppendFrame(s.out, FramePong, f.Body)
	case FramePong:
		if len(f.Body) != 8 {
			return fmt.Errorf("%w: pong", ErrFrame)
		}
	case FrameReject:
		return s.reject(f)
	case FrameDatagrams:
		return s.offered(f)
	case FramePeer:
		return s.named(f)
	case FrameLeaving:
		s.event(Event{Kind: EventLeaving})
	case FrameChallenge, FrameHello, FrameWelcome, FrameSend, FrameResolve, FrameStream, FrameToken:
		return fmt.Errorf("%w: type %d out of place", ErrFrame, f.Type)
	default:
		// A later server may say more than this client knows.
		s.stats.UnknownIn++
	}
	return nil
}

// answered returns the time of the ping that is unanswered after frame f: none
// where f is any sign of life, since a relay that forwards is alive. The round
// trip is measured by the matching pong only, whatever came before it.
func (s *Session) answered(f Frame) time.Time {
	if f.Type == FramePong && len(f.Body) == 8 && !s.pinged.IsZero() && [8]byte(f.Body) == s.pingBody() {
		s.rtt, s.pinged = s.now.Sub(s.pinged), time.Time{}
		s.stats.PongsHeard++
	}
	return time.Time{}
}

func (s *Session) admission(f Frame) error {
	switch f.Type {
	case FrameChallenge:
		c, err := parseChallenge(f)
		if err != nil {
			return err
		}
		if s.proved {
			return fmt.Errorf("%w: second challenge", ErrFrame)
		}
		shared, err := s.cfg.Key.SharedWith(ident.NodeKey(c.ephemeral))
		if err != nil {
			return fmt.Errorf("%w: challenge with a low-order key", ErrFrame)
		}
		binding := s.cfg.Binding
		switch {
		case !c.bound:
			// Something ends the channel in front of the relay. A proof that binds
			// nothing does not serve for a relay that asks for a bound one.
			binding = nil
		case len(binding) == 0:
			return fmt.Errorf("%w: the relay binds to a channel that has nothing to bind to", ErrFrame)
		}
		h := hello{key: s.cfg.Key.Public(), token: s.cfg.Token}
		h.proof = prove(shared[:], s.cfg.Relay, binding, &c, h.key, h.token)
		s.datagrams.key = datagramKey(shared[:], &c)
		s.out = h.append(s.out)
		s.proved = true
		return nil
	case FrameWelcome:
		if !s.proved || len(f.Body) != 0 {
			return fmt.Errorf("%w: welcome out of place", ErrFrame)
		}
		s.admitted, s.heard = true, s.now
		s.event(Event{Kind: EventReady})
		s.ask(s.now) // to know the round trip
		return nil
	case FrameReject:
		return s.reject(f)
	default:
		return fmt.Errorf("%w: type %d before the admission", ErrFrame, f.Type)
	}
}

func (s *Session) reject(f Frame) error {
	if len(f.Body) != 1 {
		return fmt.Errorf("%w: reject", ErrFrame)
	}
	s.end(Reason(f.Body[0]))
	return nil
}

// HandleSent tells that packets were written to the connection, so that silence
// afterwards means something. Calling it once for a batch is enough.
func (s *Session) HandleSent(now time.Time) {
	s.clock(now)
	s.carried = s.now
	if !s.sentSince {
		s.sentSince, s.sentAt = true, s.now
	}
}

// HandleClosed tells that the connection ended.
func (s *Session) HandleClosed(now time.Time) {
	s.clock(now)
	s.end(ReasonNone)
}

// NextTimeout returns when HandleTimeout wants to be called: the last time
// given where output is pending.
func (s *Session) NextTimeout() (time.Time, bool) {
	if len(s.out) > 0 || len(s.datagrams.out) > 0 || s.read < len(s.events) {
		return s.now, true
	}
	d, ok := s.deadline()
	if due := s.datagrams.due; ok && s.admitted && !due.IsZero() && due.Before(d) {
		d = due
	}
	if ok && d.Before(s.now) {
		d = s.now
	}
	return d, ok
}

func (s *Session) deadline() (time.Time, bool) {
	switch {
	case s.failed:
		return time.Time{}, false
	case !s.admitted:
		return s.started.Add(admissionWait), true
	case !s.asked.IsZero():
		return s.asked.Add(answerWait), true
	case s.sentSince:
		busy := s.sentAt.Add(busyPing)
		if idle := s.heard.Add(idlePing); idle.Before(busy) {
			return idle, true
		}
		return busy, true
	case !s.carried.IsZero() && s.heard.Sub(s.carried) < busyFor:
		return s.heard.Add(busyPing), true
	}
	return s.heard.Add(idlePing), true
}

// HandleTimeout does what is due at now. A call that comes late ends the
// session where calls in time would have: a ping that was never sent because
// the process slept was not answered either.
func (s *Session) HandleTimeout(now time.Time) {
	s.clock(now)
	s.compact()
	for {
		d, ok := s.deadline()
		if !ok || s.now.Before(d) {
			s.datagramsDue()
			return
		}
		switch {
		case !s.admitted, !s.asked.IsZero():
			s.end(ReasonTimeout)
		default:
			s.ask(d)
		}
	}
}

// datagramsDue sends what binds an address, where it is time.
func (s *Session) datagramsDue() {
	if due := s.datagrams.due; s.Ready() && !due.IsZero() && !s.now.Before(due) {
		s.bind()
	}
}

// ask sends a ping, at the time at which it was due.
func (s *Session) ask(at time.Time) {
	s.pings++
	s.stats.PingsSent++
	s.asked, s.pinged = at, s.now
	body := s.pingBody()
	s.out = AppendFrame(s.out, FramePing, body[:])
}

func (s *Session) pingBody() (b [8]byte) {
	for i := range b {
		b[i] = byte(s.pings >> (56 - 8*i))
	}
	return b
}

// HandleMeasure says that somebody wants to know the round trip of now: a ping is
// sent, unless one is on its way or the relay has not admitted the client.
func (s *Session) HandleMeasure(now time.Time) {
	s.clock(now)
	if s.Ready() && s.asked.IsZero() {
		s.ask(s.now)
	}
}

// NextTransmit returns one message to write to the connection, if there is one.
// The slice is the caller's.
func (s *Session) NextTransmit() ([]byte, bool) {
	if len(s.out) == 0 {
		return nil, false
	}
	out := s.out
	s.out = nil
	return out, true
}

// NextEvent returns the next event, if there is one.
func (s *Session) NextEvent() (Event, bool) {
	if s.read == len(s.events) {
		return Event{}, false
	}
	e := s.events[s.read]
	s.events[s.read] = Event{}
	s.read++
	return e, true
}

// Snapshot returns the state for people.
func (s *Session) Snapshot() SessionSnapshot {
	d := &s.datagrams
	return SessionSnapshot{
		Admitted: s.admitted, Failed: s.failed, Reason: s.reason, RTT: s.rtt, Stats: s.stats,
		Datagrams: DatagramSnapshot{Relay: s.cfg.Datagrams, Bound: d.bound && !s.failed, Wide: d.wide && d.bound && !s.failed, RTT: d.rtt, Peers: len(d.peers.number)},
	}
}

func (s *Session) event(e Event) { s.events = append(s.events, e) }

// compact drops what was read. Events that nobody drained are dropped as well
// where they would pass the cap: their packets alias messages long gone.
func (s *Session) compact() {
	if s.read == len(s.events) || len(s.events)-s.read > maxEvents {
		s.events, s.read = s.events[:0], 0
	}
}

func (s *Session) end(r Reason) {
	if s.failed {
		return
	}
	s.failed, s.reason, s.out = true, r, nil
	if s.datagrams.bound {
		s.relink()
	}
	s.event(Event{Kind: EventClosed, Reason: r})
}

func (s *Session) clock(now time.Time) {
	if now.Before(s.now) {
		s.stats.ClockBack++
		return
	}
	s.now = now
}
