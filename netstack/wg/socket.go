package wg

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/warren-overlay/warren/netstack/sock"
)

const (
	// furtherQueue bounds the packets of further sockets that wait for the device.
	// Their readers wait for room, and the rest in the sockets' buffers.
	furtherQueue = conn.IdealBatchSize
	// probeRoom is the room for a packet at a socket that no path leaves by, to
	// which nothing but probes comes.
	probeRoom = 2048
	// pathBatch packets of pathRoom each are read at a time of a socket that a path
	// leaves by: jumbo frames, and as many as fit into the processor's cache.
	pathBatch, pathRoom = 32, 9216
)

// ErrNoFurther is returned by Device.OpenSocket where Config has no ListenFurther.
var ErrNoFurther = errors.New("wg: no further sockets can be opened")

// Socket is a UDP port of a device beside its own: the way to a peer whose NAT, or
// ours, lets in what comes from that port only (Path.Socket). All methods may be
// called concurrently.
type Socket struct {
	number  uint32
	bind    *bind
	conn    sock.Conn
	control func(packet []byte, from netip.AddrPort)
	used    atomic.Bool // a path leaves by it
	closed  chan struct{}
	once    sync.Once
}

// queued is a packet that waits for the device.
type queued struct {
	of   *Peer
	data []byte
	from Origin
}

// OpenSocket opens a further UDP port and a goroutine for each family of it, which
// Close ends. control takes every packet that comes there and is not WireGuard's;
// it must not block, and must not keep the packet. number is what Device.Source
// says of packets that come there; it must not be 0. The error is ErrNoFurther,
// net.ErrClosed after Device.Close, or Config.ListenFurther's.
func (d *Device) OpenSocket(number uint32, control func(packet []byte, from netip.AddrPort)) (*Socket, error) {
	b := d.bind
	if b.listenFurther == nil {
		return nil, ErrNoFurther
	}
	c, err := b.listenFurther()
	if err != nil {
		return nil, fmt.Errorf("wg: opening a further port: %w", err)
	}
	s := &Socket{number: number, bind: b, conn: c, control: control, closed: make(chan struct{})}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		c.Close()
		return nil, net.ErrClosed
	}
	b.further[s] = true
	for _, r := range c.Readers() {
		b.reading.Go(func() { s.read(r) })
	}
	return s, nil
}

// endFurther closes all further sockets, for good, and waits for their readers.
func (b *bind) endFurther() {
	b.mu.Lock()
	b.ended = true
	var open []*Socket
	for s := range b.further {
		open = append(open, s)
	}
	b.mu.Unlock()
	for _, s := range open {
		s.Close()
	}
	b.reading.Wait()
}

// Send sends a packet that is not WireGuard's. The packet is not kept. The error is
// net.ErrClosed after Close, or the system's.
func (s *Socket) Send(packet []byte, to netip.AddrPort) error {
	return s.conn.WriteBatch([][]byte{packet}, to)
}

// Close closes the port. What a path sends by it from then on is lost and counted.
func (s *Socket) Close() {
	s.once.Do(func() {
		s.bind.mu.Lock()
		delete(s.bind.further, s)
		s.bind.mu.Unlock()
		close(s.closed)
		s.conn.Close() // the error changes nothing
	})
}

// read hands on what comes to one family of the port.
func (s *Socket) read(r sock.Reader) {
	bufs, sizes, from := room(1, probeRoom)
	for {
		if len(bufs) == 1 && s.used.Load() {
			bufs, sizes, from = room(pathBatch, pathRoom)
		}
		n, err := r.ReadBatch(bufs, sizes, from)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.bind.counters.receiveErrors.Add(1)
			continue
		}
		for i := range n {
			s.take(bufs[i][:sizes[i]], from[i])
		}
	}
}

func room(n, size int) (bufs [][]byte, sizes []int, from []netip.AddrPort) {
	slab := make([]byte, n*size)
	for i := range n {
		bufs = append(bufs, slab[i*size:(i+1)*size:(i+1)*size])
	}
	return bufs, make([]int, n), make([]netip.AddrPort, n)
}

// take hands one packet to the device, or to control.
func (s *Socket) take(packet []byte, from netip.AddrPort) {
	kind := messageType(packet)
	if kind == 0 {
		s.control(packet, from)
		return
	}
	b := s.bind
	p := b.owner(packet, func(now time.Time) bool { return b.allowDirect(from, now) })
	if p == nil {
		b.counters.nobody[kind-1].Add(1)
		return
	}
	if kind == typeTransport {
		p.isHeard()
	}
	if !b.notes(p, packet, linkOf(from), nil) {
		return
	}
	b.counters.received[linkOf(from)].addOne(len(packet))
	select {
	case b.furtherIn <- queued{p, append([]byte(nil), packet...), Origin{Addr: from, Socket: s.number}}:
	case <-s.closed:
	}
}

// owner returns the peer of a packet of WireGuard's, nil for nobody's or where an
// initiation may not be looked at.
func (b *bind) owner(packet []byte, allowed func(now time.Time) bool) *Peer {
	switch messageType(packet) {
	case typeInitiation:
		return b.identify(packet, allowed)
	case typeResponse:
		return b.indexes.owner(binary.LittleEndian.Uint32(packet[8:]))
	default:
		return b.indexes.owner(binary.LittleEndian.Uint32(packet[4:]))
	}
}
