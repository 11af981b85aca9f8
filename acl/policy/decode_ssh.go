package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tailscale/hujson"
	"github.com/warren-overlay/warren/acl/ident"
)

// maxCheckPeriod is the longest time for which a check may hold.
const maxCheckPeriod = 168 * time.Hour

func (d *decoder) readSSH(v *hujson.Value) {
	d.list(v, "ssh", MaxRules, func(v *hujson.Value) {
		r := SSHRule{CheckPeriod: DefaultCheckPeriod, Pos: d.at(v)}
		action := ""
		users := false
		if !d.object(v, "an entry of ssh", []field{
			{"action", func(v *hujson.Value) { action = d.action(v, "accept", "check") }},
			{"src", func(v *hujson.Value) { r.Src = d.selectors(v, "src", &sshSource) }},
			{"dst", func(v *hujson.Value) { r.Dst = d.selectors(v, "dst", &sshDestination) }},
			{"users", func(v *hujson.Value) { r.Users, users = d.sshUsers(v), true }},
			{"checkPeriod", func(v *hujson.Value) { r.CheckPeriod = d.checkPeriod(v) }},
			{"acceptEnv", func(v *hujson.Value) {
				for _, n := range d.names(v, "acceptEnv") {
					if n.Name == "" {
						d.fail(n.Pos, "", "acceptEnv values cannot be empty", `write a variable's name, in which * and ? stand for others, such as "LC_*"`)
					}
					r.AcceptEnv = append(r.AcceptEnv, n.Name)
				}
			}},
			{"recorder", func(v *hujson.Value) { r.Recorder = d.selectors(v, "recorder", &sshRecorder) }},
			{"enforceRecorder", func(v *hujson.Value) { r.Enforce = d.bool(v, "enforceRecorder") }},
			{"srcPosture", func(v *hujson.Value) { r.SrcPosture = d.postureNames(v, "srcPosture") }},
		}) {
			return
		}
		if action == "" {
			d.missing(v, "action", "action must be specified", `write "action": "accept" or "check"`)
		}
		if !users || users && len(r.Users) == 0 {
			d.missing(v, "users", "users must be specified", `write the local users, such as "users": ["autogroup:nonroot"]`)
		}
		r.Check = action == "check"
		d.checkSSHPair(&r)
		d.doc.SSH = append(d.doc.SSH, r)
	})
}

var sshRecorder = selectorSet{what: "recorder", kinds: []Kind{TagName}, want: "write the tags of the session recorders"}

// checkSSHPair refuses destinations that the sources may not have: the devices
// of a user are for that user alone.
func (d *decoder) checkSSHPair(r *SSHRule) {
	for _, to := range r.Dst {
		for _, from := range r.Src {
			switch {
			case to.Kind == Autogroup && to.Name == "autogroup:self" && !mayHaveSelf(from):
				d.fail(from.Pos, from.Name, "autogroup:self can only be used with users, groups, or supported autogroups", "a tagged device has no user, so there is no self")
			case to.Kind == Autogroup && to.Name == "autogroup:member" && isTagged(from):
				d.fail(from.Pos, from.Name, fmt.Sprintf("%s cannot log in to the devices of users", from.Name), "leave autogroup:member out of dst: a user's devices are for that user alone")
			case to.Kind == User && (from.Kind != User || from.Name != to.Name):
				d.fail(to.Pos, to.Name, fmt.Sprintf("invalid dst %q: users in dst are only allowed from the same user", to.Name), "write autogroup:self, or that user as the only src")
			}
		}
	}
}

// isTagged reports whether a source picks tagged devices only.
func isTagged(s Selector) bool {
	return s.Kind == TagName || s.Kind == Autogroup && s.Name == "autogroup:tagged"
}

func (d *decoder) sshUsers(v *hujson.Value) []Name {
	names := d.names(v, "users")
	for _, n := range names {
		if n.Name == "" || n.Name == "*" {
			d.fail(n.Pos, n.Name, fmt.Sprintf("user %q is not valid", n.Name), "write a local user's name, autogroup:nonroot or localpart:*@DOMAIN")
		}
	}
	return names
}

