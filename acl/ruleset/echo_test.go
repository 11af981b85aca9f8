package ruleset

import (
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

// TestEchoFollowsWhatMayBeOpened: an echo is admitted where a flow is, and a
// deny that leaves no flow leaves no echo either.
func TestEchoFollowsWhatMayBeOpened(t *testing.T) {
	everyone := []Selector{{}}
	accept := func(services ...Service) Rule {
		return Rule{ID: "accept", Peers: everyone, Services: services}
	}
	deny := func(services ...Service) Rule {
		return Rule{ID: "deny", Peers: everyone, Services: services, Action: Deny}
	}
	ssh, tcp, udp := Service{6, 22, 22}, Service{6, 0, 65535}, Service{17, 0, 65535}
	// The same addresses by another condition, which makes another scope.
	elsewhere := func(r Rule) Rule {
		r.Own = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd00::/8")}
		return r
	}
	later := func(r Rule) Rule {
		r.NotBefore = epochStart.Add(time.Hour)
		return r
	}
	for _, c := range []struct {
		name   string
		rules  []Rule
		v4, v6 bool
	}{
		{"nothing", nil, false, false},
		{"a port", []Rule{accept(ssh)}, true, true},
		{"all denied", []Rule{accept(ssh), deny(tcp, udp)}, false, false},
		{"all denied by a rule of another scope", []Rule{accept(ssh), elsewhere(deny(tcp))}, false, false},
		{"a port is left", []Rule{accept(tcp), deny(Service{6, 0, 65534})}, true, true},
		{"no port is left by two", []Rule{accept(tcp), deny(Service{6, 0, 99}), elsewhere(deny(Service{6, 100, 65535}))}, false, false},
		{"a port is left by two", []Rule{accept(tcp), deny(Service{6, 0, 99}), elsewhere(deny(Service{6, 101, 65535}))}, true, true},
		{"the deny comes later", []Rule{accept(ssh), later(deny(tcp))}, true, true},
		{"the accept comes later", []Rule{later(accept(ssh))}, false, false},
		{"only ICMP of IPv4", []Rule{accept(Service{1, 0, 65535})}, true, false},
		{"only ICMP of IPv6", []Rule{accept(Service{58, 0, 65535})}, false, true},
		{"echo denied", []Rule{accept(tcp), deny(Service{1, 0, 65535}, Service{58, 0, 65535})}, false, false},
		{"an unnamed protocol is left", []Rule{accept(Service{AnyProtocol, 1, 65535}), deny(tcp, udp)}, true, true},
		{"audit", []Rule{{ID: "audit", Peers: everyone, Services: []Service{tcp}, Mode: Audit}}, false, false},
	} {
		self := &ident.Identity{Node: 1, Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd00::1")}}
		peer := &ident.Identity{Node: 2, Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("fd00::2")}}
		set := &RuleSet{In: c.rules}
		fast, slow := set.ForPeer(self, peer), forPeerLinear(set, self, peer)
		for family, want := range []bool{c.v4, c.v6} {
			f := Flow{Source: peer.Addresses[family], Destination: self.Addresses[family]}
			got := fast.DecideEcho(In, f, epochStart)
			if got.Allowed != want {
				t.Errorf("%s: family %d: %+v, want %v", c.name, family, got, want)
			}
			if reference := slow.DecideEcho(In, f, epochStart); got != reference {
				t.Errorf("%s: family %d: %+v, the reference says %+v", c.name, family, got, reference)
			}
		}
	}
}

// TestEchoOfEveryPort has a table with as many ranges as there are ports.
func TestEchoOfEveryPort(t *testing.T) {
	self := &ident.Identity{Node: 1, Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.1")}}
	peer := &ident.Identity{Node: 2, Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.2")}}
	set := &RuleSet{In: []Rule{
		{ID: "even", Peers: []Selector{{}}},
		{ID: "odd", Peers: []Selector{{}}},
		{ID: "deny", Peers: []Selector{{}}, Action: Deny, Services: []Service{{6, 0, 65535}}},
	}}
	for port := range 65536 {
		r := &set.In[port%2]
		r.Services = append(r.Services, Service{6, uint16(port), uint16(port)})
	}
	f := Flow{Source: peer.Addresses[0], Destination: self.Addresses[0]}
	if v := set.ForPeer(self, peer).DecideEcho(In, f, epochStart); v.Allowed {
		t.Errorf("%+v though all is denied", v)
	}
	set.In[2].Services[0].First = 1
	if v := set.ForPeer(self, peer).DecideEcho(In, f, epochStart); v.Rule != "even" {
		t.Errorf("%+v, want port 0 by the rule even", v)
	}
}

func BenchmarkDecideEcho(b *testing.B) {
	set, self, peer := manyRules(10000, false)
	set.In = append(set.In, Rule{ID: "deny", Peers: []Selector{{}}, Action: Deny, Services: []Service{{6, 0, 65535}}})
	p := set.ForPeer(self, peer)
	f := Flow{Source: someAddresses[1], Destination: someAddresses[0]}
	b.ReportAllocs()
	for b.Loop() {
		p.DecideEcho(In, f, epochStart)
	}
}
