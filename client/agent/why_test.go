package agent

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/proxy"
)

// answers are Decisions that know one answer.
type answers struct {
	Decisions
	engine.Answer
	err error
}

func (a answers) Why(engine.Question) (engine.Answer, error) { return a.Answer, a.err }

// refusing is a Dialer that nobody answers, and counts.
type refusing struct{ dialled int }

func (r *refusing) DialContext(context.Context, string, string) (net.Conn, error) {
	r.dialled++
	return nil, syscall.ECONNREFUSED
}

func TestDialerSaysWhatTheRulesRefuse(t *testing.T) {
	denied := engine.Answer{Peer: "db"}
	denied.Reason = filter.DropNoRule
	denied.Services = []ruleset.Service{{Protocol: packet.TCP, First: 22, Last: 22}}
	for name, c := range map[string]struct {
		answers
		want string
	}{
		"denied":  {answers{Answer: denied}, "proxy: not allowed by the rules: no rule lets this device open tcp:5432 to db; what it may open there: tcp:22"},
		"allowed": {answers{}, syscall.ECONNREFUSED.Error()},
		"unknown": {answers{err: engine.ErrNoPeer, Answer: denied}, syscall.ECONNREFUSED.Error()},
	} {
		r := &refusing{}
		_, err := askingDialer{r, c.answers}.DialContext(t.Context(), "tcp", "100.64.0.2:5432")
		if err == nil || err.Error() != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
		// The filter sees every attempt, and has a record of it.
		if r.dialled != 1 {
			t.Errorf("%s: dialled %d times", name, r.dialled)
		}
	}
	r := &refusing{}
	if _, err := (askingDialer{r, answers{}}).DialContext(t.Context(), "tcp", "db:5432"); !errors.Is(err, proxy.ErrDestination) || r.dialled != 0 {
		t.Errorf("a name: %v", err)
	}
}

// TestWhyTexts has a text for every reason that Why can give, which names what is
// in the way.
func TestWhyTexts(t *testing.T) {
	mine, theirs := netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("10.20.0.1")
	for _, test := range []struct {
		reason filter.Reason
		opener filter.Direction
		want   string
	}{
		{filter.Passed, filter.Outbound, `allowed: rule "r1" lets this device open tcp:22 to db`},
		{filter.Passed, filter.Inbound, `allowed: rule "r1" lets db open tcp:22 here`},
		{filter.DropNoRule, filter.Outbound, "denied: no rule lets this device open tcp:22 to db; what it may open there: nothing"},
		{filter.DropDenied, filter.Inbound, `denied: rule "r1" forbids db to open tcp:22 here; what it may open here: nothing`},
		{filter.DropShields, filter.Inbound, "denied: shields are up, so no peer may open tcp:22 or anything else here"},
		{filter.DropUnsolicited, filter.Inbound, "only answers come from behind an exit node"},
		{filter.DropDestination, filter.Outbound, "denied whatever the rules say (drop_destination): 10.20.0.1 is neither an address of its receiver"},
		{filter.DropDestination, filter.Inbound, "(drop_destination): 100.64.0.1 is neither"},
		{filter.DropSpoof, filter.Outbound, "(drop_spoof): 100.64.0.1 is no address that its sender may use"},
		{filter.DropSpoof, filter.Inbound, "(drop_spoof): 10.20.0.1 is no address"},
		{filter.DropMulticast, filter.Outbound, "(drop_multicast): 10.20.0.1 is a multicast, broadcast"},
		{filter.DropControl, filter.Outbound, "(drop_control): this protocol number"},
		{filter.DropRemoved, filter.Outbound, "(drop_removed): the device was revoked"},
	} {
		a := engine.Answer{Peer: "db"}
		a.Reason, a.Verdict.Rule = test.reason, "r1"
		q := engine.Question{Opener: test.opener, Local: mine, Remote: theirs, Protocol: packet.TCP, Port: 22}
		if got := whyText(q, a); !strings.Contains(got, test.want) {
			t.Errorf("%v %v: %q, want %q in it", test.opener, test.reason, got, test.want)
		}
	}
}

func TestServiceTexts(t *testing.T) {
	for want, s := range map[string]ruleset.Service{
		"tcp:22": {Protocol: 6, First: 22, Last: 22}, "udp:1-9": {Protocol: 17, First: 1, Last: 9}, "tcp:*": {Protocol: 6, Last: 65535},
		"icmp": {Protocol: 1, Last: 65535}, "*": {Last: 65535}, "nothing of tcp": {Protocol: 6, First: 1}, "*:80": {First: 80, Last: 80},
	} {
		if got := serviceText(s); got != want {
			t.Errorf("%+v: %s, want %s", s, got, want)
		}
	}
	many := make([]ruleset.Service, maxShownServices+3)
	if got, want := servicesText(many[:0]), "nothing"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for i := range many {
		many[i] = ruleset.Service{Protocol: 6, First: uint16(i), Last: uint16(i)}
	}
	if got, want := servicesText(many[10:14]), "tcp:10, tcp:11, tcp:12, tcp:13"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
