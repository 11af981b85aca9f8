package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/config"
	"github.com/warren-overlay/warren/netstack/relay"
	"github.com/warren-overlay/warren/netstack/relay/relayhttp"
	"github.com/warren-overlay/warren/netstack/wg"
)

const (
	// dialTimeout bounds connecting to a relay, name lookup and TLS included.
	dialTimeout = 10 * time.Second
	// The wait between two attempts doubles from the one to the other, and is
	// drawn from its upper half, so that nodes that lost one relay at one moment
	// do not come back at one moment.
	minBackoff = 500 * time.Millisecond
	maxBackoff = 30 * time.Second
	// steady is how long a connection must last for the wait to begin anew.
	steady = 30 * time.Second
	// maxOutbox bounds the bytes that wait for the relay: 50 ms at 80 Mbit/s,
	// as package relay bounds its own queue. What comes on top is dropped.
	maxOutbox = 512 << 10
	// spareMessages is how many message buffers are kept for their next use.
	spareMessages = 2
)

// relayTarget is the relay that is wanted.
type relayTarget struct {
	relay config.Relay
	token []byte
	key   ident.NodePrivate
}

func relayTargetOf(cfg *config.Config) *relayTarget {
	if len(cfg.Relays) == 0 {
		return nil
	}
	return &relayTarget{relay: cfg.Relays[0], token: cfg.RelayToken, key: cfg.PrivateKey}
}

// same reports whether the connection of t serves for o. A new token is for the
// next connection.
func (t *relayTarget) same(o *relayTarget) bool {
	if t == nil || o == nil {
		return t == o
	}
	return t.relay == o.relay && t.key.Public() == o.key.Public()
}

// relayClient keeps the connection to the relay.
type relayClient struct {
	e      *Engine
	device *wg.Device // set before run
	states chan bool  // whether the relay is there; to the control goroutine
	again  chan struct{}

	out outbox

	mu     sync.Mutex // protects all below
	target *relayTarget
	stop   context.CancelFunc // of the connection, nil while there is none
	status RelayStatus
}

var _ wg.Relay = (*relayClient)(nil)

func newRelayClient(e *Engine) *relayClient {
	return &relayClient{
		e: e, states: make(chan bool), again: make(chan struct{}, 1),
		out: outbox{wake: make(chan struct{}, 1)},
	}
}

// set says which relay is wanted, nil for none.
func (r *relayClient) set(t *relayTarget) {
	r.mu.Lock()
	defer r.mu.Unlock()
	same := r.target.same(t)
	refreshed := same && t != nil && !r.status.Connected && string(r.target.token) != string(t.token)
	r.target = t
	if same && !refreshed {
		return
	}
	r.status = RelayStatus{}
	if t != nil {
		r.status = RelayStatus{Name: t.relay.Name, URL: t.relay.URL, Error: "connecting"}
	}
	r.restartLocked()
}

// reconnect has the connection made anew: it may have died with the network.
func (r *relayClient) reconnect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.target != nil {
		r.restartLocked()
	}
}

func (r *relayClient) restartLocked() {
	if r.stop != nil {
		r.stop()
	}
	select {
	case r.again <- struct{}{}:
	default:
	}
}

func (r *relayClient) name() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status.Name
}

// snapshot returns the state for people, nil where no relay is wanted.
func (r *relayClient) snapshot() *RelayStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.target == nil {
		return nil
	}
	s := r.status
	return &s
}

// SendPackets implements wg.Relay.
func (r *relayClient) SendPackets(to ident.NodeKey, packets [][]byte) { r.out.add(to, packets) }

// run keeps a connection to whatever relay is wanted until the context ends.
func (r *relayClient) run(ctx context.Context, device *wg.Device) {
	r.device = device
	backoff := minBackoff
	for ctx.Err() == nil {
		connection, cancel := context.WithCancel(ctx)
		r.mu.Lock()
		target := r.target
		r.stop = cancel
		select {
		case <-r.again: // this is the attempt that was asked for
		default:
		}
		r.mu.Unlock()
		var wait <-chan time.Time
		if target != nil {
			began := r.e.cfg.Now()
			err := r.connect(ctx, connection, target)
			r.report(target, err)
			if r.e.cfg.Now().Sub(began) >= steady {
				backoff = minBackoff
			}
			wait = time.After(r.jittered(backoff))
			backoff = min(2*backoff, maxBackoff)
		}
		cancel()
		select {
		case <-ctx.Done():
		case <-wait:
		case <-r.again:
			backoff = minBackoff
		}
	}
}

// jittered draws a wait from the upper half of the given one.
func (r *relayClient) jittered(wait time.Duration) time.Duration {
	var raw [2]byte
	if _, err := io.ReadFull(r.e.cfg.Rand, raw[:]); err != nil {
		return wait
	}
	return wait/2 + wait/2*time.Duration(binary.BigEndian.Uint16(raw[:]))>>16
}

