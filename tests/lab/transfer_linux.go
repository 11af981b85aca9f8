package lab

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// arrivals are the moments at which something arrived.
type arrivals struct {
	mu sync.Mutex // protects at
	at []time.Time
}

func (a *arrivals) now() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at = append(a.at, time.Now())
}

// Gap returns the longest time without an arrival from the moment since on,
// until now.
func (a *arrivals) Gap(since time.Time) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	last, gap := since, time.Duration(0)
	for _, at := range append(a.at[:len(a.at):len(a.at)], time.Now()) {
		if at.After(since) {
			gap, last = max(gap, at.Sub(last)), at
		}
	}
	return gap
}

// Steady waits until something arrives every fifth of a second, for a second, and
// ends the test where that does not come to be in time.
func (a *arrivals) Steady(t testing.TB, within time.Duration) {
	t.Helper()
	begin := time.Now()
	Eventually(t, within, func() error {
		since := time.Now().Add(-time.Second)
		if since.Before(begin) {
			return fmt.Errorf("it has only begun")
		}
		if gap := a.Gap(since); gap > 200*time.Millisecond {
			return fmt.Errorf("nothing arrived for %v", gap)
		}
		return nil
	})
}

// Transfer is a TCP connection on which random bytes go one way, a kilobyte
// every few milliseconds. Both ends make a checksum of them.
type Transfer struct {
	arrivals

	conn     net.Conn // of who dialled
	sender   net.Conn
	write    int // how much at once
	stop     chan struct{}
	sent     chan result
	received chan result
}

// Info returns what the kernel of who sends knows of the connection (TCP_INFO).
func (x *Transfer) Info(t testing.TB) *unix.TCPInfo {
	t.Helper()
	raw, err := x.sender.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	controlled := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	if err = errors.Join(controlled, err); err != nil {
		t.Fatal(err)
	}
	return info
}

// result is what one end knows after the end of a Transfer.
type result struct {
	bytes int64
	sum   [sha256.Size]byte
	err   error
}

func (r result) String() string {
	return fmt.Sprintf("%d bytes with checksum %x, error %v", r.bytes, r.sum[:4], r.err)
}

// paceInterval is the distance of the writes of a Transfer and of a Pulse.
const paceInterval = 10 * time.Millisecond

// StartTransfer connects two hosts and waits until bytes arrive.
func StartTransfer(t testing.TB, from, to *Host, address string) *Transfer {
	t.Helper()
	return startTransfer(t, from, to, address, 1<<10)
}

// StartBulk is StartTransfer with writes of several packets each, so that the
// packets are as long as they may be.
func StartBulk(t testing.TB, from, to *Host, address string) *Transfer {
	t.Helper()
	return startTransfer(t, from, to, address, 24<<10)
}

func startTransfer(t testing.TB, from, to *Host, address string, write int) *Transfer {
	t.Helper()
	x, err := openTransfer(t, dialFrom(from, address), to, address, write)
	if err != nil {
		t.Fatal(err)
	}
	x.Steady(t, 30*time.Second)
	return x
}

// OpenBulk is StartBulk without the wait for bytes, and for other goroutines than
// the test's: several transfers can be opened at the same time.
func OpenBulk(t testing.TB, from, to *Host, address string) (*Transfer, error) {
	return openTransfer(t, dialFrom(from, address), to, address, 24<<10)
}

// OpenDownload is OpenBulk with the bytes going from who listens to who dials.
func OpenDownload(t testing.TB, to, from *Host, address string) (*Transfer, error) {
	x := newTransfer(24 << 10)
	ready := make(chan net.Conn, 1)
	err := x.open(t, dialFrom(to, address), from, address, func(c net.Conn) { ready <- c })
	if err != nil {
		return nil, err
	}
	select {
	case x.sender = <-ready:
	case <-time.After(30 * time.Second):
		return nil, errors.New("connected to somebody else")
	}
	t.Cleanup(func() { x.sender.Close() })
	go func() { x.received <- x.receive(x.conn) }()
	go func() { x.sent <- x.send() }()
	return x, nil
}

// OpenBulkBy is OpenBulk over the connection that dial makes, to who listens at the
// address on the host.
func OpenBulkBy(t testing.TB, dial func(context.Context) (net.Conn, error), to *Host, address string) (*Transfer, error) {
	return openTransfer(t, dial, to, address, 24<<10)
}

func dialFrom(from *Host, address string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) { return from.Dial(ctx, "tcp", address) }
}

func newTransfer(write int) *Transfer {
	return &Transfer{write: write, stop: make(chan struct{}), sent: make(chan result, 1), received: make(chan result, 1)}
}

func openTransfer(t testing.TB, dial func(context.Context) (net.Conn, error), to *Host, address string, write int) (*Transfer, error) {
	x := newTransfer(write)
	err := x.open(t, dial, to, address, func(c net.Conn) {
		defer c.Close()
		x.received <- x.receive(c)
	})
	if err != nil {
		return nil, err
	}
	x.sender = x.conn
	go func() { x.sent <- x.send() }()
	return x, nil
}

