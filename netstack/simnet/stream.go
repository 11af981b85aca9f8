package simnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/warren-overlay/warren/netstack/alarm"
)

// Listen opens a TCP port of a host; port 0 takes a free one.
func (w *World) Listen(h *Host, port uint16) (net.Listener, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	ports := h.ports()
	if port == 0 {
		port = ports.nextPort
		ports.nextPort++
	}
	if ports.listeners[port] != nil {
		return nil, fmt.Errorf("simnet: listening on port %d: %w", port, syscall.EADDRINUSE)
	}
	l := &listener{
		world: w, host: h, port: port,
		backlog: make(chan *stream, 128), closed: make(chan struct{}),
	}
	ports.listeners[port] = l
	return l, nil
}

type listener struct {
	world   *World
	host    *Host
	port    uint16
	backlog chan *stream
	closed  chan struct{}
	once    sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case s := <-l.backlog:
		return s, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		l.world.mu.Lock()
		defer l.world.mu.Unlock()
		delete(l.host.ports().listeners, l.port)
		close(l.closed)
	})
	return nil
}

func (l *listener) Addr() net.Addr {
	addr := netip.IPv4Unspecified()
	if len(l.host.addrs) > 0 {
		addr = l.host.addrs[0]
	}
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, l.port))
}

// Dial opens a stream from a host to an address. It takes one round trip. Where
// the way is cut it waits for ctx; where nobody listens it is refused.
func (w *World) Dial(ctx context.Context, h *Host, to netip.AddrPort) (net.Conn, error) {
	for {
		l, ends, err := w.connect(h, to)
		if err == nil {
			if err := wait(ctx, 2*ends[0].latency()); err != nil {
				return nil, err
			}
			select {
			case l.backlog <- ends[1]:
				return ends[0], nil
			default:
				return nil, refused(to)
			}
		}
		if !errors.Is(err, errStalled) {
			return nil, err
		}
		if err := wait(ctx, synRetry); err != nil {
			return nil, err
		}
	}
}

// wait lets a time pass, unless the context ends before.
func wait(ctx context.Context, d time.Duration) error {
	over := alarm.New(d)
	defer over.Stop()
	select {
	case <-over.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// synRetry is TCP's first retransmission time-out (RFC 6298, section 2).
const synRetry = time.Second

var errStalled = errors.New("simnet: no way at the moment")

func refused(to netip.AddrPort) error {
	return fmt.Errorf("simnet: dialing %v: %w", to, syscall.ECONNREFUSED)
}

func (w *World) connect(h *Host, to netip.AddrPort) (*listener, [2]*stream, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	dst, from, ok := w.network.reach(h, to.Addr())
	if !ok {
		return nil, [2]*stream{}, errStalled
	}
	l := dst.ports().listeners[to.Port()]
	if l == nil {
		return nil, [2]*stream{}, refused(to)
	}
	ports := h.ports()
	ports.nextPort++
	local := netip.AddrPortFrom(from, ports.nextPort)
	a, b := newPipe(), newPipe()
	near := &stream{world: w, here: h, there: dst, to: to.Addr(), local: local, remote: to, in: a, out: b}
	far := &stream{world: w, here: dst, there: h, to: to.Addr(), dialed: true, local: to, remote: local, in: b, out: a}
	return l, [2]*stream{near, far}, nil
}

// reach finds the host that a stream from h to an address leads to, and the
// address from which h is seen there.
func (n *Network) reach(h *Host, to netip.Addr) (dst *Host, seen netip.Addr, ok bool) {
	seen, ok = h.source(to)
	if !ok || h.down {
		return nil, seen, false
	}
	for s := h.segment; ; s = s.outer() {
		if dst = s.hosts[to]; dst != nil {
			return dst, seen, !dst.down && !n.cut[[2]*Host{h, dst}] && !n.cut[[2]*Host{dst, h}]
		}
		if s.router == nil || s.router.blockTCP || h.unrouted {
			return nil, seen, false
		}
		if s.router.translates(seen) {
			seen = s.router.external
		}
	}
}

// stream is one end of a TCP connection.
type stream struct {
	world         *World
	here, there   *Host
	to            netip.Addr // that was dialed
	dialed        bool       // this is the end that was dialed
	local, remote netip.AddrPort
	in, out       *pipe
}

// open reports whether data can flow now.
func (s *stream) open() bool {
	s.world.mu.Lock()
	defer s.world.mu.Unlock()
	dialer, target := s.here, s.there
	if s.dialed {
		dialer, target = s.there, s.here
	}
	dst, _, ok := s.world.network.reach(dialer, s.to)
	return ok && dst == target
}

func (s *stream) latency() time.Duration {
	s.world.mu.Lock()
	defer s.world.mu.Unlock()
	if s.here.segment == s.there.segment && s.here.segment != s.world.network.internet {
		return s.here.path.Delay + s.world.network.path.Delay/20 + s.there.path.Delay
	}
	return s.here.path.Delay + s.world.network.path.Delay + s.there.path.Delay
}

// stalled is how long a sender waits before it tries again to get data through
// a cut, as TCP's retransmission would.
const stalled = 200 * time.Millisecond

func (s *stream) Read(b []byte) (int, error) {
	return s.in.read(b, s.open)
}

func (s *stream) Write(b []byte) (int, error) {
	return s.out.write(b, s.latency())
}

func (s *stream) Close() error {
	s.out.finish(s.latency())
	s.in.abandon()
	return nil
}

// CloseWrite sends the end of the stream, and still reads.
func (s *stream) CloseWrite() error {
	s.out.finish(s.latency())
	return nil
}

func (s *stream) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(s.local) }
func (s *stream) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(s.remote) }

