package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/warren-overlay/warren/client/clock"
	"github.com/warren-overlay/warren/client/health"
	"github.com/warren-overlay/warren/client/localapi"
	"github.com/warren-overlay/warren/client/osconf"
	"github.com/warren-overlay/warren/client/statefile"
	"github.com/warren-overlay/warren/coordinator/wire"
	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/portmap"
	"github.com/warren-overlay/warren/netstack/proxy"
	"github.com/warren-overlay/warren/netstack/relay/relayhttp"
	"github.com/warren-overlay/warren/netstack/router"
	"github.com/warren-overlay/warren/netstack/sock"
	"github.com/warren-overlay/warren/netstack/tun"
	"github.com/warren-overlay/warren/netstack/userstack"
)

// Userspace is the name of the device that is none: the node's packets end in
// the program's own TCP/IP stack.
const Userspace = "userspace"

// Off turns a listener off.
const Off = "off"

// Options say how a daemon runs.
type Options struct {
	// StateDir holds keys and state; it is made where it does not exist.
	StateDir string
	// Socket is the path of the local API.
	Socket string
	// Device is the name of the network interface, or Userspace.
	Device string
	// MTU is the device's in bytes. Zero means what this machine's links carry
	// (engine.Config.FollowLinks), in userspace, too. What the path to a peer does not
	// carry of it is found out for each.
	MTU int
	// Port is the UDP port that is asked for first; zero means any.
	Port uint16
	// PortMapping allows that the gateway is asked to forward the UDP port, where
	// the preferences want it.
	PortMapping bool
	// SOCKS5 and HTTPProxy are addresses to serve proxies on; empty or Off for
	// none.
	SOCKS5, HTTPProxy string
	// Metrics is the loopback address of /metrics and /healthz; empty or Off
	// for none. Where it is taken, the daemon runs without, and says so.
	Metrics string
	// Host and Hostname are as in Config.
	Host     wire.HostInfo
	Hostname string
	Logger   *slog.Logger
	// Ready is called once the local API is served; nil for nothing.
	Ready func()
}

// Daemon is a node with all that belongs to it.
type Daemon struct {
	options Options
	log     *slog.Logger
	state   *statefile.Directory
	device  tun.Device
	router  router.Router
	engine  *engine.Engine
	agent   *Agent
	monitor *osconf.Monitor
	api     *localapi.Server
	// dialer reaches the overlay from this process.
	dialer proxy.Dialer
	// listeners are the open ports beside the engine's and the API's.
	listeners []listener
}

// listener is an open TCP port and what serves it.
type listener struct {
	name string
	net.Listener
	run func(ctx context.Context, l net.Listener) error
}

// Open makes everything ready: the state directory is locked, the device open,
// the ports are taken. The error says what is in the way and what to do.
func Open(ctx context.Context, o Options) (*Daemon, error) {
	d := &Daemon{options: o, log: o.Logger}
	if err := d.open(ctx); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *Daemon) open(ctx context.Context) (err error) {
	o := d.options
	if d.state, err = statefile.Open(o.StateDir); err != nil {
		return err
	}
	// The one clock of all that judges how long something holds. What was
	// certain before the last stop is past.
	now := clock.New()
	if saved, err := d.state.LoadMembership(); err == nil || !saved.Time.IsZero() {
		now.Raise(saved.Time)
	}
	inherited := d.takeFlows()
	own := &ownPorts{}
	if err := d.openDevice(own); err != nil {
		return err
	}
	port := o.Port
	if port == 0 {
		// A file that cannot be read is told of by the agent.
		if last, err := d.state.LoadPreferences(); err == nil {
			port = last.Port
		}
	}
	if d.engine, err = engine.New(engine.Config{
		TUN: d.device, ManageDevice: true, FollowLinks: o.MTU == 0, Port: port, Logger: o.Logger.With("part", "engine"), Now: now.Now,
		Inherited: inherited, HandOver: d.handOver(), PortMapper: d.portMapper(),
		Router: d.router, Listen: d.openPort, ListenFurther: d.openFurther, DialRelay: relayhttp.Dialer{Client: &http.Client{Transport: newTransport()}}.Dial,
		LookupHost: func(ctx context.Context, host string) ([]netip.Addr, error) {
			return underlay().Resolver.LookupNetIP(ctx, "ip", host)
		},
	}); err != nil {
		return err
	}
	d.monitor = osconf.NewMonitor(d.isOverlay, o.Logger.With("part", "network"))
	d.monitor.Suspended = clock.Suspension()
	d.monitor.Control = router.Control // the way out is that of the overlay's own packets
	if d.agent, err = New(Config{
		State: d.state, DataPlane: d.engine, Decisions: d.engine, Coordinator: NewCoordinator(&http.Client{Transport: newTransport()}, rand.Reader),
		NetworkChanges: d.monitor.Changes(),
		Connected:      func() ([]netip.Prefix, error) { return sock.ConnectedPrefixes(nil) }, Host: o.Host, Hostname: o.Hostname,
		Rand: rand.Reader, Now: now.Now, TimeTold: now.Hold, Logger: o.Logger.With("part", "agent"),
	}); err != nil {
		return err
	}
	if err := d.listen(ctx, own); err != nil {
		return err
	}
	d.api, err = localapi.Listen(o.Socket, d.agent, d.agent, d.agent, o.Logger.With("part", "localapi"))
	return err
}

