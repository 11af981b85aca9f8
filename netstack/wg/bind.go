package wg

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/sock"
)

// relayQueue bounds the relayed packets that wait for the device: one batch of
// its own and one that is being read.
const relayQueue = 2 * conn.IdealBatchSize

// minBatch is how many packets the device takes at once at the least, where the
// system hands out fewer: packets of relays and of further sockets come in
// batches all the same. The device keeps a buffer of 64 KiB for each packet of a
// batch, for each socket and for the queues, so eight take 0.5 MiB where
// conn.IdealBatchSize takes 8 MiB.
const minBatch = 8

// bind is the conn.Bind through which the device sends and receives.
type bind struct {
	listen  func(port uint16) (sock.Conn, error)
	control func(packet []byte, from netip.AddrPort)
	noPath  func(key ident.NodeKey)

	// unwrap is Config.Unwrap.
	unwrap func(datagram []byte, from netip.AddrPort) (Relay, ident.NodeKey, []byte, bool)

	identity atomic.Pointer[identity]
	indexes  indexTable
	counters counters
	relayed  chan queued
	// furtherIn are packets that came to further sockets.
	furtherIn     chan queued
	listenFurther func() (sock.Conn, error)
	reading       sync.WaitGroup // by the readers of further sockets
	current       atomic.Pointer[opened]
	batch         atomic.Int64 // how many packets the last port opened takes at once

	made time.Time // where the clock of the stamps begins

	// strangers and paths limit the initiations that are opened.
	strangers, paths limiter

	mu    sync.RWMutex // protects all below
	peers map[ident.NodeKey]*Peer
	known map[netip.AddrPort][]*Peer // whose direct path an address is

	further map[*Socket]bool // that are open
	ended   bool             // no more of them are opened
}

// opened is what one Open made and the next Close ends.
type opened struct {
	conn   sock.Conn
	closed chan struct{}
	once   sync.Once
}

var _ conn.Bind = (*bind)(nil)

func newBind(cfg *Config) *bind {
	b := &bind{
		made:   time.Now(),
		listen: cfg.Listen, control: cfg.Control, noPath: cfg.NoPath,
		unwrap:  cfg.Unwrap,
		indexes: indexTable{sessions: make(map[uint32]*session)},
		relayed: make(chan queued, relayQueue),

		furtherIn: make(chan queued, furtherQueue), listenFurther: cfg.ListenFurther,
		further: make(map[*Socket]bool),
		peers:   make(map[ident.NodeKey]*Peer),
		known:   make(map[netip.AddrPort][]*Peer),

		strangers: newLimiter(strangerRate, strangerBurst),
		paths:     newLimiter(pathRate, pathBurst),
	}
	b.batch.Store(minBatch)
	return b
}

// move sets the path of p, notes whose its direct address is, and returns the
// path of before.
func (b *bind) move(p *Peer, path *Path) (before *Path) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before = p.path.Swap(path)
	from, to := before.Direct, path.Direct
	if from == to {
		return before
	}
	if from.IsValid() {
		b.leave(p, from)
	}
	if to.IsValid() {
		b.known[to] = append(b.known[to], p)
	}
	return before
}

// leave takes p from the owners of an address; b.mu is held.
func (b *bind) leave(p *Peer, from netip.AddrPort) {
	owners := b.known[from]
	if i := slices.Index(owners, p); i >= 0 {
		owners = slices.Delete(owners, i, i+1)
	}
	if len(owners) == 0 {
		delete(b.known, from)
		return
	}
	b.known[from] = owners
}

// allowDirect reports whether an initiation from an address may be opened. What
// is more than the peer's share whose path the address is counts as a
// stranger's: the source may be forged, and that must not shut the peer out.
func (b *bind) allowDirect(from netip.AddrPort, now time.Time) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for _, p := range b.known[from] {
		if p.initiations.allow(now) && b.paths.allow(now) {
			return true
		}
	}
	return b.strangers.allow(now)
}

