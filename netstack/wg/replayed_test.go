package wg

import (
	"errors"
	"testing"
	"time"
)

// TestInitiationFromThePast is a part of fault F11: an initiation that is not
// later than the last one is refused, counted, and answered by one of this
// device's own, once, when the engine says that the peer is there. The last one
// again is only counted.
func TestInitiationFromThePast(t *testing.T) {
	a, b, _, _ := connected(t)
	next := func() (initiation []byte) {
		for len(a.tap) > 0 {
			if p := receive(t, a.tap); messageType(p) == typeInitiation {
				initiation = p
			}
		}
		return initiation
	}
	initiation := next()
	var later []byte
	eventually(t, func() error { // nothing is begun for 5 s after the last one
		if err := a.device.BeginHandshake(b.key); err != nil {
			return err
		}
		if later = next(); later == nil {
			return errors.New("no second handshake")
		}
		return nil
	})
	pass(t, a, b, 2)
	stranger(t, b.at, later)
	eventually(t, func() error {
		if n := b.device.Counters().ReplayedInitiations; n != 1 {
			return errors.New("the last one once more is not counted")
		}
		return nil
	})
	if b.device.AnswerReplayed(a.key) {
		t.Error("answered before there was anything to")
	}
	for len(b.tap) > 0 {
		<-b.tap
	}
	stranger(t, b.at, initiation)
	eventually(t, func() error {
		if n := b.device.Counters().ReplayedInitiations; n != 2 {
			return errors.New("it is not counted")
		}
		return nil
	})
	if a.device.AnswerReplayed(b.key) || b.device.AnswerReplayed(b.key) {
		t.Error("another one's is answered")
	}
	if !b.device.AnswerReplayed(a.key) {
		t.Fatal("it is not answered")
	}
	if b.device.AnswerReplayed(a.key) {
		t.Error("answered twice")
	}
	// The device has just sent a response, and begins nothing for 5 s after. What is
	// not the last one again is asked about each time.
	eventually(t, func() error {
		stranger(t, b.at, later)
		stranger(t, b.at, initiation)
		b.device.AnswerReplayed(a.key)
		for len(b.tap) > 0 {
			if messageType(<-b.tap) == typeInitiation {
				return nil
			}
		}
		return errors.New("no handshake was begun")
	})
	pass(t, a, b, 3)
	pass(t, b, a, 4)
}

func eventually(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatal(err)
		case <-tick.C:
		}
	}
}
