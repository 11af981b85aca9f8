package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/alarm"
	"github.com/warren-overlay/warren/netstack/config"
	"github.com/warren-overlay/warren/netstack/disco"
	"github.com/warren-overlay/warren/netstack/relay"
	"github.com/warren-overlay/warren/netstack/relay/relayhttp"
	"github.com/warren-overlay/warren/netstack/wg"
)

const (
	// dialTimeout bounds connecting to a relay, name lookup and TLS included.
	dialTimeout = 10 * time.Second
	// maxOutbox bounds the bytes that wait for a relay: 50 ms at 80 Mbit/s, as
	// package relay bounds its own queue. What comes on top is dropped.
	maxOutbox = 512 << 10
	// maxHeld bounds the bytes that wait for a connection to a relay to be made:
	// handshakes, and what a program sends in the round trips that this takes.
	maxHeld = 64 << 10
	// heldFor is how long such packets are worth sending. WireGuard repeats a
	// handshake after 5 s.
	heldFor = 5 * time.Second
	// spareMessages is how many message buffers are kept for their next use.
	spareMessages = 2
	// notNeeded is why there is no connection to a relay that works, as far as is
	// known.
	notNeeded = "not needed now"
	// hintInterval is how often it is told that a peer is heard over a relay.
	hintInterval = time.Second
)

// relayConn is the way to one relay: what WireGuard sends packets to. The relay's
// connection comes and goes below it.
type relayConn struct {
	e      *Engine
	device *wg.Device
	relay  config.Relay
	key    ident.NodePrivate

	// attempt belongs to the control goroutine: the connection or the attempt
	// that counts, nil for none.
	attempt *relayAttempt

	// session is the one that is admitted, nil for none.
	session atomic.Pointer[relaySession]

	mu    sync.Mutex // protects all below
	token []byte
	err   string // why there is no connection
	held  []heldPacket
	bytes int // of held
}

// heldPacket is a packet that can not be sent yet.
type heldPacket struct {
	to   ident.NodeKey
	data []byte
	at   time.Time
}

var _ wg.Relay = (*relayConn)(nil)

// relayAttempt is one connection to a relay, from the dialling to its end.
type relayAttempt struct {
	conn   *relayConn
	cancel context.CancelFunc
	out    outbox
}

// relayEventKind says what happened at a relay.
type relayEventKind uint8

const (
	relayReady relayEventKind = iota
	relayClosed
	relayLeaving
	relayMeasured
	relayPeerGone
	relayInbound
)

// relayEvent is what a connection tells the control goroutine.
type relayEvent struct {
	kind    relayEventKind
	attempt *relayAttempt
	peer    ident.NodeKey // of relayPeerGone and relayInbound
	rtt     time.Duration // of relayMeasured
}

// SendPackets implements wg.Relay.
func (r *relayConn) SendPackets(to ident.NodeKey, packets [][]byte) {
	if s := r.session.Load(); s != nil {
		if rest := s.datagrams.send(to, packets); len(rest) > 0 {
			s.attempt.out.add(to, rest)
		}
		return
	}
	r.hold(to, packets)
	r.e.handleNoPath(to) // somebody has to connect
}

func (r *relayConn) hold(to ident.NodeKey, packets [][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.e.cfg.Now()
	for _, p := range packets {
		if r.bytes+len(p) > maxHeld {
			r.e.relayDrops.Add(1)
			continue
		}
		r.held = append(r.held, heldPacket{to, append([]byte(nil), p...), now})
		r.bytes += len(p)
	}
}

// takeHeld returns what waits to be sent, and is worth it, and nothing waits any
// more. Where the peer is not zero it is what waits for that one: another relay is
// to carry it.
func (r *relayConn) takeHeld(to ident.NodeKey) []heldPacket {
	r.mu.Lock()
	defer r.mu.Unlock()
	var taken, left []heldPacket
	now := r.e.cfg.Now()
	r.bytes = 0
	for _, h := range r.held {
		switch {
		case now.Sub(h.at) >= heldFor:
			r.e.relayDrops.Add(1)
		case to.IsZero() || h.to == to:
			taken = append(taken, h)
		default:
			left = append(left, h)
			r.bytes += len(h.data)
		}
	}
	r.held = left
	return taken
}

// holds returns how many bytes wait for a connection.
func (r *relayConn) holds() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bytes
}

// connected reports whether the relay admitted this device, and why not.
func (r *relayConn) connected() (bool, string) {
	if r.session.Load() != nil {
		return true, ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return false, r.err
}

// begins notes that an attempt begins. Why the one before failed is told until it is
// over: who looks mostly looks in between.
func (r *relayConn) begins() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == notNeeded {
		r.err = "connecting"
	}
}