// allowRelayed reports whether an initiation that a relay says is of p may be
// opened.
func (b *bind) allowRelayed(p *Peer, now time.Time) bool {
	return p.initiations.allow(now) && b.paths.allow(now)
}

func (b *bind) peer(key ident.NodeKey) *Peer {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.peers[key]
}

// Open implements conn.Bind.
func (b *bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	if b.current.Load() != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	c, err := b.listen(port)
	if err != nil {
		return nil, 0, err
	}
	o := &opened{conn: c, closed: make(chan struct{})}
	b.batch.Store(int64(max(c.BatchSize(), minBatch)))
	b.current.Store(o)
	fns := []conn.ReceiveFunc{b.receiveQueued(o)}
	for _, r := range c.Readers() {
		fns = append(fns, b.receiveDirect(r))
	}
	return fns, c.LocalPort(), nil
}

// Close implements conn.Bind.
func (b *bind) Close() error {
	o := b.current.Swap(nil)
	if o == nil {
		return nil
	}
	o.once.Do(func() { close(o.closed) })
	return o.conn.Close()
}

// SetMark implements conn.Bind.
func (b *bind) SetMark(mark uint32) error {
	if o := b.current.Load(); o != nil {
		return o.conn.SetMark(mark)
	}
	return nil
}

// BatchSize implements conn.Bind. The device asks after each Open, and before the
// first one for its reader of the TUN device, which has a batch of its own.
func (b *bind) BatchSize() int { return int(b.batch.Load()) }

// ParseEndpoint implements conn.Bind: the text is a peer's key in hexadecimal,
// as Device.SetPeers writes it. An address is not an endpoint here.
func (b *bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != ident.KeySize {
		return nil, fmt.Errorf("wg: an endpoint is a peer's key, not %q", s)
	}
	p := b.peer(ident.NodeKey(raw))
	if p == nil {
		return nil, errors.New("wg: endpoint of an unknown peer")
	}
	return p, nil
}

// Send implements conn.Bind. Packets that can not be sent are lost and counted;
// the protocol above repeats what matters.
func (b *bind) Send(bufs [][]byte, ep conn.Endpoint) error {
	p, ok := ep.(*Peer)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	path := p.path.Load()
	for _, packet := range bufs {
		kind := messageType(packet)
		switch kind {
		case typeInitiation:
			p.unanswered.Add(1)
		case typeResponse:
			path = p.wayBack(path, packet)
		default:
			continue
		}
		now := time.Now()
		b.indexes.learn(binary.LittleEndian.Uint32(packet[4:]), p, now)
		// The device sends each alone.
		if id := b.identity.Load(); len(bufs) == 1 && kind == typeInitiation && id != nil && p.defers(packet, id.public, now) {
			return nil
		}
		p.sends(packet, now)
	}
	if p.diverted.waiting.Load() > 0 {
		if bufs = b.divert(p, bufs); len(bufs) == 0 {
			return nil
		}
	}
	b.noteWaiting(p, bufs)
	b.send(p, path, bufs)
	return nil
}

func (b *bind) send(p *Peer, path *Path, bufs [][]byte) {
	if path.Both && path.Direct.IsValid() && path.Relay != nil {
		path.Relay.SendPackets(p.key, bufs)
		b.counters.sent[LinkRelay].add(bufs)
	}
	switch {
	case path.Direct.IsValid():
		var c sock.Conn
		if path.Socket != nil {
			c = path.Socket.conn
		} else if o := b.current.Load(); o != nil {
			c = o.conn
		} else {
			return
		}
		if err := path.write(c, p.key, bufs); err != nil {
			b.counters.sendErrors.Add(1)
			return
		}
		b.counters.sent[linkOf(path.Direct)].add(bufs)
	case path.Relay != nil:
		path.Relay.SendPackets(p.key, bufs)
		b.counters.sent[LinkRelay].add(bufs)
	default:
		waits := false
		for _, packet := range bufs {
			if kind := messageType(packet); kind == typeInitiation || kind == typeResponse {
				waits = true // for SetPath
			} else {
				b.counters.noPath.Add(1)
			}
		}
		if waits && b.noPath != nil {
			b.noPath(p.key)
		}
	}
}

