package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/netstack/path"
	"github.com/warren-overlay/warren/netstack/relay/home"
)

// PeerPaths is all that is known of the ways to one peer.
type PeerPaths struct {
	// Name is the peer's, Path how packets go.
	Name string
	Path Path
	// LastHandshake is zero where there was none.
	LastHandshake time.Time
	// Unanswered is how many handshakes in a row were not answered.
	Unanswered int
	// Relayed says that the relay can carry packets.
	Relayed bool
	// Barred are the relays that are not used for the peer where there is another.
	Barred []home.Barred
	// Paths is the state of the agent that chooses, Now the moment of it.
	Paths path.Snapshot
	Now   time.Time
}

// Paths returns what is known of the ways to the peer that has, or routes, an
// overlay address. Nothing is sent and nothing changes.
//
// Errors: one that wraps ErrNoPeer; ErrStopped before Apply and after Run.
func (e *Engine) Paths(to netip.Addr) (PeerPaths, error) {
	to = to.Unmap()
	f := e.host.forwarding.Load()
	if f == nil {
		return PeerPaths{}, ErrStopped
	}
	p := f.lookup(to)
	if p == nil {
		return PeerPaths{}, fmt.Errorf("engine: paths to %v: %w", to, ErrNoPeer)
	}
	type outcome struct {
		paths PeerPaths
		err   error
	}
	o := ask(e, func(c *control) *outcome {
		if c.peers[p.key] != p {
			return &outcome{err: fmt.Errorf("engine: paths to %v: %w", to, ErrNoPeer)}
		}
		return &outcome{paths: c.paths(p)}
	})
	if o == nil {
		return PeerPaths{}, ErrStopped
	}
	return o.paths, o.err
}

func (c *control) paths(p *peer) PeerPaths {
	out := PeerPaths{
		Name: p.member.Name(), Path: pathFrom(c.tunnelPath(p, p.agent.Primary())),
		Unanswered: p.tunnel.Unanswered(), Relayed: c.relayed, Paths: p.agent.Snapshot(), Now: c.now(),
	}
	out.Barred = c.relays.machine.Barred(p.key, out.Now)
	// What it says beside the path is a help; without it the rest still is one.
	if stats, err := c.device.Stats(); err == nil {
		out.LastHandshake = stats[p.key].LastHandshake
	}
	return out
}

// maxChecks bounds the calls of CheckNetwork that wait at one time.
const maxChecks = 64

// ErrTooManyChecks is returned by CheckNetwork while too many others wait.
var ErrTooManyChecks = errors.New("engine: too many checks of the network at a time")

// CheckNetwork asks all STUN servers and measures all relays anew, and returns when
// each has answered or counts as silent, which takes 5 s at most; Status then says
// what came of it. What was measured, or asked for, less than 10 s ago is not measured again.
//
// Errors: the context's; ErrTooManyChecks; ErrStopped.
func (e *Engine) CheckNetwork(ctx context.Context) error {
	done := make(chan struct{})
	if err := ask(e, func(c *control) error { return c.check(done) }); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-e.stopped:
		return ErrStopped
	}
}

// check begins a round of STUN, and of measuring relays, and has done closed at the
// end of both.
func (c *control) check(done chan struct{}) error {
	if len(c.checks) == maxChecks {
		return ErrTooManyChecks
	}
	c.checks = append(c.checks, done)
	now := c.now()
	c.nat.HandleCheck(now)
	c.relays.machine.HandleMeasure(now)
	c.drainRelays()
	return nil
}

// endChecks tells those that wait for a check of the network that it is over.
func (c *control) endChecks() {
	if len(c.checks) == 0 || c.nat.Asking() || c.relays.machine.Measuring() {
		return
	}
	for _, done := range c.checks {
		close(done)
	}
	c.checks = nil
}
