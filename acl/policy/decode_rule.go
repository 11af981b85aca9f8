package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tailscale/hujson"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/zone"
)

// common lists the keys that acls and grants share.
func (d *decoder) common(r *Rule) []field {
	return []field{
		{"id", func(v *hujson.Value) { r.ID = d.ruleID(v) }},
		{"mode", func(v *hujson.Value) { r.Mode = max(r.Mode, d.mode(v)) }},
		{"notBefore", func(v *hujson.Value) { r.NotBefore = d.time(v, "notBefore") }},
		{"notAfter", func(v *hujson.Value) {
			r.NotAfter = d.time(v, "notAfter")
			if !r.NotAfter.IsZero() && !r.NotBefore.IsZero() && !r.NotBefore.Before(r.NotAfter) {
				d.fail(d.at(v), literalText(v), "notAfter is not later than notBefore: the rule never holds", "correct one of them")
			}
		}},
		{"schedule", func(v *hujson.Value) { r.Schedule = d.schedule(v) }},
		{"srcPosture", func(v *hujson.Value) { r.SrcPosture = d.postureNames(v, "srcPosture") }},
	}
}

func (d *decoder) ruleID(v *hujson.Value) string {
	s, ok := d.string(v, "id")
	if !ok {
		return ""
	}
	valid := s != "" && len(s) <= 64
	for i := range len(s) {
		c := s[i]
		valid = valid && (isDigit(c) || 'a' <= c|0x20 && c|0x20 <= 'z' || strings.ContainsRune("-_./", rune(c)))
	}
	if !valid {
		d.fail(d.at(v), s, fmt.Sprintf("%q is not an id", s), "write up to 64 letters, digits, dashes, dots, slashes and underscores")
		return ""
	}
	return s
}

func (d *decoder) startRules(v *hujson.Value, what string, read func(index int, v *hujson.Value)) {
	index := 0
	d.list(v, what, MaxRules, func(v *hujson.Value) {
		if len(d.doc.Rules) >= MaxRules {
			if len(d.doc.Rules) == MaxRules && index >= 0 {
				d.fail(d.at(v), "", "acls and grants have too many rules together", fmt.Sprintf("at most %d are read", MaxRules))
				index = -1
			}
			return
		}
		read(index, v)
		index++
	})
}

func (d *decoder) readACLs(v *hujson.Value) {
	d.doc.ACLs = true
	d.startRules(v, "acls", func(index int, v *hujson.Value) {
		r := Rule{Kind: ACL, Index: index, Mode: d.doc.Mode, Pos: d.at(v)}
		var dst []Name
		var proto *hujson.Value
		action := ""
		src := func(v *hujson.Value) { r.Src = joined(r.Src, d.selectors(v, "src", &anySource)) }
		ports := func(v *hujson.Value) { dst = joined(dst, d.names(v, "dst")) }
		if !d.object(v, "an entry of acls", append([]field{
			{"action", func(v *hujson.Value) { action = d.action(v, "accept", "deny") }},
			{"src", src},
			{"dst", ports},
			{"proto", func(v *hujson.Value) {
				if v.Value.Kind() != '"' || literalText(v) != "" {
					proto = v
				}
			}},
			{"users", src},   // the older spelling of src
			{"ports", ports}, // the older spelling of dst
		}, d.common(&r)...)) {
			return
		}
		if action == "" {
			d.missing(v, "action", "action must be specified", `write "action": "accept"`)
		}
		r.Deny = action == "deny"
		protocols := defaultProtocols
		if proto != nil {
			if text, ok := d.string(proto, "proto"); ok {
				number, ok := ParseProtocol(strings.TrimSpace(text))
				if !ok {
					d.fail(d.at(proto), text, fmt.Sprintf("unknown protocol %q", text), protocolHint)
				}
				protocols = []uint8{number}
			}
		}
		r.Dst = make([]Destination, 0, len(dst))
		for _, n := range dst {
			admits := protocols
			if r.Deny && proto == nil && !strings.HasSuffix(n.Name, ":*") {
				// To deny a port is not to deny ping.
				admits = portedProtocols
			}
			if to, ok := d.destination(n, admits); ok {
				r.Dst = append(r.Dst, to)
			}
		}
		d.finishRule(&r)
	})
}

// joined returns both lists as one, without a copy where the first is empty.
func joined[T any](first, second []T) []T {
	if len(first) == 0 {
		return second
	}
	return append(first, second...)
}