// write sends packets straight to the peer, in order; those that are too long for
// the way there over the relay, or so that they may be fragmented.
func (path *Path) write(c sock.Conn, to ident.NodeKey, bufs [][]byte) error {
	if path.Whole == 0 {
		return c.WriteBatch(bufs, path.Direct)
	}
	var errs error
	for len(bufs) > 0 {
		long := len(bufs[0]) > path.Whole
		n := 1
		for n < len(bufs) && len(bufs[n]) > path.Whole == long {
			n++
		}
		switch {
		case !long:
			errs = errors.Join(errs, c.WriteBatch(bufs[:n], path.Direct))
		case path.Relay != nil:
			path.Relay.SendPackets(to, bufs[:n])
		default:
			errs = errors.Join(errs, c.WriteFragmented(bufs[:n], path.Direct))
		}
		bufs = bufs[n:]
	}
	return errs
}

// receiveDirect returns the function that reads one socket straight into the
// device's buffers.
func (b *bind) receiveDirect(r sock.Reader) conn.ReceiveFunc {
	from := make([]netip.AddrPort, b.BatchSize())
	return func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		n, err := r.ReadBatch(bufs, sizes, from)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return 0, net.ErrClosed
			}
			b.counters.receiveErrors.Add(1)
			return 0, nil
		}
		b.mapBatch(bufs[:n], sizes, from, eps)
		return n, nil
	}
}

// mapBatch gives every packet its peer. A packet of size zero is skipped by the
// device.
func (b *bind) mapBatch(bufs [][]byte, sizes []int, from []netip.AddrPort, eps []conn.Endpoint) {
	arrived := arrivalBatch{b: b}
	defer arrived.end()
	at := b.sinceMade()
	for i, buf := range bufs {
		packet := buf[:sizes[i]]
		kind := messageType(packet)
		var p *Peer
		var s *session
		switch kind {
		case typeTransport, typeCookie:
			if s = arrived.session(packet); s != nil {
				p = s.peer
			}
		case typeResponse:
			p = b.indexes.owner(binary.LittleEndian.Uint32(packet[8:]))
			if p != nil && !p.answers(packet, linkOf(from[i]), time.Now()) {
				sizes[i] = 0
				continue
			}
		case typeInitiation:
			p = b.identify(packet, func(now time.Time) bool { return b.allowDirect(from[i], now) })
			if p != nil && !b.takes(p, packet, linkOf(from[i]), nil) {
				sizes[i] = 0
				continue
			}
		default:
			sizes[i] = 0
			if over, key, inner, ok := b.unwrapped(packet, from[i]); !ok {
				b.control(packet, from[i])
			} else if p := b.mapRelayed(over, key, inner); p != nil {
				sizes[i], eps[i] = copy(buf, inner), p
				arrived.count(LinkRelay, len(inner))
				if packet := buf[:sizes[i]]; messageType(packet) == typeTransport {
					arrived.addOf(p, packet, Origin{Relay: over})
					stamp(buf, len(packet), at)
				}
			}
			continue
		}
		if p == nil {
			b.counters.nobody[kind-1].Add(1)
			sizes[i] = 0
			continue
		}
		if kind == typeTransport {
			p.isHeard()
			p.arrived(binary.LittleEndian.Uint32(packet[4:]))
			arrived.add(s, packet, Origin{Addr: from[i]})
			stamp(buf, len(packet), at)
		}
		eps[i] = p
		arrived.count(linkOf(from[i]), len(packet))
	}
}

func (b *bind) unwrapped(packet []byte, from netip.AddrPort) (Relay, ident.NodeKey, []byte, bool) {
	if b.unwrap == nil {
		return nil, ident.NodeKey{}, nil, false
	}
	return b.unwrap(packet, from)
}

