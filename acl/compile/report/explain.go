package report

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/warren-overlay/warren/acl/compile"
	"github.com/warren-overlay/warren/acl/policy"
)

// Explanation tells why a flow is allowed or denied.
type Explanation struct {
	From string `json:"from"`
	To   string `json:"to"`
	Port string `json:"port"`
	// Source and Destination are addresses behind the devices, empty where the
	// flow is between the devices' own.
	Source      string `json:"source,omitempty"`
	Destination string `json:"destination,omitempty"`

	Verdict  string          `json:"verdict"` // "allowed" or "denied"
	Reason   string          `json:"reason"`
	Decided  *RuleReference  `json:"decided,omitempty"`
	Audits   []RuleReference `json:"audits,omitempty"`
	Nearest  *RuleReference  `json:"nearest,omitempty"`
	Missing  []compile.Gap   `json:"missing,omitempty"`
	Reversed bool            `json:"reversed,omitempty"`
	// Until is when the verdict may change by itself.
	Until string `json:"until,omitempty"`
	// Overruled lists the accepts that a deny overrules.
	Overruled []RuleReference `json:"overruled,omitempty"`
}

// RuleReference names a rule and where it stands.
type RuleReference struct {
	ID      string `json:"id"`
	Section string `json:"section"`
	Index   int    `json:"index"`
	Line    int    `json:"line"`
}

func reference(r *policy.Rule) *RuleReference {
	return &RuleReference{r.ID, r.Kind.String(), r.Index, r.Pos.Line}
}

// String names the rule and its line, as it is spoken of in a sentence.
func (r *RuleReference) String() string { return fmt.Sprintf("rule %s at line %d", r.ID, r.Line) }

// maxExplanations bounds the pairs that one question is answered for.
const maxExplanations = 100

// ParsePort reads "tcp:443", "443", which is TCP, or a protocol that has no
// ports, such as "icmp". The second result says what is wrong.
func ParsePort(text string) (protocol uint8, port uint16, problem string) {
	const hint = "write a protocol and a port, such as tcp:443, or a protocol without ports, such as icmp"
	name, number, ok := strings.Cut(text, ":")
	if !ok {
		if p, ok := policy.ParseProtocol(name); ok && !policy.HasPorts(p) && (name[0] < '0' || name[0] > '9') {
			return p, 0, ""
		}
		name, number = "tcp", text
	}
	protocol, ok = policy.ParseProtocol(name)
	if !ok {
		return 0, 0, fmt.Sprintf("unknown protocol %q; %s", name, hint)
	}
	if !policy.HasPorts(protocol) {
		return protocol, 0, ""
	}
	n := 0
	for i := range len(number) {
		if number[i] < '0' || number[i] > '9' || i > 4 {
			return 0, 0, fmt.Sprintf("%q is not a port; %s", number, hint)
		}
		n = n*10 + int(number[i]-'0')
	}
	if n == 0 || n > 65535 {
		return 0, 0, fmt.Sprintf("%q is not a port; %s", number, hint)
	}
	return protocol, uint16(n), ""
}

// Explain answers whether and why one end reaches the other, for every kind of
// device that the names stand for. The error text says which name stands for
// nothing.
func Explain(p *compile.Policy, from, to, port string, now time.Time) ([]Explanation, error) {
	protocol, number, problem := ParsePort(port)
	if problem != "" {
		return nil, fmt.Errorf("port %q: %s", port, problem)
	}
	sources, sourceAddress, problem := p.Endpoints(from)
	if problem != "" {
		return nil, fmt.Errorf("from %q: %s", from, problem)
	}
	targets, targetAddress, problem := p.Endpoints(to)
	if problem != "" {
		return nil, fmt.Errorf("to %q: %s", to, problem)
	}
	var out []Explanation
	for _, source := range sources {
		for _, target := range targets {
			if len(out) == maxExplanations {
				return out, nil
			}
			q := compile.Query{From: source, To: target, Protocol: protocol, Port: number, Now: now}
			q.Source, q.Destination = flowAddresses(&source, &target, sourceAddress, targetAddress)
			out = append(out, explainOne(p, q))
		}
	}
	return out, nil
}

// flowAddresses picks addresses of one family, IPv4 if there is a choice.
func flowAddresses(source, target *compile.Endpoint, from, to netip.Addr) (netip.Addr, netip.Addr) {
	sources, targets := source.Addresses, target.Addresses
	if from.IsValid() {
		sources = []netip.Addr{from}
	}
	if to.IsValid() {
		targets = []netip.Addr{to}
	}
	for _, a := range sources {
		for _, b := range targets {
			if a.Is4() == b.Is4() {
				return a, b
			}
		}
	}
	var none netip.Addr
	return none, none
}

