package engine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/netstack/relay/relayhttp"
	"github.com/warren-overlay/warren/netstack/router"
	"github.com/warren-overlay/warren/netstack/sock"
	"github.com/warren-overlay/warren/netstack/tun"
)

// Config is what an Engine needs from its surroundings.
type Config struct {
	// TUN is where the host's packets come from and go to. The engine owns it
	// and closes it when Run returns.
	TUN tun.Device
	// ManageDevice lets the engine configure TUN: addresses, routes, MTU. It is
	// also what makes the device known to wg(8).
	ManageDevice bool
	// MTU is the MTU that is configured; zero leaves the device's.
	MTU int
	// FollowLinks makes the device's MTU, where MTU is zero, what the widest of
	// this machine's links carries, but not less than tun.DefaultMTU nor more than
	// jumbo frames of 9000 bytes allow. What is in between of each peer is found
	// out, so that a wide link costs those behind a narrow one nothing.
	FollowLinks bool
	// Listen opens the UDP port; zero lets the system choose. Nil means
	// sock.Listen on all addresses, and any port where the wanted one is taken:
	// peers learn the port with the endpoints, so none is worth failing for.
	Listen func(port uint16) (sock.Conn, error)
	// ListenFurther opens another UDP port, any that is free, as sockets to guess a
	// peer's port with: 256 at a time, of which one is kept. Nil means Listen of
	// port 0, or the function ListenFurther where Listen is nil, too.
	ListenFurther func() (sock.Conn, error)
	// Port is the UDP port that is asked for first; zero means any.
	Port uint16
	// DialRelay connects to the relay with the URL. Nil means relayhttp.Dial.
	DialRelay func(ctx context.Context, url string) (relayhttp.Conn, error)
	// LocalAddresses returns the addresses of this machine under which peers
	// may reach it. Nil means sock.LocalAddrs, without the overlay's own. It
	// may return loopback addresses for nodes that share one machine; only then
	// are peers probed there.
	LocalAddresses func() ([]netip.Addr, error)
	// Router has the kernel route between the overlay and this machine's
	// networks. Nil leaves that to TUN, which is then given all routes. The
	// engine owns it and closes it when Run returns.
	Router router.Router
	// ConnectedPrefixes returns the networks that this machine is connected
	// to, its own addresses in them included: what lies in them is never
	// reached through a route, and never comes from one. Nil means
	// sock.ConnectedPrefixes, or none where LocalAddresses is given.
	ConnectedPrefixes func() ([]netip.Prefix, error)
	// PortMapper asks the gateway to forward the UDP port where the
	// configuration wants it; nil asks nobody.
	PortMapper PortMapper
	// LookupHost finds the addresses of a STUN server's name. Nil means the
	// system's resolver.
	LookupHost func(ctx context.Context, host string) ([]netip.Addr, error)
	// Inherited are the flows that the last run has handed over, nil for none:
	// what of them is young enough, this device's own, and admitted by the
	// rules when its peer comes, goes on. The engine owns it.
	Inherited *filter.Snapshot
	// HandOver, if not nil, is called when the context of Run ends while there
	// are flows, so that the next run can be given them. Neither side of a flow
	// is told then that it ended. The snapshot is the callee's. Nil is for hosts
	// whose connections end with the program.
	HandOver func(*filter.Snapshot)
	// Logger must not be nil.
	Logger *slog.Logger
	// Now is the clock; nil means time.Now. It must agree with package time's
	// timers, and not go back when the system's clock does: the life of
	// certificates and rules is measured by it.
	Now func() time.Time
	// Rand is the random source, safe for concurrent use; nil means crypto/rand.
	Rand io.Reader
	// Retain is for tests in a testing/synctest bubble; see package wg.
	Retain func(object any)
}

// ErrConfig is wrapped by errors about a Config that can not be used.
var ErrConfig = errors.New("engine: unusable configuration")

// withDefaults returns the configuration with its defaults filled in.
func (c Config) withDefaults() (Config, error) {
	if c.TUN == nil || c.Logger == nil {
		return c, fmt.Errorf("%w: a TUN device and a logger are needed", ErrConfig)
	}
	if listen := c.Listen; c.ListenFurther == nil && listen != nil {
		c.ListenFurther = func() (sock.Conn, error) { return listen(0) }
	} else if c.ListenFurther == nil {
		c.ListenFurther = ListenFurther
	}
	if c.Listen == nil {
		log := c.Logger
		c.Listen = func(port uint16) (sock.Conn, error) {
			conn, err := sock.Listen(sock.Config{Port: port})
			if port != 0 && errors.Is(err, sock.ErrPortInUse) {
				log.Warn("the UDP port is taken; using another", "port", port)
				return sock.Listen(sock.Config{})
			}
			return conn, err
		}
	}
	if c.DialRelay == nil {
		c.DialRelay = relayhttp.Dial
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	return c, nil
}
