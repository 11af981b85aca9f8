package portmap

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// defaultGateway returns the gateway of the default route of IPv4 that the kernel
// prefers in its main table; an exit node's stands in another.
func defaultGateway() (netip.Addr, error) { return gatewayOf(netlink.FAMILY_V4) }

// defaultGateway6 is for IPv6. Routers announce their link-local address, which
// has the interface's name as its zone then.
func defaultGateway6() (netip.Addr, error) { return gatewayOf(netlink.FAMILY_V6) }

func gatewayOf(family int) (netip.Addr, error) {
	routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%w: listing routes: %w", ErrNoGateway, err)
	}
	var best netip.Addr
	metric := 0
	for _, r := range routes {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones != 0 {
				continue
			}
		}
		if len(r.MultiPath) > 0 { // two routers of one link announce themselves
			r.Gw, r.LinkIndex = r.MultiPath[0].Gw, r.MultiPath[0].LinkIndex
		}
		via, ok := netip.AddrFromSlice(r.Gw)
		if !ok || best.IsValid() && r.Priority >= metric {
			continue
		}
		via = via.Unmap()
		if via.Is6() && via.IsLinkLocalUnicast() {
			link, err := net.InterfaceByIndex(r.LinkIndex)
			if err != nil {
				continue // it vanished meanwhile
			}
			via = via.WithZone(link.Name)
		}
		best, metric = via, r.Priority
	}
	if !best.IsValid() {
		return netip.Addr{}, fmt.Errorf("%w: there is no default route over one", ErrNoGateway)
	}
	return best, nil
}
