package engine

import (
	"encoding/binary"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/netstack/enginetest"
	"github.com/warren-overlay/warren/netstack/simnet"
)

// loadPeers are as many peers as fill the device's table.
const loadPeers = filter.DeviceFlows / filter.MaxFlows

// load is a device whose table is full: every flow is answered and live.
type load struct {
	control *control
	peers   []*peer
	ids     []*ident.Identity
	self    *ident.Identity
	rules   *ruleset.RuleSet
	now     time.Time
}

func newLoad(t testing.TB, peers int) *load {
	t.Helper()
	e, err := New(Config{TUN: simnet.NewTUN(0), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	c := &control{e: e, quota: new(quota)}
	c.filter = filter.NewDevice(filter.Config{Seed: [2]uint64{1, 2}, Quota: c.quota})
	l := &load{
		control: c, now: time.Now(),
		self: &ident.Identity{Labels: ident.NewLabelSet(1), Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.1")}},
	}
	l.rules = &ruleset.RuleSet{In: []ruleset.Rule{{
		ID: "all", Peers: []ruleset.Selector{{}}, Services: []ruleset.Service{{Protocol: ruleset.AnyProtocol, Last: 65535}},
	}}}
	for n := range peers {
		id := &ident.Identity{Labels: ident.NewLabelSet(2), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{100, 64, 1, byte(n)})}}
		l.ids = append(l.ids, id)
		l.peers = append(l.peers, &peer{filter: filter.NewPeer(c.filter, l.self, id, l.rules.ForPeer(l.self, id), l.now)})
	}
	return l
}

// datagrams returns the packets of one flow: the peer's and the answer.
func (l *load) datagrams(n int, port uint16) (in, out []byte) {
	theirs, ours := netip.AddrPortFrom(l.ids[n].Addresses[0], port), netip.AddrPortFrom(l.self.Addresses[0], 53)
	return enginetest.UDP(theirs, ours, "q"), enginetest.UDP(ours, theirs, "a")
}

// open opens flows of a peer, each answered, and fails where one is refused.
func (l *load) open(t testing.TB, n, flows int) {
	t.Helper()
	var info packet.Info
	in, out := l.datagrams(n, 0)
	for port := range flows {
		binary.BigEndian.PutUint16(in[20:], uint16(port))
		binary.BigEndian.PutUint16(out[22:], uint16(port))
		if d := l.peers[n].filter.Receive(in, &info, l.now); d.Verdict != filter.Pass {
			t.Fatalf("peer %d, flow %d: %+v", n, port, d)
		}
		if d := l.peers[n].filter.Send(out, &info, l.now); d.Verdict != filter.Pass {
			t.Fatalf("peer %d, answer %d: %+v", n, port, d)
		}
	}
}

// TestFloodHoldsItsQuota is L08 at its full size: seven peers hold as many flows
// as they may, and the eighth opens ten times that. It holds no more than its
// own share, and no packet of the others is lost while it goes on.
func TestFloodHoldsItsQuota(t *testing.T) {
	l := newLoad(t, loadPeers)
	for n := range loadPeers - 1 {
		l.open(t, n, filter.MaxFlows)
	}
	const flood = loadPeers - 1
	var info packet.Info
	port := 0
	for round := range 10 {
		l.open(t, flood, filter.MaxFlows) // each answered, so that it is a whole flow
		if got := l.peers[flood].filter.Flows(); got > filter.MaxFlows {
			t.Fatalf("the flood holds %d flows", got)
		}
		if total := l.control.quota.flows.Load(); total > filter.DeviceFlows {
			t.Fatalf("the device holds %d flows", total)
		}
		for half := range filter.MaxFlows { // and as many that nobody answers
			in, _ := l.datagrams(flood, uint16(half))
			in[23] = byte(100 + round)
			if d := l.peers[flood].filter.Receive(in, &info, l.now); d.Verdict != filter.Pass {
				t.Fatalf("%+v", d)
			}
		}
		for n := range flood {
			for range 1000 {
				port = (port + 7919) % filter.MaxFlows
				in, out := l.datagrams(n, uint16(port))
				if d := l.peers[n].filter.Receive(in, &info, l.now); d.Verdict != filter.Pass || d.NewFlow {
					t.Fatalf("round %d, peer %d: %+v", round, n, d)
				}
				if d := l.peers[n].filter.Send(out, &info, l.now); d.Verdict != filter.Pass {
					t.Fatalf("round %d, peer %d: %+v", round, n, d)
				}
			}
			if got := l.peers[n].filter.Flows(); got != filter.MaxFlows {
				t.Fatalf("round %d: peer %d holds %d flows", round, n, got)
			}
		}
	}
}

// swap replaces the rules of all peers as the control goroutine does, while the
// data path goes on, and returns how long each packet waited and took.
func (l *load) swap(t testing.TB) []time.Duration {
	t.Helper()
	next := &ruleset.RuleSet{Epoch: l.rules.Epoch + 1, In: slices.Clone(l.rules.In)}
	narrowed := make([]*ruleset.PeerRules, len(l.peers))
	for n := range l.peers {
		narrowed[n] = next.ForPeer(l.self, l.ids[n])
	}
	l.rules = next
	stop := make(chan struct{})
	var took []time.Duration
	var running sync.WaitGroup
	begun := make(chan struct{})
	running.Go(func() {
		var info packet.Info
		var packets [][]byte
		for n := range l.peers {
			in, _ := l.datagrams(n, 77)
			packets = append(packets, in)
		}
		took = make([]time.Duration, 0, 1<<16)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			n := i % len(l.peers)
			packet.Parse(packets[n], &info)
			begin := time.Now()
			l.peers[n].lockForPackets()
			d := l.peers[n].filter.CheckInbound(&info, l.now)
			l.peers[n].mu.Unlock()
			took = append(took, time.Since(begin))
			if d.Verdict != filter.Pass || d.NewFlow {
				t.Errorf("%+v", d)
				return
			}
			if i == 1000 {
				close(begun)
			}
		}
	})
	<-begun
	for n, p := range l.peers {
		p.mu.Lock()
		p.filter.SetRules(l.self, l.ids[n], narrowed[n], l.now)
		p.mu.Unlock()
		l.control.sweep(p, l.now)
	}
	close(stop)
	running.Wait()
	return took
}

