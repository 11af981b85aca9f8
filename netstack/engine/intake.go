package engine

import (
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/disco"
	"github.com/warren-overlay/warren/netstack/stun"
)

// Everybody can send to the UDP port, and what is not WireGuard's is for the
// control goroutine. The data path looks at each such datagram before it is
// queued: one that can be nobody's is dropped there, and what may be a peer's
// waits in that peer's share of a queue. A flood of garbage thus takes no room at
// all, and one of copies of a peer's probes takes that peer's own for addresses
// where it was not known to be, and nothing of what comes over the relay or from
// where its path goes.

const (
	// maxDatagrams bounds the probes and STUN answers that wait for the control
	// goroutine: what 60 peers send at once, and 100 KB.
	maxDatagrams = 256
	// maxStrays bounds those from where no path goes to. They wait in a queue of
	// their own, which the control goroutine takes from in turn with the other.
	maxStrays = 128
	// peerShare bounds the probes of one peer in one lane: two to each of its
	// addresses at once.
	peerShare = 16
	// stunShare bounds the answers of STUN servers: of all servers that are asked
	// (nat.MaxServers), for all tries of a round.
	stunShare = 32
)

// lane says how far a probe may be what it seems to be.
type lane int

const (
	// laneRelay: the relay says that it is the peer's.
	laneRelay lane = iota
	// lanePath: it came from where the peer's direct path goes to.
	lanePath
	// laneStray: it came from anywhere else.
	laneStray
)

// lanes is the number of lanes.
const lanes = int(laneStray) + 1

// datagram is a packet of the control protocols of the data plane.
type datagram struct {
	from netip.AddrPort
	// relayed is the peer's key where the packet came over the relay.
	relayed ident.NodeKey
	relay   string // which one
	// socket is the number of the peer's further socket that it came to, 0 for
	// the device's own port.
	socket uint32
	data   *[]byte
	// peer is whose probe it seems to be, nil for a STUN answer.
	peer *peer
	// share counts what waits with this datagram.
	share *atomic.Int32
}

// intake is what the data path needs to sort datagrams, and what it counted.
type intake struct {
	datagrams, strays chan datagram

	// servers are the STUN servers that are asked.
	servers atomic.Pointer[[]netip.AddrPort]
	stun    atomic.Int32 // answers that wait

	overflow atomic.Uint64 // a queue was full
	overused atomic.Uint64 // a peer's share was, or that of the STUN servers
	unknown  atomic.Uint64 // probes of nobody
	answers  atomic.Uint64 // STUN messages of nobody who was asked
	others   atomic.Uint64 // of no protocol that is spoken here
}

func newIntake() *intake {
	return &intake{datagrams: make(chan datagram, maxDatagrams), strays: make(chan datagram, maxStrays)}
}

// post hands a packet to the control goroutine, or drops it.
func (e *Engine) post(d datagram, packet []byte) {
	in := e.intake
	queue, limit := in.datagrams, int32(peerShare)
	switch {
	case disco.Is(packet):
		which := e.owner(&d, packet)
		if d.peer == nil {
			in.unknown.Add(1)
			return
		}
		d.share = &d.peer.waits[which]
		if which == laneStray {
			queue = in.strays
		}
	case stun.Is(packet) && d.relayed.IsZero() && d.socket == 0 && len(packet) <= maxDatagram:
		servers := in.servers.Load()
		if servers == nil || !slices.Contains(*servers, netip.AddrPortFrom(d.from.Addr().Unmap(), d.from.Port())) {
			in.answers.Add(1)
			return
		}
		d.share, limit = &in.stun, stunShare
	default:
		in.others.Add(1)
		return
	}
	if d.share.Add(1) > limit {
		d.share.Add(-1)
		in.overused.Add(1)
		return
	}
	d.data, _ = e.buffers.Get().(*[]byte)
	*d.data = append((*d.data)[:0], packet...)
	select {
	case queue <- d:
	default:
		d.share.Add(-1)
		e.buffers.Put(d.data)
		in.overflow.Add(1)
	}
}

// owner sets whose probe d is, nil for nobody's, and returns its lane. The tag
// only says whose it may be: it can be copied.
func (e *Engine) owner(d *datagram, packet []byte) lane {
	f := e.host.forwarding.Load()
	tag, ok := disco.PeekTag(packet)
	if f == nil || !ok {
		return laneStray
	}
	p := f.byTag[tag]
	switch {
	case p == nil:
		return laneStray
	case !d.relayed.IsZero():
		if d.relayed == p.key {
			d.peer = p
		}
		return laneRelay
	}
	d.peer = p
	if direct := p.direct.Load(); direct != nil && *direct == netip.AddrPortFrom(d.from.Addr().Unmap(), d.from.Port()) {
		return lanePath
	}
	return laneStray
}

// taken says that the control goroutine took d from its queue.
func (d *datagram) taken() { d.share.Add(-1) }