// open makes the connection: accepted is called with the other end of it, on a
// goroutine of its own.
func (x *Transfer) open(t testing.TB, dial func(context.Context) (net.Conn, error), to *Host, address string, accepted func(net.Conn)) error {
	var l net.Listener
	if err := to.Try(func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	}); err != nil {
		return err
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			x.received <- result{err: err}
			return
		}
		keepOpen(c)
		accepted(c)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var err error
	if x.conn, err = dial(ctx); err != nil {
		return err
	}
	t.Cleanup(func() { x.conn.Close() })
	keepOpen(x.conn)
	return nil
}

// keepOpen has a connection last without its peer: what Go does by itself ends it
// after two and a half minutes.
func keepOpen(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetKeepAlive(false)
	}
}

func (x *Transfer) send() result {
	tick := time.NewTicker(paceInterval)
	defer tick.Stop()
	sum, source, b := sha256.New(), rand.NewChaCha8([32]byte{1}), make([]byte, x.write)
	r := result{}
	for {
		select {
		case <-x.stop:
			sum.Sum(r.sum[:0])
			return r
		case <-tick.C:
		}
		source.Read(b)
		sum.Write(b)
		n, err := x.sender.Write(b)
		if r.bytes += int64(n); err != nil {
			r.err = err
			return r
		}
	}
}

func (x *Transfer) receive(c io.Reader) result {
	sum, b := sha256.New(), make([]byte, 64<<10)
	r := result{}
	for {
		n, err := c.Read(b)
		sum.Write(b[:n])
		if r.bytes += int64(n); n > 0 {
			x.now()
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				r.err = err
			}
			return r.with(sum)
		}
	}
}

func (r result) with(sum hash.Hash) result {
	sum.Sum(r.sum[:0])
	return r
}

// Finish ends the transfer and requires that everything arrived as it was sent,
// on the one connection. It returns the number of bytes.
func (x *Transfer) Finish(t testing.TB) int64 {
	t.Helper()
	close(x.stop)
	sent := <-x.sent
	closeWrite(x.sender)
	select {
	case received := <-x.received:
		if sent != received || sent.err != nil {
			t.Errorf("sent %v, and received %v", sent, received)
		}
	case <-time.After(30 * time.Second):
		t.Errorf("%d bytes were sent, and the end did not arrive", sent.bytes)
	}
	return sent.bytes
}

// Pulse is a flow of UDP datagrams with numbers, one every few milliseconds,
// without any repetition: it shows what a path does.
type Pulse struct {
	arrivals

	sent atomic.Uint64
	stop chan struct{}
	once sync.Once // closes stop
	done chan struct{}

	mu       sync.Mutex // protects all below
	seen     map[uint64]bool
	highest  uint64 // of seen
	overtook int    // how many came after a later one
	repeated int
	wrong    int
}

// StartPulse sends datagrams from one host to the other until the test ends, and
// waits until they arrive steadily.
func StartPulse(t testing.TB, from, to *Host, address string) *Pulse {
	t.Helper()
	p := StartLossyPulse(t, from, to, address)
	p.Steady(t, 30*time.Second)
	return p
}

// StartLossyPulse is StartPulse where they need not arrive steadily: it waits for
// none.
func StartLossyPulse(t testing.TB, from, to *Host, address string) *Pulse {
	t.Helper()
	p := &Pulse{seen: make(map[uint64]bool), stop: make(chan struct{}), done: make(chan struct{})}
	s := to.ListenPacket(t, address)
	go func() {
		b := make([]byte, 64)
		for {
			n, _, err := s.ReadFrom(b)
			if err != nil {
				return
			}
			p.arrived(b[:n])
		}
	}()
	c, err := from.Dial(t.Context(), "udp", s.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		defer close(p.done)
		tick := time.NewTicker(paceInterval)
		defer tick.Stop()
		for {
			select {
			case <-t.Context().Done():
				return
			case <-p.stop:
				return
			case <-tick.C:
				number := p.sent.Add(1)
				// That one is refused, for want of a route, is for the gap to tell.
				c.Write(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, number), ^number))
			}
		}
	}()
	return p
}

// Stop ends the sending and returns when nothing is sent any more. What is on its way
// still arrives.
func (p *Pulse) Stop() {
	p.once.Do(func() { close(p.stop) })
	<-p.done
}

// Sent returns how many datagrams were sent: the number of the last one.
func (p *Pulse) Sent() uint64 { return p.sent.Load() }

// Highest returns the highest number of those that arrived, zero for none.
func (p *Pulse) Highest() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.highest
}

// Missing returns how many of the datagrams after a number, up to another one, have
// not arrived.
func (p *Pulse) Missing(after, last uint64) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for number := after + 1; number <= last; number++ {
		if !p.seen[number] {
			n++
		}
	}
	return n
}

// Overtaken returns how many datagrams arrived after a later one.
func (p *Pulse) Overtaken() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.overtook
}

// Count returns how many datagrams arrived.
func (p *Pulse) Count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.seen) + p.wrong
}

func (p *Pulse) arrived(b []byte) {
	p.now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(b) != 16 || binary.BigEndian.Uint64(b) != ^binary.BigEndian.Uint64(b[8:]) {
		p.wrong++
		return
	}
	number := binary.BigEndian.Uint64(b)
	if p.seen[number] {
		p.repeated++
	}
	p.seen[number] = true
	if number < p.highest {
		p.overtook++
	}
	p.highest = max(p.highest, number)
}

// Faults returns how many datagrams arrived twice, and how many that were never
// sent.
func (p *Pulse) Faults() (repeated, wrong int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.repeated, p.wrong
}
