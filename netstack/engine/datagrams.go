package engine

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/relay"
	"github.com/warren-overlay/warren/netstack/sock"
	"github.com/warren-overlay/warren/netstack/wg"
)

const (
	// maxWanted bounds the peers that wait for their number to be asked for. One
	// that does not fit is asked for at its next packet.
	maxWanted = 64
	// maxNotices bounds what waits of the relay's datagrams that carry no packet:
	// an exchange has two.
	maxNotices = 16
	// usedInterval is how often a session is told that its datagrams are used.
	usedInterval = time.Second
	// maxEarly bounds the packets that wait for the relay to say whose they are, and
	// earlyFor for how long: news by the connection are later than datagrams by
	// little, or they were lost with it.
	maxEarly = 64
	earlyFor = time.Second
	// wrapSize is the room for one datagram to a relay: header and payload of one
	// that goes as such (relay.MaxDatagramPayload).
	wrapSize = 1500
)

// relayDatagrams is how packets go to one relay as datagrams, beside the
// session's connection, from the device's own port.
type relayDatagrams struct {
	e    *Engine
	over *relayConn
	// timer tells the session's goroutine to look.
	timer chan<- struct{}

	// link is nil while packets go by the connection.
	link atomic.Pointer[relay.Link]
	// used is set by the data path when it sends, and cleared by the session's
	// goroutine at usedInterval.
	used    atomic.Bool
	wanted  chan ident.NodeKey
	notices chan []byte
	// early are datagrams that came before the news of whose they are, or before
	// the relay's answer that they may come.
	early chan []byte
	// heard is told whose packet came, and takes it where it is a probe.
	heard func(peer ident.NodeKey, packet []byte) (taken bool)

	rearm   time.Time // of used; the session goroutine's, zero for not
	waiting []earlyDatagram
}

// earlyDatagram waits since a time; the session goroutine's.
type earlyDatagram struct {
	datagram []byte
	since    time.Time
}

func newRelayDatagrams(r *relayConn, timer chan<- struct{}, heard func(ident.NodeKey, []byte) bool) *relayDatagrams {
	return &relayDatagrams{
		e: r.e, over: r, timer: timer, heard: heard,
		wanted: make(chan ident.NodeKey, maxWanted), notices: make(chan []byte, maxNotices),
		early: make(chan []byte, maxEarly),
	}
}

func (d *relayDatagrams) wake() {
	select {
	case d.timer <- struct{}{}:
	default:
	}
}

// wrappers are the buffers in which packets get their header.
var wrappers = sync.Pool{New: func() any {
	w := &wrapper{slab: make([]byte, sock.MaxBatchSize*wrapSize)}
	w.out = make([][]byte, 0, sock.MaxBatchSize)
	return w
}}

type wrapper struct {
	slab []byte
	out  [][]byte
}

// send sends what goes as datagrams and returns what is to go by the
// connection: all of it, or what is too large.
func (d *relayDatagrams) send(to ident.NodeKey, packets [][]byte) (rest [][]byte) {
	link := d.link.Load()
	if link == nil {
		return packets
	}
	header, ok := link.Header(to)
	if !ok {
		select {
		case d.wanted <- to:
			d.wake()
		default:
		}
		return packets
	}
	device := d.e.host.device.Load()
	if device == nil {
		return packets
	}
	w, _ := wrappers.Get().(*wrapper)
	defer wrappers.Put(w)
	limit := link.MaxPayload()
	flush := func() {
		if len(w.out) == 0 {
			return
		}
		if !d.used.Load() && d.used.CompareAndSwap(false, true) {
			d.wake()
		}
		if err := device.SendDatagrams(w.out, link.Relay()); err != nil {
			d.e.relayDrops.Add(uint64(len(w.out)))
		}
		w.out = w.out[:0]
	}
	used := 0
	for _, p := range packets {
		if len(p) > limit {
			rest = append(rest, p)
			continue
		}
		if len(w.out) == cap(w.out) {
			flush()
			used = 0
		}
		// One behind the other, so that the socket need not copy them once more.
		begin := used
		used += copy(w.slab[used:], header[:])
		used += copy(w.slab[used:], p)
		w.out = append(w.out, w.slab[begin:used:used])
	}
	flush()
	return rest
}

