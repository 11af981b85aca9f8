package path

import (
	"net/netip"
	"time"
)

// movedInterval spaces what is done about the peer's packets from an address
// that is not proved. With a check's first step it bounds the time until packets
// go to where the peer's NAT has moved it to 0.6 s and a round trip, and what
// somebody on the way who sends them on from his own address makes this node
// send to three probes a second.
const movedInterval = 300 * time.Millisecond

// strayed takes notice of authentic packets that come from another address than
// the primary's.
func (a *Agent) strayed(from netip.AddrPort) {
	c := a.find(from)
	if c != nil && a.alive(c) {
		// Both ways work: the peer has chosen otherwise.
		if a.primary.Kind == Direct {
			a.checkIfQuiet(a.find(a.primary.Addr))
		}
		return
	}
	if !a.usable(from) {
		return
	}
	c = a.observe(from)
	if a.now.Before(c.barred) || !c.wanted.IsZero() && a.now.Sub(c.wanted) < movedInterval {
		return
	}
	a.want(c)
	if a.primary.Kind == Direct {
		a.check()
		a.moved = from
	}
}

// succeeded reports whether the address that the peer's packets come from has
// answered since the check of the primary c began, which had its time to answer
// and has not: the check need not go on.
func (a *Agent) succeeded(c *candidate) bool {
	s := a.find(a.moved)
	return a.checks > 0 && s != nil && s != c && a.alive(s) && !s.proved.Before(a.checking) &&
		a.now.Sub(a.checking) >= max(checkSpacing, 2*c.rtt())
}
