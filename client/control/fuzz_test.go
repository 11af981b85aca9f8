package control_test

import (
	"testing"
	"time"

	"github.com/warren-overlay/warren/client/control"
	"github.com/warren-overlay/warren/coordinator/wire"
)

// FuzzHandleFrame gives a streaming machine two frames. Whatever they are, it
// does not panic, keeps a certificate of its own unless it was told to leave,
// and shows no peer without one.
func FuzzHandleFrame(f *testing.F) {
	n := newNetwork(f, 1)
	honest := n.fullMap(1, 5, bystander, victim)
	next := n.fullMap(2, 6, bystander, added)
	lying := lyingMap(n, n.signWith(n.certificate(victim, 90), n.rogue, nil))
	for _, m := range []wire.ServerMessage{next, diff(next, honest), lying, diff(lying, honest), wire.Ping{Number: 1}, &wire.Error{Code: wire.CodeRevoked}} {
		f.Add(wire.EncodeServer(m), wire.EncodeServer(wire.Ping{}))
	}
	f.Add(wire.EncodeServer(diff(next, honest)), wire.EncodeServer(diff(honest, next)))
	cfg := n.config()
	first := wire.EncodeServer(honest)
	f.Fuzz(func(t *testing.T, a, b []byte) {
		cfg.Rand = zeros{}
		c := newNode(t, cfg, start)
		c.stream()
		for i, frame := range [][]byte{first, a, b} {
			if err := c.m.HandleFrame(frame, start.Add(time.Duration(i)*time.Second)); err != nil && c.m.Snapshot().State == control.Streaming {
				t.Fatalf("frame %d: %v while streaming", i, err)
			}
			c.drain()
		}
		switch c.m.Snapshot().State {
		case control.Revoked, control.NeedsLogin:
			if c.view.Self != nil || len(c.view.Peers) > 0 {
				t.Fatalf("view %+v without membership", c.view)
			}
		case control.Idle, control.Dialing, control.Handshaking, control.Registering, control.Streaming, control.Backoff, control.Expired, control.Suspended:
			if c.view.Self == nil || c.view.Self.Node() != selfID {
				t.Fatal("the own certificate is gone")
			}
		}
	})
}