// openPort opens the UDP port past the overlay, and another where the wanted
// one is taken: peers learn the port with the endpoints, so none is worth
// failing for.
func (d *Daemon) openPort(port uint16) (sock.Conn, error) {
	conn, err := sock.Listen(sock.Config{Port: port})
	if port != 0 && errors.Is(err, sock.ErrPortInUse) {
		d.log.Warn("the UDP port is taken; using another", "port", port)
		conn, err = sock.Listen(sock.Config{})
	}
	if err != nil || d.options.Device == Userspace {
		return conn, err
	}
	if err := conn.SetMark(router.Mark); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		d.log.Warn("the port cannot be marked, so an exit node would take it in", "error", err)
	}
	return conn, nil
}

// openFurther opens another port past the overlay, to guess a peer's with.
func (d *Daemon) openFurther() (sock.Conn, error) {
	conn, err := engine.ListenFurther()
	if err == nil && d.options.Device != Userspace {
		_ = conn.SetMark(router.Mark) // openPort says why it cannot be
	}
	return conn, err
}

// openDevice opens the TUN device or the userspace stack.
func (d *Daemon) openDevice(own *ownPorts) error {
	if d.options.Device == Userspace {
		// The stack gets packets only once the agent is there.
		device := func(addr netip.Addr) uint64 { return deviceOf(d.agent.desired.Load(), addr) }
		stack, err := userstack.New(userstack.Config{Refuse: own.has, Device: device, MTU: d.options.MTU})
		if err != nil {
			return fmt.Errorf("agent: making the userspace stack: %w", err)
		}
		d.device, d.dialer, d.router = stack, stack, userspaceRouter{stack}
		return nil
	}
	device, err := tun.Open(tun.Config{Name: d.options.Device, MTU: d.options.MTU})
	if err != nil {
		return fmt.Errorf("agent: opening the network device %s: %w", d.options.Device, err)
	}
	d.device, d.dialer = device, &net.Dialer{}
	name, err := device.Name()
	if err == nil {
		d.router, err = router.Open(name)
	}
	if err != nil {
		d.log.Warn("no routing between networks", "error", err)
		d.router = router.Unavailable(err)
	}
	return nil
}

// portMapper returns what asks the gateway, past the overlay as the port's own
// packets; nil where nobody is to be asked.
func (d *Daemon) portMapper() engine.PortMapper {
	if !d.options.PortMapping {
		return nil
	}
	return portmap.New(portmap.Config{Control: router.Control, Rand: rand.Reader})
}

