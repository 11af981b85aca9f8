//go:build linux

package netns

import (
	"fmt"
	"testing"
	"time"

	"github.com/warren-overlay/warren/tests/lab"
)

// byDatagrams waits until packets of a node go to its relay over UDP, or inside
// HTTP, and returns how long that took.
func byDatagrams(t *testing.T, n *lab.Node, want bool, within time.Duration) time.Duration {
	t.Helper()
	began := time.Now()
	lab.Eventually(t, within, func() error {
		s, err := n.API().Status(t.Context())
		switch {
		case err != nil:
			return err
		case s.Relay == nil || !s.Relay.Connected:
			return fmt.Errorf("%s has no relay", n.Host.Name)
		case s.Relay.Datagrams != want:
			return fmt.Errorf("%s: over UDP is %v after %v", n.Host.Name, s.Relay.Datagrams, time.Since(began))
		}
		return nil
	})
	return time.Since(began)
}

// underWay is how many packets of a flow may be on their way when they are
// counted, those of 200 ms.
const underWay = int64(200 * time.Millisecond / flowInterval)

// delivers reports where more than one packet in a hundred of a flow is lost within
// some seconds: a busy machine may overflow a buffer now and then, and a way that
// does not work loses hundreds.
func delivers(t *testing.T, f *cutFlow, how string) {
	t.Helper()
	from := f.sent.Load() + 1
	f.counted.Store(0)
	f.base.Store(from)
	<-time.After(5 * time.Second)
	sent := f.sent.Load() - from
	lost := max(0, sent-f.counted.Load())
	t.Logf("%s: %d of %d packets are lost or under way", how, lost, sent)
	if lost > sent/100+underWay {
		t.Errorf("%s: %d of %d packets are lost or under way", how, lost, sent)
	}
}

// TestRelayDatagrams has two nodes with a relay and no direct path, and a stream
// of numbered datagrams between them. Packets go to the relay over UDP; where that
// is blocked in the middle of the stream, inside HTTP, after a gap within that of a
// failover; and over UDP again when it is not. Neither way loses anything by
// itself.
func TestRelayDatagrams(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	coordinator := l.Host("hub").Coordinator(t)
	coordinator.Admin("users", "create", "alice@example.com")
	coordinator.SetPolicy(policy)
	laptop, db := l.Host("laptop").Daemon(t), l.Host("db").Daemon(t)
	db.Host.BlockUDP(laptop.Host) // enough: no challenge is answered
	laptop.Up(coordinator, coordinator.Key("--user", "alice@example.com"))
	db.Up(coordinator, coordinator.Key("--tags", "tag:db"))
	at := address(db, "-4", 5353)
	f := startUDP(t, "relayed", laptop.Host, db.Host, at, at)
	stream := lab.StartUDP(t, laptop.Host, db.Host, address(db, "-6", 5353))
	byDatagrams(t, laptop, true, 30*time.Second)
	byDatagrams(t, db, true, 30*time.Second)

	delivers(t, f, "over UDP")
	stream.LongestGap()
	laptop.Host.BlockUDP(coordinator.Host)
	took := byDatagrams(t, laptop, false, 30*time.Second)
	gap := after(stream, 2*time.Second)
	t.Logf("UDP to the relay blocked: inside HTTP after %v, a gap of %v", took, gap)
	if gap > failover {
		t.Errorf("a gap of %v when UDP to the relay was blocked, at most %v", gap, failover)
	}
	delivers(t, f, "inside HTTP")
	byDatagrams(t, db, true, time.Second) // its own way is not blocked

	stream.LongestGap()
	laptop.Host.UnblockUDP()
	took = byDatagrams(t, laptop, true, 2*time.Minute) // a try at least every minute
	gap = after(stream, time.Second)
	t.Logf("UDP again after %v, a gap of %v", took, gap)
	if gap > restart {
		t.Errorf("a gap of %v at the way back to UDP", gap)
	}
	delivers(t, f, "over UDP again")
}