func (r *relayConn) fail(err string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

// run is one attempt. The engine's context outlives that of the attempt.
func (a *relayAttempt) run(engine, ctx context.Context) {
	r := a.conn
	err := a.connect(engine, ctx)
	switch {
	case errors.Is(err, context.Canceled):
		r.fail(notNeeded)
	case err != nil:
		r.fail(err.Error())
		r.e.log.Debug("relay", "name", r.relay.Name, "error", err)
	}
	r.e.relayDrops.Add(a.out.drops())
	r.e.tellRelay(engine, relayEvent{kind: relayClosed, attempt: a})
}

// tellRelay tells the control goroutine what it must know, unless the engine
// stops.
func (e *Engine) tellRelay(engine context.Context, event relayEvent) {
	select {
	case e.relayEvents <- event:
	case <-engine.Done():
	}
}

// hintRelay tells the control goroutine what it may like to know.
func (e *Engine) hintRelay(event relayEvent) {
	select {
	case e.relayEvents <- event:
	default: // it will be told again
	}
}

// relaySession is one connection to a relay.
type relaySession struct {
	attempt *relayAttempt
	engine  context.Context // that of Engine.Run, for telling of ends
	conn    relayhttp.Conn
	// timer tells the session's goroutine that its deadline may have moved.
	timer     chan struct{}
	datagrams *relayDatagrams
	// renewal is the token that the relay is to be given, nil for none. The control
	// goroutine leaves it here and never waits for mu: whoever holds that may be
	// waiting for the control goroutine (tellRelay).
	renewal atomic.Pointer[[]byte]
	// measuring says that somebody wants to know the round trip.
	measuring atomic.Bool

	mu      sync.Mutex // protects all below
	session *relay.Session
	pongs   uint64 // how many were told of
}

// connect carries packets over one connection until it ends or ctx does, which
// ends with the engine's context or sooner.
func (a *relayAttempt) connect(engine, ctx context.Context) error {
	r := a.conn
	dialing, cancel := context.WithTimeout(ctx, dialTimeout)
	conn, err := r.e.cfg.DialRelay(dialing, r.relay.URL)
	cancel()
	if err != nil {
		return err
	}
	r.mu.Lock()
	cfg := relay.SessionConfig{Key: r.key, Relay: r.relay.Name, Binding: relayhttp.Binding(conn), Token: r.token}
	r.mu.Unlock()
	cfg.Datagrams = r.e.datagramsOf(ctx, r.relay.UDP)
	session, err := relay.NewSession(cfg, r.e.cfg.Now())
	if err != nil {
		conn.Close()
		return err
	}
	s := &relaySession{attempt: a, engine: engine, conn: conn, session: session, timer: make(chan struct{}, 1)}
	s.datagrams = newRelayDatagrams(r, s.timer, s.heardDatagram)
	if cfg.Datagrams.IsValid() {
		r.e.relayLinks.set(cfg.Datagrams, nil, s.datagrams)
		defer r.e.relayLinks.set(cfg.Datagrams, s.datagrams, nil)
	}
	ctx, stop := context.WithCancelCause(ctx)
	var running sync.WaitGroup
	running.Go(func() { stop(s.read(ctx)) })
	running.Go(func() { stop(s.write(ctx)) })
	s.watch(ctx)
	stop(nil)
	r.session.CompareAndSwap(s, nil)
	s.datagrams.link.Store(nil)
	a.out.close()
	conn.Close()
	running.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if snapshot := session.Snapshot(); snapshot.Failed && snapshot.Reason != relay.ReasonNone {
		return fmt.Errorf("engine: the relay ended the connection: %v", snapshot.Reason)
	}
	return context.Cause(ctx)
}

// renew has the relay given a newer token, so that the connection may last. It
// does not block.
func (s *relaySession) renew(token []byte) {
	s.renewal.Store(&token)
	select {
	case s.timer <- struct{}{}:
	default:
	}
}

// measure has the round trip to the relay measured. It does not block.
func (s *relaySession) measure() {
	s.measuring.Store(true)
	select {
	case s.timer <- struct{}{}:
	default:
	}
}

// watch drives the session's timers until the context ends.
func (s *relaySession) watch(ctx context.Context) {
	timer := alarm.New(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-s.timer:
		}
		s.mu.Lock()
		now := s.engineOf().cfg.Now()
		again := s.datagrams.step(s.session, now)
		if token := s.renewal.Swap(nil); token != nil {
			s.session.HandleToken(*token, now)
		}
		s.session.HandleTimeout(now)
		if s.measuring.Swap(false) {
			s.session.HandleMeasure(now)
		}
		s.drainLocked(now)
		next, ok := s.session.NextTimeout()
		if !again.IsZero() && (!ok || again.Before(next)) {
			next, ok = again, true
		}
		failed := s.session.Failed()
		s.mu.Unlock()
		s.datagrams.late(now, func(peer ident.NodeKey, packet []byte) {
			s.attempt.conn.device.HandleRelayed(s.attempt.conn, peer, packet) // heardDatagram took what is not WireGuard's
		})
		if failed {
			return
		}
		if ok {
			timer.Set(next.Sub(now))
		}
	}
}

