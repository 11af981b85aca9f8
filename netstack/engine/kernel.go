package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/netstack/config"
	"github.com/warren-overlay/warren/netstack/router"
	"github.com/warren-overlay/warren/netstack/sock"
	"github.com/warren-overlay/warren/netstack/tun"
)

// configureDevice sets addresses and routes of the TUN device, and what the
// kernel is to route besides.
func (c *control) configureDevice(cfg *config.Config) error {
	if !c.e.cfg.ManageDevice {
		return nil
	}
	settings := tun.Settings{MTU: c.e.cfg.MTU}
	if c.linkMTU != c.givenMTU {
		settings.MTU = c.linkMTU
	}
	var routing router.Settings
	if cfg != nil {
		routing = router.Settings{
			Own: slices.Clone(cfg.Self.Identity().Addresses), Overlay: cfg.Overlay, Forward: cfg.Forward,
			Exit: cfg.Exit != config.ExitDirect, KeepLAN: cfg.Exit == config.ExitTunnelButLAN, Except: c.except,
		}
		for _, a := range cfg.Self.Identity().Addresses {
			settings.Addresses = append(settings.Addresses, netip.PrefixFrom(a, a.BitLen()))
		}
		for _, p := range c.sorted() {
			for _, prefix := range p.allowed {
				switch own := prefix.IsSingleIP() && p.member.Identity().OwnsAddress(prefix.Addr()); {
				case own || c.e.cfg.Router == nil:
					settings.Routes = append(settings.Routes, prefix)
				case prefix.Bits() > 0:
					routing.Accept = append(routing.Accept, prefix)
				}
			}
		}
		slices.SortFunc(routing.Accept, netip.Prefix.Compare)
	}
	// Nothing is forwarded while that is being changed; what was refused is
	// not said to be served.
	c.e.host.serving.Store(false)
	if cfg == nil {
		// The addresses of a device that is no member go last.
		return errors.Join(c.configureRouter(routing), c.configureTUN(settings))
	}
	err := errors.Join(c.configureTUN(settings), c.configureRouter(routing))
	c.e.host.serving.Store(err == nil && slices.Equal(cfg.Forward, cfg.Self.Identity().Routes))
	return err
}

func (c *control) configureTUN(settings tun.Settings) error {
	if err := c.e.cfg.TUN.Configure(settings); err != nil {
		return fmt.Errorf("engine: configuring the TUN device: %w", err)
	}
	c.givenMTU = c.linkMTU
	c.device.NotifyMTU()
	return nil
}

func (c *control) configureRouter(settings router.Settings) error {
	if c.e.cfg.Router == nil {
		return nil
	}
	err := c.e.cfg.Router.Configure(settings)
	if errors.Is(err, router.ErrGuard) {
		if !c.unguarded {
			c.e.log.Warn("the overlay's interface is not fully guarded: neighbours could send packets in the name of peers, or other programs have this machine forward into the overlay", "error", err)
		}
		c.unguarded = true
		return nil
	}
	if err != nil {
		return fmt.Errorf("engine: setting up routing: %w", err)
	}
	c.unguarded = false
	return nil
}

// overlay returns the network's own ranges.
func (c *control) overlay() []netip.Prefix {
	if c.cfg == nil {
		return nil
	}
	return c.cfg.Overlay
}

// protected returns what no packet may reach or come from through a route: this
// machine's own addresses, the networks that it is connected to and does not
// serve, and what carries the overlay.
func (c *control) protected() []netip.Prefix {
	var out []netip.Prefix
	for _, a := range c.local {
		out = append(out, netip.PrefixFrom(a.Addr(), a.Addr().BitLen()))
	}
	for _, a := range c.except {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	var served []netip.Prefix
	if c.cfg != nil {
		served = slices.DeleteFunc(slices.Clone(c.cfg.Forward), func(p netip.Prefix) bool { return p.Bits() == 0 })
	}
	for _, p := range c.connected {
		out = append(out, netip.PrefixFrom(p.Addr(), p.Addr().BitLen()))
		if !slices.ContainsFunc(served, p.Overlaps) {
			out = append(out, p.Masked())
		}
	}
	return out
}

// sameFilterDevice reports whether the filters of both configurations share
// what all peers share.
func sameFilterDevice(a, b *config.Config) bool {
	return a.Lead == b.Lead && slices.Equal(a.Overlay, b.Overlay) && slices.Equal(a.Forward, b.Forward) && sameMember(a.Self, b.Self)
}

func sameMember(a, b *authority.Peer) bool {
	return slices.Equal(a.Identity().Addresses, b.Identity().Addresses)
}

// refreshConnected lists the networks that this machine is connected to.
func (c *control) refreshConnected(now time.Time) {
	list := c.e.cfg.ConnectedPrefixes
	switch {
	case list != nil:
	case c.e.cfg.LocalAddresses != nil: // this machine's networks mean nothing
		return
	default:
		own := make([]netip.Prefix, 0, 2)
		if c.cfg != nil {
			for _, a := range c.cfg.Self.Identity().Addresses {
				own = append(own, netip.PrefixFrom(a, a.BitLen()))
			}
		}
		list = func() ([]netip.Prefix, error) { return sock.ConnectedPrefixes(own) }
	}
	connected, err := list()
	if err != nil {
		c.e.log.Warn("listing connected networks", "error", err)
		return
	}
	if !slices.Equal(connected, c.connected) {
		c.connected = connected
		c.setFilterDevice(now)
	}
}

// setUnderlay takes the addresses of the coordinator and the relays.
func (c *control) setUnderlay(hosts []netip.AddrPort) {
	var except []netip.Addr
	for _, h := range hosts {
		if a := h.Addr().Unmap().WithZone(""); !a.IsLoopback() {
			except = append(except, a)
		}
	}
	slices.SortFunc(except, netip.Addr.Compare)
	except = slices.Compact(except)
	if slices.Equal(except, c.except) {
		return
	}
	c.except = except
	c.setFilterDevice(c.now())
	if c.cfg == nil {
		return
	}
	if err := c.configureDevice(c.cfg); err != nil {
		c.e.log.Warn("configuring the TUN device", "error", err)
	}
}
