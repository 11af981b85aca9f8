package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tailscale/hujson"
)

func (d *decoder) readPostures(v *hujson.Value) {
	d.entries(v, "postures", func(name string, at Position, v *hujson.Value) {
		rest, ok := strings.CutPrefix(name, "posture:")
		if !ok || rest == "" {
			d.fail(at, name, fmt.Sprintf("postures[%q]: a posture's name must start with 'posture:'", name), `write a name such as "posture:managed"`)
			return
		}
		p := Posture{Name: name, Pos: at}
		d.list(v, fmt.Sprintf("postures[%q]", name), MaxServices, func(v *hujson.Value) {
			text, ok := d.string(v, fmt.Sprintf("a condition of postures[%q]", name))
			if !ok {
				return
			}
			c, fault := parseCondition(text)
			if fault != nil {
				pos := d.at(v)
				pos.Column += 1 + fault.at // the quote; exact where nothing before it is escaped
				d.fail(pos, text, fault.message, fault.hint)
				return
			}
			c.Pos = d.at(v)
			p.Conditions = append(p.Conditions, c)
		})
		if a, ok := v.Value.(*hujson.Array); ok && len(a.Elements) == 0 {
			d.fail(d.at(v), "", fmt.Sprintf("postures[%q] has no condition, so every device would satisfy it", name), `write conditions such as "node:os == 'linux'"`)
		}
		d.postures[name] = true
		d.doc.Postures = append(d.doc.Postures, p)
	})
	slices.SortFunc(d.doc.Postures, func(a, b Posture) int { return strings.Compare(a.Name, b.Name) })
}

func (d *decoder) postureNames(v *hujson.Value, what string) []Name {
	names := d.names(v, what)
	for _, n := range names {
		if !d.postures[n.Name] {
			d.fail(n.Pos, n.Name, fmt.Sprintf("posture not found: %q", n.Name), "define it under postures")
		}
	}
	if names == nil {
		names = []Name{}
	}
	return names
}

var levelNames = []string{"public", "internal", "confidential", "restricted"}

func (d *decoder) readSensitivity(v *hujson.Value) {
	d.entries(v, "sensitivity", func(name string, at Position, v *hujson.Value) {
		if !slices.Contains(levelNames, name) {
			d.fail(at, name, fmt.Sprintf("%q is not a sensitivity", name), "write "+strings.Join(levelNames, ", "))
			return
		}
		l := Level{Name: name, Pos: at}
		d.object(v, fmt.Sprintf("sensitivity[%q]", name), []field{
			{"mfaMaxAge", func(v *hujson.Value) { l.MFAMaxAge = d.positive(v, "mfaMaxAge") }},
			{"posture", func(v *hujson.Value) { l.Posture = d.postureNames(v, "posture") }},
			{"country", func(v *hujson.Value) { l.Country = d.countries(v) }},
			{"maxRisk", func(v *hujson.Value) {
				lit, ok := v.Value.(hujson.Literal)
				if !ok || v.Value.Kind() != '0' {
					d.wrongKind(v, "maxRisk", "a number, such as 40")
					return
				}
				risk := lit.Float()
				l.MaxRisk = &risk
			}},
			{"jit", func(v *hujson.Value) { l.JIT = d.bool(v, "jit") }},
			{"maxSession", func(v *hujson.Value) { l.MaxSession = d.positive(v, "maxSession") }},
		})
		d.levels[name] = true
		d.doc.Levels = append(d.doc.Levels, l)
	})
	slices.SortFunc(d.doc.Levels, func(a, b Level) int { return strings.Compare(a.Name, b.Name) })
}

func (d *decoder) positive(v *hujson.Value, what string) time.Duration {
	duration, ok := d.duration(v, what)
	if ok && (duration < time.Second || duration > 366*24*time.Hour || duration%time.Second != 0) {
		d.fail(d.at(v), literalText(v), fmt.Sprintf("%s %v is not a whole number of seconds between 1s and 366d", what, duration), `write a duration such as "8h"`)
		return 0
	}
	return duration
}

