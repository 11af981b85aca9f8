package router

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// routeTable is our table of routes. Numbers are free below 2^31 and above
	// those of rt_tables(5); this one is no other overlay's.
	routeTable = 5180
	// routeProtocol marks rules and routes as ours (rtm_protocol,
	// rtnetlink(7)).
	routeProtocol = 119
)

const (
	// The rules are asked in this order, before the machine's own (32766).
	// priorityOwn sends what carries the overlay by the machine's own routes,
	// and priorityOwnEnd stops it where there is none; priorityLocal lets the
	// machine's routes but its default route go before ours.
	priorityOwn = 5182 + iota
	priorityOwnEnd
	priorityLocal
	priorityRoutes
)

// ruleUnreachable is the action FR_ACT_UNREACHABLE of linux/fib_rules.h.
const ruleUnreachable = 7

var ruleFamilies = []int{netlink.FAMILY_V4, netlink.FAMILY_V6}

// wantedRules returns the rules for the settings.
func wantedRules(s *Settings) []netlink.Rule {
	if !s.Exit && len(s.Accept) == 0 {
		return nil
	}
	mask := ^uint32(0)
	rule := func(priority int, change func(*netlink.Rule)) netlink.Rule {
		r := netlink.NewRule()
		r.Priority, r.Protocol = priority, routeProtocol
		change(r)
		return *r
	}
	rules := []netlink.Rule{
		rule(priorityOwn, func(r *netlink.Rule) { r.Mark, r.Mask, r.Table = Mark, &mask, unix.RT_TABLE_MAIN }),
		rule(priorityOwnEnd, func(r *netlink.Rule) { r.Mark, r.Mask, r.Type = Mark, &mask, ruleUnreachable }),
	}
	if !s.Exit || s.KeepLAN {
		rules = append(rules, rule(priorityLocal, func(r *netlink.Rule) {
			r.Table, r.SuppressPrefixlen = unix.RT_TABLE_MAIN, 0
		}))
	}
	return append(rules, rule(priorityRoutes, func(r *netlink.Rule) { r.Table = routeTable }))
}

// configureRules makes our rules those of the settings. What is too much goes
// last, so that nothing leaks into the tunnel or around it in between.
func (r *kernelRouter) configureRules(s *Settings) error {
	var errs []error
	for _, family := range ruleFamilies {
		present, err := r.netlink.RuleList(family)
		if err != nil {
			if family == netlink.FAMILY_V6 {
				continue // a kernel without IPv6
			}
			errs = append(errs, fmt.Errorf("router: listing the routing rules: %w", err))
			continue
		}
		var have []int
		wanted := wantedRules(s)
		for _, p := range present {
			if p.Protocol == routeProtocol && p.Priority >= priorityOwn && p.Priority <= priorityRoutes {
				have = append(have, p.Priority)
			}
		}
		for _, w := range wanted {
			if slices.Contains(have, w.Priority) {
				continue
			}
			w.Family = family
			if err := r.netlink.RuleAdd(&w); err != nil && !errors.Is(err, unix.EEXIST) && !withoutFamily(family, err) {
				errs = append(errs, fmt.Errorf("router: adding routing rule %d: %w", w.Priority, err))
			}
		}
		slices.Sort(have)
		for _, priority := range slices.Backward(have) {
			if slices.ContainsFunc(wanted, func(w netlink.Rule) bool { return w.Priority == priority }) {
				continue
			}
			unwanted := netlink.NewRule()
			unwanted.Family, unwanted.Priority, unwanted.Protocol = family, priority, routeProtocol
			if err := r.netlink.RuleDel(unwanted); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("router: removing routing rule %d: %w", priority, err))
			}
		}
	}
	return errors.Join(errs...)
}

// withoutFamily reports whether the error means a kernel that was built or
// started without IPv6.
func withoutFamily(family int, err error) bool {
	return family == netlink.FAMILY_V6 && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EACCES))
}

// routeKey tells routes of our table apart.
type routeKey struct {
	prefix netip.Prefix
	kind   int // RTN_UNICAST or RTN_THROW
}

// configureRoutes makes the routes of our table those of the settings.
func (r *kernelRouter) configureRoutes(s *Settings) error {
	link, err := r.netlink.LinkByName(r.name)
	if err != nil {
		if len(s.Accept) == 0 && !s.Exit {
			return nil // the routes went with the interface
		}
		return fmt.Errorf("router: looking up %s: %w", r.name, err)
	}
	wanted := make(map[routeKey]bool)
	for _, p := range s.Accept {
		wanted[routeKey{p, unix.RTN_UNICAST}] = true
	}
	if s.Exit {
		for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			wanted[routeKey{netip.PrefixFrom(a, 0), unix.RTN_UNICAST}] = true
		}
	}
	if len(wanted) > 0 {
		for _, a := range s.Except {
			wanted[routeKey{netip.PrefixFrom(a, a.BitLen()), unix.RTN_THROW}] = true
		}
	}
	var errs []error
	for _, family := range ruleFamilies {
		present, err := r.netlink.RouteListFiltered(family, &netlink.Route{Table: routeTable}, netlink.RT_FILTER_TABLE)
		if err != nil {
			if family == netlink.FAMILY_V4 {
				errs = append(errs, fmt.Errorf("router: listing routes: %w", err))
			}
			continue
		}
		for _, route := range present {
			key := routeKey{destinationOf(&route, family), route.Type}
			if route.Type != unix.RTN_THROW && route.LinkIndex != link.Attrs().Index {
				key.kind = -1 // of an interface that is not ours any more
			}
			if wanted[key] {
				delete(wanted, key)
				continue
			}
			if err := r.netlink.RouteDel(&route); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("router: removing the route to %v: %w", key.prefix, err))
			}
		}
	}
	for key := range wanted {
		route := &netlink.Route{Table: routeTable, Dst: ipNetOf(key.prefix), Protocol: routeProtocol, Type: key.kind}
		family := netlink.FAMILY_V6
		if key.prefix.Addr().Is4() {
			family = netlink.FAMILY_V4
		}
		if key.kind == unix.RTN_UNICAST {
			route.LinkIndex = link.Attrs().Index
			if family == netlink.FAMILY_V4 {
				route.Scope = netlink.SCOPE_LINK
			}
		}
		if err := r.netlink.RouteReplace(route); err != nil && !withoutFamily(family, err) {
			errs = append(errs, fmt.Errorf("router: adding the route to %v: %w", key.prefix, err))
		}
	}
	return errors.Join(errs...)
}

// destinationOf returns where a route leads; a default route may say nothing.
func destinationOf(route *netlink.Route, family int) netip.Prefix {
	if route.Dst != nil {
		if addr, ok := netip.AddrFromSlice(route.Dst.IP); ok {
			ones, _ := route.Dst.Mask.Size()
			if family == netlink.FAMILY_V4 {
				addr = addr.Unmap()
			}
			return netip.PrefixFrom(addr, ones)
		}
	}
	if family == netlink.FAMILY_V4 {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

func ipNetOf(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
