package wg

import (
	"net/netip"
	"sync"
	"testing"
)

// TestSourceOfOpenedPackets: it is known by which way each packet came: from the
// peer, from a stranger who carried it, and over a relay.
func TestSourceOfOpenedPackets(t *testing.T) {
	a, b, atA, _ := connected(t)
	var mu sync.Mutex
	sources := make(map[byte]Origin) // by the packets' last byte; protected by mu
	written := func(buf []byte, offset int) {
		mu.Lock()
		defer mu.Unlock()
		if from, ok := b.device.Source(buf, offset); ok {
			sources[buf[len(buf)-1]] = from
		}
	}
	b.tun.written.Store(&written)
	source := func(content byte) (from Origin, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		from, ok = sources[content]
		return from, ok
	}

	pass(t, a, b, 10)
	if from, ok := source(10); !ok || from != (Origin{Addr: a.at}) {
		t.Errorf("direct: from %v, %v, want %v", from, ok, a.at)
	}

	carried(t, a, b, 11)
	if from, ok := source(11); !ok || from.Addr == a.at || !from.Addr.IsValid() {
		t.Errorf("carried by a stranger: from %v, %v", from, ok)
	}

	relay := &recordingRelay{}
	atA.SetPath(Path{Relay: pipe{a.key, b.device, relay}})
	pass(t, a, b, 12)
	if from, ok := source(12); !ok || from != (Origin{Relay: relay}) {
		t.Errorf("relayed: from %v, %v", from, ok)
	}
}

// TestArrivals: what came from two places came from nowhere that is known, one
// path's packets are one run however many there are, and a forged counter does
// not claim all that is to come.
func TestArrivals(t *testing.T) {
	x, y := Origin{Addr: netip.MustParseAddrPort("1.1.1.1:1")}, Origin{Addr: netip.MustParseAddrPort("2.2.2.2:2")}
	var a arrivals
	if _, ok := a.source(0, 0); ok {
		t.Error("an empty memory knows something")
	}
	for i := range uint64(1000) {
		a.note(arrivalRun{7, 10 * i, 10*i + 9, x, true})
	}
	for _, counter := range []uint64{0, 5000, 9999} {
		if from, ok := a.source(7, counter); !ok || from != x {
			t.Errorf("%d came from %v, %v", counter, from, ok)
		}
	}
	if _, ok := a.source(7, 10000); ok {
		t.Error("what did not come is known")
	}
	if _, ok := a.source(8, 5); ok {
		t.Error("another session's packet is known")
	}
	a.note(arrivalRun{7, 5000, 5000, y, true})
	if _, ok := a.source(7, 5000); ok {
		t.Error("a packet that came from two places came from one of them")
	}
	a.note(arrivalRun{7, 1 << 40, 1 << 40, x, true})
	a.note(arrivalRun{7, 20000, 20010, y, true})
	if from, ok := a.source(7, 20005); !ok || from != y {
		t.Errorf("after a forged counter: %v, %v", from, ok)
	}
}
