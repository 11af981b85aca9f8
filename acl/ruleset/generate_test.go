package ruleset

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

// The generators draw from few values, so that rules, identities and flows meet
// often.

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

var (
	epochStart = time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)

	somePrefixes = []netip.Prefix{
		netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("100.64.0.1/32"),
		netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.1.2.0/24"),
		netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"),
		netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("fd00:1::/48"),
		netip.MustParsePrefix("8.8.0.0/16"),
	}
	someAddresses = []netip.Addr{
		netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("100.64.0.2"),
		netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("10.1.9.9"), netip.MustParseAddr("8.8.8.8"),
		netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2"), netip.MustParseAddr("fd00:1::5"),
		netip.MustParseAddr("2001:db8::5"), netip.MustParseAddr("8.8.9.9"),
	}
	somePorts = []uint16{0, 1, 22, 80, 81, 443, 8080, 65535}
)

func someOf[T any](r *rand.Rand, most int, of []T) []T {
	var s []T
	for range r.IntN(most + 1) {
		s = append(s, pick(r, of...))
	}
	return s
}

func randomTime(r *rand.Rand) time.Time {
	if r.IntN(3) > 0 {
		return time.Time{}
	}
	return epochStart.Add(time.Duration(r.IntN(20)) * time.Second)
}

func randomRule(r *rand.Rand, i int) Rule {
	rule := Rule{
		ID:        RuleID(fmt.Sprintf("rule-%d", i)),
		Own:       someOf(r, 1, somePrefixes),
		NotBefore: randomTime(r), NotAfter: randomTime(r),
	}
	if r.IntN(5) == 0 {
		rule.Action = Deny
	}
	if r.IntN(5) == 0 {
		rule.Mode = Audit
	}
	if r.IntN(8) == 0 {
		rule.Schedule = mustSchedule("UTC", Window{Days: 0x7f, Start: uint16(r.IntN(3)), End: uint16(r.IntN(3))})
	}
	if r.IntN(4) == 0 {
		rule.MaxSession = time.Duration(r.IntN(3)) * time.Minute
	}
	if r.IntN(8) == 0 {
		rule.Capabilities = []Capability{{Name: "example.com/x", Values: someOf(r, 2, []string{"1", "{}"})}}
	}
	for range r.IntN(3) {
		rule.Peers = append(rule.Peers, Selector{
			Labels:   ident.NewLabelSet(someOf(r, 2, []ident.Label{1, 2, 3, 4})...),
			Prefixes: someOf(r, 2, somePrefixes),
			Subnets:  r.IntN(4) == 0,
		})
	}
	for range r.IntN(4) {
		svc := Service{Protocol: pick(r, uint8(6), 17, 1, 58, AnyProtocol), Last: 65535}
		if r.IntN(2) == 0 {
			svc.First, svc.Last = pick(r, somePorts...), pick(r, somePorts...)
			svc.First, svc.Last = min(svc.First, svc.Last), max(svc.First, svc.Last)
		}
		rule.Services = append(rule.Services, svc)
	}
	return rule
}

func randomSet(r *rand.Rand, rules int) *RuleSet {
	s := &RuleSet{Epoch: Epoch(r.Uint64N(9))}
	for i := range rules {
		if r.IntN(2) == 0 {
			s.In = append(s.In, randomRule(r, i))
		} else {
			s.Out = append(s.Out, randomRule(r, i))
		}
	}
	return s
}
