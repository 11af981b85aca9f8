package filter

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
)

func TestChecksDoNotAllocate(t *testing.T) {
	for _, version := range []int{4, 6} {
		p, data := withFlows(t, 100, version)
		refused := segment(version, 7, 7, byte(packet.SYN))
		var i packet.Info
		n, now := 0, benchStart
		if allocs := testing.AllocsPerRun(1000, func() {
			now = now.Add(time.Millisecond)
			if p.Receive(data[n%len(data)], &i, now).Verdict != Pass {
				t.Fatal("dropped")
			}
			p.Receive(refused, &i, now)
			n++
		}); allocs != 0 {
			t.Errorf("IPv%d: %v allocations", version, allocs)
		}
	}
}

// TestNewFlowsDoNotAllocate opens flows where others have ended: the table has
// the room already.
func TestNewFlowsDoNotAllocate(t *testing.T) {
	p := rig(&ruleset.RuleSet{In: []ruleset.Rule{ruleFor("all", packet.TCP, 0, 65535)}})
	var i packet.Info
	port := uint16(0)
	open := func() {
		port++
		if !p.Receive(segment(4, port, 80, byte(packet.SYN)), &i, benchStart).NewFlow {
			t.Fatal("no flow")
		}
	}
	for range 2 * MaxHalfOpen {
		open()
	}
	syn := segment(4, 0, 80, byte(packet.SYN))
	if allocs := testing.AllocsPerRun(1000, func() {
		port++
		syn[20], syn[21] = byte(port>>8), byte(port)
		if !p.Receive(syn, &i, benchStart).NewFlow {
			t.Fatal("no flow")
		}
	}); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

// TestFlowsFitInMemory keeps the promise of 16 MB for all flows of a device.
func TestFlowsFitInMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("opens 65,536 flows")
	}
	data := segments(MaxFlows, 6, byte(packet.ACK))
	before := heapBytes()
	peers := fullDevice(t, data)
	used := heapBytes() - before
	t.Logf("%d flows of %d peers take %.1f MB", DeviceFlows, len(peers), float64(used)/1e6)
	if used > 16e6 {
		t.Errorf("%d flows take %d bytes", DeviceFlows, used)
	}
	runtime.KeepAlive(peers)
}

func TestIdlePeerHoldsNoTable(t *testing.T) {
	p, _ := withFlows(t, 100, 4)
	if _, ok := p.NextTimeout(); !ok {
		t.Fatal("nothing to wait for")
	}
	p.HandleTimeout(benchStart.Add(3 * time.Hour))
	if p.Flows() != 0 || p.flows.entries != nil || p.flows.index != nil {
		t.Errorf("%d flows, room for %d", p.Flows(), len(p.flows.entries))
	}
	if due, ok := p.NextTimeout(); ok {
		t.Errorf("waits until %v for nothing", due)
	}
}

// TestNoTimeoutTakesLong bounds how many flows one call looks at.
func TestNoTimeoutTakesLong(t *testing.T) {
	p, _ := withFlows(t, 5000, 4)
	p.SetRules(selfIdentity, peerIdentity, (&ruleset.RuleSet{}).ForPeer(selfIdentity, peerIdentity), benchStart)
	calls, left := 0, p.Flows()
	for due, ok := p.NextTimeout(); ok && !due.After(benchStart); due, ok = p.NextTimeout() {
		p.HandleTimeout(benchStart)
		if left-p.Flows() > sweepStep {
			t.Fatalf("one call ended %d flows", left-p.Flows())
		}
		left = p.Flows()
		calls++
	}
	if left != 0 || calls < 5000/sweepStep {
		t.Errorf("%d flows left after %d calls", left, calls)
	}
}

