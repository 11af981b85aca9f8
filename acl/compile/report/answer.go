package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/warren-overlay/warren/acl/compile"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// Answer is what `policy compile` prints.
type Answer struct {
	Accepted bool                   `json:"accepted"`
	Errors   []Problem              `json:"errors"`
	Warnings []Problem              `json:"warnings"`
	Nodes    map[string]*NodeAnswer `json:"nodes,omitempty"`
}

// Problem is an error or a warning and where in the document it is; line and
// column are 0 where it is nowhere in particular.
type Problem struct {
	Message string `json:"message"`
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Text    string `json:"text,omitempty"`
	Hint    string `json:"hint,omitempty"`
}

// NodeAnswer is what one device gets.
type NodeAnswer struct {
	Filter     []FilterRule               `json:"filter"`
	Peers      []string                   `json:"peers"`
	SSH        []SSHAnswer                `json:"ssh"`
	Attributes map[string]json.RawMessage `json:"attributes"`
}

// FilterRule is a rule with its selectors expanded to addresses.
type FilterRule struct {
	ID           string             `json:"id"`
	Protocols    []int              `json:"protocols"`
	Sources      []string           `json:"sources"`
	Destinations []DestinationRange `json:"destinations"`
	Capabilities []CapabilityAnswer `json:"capabilities,omitempty"`
	// Action is "deny" for a rule that refuses, absent otherwise; likewise
	// the following.
	Action     string `json:"action,omitempty"`
	Mode       string `json:"mode,omitempty"`
	NotBefore  string `json:"notBefore,omitempty"`
	NotAfter   string `json:"notAfter,omitempty"`
	Schedule   string `json:"schedule,omitempty"`
	MaxSession string `json:"maxSession,omitempty"`
}

// DestinationRange is addresses and ports.
type DestinationRange struct {
	Prefix string `json:"prefix"`
	First  int    `json:"first"`
	Last   int    `json:"last"`
}

// CapabilityAnswer is a capability at an address.
type CapabilityAnswer struct {
	Prefix string            `json:"prefix"`
	Name   string            `json:"name"`
	Values []json.RawMessage `json:"values"`
}

// SSHAnswer is one rule for logins.
type SSHAnswer struct {
	Principals []Principal       `json:"principals"`
	SSHUsers   map[string]string `json:"sshUsers"`
	Action     SSHAction         `json:"action"`
	AcceptEnv  []string          `json:"acceptEnv,omitempty"`
}

// Principal is a device that may log in.
type Principal struct {
	NodeIP string `json:"nodeIP"`
}

// SSHAction is what happens at a login.
type SSHAction struct {
	Accept           bool     `json:"accept,omitempty"`
	HoldAndDelegate  string   `json:"holdAndDelegate,omitempty"`
	SessionDuration  int64    `json:"sessionDuration,omitempty"` // nanoseconds
	CheckPeriod      string   `json:"checkPeriod,omitempty"`
	AgentForwarding  bool     `json:"allowAgentForwarding,omitempty"`
	LocalForwarding  bool     `json:"allowLocalPortForwarding,omitempty"`
	RemoteForwarding bool     `json:"allowRemotePortForwarding,omitempty"`
	Recorders        []string `json:"recorders,omitempty"`
}

// checkPath is where a device asks for a sign-in before it lets a login
// through; the coordinator's own address goes before it.
const checkPath = "/machine/ssh/action/$SRC_NODE_ID/to/$DST_NODE_ID?local_user=$LOCAL_USER"

// Load parses and compiles a policy for a directory, with the subnets that it
// approves by itself counted as approved. Its tests are not run. The second
// result says what is wrong, and is nil where nothing is.
func Load(text []byte, dir compile.Directory) (*compile.Policy, []Problem) {
	doc, err := policy.Parse(text)
	if err != nil {
		return nil, Problems(err)
	}
	p, err := compile.Compile(doc, dir, ident.LabelKey{}, 1)
	if err != nil {
		return nil, Problems(err)
	}
	approve(p, dir)
	return p, nil
}

// Compile loads a policy for a directory, runs its tests and returns the
// answer and, where it was accepted, the compiled policy.
func Compile(text []byte, dir compile.Directory) (*Answer, *compile.Policy) {
	answer := &Answer{Errors: []Problem{}, Warnings: []Problem{}}
	p, problems := Load(text, dir)
	if problems != nil {
		answer.Errors = problems
		return answer, nil
	}
	for _, f := range p.RunTests() {
		answer.Errors = append(answer.Errors, Problem{Message: "test(s) failed: " + f.Section + ": " + f.Message, Line: f.Line, Column: f.Column})
	}
	for _, w := range p.Warnings() {
		answer.Warnings = append(answer.Warnings, Problem{Message: w.Message, Line: w.Line, Column: w.Column})
	}
	if len(answer.Errors) > 0 {
		return answer, nil
	}
	answer.Accepted = true
	return answer, p
}