// listen opens the proxies and the metrics.
func (d *Daemon) listen(ctx context.Context, own *ownPorts) error {
	cfg := proxy.Config{Dialer: askingDialer{d.dialer, d.engine}, Resolver: resolver{d.agent}, Contains: d.reachable, Logger: d.log.With("part", "proxy")}
	for _, p := range []struct {
		name, address string
		make          func(proxy.Config) (*proxy.Server, error)
	}{{"SOCKS5 proxy", d.options.SOCKS5, proxy.NewSOCKS}, {"HTTP proxy", d.options.HTTPProxy, proxy.NewHTTP}} {
		if p.address == "" || p.address == Off {
			continue
		}
		server, err := p.make(cfg)
		if err != nil {
			return fmt.Errorf("agent: making the %s: %w", p.name, err)
		}
		l, err := proxy.Listen(ctx, p.address)
		if err != nil {
			return fmt.Errorf("agent: opening the %s: %w", p.name, err)
		}
		d.listeners = append(d.listeners, listener{p.name, l, server.Run})
	}
	if d.options.Metrics != "" && d.options.Metrics != Off {
		l, err := listenLoopback(ctx, d.options.Metrics)
		switch {
		case errors.Is(err, errNotLoopback):
			return err
		case err != nil:
			// A node that carries packets without being watched is better than
			// none.
			d.log.Warn("no metrics: the address cannot be listened on", "address", d.options.Metrics, "error", err)
			d.agent.startFact(health.Fact{
				Code: health.ListenerUnavailable, Severity: health.Info, Subject: "metrics", Since: time.Now(),
				Text: fmt.Sprintf("Metrics are not served: %v. Choose another address with --metrics-listen, or off.", err),
			})
		default:
			d.listeners = append(d.listeners, listener{"metrics", l, d.serveMetrics})
		}
	}
	for _, l := range d.listeners {
		own.add(l.Addr())
		d.log.Info("listening", "what", l.name, "address", l.Addr().String())
	}
	return nil
}

// Agent returns the node itself.
func (d *Daemon) Agent() *Agent { return d.agent }

// Run is the daemon until ctx ends or one of its parts fails, whose error it
// returns. It closes everything.
func (d *Daemon) Run(ctx context.Context) error {
	defer d.close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var running sync.WaitGroup
	part := func(name string, run func(context.Context) error) {
		running.Go(func() {
			err := run(ctx)
			if err == nil && ctx.Err() == nil {
				err = errors.New("it ended")
			}
			if err != nil {
				cancel(fmt.Errorf("agent: %s: %w", name, err))
			}
		})
	}
	part("data plane", d.engine.Run)
	part("node", d.agent.Run)
	part("network monitor", d.monitor.Run)
	part("local API", d.api.Run)
	for _, l := range d.listeners {
		part(l.name, func(ctx context.Context) error { return l.run(ctx, l.Listener) })
	}
	if d.options.Ready != nil {
		d.options.Ready()
	}
	running.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// close gives back what Open took. What a part's Run has closed already does
// not mind.
func (d *Daemon) close() {
	if d.api != nil {
		d.api.Close()
	}
	for _, l := range d.listeners {
		l.Close()
	}
	if d.device != nil {
		d.device.Close()
	}
	if d.router != nil {
		if err := d.router.Close(); err != nil {
			d.log.Warn("ending routing", "error", err)
		}
	}
	if d.state != nil {
		d.state.Close()
	}
}

// isOverlay reports whether addr is one of the node's own overlay addresses,
// whose coming and going is no change of the machine's network.
func (d *Daemon) isOverlay(addr netip.Addr) bool {
	v := d.agent.currentView()
	return v != nil && v.Self != nil && slices.Contains(v.Self.Identity().Addresses, addr)
}

// reachable reports whether the proxies may carry traffic to addr: it is, or
// lies behind, a device that this one may see.
func (d *Daemon) reachable(addr netip.Addr) bool {
	v := d.agent.currentView()
	if v == nil {
		return false
	}
	if find(v, addr.String()) != nil {
		return true
	}
	return d.agent.routed(addr)
}

// resolver answers the proxies.
type resolver struct{ agent *Agent }

func (r resolver) Resolve(ctx context.Context, name string) ([]netip.Addr, error) {
	addresses, err := r.agent.Resolve(ctx, name)
	var e *localapi.Error
	if errors.As(err, &e) && e.Code == localapi.CodeNotFound {
		return nil, proxy.ErrUnknownName
	}
	return addresses, err
}

// ownPorts are the node's own ports on the host, which trust whoever connects
// from the host and must not be reached from the overlay.
type ownPorts struct {
	mu    sync.Mutex // protects ports
	ports []uint16
}

func (o *ownPorts) add(a net.Addr) {
	if ap, err := netip.ParseAddrPort(a.String()); err == nil {
		o.mu.Lock()
		o.ports = append(o.ports, ap.Port())
		o.mu.Unlock()
	}
}

func (o *ownPorts) has(port uint16) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Contains(o.ports, port)
}
