package filter_test

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
)

var (
	snapshotSelf = &ident.Identity{Node: 1, Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd00::1")}}
	snapshotPeer = &ident.Identity{Node: 2, Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("fd00::2")}}
)

// snapshotRules lets the peer open TCP 80 and this device TCP 22 and UDP 53.
func snapshotRules() *ruleset.RuleSet {
	rule := func(id string, protocol uint8, port uint16) ruleset.Rule {
		return ruleset.Rule{
			ID: ruleset.RuleID(id), Peers: []ruleset.Selector{{}},
			Services: []ruleset.Service{{Protocol: protocol, First: port, Last: port}},
		}
	}
	return &ruleset.RuleSet{
		Epoch: 1, In: []ruleset.Rule{rule("in", packet.TCP, 80)},
		Out: []ruleset.Rule{rule("ssh", packet.TCP, 22), rule("dns", packet.UDP, 53)},
	}
}

// snapshotCase is a flow of one family: its packets from the opener and from
// the other side, and who opens it.
type snapshotCase struct {
	opener        filter.Direction
	packets       []acltest.Packet // the first is the opener's, then they alternate
	there, back   acltest.Packet   // of the flow once it is established
	thereD, backD filter.Direction
}

func snapshotCases() []snapshotCase {
	var all []snapshotCase
	for family := range 2 {
		self, peer := snapshotSelf.Addresses[family], snapshotPeer.Addresses[family]
		for _, d := range []filter.Direction{filter.Inbound, filter.Outbound} {
			p := acltest.Packet{Source: peer, Destination: self, SourcePort: 40000, DestinationPort: 80, Protocol: packet.TCP, Sequence: 7, Acknowledgment: 9}
			if d == filter.Outbound {
				p.Source, p.Destination, p.DestinationPort = self, peer, 22
			}
			with := func(f packet.TCPFlags, reply bool) acltest.Packet {
				q := p
				if reply {
					q = p.Reply()
				}
				q.Flags = f
				return q
			}
			all = append(all, snapshotCase{
				opener:  d,
				packets: []acltest.Packet{with(packet.SYN, false), with(packet.SYN|packet.ACK, true), with(packet.ACK, false)},
				there:   with(packet.ACK, false), back: with(packet.ACK, true), thereD: d, backD: 1 - d,
			})
		}
		query := acltest.Packet{Source: self, Destination: peer, SourcePort: 40000, DestinationPort: 53, Protocol: packet.UDP}
		all = append(all, snapshotCase{
			opener: filter.Outbound, packets: []acltest.Packet{query, query.Reply()},
			there: query.Reply(), back: query, thereD: filter.Inbound, backD: filter.Outbound,
		})
	}
	return all
}

func checkBytes(p *filter.Peer, a *acltest.Packet, d filter.Direction, now time.Time) filter.Decision {
	var i packet.Info
	if d == filter.Inbound {
		return p.Receive(a.Bytes(), &i, now)
	}
	return p.Send(a.Bytes(), &i, now)
}

// handedOver returns a filter of the next run, with what the one before has
// left at its end, which is pause before now.
func handedOver(t *testing.T, rules *ruleset.RuleSet, pause time.Duration) (p *filter.Peer, now time.Time) {
	t.Helper()
	// Neither run is within the window in which connections are picked up.
	device := filter.NewDevice(filter.Config{Overlay: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}, Events: true})
	now = start
	before := filter.NewPeer(device, snapshotSelf, snapshotPeer, snapshotRules().ForPeer(snapshotSelf, snapshotPeer), now)
	cases := snapshotCases()
	for _, c := range cases {
		d := c.opener
		for _, a := range c.packets {
			if decision := checkBytes(before, &a, d, now); decision.Verdict != filter.Pass {
				t.Fatalf("before: %+v %v", a, decision)
			}
			d = 1 - d
		}
	}
	s := filter.Snapshot{At: now, Peers: []filter.PeerFlows{{Flows: before.HandOver(now)}}}
	if s.Flows() != len(cases) {
		t.Fatalf("%d flows handed over, want %d", s.Flows(), len(cases))
	}
	if d := checkBytes(before, &cases[0].there, cases[0].thereD, now); d.Reason != filter.DropRemoved {
		t.Errorf("after it was handed over: %v", d)
	}
	if _, told := before.NextCut(); told {
		t.Error("a side was told that a flow ended that goes on")
	}
	read, err := filter.ParseSnapshot(s.Append(nil))
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(pause)
	p = filter.NewPeer(device, snapshotSelf, snapshotPeer, rules.ForPeer(snapshotSelf, snapshotPeer), now)
	if taken := p.TakeOver(read.Peers[0].Flows, read.At, now); taken != p.Flows() {
		t.Errorf("%d taken over, %d flows", taken, p.Flows())
	}
	return p, now
}

