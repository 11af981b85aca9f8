package sock

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// listLinks asks the kernel for its interfaces, and by which of them default
// routes leave.
func listLinks() ([]linkInfo, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("sock: listing links: %w", err)
	}
	leaves := make(map[int]bool)
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("sock: listing routes: %w", err)
		}
		for _, r := range routes {
			if r.Dst != nil {
				if ones, _ := r.Dst.Mask.Size(); ones != 0 {
					continue
				}
			}
			leaves[r.LinkIndex] = true
		}
	}
	out := make([]linkInfo, 0, len(links))
	for _, l := range links {
		a := l.Attrs()
		out = append(out, linkInfo{name: a.Name, kind: l.Type(), index: a.Index, master: a.MasterIndex, wayOut: leaves[a.Index]})
	}
	return out, nil
}
