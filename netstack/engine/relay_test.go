package engine

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/simnet"
)

// initiationOf returns a packet of the form of a handshake's first message.
func initiationOf(mark byte) []byte {
	b := bytes.Repeat([]byte{mark}, 148)
	binary.LittleEndian.PutUint32(b, 1)
	return b
}

// TestRelayHoldsPackets sends to a relay that is not connected: what waits is
// bounded, goes to the relay that takes its place, and does not grow old.
func TestRelayHoldsPackets(t *testing.T) {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	e, err := New(Config{TUN: simnet.NewTUN(0), Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	r := &relayConn{e: e}
	alice, bob := ident.NodeKey{1}, ident.NodeKey{2}
	data := bytes.Repeat([]byte{4}, 1000)
	r.SendPackets(alice, [][]byte{initiationOf(7), data})
	r.SendPackets(bob, [][]byte{data})
	got := r.takeHeld(alice)
	if len(got) != 2 || got[0].to != alice || !bytes.Equal(got[0].data, initiationOf(7)) || !bytes.Equal(got[1].data, data) {
		t.Errorf("taken %v", got)
	}
	if got := r.takeHeld(alice); len(got) != 0 {
		t.Errorf("taken twice: %v", got)
	}
	for range 100 {
		r.SendPackets(bob, [][]byte{data})
	}
	got = r.takeHeld(ident.NodeKey{})
	if len(got) != maxHeld/len(data) || e.relayDrops.Load() != uint64(101-len(got)) {
		t.Errorf("%d packets held, %d dropped", len(got), e.relayDrops.Load())
	}

	drops := e.relayDrops.Load()
	r.SendPackets(bob, [][]byte{data})
	now = now.Add(heldFor)
	if got := r.takeHeld(bob); len(got) != 0 || e.relayDrops.Load() != drops+1 {
		t.Errorf("an old packet: %v, %d drops", got, e.relayDrops.Load()-drops)
	}
}

// TestRenewDoesNotWait gives a token to a session whose goroutine holds the lock
// while it waits for the control goroutine: the control goroutine, which gives
// it, must not wait for that lock in its turn.
func TestRenewDoesNotWait(t *testing.T) {
	s := &relaySession{timer: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		s.renew([]byte("older"))
		s.renew([]byte("newer"))
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("renewing waits for the session's lock")
	}
	if token := s.renewal.Load(); token == nil || string(*token) != "newer" {
		t.Errorf("the newest token is not there to be given")
	}
	select {
	case <-s.timer:
	default:
		t.Error("the session is not told to give it")
	}
}