func TestCutTellsBothSides(t *testing.T) {
	for _, version := range []int{4, 6} {
		p, data := withFlows(t, 1, version)
		var i packet.Info
		// The peer has sent 1,000 bytes more, we 500.
		packet.Parse(data[0], &i)
		i.Sequence, i.PayloadLength = 5000, 1000
		p.CheckInbound(&i, benchStart)
		reply := i
		reply.Source, reply.Destination = i.Destination, i.Source
		reply.SourcePort, reply.DestinationPort = i.DestinationPort, i.SourcePort
		reply.Sequence, reply.PayloadLength = 9000, 500
		p.CheckOutbound(&reply, benchStart)

		p.SetRules(selfIdentity, peerIdentity, (&ruleset.RuleSet{}).ForPeer(selfIdentity, peerIdentity), benchStart)
		if _, ok := p.NextCut(); ok {
			t.Fatal("cut before anybody looked")
		}
		p.HandleTimeout(benchStart)
		cut, ok := p.NextCut()
		if !ok || cut.End != EndRule || cut.Rule != "all" || cut.Opener != Inbound ||
			cut.Flow.Source != reply.Source || cut.Flow.SourcePort != reply.SourcePort {
			t.Fatalf("cut %+v, %v", cut, ok)
		}
		if _, ok := p.NextCut(); ok {
			t.Fatal("cut twice")
		}
		var local, peer packet.Info
		if packet.Parse(cut.AppendLocal(nil), &local) != packet.None || packet.Parse(cut.AppendPeer(nil), &peer) != packet.None {
			t.Fatal("what is told does not parse")
		}
		const reset = packet.RST | packet.ACK
		if local.Flags != reset || local.Sequence != 6000 || local.Acknowledgment != 9500 || local.Source != i.Source || local.DestinationPort != i.DestinationPort {
			t.Errorf("local side is told %+v", local)
		}
		if peer.Flags != reset || peer.Sequence != 9500 || peer.Acknowledgment != 6000 || peer.Destination != i.Source || peer.SourcePort != i.DestinationPort {
			t.Errorf("peer is told %+v", peer)
		}
	}
}

func TestCutOfOtherProtocols(t *testing.T) {
	p := rig(&ruleset.RuleSet{In: []ruleset.Rule{ruleFor("all", ruleset.AnyProtocol, 0, 65535)}})
	i := packet.Info{
		Version: 4, Protocol: packet.UDP, Kind: packet.Datagram, Length: 28, SourcePort: 1000, DestinationPort: 53,
		Source: packet.AddressOf(peerIdentity.Addresses[0]), Destination: packet.AddressOf(selfIdentity.Addresses[0]),
	}
	if !p.CheckInbound(&i, benchStart).NewFlow {
		t.Fatal("no flow")
	}
	p.Remove()
	cut, ok := p.NextCut()
	if !ok || cut.End != EndRemoved {
		t.Fatalf("cut %+v, %v", cut, ok)
	}
	var local packet.Info
	if packet.Parse(cut.AppendLocal(nil), &local) != packet.None || local.Type != 3 || local.Code != 13 ||
		local.Quoted.SourcePort != 53 || local.Quoted.Source != i.Destination || local.Destination != i.Destination {
		t.Errorf("local side is told %+v", local)
	}
	if b := cut.AppendPeer(nil); b != nil {
		t.Errorf("a removed peer is told %x", b)
	}
	if d := p.CheckInbound(&i, benchStart); d.Verdict != Drop || d.Reason != DropRemoved {
		t.Errorf("after removal: %+v", d)
	}
}

func TestClocksThatJumpDoNotProlongARule(t *testing.T) {
	rule := ruleFor("all", packet.TCP, 0, 65535)
	rule.NotAfter = benchStart.Add(time.Minute).Round(0)
	set := &ruleset.RuleSet{In: []ruleset.Rule{rule}}
	for _, test := range []struct {
		name string
		now  time.Time
	}{
		// benchStart carries a monotonic reading, and so does what is added.
		{"time goes on", benchStart.Add(61 * time.Second)},
		// A suspended machine: the wall clock went on, the monotonic did not.
		{"suspended", benchStart.Round(0).Add(61 * time.Second)},
	} {
		p := rig(set)
		var i packet.Info
		syn := segment(4, 1, 80, byte(packet.SYN))
		if !p.Receive(syn, &i, benchStart).NewFlow {
			t.Fatal("no flow")
		}
		if d := p.Receive(syn, &i, test.now); d.Reason != DropNoRule {
			t.Errorf("%s: %+v", test.name, d)
		}
	}
}

