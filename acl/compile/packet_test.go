package compile_test

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/acl/compile"
	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// firstPacket is the packet that opens the flow of a question.
func firstPacket(r *rand.Rand, q acltest.Question) []byte {
	p := acltest.Packet{
		Source: q.Flow.Source, Destination: q.Flow.Destination, Protocol: q.Flow.Protocol,
		SourcePort: uint16(1 + r.IntN(60_000)), DestinationPort: q.Flow.Port, Flags: packet.SYN, Init: true,
	}
	return p.Bytes()
}

// opens reports whether the filters of both devices let a first packet pass.
func opens(e *ends, q acltest.Question, b []byte) (out, in bool) {
	source, _ := e.p.Identity(q.From)
	target, _ := e.p.Identity(q.To)
	rules := e.rules(q)
	device := filter.NewDevice(filter.Config{StrictEcho: true})
	var i packet.Info
	at := func(self, peer *ident.Identity, rules *ruleset.PeerRules) *filter.Peer {
		return filter.NewPeer(device, self, peer, rules, q.Now)
	}
	out = at(&source, &target, rules[0]).Send(b, &i, q.Now).Verdict == filter.Pass
	in = at(&target, &source, rules[1]).Receive(b, &i, q.Now).Verdict == filter.Pass
	return out, in
}

// mayOpen reports whether the reference lets the flow be opened. Rules are not
// all: nobody opens a flow from behind a default route, and ICMP that asks for
// no answer opens none.
func mayOpen(reference bool, n *compile.Node, q acltest.Question) bool {
	behind := slices.ContainsFunc(n.Routes, func(p netip.Prefix) bool { return p.Bits() > 0 && p.Contains(q.Flow.Source) })
	return reference && (behind || slices.Contains(n.Addresses, q.Flow.Source))
}

// From the text of a policy to real packets: the filters at both ends of
// compiled rules let pass what the reference allows, and nothing else.
func TestFilteredEqualsReference(t *testing.T) {
	const flows = 400
	passed, checked := 0, 0
	for seed := uint64(0); checked < wanted(); seed++ {
		r := rand.New(rand.NewPCG(seed, 5))
		dir := acltest.GenDirectory(r, 8)
		text := acltest.GenParts(r, 1+r.IntN(12)).String()
		doc, p := parse(t, text), build(t, text, dir)
		e := &ends{p, map[[2]ident.NodeID][2]*ruleset.PeerRules{}}
		for range flows {
			q := acltest.GenQuestion(r, &dir)
			switch q.Flow.Protocol {
			case packet.ICMP, packet.ICMPv6:
				q.Flow.Protocol = packet.UDP
			case packet.TCP, packet.UDP, packet.SCTP:
				q.Flow.Port = max(1, q.Flow.Port)
			default:
			}
			if q.Flow.Source.Is4() != q.Flow.Destination.Is4() || noHost(q.Flow.Source) || noHost(q.Flow.Destination) {
				continue
			}
			want := mayOpen(acltest.Decide(doc, &dir, q).Allowed, &dir.Nodes[q.From-1], q)
			out, in := opens(e, q, firstPacket(r, q))
			checked++
			if out != want || in != want {
				t.Fatalf("seed %d: %+v: sent %v, received %v, reference %v\n%s\n%+v\n%+v", seed, q, out, in, want, text,
					dir.Nodes[q.From-1], dir.Nodes[q.To-1])
			}
			if want {
				passed++
			}
		}
	}
	t.Logf("%d of %d first packets passed", passed, checked)
	if passed < checked/50 {
		t.Errorf("only %d of %d passed: the generator tests little", passed, checked)
	}
}

// noHost reports whether no host can have the address, so that the filter drops
// what names it whatever the rules say.
func noHost(a netip.Addr) bool {
	return a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() ||
		a.Is4() && a.As4()[0] == 0
}
