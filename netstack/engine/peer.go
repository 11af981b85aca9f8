package engine

import (
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/disco"
	"github.com/warren-overlay/warren/netstack/path"
	"github.com/warren-overlay/warren/netstack/route"
	"github.com/warren-overlay/warren/netstack/wg"
)

// peer is one peer of the configuration.
type peer struct {
	key  ident.NodeKey
	node ident.NodeID

	// touched is set by the data path when it passed a packet of the peer's, and
	// cleared by the control goroutine after it noticed.
	touched atomic.Bool
	// noted is the same for events of the filter.
	noted atomic.Bool
	// arrived is by which path a packet of the peer's came that the filter
	// passed, set by the data path while it is nil.
	arrived atomic.Pointer[arrival]
	// direct is where the direct path goes to, the zero value for none, and waits
	// are the probes that wait for the control goroutine, by lane (intake).
	direct atomic.Pointer[netip.AddrPort]
	waits  [lanes]atomic.Int32
	// mtu is the length of the longest packet that the path to it carries, 0 for
	// no limit, and large that the data path passed packets that need much of it.
	mtu   atomic.Int32
	large atomic.Bool

	// relayedBy is the relay by which a packet of the peer's came last, as far as
	// that was told, and relayedAt when it was, in nanoseconds since 1970.
	relayedBy atomic.Pointer[relayConn]
	relayedAt atomic.Int64

	// waiting is how many of the data path wait for mu. A mutex lets whoever
	// holds it take it again before those that wait; the control goroutine,
	// which takes it many times in a row, lets them go first (yield).
	waiting atomic.Int32

	// span is how packets to it go since when, set by the control goroutine.
	span atomic.Pointer[pathSpan]

	// sealing is tunnel, for the data path, relayed whether packets to the peer go
	// over a relay, and roundTrip how long the way to it takes to and fro, in
	// nanoseconds, 0 where that is not known.
	sealing   atomic.Pointer[wg.Peer]
	relayed   atomic.Bool
	roundTrip atomic.Int64

	mu       sync.Mutex // protects filter, queues, name, answered, told and lengths
	filter   *filter.Peer
	queues   queues
	name     string
	answered [2]time.Time // when it was last answered in band: an ask, a relay ask
	told     time.Time    // up to when answers about long packets are used up
	lengths  lengths      // of packets that left for it

	// What follows belongs to the control goroutine. Before the peer is in a
	// table of the data path it is in none.
	member    *authority.Peer
	endpoints []netip.AddrPort
	allowed   []netip.Prefix
	tunnel    *wg.Peer
	agent     *path.Agent
	both      bool // as the agent's last event said
	sealer    *disco.Sealer
	opener    *disco.Opener
	relay     *relayConn // that packets to the peer go over; nil for none
	// sockets are further ones that its agent sends by, by number.
	sockets   map[uint32]*wg.Socket
	retreated bool // whether its session was ended to take a prefix away
	// renews says that a handshake is wanted, and unanswered what the tunnel's counter
	// was then.
	renews     bool
	unanswered int
	heir       bool // whether it has just got flows of the last run

	rearm    time.Time // when touched is cleared; zero for not
	sweep    time.Time // when the filter wants to be called; zero for not
	collect  time.Time // when the filter's events are taken; zero for not
	deadline time.Time // earliest of all, as it stands in the heap
	place    int       // in the heap; -1 for not
}

// arrival says that a packet of a peer came by a path, and when.
type arrival struct {
	by path.Path
	at time.Time
}

// arrives notes by which path a packet came. The last one is not kept: what
// came first since the control goroutine looked is as good.
func (d *hostDevice) arrives(p *peer, buf []byte, offset int, now time.Time) {
	if p.arrived.Load() != nil {
		return
	}
	device := d.device.Load()
	if device == nil {
		return
	}
	from, ok := device.Source(buf, offset)
	if !ok {
		return
	}
	by := path.Path{Kind: path.Relay}
	if from.Addr.IsValid() {
		by = path.DirectFrom(from.Socket, from.Addr)
	}
	p.arrived.Store(&arrival{by, now})
}

// lockForPackets locks mu for the data path.
func (p *peer) lockForPackets() {
	if p.mu.TryLock() {
		return
	}
	p.waiting.Add(1)
	p.mu.Lock()
	p.waiting.Add(-1)
}

// maxYields bounds how often yield looks, so that packets without end do not
// keep rules from being applied.
const maxYields = 100

// yield lets packets that wait for mu go first. mu must not be held.
func (p *peer) yield() {
	for i := 0; i < maxYields && p.waiting.Load() > 0; i++ {
		runtime.Gosched()
	}
}

// forwarding is what the data path knows. It is immutable.
type forwarding struct {
	table *route.Table
	peers []*peer // by route.Peer
	byKey map[ident.NodeKey]*peer
	byTag map[disco.Tag]*peer
	self  []netip.Addr
}

// lookup returns the peer that an address belongs to, nil where there is none.
func (f *forwarding) lookup(a netip.Addr) *peer {
	if f == nil {
		return nil
	}
	i, ok := f.table.Lookup(a)
	if !ok || int(i) >= len(f.peers) {
		return nil
	}
	return f.peers[i]
}

// displayName returns the name of the peer's certificate, for any goroutine.
func (p *peer) displayName() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.name
}

// touch tells the control goroutine, once in a while, that the peer is used.
func (e *Engine) touch(p *peer) {
	if p.touched.Load() || !p.touched.CompareAndSwap(false, true) {
		return
	}
	select {
	case e.touched <- p:
	default:
		p.touched.Store(false) // the next packet tries again
	}
}

// touchAll is what remains of the filter where packets pass unseen: paths are
// kept only for peers that are used.
func (f *forwarding) touchAll(e *Engine) {
	if f == nil {
		return
	}
	for _, p := range f.peers {
		e.touch(p)
	}
}