// TestNothingPassesAfterTheEnd: to the nanosecond, both ways, for packets of flows
// that there are and for new ones, and by whichever clock has come further.
func TestNothingPassesAfterTheEnd(t *testing.T) {
	set := &ruleset.RuleSet{In: []ruleset.Rule{ruleFor("all", packet.TCP, 0, 65535)}}
	end := benchStart.Round(0).Add(time.Minute)
	for name, test := range map[string]struct {
		now    time.Time
		passes bool
	}{
		"before":                      {benchStart.Add(time.Minute - 1), true},
		"at the end":                  {benchStart.Add(time.Minute), false},
		"suspended":                   {end, false},
		"suspended, a moment before":  {end.Add(-1), true},
		"the wall clock was set back": {benchStart.Add(time.Hour), false},
	} {
		p := rig(set)
		p.SetEnd(end, benchStart)
		var i packet.Info
		if !p.Receive(segment(4, 1, 80, byte(packet.SYN)), &i, benchStart).NewFlow {
			t.Fatal("no flow")
		}
		for kind, packets := range map[string]Decision{
			"a flow that there is": p.Receive(segment(4, 1, 80, byte(packet.SYN)), &i, test.now),
			"a new one":            p.Receive(segment(4, 2, 80, byte(packet.SYN)), &i, test.now),
		} {
			if (packets.Verdict == Pass) != test.passes || !test.passes && packets.Reason != DropRemoved {
				t.Errorf("%s, %s: %+v", name, kind, packets)
			}
		}
		p.SetEnd(time.Time{}, benchStart)
		if d := p.Receive(segment(4, 3, 80, byte(packet.SYN)), &i, test.now); d.Verdict != Pass {
			t.Errorf("%s, without an end: %+v", name, d)
		}
	}
}

// quota is a device's table with so much room.
type quota struct{ flows, fragments int }

func (q *quota) TakeFlow() bool {
	if q.flows == 0 {
		return false
	}
	q.flows--
	return true
}
func (q *quota) ReturnFlow()        { q.flows++ }
func (q *quota) TakeFragment() bool { return false }
func (q *quota) ReturnFragment()    { q.fragments++ }

func TestOnePeersFloodCostsTheOthersNothing(t *testing.T) {
	set := &ruleset.RuleSet{In: []ruleset.Rule{ruleFor("all", packet.TCP, 0, 65535)}}
	shared := &quota{flows: 100}
	device := NewDevice(Config{Seed: [2]uint64{1, 2}, Quota: shared})
	quiet := NewPeer(device, selfIdentity, peerIdentity, set.ForPeer(selfIdentity, peerIdentity), benchStart)
	flood := NewPeer(device, selfIdentity, peerIdentity, set.ForPeer(selfIdentity, peerIdentity), benchStart)
	var i packet.Info
	for port := range uint16(50) {
		quiet.Receive(segment(4, port+1, 80, byte(packet.SYN)), &i, benchStart)
	}
	for port := range uint16(1000) {
		if d := flood.Receive(segment(4, port+1, 80, byte(packet.SYN)), &i, benchStart); d.Verdict != Pass {
			t.Fatalf("flood: %+v", d)
		}
	}
	if quiet.Flows() != 50 || flood.Flows() != 50 || shared.flows != 0 {
		t.Errorf("%d and %d flows, %d left", quiet.Flows(), flood.Flows(), shared.flows)
	}
	third := NewPeer(device, selfIdentity, peerIdentity, set.ForPeer(selfIdentity, peerIdentity), benchStart)
	if d := third.Receive(segment(4, 1, 80, byte(packet.SYN)), &i, benchStart); d.Reason != DropQuota || d.Verdict != Drop {
		t.Errorf("a peer without flows: %+v", d)
	}
	flood.Remove()
	if shared.flows != 50 {
		t.Errorf("%d returned", shared.flows)
	}
}

