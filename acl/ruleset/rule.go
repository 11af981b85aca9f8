package ruleset

import (
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

// Epoch counts the versions of a network's policy. A device never goes back to
// a lower epoch than it has seen: that would be a rollback.
type Epoch uint64

// RuleID is the stable name of a policy rule in logs and explanations. Several
// Rules of a set may carry the ID of the one policy rule that they came from.
type RuleID string

// Direction says who opens the flow, as seen from the device that owns the
// rule set.
type Direction uint8

const (
	// In is a flow that the peer opens towards this device.
	In Direction = iota
	// Out is a flow that this device opens towards the peer.
	Out
)

// String returns "in" or "out".
func (d Direction) String() string {
	if d == In {
		return "in"
	}
	return "out"
}

// Action is what a rule does with the flows that it matches. A matching Deny
// wins over any matching Accept, whatever the order.
type Action uint8

const (
	// Accept admits the flow.
	Accept Action = iota
	// Deny refuses the flow.
	Deny
)

// Mode says whether a rule acts or only reports.
type Mode uint8

const (
	// Enforce rules act.
	Enforce Mode = iota
	// Audit rules are computed and reported for each new flow, never applied.
	Audit
)

// Selector picks devices by labels and, of their packets, those whose address
// lies where the selector says.
type Selector struct {
	// Labels must all be held by the device. The empty set picks every device.
	Labels ident.LabelSet
	// Prefixes is where the device's address of the packet must lie: in one of
	// them, and in what the device owns or routes. Empty stands for the
	// device's own addresses only.
	Prefixes []netip.Prefix
	// Subnets widens an empty Prefixes by the subnets that the device routes:
	// by all that it routes except the default routes 0.0.0.0/0 and ::/0, so
	// that an exit node cannot open flows in the name of the internet.
	Subnets bool
}

// Service is a protocol and, where it has ports, the destination ports.
type Service struct {
	// Protocol is the IP protocol number; AnyProtocol stands for all.
	Protocol uint8
	// First and Last bound the destination ports, both included. A protocol
	// without ports has 0 and 65535.
	First, Last uint16
}

// AnyProtocol as a Service's protocol stands for every protocol.
const AnyProtocol uint8 = 0

// Rule admits or refuses flows between this device and the peers that it picks.
type Rule struct {
	ID RuleID
	// Peers picks the other device, the one that a flow comes from (RuleSet.In)
	// or goes to (RuleSet.Out). One match suffices. Empty matches nothing.
	Peers []Selector
	// Own is where this device's own address of the packet must lie, the
	// destination of In and the source of Out. Empty stands for the device's
	// own addresses only; otherwise the address must also be one that the
	// device owns or routes.
	Own []netip.Prefix
	// Services lists what is admitted. One match suffices. Empty matches
	// nothing: a rule with capabilities only opens no port.
	Services []Service
	Action   Action
	Mode     Mode
	// NotBefore and NotAfter bound when the rule holds: NotBefore <= now <
	// NotAfter. The zero time is no bound.
	NotBefore, NotAfter time.Time
	// Schedule says at which times of the week the rule holds; nil is always.
	Schedule *Schedule
	// MaxSession is how long a flow that the rule admitted may last before it
	// must be opened again, in whole seconds; 0 is without bound.
	MaxSession time.Duration
	// Capabilities are handed to the program on this device that a matching
	// peer talks to. They open no port.
	Capabilities []Capability
}

// Capability is an application's permission: what a peer may do in a program
// that asks for it by name.
type Capability struct {
	// Name has the form domain/path.
	Name string
	// Values are the program's parameters, each one JSON value without
	// insignificant space. Empty grants the capability without parameters.
	Values []string
}

// Holds reports whether the rule holds at the time.
func (r *Rule) Holds(now time.Time) bool {
	return (r.NotBefore.IsZero() || !now.Before(r.NotBefore)) &&
		(r.NotAfter.IsZero() || now.Before(r.NotAfter)) && r.Schedule.Holds(now)
}

// Boundary returns the next time after now at which the rule may begin or end
// to hold; the zero time is never.
func (r *Rule) Boundary(now time.Time) time.Time {
	if now.Before(r.NotBefore) {
		return r.NotBefore
	}
	if !r.NotAfter.IsZero() && !now.Before(r.NotAfter) {
		return time.Time{}
	}
	next := r.Schedule.Next(now)
	if next.IsZero() || !r.NotAfter.IsZero() && r.NotAfter.Before(next) {
		return r.NotAfter
	}
	return next
}

// RuleSet is all that one device enforces.
type RuleSet struct {
	// Epoch is the policy's version that the set was compiled from.
	Epoch Epoch
	// In holds the rules for flows that peers open, Out those for flows that
	// this device opens. The order within each carries no meaning.
	In, Out []Rule
}

// Flow is what a rule sees of the first packet of a flow.
type Flow struct {
	Source, Destination netip.Addr
	Protocol            uint8
	// Port is the destination port, 0 for a protocol that has none.
	Port uint16
}

// Verdict is the answer for one flow.
type Verdict struct {
	Allowed bool
	// Rule is the rule that decided, empty where no rule matched.
	Rule RuleID
	// Until is when the verdict must be asked for again because a rule begins
	// or ends to hold; the zero time is never.
	Until time.Time
	// MaxSession is how long the flow may last from its opening on; 0 is
	// without bound. Of several rules that admit a flow the one that lets it
	// last longest counts, and is Rule.
	MaxSession time.Duration
	// Would says what the audit rules would change if they were enforced, and
	// WouldRule which of them.
	Would     Would
	WouldRule RuleID
	// Candidate says what a candidate document makes of the flow. PeerRules
	// leave it zero: it is the answer of two rule sets (Verdict.Beside).
	Candidate Outlook
}

// Outlook is what a candidate document, which is computed and reported beside
// the enforced one and never applied, would change about one flow. The zero
// value is that of no candidate.
type Outlook struct {
	// Epoch is the candidate's, counted apart from the enforced policy's.
	Epoch Epoch
	// Would is WouldAllow or WouldDeny where the candidate decides otherwise,
	// and Rule is its rule that does; empty where it has none that matches.
	Would Would
	Rule  RuleID
}

// Beside returns what the candidate's own verdict for a flow means beside the
// enforced one. Audit rules of the candidate count for nothing.
func (v *Verdict) Beside(candidate *Verdict, epoch Epoch) Outlook {
	out := Outlook{Epoch: epoch}
	switch {
	case candidate.Allowed && !v.Allowed:
		out.Would, out.Rule = WouldAllow, candidate.Rule
	case v.Allowed && !candidate.Allowed:
		out.Would, out.Rule = WouldDeny, candidate.Rule
	}
	return out
}

// Would is what the audit rules would make of a flow, were they enforced.
type Would uint8

const (
	// WouldChangeNothing: no audit rule matches, or none would matter.
	WouldChangeNothing Would = iota
	// WouldAllow: no rule admits the flow, an audit rule would.
	WouldAllow
	// WouldDeny: the flow is admitted, an audit rule would deny it.
	WouldDeny
)

// String returns "", "would_allow" or "would_deny".
func (w Would) String() string {
	switch w {
	case WouldAllow:
		return "would_allow"
	case WouldDeny:
		return "would_deny"
	default:
		return ""
	}
}
