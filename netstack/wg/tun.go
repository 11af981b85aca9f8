package wg

import (
	"errors"
	"os"
	"sync"

	"golang.zx2c4.com/wireguard/tun"

	ourtun "github.com/warren-overlay/warren/netstack/tun"
)

// adapter gives a TUN the rest of the shape that the implementation wants.
type adapter struct {
	TUN
	bind   *bind
	events chan tun.Event

	mu     sync.Mutex // protects closed, and sending on events
	closed bool
}

var _ tun.Device = (*adapter)(nil)

func newAdapter(t TUN, b *bind) *adapter {
	return &adapter{TUN: t, bind: b, events: make(chan tun.Event, 1)}
}

// Read implements tun.Device. The implementation knows its own errors only.
func (a *adapter) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := a.TUN.Read(bufs, sizes, offset)
	at := a.bind.sinceMade()
	for i, size := range sizes[:n] {
		if size > 0 {
			stamp(bufs[i], offset+size+sealTag, at)
		}
	}
	switch {
	case err == nil:
	case errors.Is(err, ourtun.ErrTooManySegments):
		err = tun.ErrTooManySegments
	case a.isClosed():
		err = os.ErrClosed
	}
	return n, err
}

// Write implements tun.Device.
func (a *adapter) Write(bufs [][]byte, offset int) (int, error) {
	a.bind.opened(bufs, offset)
	return a.TUN.Write(bufs, offset)
}

// File implements tun.Device; nobody asks.
func (a *adapter) File() *os.File { return nil }

// Events implements tun.Device. The device is brought up by its owner, so the
// only event is a new MTU.
func (a *adapter) Events() <-chan tun.Event { return a.events }

// Close implements tun.Device.
func (a *adapter) Close() error {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil
	}
	a.closed = true
	close(a.events)
	a.mu.Unlock()
	return a.TUN.Close()
}

func (a *adapter) isClosed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.closed
}

func (a *adapter) notifyMTU() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	select {
	case a.events <- tun.EventMTUUpdate:
	default: // one is waiting already
	}
}
