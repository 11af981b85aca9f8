package filter

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
)

var benchStart = time.Now()

// rig is this device and one peer, with both families.
func rig(rules *ruleset.RuleSet) *Peer {
	device := NewDevice(Config{Seed: [2]uint64{0x9e3779b97f4a7c15, 0xd1b54a32d192ed03}})
	return NewPeer(device, selfIdentity, peerIdentity, rules.ForPeer(selfIdentity, peerIdentity), benchStart)
}

func ruleFor(id string, protocol uint8, first, last uint16) ruleset.Rule {
	return ruleset.Rule{
		ID: ruleset.RuleID(id), Peers: []ruleset.Selector{{Labels: ident.NewLabelSet(2)}},
		Services: []ruleset.Service{{Protocol: protocol, First: first, Last: last}},
	}
}

// segments are inbound TCP packets of n flows with random ports.
func segments(n int, version int, flags byte) [][]byte {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	all := make([][]byte, n)
	seen := map[[2]uint16]bool{}
	for i := range all {
		var ports [2]uint16
		for ports = [2]uint16{uint16(r.Uint32()), uint16(1 + r.IntN(60000))}; seen[ports]; ports[0]++ {
		}
		seen[ports] = true
		all[i] = segment(version, ports[0], ports[1], flags)
	}
	return all
}

func segment(version int, from, to uint16, flags byte) []byte {
	b := append(make([]byte, 0, 60), 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 100, 64, 0, 2, 100, 64, 0, 1)
	if version == 6 {
		b = append(b[:0], 0x60, 0, 0, 0, 0, 20, 6, 64,
			0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
	}
	return append(b, byte(from>>8), byte(from), byte(to>>8), byte(to), 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0)
}

// withFlows returns a Peer with as many flows open, and a segment of each.
func withFlows(b testing.TB, flows, version int) (*Peer, [][]byte) {
	p := rig(&ruleset.RuleSet{In: []ruleset.Rule{ruleFor("all", packet.TCP, 0, 65535)}})
	data := segments(flows, version, byte(packet.ACK))
	fill(b, p, data)
	return p, data
}

// fill opens a flow with a handshake for each segment.
func fill(b testing.TB, p *Peer, data [][]byte) {
	var i packet.Info
	for _, s := range data {
		syn := append([]byte(nil), s...)
		syn[len(syn)-7] = byte(packet.SYN)
		if d := p.Receive(syn, &i, benchStart); d.Verdict != Pass || !d.NewFlow {
			b.Fatalf("SYN: %+v", d)
		}
		packet.Parse(s, &i)
		i.Source, i.Destination = i.Destination, i.Source
		i.SourcePort, i.DestinationPort = i.DestinationPort, i.SourcePort
		i.Flags = packet.SYN | packet.ACK
		if d := p.CheckOutbound(&i, benchStart); d.Verdict != Pass {
			b.Fatalf("SYN-ACK: %+v", d)
		}
		if d := p.Receive(s, &i, benchStart); d.Verdict != Pass {
			b.Fatalf("ACK: %+v", d)
		}
	}
}

func BenchmarkEstablished(b *testing.B) {
	for _, version := range []int{4, 6} {
		for _, flows := range []int{1, 1000, 8000} {
			b.Run(fmt.Sprintf("ipv%d/flows=%d", version, flows), func(b *testing.B) {
				p, data := withFlows(b, flows, version)
				now := benchStart.Add(time.Second)
				var i packet.Info
				n := 0
				b.ReportAllocs()
				for b.Loop() {
					if p.Receive(data[n], &i, now).Verdict != Pass {
						b.Fatal("dropped")
					}
					if n++; n == len(data) {
						n = 0
					}
				}
			})
		}
	}
}

func manyRules(n int) *ruleset.RuleSet {
	s := &ruleset.RuleSet{}
	for k := range n - 1 {
		port := uint16(1 + 6*k%60000)
		s.In = append(s.In, ruleFor(fmt.Sprint("r", k), packet.TCP, port, port+2))
	}
	s.In = append(s.In, ruleFor("last", packet.TCP, 60001, 65535))
	return s
}

func BenchmarkNewFlow(b *testing.B) {
	for _, rules := range []int{10, 1000, 10000} {
		for _, hit := range []bool{true, false} {
			b.Run(fmt.Sprintf("rules=%d/hit=%v", rules, hit), func(b *testing.B) {
				p := rig(manyRules(rules))
				now := benchStart
				var i packet.Info
				syn := segment(4, 1, 60001, byte(packet.SYN))
				want := Passed
				if !hit {
					syn = segment(4, 1, 60000, byte(packet.SYN))
					want = DropNoRule
				}
				n := 0
				b.ReportAllocs()
				for b.Loop() {
					n++
					syn[20], syn[21] = byte(n>>8), byte(n)
					if d := p.Receive(syn, &i, now); d.Reason != want {
						b.Fatal(d)
					}
				}
			})
		}
	}
}

// BenchmarkHandleTimeout is one call while all flows of a peer are matched
// again after a change of rules: for as long a packet may wait for the lock.
func BenchmarkHandleTimeout(b *testing.B) {
	p, _ := withFlows(b, MaxFlows, 4)
	set := manyRules(1000)
	set.In = append(set.In, ruleFor("all", packet.TCP, 0, 65535))
	rules := set.ForPeer(selfIdentity, peerIdentity)
	for b.Loop() {
		if !p.sweeping {
			p.SetRules(selfIdentity, peerIdentity, rules, benchStart)
		}
		p.HandleTimeout(benchStart)
	}
	if p.Flows() != MaxFlows {
		b.Fatalf("%d flows", p.Flows())
	}
}

// BenchmarkFlood is a peer that opens flows beyond its bound: each packet takes
// the place of an older flow.
func BenchmarkFlood(b *testing.B) {
	p := rig(&ruleset.RuleSet{In: []ruleset.Rule{ruleFor("all", packet.TCP, 0, 65535)}})
	syns := segments(60000, 4, byte(packet.SYN))
	var i packet.Info
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if p.Receive(syns[n%len(syns)], &i, benchStart).Verdict != Pass {
			b.Fatal("dropped")
		}
	}
}