// TestHandedOverFlowsGoOn: established flows of both openers outlive a restart
// on both sides, and without the snapshot they do not.
func TestHandedOverFlowsGoOn(t *testing.T) {
	p, now := handedOver(t, snapshotRules(), 20*time.Second)
	fresh := filter.NewPeer(filter.NewDevice(filter.Config{}), snapshotSelf, snapshotPeer, snapshotRules().ForPeer(snapshotSelf, snapshotPeer), now)
	for _, c := range snapshotCases() {
		if d := checkBytes(fresh, &c.there, c.thereD, now); d.Verdict != filter.Drop && d.Verdict != filter.Reject {
			t.Errorf("without a snapshot: %+v %v", c.there, d)
		}
		if d := checkBytes(p, &c.there, c.thereD, now); d.Verdict != filter.Pass || d.NewFlow {
			t.Errorf("%+v: %+v", c.there, d)
		}
		if d := checkBytes(p, &c.back, c.backD, now); d.Verdict != filter.Pass || d.NewFlow {
			t.Errorf("%+v: %+v", c.back, d)
		}
	}
	opened := 0
	for e, ok := p.NextEvent(); ok; e, ok = p.NextEvent() {
		if e.Kind != filter.FlowOpened || !e.At.Equal(start) || e.Rule == "" {
			t.Errorf("event %+v", e)
		}
		opened++
	}
	if opened != p.Flows() {
		t.Errorf("%d events of %d flows", opened, p.Flows())
	}
}

// TestHandedOverFlowsAreMatchedAgain: what the rules admit no more ends, and
// both sides are told.
func TestHandedOverFlowsAreMatchedAgain(t *testing.T) {
	narrowed := snapshotRules()
	narrowed.In, narrowed.Out = nil, narrowed.Out[1:] // DNS is left
	p, now := handedOver(t, narrowed, time.Second)
	if p.Flows() != 2 {
		t.Errorf("%d flows, want those of DNS", p.Flows())
	}
	cut := 0
	for c, ok := p.NextCut(); ok; c, ok = p.NextCut() {
		if c.Flow.Protocol != packet.TCP || c.End != filter.EndRule || c.AppendLocal(nil) == nil || c.AppendPeer(nil) == nil {
			t.Errorf("cut %+v", c)
		}
		cut++
	}
	if cut != 4 {
		t.Errorf("%d connections were cut, want 4", cut)
	}
	for _, c := range snapshotCases() {
		if want := c.there.Protocol == packet.UDP; (checkBytes(p, &c.there, c.thereD, now).Verdict == filter.Pass) != want {
			t.Errorf("%+v passes: %v", c.there, !want)
		}
	}
	if p, _ := handedOver(t, nil, time.Second); p.Flows() != 0 {
		t.Errorf("%d flows without rules", p.Flows())
	}
}

// TestOldSnapshotsAreNotTakenOver has the limit, one above it, and a clock that
// was set back.
func TestOldSnapshotsAreNotTakenOver(t *testing.T) {
	for pause, want := range map[time.Duration]int{
		0: 6, filter.MaxSnapshotAge: 6, filter.MaxSnapshotAge + 1: 0, -1: 0,
	} {
		if p, _ := handedOver(t, snapshotRules(), pause); p.Flows() != want {
			t.Errorf("after %v %d flows, want %d", pause, p.Flows(), want)
		}
	}
}

// TestHandedOverFlowsDoNotLiveLonger: the pause counts.
func TestHandedOverFlowsDoNotLiveLonger(t *testing.T) {
	p, _ := handedOver(t, snapshotRules(), 50*time.Second)
	udp := snapshotCases()[2]
	if d := checkBytes(p, &udp.there, udp.thereD, start.Add(119*time.Second)); d.Verdict != filter.Pass {
		t.Errorf("after 119 s: %v", d)
	}
	if d := checkBytes(p, &udp.there, udp.thereD, start.Add(120*time.Second)); d.Reason != filter.DropNoRule {
		t.Errorf("after 120 s: %v", d)
	}
}

