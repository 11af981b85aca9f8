package wg

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

// sized is packet with so many bytes.
func sized(a, b *side, length int) []byte {
	p := make([]byte, length)
	copy(p, packet(a.addr, b.addr, 1))
	binary.BigEndian.PutUint16(p[2:], uint16(length))
	return p
}

// TestStampsSurvive: whatever the padding, a packet is told to have waited, both
// ways, and no longer than it was there.
func TestStampsSurvive(t *testing.T) {
	a, b, atA, _ := connected(t)
	type arrived struct {
		waited time.Duration
		ok     bool
	}
	told := make(chan arrived, 1)
	written := func(buf []byte, offset int) {
		waited, ok := b.device.Waited(buf, offset)
		told <- arrived{waited, ok}
	}
	b.tun.written.Store(&written)
	const mtu = 1420
	for length := 21; length <= mtu; length += 7 {
		before, began := atA.Waiting(), time.Now()
		want := sized(a, b, length)
		a.tun.out <- want
		got := receive(t, told)
		if !got.ok || got.waited > time.Since(began) {
			t.Fatalf("%d bytes: waited %v, %v", length, got.waited, got.ok)
		}
		if got := receive(t, b.tun.in); !bytes.Equal(got, want) {
			t.Fatalf("%d bytes changed on their way", length)
		}
		sealed := uint64(32 + min((length+15)&^15, mtu))
		after := atA.Waiting()
		if after.Bytes-before.Bytes != sealed {
			t.Fatalf("%d bytes: %d counted, want %d", length, after.Bytes-before.Bytes, sealed)
		}
		if least := time.Duration((after.ByteMicroseconds-before.ByteMicroseconds)/sealed) * time.Microsecond; least > time.Since(began) {
			t.Fatalf("%d bytes: waited %v", length, least)
		}
	}
}

// TestWaitedFor: what waits for another packet to be written is told to have waited
// for it.
func TestWaitedFor(t *testing.T) {
	a, b, _, _ := connected(t)
	first, release := make(chan struct{}), make(chan struct{})
	waits := make(chan time.Duration, 2)
	n := 0
	written := func(buf []byte, offset int) {
		if n++; n == 1 {
			close(first)
			<-release
		}
		waited, _ := b.device.Waited(buf, offset)
		waits <- waited
	}
	b.tun.written.Store(&written)
	received := func() (n uint64) {
		for _, link := range b.device.Counters().Received {
			n += link.Packets
		}
		return n
	}
	a.tun.out <- packet(a.addr, b.addr, 1)
	receive(t, first)
	before := received()
	a.tun.out <- packet(a.addr, b.addr, 2)
	for deadline := time.Now().Add(patience); received() == before; {
		if time.Now().After(deadline) {
			t.Fatal("the second packet was not received")
		}
	}
	began := time.Now()
	for range 50 {
		pass(t, b, a, 3) // the second packet waits meanwhile
	}
	least := time.Since(began)
	close(release)
	for range 2 {
		if waited := receive(t, waits); waited < least || waited > patience {
			t.Errorf("waited %v, at least %v", waited, least)
		}
	}
}

// slowRelay takes a while for each packet.
type slowRelay struct{ turns chan struct{} }

func (r slowRelay) SendPackets(ident.NodeKey, [][]byte) { <-r.turns }

// TestWaitingToBeSent: the same in the other direction.
func TestWaitingToBeSent(t *testing.T) {
	a, b, atA, _ := connected(t)
	relay := slowRelay{make(chan struct{})}
	atA.SetPath(Path{Relay: relay})
	before := atA.Waiting()
	a.tun.out <- packet(a.addr, b.addr, 1)
	a.tun.out <- packet(a.addr, b.addr, 2)
	for deadline := time.Now().Add(patience); len(a.tun.out) > 0; {
		if time.Now().After(deadline) {
			t.Fatal("the second packet was not read")
		}
	}
	began := time.Now()
	for range 50 {
		pass(t, b, a, 3)
	}
	least := time.Since(began)
	for range 2 {
		relay.turns <- struct{}{}
	}
	after := func() Waiting {
		w := atA.Waiting()
		return Waiting{w.Bytes - before.Bytes, w.ByteMicroseconds - before.ByteMicroseconds}
	}
	const sealed = 32 + 32
	for deadline := time.Now().Add(patience); after().Bytes < 2*sealed; {
		if time.Now().After(deadline) {
			t.Fatalf("%+v counted", after())
		}
	}
	if waited := time.Duration(after().ByteMicroseconds/sealed) * time.Microsecond; waited < least {
		t.Errorf("both waited %v, the second alone at least %v", waited, least)
	}
	atA.SetPath(Path{Direct: b.at})
	close(relay.turns)
}
