package ruleset

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

func randomIdentity(r *rand.Rand, own ...string) *ident.Identity {
	id := &ident.Identity{Labels: ident.NewLabelSet(append(someOf(r, 3, []ident.Label{1, 2, 3, 4}), 1, 2)...)}
	for _, a := range own {
		id.Addresses = append(id.Addresses, netip.MustParseAddr(a))
	}
	if r.IntN(2) == 0 {
		id.Routes = someOf(r, 3, somePrefixes)
	}
	return id
}

func TestDecideEqualsLinearSearch(t *testing.T) {
	allowed, would, until := 0, 0, 0
	seeds, least := uint64(1500), 1000
	if testing.Short() {
		seeds, least = 200, 100
	}
	for seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 2))
		rules := r.IntN(6)
		if seed%5 == 0 {
			rules = r.IntN(200)
		}
		set := randomSet(r, rules)
		self, peer := randomIdentity(r, "100.64.0.1", "fd00::1"), randomIdentity(r, "100.64.0.2", "fd00::2")
		fast, slow := set.ForPeer(self, peer), forPeerLinear(set, self, peer)
		if seed%3 == 0 { // as where the classes take too much memory
			for d := range fast.index {
				x := &fast.index[d]
				x.theirs, x.ours, x.devices = classes{}, classes{}, newDevices(self, peer, len(x.scopes))
			}
		}
		for range 500 {
			flow := Flow{
				Source: pick(r, someAddresses...), Destination: pick(r, someAddresses...),
				Protocol: pick(r, uint8(6), 6, 17, 1, 58, 47), Port: pick(r, somePorts...),
			}
			if r.IntN(4) == 0 {
				flow.Port = uint16(r.Uint32())
			}
			dir := Direction(r.IntN(2))
			now := epochStart.Add(time.Duration(r.IntN(80)) * 2 * time.Second)
			got, want := fast.Decide(dir, flow, now), slow.Decide(dir, flow, now)
			if got != want {
				t.Fatalf("seed %d: Decide(%v, %+v, %v)\n got %+v\nwant %+v\n%+v", seed, dir, flow, now, got, want, set)
			}
			if got, want := fast.DecideEcho(dir, flow, now), slow.DecideEcho(dir, flow, now); got != want {
				t.Fatalf("seed %d: DecideEcho(%v, %+v, %v)\n got %+v\nwant %+v\n%+v", seed, dir, flow, now, got, want, set)
			}
			if want.Allowed {
				allowed++
			}
			if want.Would != WouldChangeNothing {
				would++
			}
			if !want.Until.IsZero() {
				until++
			}
		}
	}
	t.Logf("%d allowed, %d audited, %d with an end", allowed, would, until)
	if allowed < least || would < least || until < least {
		t.Error("the generator does not meet the cases")
	}
}

