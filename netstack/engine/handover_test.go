package engine

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/netstack/enginetest"
	"github.com/warren-overlay/warren/netstack/simnet"
)

// run is one run of a node's program.
type run struct {
	*node
	stop func()
	left *filter.Snapshot // valid after stop
}

func startRun(t *testing.T, m *enginetest.Member, inherited *filter.Snapshot) *run {
	t.Helper()
	r := &run{node: &node{Member: m, tun: simnet.NewTUN(0)}}
	var err error
	r.engine, err = New(onLoopback(Config{
		TUN: r.tun, Inherited: inherited,
		HandOver: func(s *filter.Snapshot) { r.left = s },
		Logger:   slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})),
	}))
	if err != nil {
		t.Fatal(err)
	}
	r.stop = background(t, r.engine.Run)
	if err := r.engine.Apply(nil); err != nil {
		t.Fatal(err)
	}
	m.Endpoints = []netip.AddrPort{netip.AddrPortFrom(loopback, r.engine.Status().Port)}
	return r
}

// pass sends a packet of one host until the other's has it.
func pass(t *testing.T, from, to *node, b []byte) {
	t.Helper()
	deadline := time.After(patience)
	for {
		from.tun.Send(b)
		select {
		case got := <-to.tun.Received():
			if !bytes.Equal(got, b) {
				t.Fatalf("got % x, want % x", got, b)
			}
			return
		case <-time.After(200 * time.Millisecond):
		case <-deadline:
			t.Fatalf("% x did not arrive: %v, %v", b, from.engine.Status().Drops, to.engine.Status().Drops)
		}
	}
}

// TestFlowsOutliveARun ends a run with an open UDP flow of this device's, which
// the peer may not open: in the next run the peer's answer still passes, because
// the flow was handed over; and no further than the rules go.
func TestFlowsOutliveARun(t *testing.T) {
	for _, test := range []struct {
		name  string
		alter func(s *filter.Snapshot, rules *ruleset.RuleSet) *filter.Snapshot
		lives bool
	}{
		{"handed over", func(s *filter.Snapshot, _ *ruleset.RuleSet) *filter.Snapshot { return s }, true},
		{"not handed over", func(*filter.Snapshot, *ruleset.RuleSet) *filter.Snapshot { return nil }, false},
		{"of another device", func(s *filter.Snapshot, _ *ruleset.RuleSet) *filter.Snapshot { s.Self[0]++; return s }, false},
		{"too old", func(s *filter.Snapshot, _ *ruleset.RuleSet) *filter.Snapshot {
			s.At = s.At.Add(-filter.MaxSnapshotAge)
			return s
		}, false},
		{"without the rule", func(s *filter.Snapshot, r *ruleset.RuleSet) *filter.Snapshot { r.Out = nil; return s }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			network := enginetest.NewNetwork(t, 1, time.Now())
			a, b := network.Join("laptop", nil), network.Join("db", nil)
			before, peer := startRun(t, a, nil), newNode(t, b)
			rules := &ruleset.RuleSet{Epoch: 1, Out: []ruleset.Rule{enginetest.Allow("dns", b, packet.UDP, 53)}}
			before.apply(t, a.Config(time.Now(), rules, b))
			peer.apply(t, b.Config(time.Now(), enginetest.AllowAll(a), a))
			ours, theirs := netip.AddrPortFrom(a.Addr4(), 5000), netip.AddrPortFrom(b.Addr4(), 53)
			question, reply := enginetest.UDP(ours, theirs, "?"), enginetest.UDP(theirs, ours, "!")
			pass(t, before.node, peer, question)
			pass(t, peer, before.node, reply)
			before.stop()
			select {
			case b := <-before.tun.Received():
				t.Fatalf("the host was told % x", b)
			default:
			}
			left := before.left
			if left == nil || left.Flows() != 1 || len(left.Peers) != 1 || left.Peers[0].Peer != b.Key || left.Self != a.Key {
				t.Fatalf("left behind: %+v", left)
			}

			next := *rules
			inherited := test.alter(left, &next)
			after := startRun(t, a, inherited)
			after.apply(t, a.Config(time.Now(), &next, b))
			peer.apply(t, b.Config(time.Now(), enginetest.AllowAll(a), a)) // it learns the port
			// The new run begins a session, as a node does when it starts; the
			// old one would be found dead only after 15 s.
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go after.engine.Ping(ctx, b.Addr4())
			if test.lives {
				pass(t, peer, after.node, reply)
				if records := after.engine.Flows(0, 10).Records; len(records) == 0 || records[0].Rule != "dns" || records[0].Protocol != packet.UDP {
					t.Errorf("records %+v", records)
				}
				return
			}
			deadline := time.After(patience)
			for after.engine.Status().Drops[filter.DropNoRule.String()] == 0 {
				peer.tun.Send(reply)
				select {
				case <-deadline:
					t.Fatalf("dropped %v", after.engine.Status().Drops)
				case <-time.After(50 * time.Millisecond):
				}
			}
			for {
				select {
				case got := <-after.tun.Received():
					// Where the rule is gone the host is told so.
					if bytes.Equal(got, reply) || test.name != "without the rule" {
						t.Fatalf("arrived: % x", got)
					}
					continue
				default:
				}
				return
			}
		})
	}
}
