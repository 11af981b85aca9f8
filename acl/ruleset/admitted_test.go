package ruleset

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// TestServicesEqualDecide asks for every port of some protocols whether the
// list says the same as the decision.
func TestServicesEqualDecide(t *testing.T) {
	listed := 0
	seeds := uint64(150)
	if testing.Short() {
		seeds = 30
	}
	for seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 3))
		set := randomSet(r, r.IntN(8))
		p := set.ForPeer(randomIdentity(r, "100.64.0.1", "fd00::1"), randomIdentity(r, "100.64.0.2", "fd00::2"))
		source, destination := pick(r, someAddresses...), pick(r, someAddresses...)
		dir := Direction(r.IntN(2))
		now := epochStart.Add(time.Duration(r.IntN(80)) * 2 * time.Second)
		services := p.Services(dir, source, destination, now)
		listed += len(services)
		for _, protocol := range []uint8{6, 17, 1, 58, 47, 99} {
			for port := 0; port < 65536; port += 1 + r.IntN(9) {
				flow := Flow{Source: source, Destination: destination, Protocol: protocol, Port: uint16(port)}
				if got, want := inServices(services, flow), p.Decide(dir, flow, now).Allowed; got != want {
					t.Fatalf("seed %d: %v %+v: listed %v, decided %v: %+v", seed, dir, flow, got, want, services)
				}
			}
		}
		for i := 1; i < len(services); i++ {
			if a, b := services[i-1], services[i]; a.Protocol > b.Protocol || a.Protocol == b.Protocol && int(a.Last)+1 >= int(b.First) {
				t.Fatalf("seed %d: %+v and %+v are not apart, or not in order", seed, a, b)
			}
		}
	}
	if listed == 0 {
		t.Error("nothing was ever listed")
	}
}

// inServices reads the list as its comment says.
func inServices(services []Service, f Flow) bool {
	listed := slices.ContainsFunc(services, func(s Service) bool { return s.Protocol == f.Protocol })
	return slices.ContainsFunc(services, func(s Service) bool {
		return (s.Protocol == f.Protocol || s.Protocol == AnyProtocol && !listed) && s.First <= f.Port && f.Port <= s.Last
	})
}

func TestServicesOfNoRules(t *testing.T) {
	var set *RuleSet
	p := set.ForPeer(nil, nil)
	if got := p.Services(Out, netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("100.64.0.2"), epochStart); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}