// errSessionOver is why reading ends where the session said so itself.
var errSessionOver = errors.New("engine: relay session is over")

// read takes what the relay sends.
func (s *relaySession) read(ctx context.Context) error {
	buf := make([]byte, 0, 4<<10)
	for {
		message, err := s.conn.ReadMessage(ctx, buf)
		if errors.Is(err, io.EOF) {
			return errors.New("engine: the relay closed the connection")
		}
		if err != nil {
			return err
		}
		s.mu.Lock()
		now := s.engineOf().cfg.Now()
		err = s.session.HandleMessage(message, now)
		s.drainLocked(now)
		failed := s.session.Failed()
		s.mu.Unlock()
		if err != nil {
			return err
		}
		if failed {
			return errSessionOver
		}
		if cap(message) > cap(buf) {
			buf = message
		}
	}
}

func (s *relaySession) engineOf() *Engine { return s.attempt.conn.e }

// drainLocked does what the session wants; s.mu is held.
func (s *relaySession) drainLocked(now time.Time) {
	r := s.attempt.conn
	for {
		message, ok := s.session.NextTransmit()
		if !ok {
			break
		}
		s.attempt.out.addMessage(message)
		// A ping that falls due may have moved the deadline.
		select {
		case s.timer <- struct{}{}:
		default:
		}
	}
	s.datagrams.drain(s.session)
	if snapshot := s.session.Snapshot(); snapshot.Stats.PongsHeard != s.pongs {
		s.pongs = snapshot.Stats.PongsHeard
		r.e.hintRelay(relayEvent{kind: relayMeasured, attempt: s.attempt, rtt: snapshot.RTT})
	}
	for {
		event, ok := s.session.NextEvent()
		if !ok {
			return
		}
		switch event.Kind {
		case relay.EventPacket:
			if !r.device.HandleRelayed(r, event.Peer, event.Packet) {
				r.e.post(datagram{relayed: event.Peer, relay: r.relay.Name}, event.Packet)
			}
			s.hint(event.Peer, now)
		case relay.EventReady:
			s.attempt.out.open()
			r.session.Store(s)
			for _, h := range r.takeHeld(ident.NodeKey{}) {
				s.attempt.out.add(h.to, [][]byte{h.data})
			}
			r.e.log.Info("relay connected", "name", r.relay.Name)
			r.e.tellRelay(s.engine, relayEvent{kind: relayReady, attempt: s.attempt})
		case relay.EventPeerGone:
			r.e.hintRelay(relayEvent{kind: relayPeerGone, attempt: s.attempt, peer: event.Peer})
		case relay.EventLeaving:
			r.e.tellRelay(s.engine, relayEvent{kind: relayLeaving, attempt: s.attempt})
		case relay.EventLink:
			link := s.session.Link()
			if before := s.datagrams.link.Swap(link); (before == nil) != (link == nil) {
				r.e.log.Info("relay datagrams", "name", r.relay.Name, "used", link != nil)
			}
			s.datagrams.wake() // some may have waited for it
		case relay.EventClosed:
			// It shows in Failed.
		}
	}
}

// heardDatagram takes a packet that came as a datagram of the relay, where it is
// not WireGuard's.
func (s *relaySession) heardDatagram(peer ident.NodeKey, packet []byte) (taken bool) {
	r := s.attempt.conn
	s.hint(peer, r.e.cfg.Now())
	if !disco.Is(packet) {
		return false
	}
	r.e.post(datagram{relayed: peer, relay: r.relay.Name}, packet)
	return true
}

// hint tells, now and again, by which relay a peer's packets come.
func (s *relaySession) hint(key ident.NodeKey, now time.Time) {
	r := s.attempt.conn
	f := r.e.host.forwarding.Load()
	if f == nil {
		return
	}
	p := f.byKey[key]
	if p == nil || p.relayedBy.Load() == r && now.UnixNano()-p.relayedAt.Load() < int64(hintInterval) {
		return
	}
	p.relayedBy.Store(r)
	p.relayedAt.Store(now.UnixNano())
	r.e.hintRelay(relayEvent{kind: relayInbound, attempt: s.attempt, peer: key})
}

// write sends what waits for the relay.
func (s *relaySession) write(ctx context.Context) error {
	for {
		message, packets := s.attempt.out.take()
		if message == nil {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-s.attempt.out.wake:
			}
			continue
		}
		if packets {
			// Before the write: a relay that takes nothing any more is as dead as
			// one that does not answer.
			s.mu.Lock()
			s.session.HandleSent(s.engineOf().cfg.Now())
			s.mu.Unlock()
			select {
			case s.timer <- struct{}{}:
			default:
			}
		}
		if err := s.conn.WriteMessage(ctx, message); err != nil {
			return err
		}
		s.attempt.out.free(message)
	}
}