// action reads an action and returns "" where it is not one of the valid ones.
func (d *decoder) action(v *hujson.Value, valid ...string) string {
	s, ok := d.string(v, "action")
	switch {
	case !ok:
		return "?"
	case s == "":
		return ""
	case slices.Contains(valid, s):
		return s
	}
	quoted := make([]string, len(valid))
	for i, a := range valid {
		quoted[i] = fmt.Sprintf("%q", a)
	}
	d.fail(d.at(v), s, fmt.Sprintf("%q is not a valid action", s), "write "+strings.Join(quoted, " or "))
	return "?"
}

// missing reports that an object lacks a key, at the key where it is there but
// empty.
func (d *decoder) missing(v *hujson.Value, key, message, hint string) {
	pos := d.at(v)
	if o, ok := v.Value.(*hujson.Object); ok {
		for i := range o.Members {
			if strings.EqualFold(literalText(&o.Members[i].Name), key) {
				pos = d.at(&o.Members[i].Value)
			}
		}
	}
	d.fail(pos, "", message, hint)
}

// destination reads "host:ports".
func (d *decoder) destination(n Name, protocols []uint8) (Destination, bool) {
	host, ports, ok := cutPorts(n.Name)
	if !ok {
		// A resource brings its own ports.
		if s, found := d.selectorIf(n, ResourceName); found {
			return Destination{Selector: s}, true
		}
		d.fail(n.Pos, n.Name, fmt.Sprintf("dst=%q: it has no port", n.Name), `write a host, a colon and "*", ports or port ranges, such as "tag:web:80,443"`)
		return Destination{}, false
	}
	if strings.HasPrefix(n.Name, "resource:") {
		if strings.Contains(strings.TrimPrefix(n.Name, "resource:"), ":") {
			d.fail(n.Pos, n.Name, fmt.Sprintf("dst=%q: a resource brings its own ports", n.Name), fmt.Sprintf("write %q", host))
			return Destination{}, false
		}
		s, ok := d.selector(n.Name, n.Pos, &anyDestination)
		return Destination{Selector: s}, ok
	}
	ranges, message := parsePorts(ports)
	if message != "" && slices.Contains([]string{"tag", "group", "autogroup", "ipset"}, host) {
		d.fail(n.Pos, n.Name, fmt.Sprintf("dst=%q: it has no port", n.Name), fmt.Sprintf("write %q, or ports instead of the *", n.Name+":*"))
		return Destination{}, false
	}
	if message != "" {
		d.fail(n.Pos, n.Name, fmt.Sprintf("dst=%q: %s", n.Name, message), `write "*", ports or port ranges after the last colon, such as "tag:web:80,443"`)
		return Destination{}, false
	}
	if len(protocols) == 1 && !HasPorts(protocols[0]) && ports != "*" {
		d.fail(n.Pos, n.Name, fmt.Sprintf("dst=%q: protocol %s has no ports", n.Name, ProtocolName(protocols[0])), fmt.Sprintf("write %q", host+":*"))
		return Destination{}, false
	}
	s, ok := d.selector(host, n.Pos, &anyDestination)
	to := Destination{Selector: s}
	for _, p := range ranges {
		to.Services = append(to.Services, Service{protocols, p[0], p[1]})
	}
	return to, ok
}

func (d *decoder) selectorIf(n Name, k Kind) (Selector, bool) {
	if k == ResourceName && strings.HasPrefix(n.Name, "resource:") {
		return d.selector(n.Name, n.Pos, &anyDestination)
	}
	return Selector{}, false
}

// cutPorts splits a destination at its last colon. Brackets around an address
// or prefix are taken off.
func cutPorts(text string) (host, ports string, ok bool) {
	i := strings.LastIndexByte(text, ':')
	if i < 0 {
		return text, "", false
	}
	host, ports = text[:i], text[i+1:]
	if inner, found := strings.CutPrefix(host, "["); found {
		inner = strings.Replace(inner, "]", "", 1)
		if _, message := parseAddresses(inner); message == "" {
			host = inner
		}
	}
	return host, ports, true
}