func (d *decoder) checkPeriod(v *hujson.Value) time.Duration {
	s, ok := d.string(v, "checkPeriod")
	if !ok {
		return DefaultCheckPeriod
	}
	if s = strings.TrimSpace(s); s == "always" {
		return 0
	}
	// Go's durations only: the language knows no days here.
	period, err := time.ParseDuration(s)
	switch {
	case err != nil:
		d.fail(d.at(v), s, fmt.Sprintf("checkPeriod: time: invalid duration %q", s), `write "always" or a duration, such as "12h"`)
	case period <= 0:
		d.fail(d.at(v), s, fmt.Sprintf("checkPeriod %v must be a positive duration", period), `write "always" to check each time`)
	case period > maxCheckPeriod:
		d.fail(d.at(v), s, fmt.Sprintf("checkPeriod %v is above the max (168h)", period), "write at most 168h, which is a week")
	}
	return period
}

// readTests reads tests leniently: what is wrong with one makes it fail, as a
// test does, instead of hiding what the others find.
func (d *decoder) readTests(v *hujson.Value) {
	d.list(v, "tests", MaxRules, func(v *hujson.Value) {
		t := Test{Pos: d.at(v)}
		if !d.object(v, "an entry of tests", []field{
			{"src", func(v *hujson.Value) { t.Src = d.name(v, "src") }},
			{"proto", func(v *hujson.Value) {
				n := d.name(v, "proto")
				number, ok := ParseProtocol(n.Name)
				switch {
				case n.Name == "":
				case !ok:
					t.Malformed = fmt.Sprintf("unknown protocol %q; write tcp, udp or sctp", n.Name)
				case !HasPorts(number):
					t.Malformed = fmt.Sprintf("proto is %q, but a test tries a port; write tcp, udp or sctp", n.Name)
				}
				t.Protocol = number
			}},
			{"accept", func(v *hujson.Value) { t.Accept = d.names(v, "accept") }},
			{"allow", func(v *hujson.Value) { t.Accept = append(t.Accept, d.names(v, "allow")...) }}, // the older spelling
			{"deny", func(v *hujson.Value) { t.Deny = d.names(v, "deny") }},
			{"user", func(v *hujson.Value) { t.Src = d.name(v, "user") }}, // the older spelling
			{"srcPostureAttrs", func(v *hujson.Value) { t.Attributes = d.attributes(v) }},
		}) {
			return
		}
		switch {
		case t.Malformed != "":
		case t.Src.Name == "":
			t.Malformed = "it has no src"
		case len(t.Accept)+len(t.Deny) == 0:
			t.Malformed = "it asserts nothing: write accept or deny"
		}
		d.doc.Tests = append(d.doc.Tests, t)
	})
}

func (d *decoder) name(v *hujson.Value, what string) Name {
	s, _ := d.string(v, what)
	return Name{strings.TrimSpace(s), d.at(v)}
}

func (d *decoder) attributes(v *hujson.Value) map[string]Value {
	out := map[string]Value{}
	d.entries(v, "srcPostureAttrs", func(name string, _ Position, v *hujson.Value) {
		switch v.Value.Kind() {
		case '"':
			out[name] = Value{Text: literalText(v)}
		case 't', 'f':
			out[name] = Value{Type: Bool, Bool: v.Value.Kind() == 't'}
		case '0':
			out[name] = Value{Type: Number, Number: v.Value.(hujson.Literal).Float()}
		default:
			d.wrongKind(v, fmt.Sprintf("srcPostureAttrs[%q]", name), "a string, a number, true or false")
		}
	})
	return out
}

func (d *decoder) readSSHTests(v *hujson.Value) {
	d.list(v, "sshTests", MaxRules, func(v *hujson.Value) {
		t := SSHTest{Pos: d.at(v)}
		users := func(to *[]string, key string) func(*hujson.Value) {
			return func(v *hujson.Value) {
				for _, n := range d.names(v, key) {
					*to = append(*to, n.Name)
				}
			}
		}
		if !d.object(v, "an entry of sshTests", []field{
			{"src", func(v *hujson.Value) { t.Src = d.name(v, "src") }},
			{"dst", func(v *hujson.Value) { t.Dst = d.names(v, "dst") }},
			{"accept", users(&t.Accept, "accept")},
			{"deny", users(&t.Deny, "deny")},
			{"check", users(&t.Check, "check")},
		}) {
			return
		}
		for _, n := range slices.Concat([]Name{t.Src}, t.Dst) {
			if strings.HasPrefix(n.Name, "tag:") && !d.tags[ident.Tag(n.Name)] {
				side := "dst"
				if n.Pos == t.Src.Pos {
					side = "src"
				}
				d.fail(n.Pos, n.Name, fmt.Sprintf("SSH tests %s contains unknown tag %q", side, n.Name), "define it under tagOwners; a test of ssh names no port")
			}
		}
		d.doc.SSHTests = append(d.doc.SSHTests, t)
	})
}