func (d *decoder) countries(v *hujson.Value) []string {
	out := []string{}
	before := len(d.errs)
	for _, n := range d.names(v, "country") {
		c := strings.ToUpper(n.Name)
		if len(c) != 2 || c[0] < 'A' || c[0] > 'Z' || c[1] < 'A' || c[1] > 'Z' {
			d.fail(n.Pos, n.Name, fmt.Sprintf("%q is not a country", n.Name), `write ISO 3166 codes of two letters, such as "DE"`)
			continue
		}
		out = append(out, c)
	}
	if len(out) == 0 && len(d.errs) == before {
		d.fail(d.at(v), "", "country is empty, so that nobody would have access", "name countries, or leave it out")
	}
	return out
}

func (d *decoder) readResources(v *hujson.Value) {
	d.entries(v, "resources", func(name string, at Position, v *hujson.Value) {
		r := Resource{Name: name, Pos: at}
		if strings.ContainsAny(name, ": \t*@/") {
			d.fail(at, name, fmt.Sprintf("resources[%q]: a resource's name has none of the characters : * @ / and space", name), `write a plain name, such as "payroll-db"`)
			return
		}
		what := fmt.Sprintf("resources[%q]", name)
		before := len(d.errs)
		d.object(v, what, []field{
			{"target", func(v *hujson.Value) { r.Target = d.selectors(v, "target", &resourceTarget) }},
			{"ip", func(v *hujson.Value) {
				for _, n := range d.names(v, "ip") {
					s, message, hint := parseService(n.Name)
					if message != "" {
						d.fail(n.Pos, n.Name, fmt.Sprintf("ip=%q: %s", n.Name, message), hint)
					}
					r.Services = append(r.Services, s...)
				}
			}},
			{"sensitivity", func(v *hujson.Value) {
				s, ok := d.string(v, "sensitivity")
				if ok && !slices.Contains(levelNames, s) {
					d.fail(d.at(v), s, fmt.Sprintf("%q is not a sensitivity", s), "write "+strings.Join(levelNames, ", "))
				} else if ok && !d.levels[s] {
					d.fail(d.at(v), s, fmt.Sprintf("sensitivity not found: %q", s), "say under sensitivity what access to it takes")
				}
				r.Sensitivity = s
			}},
			{"owner", func(v *hujson.Value) {
				if text, ok := d.string(v, "owner"); ok {
					if s, ok := d.selector(text, d.at(v), &requester); ok {
						r.Owner = &s
					}
				}
			}},
		})
		sound := len(d.errs) == before
		if sound && len(r.Target) == 0 {
			d.fail(at, name, what+" has no target", `write "target": ["tag:db"]`)
		}
		if sound && len(r.Services) == 0 {
			d.fail(at, name, what+" has no ip", `write what is admitted there, such as "ip": ["tcp:5432"]`)
		}
		d.resources[name] = true
		d.doc.Resources = append(d.doc.Resources, r)
	})
	slices.SortFunc(d.doc.Resources, func(a, b Resource) int { return strings.Compare(a.Name, b.Name) })
}

func (d *decoder) readJIT(v *hujson.Value) {
	d.entries(v, "jit", func(name string, at Position, v *hujson.Value) {
		j := JIT{Name: name, Pos: at}
		what := fmt.Sprintf("jit[%q]", name)
		before := len(d.errs)
		d.object(v, what, []field{
			{"resources", func(v *hujson.Value) {
				j.Resources = d.names(v, "resources")
				for _, n := range j.Resources {
					if !d.resources[strings.TrimPrefix(n.Name, "resource:")] {
						d.fail(n.Pos, n.Name, fmt.Sprintf("resource not found: %q", n.Name), "define it under resources")
					}
				}
			}},
			{"requesters", func(v *hujson.Value) { j.Requesters = d.selectors(v, "requesters", &requester) }},
			{"approvers", func(v *hujson.Value) { j.Approvers = d.selectors(v, "approvers", &requester) }},
			{"maxDuration", func(v *hujson.Value) { j.MaxDuration = d.positive(v, "maxDuration") }},
			{"reason", func(v *hujson.Value) { j.Reason = d.bool(v, "reason") }},
		})
		sound := len(d.errs) == before
		for _, missing := range []struct {
			absent bool
			key    string
		}{
			{len(j.Resources) == 0, "resources"},
			{len(j.Requesters) == 0, "requesters"},
			{len(j.Approvers) == 0, "approvers"},
			{j.MaxDuration == 0, "maxDuration"},
		} {
			if sound && missing.absent {
				d.fail(at, name, fmt.Sprintf("%s has no %s", what, missing.key), "it says what may be requested, by whom, who approves, and for how long at most")
			}
		}
		if len(j.Requesters) == 1 && len(j.Approvers) == 1 && j.Requesters[0].Kind == User && j.Requesters[0].Name == j.Approvers[0].Name {
			d.fail(j.Approvers[0].Pos, j.Approvers[0].Name, what+": the only approver is the only requester, who never approves", "name another approver")
		}
		d.doc.JIT = append(d.doc.JIT, j)
	})
	slices.SortFunc(d.doc.JIT, func(a, b JIT) int { return strings.Compare(a.Name, b.Name) })
}