// TestIndexIsBounded joins so many prefixes to so many rules that the index would
// take gigabytes, and asks the same questions of both.
func TestIndexIsBounded(t *testing.T) {
	self := &ident.Identity{Addresses: []netip.Addr{someAddresses[0]}, Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	peer := &ident.Identity{Addresses: []netip.Addr{someAddresses[1]}}
	const rules = 2200
	set := &RuleSet{}
	for i := range rules {
		host := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		set.In = append(set.In, Rule{
			ID: RuleID(fmt.Sprint("rule-", i)), Peers: []Selector{{}},
			// Another host and nearly everything, each time in another condition.
			Own:      []netip.Prefix{netip.PrefixFrom(host, 32), netip.MustParsePrefix("10.1.0.0/17")},
			Services: []Service{{Protocol: 6, First: uint16(i), Last: uint16(i)}},
		})
	}
	p := set.ForPeer(self, peer)
	if p.index[In].devices == nil {
		t.Fatal("the index has classes: the test does not meet its bound")
	}
	slow := forPeerLinear(set, self, peer)
	r := rand.New(rand.NewPCG(1, 1))
	allowed := 0
	for range 200 {
		flow := Flow{
			Source: someAddresses[1], Protocol: 6, Port: uint16(r.IntN(2 * rules)),
			Destination: netip.AddrFrom4([4]byte{10, byte(1 + r.IntN(2)), byte(r.IntN(256)), byte(r.IntN(256))}),
		}
		got, want := p.Decide(In, flow, epochStart), slow.Decide(In, flow, epochStart)
		if got != want {
			t.Fatalf("%+v: got %+v, want %+v", flow, got, want)
		}
		if got.Allowed {
			allowed++
		}
	}
	if allowed == 0 || allowed == 200 {
		t.Errorf("%d flows are allowed", allowed)
	}
}

func TestNoRulesDenyEverything(t *testing.T) {
	self, peer := &ident.Identity{}, &ident.Identity{}
	flow := Flow{Source: someAddresses[0], Destination: someAddresses[1], Protocol: 6, Port: 80}
	for _, set := range []*RuleSet{nil, {}, {In: []Rule{{ID: "x", Services: []Service{{Last: 65535}}}}}} {
		if v := set.ForPeer(self, peer).Decide(In, flow, epochStart); v.Allowed {
			t.Errorf("%+v admits", set)
		}
	}
}

func TestAuditRulesOnlyReport(t *testing.T) {
	self := &ident.Identity{Addresses: []netip.Addr{someAddresses[0]}}
	peer := &ident.Identity{Addresses: []netip.Addr{someAddresses[1]}}
	flow := Flow{Source: someAddresses[1], Destination: someAddresses[0], Protocol: 6, Port: 80}
	rule := func(id RuleID, mode Mode, action Action) Rule {
		return Rule{ID: id, Mode: mode, Action: action, Peers: []Selector{{}}, Services: []Service{{Protocol: 6, Last: 65535}}}
	}
	for _, test := range []struct {
		rules []Rule
		want  Verdict
	}{
		{[]Rule{rule("a", Audit, Accept)}, Verdict{Would: WouldAllow, WouldRule: "a"}},
		{[]Rule{rule("a", Audit, Accept), rule("d", Audit, Deny)}, Verdict{}},
		{[]Rule{rule("d", Audit, Deny), rule("x", Enforce, Accept)}, Verdict{Allowed: true, Rule: "x", Would: WouldDeny, WouldRule: "d"}},
		{[]Rule{rule("a", Audit, Accept), rule("x", Enforce, Deny)}, Verdict{Rule: "x"}},
		{[]Rule{rule("a", Audit, Accept), rule("x", Enforce, Accept)}, Verdict{Allowed: true, Rule: "x"}},
	} {
		if got := (&RuleSet{In: test.rules}).ForPeer(self, peer).Decide(In, flow, epochStart); got != test.want {
			t.Errorf("%+v: got %+v, want %+v", test.rules, got, test.want)
		}
	}
}

func TestTheLongestSessionCounts(t *testing.T) {
	self := &ident.Identity{Addresses: []netip.Addr{someAddresses[0]}}
	peer := &ident.Identity{Addresses: []netip.Addr{someAddresses[1]}}
	flow := Flow{Source: someAddresses[1], Destination: someAddresses[0], Protocol: 6, Port: 80}
	rule := func(id RuleID, session time.Duration) Rule {
		return Rule{ID: id, MaxSession: session, Peers: []Selector{{}}, Services: []Service{{Protocol: 6, Last: 65535}}}
	}
	set := &RuleSet{In: []Rule{rule("short", time.Minute), rule("long", time.Hour)}}
	if v := set.ForPeer(self, peer).Decide(In, flow, epochStart); v.Rule != "long" || v.MaxSession != time.Hour {
		t.Errorf("got %+v", v)
	}
	set.In = append(set.In, rule("unbounded", 0))
	if v := set.ForPeer(self, peer).Decide(In, flow, epochStart); v.Rule != "unbounded" || v.MaxSession != 0 {
		t.Errorf("got %+v", v)
	}
}

// manyRules is n rules for one peer; the last one is the only one that admits
// port 60001. Behind a router each speaks of a host of its own.
func manyRules(n int, hosts bool) (set *RuleSet, self, peer *ident.Identity) {
	self = &ident.Identity{Addresses: []netip.Addr{someAddresses[0]}, Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	peer = &ident.Identity{Labels: ident.NewLabelSet(1), Addresses: []netip.Addr{someAddresses[1]}}
	set = &RuleSet{}
	for i := range n {
		port := uint16(1 + 6*i%60000)
		if i == n-1 {
			port = 60001
		}
		r := Rule{
			ID: RuleID(fmt.Sprint("rule-", i)), Peers: []Selector{{Labels: ident.NewLabelSet(1)}},
			Services: []Service{{Protocol: 6, First: port, Last: port + 2}},
		}
		if hosts {
			host := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
			r.Own = []netip.Prefix{netip.PrefixFrom(host, 32)}
		}
		set.In = append(set.In, r)
	}
	return set, self, peer
}

func TestDecideDoesNotAllocate(t *testing.T) {
	set, self, peer := manyRules(1000, true)
	p := set.ForPeer(self, peer)
	flow := Flow{Source: someAddresses[1], Destination: netip.MustParseAddr("10.0.1.7"), Protocol: 6, Port: 80}
	if n := testing.AllocsPerRun(100, func() {
		p.Decide(In, flow, epochStart)
		p.DecideEcho(In, flow, epochStart)
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func BenchmarkDecide(b *testing.B) {
	for _, hosts := range []bool{false, true} {
		for _, n := range []int{10, 1000, 10000} {
			set, self, peer := manyRules(n, hosts)
			p := set.ForPeer(self, peer)
			r := rand.New(rand.NewPCG(1, 1))
			flows := make([]Flow, 4096)
			for i := range flows {
				flows[i] = Flow{Source: someAddresses[1], Destination: someAddresses[0], Protocol: 6, Port: uint16(r.Uint32())}
				if hosts {
					h := r.IntN(n)
					flows[i].Destination = netip.AddrFrom4([4]byte{10, byte(h >> 16), byte(h >> 8), byte(h)})
				}
			}
			b.Run(fmt.Sprintf("hosts=%v/rules=%d", hosts, n), func(b *testing.B) {
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					p.Decide(In, flows[i%len(flows)], epochStart)
				}
			})
		}
	}
}

func BenchmarkForPeer(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		set, self, peer := manyRules(n, false)
		b.Run(fmt.Sprintf("rules=%d", n), func(b *testing.B) {
			for b.Loop() {
				set.ForPeer(self, peer)
			}
		})
	}
}