// approve counts the subnets that autoApprovers let a device route as approved.
// A default route counts where the inventory says that it was approved.
func approve(p *compile.Policy, dir compile.Directory) {
	for _, n := range dir.Nodes {
		routes := slices.Clone(n.Routes)
		for _, route := range n.AdvertisedRoutes {
			if route.Bits() > 0 && !slices.Contains(routes, route) && p.AutoApproved(n.ID, route) {
				routes = append(routes, route)
			}
		}
		if len(routes) > len(n.Routes) {
			n.Routes = routes
			p.SetNode(n)
		}
	}
}

// Problems turns an error of Parse or Compile into problems, each of an
// ErrorList its own.
func Problems(err error) []Problem {
	var list policy.ErrorList
	if !errors.As(err, &list) {
		return []Problem{{Message: err.Error()}}
	}
	out := make([]Problem, len(list))
	for i, e := range list {
		out[i] = Problem{Message: e.Message, Line: e.Line, Column: e.Column, Text: e.Text, Hint: e.Hint}
	}
	return out
}

// Expand fills in what every device of the directory gets.
func Expand(answer *Answer, p *compile.Policy, dir compile.Directory) {
	answer.Nodes = make(map[string]*NodeAnswer, len(dir.Nodes))
	names := make(map[ident.NodeID]string, len(dir.Nodes))
	for _, n := range dir.Nodes {
		names[n.ID] = n.Name
	}
	everyone := identities(p)
	for _, n := range dir.Nodes {
		a := &NodeAnswer{Filter: Filter(p, n.ID, everyone), Peers: []string{}, SSH: []SSHAnswer{}, Attributes: map[string]json.RawMessage{}}
		for _, peer := range p.Peers(n.ID) {
			a.Peers = append(a.Peers, names[peer])
		}
		slices.Sort(a.Peers)
		for _, r := range p.SSH(n.ID) {
			a.SSH = append(a.SSH, sshAnswer(r))
		}
		for _, attribute := range p.Attributes(n.ID) {
			a.Attributes[attribute.Name] = json.RawMessage("null")
			if len(attribute.Values) > 0 {
				a.Attributes[attribute.Name] = json.RawMessage("[" + strings.Join(attribute.Values, ",") + "]")
			}
		}
		answer.Nodes[n.Name] = a
	}
}

func identities(p *compile.Policy) []*ident.Identity {
	var out []*ident.Identity
	for _, id := range p.Nodes() {
		identity, _ := p.Identity(id)
		out = append(out, &identity)
	}
	return out
}

// Filter expands the rules that the device gets for flows that peers open,
// over the identities of everyone, itself included.
func Filter(p *compile.Policy, id ident.NodeID, everyone []*ident.Identity) []FilterRule {
	self, _ := p.Identity(id)
	out := []FilterRule{}
	set := p.RuleSet(id)
	for i := range set.In {
		r := &set.In[i]
		f := FilterRule{ID: string(r.ID), Protocols: []int{}, Sources: sources(r, everyone), Destinations: []DestinationRange{}}
		if len(f.Sources) == 0 {
			continue
		}
		own := ownPrefixes(r.Own, &self)
		protocols, ports := services(r.Services)
		f.Protocols = protocols
		for _, prefix := range own {
			for _, p := range ports {
				f.Destinations = append(f.Destinations, DestinationRange{prefix.String(), int(p.First), int(p.Last)})
			}
		}
		for _, capability := range r.Capabilities {
			for _, prefix := range capabilityPrefixes(r.Own, &self) {
				f.Capabilities = append(f.Capabilities, CapabilityAnswer{prefix.String(), capability.Name, raw(capability.Values)})
			}
		}
		if len(r.Capabilities) > 0 {
			f.Protocols = []int{6, 17, 1, 58}
		}
		describeConditions(&f, r)
		out = append(out, f)
	}
	return out
}

func describeConditions(f *FilterRule, r *ruleset.Rule) {
	if r.Action == ruleset.Deny {
		f.Action = "deny"
	}
	if r.Mode == ruleset.Audit {
		f.Mode = "audit"
	}
	if !r.NotBefore.IsZero() {
		f.NotBefore = r.NotBefore.Format(time.RFC3339)
	}
	if !r.NotAfter.IsZero() {
		f.NotAfter = r.NotAfter.Format(time.RFC3339)
	}
	if r.Schedule != nil {
		f.Schedule = DescribeSchedule(r.Schedule)
	}
	if r.MaxSession > 0 {
		f.MaxSession = r.MaxSession.String()
	}
}