func TestCompleteFlowsGiveWayLast(t *testing.T) {
	p, data := withFlows(t, MaxFlows, 4)
	var i packet.Info
	if !p.Receive(segment(4, 1, 65000, byte(packet.SYN)), &i, benchStart).NewFlow || p.Flows() != MaxFlows {
		t.Fatalf("%d flows", p.Flows())
	}
	// With nothing half-open the oldest gave way; the next takes the half-open.
	if p.Receive(data[0], &i, benchStart).Reason != DropNoFlow || p.Receive(data[1], &i, benchStart).Verdict != Pass {
		t.Error("not the oldest gave way")
	}
	p.Receive(segment(4, 2, 65000, byte(packet.SYN)), &i, benchStart)
	if p.Receive(data[1], &i, benchStart).Verdict != Pass || p.Flows() != MaxFlows {
		t.Error("a complete flow gave way to a half-open one")
	}
}

func TestCounters(t *testing.T) {
	p, data := withFlows(t, 1, 6)
	var i packet.Info
	var c Counters
	p.TakeCounters(&c)
	p.Receive(data[0], &i, benchStart)
	p.Receive(data[0][:50], &i, benchStart)
	p.Receive(nil, &i, benchStart)
	p.Receive(segment(4, 1, 2, byte(packet.RST)), &i, benchStart)
	p.Send(segment(6, 1, 2, byte(packet.SYN)), &i, benchStart)
	c = Counters{}
	p.TakeCounters(&c)
	p.TakeCounters(&c) // what was taken is not counted again
	for _, want := range []struct {
		d       Direction
		version uint8
		r       Reason
	}{{Inbound, 6, Passed}, {Inbound, 6, DropTruncated}, {Inbound, 4, DropTruncated}, {Inbound, 4, DropNoFlow}, {Outbound, 6, DropSpoof}} {
		if n := c.Packets(want.d, want.version, want.r); n != 1 {
			t.Errorf("%v IPv%d %v: %d", want.d, want.version, want.r, n)
		}
	}
}

func TestNamesAreCompleteAndDistinct(t *testing.T) {
	seen := map[string]bool{}
	check := func(name string) {
		if name == "" || name == "unknown" || seen[name] {
			t.Errorf("name %q", name)
		}
		seen[name] = true
	}
	for r := range Reason(NumReasons) {
		check(r.String())
	}
	for e := range ends {
		check(e.String())
	}
	if Reason(250).String() != "unknown" || End(250).String() != "unknown" {
		t.Error("an unknown value has a name")
	}
	for f := range packet.Fault(packet.NumFaults) {
		if (FaultReason(f) == Passed) != (f == packet.None) {
			t.Errorf("fault %v is %v", f, FaultReason(f))
		}
	}
	for f := range packet.Fault(packet.NumFaults) {
		for g := range f {
			if FaultReason(f) == FaultReason(g) {
				t.Errorf("faults %v and %v have one reason", f, g)
			}
		}
	}
}

