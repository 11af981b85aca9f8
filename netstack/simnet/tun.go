package simnet

import (
	"os"
	"sync"

	"github.com/warren-overlay/warren/netstack/tun"
)

// TUN is a device between a simulated host's applications and the overlay. The
// applications are the test: Send is a packet that they send, Received what
// reached them.
type TUN struct {
	mtu      int
	outbound chan []byte
	received chan []byte
	closed   chan struct{}
	once     sync.Once

	// mu protects settings.
	mu       sync.Mutex
	settings tun.Settings
}

var _ tun.Device = (*TUN)(nil)

// tunQueue is how many packets wait in each direction, as a system's transmit
// queue of 500 would hold.
const tunQueue = 512

// NewTUN returns a device. It must be called inside the bubble. mtu 0 means
// tun.DefaultMTU.
func NewTUN(mtu int) *TUN {
	if mtu == 0 {
		mtu = tun.DefaultMTU
	}
	return &TUN{
		mtu:      mtu,
		outbound: make(chan []byte, tunQueue), received: make(chan []byte, tunQueue),
		closed: make(chan struct{}),
	}
}

// Send puts an IP packet of the host's into the overlay. It reports false where
// the device is closed, its queue full, or the packet over the MTU: the packet
// is dropped then. The packet is copied.
func (t *TUN) Send(packet []byte) bool {
	if len(packet) > t.mtu {
		return false
	}
	select {
	case <-t.closed:
		return false
	default:
	}
	select {
	case t.outbound <- append([]byte(nil), packet...):
		return true
	default:
		return false
	}
}

// Received returns the packets that the overlay delivered to the host. The
// channel is never closed.
func (t *TUN) Received() <-chan []byte { return t.received }

// Settings returns what Configure was last called with.
func (t *TUN) Settings() tun.Settings {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.settings
}

// Read implements tun.Device.
func (t *TUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n := 0
	take := func(p []byte) {
		sizes[n] = copy(bufs[n][offset:], p)
		n++
	}
	select {
	case <-t.closed:
		return 0, os.ErrClosed
	case p := <-t.outbound:
		take(p)
	}
	for n < len(bufs) {
		select {
		case p := <-t.outbound:
			take(p)
		default:
			return n, nil
		}
	}
	return n, nil
}

// Write implements tun.Device. Packets beyond what the host's queue holds are
// dropped.
func (t *TUN) Write(bufs [][]byte, offset int) (int, error) {
	select {
	case <-t.closed:
		return 0, os.ErrClosed
	default:
	}
	n := 0
	for _, b := range bufs {
		select {
		case t.received <- append([]byte(nil), b[offset:]...):
			n++
		default:
		}
	}
	return n, nil
}

// MTU implements tun.Device.
func (t *TUN) MTU() (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mtu, nil
}

// Name implements tun.Device.
func (t *TUN) Name() (string, error) { return "simulated", nil }

// BatchSize implements tun.Device.
func (t *TUN) BatchSize() int { return batchSize }

// Configure implements tun.Device; it remembers the settings.
func (t *TUN) Configure(s tun.Settings) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settings = tun.Settings{
		Addresses: append(s.Addresses[:0:0], s.Addresses...),
		Routes:    append(s.Routes[:0:0], s.Routes...),
		MTU:       s.MTU,
	}
	return nil
}

// Close implements tun.Device.
func (t *TUN) Close() error {
	t.once.Do(func() { close(t.closed) })
	return nil
}