// DescribeSchedule says a schedule in one line, such as
// "mon,tue 09:00-17:00 Europe/Berlin".
func DescribeSchedule(s *ruleset.Schedule) string {
	var parts []string
	for _, w := range s.Windows() {
		var days []string
		for day := range 7 {
			if w.Days&(1<<day) != 0 {
				days = append(days, strings.ToLower(time.Weekday(day).String()[:3]))
			}
		}
		parts = append(parts, strings.Join(days, ",")+" "+clock(w.Start)+"-"+clock(w.End))
	}
	return strings.Join(parts, "; ") + " " + s.Zone()
}

func clock(minute uint16) string {
	two := func(n uint16) string { return strings.Repeat("0", 2-len(strconv.Itoa(int(n)))) + strconv.Itoa(int(n)) }
	return two(minute/60) + ":" + two(minute%60)
}

// sources lists the addresses of the devices that the rule's selectors pick,
// and the subnets behind them that it covers.
func sources(r *ruleset.Rule, everyone []*ident.Identity) []string {
	var found []netip.Prefix
	for _, sel := range r.Peers {
		for _, peer := range everyone {
			if !peer.Labels.HasAll(sel.Labels) {
				continue
			}
			if len(sel.Prefixes) > 0 {
				found = append(found, ownPrefixes(sel.Prefixes, peer)...)
				continue
			}
			found = append(found, ownPrefixes(nil, peer)...)
			if sel.Subnets {
				for _, route := range peer.Routes {
					if route.Bits() > 0 {
						found = append(found, route)
					}
				}
			}
		}
	}
	slices.SortFunc(found, netip.Prefix.Compare)
	found = slices.Compact(found)
	out := make([]string, len(found))
	for i, p := range found {
		out[i] = p.String()
	}
	return out
}

// ownPrefixes lists what of the prefixes the device owns or routes; without
// prefixes its own addresses.
func ownPrefixes(prefixes []netip.Prefix, device *ident.Identity) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range device.Addresses {
		if len(prefixes) == 0 || slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) }) {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	for _, p := range prefixes {
		for _, route := range ruleset.Covered(device.Routes) {
			switch {
			case !route.Overlaps(p):
			case route.Bits() > p.Bits():
				out = append(out, route)
			default:
				out = append(out, p)
			}
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// capabilityPrefixes lists the device's own addresses that the rule is about:
// programs that ask for capabilities run on the device itself.
func capabilityPrefixes(prefixes []netip.Prefix, device *ident.Identity) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range ownPrefixes(prefixes, device) {
		if p.IsSingleIP() && device.OwnsAddress(p.Addr()) {
			out = append(out, p)
		}
	}
	return out
}

// services lists a rule's protocols and port ranges. A protocol without ports
// that stands beside ones with ports is listed with theirs: the rule was
// written with one list of ports for all.
func services(list []ruleset.Service) (protocols []int, ports []ruleset.Service) {
	protocols = []int{}
	for _, s := range list {
		if !slices.Contains(protocols, int(s.Protocol)) {
			protocols = append(protocols, int(s.Protocol))
		}
		if policy.HasPorts(s.Protocol) {
			ports = append(ports, ruleset.Service{First: s.First, Last: s.Last})
		}
	}
	if len(ports) == 0 && len(list) > 0 {
		ports = []ruleset.Service{{First: 0, Last: 65535}}
	}
	slices.SortFunc(ports, func(a, b ruleset.Service) int {
		if a.First != b.First {
			return int(a.First) - int(b.First)
		}
		return int(a.Last) - int(b.Last)
	})
	return protocols, slices.Compact(ports)
}

func raw(values []string) []json.RawMessage {
	var out []json.RawMessage
	for _, v := range values {
		out = append(out, json.RawMessage(v))
	}
	return out
}

func sshAnswer(r compile.SSHRule) SSHAnswer {
	a := SSHAnswer{SSHUsers: r.Users, AcceptEnv: r.AcceptEnv, Principals: []Principal{}}
	for _, address := range r.From {
		a.Principals = append(a.Principals, Principal{address.String()})
	}
	if r.Check {
		a.Action.HoldAndDelegate = checkPath
		a.Action.CheckPeriod = "always"
		if r.CheckPeriod > 0 {
			a.Action.CheckPeriod = r.CheckPeriod.String()
		}
	} else {
		a.Action.Accept = true
		a.Action.AgentForwarding, a.Action.LocalForwarding, a.Action.RemoteForwarding = true, true, true
	}
	for _, address := range r.Recorders {
		a.Action.Recorders = append(a.Action.Recorders, address.String())
	}
	return a
}

// JSON returns a value as indented JSON with a newline at its end.
func JSON(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		panic("BUG: report: a value of ours does not encode: " + err.Error())
	}
	return b.Bytes()
}
