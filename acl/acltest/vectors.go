package acltest

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// ErrVectors is wrapped by every error about the text of vectors.
var ErrVectors = errors.New("acltest: malformed vectors")

// Vector is one scenario of the packet filter. The format of the file that it
// comes from is described beside it (tests/vectors/filter/README.md).
type Vector struct {
	Name, Title string
	Steps       []VectorStep
}

// VectorStep is one line of a vector.
type VectorStep struct {
	// Line is the line's number in the file, Text what it says.
	Line int
	Text string
	// Op is the first word: what happens. The fields below are for some.
	Op   string
	Peer string
	// At is the time since the start that "at" moves to.
	At time.Duration
	// Identity is for "self" and "peer".
	Identity *ident.Identity
	// Config is for "config".
	Config *filter.Config
	// Direction is for "rule", "candidate", "drop-rule", "in" and "out".
	Direction ruleset.Direction
	Rule      ruleset.Rule
	// Packet is for "in" and "out", Want what must become of it.
	Packet []byte
	Want   VectorDecision
	// Up is for "shields", Count for "flows".
	Up    bool
	Count int
	// Cut is for "cut": this device's side is the source.
	Cut packet.Tuple
}

// VectorDecision is the part of a filter.Decision that a vector names.
type VectorDecision struct {
	Verdict, Reason string
	Rule            ruleset.RuleID
	New             bool
	MTU             uint16
	Would           string
	// Candidate is "would_allow:RULE" or "would_deny:RULE", without a rule where
	// the candidate has none that matches.
	Candidate string
}

// String returns the decision as vectors spell it.
func (d VectorDecision) String() string {
	s := d.Verdict
	if d.Reason != "pass" {
		s += " " + d.Reason
	}
	if d.New {
		s += " new"
	}
	if d.Rule != "" {
		s += " rule=" + string(d.Rule)
	}
	if d.MTU != 0 {
		s += " mtu=" + strconv.Itoa(int(d.MTU))
	}
	if d.Would != "" {
		s += " " + d.Would
	}
	if d.Candidate != "" {
		s += " candidate=" + d.Candidate
	}
	return s
}

// DecisionOf returns what a vector can say of a decision.
func DecisionOf(d filter.Decision) VectorDecision {
	v := VectorDecision{d.Verdict.String(), d.Reason.String(), d.Rule, d.NewFlow, d.MTU, d.Would.String(), ""}
	if d.Candidate.Would != ruleset.WouldChangeNothing {
		v.Candidate = d.Candidate.Would.String() + ":" + string(d.Candidate.Rule)
	}
	return v
}

// ParseVectors reads a file of vectors. The lines before the first vector are
// the beginning of each. The error wraps ErrVectors and names the line.
func ParseVectors(text string) ([]Vector, error) {
	var vectors []Vector
	var common []VectorStep
	for n, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if title, ok := strings.CutPrefix(line, "vector "); ok {
			name, title, _ := strings.Cut(title, " ")
			vectors = append(vectors, Vector{Name: name, Title: title, Steps: append([]VectorStep(nil), common...)})
			continue
		}
		for _, line := range expand(line) {
			step, err := parseStep(line)
			if err != nil {
				return nil, fmt.Errorf("%w: line %d: %w", ErrVectors, n+1, err)
			}
			step.Line = n + 1
			if len(vectors) == 0 {
				common = append(common, step)
			} else {
				v := &vectors[len(vectors)-1]
				v.Steps = append(v.Steps, step)
			}
		}
	}
	return vectors, nil
}

// expand repeats a line for each number of its "{from..to}".
func expand(line string) []string {
	before, rest, found := strings.Cut(line, "{")
	numbers, after, _ := strings.Cut(rest, "}")
	from, to, ok := strings.Cut(numbers, "..")
	first, err1 := strconv.Atoi(from)
	last, err2 := strconv.Atoi(to)
	if !found || !ok || err1 != nil || err2 != nil {
		return []string{line}
	}
	var lines []string
	for n := first; n <= last; n++ {
		lines = append(lines, before+strconv.Itoa(n)+after)
	}
	return lines
}