// open takes the packet out of a datagram of the relay's.
func (d *relayDatagrams) open(datagram []byte) (peer ident.NodeKey, packet []byte, ok bool) {
	if !relay.IsDatagramPacket(datagram) {
		select {
		case d.notices <- slices.Clone(datagram):
			d.wake()
		default: // it is sent again
		}
		return peer, nil, true
	}
	if link := d.link.Load(); link != nil {
		if peer, packet, ok = link.Open(datagram); ok {
			if d.heard(peer, packet) {
				packet = nil
			}
			return peer, packet, true
		}
	}
	select {
	case d.early <- slices.Clone(datagram):
		d.wake()
	default:
		d.e.relayDrops.Add(1)
	}
	return peer, nil, true
}

// late hands on the packets that waited for the news of whose they are. The
// session's goroutine calls it when there may be some.
func (d *relayDatagrams) late(now time.Time, handle func(peer ident.NodeKey, packet []byte)) {
	for {
		select {
		case b := <-d.early:
			if len(d.waiting) < maxEarly {
				d.waiting = append(d.waiting, earlyDatagram{b, now})
			} else {
				d.e.relayDrops.Add(1)
			}
			continue
		default:
		}
		break
	}
	link := d.link.Load()
	d.waiting = slices.DeleteFunc(d.waiting, func(w earlyDatagram) bool {
		if link != nil {
			if peer, packet, ok := link.Open(w.datagram); ok {
				if !d.heard(peer, packet) {
					handle(peer, packet)
				}
				return true
			}
		}
		if now.Sub(w.since) < earlyFor {
			return false
		}
		d.e.relayDrops.Add(1)
		return true
	})
}

// step does what the data path asked for, and returns when it wants to be called
// again, zero for not. The session's mutex is held.
func (d *relayDatagrams) step(s *relay.Session, now time.Time) (again time.Time) {
	for {
		select {
		case key := <-d.wanted:
			s.HandleWanted(key, now)
			continue
		case b := <-d.notices:
			s.HandleDatagram(b, now)
			continue
		default:
		}
		break
	}
	switch {
	case d.rearm.IsZero() && d.used.Load():
		s.HandleUsed(now)
		d.rearm = now.Add(usedInterval)
	case !d.rearm.IsZero() && !now.Before(d.rearm):
		d.rearm = time.Time{}
		d.used.Store(false)
	}
	return d.rearm
}

// drain sends what the session has for its address, and has the data path use
// its link. The session's mutex is held.
func (d *relayDatagrams) drain(s *relay.Session) {
	device := d.e.host.device.Load()
	for b, ok := s.NextDatagram(); ok; b, ok = s.NextDatagram() {
		if device != nil {
			_ = device.SendDatagrams([][]byte{b}, s.Snapshot().Datagrams.Relay) // it is sent again
		}
	}
}

// relayLinks are the relays from which datagrams may come, by address.
type relayLinks struct {
	current atomic.Pointer[map[netip.AddrPort]*relayDatagrams]
	mu      sync.Mutex // orders changes
}

// set notes whose datagrams come from an address, nil for nobody's. Where another
// has the address now, nil changes nothing.
func (l *relayLinks) set(from netip.AddrPort, old, d *relayDatagrams) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := make(map[netip.AddrPort]*relayDatagrams)
	if m := l.current.Load(); m != nil {
		for a, other := range *m {
			next[a] = other
		}
	}
	switch {
	case d != nil:
		next[from] = d
	case next[from] == old:
		delete(next, from)
	}
	l.current.Store(&next)
}

// unwrap is wg.Config.Unwrap.
func (l *relayLinks) unwrap(datagram []byte, from netip.AddrPort) (over wg.Relay, peer ident.NodeKey, packet []byte, ok bool) {
	if !relay.IsDatagram(datagram) {
		return nil, peer, nil, false
	}
	m := l.current.Load()
	if m == nil {
		return nil, peer, nil, false
	}
	d := (*m)[from]
	if d == nil {
		return nil, peer, nil, false
	}
	peer, packet, ok = d.open(datagram)
	return d.over, peer, packet, ok
}

// datagramsOf returns the address at which a relay takes datagrams, invalid
// where it takes none or is not found: IPv4 before IPv6, over which full packets
// do not fit, but for a machine that has no IPv4 address.
func (e *Engine) datagramsOf(ctx context.Context, address string) netip.AddrPort {
	if address == "" {
		return netip.AddrPort{}
	}
	var found netip.AddrPort
	wanted4 := !e.onlyIPv6.Load()
	for _, a := range newResolver(e).resolve(ctx, []string{address}) {
		a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		if !found.IsValid() || a.Addr().Is4() == wanted4 && found.Addr().Is4() != wanted4 {
			found = a
		}
	}
	return found
}
