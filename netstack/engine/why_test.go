package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/netstack/enginetest"
)

func TestWhy(t *testing.T) {
	_, a, b := two(t)
	if _, err := a.engine.Why(Question{Opener: filter.Outbound, Remote: b.Addr4(), Protocol: packet.TCP, Port: 22}); !errors.Is(err, ErrStopped) {
		t.Errorf("without a configuration: %v", err)
	}
	a.apply(t, a.Config(time.Now(), &ruleset.RuleSet{
		Out: []ruleset.Rule{enginetest.Allow("ssh", b.Member, packet.TCP, 22)},
		In:  []ruleset.Rule{enginetest.Allow("web", b.Member, packet.TCP, 80)},
	}, b.Member))
	for _, remote := range []netip.Addr{b.Addr4(), b.Addr6()} {
		for _, c := range []struct {
			q    Question
			want string
		}{
			{Question{Opener: filter.Outbound, Protocol: packet.TCP, Port: 22}, `pass "ssh" [{6 22 22}]`},
			{Question{Opener: filter.Outbound, Protocol: packet.TCP, Port: 5432}, `drop_no_rule "" [{6 22 22}]`},
			{Question{Opener: filter.Outbound, Protocol: packet.ICMP}, `pass "ssh" [{6 22 22}]`},
			{Question{Opener: filter.Outbound, Protocol: packet.ICMPv6}, `pass "ssh" [{6 22 22}]`},
			{Question{Opener: filter.Inbound, Protocol: packet.TCP, Port: 80}, `pass "web" [{6 80 80}]`},
			{Question{Opener: filter.Inbound, Protocol: packet.TCP, Port: 22}, `drop_no_rule "" [{6 80 80}]`},
		} {
			c.q.Remote = remote
			got, err := a.engine.Why(c.q)
			if text := fmt.Sprintf("%v %q %v", got.Reason, got.Verdict.Rule, got.Services); err != nil || text != c.want {
				t.Errorf("%+v: %s, %v; want %s", c.q, text, err, c.want)
			}
			if got.Peer != "db" || got.Node != b.Node || got.Epoch == 0 {
				t.Errorf("%+v", got)
			}
		}
	}
	if _, err := a.engine.Why(Question{Remote: netip.MustParseAddr("100.64.9.9")}); !errors.Is(err, ErrNoPeer) {
		t.Errorf("an address of nobody: %v", err)
	}
	if n := a.engine.Status().Peers[0].Flows; n != 0 {
		t.Errorf("asking opened %d flows", n)
	}
}