// mapRelayed returns the peer of a packet that came in a relay's datagram, nil
// where it is not for the device.
func (b *bind) mapRelayed(over Relay, from ident.NodeKey, packet []byte) *Peer {
	if messageType(packet) == 0 {
		return nil
	}
	return b.relayedPeer(over, from, packet)
}

// identify returns the peer that an initiation claims to come from, nil for none
// or where it is not allowed to look.
func (b *bind) identify(packet []byte, allowed func(now time.Time) bool) *Peer {
	id := b.identity.Load()
	if id == nil || !id.checkMAC1(packet) {
		return nil
	}
	if !allowed(time.Now()) {
		b.counters.limited.Add(1)
		return nil
	}
	key, ok := id.initiator(packet)
	if !ok {
		return nil
	}
	return b.peer(key)
}

// receiveQueued returns the function that hands packets to the device that came
// over a relay, whose word says who sent them, or to further sockets.
func (b *bind) receiveQueued(o *opened) conn.ReceiveFunc {
	return func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		var packet queued
		select {
		case <-o.closed:
			return 0, net.ErrClosed
		case packet = <-b.relayed:
		case packet = <-b.furtherIn:
		}
		n := 0
		arrived := arrivalBatch{b: b}
		defer arrived.end()
		at := b.sinceMade()
		for {
			if size := copy(bufs[n], packet.data); size == len(packet.data) {
				if messageType(packet.data) == typeTransport {
					arrived.addOf(packet.of, packet.data, packet.from)
					stamp(bufs[n], size, at)
				}
				sizes[n], eps[n] = size, packet.of
				n++
			}
			if n == len(bufs) {
				return n, nil
			}
			select {
			case packet = <-b.relayed:
			case packet = <-b.furtherIn:
			default:
				return n, nil
			}
		}
	}
}

// handleRelayed takes a packet that a relay says is of the peer with the key.
func (b *bind) handleRelayed(over Relay, from ident.NodeKey, packet []byte) bool {
	if messageType(packet) == 0 {
		return false
	}
	p := b.relayedPeer(over, from, packet)
	if p == nil {
		return true
	}
	select {
	case b.relayed <- queued{p, append([]byte(nil), packet...), Origin{Relay: over}}:
		b.counters.received[LinkRelay].addOne(len(packet))
	default:
		b.counters.relayOverflow.Add(1)
	}
	return true
}

// relayedPeer returns the peer of a packet of WireGuard's that a relay says is of
// the peer with the key, nil where that cannot be or it is not allowed to look.
func (b *bind) relayedPeer(over Relay, from ident.NodeKey, packet []byte) *Peer {
	// The relay's word is not enough for the endpoint: a member of the network
	// may relay another's packet to us under its own name.
	kind := messageType(packet)
	var p *Peer
	if claimed := b.peer(from); claimed != nil || kind != typeInitiation {
		p = b.owner(packet, func(now time.Time) bool { return b.allowRelayed(claimed, now) })
	}
	if p == nil || p.key != from {
		b.counters.nobody[kind-1].Add(1)
		return nil
	}
	p.isHeard()
	if !b.notes(p, packet, LinkRelay, over) {
		return nil
	}
	return p
}

// notes notes what a packet of p's says of handshakes, and reports whether it is
// for the device. over is the relay that it came over, nil for none.
func (b *bind) notes(p *Peer, packet []byte, link Link, over Relay) bool {
	switch messageType(packet) {
	case typeInitiation:
		return b.takes(p, packet, link, over)
	case typeResponse:
		return p.answers(packet, link, time.Now())
	case typeTransport:
		p.arrived(binary.LittleEndian.Uint32(packet[4:]))
	}
	return true
}

// takes is Peer.takes.
func (b *bind) takes(p *Peer, initiation []byte, link Link, over Relay) bool {
	id := b.identity.Load()
	return id == nil || p.takes(initiation, id.public, link, over, time.Now())
}
