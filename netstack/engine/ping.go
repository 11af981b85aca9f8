package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/netstack/alarm"
)

var (
	// ErrNoPeer is wrapped by the error of Ping for an address that no peer
	// has.
	ErrNoPeer = errors.New("no peer has this address")
	// ErrNoFamily is wrapped by the error of Ping where this device has no
	// address of the family.
	ErrNoFamily = errors.New("this device has no address of that family")
)

// RefusedError is returned by Ping where the filter does not let the ping out.
type RefusedError struct {
	// Peer is the name of the device that was to be asked.
	Peer   string
	Reason filter.Reason
	// Rule is the rule that denies it, empty where there is none that allows
	// it.
	Rule string
}

// Error says what to look at.
func (e *RefusedError) Error() string {
	switch {
	case e.Reason == filter.DropNoRule:
		return fmt.Sprintf("no rule of yours allows pings to %s", e.Peer)
	case e.Rule != "":
		return fmt.Sprintf("pings to %s are refused by rule %s", e.Peer, e.Rule)
	}
	return fmt.Sprintf("pings to %s are refused: %v", e.Peer, e.Reason)
}

const (
	// pingInterval is how long a ping waits before it is sent again.
	pingInterval = time.Second
	// maxPings bounds the pings that wait for answers at one time.
	maxPings = 256
)

// ErrTooManyPings is returned by Ping while too many others wait.
var ErrTooManyPings = errors.New("engine: too many pings at a time")

// pingKey is what an answer is recognised by.
type pingKey struct {
	from       netip.Addr
	identifier uint16
}

// pings are the pings that wait for answers.
type pings struct {
	count atomic.Int32 // len(waiting), for the data path

	mu      sync.Mutex // protects waiting
	waiting map[pingKey]chan<- packet.Echo
}

// take keeps an echo reply that answers one of our pings from the host.
func (p *pings) take(b []byte) bool {
	if p.count.Load() == 0 {
		return false
	}
	echo, ok := packet.ParseEchoReply(b)
	if !ok {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	answer, ok := p.waiting[pingKey{echo.Source, echo.Identifier}]
	if !ok {
		return false
	}
	echo.Data = nil // aliases the packet
	select {
	case answer <- echo:
	default: // answers that nobody waits for any more
	}
	return true
}

func (p *pings) add(key pingKey, answer chan<- packet.Echo) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, taken := p.waiting[key]; taken || len(p.waiting) >= maxPings {
		return false
	}
	p.waiting[key] = answer
	p.count.Store(int32(len(p.waiting)))
	return true
}

func (p *pings) remove(key pingKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.waiting, key)
	p.count.Store(int32(len(p.waiting)))
}

// Ping sends an echo request to an overlay address, through the filter and the
// tunnel, and waits for the reply, sending it again every second until the
// context ends. Programs of the host do not see the reply.
//
// Errors: one that wraps ErrNoPeer or ErrNoFamily; a *RefusedError; the
// context's; ErrTooManyPings; ErrStopped before Apply and after Run; Rand's.
func (e *Engine) Ping(ctx context.Context, to netip.Addr) (PingReply, error) {
	to = to.Unmap()
	f := e.host.forwarding.Load()
	if f == nil {
		return PingReply{}, ErrStopped
	}
	p := f.lookup(to)
	if p == nil {
		return PingReply{}, fmt.Errorf("engine: pinging %v: %w", to, ErrNoPeer)
	}
	source := f.own(to)
	if !source.IsValid() {
		return PingReply{}, fmt.Errorf("engine: pinging %v: %w", to, ErrNoFamily)
	}
	var raw [2]byte
	if _, err := io.ReadFull(e.cfg.Rand, raw[:]); err != nil {
		return PingReply{}, fmt.Errorf("engine: drawing an identifier: %w", err)
	}
	key := pingKey{to, binary.BigEndian.Uint16(raw[:])}
	answer := make(chan packet.Echo, 1)
	if !e.host.pings.add(key, answer) {
		return PingReply{}, ErrTooManyPings
	}
	defer e.host.pings.remove(key)

	type request struct {
		at   time.Time
		span *pathSpan
	}
	var sent []request // by sequence number
	again := alarm.New(pingInterval)
	defer again.Stop()
	for {
		echo := packet.AppendEchoRequest(nil, packet.Echo{
			Source: source, Destination: to, Identifier: key.identifier, Sequence: uint16(len(sent)),
		})
		sent = append(sent, request{e.cfg.Now(), p.span.Load()})
		if err := e.sendOwn(p, echo); err != nil {
			return PingReply{}, err
		}
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return PingReply{}, context.Cause(ctx)
			case <-e.stopped:
				return PingReply{}, ErrStopped
			case echo := <-answer:
				if int(echo.Sequence) < len(sent) {
					answered := sent[echo.Sequence]
					reply := PingReply{Peer: p.displayName(), RTT: e.cfg.Now().Sub(answered.at)}
					reply.Path, reply.Others = answered.span.taken()
					return reply, nil
				}
			case <-again.C:
				again.Set(pingInterval)
				waiting = false
			}
		}
	}
}

// sendOwn sends a packet of our own to p, if the filter lets it out.
func (e *Engine) sendOwn(p *peer, b []byte) error {
	var info packet.Info
	if fault := packet.Parse(b, &info); fault != packet.None {
		panic("BUG: engine: made a packet that does not parse: " + fault.String())
	}
	p.mu.Lock()
	decision := p.filter.CheckOutbound(&info, e.cfg.Now())
	p.mu.Unlock()
	e.note(p)
	if decision.Verdict != filter.Pass {
		return &RefusedError{Peer: p.displayName(), Reason: decision.Reason, Rule: string(decision.Rule)}
	}
	e.touch(p)
	e.host.reader.inject(b) // one that does not fit is sent again
	return nil
}