// BenchmarkBesideFlood is L08 as a figure: what a packet of an established flow
// costs while another peer opens ten times as many flows as it may hold, against
// the same without it. Only the packets of the flow are timed; not one of the
// 57,344 flows of the seven other peers is lost.
func BenchmarkBesideFlood(b *testing.B) {
	const block = 1000
	for _, flooded := range []bool{false, true} {
		b.Run(fmt.Sprintf("flood=%v", flooded), func(b *testing.B) {
			var others []*Peer
			var data [][]byte
			for range DeviceFlows/MaxFlows - 1 {
				p, segments := withFlows(b, MaxFlows, 4)
				others, data = append(others, p), segments
			}
			rogue := rig(&ruleset.RuleSet{In: []ruleset.Rule{ruleFor("all", packet.TCP, 0, 65535)}})
			syns := segments(60000, 4, byte(packet.SYN))
			var i packet.Info
			now := benchStart.Add(time.Second)
			b.ReportAllocs()
			n, flood := 0, 0
			for b.Loop() {
				if n%block == 0 && flooded {
					b.StopTimer()
					for range 10 * block {
						rogue.Receive(syns[flood%len(syns)], &i, now)
						flood++
					}
					b.StartTimer()
				}
				if others[n/block%len(others)].Receive(data[n%len(data)], &i, now).Verdict != Pass {
					b.Fatal("a packet beside the flood was dropped")
				}
				n++
			}
			for _, p := range others {
				if p.Flows() != MaxFlows {
					b.Fatalf("%d of %d flows are left", p.Flows(), MaxFlows)
				}
			}
			if rogue.Flows() > MaxFlows {
				b.Fatalf("the flood holds %d flows", rogue.Flows())
			}
		})
	}
}

// BenchmarkFlowMemory fills the table of a device: flows-MB is what all of its
// flows take.
func BenchmarkFlowMemory(b *testing.B) {
	data := segments(MaxFlows, 6, byte(packet.ACK))
	var used uint64
	for b.Loop() {
		before := heapBytes()
		peers := fullDevice(b, data)
		used = heapBytes() - before
		runtime.KeepAlive(peers)
	}
	b.ReportMetric(float64(used)/1e6, "flows-MB")
}

// heapBytes returns the bytes that are in use once garbage is gone.
func heapBytes() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// fullDevice returns peers that hold all flows of a device together.
func fullDevice(t testing.TB, data [][]byte) (peers []*Peer) {
	t.Helper()
	for range DeviceFlows / MaxFlows {
		p := rig(&ruleset.RuleSet{In: []ruleset.Rule{ruleFor("all", packet.TCP, 0, 65535)}})
		fill(t, p, data)
		if p.Flows() != MaxFlows {
			t.Fatalf("%d flows", p.Flows())
		}
		peers = append(peers, p)
	}
	return peers
}

// BenchmarkNewFlowRecorded is BenchmarkNewFlow with events, which a reader takes
// as the engine does.
func BenchmarkNewFlowRecorded(b *testing.B) {
	for _, hit := range []bool{true, false} {
		b.Run(fmt.Sprintf("hit=%v", hit), func(b *testing.B) {
			device := NewDevice(Config{Seed: [2]uint64{0x9e3779b97f4a7c15, 0xd1b54a32d192ed03}, Events: true})
			p := NewPeer(device, selfIdentity, peerIdentity, manyRules(1000).ForPeer(selfIdentity, peerIdentity), benchStart)
			var i packet.Info
			syn, want := segment(4, 1, 60001, byte(packet.SYN)), Passed
			if !hit {
				syn, want = segment(4, 1, 60000, byte(packet.SYN)), DropNoRule
			}
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				n++
				syn[20], syn[21] = byte(n>>8), byte(n)
				if d := p.Receive(syn, &i, benchStart); d.Reason != want {
					b.Fatal(d)
				}
				if n%64 == 0 {
					for _, ok := p.NextEvent(); ok; _, ok = p.NextEvent() {
					}
				}
			}
		})
	}
}
