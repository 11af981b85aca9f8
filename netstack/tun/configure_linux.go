package tun

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// routeProtocol marks the routes that are ours (rtm_protocol, rtnetlink(7)), so
// that those an administrator adds to the device are left alone. Any number
// that no routing daemon has registered would do.
const routeProtocol = 119

// Configure implements Device. Compared is with what the kernel has, not with
// what was set before, so that what somebody removed comes back.
func (d *osDevice) Configure(settings Settings) error {
	if err := settings.Validate(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closing.Load() {
		return os.ErrClosed
	}
	link, err := d.netlink.LinkByIndex(d.index)
	if err != nil {
		return fmt.Errorf("tun: looking up %s: %w", d.name, err)
	}
	var errs []error
	if settings.MTU != 0 && settings.MTU != link.Attrs().MTU {
		if err := d.netlink.LinkSetMTU(link, settings.MTU); err != nil {
			errs = append(errs, fmt.Errorf("tun: setting the MTU of %s to %d: %w", d.name, settings.MTU, err))
		} else {
			d.mtu.Store(int64(settings.MTU))
		}
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		// Without this the kernel invents a link-local address and announces
		// it into the overlay. Best effort: a host without IPv6 refuses it.
		_ = d.netlink.LinkSetIP6AddrGenMode(link, nl.IN6_ADDR_GEN_MODE_NONE)
		if err := d.netlink.LinkSetUp(link); err != nil {
			return errors.Join(append(errs, fmt.Errorf("tun: bringing %s up: %w", d.name, err))...)
		}
	}
	errs = append(errs, d.configureAddresses(link, settings.Addresses), d.configureRoutes(settings.Routes))
	return errors.Join(errs...)
}

func (d *osDevice) configureAddresses(link netlink.Link, addresses []netip.Prefix) error {
	present, err := d.netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("tun: listing the addresses of %s: %w", d.name, err)
	}
	var errs []error
	have := make(map[netip.Prefix]bool, len(present))
	for _, a := range present {
		p, ok := prefixOf(a.IPNet)
		if !ok || p.Addr().IsLinkLocalUnicast() {
			continue
		}
		have[p] = true
		if slices.Contains(addresses, p) {
			continue
		}
		if err := d.netlink.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("tun: removing address %s from %s: %w", p, d.name, err))
		}
	}
	for _, p := range addresses {
		if have[p] {
			continue
		}
		addr := &netlink.Addr{IPNet: ipNetOf(p)}
		if p.Addr().Is6() {
			// Nobody else can hold the address, so do not wait for duplicate
			// detection.
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := d.netlink.AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
			errs = append(errs, fmt.Errorf("tun: adding address %s to %s: %w", p, d.name, err))
		}
	}
	return errors.Join(errs...)
}

func (d *osDevice) configureRoutes(routes []netip.Prefix) error {
	wanted := make(map[netip.Prefix]bool, len(routes))
	for _, p := range routes {
		wanted[p.Masked()] = true
	}
	filter := &netlink.Route{LinkIndex: d.index, Protocol: routeProtocol}
	var errs []error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		present, err := d.netlink.RouteListFiltered(family, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			errs = append(errs, fmt.Errorf("tun: listing the routes of %s: %w", d.name, err))
			continue
		}
		for _, route := range present {
			p, ok := routePrefix(route, family)
			if ok && wanted[p] {
				delete(wanted, p)
				continue
			}
			if err := d.netlink.RouteDel(&route); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("tun: removing route %s from %s: %w", p, d.name, err))
			}
		}
	}
	for _, p := range routes {
		p = p.Masked()
		if !wanted[p] {
			continue
		}
		delete(wanted, p)
		errs = append(errs, d.addRoute(p))
	}
	return errors.Join(errs...)
}

// addRoute never replaces a route of another interface.
func (d *osDevice) addRoute(p netip.Prefix) error {
	route := &netlink.Route{LinkIndex: d.index, Dst: ipNetOf(p), Protocol: routeProtocol}
	if p.Addr().Is4() {
		route.Scope = netlink.SCOPE_LINK
	}
	err := d.netlink.RouteAdd(route)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("tun: route %s to %s: another interface already has this route: %w", p, d.name, err)
	}
	return fmt.Errorf("tun: adding route %s to %s: %w", p, d.name, err)
}

// routePrefix returns the destination of a route; a default route may have
// none.
func routePrefix(route netlink.Route, family int) (netip.Prefix, bool) {
	if route.Dst != nil {
		return prefixOf(route.Dst)
	}
	if family == netlink.FAMILY_V4 {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0), true
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0), true
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	if bits == 32 {
		addr = addr.Unmap()
	}
	return netip.PrefixFrom(addr, ones), true
}

func ipNetOf(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
