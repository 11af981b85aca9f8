package server

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits on what strangers can cost (F21, F22, W04).
const (
	// maxHandshakes bounds the handshakes that go on at a time. One costs some
	// 40 KB until its timeout.
	maxHandshakes = 2048
	// maxStrangers bounds the connections of devices that are not members,
	// which stay for SetupTimeout a step.
	maxStrangers = 4096
	// connsPerSecond and connsBurst bound the new connections of one address.
	// The burst lets a whole office behind one address come back at once.
	connsPerSecond, connsBurst = 200, 4096
	// triesPerMinute bounds the refused join keys of one address: each is an
	// entry in the audit log.
	triesPerMinute = 10
	// maxAddresses bounds the addresses that are remembered. Over it, all are
	// forgotten: a flood from many addresses is bounded by maxHandshakes.
	maxAddresses = 1 << 16
)

// limits counts what strangers do.
type limits struct {
	mu         sync.Mutex // protects all below
	handshakes int
	addresses  map[netip.Addr]*allowance
}

// allowance is what one address may still do.
type allowance struct {
	conns, tries *rate.Limiter
	last         time.Time
}

func newLimits() *limits { return &limits{addresses: make(map[netip.Addr]*allowance)} }

// of returns the allowance of an address. IPv6 addresses count by their /64,
// which is what one host has.
func (l *limits) ofLocked(a netip.Addr, now time.Time) *allowance {
	if a.Is6() {
		a = netip.PrefixFrom(a, 64).Masked().Addr()
	}
	got := l.addresses[a]
	if got == nil {
		if len(l.addresses) >= maxAddresses {
			clear(l.addresses)
		}
		got = &allowance{
			conns: rate.NewLimiter(connsPerSecond, connsBurst),
			tries: rate.NewLimiter(rate.Every(time.Minute/triesPerMinute), triesPerMinute),
		}
		l.addresses[a] = got
	}
	got.last = now
	return got
}

// admit asks whether an address may begin a handshake; release tells that the
// handshake is over.
func (l *limits) admit(a netip.Addr, now time.Time) (release func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.handshakes >= maxHandshakes || !l.ofLocked(a, now).conns.AllowN(now, 1) {
		return nil, false
	}
	l.handshakes++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.handshakes--
	}, true
}

// mayTry asks whether an address may present a join key.
func (l *limits) mayTry(a netip.Addr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ofLocked(a, now).tries.TokensAt(now) >= 1
}

// tried counts a refused join key.
func (l *limits) tried(a netip.Addr, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ofLocked(a, now).tries.AllowN(now, 1)
}

// forget drops the addresses that did nothing for as long as it takes to be
// allowed everything again.
func (l *limits) forget(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for a, got := range l.addresses {
		if now.Sub(got.last) > 2*time.Minute {
			delete(l.addresses, a)
		}
	}
}
