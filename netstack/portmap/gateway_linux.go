package portmap

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// defaultGateway returns the gateway of the default route that the kernel
// prefers in its main table; an exit node's stands in another.
func defaultGateway() (netip.Addr, error) {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
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
		via, ok := netip.AddrFromSlice(r.Gw)
		if ok && (!best.IsValid() || r.Priority < metric) {
			best, metric = via.Unmap(), r.Priority
		}
	}
	if !best.IsValid() {
		return netip.Addr{}, fmt.Errorf("%w: there is no default route over one", ErrNoGateway)
	}
	return best, nil
}
