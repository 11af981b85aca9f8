package osconf

import (
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// defaultRoutes writes down the default routes of the kernel's main table: two
// networks may well give a machine the same address on the same interface, and
// are told apart by their gateways.
func defaultRoutes() []string {
	var all []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			continue // the addresses say enough
		}
		for _, r := range routes {
			if r.Dst != nil {
				if ones, _ := r.Dst.Mask.Size(); ones != 0 {
					continue
				}
			}
			all = append(all, fmt.Sprintf("via %v#%d/%d", r.Gw, r.LinkIndex, r.Priority))
		}
	}
	slices.Sort(all)
	return all
}