func TestEvents(t *testing.T) {
	set := &ruleset.RuleSet{In: []ruleset.Rule{ruleFor("all", packet.TCP, 80, 80)}}
	p := NewPeer(NewDevice(Config{Events: true}), selfIdentity, peerIdentity, set.ForPeer(selfIdentity, peerIdentity), benchStart)
	var i packet.Info
	p.Receive(segment(4, 1, 80, byte(packet.SYN)), &i, benchStart)
	p.Receive(segment(4, 1, 81, byte(packet.SYN)), &i, benchStart)
	p.HandleTimeout(benchStart.Add(time.Minute))
	var got []string
	for e, ok := p.NextEvent(); ok; e, ok = p.NextEvent() {
		got = append(got, fmt.Sprintf("%v %v:%d %v %v %v %s %d packets %d bytes %v", e.Kind, e.Flow.Source, e.Flow.SourcePort, e.Opener,
			e.Reason, e.End, e.Rule, e.Packets[Inbound], e.Bytes[Inbound], e.Lasted))
	}
	want := []string{
		"opened 100.64.0.1:80 in pass idle all 0 packets 0 bytes 0s",
		"denied 100.64.0.1:81 in drop_no_rule idle  0 packets 0 bytes 0s",
		"ended 100.64.0.1:80 in pass idle all 1 packets 40 bytes 1m0s",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got\n%q, want\n%q", got, want)
	}
	// Whatever is refused is an event, but for multicast.
	set.Epoch = 9
	p.SetRules(selfIdentity, peerIdentity, set.ForPeer(selfIdentity, peerIdentity), benchStart)
	later := benchStart.Add(2 * time.Minute)
	spoofed := segment(4, 1, 80, byte(packet.SYN))
	spoofed[15] = 77
	p.Receive(spoofed, &i, later)
	multicast := segment(4, 1, 80, byte(packet.SYN))
	multicast[16] = 224
	p.Receive(multicast, &i, later)
	p.Receive(segment(4, 1, 82, byte(packet.ACK)), &i, later)
	for _, want := range []Reason{DropSpoof, DropNoFlow} {
		if e, ok := p.NextEvent(); !ok || e.Kind != FlowDenied || e.Reason != want || !e.At.Equal(later) || e.Epoch != 9 {
			t.Errorf("%+v, want %v", e, want)
		}
	}
	// Opening and end name the same moment.
	p.Receive(segment(4, 1, 80, byte(packet.SYN)), &i, later)
	p.Remove()
	opened, _ := p.NextEvent()
	ended, ok := p.NextEvent()
	if !ok || !ended.At.Add(-ended.Lasted).Equal(opened.At) || p.Waiting() != 0 {
		t.Errorf("opened %+v, ended %+v", opened, ended)
	}
	p = NewPeer(NewDevice(Config{Events: true}), selfIdentity, peerIdentity, set.ForPeer(selfIdentity, peerIdentity), benchStart)
	for port := range uint16(300) {
		p.Receive(segment(4, port+1, 80, byte(packet.SYN)), &i, benchStart)
	}
	if lost := p.LostEvents(); lost != 300-MaxEvents || p.LostEvents() != 0 {
		t.Errorf("%d events lost", lost)
	}
}

func TestRanges(t *testing.T) {
	r := newRanges([]netip.Prefix{
		netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("0.0.0.0/0"),
		netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("192.168.1.1/32"), netip.MustParsePrefix("ffff::/16"),
		{},
	})
	for a, want := range map[string]bool{
		"10.0.0.0": true, "10.255.255.255": true, "11.0.0.0": false, "9.255.255.255": false, "192.168.1.1": true, "192.168.1.2": false,
		"fd00::": true, "fd00::ffff:ffff:ffff:ffff": true, "fd00:0:0:1::": false, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff": true, "fffe::": false,
	} {
		if r.contain(packet.AddressOf(netip.MustParseAddr(a))) != want {
			t.Errorf("contain(%s) is not %v", a, want)
		}
	}
	if len(r) != 4 {
		t.Errorf("%d ranges: %v", len(r), r)
	}
}

// identities for tests; rig uses the same.
var (
	selfIdentity = &ident.Identity{
		Node: 1, Labels: ident.NewLabelSet(1),
		Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd00::1")},
	}
	peerIdentity = &ident.Identity{
		Node: 2, Labels: ident.NewLabelSet(2),
		Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("fd00::2")},
	}
)