func (s *stream) SetDeadline(t time.Time) error {
	s.in.readDeadline.set(t)
	s.out.writeDeadline.set(t)
	return nil
}

func (s *stream) SetReadDeadline(t time.Time) error {
	s.in.readDeadline.set(t)
	return nil
}

func (s *stream) SetWriteDeadline(t time.Time) error {
	s.out.writeDeadline.set(t)
	return nil
}

// pipe is one direction of a stream.
type pipe struct {
	readDeadline, writeDeadline *deadline

	// mu protects what follows.
	mu        sync.Mutex
	chunks    []chunk
	size      int
	finished  bool      // the writer is done
	finishAt  time.Time // when the reader may know
	abandoned bool      // the reader is gone
	changed   chan struct{}
}

type chunk struct {
	data []byte
	at   time.Time // when it arrives
}

// window bounds what is under way and unread in one direction.
const window = 1 << 20

func newPipe() *pipe {
	return &pipe{readDeadline: newDeadline(), writeDeadline: newDeadline(), changed: make(chan struct{})}
}

// wakeLocked wakes everyone who waits for a change.
func (p *pipe) wakeLocked() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *pipe) write(b []byte, latency time.Duration) (int, error) {
	written := 0
	for {
		p.mu.Lock()
		switch {
		case p.finished:
			p.mu.Unlock()
			return written, net.ErrClosed
		case p.abandoned:
			p.mu.Unlock()
			return written, syscall.EPIPE
		case p.writeDeadline.passed():
			p.mu.Unlock()
			return written, os.ErrDeadlineExceeded
		}
		if n := min(window-p.size, len(b)); n > 0 {
			p.chunks = append(p.chunks, chunk{append([]byte(nil), b[:n]...), time.Now().Add(latency)})
			p.size += n
			written, b = written+n, b[n:]
			p.wakeLocked()
		}
		changed := p.changed
		p.mu.Unlock()
		if len(b) == 0 {
			return written, nil
		}
		select {
		case <-changed:
		case <-p.writeDeadline.wait():
		}
	}
}

func (p *pipe) read(b []byte, open func() bool) (int, error) {
	for {
		flowing := open()
		p.mu.Lock()
		var wait time.Duration
		switch now := time.Now(); {
		case p.abandoned:
			p.mu.Unlock()
			return 0, net.ErrClosed
		case p.readDeadline.passed():
			p.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case len(b) == 0:
			p.mu.Unlock()
			return 0, nil
		case len(p.chunks) > 0 && !p.chunks[0].at.After(now) && flowing:
			n := copy(b, p.chunks[0].data)
			p.chunks[0].data = p.chunks[0].data[n:]
			if len(p.chunks[0].data) == 0 {
				p.chunks = p.chunks[1:]
			}
			p.size -= n
			p.wakeLocked()
			p.mu.Unlock()
			return n, nil
		case len(p.chunks) == 0 && p.finished && !p.finishAt.After(now) && flowing:
			p.mu.Unlock()
			return 0, io.EOF
		case !flowing && (len(p.chunks) > 0 || p.finished):
			wait = stalled
		case len(p.chunks) > 0:
			wait = p.chunks[0].at.Sub(now)
		case p.finished:
			wait = p.finishAt.Sub(now)
		}
		changed := p.changed
		p.mu.Unlock()
		p.await(changed, wait)
	}
}

// await waits until something changes, what is on its way arrives (not positive:
// nothing is), or the time for reading is over.
func (p *pipe) await(changed <-chan struct{}, arrival time.Duration) {
	var arrived <-chan struct{}
	if arrival > 0 {
		a := alarm.New(arrival)
		defer a.Stop()
		arrived = a.C
	}
	select {
	case <-changed:
	case <-arrived:
	case <-p.readDeadline.wait():
	}
}

func (p *pipe) finish(latency time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.finished {
		p.finished, p.finishAt = true, time.Now().Add(latency)
		p.wakeLocked()
	}
}

func (p *pipe) abandon() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.abandoned, p.chunks, p.size = true, nil, 0
	p.wakeLocked()
}

// deadline is a time that can be waited for and moved.
type deadline struct {
	// mu protects what follows.
	mu    sync.Mutex
	timer *time.Timer
	done  chan struct{}
	fired bool
}

func newDeadline() *deadline { return &deadline{done: make(chan struct{})} }

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	// Waiters look again, at the new deadline.
	if !d.fired {
		close(d.done)
	}
	d.done, d.fired = make(chan struct{}), false
	if t.IsZero() {
		return
	}
	done := d.done
	fire := func() {
		if d.done == done && !d.fired {
			d.fired = true
			close(d.done)
		}
	}
	if left := time.Until(t); left <= 0 {
		fire()
	} else {
		d.timer = time.AfterFunc(left, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			fire()
		})
	}
}

func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.done
}

func (d *deadline) passed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fired
}
