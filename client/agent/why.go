package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/policy"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/client/control"
	"github.com/warren-overlay/warren/client/localapi"
	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/proxy"
)

// reasonNoDevice is WhyReply.Reason for a device that is not visible.
const reasonNoDevice = "no_device"

// Why says whether a flow may be opened, and by which rule or why not.
func (a *Agent) Why(ctx context.Context, r localapi.WhyRequest) (localapi.WhyReply, error) {
	s, err := ask(ctx, a, (*loop).standing)
	if err != nil {
		return localapi.WhyReply{}, err
	}
	if s.view.Self == nil || !s.preferences.WantRunning {
		return localapi.WhyReply{}, localapi.Errorf(localapi.CodeNotConnected, "this device is not connected, so nothing is allowed; run `warren up`")
	}
	isSelf := func(target string) bool {
		p := find(s.view, target)
		return target == "" || p != nil && p.Member == s.view.Self
	}
	q := engine.Question{Opener: filter.Outbound, Protocol: r.Protocol, Port: r.Port}
	service := serviceText(ruleset.Service{Protocol: r.Protocol, First: r.Port, Last: r.Port})
	other := r.To
	switch {
	case isSelf(r.From) && isSelf(r.To):
		return localapi.WhyReply{
			Allowed: true, Reason: filter.Passed.String(), Opener: q.Opener.String(), Service: service, Services: []string{},
			Peer: s.view.Self.Name(), Text: "allowed: it is this device, and what stays on it passes no filter",
		}, nil
	case isSelf(r.To):
		q.Opener, other = filter.Inbound, r.From
		if addr, err := netip.ParseAddr(r.To); err == nil {
			q.Local = addr
		}
	case !isSelf(r.From):
		return localapi.WhyReply{}, localapi.Errorf(localapi.CodeBadRequest, "neither %q nor %q is this device, %s, which knows the rules that concern it and no others: ask at one of the two", r.From, r.To, s.view.Self.Name())
	}
	reply := localapi.WhyReply{
		Opener: q.Opener.String(), Service: service, Services: []string{}, Reason: reasonNoDevice,
	}
	peer, addr := locate(s.view, other, q.Local)
	if peer == nil {
		reply.Text = fmt.Sprintf("denied: no device named %q is visible to you: either there is none, or no rule links this device with it, for %s or anything else; `warren status` lists those that are visible", other, reply.Service)
		return reply, nil
	}
	q.Remote = addr
	answer, err := a.cfg.Decisions.Why(q)
	switch {
	case errors.Is(err, engine.ErrNoPeer):
		reply.Text = fmt.Sprintf("denied: %v leads to no device that this one may see, for %s or anything else", addr, reply.Service)
		return reply, nil
	case err != nil:
		return localapi.WhyReply{}, fmt.Errorf("agent: asking the packet filter: %w", err)
	}
	reply.Allowed = answer.Reason == filter.Passed
	reply.Reason, reply.Rule, reply.Until = answer.Reason.String(), string(answer.Verdict.Rule), answer.Verdict.Until
	reply.Peer, reply.Addr, reply.PolicyEpoch = answer.Peer, addr, uint64(answer.Epoch)
	reply.Would, reply.WouldRule = answer.Verdict.Would.String(), string(answer.Verdict.WouldRule)
	candidate := answer.Verdict.Candidate
	reply.CandidateEpoch, reply.Candidate, reply.CandidateRule = uint64(candidate.Epoch), candidate.Would.String(), string(candidate.Rule)
	for _, service := range answer.Services {
		reply.Services = append(reply.Services, serviceText(service))
	}
	reply.Text = whyText(q, answer)
	if reply.Allowed && !peer.State.Online {
		reply.Text += fmt.Sprintf("\n%s is not connected to the coordinator at present, so it is probably off", reply.Peer)
	}
	return reply, nil
}

// locate finds the member that the target names, or that routes the address,
// and the address to ask about: of local's family where that is given.
func locate(v *control.View, target string, local netip.Addr) (*control.Peer, netip.Addr) {
	addr, err := netip.ParseAddr(target)
	p := find(v, target)
	switch {
	case err == nil && p != nil:
		return p, addr.Unmap()
	case err == nil:
		for i := range v.Peers {
			if routes(addr.Unmap())(v.Peers[i]) {
				return &v.Peers[i], addr.Unmap()
			}
		}
		return nil, addr
	case p == nil:
		return nil, addr
	}
	for _, own := range p.Member.Identity().Addresses {
		if !local.IsValid() || own.Is4() == local.Unmap().Is4() {
			return p, own
		}
	}
	return nil, addr
}

