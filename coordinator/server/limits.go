package server

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits on what strangers can cost (F21, F22, W04).
const (
	// maxUnknown bounds the connections of which it is not known that a member
	// is at the other end: those in the handshake, and those of devices that
	// have yet to register. One costs some 40 KB until its timeout.
	maxUnknown = 2048
	// maxUnknownOfOne is how many of them one address may have, so that it
	// cannot keep all others out.
	maxUnknownOfOne = 512
	// connsPerSecond and connsBurst bound the new connections of one address.
	// The burst lets a whole office behind one address come back at once.
	connsPerSecond, connsBurst = 200, 4096
	// refusalsPerMinute and refusalsPerSecond bound the refused registrations
	// that have an entry of their own in the audit log: of one address, and of
	// all. What is over is counted there. The join key is looked at all the
	// same: nobody guesses 256 bits, and a typing error behind an address must
	// not keep its neighbours out.
	refusalsPerMinute, refusalsPerSecond = 10, 10
	// maxAddresses bounds the addresses that are remembered. Over it, the one
	// that did nothing for the longest and has no connection is forgotten.
	maxAddresses = 1 << 16
)

// limits counts what strangers do.
type limits struct {
	mu        sync.Mutex // protects all below
	unknown   int
	addresses map[netip.Addr]*list.Element
	// recent holds the *allowance values, the one last used in front.
	recent   *list.List
	refusals *rate.Limiter
}

// allowance is what one address may still do.
type allowance struct {
	address         netip.Addr
	unknown         int
	conns, refusals *rate.Limiter
	last            time.Time
}

func newLimits() *limits {
	return &limits{
		addresses: make(map[netip.Addr]*list.Element), recent: list.New(),
		refusals: rate.NewLimiter(refusalsPerSecond, refusalsPerSecond),
	}
}

// ofLocked returns the allowance of an address. IPv6 addresses count by their
// /64, which is what one host has.
func (l *limits) ofLocked(a netip.Addr, now time.Time) *allowance {
	if a.Is6() {
		a = netip.PrefixFrom(a, 64).Masked().Addr()
	}
	element := l.addresses[a]
	if element == nil {
		if len(l.addresses) >= maxAddresses {
			l.evictLocked()
		}
		element = l.recent.PushFront(&allowance{
			address: a, conns: rate.NewLimiter(connsPerSecond, connsBurst),
			refusals: rate.NewLimiter(rate.Every(time.Minute/refusalsPerMinute), refusalsPerMinute),
		})
		l.addresses[a] = element
	}
	l.recent.MoveToFront(element)
	got := element.Value.(*allowance)
	got.last = now
	return got
}

// evictLocked forgets one address. There is one without a connection: there are
// more addresses than connections.
func (l *limits) evictLocked() {
	for element := l.recent.Back(); element != nil; element = element.Prev() {
		if got := element.Value.(*allowance); got.unknown == 0 {
			delete(l.addresses, got.address)
			l.recent.Remove(element)
			return
		}
	}
}

// admit asks whether an address may have another connection of which nothing is
// known; release tells that something is, or that it ended. It may be called
// more than once.
func (l *limits) admit(a netip.Addr, now time.Time) (release func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.ofLocked(a, now)
	if l.unknown >= maxUnknown || of.unknown >= maxUnknownOfOne || !of.conns.AllowN(now, 1) {
		return nil, false
	}
	l.unknown++
	of.unknown++
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.unknown--
		of.unknown--
	}), true
}

// mayRecord asks whether a refused registration has an audit entry of its own.
func (l *limits) mayRecord(a netip.Addr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ofLocked(a, now).refusals.AllowN(now, 1) && l.refusals.AllowN(now, 1)
}

// forget drops the addresses that did nothing for as long as it takes to be
// allowed everything again.
func (l *limits) forget(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for element := l.recent.Back(); element != nil; {
		got, next := element.Value.(*allowance), element.Prev()
		if now.Sub(got.last) <= 2*time.Minute {
			return // all in front of it were used later
		}
		if got.unknown == 0 {
			delete(l.addresses, got.address)
			l.recent.Remove(element)
		}
		element = next
	}
}
