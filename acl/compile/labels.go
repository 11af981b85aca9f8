package compile

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
)

// The names from which labels are made. A selector of the language is the
// label of the same name; the others are ours.
func userLabel(login string) string    { return "user:" + login }
func domainLabel(domain string) string { return "domain:" + domain }
func levelLabel(level string) string   { return "sensitivity:" + level }
func grantedLabel(resource string) string {
	return "granted:" + resource
}

// ownerLabel is what the devices of one user have in common, and what
// autogroup:self asks for. It is made from the id, because it must never be
// the same for two users.
func ownerLabel(user ident.UserID) string { return "owner:" + strconv.FormatUint(uint64(user), 10) }

// ErrCollision is wrapped by the error for a policy or directory in which two
// names share a label (ident.LabelKey.Label). Another key helps.
var ErrCollision = errors.New("compile: two names share a label")

// labelTable makes labels and finds collisions.
type labelTable struct {
	number func(name string) ident.Label
	byName map[string]ident.Label
	names  map[ident.Label]string
}

func newLabelTable(number func(string) ident.Label) *labelTable {
	return &labelTable{number, map[string]ident.Label{}, map[ident.Label]string{}}
}

// label returns the name's label, or zero where another name has it already. A
// rule must not be made of that: an accept would match nothing, but so would a
// deny, and that widens access.
func (t *labelTable) label(name string) ident.Label {
	if l, ok := t.byName[name]; ok {
		return l
	}
	l := t.number(name)
	if _, taken := t.names[l]; taken {
		l = 0
	} else {
		t.names[l] = name
	}
	t.byName[name] = l
	return l
}

// labelNames returns what the device is, in words, sorted.
func (p *Policy) labelNames(n *Node) []string {
	var out []string
	if len(n.Tags) > 0 {
		// A tagged device acts for itself: its user, if it still names one,
		// gives it nothing.
		out = append(out, "autogroup:tagged")
		for _, t := range n.Tags {
			out = append(out, string(t))
		}
	} else if u := p.users[n.Owner]; u != nil {
		out = append(append(out, u.labels...), p.groupsOf(u)...)
	}
	out = append(out, p.conditionLabels(n)...)
	for _, resource := range n.Granted {
		out = append(out, grantedLabel(resource))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// userLabels returns the labels that a user's devices have whatever the policy
// says.
func userLabels(u *User) []string {
	out := append(u.roles(), ownerLabel(u.ID))
	for _, login := range u.logins() {
		out = append(out, userLabel(login))
	}
	if domain := u.domain(); domain != "" {
		out = append(out, domainLabel(domain))
	}
	return out
}

func (p *Policy) groupsOf(u *userState) []string {
	var out []string
	for _, login := range u.user.logins() {
		out = append(out, p.groups[login]...)
	}
	return out
}

// groupIndex returns, for each login name, the groups that list it.
func groupIndex(doc *policy.Document) map[string][]string {
	out := map[string][]string{}
	for _, g := range doc.Groups {
		for _, m := range g.Members {
			out[m.Name] = append(out[m.Name], g.Name)
		}
	}
	return out
}

// conditionLabels returns the postures and sensitivity levels whose conditions
// the device satisfies at present.
func (p *Policy) conditionLabels(n *Node) []string {
	if len(p.doc.Postures) == 0 && len(p.doc.Levels) == 0 {
		return nil
	}
	attributes := attributeValues(n.Attributes)
	var out []string
	satisfied := map[string]bool{}
	for i := range p.doc.Postures {
		posture := &p.doc.Postures[i]
		if postureHolds(posture, attributes) {
			satisfied[posture.Name] = true
			out = append(out, posture.Name)
		}
	}
	for i := range p.doc.Levels {
		if levelHolds(&p.doc.Levels[i], attributes, satisfied) {
			out = append(out, levelLabel(p.doc.Levels[i].Name))
		}
	}
	return out
}

func postureHolds(posture *policy.Posture, attributes map[string]policy.Value) bool {
	for _, c := range posture.Conditions {
		if !c.Holds(attributes) {
			return false
		}
	}
	return true
}

// The attributes that sensitivity asks for.
const (
	mfaAgeAttribute  = "warren:mfaAge"
	riskAttribute    = "warren:risk"
	countryAttribute = "ip:country"
)

// levelHolds reports whether what a level takes of the device is there. An
// approved request is not part of it: that is a label for each resource.
func levelHolds(l *policy.Level, attributes map[string]policy.Value, satisfied map[string]bool) bool {
	number := func(name string, limit float64) bool {
		c := policy.Condition{
			Attribute: name, Operator: policy.LessEqual,
			Values: []policy.Value{{Type: policy.Number, Number: limit}},
		}
		return c.Holds(attributes)
	}
	if l.MFAMaxAge > 0 && !number(mfaAgeAttribute, l.MFAMaxAge.Seconds()) {
		return false
	}
	if l.MaxRisk != nil && !number(riskAttribute, *l.MaxRisk) {
		return false
	}
	if l.Country != nil {
		country, ok := attributes[countryAttribute]
		if !ok || !slices.Contains(l.Country, strings.ToUpper(country.Text)) {
			return false
		}
	}
	for _, posture := range l.Posture {
		if !satisfied[posture.Name] {
			return false
		}
	}
	return true
}

func attributeValues(attributes map[string]string) map[string]policy.Value {
	out := make(map[string]policy.Value, len(attributes))
	for _, name := range slices.Sorted(maps.Keys(attributes)) {
		out[name] = policy.Value{Text: attributes[name]}
	}
	return out
}

func cloneAttributes(attributes map[string]string) map[string]string {
	return maps.Clone(attributes)
}

// describeLabel says in words what a label asks for.
func describeLabel(name string) string {
	kind, rest, _ := strings.Cut(name, ":")
	switch kind {
	case "user":
		return "be a device of " + rest
	case "domain":
		return "be a device of a user of " + rest
	case "owner":
		return "belong to the same user"
	case "sensitivity":
		return fmt.Sprintf("satisfy what the sensitivity %q takes", rest)
	case "granted":
		return fmt.Sprintf("hold an approved request for resource %q", rest)
	case "posture":
		return "satisfy " + name
	case "tag":
		return "carry " + name
	default:
		return "be in " + name
	}
}
