package wg

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// TestFurtherSocket: packets to a peer leave by the socket of its path, what comes
// there is opened and known to have come there, what is not WireGuard's goes to the
// socket's own control, and a closed socket sends and takes nothing.
func TestFurtherSocket(t *testing.T) {
	a, b, atA, atB := connected(t)
	controlled := make(chan []byte, 16)
	s, err := a.device.OpenSocket(7, func(packet []byte, from netip.AddrPort) {
		if from != b.at {
			t.Errorf("from %v, want %v", from, b.at)
		}
		controlled <- bytes.Clone(packet)
	})
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.conn.LocalPort())
	var mu sync.Mutex
	arrived := make(map[byte]Origin) // by the packets' last byte; protected by mu
	written := func(side *side) *func(buf []byte, offset int) {
		f := func(buf []byte, offset int) {
			mu.Lock()
			defer mu.Unlock()
			if from, ok := side.device.Source(buf, offset); ok {
				arrived[buf[len(buf)-1]] = from
			}
		}
		return &f
	}
	a.tun.written.Store(written(a))
	b.tun.written.Store(written(b))
	from := func(content byte) Origin {
		mu.Lock()
		defer mu.Unlock()
		return arrived[content]
	}

	if err := b.device.SendControl([]byte{200, 1}, at); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, controlled); !bytes.Equal(got, []byte{200, 1}) {
		t.Errorf("control got % x", got)
	}
	if err := s.Send([]byte{200, 2}, b.at); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, b.control); !bytes.Equal(got, []byte{200, 2}) {
		t.Errorf("the peer's control got % x", got)
	}

	atA.SetPath(Path{Direct: b.at, Socket: s})
	atB.SetPath(Path{Direct: at})
	pass(t, a, b, 20)
	if got := from(20); got != (Origin{Addr: at}) {
		t.Errorf("at the peer: %v, want from %v", got, at)
	}
	for content := byte(21); content < 60; content++ {
		pass(t, b, a, content)
		if got := from(content); got != (Origin{Addr: b.at, Socket: 7}) {
			t.Errorf("at the socket: %v, want from %v at 7", got, b.at)
		}
	}

	s.Close()
	s.Close()
	before := a.device.Counters().SendErrors
	a.tun.out <- packet(a.addr, b.addr, 61)
	for begin := time.Now(); a.device.Counters().SendErrors == before; {
		if time.Since(begin) > patience {
			t.Fatal("what was sent by a closed socket is not counted")
		}
		a.tun.out <- packet(a.addr, b.addr, 61)
	}
	if err := s.Send(nil, b.at); !errors.Is(err, net.ErrClosed) {
		t.Errorf("sending by a closed socket: %v", err)
	}
	// Close of the device ends those that are open, and no more are opened.
	if _, err = a.device.OpenSocket(8, func([]byte, netip.AddrPort) {}); err != nil {
		t.Fatal(err)
	}
	a.device.Close()
	if _, err = a.device.OpenSocket(9, func([]byte, netip.AddrPort) {}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("opening a socket of a device that has ended: %v", err)
	}
}
