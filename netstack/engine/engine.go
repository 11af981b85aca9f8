package engine

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/warren-overlay/warren/acl/flowlog"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/config"
	"github.com/warren-overlay/warren/netstack/wg"
)

var (
	// ErrStopped is returned by methods of an engine whose Run has returned.
	ErrStopped = errors.New("engine: not running")
	// ErrDevice is wrapped by the error of Run where the TUN device went away.
	ErrDevice = errors.New("engine: the TUN device failed")
)

const (
	// maxTouches bounds the peers that wait to be noticed as used. One that
	// does not fit is noticed at its next packet.
	maxTouches = 256
	// maxRelayEvents bounds what relays tell and the control goroutine has not
	// looked at yet. Hints over it are dropped, and told again.
	maxRelayEvents = 256
)

// noInterface is the name of a TUN device without an interface (tun.Device).
const noInterface = "userspace"

// Engine is the data plane of one node. All methods may be called concurrently.
type Engine struct {
	cfg  Config
	log  *slog.Logger
	host *hostDevice

	reach    chan Reach
	requests chan func(*control) // run by the control goroutine
	touched  chan *peer
	answers  chan answer
	noted    chan *peer // with events of the filter
	failed   chan error // from the reader of the TUN device
	started  atomic.Bool
	stopped  chan struct{} // closed when Run returns
	buffers  sync.Pool     // *[]byte of datagrams

	intake      *intake
	relayEvents chan relayEvent
	relayDrops  atomic.Uint64 // packets for relays that could not be sent in time
	relayLinks  relayLinks
	onlyIPv6    atomic.Bool // this machine has addresses, and none of IPv4, whatever its routes
	flows       *flowLog
	captures    captures

	// suspended, if not nil, is called while prefixes are suspended; see
	// barrier.go. It is for tests.
	suspended func()
}

// New returns an engine that does nothing until Run. The error wraps ErrConfig.
func New(cfg Config) (*Engine, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	e := &Engine{
		cfg: cfg, log: cfg.Logger,
		reach:    make(chan Reach, 1),
		requests: make(chan func(*control)),
		touched:  make(chan *peer, maxTouches),
		answers:  make(chan answer, maxAnswers),
		noted:    make(chan *peer, maxTouches),
		failed:   make(chan error, 1),
		stopped:  make(chan struct{}),
	}
	e.buffers.New = func() any { b := make([]byte, 0, 512); return &b }
	e.intake = newIntake()
	e.host = newHostDevice(e)
	e.relayEvents = make(chan relayEvent, maxRelayEvents)
	e.flows = &flowLog{log: flowlog.New(0), changed: make(chan struct{})}
	return e, nil
}

// Run carries packets until the context ends; it then stops everything that it
// started, closes the TUN device, and returns nil. It returns an error where
// the port could not be opened or the TUN device failed. It may be called once.
func (e *Engine) Run(ctx context.Context) error {
	if e.started.Swap(true) {
		return ErrStopped
	}
	defer close(e.stopped)
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()

	if e.cfg.Router != nil {
		defer e.cfg.Router.Close()
	}
	c, err := newControl(e)
	if err != nil {
		e.cfg.TUN.Close()
		return err
	}
	running.Go(func() { e.host.reader.run() })
	c.device, err = wg.New(wg.Config{
		TUN: e.host, Listen: e.cfg.Listen, ListenFurther: e.cfg.ListenFurther, Port: e.cfg.Port,
		Control: e.handleDatagram, NoPath: e.handleNoPath, Unwrap: e.relayLinks.unwrap, Logger: e.log, Retain: e.cfg.Retain,
	})
	if err != nil {
		e.cfg.TUN.Close()
		return err
	}
	defer c.device.Close()
	e.host.device.Store(c.device)
	if name, err := e.cfg.TUN.Name(); err == nil && e.cfg.ManageDevice && name != noInterface {
		running.Go(func() {
			if err := c.device.ServeUAPI(ctx, name); err != nil {
				e.log.Info("wg(8) can not list the device", "error", err)
			}
		})
	}
	return c.run(ctx, &running)
}

// Apply makes c the configuration of the data plane and returns when it is in
// force: when a peer is not in c any more, nothing of it can be opened, and its
// flows have ended. A nil c is no network: no peers, no relay. It blocks until
// Run is called.
//
// The error wraps config.ErrInvalid, and nothing has changed then; or it is
// ErrStopped; or it says what part could not be carried out, such as setting an
// address of the device. Peers and rules that must go are gone in that case,
// too. The configuration is kept and must not be written to any more.
func (e *Engine) Apply(c *config.Config) error {
	if c != nil {
		if err := c.Validate(); err != nil {
			return err
		}
	}
	return ask(e, func(ctl *control) error { return ctl.apply(c) })
}

// Status returns the state of the engine. It waits for the control goroutine.
func (e *Engine) Status() Status {
	if !e.started.Load() {
		return Status{}
	}
	return ask(e, (*control).status)
}

// HandleNetworkChange says that this machine's addresses or routes changed, or
// that it woke up. Paths are checked, relays are connected to again, and this
// machine's endpoints are found anew. It returns at once.
func (e *Engine) HandleNetworkChange() {
	select {
	case e.requests <- (*control).handleNetworkChange:
	case <-e.stopped:
	}
}

// Reach is where a device can be reached.
type Reach struct {
	// Endpoints are the addresses at which it may be, the likeliest first.
	Endpoints []netip.AddrPort
	// HomeRelay is the name of the relay at which it listens, empty for none.
	HomeRelay string
	// Moves counts how often the public address became another though this
	// machine's network did not change (nat.Report.Moves): connections that were
	// made before are dead.
	Moves uint64
}

// Reach returns the channel of where this device can be reached: what peers
// should be told. A value that nobody took is replaced by the next. The values
// are the receiver's.
func (e *Engine) Reach() <-chan Reach { return e.reach }

// ask has the control goroutine run f. Where the engine is stopped, the answer
// is the zero value, or ErrStopped where it is an error.
func ask[T any](e *Engine, f func(*control) T) T {
	answer := make(chan T, 1)
	var none T
	if err, ok := any(&none).(*error); ok {
		*err = ErrStopped
	}
	select {
	case e.requests <- func(c *control) { answer <- f(c) }:
	case <-e.stopped:
		return none
	}
	select {
	case a := <-answer:
		return a
	case <-e.stopped:
	}
	select {
	case a := <-answer:
		return a
	default:
		return none
	}
}

// handleDatagram takes a packet that is not WireGuard's from a socket.
func (e *Engine) handleDatagram(packet []byte, from netip.AddrPort) {
	e.post(datagram{from: from}, packet)
}

// handleNoPath notices that the tunnel with a peer has nowhere to send to: its
// agent is silent until it is told that the peer is used.
func (e *Engine) handleNoPath(key ident.NodeKey) {
	if f := e.host.forwarding.Load(); f != nil {
		if p := f.byKey[key]; p != nil {
			e.touch(p)
		}
	}
}

// publish replaces what nobody took yet.
func (c *control) publish() {
	select {
	case <-c.e.reach:
	default:
	}
	// The control goroutine is the only sender, so there is room now.
	c.e.reach <- Reach{Endpoints: c.nat.Report().Endpoints, HomeRelay: c.relays.machine.Home(), Moves: c.moves}
}
