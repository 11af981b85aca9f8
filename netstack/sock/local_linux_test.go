package sock_test

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/warren-overlay/warren/netstack/sock"
	"github.com/warren-overlay/warren/tests/lab"
)

// TestGuestBridges asks a real kernel: a bridge for containers is left out
// whatever it is called, and one that leads out is not. So is its MTU.
func TestGuestBridges(t *testing.T) {
	h := lab.New(t).Host("host")
	h.Bridge("containers")
	h.Address("containers", "172.17.0.1/16")
	h.SetMTU("containers", 9000)
	h.Bridge("br-uplink")
	h.Address("br-uplink", "172.18.0.1/16")
	h.Route("0.0.0.0/0", "172.18.0.2")
	for _, c := range []struct {
		all  bool
		want []netip.Addr
		mtu  int
	}{
		{false, []netip.Addr{h.V4, netip.MustParseAddr("172.18.0.1"), h.V6}, 1500},
		{true, []netip.Addr{h.V4, netip.MustParseAddr("172.17.0.1"), netip.MustParseAddr("172.18.0.1"), h.V6}, 9000},
	} {
		h.Do(func() error {
			got, err := sock.LocalAddrs(sock.LocalConfig{Containers: c.all})
			if !slices.Equal(got, c.want) {
				t.Errorf("containers %v: %v, want %v", c.all, got, c.want)
			}
			mtu, mtuErr := sock.LinkMTU(sock.LocalConfig{Containers: c.all})
			if mtu != c.mtu {
				t.Errorf("containers %v: an MTU of %d, want %d", c.all, mtu, c.mtu)
			}
			return errors.Join(err, mtuErr)
		})
	}
}