func (d *decoder) readNodeAttrs(v *hujson.Value) {
	d.list(v, "nodeAttrs", MaxRules, func(v *hujson.Value) {
		a := NodeAttr{Pos: d.at(v)}
		d.object(v, "an entry of nodeAttrs", []field{
			{"target", func(v *hujson.Value) { a.Target = d.selectors(v, "target", &attributeTarget) }},
			{"attr", func(v *hujson.Value) {
				a.Attr = d.names(v, "attr")
				for _, n := range a.Attr {
					if n.Name == "" {
						d.fail(n.Pos, "", "attr has an empty entry", "write an attribute's name")
					}
				}
			}},
			{"app", func(v *hujson.Value) {
				d.entries(v, "app", func(name string, at Position, v *hujson.Value) {
					a.App = append(a.App, App{name, d.appValues(v, name), at})
				})
				slices.SortFunc(a.App, func(x, y App) int { return strings.Compare(x.Name, y.Name) })
			}},
			{"ipPool", func(v *hujson.Value) {
				for _, n := range d.names(v, "ipPool") {
					prefixes, message := parseAddresses(n.Name)
					if message != "" {
						d.fail(n.Pos, n.Name, fmt.Sprintf("ipPool: %q: %s", n.Name, message), "write prefixes, such as 100.85.0.0/16")
					}
					a.IPPool = append(a.IPPool, prefixes...)
				}
			}},
		})
		d.doc.NodeAttrs = append(d.doc.NodeAttrs, a)
	})
}

func (d *decoder) readApprovers(v *hujson.Value) {
	out := &d.doc.Approvers
	d.object(v, "autoApprovers", []field{
		{"routes", func(v *hujson.Value) {
			d.entries(v, "autoApprovers.routes", func(name string, at Position, v *hujson.Value) {
				p, err := netip.ParsePrefix(name)
				switch {
				case err != nil:
					d.fail(at, name, fmt.Sprintf("%q is not a prefix", name), "write an address and a length, such as 10.0.0.0/8")
					return
				case p.Masked() != p:
					d.fail(at, name, fmt.Sprintf("%q: the address has bits beyond its prefix length", name), fmt.Sprintf("did you mean %s?", p.Masked()))
					return
				}
				out.Routes = append(out.Routes, RouteApprover{p, d.selectors(v, "autoApprovers.routes", &people), at})
			})
			slices.SortFunc(out.Routes, func(a, b RouteApprover) int { return a.Prefix.Compare(b.Prefix) })
		}},
		{"exitNode", func(v *hujson.Value) { out.ExitNode = d.selectors(v, "autoApprovers.exitNode", &people) }},
		{"services", func(v *hujson.Value) {
			d.entries(v, "autoApprovers.services", func(name string, at Position, v *hujson.Value) {
				out.Services = append(out.Services, ServiceApprover{name, d.selectors(v, "autoApprovers.services", &people), at})
			})
			slices.SortFunc(out.Services, func(a, b ServiceApprover) int { return strings.Compare(a.Service, b.Service) })
		}},
	})
}
