package agent

import (
	"net/netip"

	"github.com/warren-overlay/warren/netstack/config"
)

// deviceOf returns the number of the device whose address it is or, where there
// is none, of that with the most specific approved route to it; zero for nobody.
// Nobody opens connections from behind a default route, so these do not count.
func deviceOf(c *config.Config, addr netip.Addr) uint64 {
	if c == nil {
		return 0
	}
	var router uint64
	longest := 0
	for i := range c.Peers {
		member := c.Peers[i].Member
		id := member.Identity()
		if id.OwnsAddress(addr) {
			return uint64(member.Node())
		}
		for _, p := range id.Routes {
			if p.Bits() > longest && p.Contains(addr) {
				router, longest = uint64(member.Node()), p.Bits()
			}
		}
	}
	return router
}
