package wg

import (
	"bytes"
	"fmt"
	"testing"
	"time"
)

// lastByte returns the content of a packet.
func lastByte(b []byte) byte { return b[len(b)-1] }

// TestDivertedPacket: of the packets to a peer, those that were marked go over the
// relay and no others, whatever the path is; also where the device has to make a
// session for them first.
func TestDivertedPacket(t *testing.T) {
	a, b := newSide(t, "100.64.0.1"), newSide(t, "100.64.0.2")
	atA := a.add(t, b)
	b.add(t, a).SetPath(Path{Direct: a.at})
	relay := &recordingRelay{}
	// What is relayed is passed on at the end, so that it can be told from the rest.
	reading := func(buf []byte, _ int) {
		if lastByte(buf)%2 == 1 && !a.device.Divert(buf, b.key, relay) {
			t.Error("no room")
		}
	}
	a.tun.reading.Store(&reading)
	atA.SetPath(Path{Direct: b.at})
	a.tun.out <- packet(a.addr, b.addr, 1) // waits for a session
	for content := byte(2); content < 40; content++ {
		a.tun.out <- packet(a.addr, b.addr, content)
	}
	for content := byte(2); content < 40; content += 2 {
		if got := receive(t, b.tun.in); lastByte(got) != content {
			t.Fatalf("on the path: % x, want %d", got, content)
		}
	}
	eventually(t, func() error {
		relay.mu.Lock()
		defer relay.mu.Unlock()
		if len(relay.sent) != 20 {
			return fmt.Errorf("%d packets over the relay, want 20", len(relay.sent))
		}
		return nil
	})
	if n := atA.diverted.waiting.Load(); n > 0 {
		t.Errorf("%d packets are waited for", n)
	}
	relay.mu.Lock()
	defer relay.mu.Unlock()
	for i, sealed := range relay.sent {
		b.device.HandleRelayed(relay, a.key, sealed)
		if got, want := receive(t, b.tun.in), packet(a.addr, b.addr, byte(2*i+1)); !bytes.Equal(got, want) {
			t.Errorf("over the relay: % x, want % x", got, want)
		}
	}
	if got := a.device.Counters().Sent[LinkRelay].Packets; got != 20 {
		t.Errorf("%d packets are counted", got)
	}
}

// TestDiversions: what is never sent is forgotten after a while, and is bounded.
func TestDiversions(t *testing.T) {
	var v diversions
	now := time.Unix(1000, 0)
	relay, other := &recordingRelay{}, &recordingRelay{}
	bufs := make([][]byte, maxDiverted+1)
	for i := range bufs {
		bufs[i] = make([]byte, 8)
		if room := v.add(bufs[i], relay, now); room != (i < maxDiverted) {
			t.Fatalf("%d: room %v", i, room)
		}
	}
	if !v.add(bufs[0], other, now) || v.waiting.Load() != maxDiverted {
		t.Errorf("a buffer that is used again takes more room: %d", v.waiting.Load())
	}
	if got := v.take(bufs[maxDiverted], now); got != nil {
		t.Error("what did not fit is diverted")
	}
	if got := v.take(bufs[0], now); got != Relay(other) {
		t.Errorf("it goes over %v", got)
	}
	if got := v.take(bufs[0], now); got != nil {
		t.Error("it is diverted twice")
	}
	if n := v.waiting.Load(); n != maxDiverted-1 {
		t.Errorf("%d wait after one was sent", n)
	}
	late := now.Add(divertedFor)
	if !v.add(bufs[0], relay, late) || v.waiting.Load() != 1 {
		t.Errorf("%d wait after the time of the others", v.waiting.Load())
	}
	// Whatever is sent next ends the wait for what never was.
	if got := v.take(bufs[1], late.Add(divertedFor)); got != nil {
		t.Error("it is diverted after its time")
	}
	if n := v.waiting.Load(); n != 0 {
		t.Errorf("%d wait for ever", n)
	}
}

// TestDiversionsOfOnePeer: a peer whose packets wait for a session leaves room for
// those of the others.
func TestDiversionsOfOnePeer(t *testing.T) {
	a, silent, well := newSide(t, "100.64.0.1"), newSide(t, "100.64.0.2"), newSide(t, "100.64.0.3")
	a.add(t, silent, well)
	relay := &recordingRelay{}
	for a.device.Divert(make([]byte, 8), silent.key, relay) {
	}
	if !a.device.Divert(make([]byte, 8), well.key, relay) {
		t.Error("no room for another peer's")
	}
	if a.device.Divert(make([]byte, 8), a.key, relay) {
		t.Error("room for one that goes to no peer")
	}
}
