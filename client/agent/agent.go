package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/flowlog"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/client/control"
	"github.com/warren-overlay/warren/client/health"
	"github.com/warren-overlay/warren/client/statefile"
	"github.com/warren-overlay/warren/coordinator/wire"
	"github.com/warren-overlay/warren/netstack/config"
	"github.com/warren-overlay/warren/netstack/engine"
)

// DataPlane carries packets. *engine.Engine is one.
type DataPlane interface {
	Apply(c *config.Config) error
	Status() engine.Status
	Ping(ctx context.Context, to netip.Addr) (engine.PingReply, error)
	Reach() <-chan engine.Reach
	HandleNetworkChange()
	Paths(to netip.Addr) (engine.PeerPaths, error)
	CheckNetwork(ctx context.Context) error
}

// Decisions tells of the packet filter's decisions. *engine.Engine is one.
type Decisions interface {
	Why(q engine.Question) (engine.Answer, error)
	Flows(after uint64, limit int) engine.Flows
	Denials(n int) []flowlog.Record
	Capture(cfg engine.CaptureConfig) (*engine.Capture, error)
}

var (
	_ DataPlane = (*engine.Engine)(nil)
	_ Decisions = (*engine.Engine)(nil)
)

// Coordinator opens channels to coordinators. An error that is
// authority.ErrFingerprint means that somebody else answered.
type Coordinator interface {
	FetchGenesis(ctx context.Context, url string, network ident.Fingerprint) (*authority.Genesis, error)
	Dial(ctx context.Context, d Dial) (Channel, error)
}

// Dial says which coordinator to reach, and with which key.
type Dial struct {
	URL         string
	Coordinator ident.ChannelKey
	Network     ident.Fingerprint
	Machine     ident.MachinePrivate
}

// Channel is an authenticated connection of messages. Receive and Send may be
// called by one goroutine each; Close by any, and unblocks both.
type Channel interface {
	Send(message []byte) error
	Receive() ([]byte, error)
	// Binding names the connection to both its ends.
	Binding() wire.Binding
	SetWriteDeadline(t time.Time) error
	Close() error
}

// Config is what an Agent is made of. Every field is needed where it does not say
// what nil means.
type Config struct {
	State       *statefile.Directory
	DataPlane   DataPlane
	Decisions   Decisions
	Coordinator Coordinator
	// NetworkChanges gives a value when the machine's network changed; nil for
	// never.
	NetworkChanges <-chan struct{}
	// Connected returns the networks that the machine is connected to; nil for
	// none.
	Connected func() ([]netip.Prefix, error)
	// Host describes the machine to people; Host.ProgramVersion is the version
	// that Status shows.
	Host wire.HostInfo
	// Hostname is the name to join under where the user gives none.
	Hostname string
	Rand     io.Reader
	Now      func() time.Time
	// TimeTold is called when a coordinator has told its time, from which on Now
	// need not follow the wall clock; nil for nothing.
	TimeTold func()
	Logger   *slog.Logger
}

// Agent is a node. It implements localapi.Backend, localapi.Decisions and
// localapi.Connectivity. Its methods may be called concurrently; they wait for
// Run.
type Agent struct {
	cfg      Config
	log      *slog.Logger
	requests chan func(*loop)
	stopped  chan struct{} // closed when Run returns

	// view is the loop's, for those who need it without waiting.
	view atomic.Pointer[control.View]
	// desired is the data plane's last configuration, nil for none.
	desired atomic.Pointer[config.Config]

	startFacts []health.Fact // put before Run; of the loop after that

	mu         sync.Mutex // protects generation and changed
	generation uint64
	changed    chan struct{} // closed and replaced when generation grows
}

// ErrStopped is returned by methods of an agent whose Run has returned.
var ErrStopped = errors.New("agent: not running")

// New returns an Agent that does nothing until Run.
func New(cfg Config) (*Agent, error) {
	if cfg.State == nil || cfg.DataPlane == nil || cfg.Decisions == nil || cfg.Coordinator == nil || cfg.Rand == nil || cfg.Now == nil || cfg.Logger == nil {
		return nil, errors.New("agent: a part of the configuration is missing")
	}
	return &Agent{
		cfg: cfg, log: cfg.Logger,
		requests: make(chan func(*loop)), stopped: make(chan struct{}),
		generation: 1, changed: make(chan struct{}),
	}, nil
}

// Run is the node until ctx ends. The error says why it could not begin: the
// state directory's keys cannot be read or made. It may be called once.
func (a *Agent) Run(ctx context.Context) error {
	defer close(a.stopped)
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l, err := newLoop(a, ctx, &running)
	if err != nil {
		return err
	}
	l.run()
	return nil
}

// startFact has the node show a fact of the time before Run, for its life.
func (a *Agent) startFact(f health.Fact) { a.startFacts = append(a.startFacts, f) }

// currentView returns the verified view, nil before there was one.
func (a *Agent) currentView() *control.View { return a.view.Load() }

// bump tells waiters that the status is another.
func (a *Agent) bump() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.generation++
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *Agent) generationNow() (uint64, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.generation, a.changed
}

// ask has the loop run f and returns what it returns.
func ask[T any](ctx context.Context, a *Agent, f func(*loop) T) (T, error) {
	var none T
	answer := make(chan T, 1)
	select {
	case a.requests <- func(l *loop) { answer <- f(l) }:
	case <-a.stopped:
		return none, ErrStopped
	case <-ctx.Done():
		return none, ctx.Err()
	}
	select {
	case t := <-answer:
		return t, nil
	case <-a.stopped:
		return none, ErrStopped
	}
}
