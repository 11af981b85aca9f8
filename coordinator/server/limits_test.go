package server

import (
	"context"
	"crypto/rand"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/wire/channel"
)

// TestStrangersKeepTheirPlaceUntilKnown holds connections open after the
// handshake: one address has no more of them than of handshakes, and gets a
// place back when one ends (F21).
func TestStrangersKeepTheirPlaceUntilKnown(t *testing.T) {
	s := startRunning(t)
	dial := func() (*channel.Conn, error) {
		machine, err := ident.NewMachinePrivate(rand.Reader)
		if err != nil {
			t.Error(err)
		}
		return channel.Dial(context.Background(), channel.DialConfig{
			URL: s.url, Machine: machine, Coordinator: s.genesis.Channel, Network: s.Fingerprint(), Rand: rand.Reader,
		})
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []*channel.Conn
	const dialers, each = 16, 40 // more than there are places
	for range dialers {
		wg.Go(func() {
			for range each {
				c, err := dial()
				if err != nil {
					continue
				}
				mu.Lock()
				open = append(open, c)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	sessions := func() (n int) {
		if err := s.do(t.Context(), func() { n = len(s.conns) }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := sessions(); n == 0 || n > maxUnknownOfOne || len(open) != maxUnknownOfOne {
		t.Errorf("%d connections of strangers from one address, %d sessions; want %d", len(open), n, maxUnknownOfOne)
	}
	for _, c := range open {
		c.Close()
	}
	deadline := time.Now().Add(10 * time.Second)
	for c, err := dial(); ; c, err = dial() {
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("there is no place after all have left: %v", err)
		}
	}
}

// TestPlacesAreCounted gives places and takes them back.
func TestPlacesAreCounted(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	l := newLimits()
	address := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, byte(i >> 16), byte(i >> 8), byte(i)}) }
	var releases []func()
	for of := range maxUnknown / maxUnknownOfOne {
		for i := range maxUnknownOfOne {
			release, ok := l.admit(address(of), now)
			if !ok {
				t.Fatalf("address %d, place %d: refused", of, i)
			}
			releases = append(releases, release)
		}
		if _, ok := l.admit(address(of), now); ok {
			t.Fatalf("address %d has more than %d places", of, maxUnknownOfOne)
		}
	}
	if _, ok := l.admit(address(99), now); ok {
		t.Fatalf("more than %d places", maxUnknown)
	}
	for _, release := range releases {
		release()
		release() // a second call changes nothing
	}
	if l.unknown != 0 {
		t.Errorf("%d places are taken after all were given back", l.unknown)
	}
	if _, ok := l.admit(address(0), now); !ok {
		t.Error("no place after all were given back")
	}
	// A flood of addresses pushes out the oldest, not those with a connection.
	for i := range maxAddresses + 10 {
		l.mayRecord(address(1000+i), now)
	}
	if len(l.addresses) != maxAddresses || l.recent.Len() != maxAddresses {
		t.Errorf("%d addresses are remembered", len(l.addresses))
	}
	if l.addresses[address(0)] == nil || l.addresses[address(1000)] != nil || l.addresses[address(1000+maxAddresses+9)] == nil {
		t.Error("not the oldest was forgotten")
	}
	l.forget(now.Add(time.Hour))
	if len(l.addresses) != 1 || l.recent.Len() != 1 {
		t.Errorf("after an hour %d addresses are remembered", len(l.addresses))
	}
}