func snapshotOf(peers int, seed uint64) []byte {
	s := filter.Snapshot{At: start}
	for n := range peers {
		w := acltest.FilterWorld{Rand: rand.New(rand.NewPCG(seed, uint64(n))), Start: start}
		self, peer := w.Identities()
		rules := w.Rules(1)
		p := filter.NewPeer(filter.NewDevice(w.Config()), self, peer, rules.ForPeer(self, peer), start)
		for range 40 {
			b, d := w.Packet()
			var i packet.Info
			if d == filter.Inbound {
				p.Receive(b, &i, start)
			} else {
				p.Send(b, &i, start)
			}
			w.Passed()
		}
		s.Peers = append(s.Peers, filter.PeerFlows{Peer: ident.NodeKey{byte(n)}, Flows: p.HandOver(start)})
	}
	return s.Append(nil)
}

func TestParseSnapshotRefuses(t *testing.T) {
	good := snapshotOf(3, 1)
	s, err := filter.ParseSnapshot(good)
	if err != nil || s.Flows() == 0 {
		t.Fatalf("%d flows, %v", s.Flows(), err)
	}
	for n := range good {
		if _, err := filter.ParseSnapshot(good[:n]); !errors.Is(err, filter.ErrSnapshot) {
			t.Fatalf("cut off at %d: %v", n, err)
		}
	}
	swapped := filter.Snapshot{At: s.At, Peers: []filter.PeerFlows{s.Peers[1], s.Peers[0]}}
	twice := filter.Snapshot{At: s.At, Peers: []filter.PeerFlows{s.Peers[1], s.Peers[1]}}
	many := filter.Snapshot{At: s.At, Peers: []filter.PeerFlows{{Flows: make([]filter.SavedFlow, 1)}}}
	for name, b := range map[string][]byte{
		"more at the end": append(good, 0), "out of order": swapped.Append(nil), "a peer twice": twice.Append(nil),
		"a flow that cannot be": many.Append(nil), "nothing": nil, "another file": []byte(`{"version":1}`),
	} {
		if _, err := filter.ParseSnapshot(b); !errors.Is(err, filter.ErrSnapshot) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for at := range 13 { // magic and version
		b := append([]byte(nil), good...)
		b[at]++
		if _, err := filter.ParseSnapshot(b); !errors.Is(err, filter.ErrSnapshot) {
			t.Errorf("byte %d: %v", at, err)
		}
	}
}

// FuzzParseSnapshot: what is accepted is what Append writes, and gives nobody
// anything that the rules do not: without rules no flow is taken over, and with
// rules every flow is one that they admit now.
func FuzzParseSnapshot(f *testing.F) {
	for seed := range uint64(3) {
		f.Add(snapshotOf(int(seed), seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := filter.ParseSnapshot(b)
		if err != nil {
			if !errors.Is(err, filter.ErrSnapshot) {
				t.Fatal(err)
			}
			return
		}
		if again := s.Append(nil); string(again) != string(b) {
			t.Fatalf("read %x, written %x", b, again)
		}
		device := filter.NewDevice(filter.Config{Overlay: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}})
		for i := range s.Peers {
			none := filter.NewPeer(device, snapshotSelf, snapshotPeer, nil, s.At)
			if taken := none.TakeOver(s.Peers[i].Flows, s.At, s.At); taken != 0 || none.Flows() != 0 {
				t.Fatalf("%d flows taken over without rules, %d", taken, none.Flows())
			}
			rules := snapshotRules()
			p := filter.NewPeer(device, snapshotSelf, snapshotPeer, rules.ForPeer(snapshotSelf, snapshotPeer), s.At)
			taken := p.TakeOver(s.Peers[i].Flows, s.At, s.At)
			p.SetRules(snapshotSelf, snapshotPeer, rules.ForPeer(snapshotSelf, snapshotPeer), s.At)
			for due, ok := p.NextTimeout(); ok && !due.After(s.At); due, ok = p.NextTimeout() {
				p.HandleTimeout(s.At)
			}
			if p.Flows() != taken {
				t.Fatalf("%d flows taken over, %d are admitted", taken, p.Flows())
			}
			// None outlives the longest life that there is.
			for n, end := 0, s.At.Add(2*time.Hour+4*time.Minute+time.Second); p.Flows() > 0; n++ {
				if p.HandleTimeout(end); n > 100 {
					t.Fatalf("%d flows live on", p.Flows())
				}
			}
		}
	})
}