// whyText is the answer in a user's words.
func whyText(q engine.Question, a engine.Answer) string {
	service := serviceText(ruleset.Service{Protocol: q.Protocol, First: q.Port, Last: q.Port})
	who, where := "this device", "to "+a.Peer
	may := "what it may open there"
	if q.Opener == filter.Inbound {
		who, where, may = a.Peer, "here", "what it may open here"
	}
	var b strings.Builder
	switch {
	case a.Reason == filter.Passed:
		fmt.Fprintf(&b, "allowed: rule %q lets %s open %s %s", a.Verdict.Rule, who, service, where)
	case a.Reason == filter.DropNoRule:
		fmt.Fprintf(&b, "denied: no rule lets %s open %s %s", who, service, where)
	case a.Reason == filter.DropDenied:
		fmt.Fprintf(&b, "denied: rule %q forbids %s to open %s %s", a.Verdict.Rule, who, service, where)
	case a.Reason == filter.DropShields:
		return fmt.Sprintf("denied: shields are up, so no peer may open %s or anything else here; to lower them: warren up --shields-up=false", service)
	case a.Reason == filter.DropUnsolicited:
		fmt.Fprintf(&b, "denied: %s may not be opened from there: only answers come from behind an exit node", service)
	default:
		return fmt.Sprintf("denied whatever the rules say (%v): %s", a.Reason, withoutRules(q, a.Reason))
	}
	if a.Reason != filter.Passed {
		fmt.Fprintf(&b, "; %s: %s", may, servicesText(a.Services))
	}
	if !a.Verdict.Until.IsZero() {
		fmt.Fprintf(&b, "\na rule begins or ends at %s, and the answer may be another then", a.Verdict.Until.Format(time.RFC3339))
	}
	switch a.Verdict.Would {
	case ruleset.WouldAllow:
		fmt.Fprintf(&b, "\nin audit: rule %q would allow it, were it enforced", a.Verdict.WouldRule)
	case ruleset.WouldDeny:
		fmt.Fprintf(&b, "\nin audit: rule %q would deny it, were it enforced", a.Verdict.WouldRule)
	case ruleset.WouldChangeNothing:
	}
	return b.String() + candidateText(a.Verdict.Candidate)
}

// candidateText says what the candidate document makes of a flow; nothing where
// there is none, or where it was not asked.
func candidateText(o ruleset.Outlook) string {
	switch {
	case o.Epoch == 0:
		return ""
	case o.Would == ruleset.WouldAllow:
		return fmt.Sprintf("\nthe candidate policy (epoch %d) would allow it by rule %q", o.Epoch, o.Rule)
	case o.Would == ruleset.WouldDeny && o.Rule == "":
		return fmt.Sprintf("\nthe candidate policy (epoch %d) would deny it: none of its rules allows it", o.Epoch)
	case o.Would == ruleset.WouldDeny:
		return fmt.Sprintf("\nthe candidate policy (epoch %d) would deny it by rule %q", o.Epoch, o.Rule)
	}
	return fmt.Sprintf("\nthe candidate policy (epoch %d) decides the same", o.Epoch)
}

// withoutRules says why a flow is refused that no rule was asked about.
func withoutRules(q engine.Question, r filter.Reason) string {
	from, to := "this device's own address", q.Remote.String()
	if q.Local.IsValid() {
		from = q.Local.String()
	}
	if q.Opener == filter.Inbound {
		from, to = to, from
	}
	switch r {
	case filter.DropSpoof:
		return fmt.Sprintf("%s is no address that its sender may use: neither its own nor in an approved route, or one that is never routed (this network's ranges, the machine's own networks and addresses, the coordinator, loopback)", from)
	case filter.DropDestination:
		return fmt.Sprintf("%s is neither an address of its receiver nor in an approved route, or one that no route leads to (this network's ranges, the machine's own networks and addresses, the coordinator, loopback)", to)
	case filter.DropMulticast:
		return fmt.Sprintf("%s is a multicast, broadcast or link-local address, which does not leave a network", to)
	case filter.DropControl:
		return "this protocol number is the network's own, and programs may not speak it"
	case filter.DropRemoved:
		return "the device was revoked, or its certificate has ended"
	default:
		return "the packet filter refuses it"
	}
}

// maxShownServices is how many services a text lists; a policy may have
// thousands, and --json shows all.
const maxShownServices = 12

func servicesText(services []ruleset.Service) string {
	if len(services) == 0 {
		return "nothing"
	}
	var texts []string
	for _, s := range services[:min(len(services), maxShownServices)] {
		texts = append(texts, serviceText(s))
	}
	if more := len(services) - maxShownServices; more > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(texts, ", ")
}

// serviceText writes a service as policies do: "tcp:22", "udp:8000-8010",
// "icmp", "*".
func serviceText(s ruleset.Service) string {
	name := policy.ProtocolName(s.Protocol)
	if s.Protocol == ruleset.AnyProtocol {
		name = "*"
	}
	switch {
	case s.First > s.Last:
		return "nothing of " + name
	case s.Protocol != ruleset.AnyProtocol && !policy.HasPorts(s.Protocol), s.Protocol == ruleset.AnyProtocol && s.First == 0 && s.Last == 65535:
		return name
	case s.First == s.Last:
		return fmt.Sprintf("%s:%d", name, s.First)
	case s.First == 0 && s.Last == 65535:
		return name + ":*"
	}
	return fmt.Sprintf("%s:%d-%d", name, s.First, s.Last)
}

// askingDialer asks the packet filter before it dials, so that a program is
// told what a rule refuses, and not that nobody listens there.
type askingDialer struct {
	proxy.Dialer
	decisions Decisions
}

// deniedDialTime bounds an attempt that the filter will refuse. The stack is
// told of a refusal at once, but only ten times a second for each destination.
const deniedDialTime = 200 * time.Millisecond

// DialContext implements proxy.Dialer.
func (d askingDialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", proxy.ErrDestination, err)
	}
	q := engine.Question{Opener: filter.Outbound, Remote: to.Addr(), Protocol: packet.TCP, Port: to.Port()}
	answer, err := d.decisions.Why(q)
	if err != nil || answer.Reason == filter.Passed {
		// Where nobody can be asked, as for this device's own address, dialling
		// says what is wrong.
		return d.Dialer.DialContext(ctx, network, address)
	}
	// The attempt is made all the same: the filter decides, and has a record of
	// it.
	attempt, cancel := context.WithTimeout(ctx, deniedDialTime)
	defer cancel()
	conn, err := d.Dialer.DialContext(attempt, network, address)
	if err != nil {
		return nil, &proxy.NotAllowedError{Reason: strings.TrimPrefix(whyText(q, answer), "denied: ")}
	}
	return conn, nil
}
