package nat

import (
	"net/netip"
	"slices"
	"time"
)

// MaxForwarded bounds the addresses outside that are said to lead here: seven that
// a user names by hand, one mapping, and the pinholes of a gateway that translates
// addresses of IPv6.
const MaxForwarded = 8 + MaxPinholes

// SetForwarded says which addresses outside lead to the socket whatever STUN
// servers see: those of a Mapper and a Pinholes, and those that the user named. The
// slice is not kept; those over MaxForwarded are left out.
func (d *Discoverer) SetForwarded(addrs []netip.AddrPort, now time.Time) {
	d.advance(now)
	forwarded := slices.Clone(addrs[:min(len(addrs), MaxForwarded)])
	if !slices.Equal(forwarded, d.forwarded) {
		d.forwarded = forwarded
		d.update()
	}
	d.flush()
}
