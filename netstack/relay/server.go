package relay

import (
	"cmp"
	"crypto/ecdh"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

// ConnID names one connection of a server. Its owner hands ids out and never
// uses one again.
type ConnID uint64

// Admitter decides which network a node may use the relay for. Its methods must
// not block, and must fail closed.
type Admitter interface {
	// Admit returns the network that token admits node to at the time now, and
	// until when; the zero time is for as long as it is not revoked. It is called
	// only for a node that proved its key, and must not keep token.
	Admit(node ident.NodeKey, token []byte, now time.Time) (network string, until time.Time, err error)
	// Extend returns until when a node that is connected may stay although its
	// admission ends, and whether it may.
	Extend(network string, node ident.NodeKey, now time.Time) (until time.Time, ok bool)
}

// ServerConfig is what a server needs.
type ServerConfig struct {
	// Name is the name under which clients know this relay.
	Name     string
	Admitter Admitter
	// Rand is the source of ephemeral keys and nonces.
	Rand io.Reader
	// MaxConns bounds the connections that are admitted; of those that are not
	// yet, there are at most 1,024, of which the oldest makes room. Zero means
	// 10,000.
	MaxConns int
	// Rate bounds what one key may send, in bytes of payload per second; a burst
	// of a quarter of a second may pass at once. Zero means DefaultRate.
	Rate int64
	// Datagrams says that the shell takes datagrams (HandleDatagram); clients are
	// then offered to send them.
	Datagrams bool
	// HelloPerSource bounds the connections from one address that are not
	// admitted yet; the oldest of them makes room. An IPv6 address is its /64.
	// Zero means 64, less than zero no bound, for a relay that sees only a
	// proxy's address.
	HelloPerSource int
}

// CommandKind says what a server asks of its shell.
type CommandKind uint8

const (
	// CommandWake says that NextMessage has something for the connection.
	CommandWake CommandKind = iota + 1
	// CommandClose says that the connection is over, by Reason. The shell writes
	// the message that NextMessage may still have, closes the connection, and
	// calls HandleDisconnect.
	CommandClose
)

// Command is one thing that a server asks of its shell.
type Command struct {
	Kind   CommandKind
	Conn   ConnID
	Reason Reason
}

const (
	// helloWait bounds how long a stranger may hold a connection (F21).
	helloWait = 10 * time.Second
	// silentWait is after how much silence a client is dead: it pings every 25 s.
	silentWait = 60 * time.Second
	// goneInterval spaces the notices about missing peers that one connection
	// gets, so that a sender into the void is not answered packet by packet.
	goneInterval = 100 * time.Millisecond
	// maxControl bounds the control frames waiting for one connection, for a
	// client that asks without reading.
	maxControl = 4 << 10

	// endSweep is how often admissions are looked at that may have ended.
	endSweep = time.Second

	// defaultHelloPerSource lets as many nodes behind one NAT come back in one
	// moment, and 16 addresses are needed to fill maxHello.
	defaultHelloPerSource = 64

	// maxHello bounds the connections that did not prove their key yet. The
	// oldest makes room for a new one, so strangers that say nothing keep a member
	// out only where they open so many in the time that its answer takes.
	maxHello = 1024

	defaultMaxConns = 10_000
)

// DefaultRate is what one key may send, in bytes of payload per second, where
// nobody says otherwise: what a line of 2.5 Gbit/s carries. With 1 Gbit/s, the
// tunnel's own headers would be what a program is cut by that has a Gigabit
// (1,368 bytes of TCP are 1,452 here), and what is cut is sent again. What keeps
// one sender from taking others' part is not this, but fairShare.
const DefaultRate int64 = 312_500_000

// ErrUnknownConn is returned for a connection that is not there (any more).
var ErrUnknownConn = errors.New("relay: no such connection")

// ErrRefused is wrapped by errors about a client that was not admitted.
var ErrRefused = errors.New("relay: not admitted")

type connState uint8

const (
	stateHello connState = iota + 1
	stateAdmitted
	stateClosing
)

// member is what packets are addressed to: a key in a network.
type member struct {
	network string
	key     ident.NodeKey
}

type conn struct {
	id      ConnID
	state   connState
	binding []byte
	ask     challenge
	private *ecdh.PrivateKey
	source  netip.Addr // whose share of connections it counts in; zero for nobody's
	member  member
	until   time.Time // when the admission ends, zero for never
	heard   time.Time
	woken   bool // CommandWake was given and NextMessage is not yet empty

	control []byte // frames of ours, before any packet
	queue   queue
	rate    bucket
	gone    time.Time // of the last notice about a missing peer

	datagrams *datagramState // nil for a connection without them

	older, newer *conn // neighbours in its list, by heard
}

// ServerStats counts what happened in a server.
type ServerStats struct {
	ClockBack       uint64 // calls with a time before the last one's
	Admitted        uint64
	RejectedProof   uint64
	RejectedToken   uint64
	RejectedFull    uint64
	Protocol        uint64 // connections ended for malformed messages
	Replaced        uint64
	TimedOut        uint64
	Revoked         uint64
	PacketsIn       uint64
	BytesIn         uint64
	PacketsOut      uint64 // handed to the shell by NextMessage
	DroppedRate     uint64 // over the sender's rate
	DroppedQueue    uint64 // over the sender's part of the destination's queue, or pushed out of it
	DroppedNoPeer   uint64 // destination not connected in the sender's network
	DroppedClosing  uint64 // waiting for a connection that ended
	DroppedControl  uint64 // control frames that did not fit
	UnknownFrames   uint64
	HandshakeEnding uint64 // strangers that did not answer in time
	HelloPerSource  uint64 // strangers that made room for others from their address
	Expired         uint64 // admissions that ended without a newer token

	DatagramsBound     uint64 // addresses that connections were bound to
	DatagramsForwarded uint64 // packets that came and went as datagrams
	DatagramsUnbound   uint64 // packets from an address that no connection has
	DatagramsForged    uint64 // messages of the exchange of nobody, or not authentic
	DatagramsReplayed  uint64 // the same, old or for another address
	DatagramsUnknown   uint64 // what is no datagram of a client's
	DatagramsInherited uint64 // packets to the number that a member had before it came back
	DroppedShare       uint64 // over the sender's part while more comes than is taken
}

// ServerSnapshot is the state of a server for people.
type ServerSnapshot struct {
	Conns    int
	Admitted int
	// QueuedBytes is what waits for all connections together.
	QueuedBytes int
	Stats       ServerStats
}

// Server is the heart of a relay. Its shell tells it of connections and their
// messages, and does what NextCommand asks after each call.
//
// A Server is not safe for concurrent use.
type Server struct {
	cfg       ServerConfig
	now       time.Time
	conns     map[ConnID]*conn
	members   map[member]*conn
	hellos    map[netip.Addr]int // connections that are not admitted, by source
	limited   int                // connections whose admission ends
	sweepAt   time.Time          // when those are looked at
	datagrams *datagrams         // nil for none
	hello     list               // connections in stateHello, oldest first
	admitted  list               // connections in stateAdmitted, longest silent first
	commands  []Command
	read      int
	free      buffers
	queued    int
	stats     ServerStats
}

var errLimits = errors.New("relay: a limit below zero")

// NewServer returns a server without connections. The error says which part of
// the configuration is missing.
func NewServer(cfg ServerConfig, now time.Time) (*Server, error) {
	switch {
	case cfg.Name == "" || cfg.Admitter == nil || cfg.Rand == nil:
		return nil, errors.New("relay: a server needs a name, an admitter and a random source")
	case cfg.MaxConns < 0 || cfg.Rate < 0:
		return nil, errLimits
	}
	cfg.MaxConns, cfg.Rate = cmp.Or(cfg.MaxConns, defaultMaxConns), cmp.Or(cfg.Rate, DefaultRate)
	if cfg.HelloPerSource == 0 {
		cfg.HelloPerSource = defaultHelloPerSource
	}
	s := &Server{
		cfg: cfg, now: now,
		conns:   make(map[ConnID]*conn),
		members: make(map[member]*conn),
		hellos:  make(map[netip.Addr]int),
	}
	if cfg.Datagrams {
		var err error
		if s.datagrams, err = newDatagrams(cfg.Rand); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// HandleConnect takes a new connection and challenges it. binding is what both
// ends know of its channel, empty for nothing; it is not kept by reference. The
// source is the address that it came from, zero where nobody knows. The error is
// about the id or the random source, and there is no connection then.
func (s *Server) HandleConnect(id ConnID, source netip.Addr, binding []byte, now time.Time) error {
	s.clock(now)
	if s.conns[id] != nil {
		return fmt.Errorf("relay: connection %d exists", id)
	}
	c := &conn{id: id, heard: s.now, source: shareOf(source)}
	ask, private, err := newChallenge(s.cfg.Rand)
	if err != nil {
		return err
	}
	s.conns[id] = c
	c.state, c.ask, c.private = stateHello, ask, private
	c.binding = append([]byte(nil), binding...)
	c.ask.bound = len(binding) > 0
	if c.source.IsValid() && s.cfg.HelloPerSource > 0 && s.hellos[c.source] >= s.cfg.HelloPerSource {
		s.stats.HelloPerSource++
		s.endOldestOf(c.source)
	}
	if s.hello.count >= maxHello {
		s.stats.RejectedFull++
		s.end(s.hello.oldest, ReasonFull)
	}
	s.hello.push(c)
	s.hellos[c.source]++
	c.control = c.ask.append(c.control)
	s.wake(c)
	return nil
}

// HandleMessage takes one message of a connection; it is not kept. An error
// says why the connection is being closed, for the log; it wraps ErrFrame,
// ErrRefused or the Admitter's error, or is ErrUnknownConn. Messages of a
// connection that is being closed are ignored.
func (s *Server) HandleMessage(id ConnID, message []byte, now time.Time) error {
	s.clock(now)
	c := s.conns[id]
	if c == nil {
		return ErrUnknownConn
	}
	limit := MaxMessage
	switch c.state {
	case stateClosing:
		return nil
	case stateHello:
		limit = MaxHelloMessage
	case stateAdmitted:
		s.heard(c)
	}
	if len(message) > limit {
		return s.protocol(c, fmt.Errorf("%w: message of %d bytes", ErrFrame, len(message)))
	}
	for rest := message; ; {
		var f Frame
		var err error
		if f, rest, err = Next(rest); err != nil {
			return s.protocol(c, err)
		}
		if err := s.frame(c, f); err != nil {
			return err
		}
		if len(rest) == 0 || c.state == stateClosing {
			return nil
		}
	}
}

func (s *Server) frame(c *conn, f Frame) error {
	if c.state == stateHello {
		h, err := parseHello(f)
		if err != nil {
			return s.protocol(c, err)
		}
		return s.admit(c, &h)
	}
	switch f.Type {
	case FrameSend:
		to, payload, err := ParsePacket(f)
		if err != nil {
			return s.protocol(c, err)
		}
		s.forward(c, to, payload)
	case FramePing, FramePong:
		if len(f.Body) != 8 {
			return s.protocol(c, fmt.Errorf("%w: ping", ErrFrame))
		}
		if f.Type == FramePing {
			s.control(c, FramePong, f.Body)
		}
	case FrameResolve:
		if len(f.Body) != ident.KeySize {
			return s.protocol(c, fmt.Errorf("%w: resolve", ErrFrame))
		}
		s.resolve(c, ident.NodeKey(f.Body))
	case FrameStream:
		s.unbind(c)
	case FrameToken:
		if len(f.Body) > MaxToken {
			return s.protocol(c, fmt.Errorf("%w: token", ErrFrame))
		}
		s.renew(c, f.Body)
	case FrameChallenge, FrameHello, FrameWelcome, FrameReject, FrameRecv, FramePeerGone, FrameDatagrams, FramePeer, FrameLeaving:
		return s.protocol(c, fmt.Errorf("%w: type %d out of place", ErrFrame, f.Type))
	default:
		s.stats.UnknownFrames++
	}
	return nil
}

// SetLimits replaces ServerConfig.MaxConns and ServerConfig.Rate, each as there: the
// rate for connections that are admitted already as well. Where more are admitted
// than maxConns, none ends; nobody else is admitted. The error says what is wrong,
// and nothing changes then.
func (s *Server) SetLimits(maxConns int, rate int64, now time.Time) error {
	if maxConns < 0 || rate < 0 {
		return errLimits
	}
	s.cfg.MaxConns, s.cfg.Rate = cmp.Or(maxConns, defaultMaxConns), cmp.Or(rate, DefaultRate)
	for c := s.admitted.oldest; c != nil; c = c.newer {
		c.rate.refill(now)
		fresh := newBucket(s.cfg.Rate, now)
		fresh.level = min(fresh.level, c.rate.level)
		c.rate = fresh
	}
	return nil
}

// admit decides on a client's answer. Only here does a connection get a key.
func (s *Server) admit(c *conn, h *hello) error {
	private := c.private
	c.private = nil
	shared, proved := verify(private, s.cfg.Name, c.binding, &c.ask, h)
	if !proved {
		s.stats.RejectedProof++
		s.end(c, ReasonProof)
		return fmt.Errorf("%w: node key not proved", ErrRefused)
	}
	network, until, err := s.cfg.Admitter.Admit(h.key, h.token, s.now)
	if err == nil && network == "" {
		err = fmt.Errorf("%w: to no network", ErrRefused)
	}
	if err != nil {
		s.stats.RejectedToken++
		s.end(c, ReasonToken)
		return fmt.Errorf("relay: admitting %s: %w", h.key.Short(), err)
	}
	m := member{network, h.key}
	old := s.members[m]
	if old == nil && len(s.members) >= s.cfg.MaxConns {
		s.stats.RejectedFull++
		s.end(c, ReasonFull)
		return fmt.Errorf("%w: %d connections are admitted", ErrRefused, len(s.members))
	}
	c.member = m
	if old != nil {
		s.stats.Replaced++
		s.end(old, ReasonReplaced)
	}
	s.leaveHello(c)
	c.state, c.heard, c.binding = stateAdmitted, s.now, nil
	s.limit(c, until)
	c.rate = newBucket(s.cfg.Rate, s.now)
	s.members[c.member] = c
	s.admitted.push(c)
	s.stats.Admitted++
	s.control(c, FrameWelcome, nil)
	if s.datagrams != nil {
		s.offerDatagrams(c, datagramKey(shared, &c.ask))
	}
	return nil
}

// heard notes that a connection lives.
func (s *Server) heard(c *conn) {
	c.heard = s.now
	s.admitted.remove(c)
	s.admitted.push(c)
}

// limit sets when the admission of a connection ends.
func (s *Server) limit(c *conn, until time.Time) {
	if !c.until.IsZero() {
		s.limited--
	}
	if c.until = until; until.IsZero() {
		return
	}
	if s.limited++; s.limited == 1 {
		s.sweepAt = s.now.Add(endSweep)
	}
}

// renew takes a newer token of a connection. One that admits to nothing, or to
// another network, changes nothing.
func (s *Server) renew(c *conn, token []byte) {
	network, until, err := s.cfg.Admitter.Admit(c.member.key, token, s.now)
	if err != nil || network != c.member.network {
		s.stats.RejectedToken++
		return
	}
	s.limit(c, until)
}

// sweep ends the connections whose admission is over.
func (s *Server) sweep() {
	s.sweepAt = s.now.Add(endSweep)
	var next *conn
	for c := s.admitted.oldest; c != nil; c = next {
		next = c.newer
		if c.until.IsZero() || s.now.Before(c.until) {
			continue
		}
		if until, ok := s.cfg.Admitter.Extend(c.member.network, c.member.key, s.now); ok {
			s.limit(c, until)
			continue
		}
		s.stats.Expired++
		s.end(c, ReasonExpired)
	}
}

// shareOf returns what counts as one source: an IPv4 address, or the network of
// an IPv6 address that one customer commonly has.
func shareOf(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.Is6() {
		return netip.PrefixFrom(a, 64).Masked().Addr()
	}
	return a
}

// endOldestOf ends the oldest connection of a source that is not admitted.
func (s *Server) endOldestOf(source netip.Addr) {
	for c := s.hello.oldest; c != nil; c = c.newer {
		if c.source == source {
			s.end(c, ReasonFull)
			return
		}
	}
}

// leaveHello takes a connection from those that are not admitted.
func (s *Server) leaveHello(c *conn) {
	s.hello.remove(c)
	if s.hellos[c.source]--; s.hellos[c.source] == 0 {
		delete(s.hellos, c.source)
	}
}

// HandleLeaving tells all clients that the relay is about to stop. It goes on
// until its owner ends it.
func (s *Server) HandleLeaving(now time.Time) {
	s.clock(now)
	for c := s.admitted.oldest; c != nil; c = c.newer {
		s.control(c, FrameLeaving, nil)
	}
}

// forward queues a packet at its destination, or drops and counts it.
func (s *Server) forward(c *conn, to ident.NodeKey, payload []byte) {
	s.stats.PacketsIn++
	s.stats.BytesIn += uint64(len(payload))
	if !c.rate.take(int64(len(payload)), s.now) {
		s.stats.DroppedRate++
		return
	}
	dst := s.members[member{c.member.network, to}]
	if dst == nil {
		s.stats.DroppedNoPeer++
		s.tellGone(c, FramePeerGone, to, nil)
		return
	}
	s.enqueue(dst, c.member.key, payload)
}

// enqueue queues a packet for a connection.
func (s *Server) enqueue(dst *conn, from ident.NodeKey, payload []byte) {
	frame := AppendFrame(s.free.get(SendFrameSize(len(payload))), FrameRecv, from[:], payload)
	before := dst.queue.bytes
	s.stats.DroppedQueue += uint64(dst.queue.push(from, frame, &s.free))
	s.queued += dst.queue.bytes - before
	s.wake(dst)
}

// control queues a frame of the server's own, unless too many wait already.
func (s *Server) control(c *conn, kind FrameType, body []byte) (fits bool) {
	if len(c.control)+frameHeaderSize+len(body) > maxControl {
		s.stats.DroppedControl++
		return false
	}
	c.control = AppendFrame(c.control, kind, body)
	s.wake(c)
	return true
}

// NextMessage appends to dst the next message for a connection, at most
// MaxMessage bytes, and reports whether there is one. Once it reports false,
// CommandWake announces the next.
func (s *Server) NextMessage(id ConnID, dst []byte) ([]byte, bool) {
	c := s.conns[id]
	if c == nil {
		return dst, false
	}
	start := len(dst)
	dst = append(dst, c.control...)
	c.control = c.control[:0]
	before := c.queue.bytes
	dst, packets := c.queue.pop(dst, start+MaxMessage, &s.free)
	s.queued += c.queue.bytes - before
	s.stats.PacketsOut += uint64(packets)
	c.woken = len(dst) > start
	return dst, c.woken
}

// HandleDisconnect tells that a connection is gone.
func (s *Server) HandleDisconnect(id ConnID, now time.Time) {
	s.clock(now)
	if c := s.conns[id]; c != nil {
		s.detach(c)
		delete(s.conns, id)
	}
}

// HandleRevoked ends the connection of a key that may not use the relay any
// longer. It does nothing where there is none.
func (s *Server) HandleRevoked(network string, key ident.NodeKey, now time.Time) {
	s.clock(now)
	if c := s.members[member{network, key}]; c != nil {
		s.stats.Revoked++
		s.end(c, ReasonRevoked)
	}
}

// NextTimeout returns when HandleTimeout wants to be called: the last time
// given where a command is pending.
func (s *Server) NextTimeout() (time.Time, bool) {
	if s.read < len(s.commands) {
		return s.now, true
	}
	var next time.Time
	if c := s.hello.oldest; c != nil {
		next = c.heard.Add(helloWait)
	}
	if c := s.admitted.oldest; c != nil {
		if d := c.heard.Add(silentWait); next.IsZero() || d.Before(next) {
			next = d
		}
	}
	if s.limited > 0 && (next.IsZero() || s.sweepAt.Before(next)) {
		next = s.sweepAt
	}
	if next.IsZero() {
		return time.Time{}, false
	}
	if next.Before(s.now) {
		next = s.now
	}
	return next, true
}

// HandleTimeout ends the connections whose time is over at now.
func (s *Server) HandleTimeout(now time.Time) {
	s.clock(now)
	for c := s.hello.oldest; c != nil && s.now.Sub(c.heard) >= helloWait; c = s.hello.oldest {
		s.stats.HandshakeEnding++
		s.end(c, ReasonTimeout)
	}
	for c := s.admitted.oldest; c != nil && s.now.Sub(c.heard) >= silentWait; c = s.admitted.oldest {
		s.stats.TimedOut++
		s.end(c, ReasonTimeout)
	}
	if s.limited > 0 && !s.now.Before(s.sweepAt) {
		s.sweep()
	}
}

// NextCommand returns the next command, if there is one.
func (s *Server) NextCommand() (Command, bool) {
	if s.read == len(s.commands) {
		s.commands, s.read = s.commands[:0], 0
		return Command{}, false
	}
	cmd := s.commands[s.read]
	s.read++
	return cmd, true
}

// Snapshot returns the state for people.
func (s *Server) Snapshot() ServerSnapshot {
	return ServerSnapshot{Conns: len(s.conns), Admitted: len(s.members), QueuedBytes: s.queued, Stats: s.stats}
}

func (s *Server) protocol(c *conn, err error) error {
	s.stats.Protocol++
	s.end(c, ReasonProtocol)
	return err
}

// end takes a connection out of service and asks the shell to close it. What
// waited for it is dropped; the reason is its last frame.
func (s *Server) end(c *conn, r Reason) {
	if c.state == stateClosing {
		return
	}
	s.detach(c)
	c.state, c.private = stateClosing, nil
	c.control = AppendFrame(c.control[:0], FrameReject, []byte{byte(r)})
	s.commands = append(s.commands, Command{Kind: CommandClose, Conn: c.id, Reason: r})
}

// detach takes a connection out of every index but conns.
func (s *Server) detach(c *conn) {
	switch c.state {
	case stateHello:
		s.leaveHello(c)
	case stateAdmitted:
		s.admitted.remove(c)
		s.limit(c, time.Time{})
		s.dropDatagrams(c)
		if s.members[c.member] == c {
			delete(s.members, c.member)
		}
	case stateClosing:
	}
	s.queued -= c.queue.bytes
	s.stats.DroppedClosing += uint64(c.queue.clear(&s.free))
}

func (s *Server) wake(c *conn) {
	if !c.woken && c.state != stateClosing {
		c.woken = true
		s.commands = append(s.commands, Command{Kind: CommandWake, Conn: c.id})
	}
}

func (s *Server) clock(now time.Time) {
	if now.Before(s.now) {
		s.stats.ClockBack++
		return
	}
	s.now = now
}