// TestSwapKeepsEveryFlow: with 65,536 live flows a swap of rules that all of
// them still meet ends none. What packets wait meanwhile is BenchmarkSwap's.
func TestSwapKeepsEveryFlow(t *testing.T) {
	l := newLoad(t, loadPeers)
	for n := range l.peers {
		l.open(t, n, filter.MaxFlows)
	}
	l.swap(t)
	for n, p := range l.peers {
		if got := p.filter.Flows(); got != filter.MaxFlows {
			t.Errorf("peer %d holds %d flows", n, got)
		}
	}
}

// TestFilterIsOn: what is built without a tag filters.
func TestFilterIsOn(t *testing.T) {
	if unfiltered {
		t.Fatal("packets pass unseen")
	}
}

// BenchmarkSwap measures a swap of rules with 65,536 live flows, and what
// packets wait meanwhile.
func BenchmarkSwap(b *testing.B) {
	l := newLoad(b, loadPeers)
	for n := range l.peers {
		l.open(b, n, filter.MaxFlows)
	}
	var worst []time.Duration
	for b.Loop() {
		worst = append(worst, slices.Max(l.swap(b)))
	}
	slices.Sort(worst)
	b.ReportMetric(float64(worst[0].Microseconds()), "µs-longest-wait-best")
	b.ReportMetric(float64(worst[len(worst)/2].Microseconds()), "µs-longest-wait-median")
}