func parseStep(line string) (s VectorStep, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%q: %v", line, r)
		}
	}()
	w := &words{strings.Fields(line)}
	s = VectorStep{Text: line, Op: w.next()}
	switch s.Op {
	case "at":
		s.At = must(time.ParseDuration(w.next()))
	case "self":
		s.Identity = w.identity()
	case "peer":
		s.Peer = w.next()
		s.Identity = w.identity()
	case "config":
		s.Config = w.config()
	case "candidate-labels":
		s.Peer = w.next()
		s.Identity = w.identity()
	case "no-candidate":
	case "rule", "candidate", "drop-rule":
		s.Direction = direction(w.next())
		s.Rule.ID = ruleset.RuleID(w.next())
		if s.Op != "drop-rule" {
			w.rule(&s.Rule)
		}
	case "in", "out":
		s.Direction = direction(s.Op)
		s.Peer = w.next()
		s.Packet = w.packetBytes()
		s.Want = w.decision()
	case "shields":
		s.Up = map[string]bool{"up": true, "down": false}[w.next()]
	case "remove":
		s.Peer = w.next()
	case "flows":
		s.Peer = w.next()
		s.Count = must(strconv.Atoi(w.next()))
	case "cut":
		s.Peer = w.next()
		p := w.packet()
		s.Cut = packet.Tuple{
			Source: packet.AddressOf(p.Source), Destination: packet.AddressOf(p.Destination),
			SourcePort: p.SourcePort, DestinationPort: p.DestinationPort, Protocol: p.Protocol,
		}
	default:
		panic("unknown line")
	}
	if !w.done() {
		panic(fmt.Sprint("too much: ", w.left))
	}
	return s, nil
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func direction(s string) ruleset.Direction {
	switch s {
	case "in":
		return ruleset.In
	case "out":
		return ruleset.Out
	}
	panic("neither in nor out: " + s)
}

// words is the rest of a line. Its methods panic where the line is wrong.
type words struct{ left []string }

func (w *words) done() bool { return len(w.left) == 0 }

func (w *words) next() string {
	if w.done() {
		panic("the line ends early")
	}
	word := w.left[0]
	w.left = w.left[1:]
	return word
}

// option takes a word "name=value" if it is the next one.
func (w *words) option(name string) (string, bool) {
	if w.done() {
		return "", false
	}
	value, ok := strings.CutPrefix(w.left[0], name+"=")
	if ok {
		w.next()
	}
	return value, ok
}

func (w *words) number(name string, bits int) uint64 {
	if value, ok := w.option(name); ok {
		return must(strconv.ParseUint(value, 10, bits))
	}
	return 0
}

func (w *words) flag(name string) bool {
	if !w.done() && w.left[0] == name {
		w.next()
		return true
	}
	return false
}

func list[T any](value string, parse func(string) (T, error)) (all []T) {
	for _, s := range strings.Split(value, ",") {
		all = append(all, must(parse(s)))
	}
	return all
}

func (w *words) identity() *ident.Identity {
	id := &ident.Identity{}
	for !w.done() {
		name, value, _ := strings.Cut(w.next(), "=")
		switch name {
		case "addresses":
			id.Addresses = list(value, netip.ParseAddr)
		case "routes":
			id.Routes = list(value, netip.ParsePrefix)
		case "labels":
			id.Labels = ident.NewLabelSet(list(value, parseLabel)...)
		default:
			panic("unknown: " + name)
		}
	}
	return id
}

func parseLabel(s string) (ident.Label, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	return ident.Label(n), err
}

func (w *words) config() *filter.Config {
	c := &filter.Config{Seed: [2]uint64{1, 2}}
	for !w.done() {
		name, value, _ := strings.Cut(w.next(), "=")
		switch name {
		case "overlay":
			c.Overlay = list(value, netip.ParsePrefix)
		case "protected":
			c.Protected = list(value, netip.ParsePrefix)
		case "connected":
			c.Connected = list(value, netip.ParsePrefix)
		case "mtu":
			c.MTU = uint16(must(strconv.ParseUint(value, 10, 16)))
		case "control":
			c.ControlProtocol = uint8(must(strconv.ParseUint(value, 10, 8)))
		case "started":
			c.Started = VectorStart.Add(must(time.ParseDuration(value)))
		case "strict-echo":
			c.StrictEcho = true
		default:
			panic("unknown: " + name)
		}
	}
	return c
}

// VectorStart is the time at which every vector starts.
var VectorStart = time.Date(2026, 5, 4, 9, 0, 0, 0, time.UTC)

var protocolNumbers = map[string]uint8{
	"tcp": packet.TCP, "udp": packet.UDP, "icmp": packet.ICMP, "icmp6": packet.ICMPv6, "sctp": packet.SCTP, "any": ruleset.AnyProtocol,
}

func (w *words) rule(r *ruleset.Rule) {
	var sel ruleset.Selector
	for !w.done() {
		name, value, _ := strings.Cut(w.next(), "=")
		switch name {
		case "deny":
			r.Action = ruleset.Deny
		case "audit":
			r.Mode = ruleset.Audit
		case "labels":
			sel.Labels = ident.NewLabelSet(list(value, parseLabel)...)
		case "peer":
			sel.Prefixes = list(value, netip.ParsePrefix)
		case "subnets":
			sel.Subnets = true
		case "own":
			r.Own = list(value, netip.ParsePrefix)
		case "until":
			r.NotAfter = VectorStart.Add(must(time.ParseDuration(value)))
		case "session":
			r.MaxSession = must(time.ParseDuration(value))
		default:
			r.Services = append(r.Services, service(name))
		}
	}
	r.Peers = []ruleset.Selector{sel}
}