func explainOne(p *compile.Policy, q compile.Query) Explanation {
	allowed, outcomes := p.Judge(q)
	port := policy.ProtocolName(q.Protocol)
	if policy.HasPorts(q.Protocol) {
		port += fmt.Sprintf(":%d", q.Port)
	}
	e := Explanation{From: q.From.Name, To: q.To.Name, Port: port, Verdict: "denied"}
	if q.From.Node != 0 && q.Source.IsValid() && !slices.Contains(q.From.Addresses, q.Source) {
		e.Source = q.Source.String()
	}
	if q.To.Node != 0 && q.Destination.IsValid() && !slices.Contains(q.To.Addresses, q.Destination) {
		e.Destination = q.Destination.String()
	}
	var accepts, denies []compile.Outcome
	var until time.Time
	for _, o := range outcomes {
		if !o.Matches {
			continue
		}
		if o.Rule.Mode == policy.Audit {
			e.Audits = append(e.Audits, *reference(o.Rule))
			continue
		}
		if !o.Until.IsZero() && (until.IsZero() || o.Until.Before(until)) {
			until = o.Until
		}
		if o.Rule.Deny {
			denies = append(denies, o)
		} else {
			accepts = append(accepts, o)
		}
	}
	if !until.IsZero() {
		e.Until = until.UTC().Format(time.RFC3339)
	}
	switch {
	case allowed:
		e.Verdict = "allowed"
		e.Decided = reference(accepts[0].Rule)
		e.Reason = e.Decided.String() + " admits it"
	case len(denies) > 0:
		e.Decided = reference(denies[0].Rule)
		e.Reason = e.Decided.String() + " denies it"
		for _, o := range accepts {
			e.Overruled = append(e.Overruled, *reference(o.Rule))
		}
	default:
		e.nearest(outcomes)
	}
	return e
}

// nearest tells which accept lacked least. A rule whose source and destination
// are right is nearer than one that is about other devices.
func (e *Explanation) nearest(outcomes []compile.Outcome) {
	weight := func(o compile.Outcome) int {
		n := 0
		for _, g := range o.Gaps {
			switch g.Kind {
			case "source", "destination", "self":
				n += 10
			case "port", "protocol":
				n += 3
			default:
				n++
			}
		}
		if o.Reverse {
			n = min(n, 5)
		}
		return n
	}
	candidates := slices.DeleteFunc(slices.Clone(outcomes), func(o compile.Outcome) bool { return o.Rule.Deny || o.Matches })
	if len(candidates) == 0 {
		e.Reason = "no rule admits anything: what no rule admits is denied"
		return
	}
	best := slices.MinFunc(candidates, func(a, b compile.Outcome) int { return cmp.Compare(weight(a), weight(b)) })
	e.Nearest, e.Missing, e.Reversed = reference(best.Rule), best.Gaps, best.Reverse
	texts := make([]string, len(best.Gaps))
	for i, g := range best.Gaps {
		texts[i] = g.Text
	}
	e.Reason = fmt.Sprintf("no rule admits it; nearest is %s, but %s", e.Nearest, strings.Join(texts, "; "))
	if best.Reverse {
		e.Reason = fmt.Sprintf("no rule admits it; %s admits the opposite direction only, from %s to %s", e.Nearest, e.To, e.From)
	}
}

// Text returns the explanation in a few lines for people.
func (e *Explanation) Text() string {
	var b strings.Builder
	from, to := e.From, e.To
	if e.Source != "" {
		from = e.Source + " behind " + from
	}
	if e.Destination != "" {
		to = e.Destination + " via " + to
	}
	fmt.Fprintf(&b, "%s: %s to %s %s\n  %s\n", strings.ToUpper(e.Verdict), from, to, e.Port, e.Reason)
	for i := range e.Overruled {
		fmt.Fprintf(&b, "  overrules the accept of %s\n", &e.Overruled[i])
	}
	for i := range e.Audits {
		fmt.Fprintf(&b, "  %s is in audit mode: it reports and does not act\n", &e.Audits[i])
	}
	if e.Until != "" {
		fmt.Fprintf(&b, "  holds until %s, then it is asked again\n", e.Until)
	}
	return b.String()
}