func (d *decoder) readGrants(v *hujson.Value) {
	d.doc.Grants = true
	d.startRules(v, "grants", func(index int, v *hujson.Value) {
		r := Rule{Kind: Grant, Index: index, Mode: d.doc.Mode, Pos: d.at(v)}
		var services []Service
		var dst []Selector
		var ip []Name
		if !d.object(v, "an entry of grants", append([]field{
			{"src", func(v *hujson.Value) { r.Src = d.selectors(v, "src", &anySource) }},
			{"dst", func(v *hujson.Value) { dst = d.selectors(v, "dst", &anyDestination) }},
			{"ip", func(v *hujson.Value) { ip = d.names(v, "ip") }},
			{"app", func(v *hujson.Value) { r.App = d.apps(v) }},
			{"via", func(v *hujson.Value) { r.Via = d.viaTags(v) }},
		}, d.common(&r)...)) {
			return
		}
		resource := false
		for _, s := range dst {
			resource = resource || s.Kind == ResourceName
		}
		if len(ip) == 0 && len(r.App) == 0 && !resource {
			d.missing(v, "ip", "ip and app can not both be empty", `write what is admitted, such as "ip": ["tcp:443"]`)
		}
		for _, n := range ip {
			s, message, hint := parseService(n.Name)
			if message != "" {
				d.fail(n.Pos, n.Name, fmt.Sprintf("ip=%q: %s", n.Name, message), hint)
			}
			services = append(services, s...)
		}
		for _, s := range dst {
			to := Destination{Selector: s, Services: services}
			if s.Kind == ResourceName {
				to.Services = nil
				if len(ip) > 0 {
					d.fail(s.Pos, s.Name, "a resource brings its own ports", "leave ip out, or name the target itself")
				}
			}
			r.Dst = append(r.Dst, to)
		}
		d.finishRule(&r)
	})
}

func (d *decoder) viaTags(v *hujson.Value) []Name {
	names := d.names(v, "via")
	for _, n := range names {
		if !strings.HasPrefix(n.Name, "tag:") {
			d.fail(n.Pos, n.Name, fmt.Sprintf("invalid via %q", n.Name), "write the tags of the routers, such as tag:router")
		} else if !d.tags[ident.Tag(n.Name)] {
			d.fail(n.Pos, n.Name, fmt.Sprintf("via=tag not found: %q", n.Name), definition("tagOwners", n.Name, d.tagNames()))
		}
	}
	return names
}

// ownCapabilities are the names of the vendor's own domain that a policy may
// grant. Others of that domain are made by the service itself.
var ownCapabilities = []string{
	"tailscale.com/cap/drive", "tailscale.com/cap/kubernetes", "tailscale.com/cap/relay", "tailscale.com/cap/webui",
	"tailscale.com/cap/golink", "tailscale.com/cap/tsidp", "tailscale.com/cap/secrets",
}

