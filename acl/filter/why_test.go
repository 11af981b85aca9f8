package filter

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// TestWhyAgreesWithChecks asks first and sends then, in both directions, for
// both families, with shields up and down.
func TestWhyAgreesWithChecks(t *testing.T) {
	set := &ruleset.RuleSet{
		In:  []ruleset.Rule{ruleFor("in", packet.TCP, 80, 89)},
		Out: []ruleset.Rule{ruleFor("out", packet.TCP, 22, 22), ruleFor("no", packet.TCP, 22, 22), ruleFor("web", packet.TCP, 443, 443)},
	}
	set.Out[1].Action = ruleset.Deny
	own := map[int]string{4: "100.64.0.1", 6: "fd00::1"}
	far := map[int]string{4: "100.64.0.2", 6: "fd00::2"}
	passed, refused := 0, 0
	for _, version := range []int{4, 6} {
		for _, shields := range []bool{false, true} {
			for _, opener := range []Direction{Inbound, Outbound} {
				for _, port := range []uint16{22, 80, 89, 90, 443} {
					p := rig(set)
					p.SetShields(shields, benchStart)
					answer := p.Why(Question{
						Opener: opener, Local: netip.MustParseAddr(own[version]), Remote: netip.MustParseAddr(far[version]),
						Protocol: packet.TCP, Port: port,
					}, benchStart)
					var i packet.Info
					packet.Parse(segment(version, 1000, port, byte(packet.SYN)), &i)
					check := p.CheckInbound
					if opener == Outbound {
						i.Source, i.Destination = i.Destination, i.Source
						check = p.CheckOutbound
					}
					if d := check(&i, benchStart); d.Reason != answer.Reason || d.Rule != answer.Verdict.Rule {
						t.Errorf("%v %d %v shields %v: asked %+v, sent %+v", opener, port, version, shields, answer, d)
					}
					if answer.Reason == Passed {
						passed++
					} else {
						refused++
					}
				}
			}
		}
	}
	if passed == 0 || refused == 0 {
		t.Errorf("%d passed, %d refused", passed, refused)
	}
}

func TestWhySaysWhatElse(t *testing.T) {
	p := rig(&ruleset.RuleSet{Epoch: 7, Out: []ruleset.Rule{ruleFor("ssh", packet.TCP, 22, 22)}})
	q := Question{Opener: Outbound, Local: netip.MustParseAddr("100.64.0.1"), Remote: netip.MustParseAddr("100.64.0.2"), Protocol: packet.TCP, Port: 5432}
	a := p.Why(q, benchStart)
	if want := "[{6 22 22}]"; a.Reason != DropNoRule || a.Epoch != 7 || fmt.Sprint(a.Services) != want {
		t.Errorf("%+v, want services %s", a, want)
	}
	// A device that may open anything may ping.
	q.Protocol, q.Port = packet.ICMP, 0
	if a := p.Why(q, benchStart); a.Reason != Passed || a.Verdict.Rule != "ssh" {
		t.Errorf("ping: %+v", a)
	}
	q.Remote = netip.MustParseAddr("100.64.0.3")
	if a := p.Why(q, benchStart); a.Reason != DropDestination {
		t.Errorf("an address that is not the peer's: %+v", a)
	}
	p.Remove()
	if a := p.Why(q, benchStart); a.Reason != DropRemoved {
		t.Errorf("after Remove: %+v", a)
	}
}