// report notes why there is no connection any more.
func (r *relayClient) report(target *relayTarget, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.target.same(target) {
		return // it is not about what is wanted now
	}
	r.status.Connected, r.status.RTT = false, 0
	if errors.Is(err, context.Canceled) {
		r.status.Error = "connecting again"
		return
	}
	r.status.Error = err.Error()
	r.e.log.Debug("relay", "name", target.relay.Name, "error", err)
}

// tell tells the control goroutine whether the relay is there, unless the
// engine stops.
func (r *relayClient) tell(engine context.Context, up bool) {
	select {
	case r.states <- up:
	case <-engine.Done():
	}
}

// relaySession is one connection to a relay.
type relaySession struct {
	r      *relayClient
	engine context.Context // that of Engine.Run, for telling of ends
	conn   relayhttp.Conn
	// timer tells the session's goroutine that its deadline may have moved.
	timer chan struct{}

	mu      sync.Mutex // protects session
	session *relay.Session
}

// connect carries packets over one connection until it ends or ctx does, which
// ends with the engine's context or sooner.
func (r *relayClient) connect(engine, ctx context.Context, target *relayTarget) error {
	dialing, cancel := context.WithTimeout(ctx, dialTimeout)
	conn, err := r.e.cfg.DialRelay(dialing, target.relay.URL)
	cancel()
	if err != nil {
		return err
	}
	session, err := relay.NewSession(relay.SessionConfig{
		Key: target.key, Relay: target.relay.Name, Token: target.token,
	}, r.e.cfg.Now())
	if err != nil {
		conn.Close()
		return err
	}
	s := &relaySession{r: r, engine: engine, conn: conn, session: session, timer: make(chan struct{}, 1)}
	r.out.clear()
	ctx, stop := context.WithCancelCause(ctx)
	var running sync.WaitGroup
	running.Go(func() { stop(s.read(ctx)) })
	running.Go(func() { stop(s.write(ctx)) })
	s.watch(ctx)
	stop(nil)
	r.out.close()
	conn.Close()
	running.Wait()
	r.tell(engine, false)
	s.mu.Lock()
	defer s.mu.Unlock()
	if snapshot := session.Snapshot(); snapshot.Failed && snapshot.Reason != relay.ReasonNone {
		return fmt.Errorf("engine: the relay ended the connection: %v", snapshot.Reason)
	}
	return context.Cause(ctx)
}

// watch drives the session's timers until the context ends.
func (s *relaySession) watch(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-s.timer:
		}
		s.mu.Lock()
		now := s.r.e.cfg.Now()
		s.session.HandleTimeout(now)
		s.drainLocked()
		next, ok := s.session.NextTimeout()
		failed, rtt := s.session.Failed(), s.session.Snapshot().RTT
		s.mu.Unlock()
		if failed {
			return
		}
		s.r.measured(rtt)
		if ok {
			timer.Reset(next.Sub(now))
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
		err = s.session.HandleMessage(message, s.r.e.cfg.Now())
		s.drainLocked()
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

// drainLocked does what the session wants; s.mu is held.
func (s *relaySession) drainLocked() {
	for {
		message, ok := s.session.NextTransmit()
		if !ok {
			break
		}
		s.r.out.addMessage(message)
	}
	for {
		event, ok := s.session.NextEvent()
		if !ok {
			return
		}
		switch event.Kind {
		case relay.EventPacket:
			if !s.r.device.HandleRelayed(event.Peer, event.Packet) {
				s.r.e.post(datagram{relayed: event.Peer}, event.Packet)
			}
		case relay.EventReady:
			s.r.out.open()
			s.r.ready()
			s.r.tell(s.engine, true)
		case relay.EventPeerGone, relay.EventClosed, relay.EventLink, relay.EventLeaving:
			// Gone is a hint that nothing here needs: the path's agent goes on to
			// look for a direct way. Closed shows in Failed.
		}
	}
}

func (r *relayClient) ready() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.Connected, r.status.Error = true, ""
	r.e.log.Info("relay connected", "name", r.status.Name)
}

// write sends what waits for the relay.
func (s *relaySession) write(ctx context.Context) error {
	for {
		message, packets := s.r.out.take()
		if message == nil {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-s.r.out.wake:
			}
			continue
		}
		if packets {
			// Before the write: a relay that takes nothing any more is as dead as
			// one that does not answer.
			s.mu.Lock()
			s.session.HandleSent(s.r.e.cfg.Now())
			s.mu.Unlock()
			select {
			case s.timer <- struct{}{}:
			default:
			}
		}
		if err := s.conn.WriteMessage(ctx, message); err != nil {
			return err
		}
		s.r.out.free(message)
	}
}

func (r *relayClient) measured(rtt time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.RTT = rtt
}
