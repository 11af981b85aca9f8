package simnet

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/warren-overlay/warren/netstack/sock"
)

// World puts a Network behind sockets. Build the topology and change it inside
// Do; sockets, devices and streams may be used by any goroutine of the bubble.
type World struct {
	// mu protects the network, its hosts, and everything below.
	mu      sync.Mutex
	network *Network
	timer   *time.Timer
	armed   time.Time
}

// hostWorld is what a World keeps of a host.
type hostWorld struct {
	sockets   map[uint16]*conn
	listeners map[uint16]*listener
	nextPort  uint16
}

// NewWorld returns a World around a new Network. It must be called inside the
// bubble.
func NewWorld(seed uint64) *World {
	return &World{network: NewNetwork(seed)}
}

// Do calls f with the network while nothing else touches it.
func (w *World) Do(f func(*Network)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w.network)
	w.pumpLocked()
}

func (h *Host) ports() *hostWorld {
	if h.world == nil {
		h.world = &hostWorld{
			sockets: make(map[uint16]*conn), listeners: make(map[uint16]*listener), nextPort: 40000,
		}
	}
	return h.world
}

// pumpLocked hands over what arrived and sets the timer for what comes next.
func (w *World) pumpLocked() {
	w.network.HandleTimeout(time.Now())
	for d, ok := w.network.NextDelivery(); ok; d, ok = w.network.NextDelivery() {
		w.deliverLocked(d)
	}
	next, ok := w.network.NextTimeout()
	if !ok || !w.armed.IsZero() && !w.armed.After(next) && w.armed.After(time.Now()) {
		return
	}
	if w.timer != nil {
		w.timer.Stop()
	}
	w.armed = next
	w.timer = time.AfterFunc(max(time.Until(next), 1), func() { // not for now: see netstack/alarm
		w.mu.Lock()
		defer w.mu.Unlock()
		w.armed = time.Time{}
		w.pumpLocked()
	})
}

func (w *World) deliverLocked(d Delivery) {
	c := d.Host.ports().sockets[d.Packet.To.Port()]
	if c == nil {
		return
	}
	r := c.readers[0]
	if len(c.readers) == 2 && d.Packet.To.Addr().Is6() {
		r = c.readers[1]
	}
	select {
	case r.packets <- d.Packet:
	default: // as a full receive buffer does
	}
}

const (
	// receiveQueue is how many packets a socket holds, as the few hundred
	// kilobytes of a system's default would.
	receiveQueue = 1024
	batchSize    = 8
)

// conn is a UDP socket of a host.
type conn struct {
	world   *World
	host    *Host
	port    uint16
	readers []*reader
	closed  chan struct{}
	once    sync.Once
}

type reader struct {
	conn    *conn
	mu      sync.Mutex // one ReadBatch at a time
	packets chan Packet
}

var (
	_ sock.Conn   = (*conn)(nil)
	_ sock.Reader = (*reader)(nil)
)

// ListenUDP opens a UDP port of a host, for both families; port 0 takes a free
// one. The error is sock.ErrPortInUse.
func (w *World) ListenUDP(h *Host, port uint16) (sock.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	ports := h.ports()
	if port != 0 && ports.sockets[port] != nil {
		return nil, sock.ErrPortInUse
	}
	for port == 0 || ports.sockets[port] != nil {
		port = ports.nextPort
		ports.nextPort++
	}
	c := &conn{world: w, host: h, port: port, closed: make(chan struct{})}
	for range 2 {
		c.readers = append(c.readers, &reader{conn: c, packets: make(chan Packet, receiveQueue)})
	}
	ports.sockets[port] = c
	return c, nil
}

// OpenPorts returns how many UDP ports of a host are open.
func (w *World) OpenPorts(h *Host) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(h.ports().sockets)
}

func (c *conn) Readers() []sock.Reader {
	return []sock.Reader{c.readers[0], c.readers[1]}
}

func (c *conn) WriteBatch(bufs [][]byte, to netip.AddrPort) error { return c.write(bufs, to, false) }

func (c *conn) WriteFragmented(bufs [][]byte, to netip.AddrPort) error {
	return c.write(bufs, to, true)
}

func (c *conn) write(bufs [][]byte, to netip.AddrPort, fragmented bool) error {
	select {
	case <-c.closed:
		return net.ErrClosed
	default:
	}
	w := c.world
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	for _, b := range bufs {
		p := Packet{To: netip.AddrPortFrom(to.Addr().Unmap(), to.Port()), Payload: b, Fragmented: fragmented}
		if !w.network.send(c.host, c.port, p, now) {
			return sock.ErrNoFamily
		}
	}
	w.pumpLocked()
	return nil
}

func (c *conn) LocalPort() uint16 { return c.port }
func (c *conn) BatchSize() int    { return batchSize }

func (c *conn) SetMark(mark uint32) error {
	if mark != 0 {
		return errors.ErrUnsupported
	}
	return nil
}

func (c *conn) Close() error {
	c.once.Do(func() {
		c.world.mu.Lock()
		defer c.world.mu.Unlock()
		delete(c.host.ports().sockets, c.port)
		close(c.closed)
	})
	return nil
}

func (r *reader) ReadBatch(bufs [][]byte, sizes []int, from []netip.AddrPort) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.conn.closed:
		return 0, net.ErrClosed
	default:
	}
	n := 0
	take := func(p Packet) {
		sizes[n], from[n] = copy(bufs[n], p.Payload), p.From
		n++
	}
	select {
	case p := <-r.packets:
		take(p)
	case <-r.conn.closed:
		return 0, net.ErrClosed
	}
	for n < len(bufs) {
		select {
		case p := <-r.packets:
			take(p)
		default:
			return n, nil
		}
	}
	return n, nil
}
