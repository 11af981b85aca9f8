package wg

import (
	"net/netip"
	"sync/atomic"
	"time"
)

// toldInterval is the least distance of two reports that a peer's packets come
// from one address which is not its path's.
const toldInterval = 100 * time.Millisecond

// elsewhere is the endpoint of a packet that came from another address than the
// one that packets to the peer go to. The device keeps it as the peer's endpoint
// only where the packet was authentic and no repetition, and hands it to the
// bind with the next packet that it sends: that is how the bind learns that the
// peer itself was heard there. Packets go by the peer's path all the same.
type elsewhere struct {
	*Peer
	from netip.AddrPort
	told atomic.Int64 // when it was last reported, in nanoseconds since 1970
}

// endpointFrom returns the endpoint for a packet of p's from an address.
func (p *Peer) endpointFrom(from netip.AddrPort) *elsewhere {
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	if e := p.strayed.Load(); e != nil && e.from == from {
		return e
	}
	e := &elsewhere{Peer: p, from: from}
	p.strayed.Store(e)
	return e
}

// heardElsewhere reports that authentic packets of the peer come from e, unless
// its path goes there by now.
func (b *bind) heardElsewhere(e *elsewhere) {
	if b.elsewhere == nil || e.path.Load().Direct == e.from {
		return
	}
	now, told := time.Now().UnixNano(), e.told.Load()
	if now-told >= int64(toldInterval) && e.told.CompareAndSwap(told, now) {
		b.elsewhere(e.key, e.from)
	}
}
