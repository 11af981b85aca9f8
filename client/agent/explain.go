package agent

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/client/control"
	"github.com/warren-overlay/warren/client/localapi"
)

// protocols are the numbers (IANA) of those that Explain speaks of.
var protocols = map[string]uint8{"tcp": 6, "udp": 17}

// Explain says whether this device may open a flow, by the rules that it
// verified. The rules of the other device come from the same policy and say the
// same; whether anything listens there is not known here.
func (a *Agent) Explain(ctx context.Context, r localapi.ExplainRequest) (localapi.ExplainReply, error) {
	s, err := ask(ctx, a, (*loop).standing)
	if err != nil {
		return localapi.ExplainReply{}, err
	}
	v := s.view
	if v.Self == nil {
		return localapi.ExplainReply{}, localapi.Errorf(localapi.CodeNotConnected, "this device is not a member of a network; run `warren up`")
	}
	reply := localapi.ExplainReply{Name: r.Target}
	if v.Rules != nil {
		reply.Epoch = uint64(v.Rules.Set().Epoch)
	}
	p := find(v, r.Target)
	switch {
	case p == nil:
		reply.Reason = fmt.Sprintf("%q is no device that this one may see. A policy that allows nothing between two devices hides them from each other; or the name is wrong", r.Target)
		return reply, nil
	case p.Member == v.Self:
		reply.Name, reply.Addr, reply.Allowed = p.Member.Name(), p.Member.Identity().Addresses[0], true
		reply.Reason = "it is this device: what stays on it passes no filter"
		return reply, nil
	}
	reply.Name = p.Member.Name()
	verdict := a.decide(v, p, r, &reply)
	reply.Allowed, reply.Rule = verdict.Allowed, string(verdict.Rule)
	reply.Reason = explanation(verdict, v)
	return reply, nil
}

// decide asks the rules, for the address that target names or the first of the
// device's that this one has an address of the same family for.
func (a *Agent) decide(v *control.View, p *control.Peer, r localapi.ExplainRequest, reply *localapi.ExplainReply) ruleset.Verdict {
	own, theirs := v.Self.Identity(), p.Member.Identity()
	candidates := theirs.Addresses
	if given, err := netip.ParseAddr(r.Target); err == nil {
		candidates = []netip.Addr{given.Unmap()}
	}
	for _, to := range candidates {
		for _, from := range own.Addresses {
			if from.Is4() != to.Is4() {
				continue
			}
			reply.Addr = to
			if v.Rules == nil {
				return ruleset.Verdict{}
			}
			rules := v.Rules.Set().ForPeer(own, theirs)
			flow := ruleset.Flow{Source: from, Destination: to, Protocol: protocols[r.Protocol], Port: r.Port}
			if r.Protocol == "icmp" {
				return rules.DecideEcho(ruleset.Out, flow, a.cfg.Now())
			}
			return rules.Decide(ruleset.Out, flow, a.cfg.Now())
		}
	}
	return ruleset.Verdict{}
}

// explanation puts a verdict in words.
func explanation(verdict ruleset.Verdict, v *control.View) string {
	switch {
	case v.Rules == nil:
		return "this device has no rules that verify, so everything is denied; see `warren status`"
	case verdict.Allowed:
		return fmt.Sprintf("rule %s allows it", verdict.Rule)
	case verdict.Rule != "":
		return fmt.Sprintf("rule %s denies it", verdict.Rule)
	}
	return "no rule allows it, and what no rule allows is denied"
}