func (d *decoder) apps(v *hujson.Value) []App {
	var out []App
	d.entries(v, "app", func(name string, at Position, v *hujson.Value) {
		domain, path, ok := strings.Cut(name, "/")
		switch {
		case !ok || path == "" || !strings.Contains(domain, ".") || strings.ContainsAny(domain, ": \t@"):
			d.fail(at, name, fmt.Sprintf("%q: capability name must have the form {domain}/{path}", name), "write a name such as example.com/cap/admin, without a scheme")
		case (domain == "tailscale.com" || strings.HasSuffix(domain, ".tailscale.com")) && !slices.Contains(ownCapabilities, name):
			d.fail(at, name, fmt.Sprintf("%q: capability name must not be in the tailscale.com domain", name), "use a domain of your own")
		}
		out = append(out, App{name, d.appValues(v, name), at})
	})
	slices.SortFunc(out, func(a, b App) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (d *decoder) appValues(v *hujson.Value, name string) []string {
	var values []string
	if !isNull(v) {
		d.list(v, fmt.Sprintf("app[%q]", name), MaxServices, func(v *hujson.Value) { values = append(values, minimal(v)) })
	}
	return values
}

// finishRule checks what takes the whole rule and adds it to the document.
func (d *decoder) finishRule(r *Rule) {
	const selfHint = "its src may be users, groups, autogroup:member and the roles"
	for _, to := range r.Dst {
		switch {
		case to.Kind == Address && slices.ContainsFunc(to.Prefixes, isEverything):
			d.fail(to.Pos, to.Name, fmt.Sprintf("dst %q: to allow all IP addresses, use \"*\" or \"autogroup:internet\"", to.Name), "")
		case to.Kind == Autogroup && to.Name == "autogroup:internet" && len(r.App) > 0:
			d.fail(to.Pos, to.Name, "cannot use app grants with autogroup:internet", "the internet runs no program that asks for capabilities; grant ip only")
		case to.Kind == Autogroup && to.Name == "autogroup:self":
			for _, s := range r.Src {
				if !mayHaveSelf(s) && !(s.Kind == Any && r.Kind == ACL) {
					d.fail(s.Pos, s.Name, "autogroup:self can only be used with users, groups, or supported autogroups", selfHint)
				}
			}
		}
	}
	if pairs := len(r.Src) * len(r.Dst); pairs > MaxExpansion {
		d.fail(r.Pos, "", fmt.Sprintf("the rule has %d pairs of src and dst", pairs), fmt.Sprintf("at most %d are allowed; split it, or use groups and tags", MaxExpansion))
		return
	}
	before := d.combinations
	if d.combinations += d.combinationsOf(r); d.combinations > MaxCombinations {
		if before <= MaxCombinations {
			d.fail(r.Pos, "", "the rules up to this one come to too much", fmt.Sprintf("at most %d combinations of sources, postures and different ports are compiled; use groups and tags", MaxCombinations))
		}
		return
	}
	d.doc.Rules = append(d.doc.Rules, *r)
}

// combinationsOf returns what a rule counts towards MaxCombinations.
func (d *decoder) combinationsOf(r *Rule) int {
	postures := len(r.SrcPosture)
	if r.SrcPosture == nil {
		postures = len(d.doc.DefaultSrc)
	}
	services := map[string]bool{}
	var key []byte
	for _, to := range r.Dst {
		if to.Kind == ResourceName {
			key = append(key[:0], to.Name...)
		} else {
			key = appendServices(key[:0], to.Services)
		}
		if !services[string(key)] {
			services[string(key)] = true
		}
	}
	return len(r.Src) * max(1, postures) * len(services)
}

// mayHaveSelf reports whether a source picks devices by their user, so that
// there is a self.
func mayHaveSelf(s Selector) bool {
	switch s.Kind {
	case User, GroupName, Domain:
		return true
	case Autogroup:
		return slices.Contains(roleAutogroups, s.Name)
	default:
		return false
	}
}

var dayNames = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// schedule reads {"zone": …, "windows": [{"days": […], "from": "09:00", "to":
// "17:00"}]}.
func (d *decoder) schedule(v *hujson.Value) *Schedule {
	s := &Schedule{}
	ok := d.object(v, "a schedule", []field{
		{"zone", func(v *hujson.Value) {
			s.Zone, _ = d.string(v, "zone")
			if _, err := zone.Load(s.Zone); err != nil {
				d.fail(d.at(v), s.Zone, fmt.Sprintf("unknown time zone %q", s.Zone), `write a name of the IANA database, such as "Europe/Berlin", or leave it out for UTC`)
			}
		}},
		{"windows", func(v *hujson.Value) {
			d.list(v, "windows", 64, func(v *hujson.Value) {
				w := Window{Days: 1<<7 - 1, End: 24 * 60}
				d.object(v, "a window", []field{
					{"days", func(v *hujson.Value) { w.Days = d.days(v) }},
					{"from", func(v *hujson.Value) { w.Start = d.timeOfDay(v, "from", 24*60-1) }},
					{"to", func(v *hujson.Value) { w.End = d.timeOfDay(v, "to", 24*60) }},
				})
				s.Windows = append(s.Windows, w)
			})
		}},
	})
	if ok && len(s.Windows) == 0 {
		d.fail(d.at(v), "", "a schedule needs windows", `write "windows": [{"days": ["mon-fri"], "from": "09:00", "to": "17:00"}]`)
	}
	return s
}

func (d *decoder) days(v *hujson.Value) uint8 {
	var days uint8
	before := len(d.errs)
	for _, n := range d.names(v, "days") {
		from, to, isRange := strings.Cut(strings.ToLower(n.Name), "-")
		if !isRange {
			to = from
		}
		first, last := dayNumber(from), dayNumber(to)
		if first < 0 || last < 0 {
			d.fail(n.Pos, n.Name, fmt.Sprintf("%q is not a day", n.Name), `write mon, tue, wed, thu, fri, sat, sun or a range such as "mon-fri"`)
			continue
		}
		for day := first; ; day = (day + 1) % 7 {
			days |= 1 << day
			if day == last {
				break
			}
		}
	}
	if days == 0 && len(d.errs) == before {
		d.fail(d.at(v), "", "a window without days never holds", "name the days, or leave days out for every day")
	}
	return days
}

func dayNumber(s string) int {
	for i, name := range dayNames {
		if s == name || s == strings.ToLower(time.Weekday(i).String()) {
			return i
		}
	}
	return -1
}

func (d *decoder) timeOfDay(v *hujson.Value, what string, limit int) uint16 {
	s, ok := d.string(v, what)
	if !ok {
		return 0
	}
	hours, minutes, colon := strings.Cut(s, ":")
	h, ok1 := parsePort(hours)
	m, ok2 := parsePort(minutes)
	total := int(h)*60 + int(m)
	if !colon || !ok1 || !ok2 || len(hours) > 2 || len(minutes) != 2 || m > 59 || total > limit {
		d.fail(d.at(v), s, fmt.Sprintf("%s: %q is not a time of day", what, s), `write hours and minutes, such as "09:00"`)
		return 0
	}
	return uint16(total)
}