// service reads "tcp:80", "udp:1-99", "icmp", "47" or "any".
func service(s string) ruleset.Service {
	name, portRange, hasPorts := strings.Cut(s, ":")
	svc := ruleset.Service{Last: 65535}
	number, known := protocolNumbers[name]
	if !known {
		number = uint8(must(strconv.ParseUint(name, 10, 8)))
	}
	svc.Protocol = number
	if hasPorts {
		first, last, isRange := strings.Cut(portRange, "-")
		if !isRange {
			last = first
		}
		svc.First = uint16(must(strconv.ParseUint(first, 10, 16)))
		svc.Last = uint16(must(strconv.ParseUint(last, 10, 16)))
	}
	return svc
}

func (w *words) decision() VectorDecision {
	if w.next() != "=" {
		panic("want = and a decision")
	}
	d := VectorDecision{Verdict: w.next(), Reason: "pass"}
	if d.Verdict == "drop" || d.Verdict == "reject" {
		d.Reason = w.next()
	}
	d.New = w.flag("new")
	if rule, ok := w.option("rule"); ok {
		d.Rule = ruleset.RuleID(rule)
	}
	d.MTU = uint16(w.number("mtu", 16))
	for _, would := range []string{"would_allow", "would_deny"} {
		if w.flag(would) {
			d.Would = would
		}
	}
	d.Candidate, _ = w.option("candidate")
	return d
}

func (w *words) packetBytes() []byte {
	if w.flag("hex") {
		var digits strings.Builder
		for w.left[0] != "=" {
			digits.WriteString(w.next())
		}
		return must(hex.DecodeString(digits.String()))
	}
	p := w.packet()
	b := p.Bytes()
	if n := w.number("claims", 16); n > 0 { // the length field lies
		if b[0]>>4 == 4 {
			b[2], b[3] = byte(n>>8), byte(n)
		} else {
			b[4], b[5] = byte(n>>8), byte(n)
		}
	}
	return append(b, make([]byte, w.number("trailing", 16))...)
}

// packet reads a packet as text.
func (w *words) packet() Packet {
	var p Packet
	kind := w.next()
	source, arrow, destination := w.next(), w.next(), w.next()
	if arrow != ">" {
		panic("want source > destination")
	}
	switch kind {
	case "tcp", "udp", "sctp":
		from, to := must(netip.ParseAddrPort(source)), must(netip.ParseAddrPort(destination))
		p.Source, p.SourcePort, p.Destination, p.DestinationPort = from.Addr(), from.Port(), to.Addr(), to.Port()
		p.Protocol = protocolNumbers[kind]
	default:
		p.Source, p.Destination = must(netip.ParseAddr(source)), must(netip.ParseAddr(destination))
	}
	switch kind {
	case "tcp":
		if !w.done() && w.left[0] != "=" {
			p.Flags = tcpFlags(w.next())
		}
		p.Sequence, p.Acknowledgment = uint32(w.number("seq", 32)), uint32(w.number("ack", 32))
	case "sctp":
		p.Init = !w.done() && w.next() == "init"
	case "echo", "reply", "icmp":
		p.Protocol = packet.ICMP
		p.Type = map[string]uint8{"echo": 8}[kind]
		if p.Source.Is6() {
			p.Protocol = packet.ICMPv6
			p.Type = map[string]uint8{"echo": 128, "reply": 129}[kind]
		}
		p.Identifier = uint16(w.number("id", 16))
		if kind == "icmp" {
			p.Type, p.Code = uint8(w.number("type", 8)), uint8(w.number("code", 8))
			p.MTU = uint32(w.number("mtu", 32))
			p.Keep = int(w.number("keep", 16))
			if w.flag("about") {
				about := w.packet()
				p.About = &about
			}
		}
	case "ip":
		p.Protocol = uint8(w.number("protocol", 8))
	}
	p.Length = int(w.number("len", 16))
	if fragment, ok := w.option("frag"); ok {
		id, offset, _ := strings.Cut(fragment, "@")
		offset, p.More = strings.CutSuffix(offset, "+")
		p.Fragmented = true
		p.FragmentID = uint32(must(strconv.ParseUint(id, 10, 32)))
		p.Offset = must(strconv.Atoi(offset))
	}
	return p
}

func tcpFlags(s string) packet.TCPFlags {
	var f packet.TCPFlags
	if s == "-" {
		return f
	}
	for _, c := range s {
		at := strings.IndexRune("FSRPAUEC", c)
		if at < 0 {
			panic("unknown TCP flags " + s)
		}
		f |= 1 << at
	}
	return f
}
