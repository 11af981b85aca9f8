package acltest

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/compile"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// The reference itself, on cases that a person can check.
func TestDecide(t *testing.T) {
	doc, err := policy.Parse([]byte(`{
		"tagOwners": {"tag:db": []},
		"postures": {"posture:mac": ["node:os == 'macos'"]},
		"sensitivity": {"restricted": {"mfaMaxAge": "1h", "maxRisk": 40, "country": ["DE"], "jit": true, "posture": ["posture:mac"]}},
		"resources": {"payroll": {"target": ["tag:db"], "ip": ["tcp:5432"], "sensitivity": "restricted"}},
		"grants": [{"id": "pay", "src": ["ann@example.com"], "dst": ["resource:payroll"]}],
		"acls": [
			{"id": "web", "action": "accept", "src": ["ann@example.com"], "dst": ["tag:db:80"], "notAfter": "2026-08-01T00:00:00Z"},
			{"id": "no", "action": "deny", "src": ["*"], "dst": ["tag:db:81"]},
			{"id": "yes", "action": "accept", "src": ["*"], "dst": ["tag:db:81"]},
			{"id": "watch", "mode": "audit", "action": "accept", "src": ["*"], "dst": ["*:*"]},
		]}`))
	if err != nil {
		t.Fatal(err)
	}
	four := netip.MustParseAddr
	dir := &compile.Directory{
		Users: []compile.User{{ID: 1, Name: "ann@example.com"}},
		Nodes: []compile.Node{
			{ID: 1, Owner: 1, Addresses: []netip.Addr{four("100.64.0.1")}, Attributes: map[string]string{"node:os": "macos", "ip:country": "de"}},
			{ID: 2, Tags: []ident.Tag{"tag:db"}, Addresses: []netip.Addr{four("100.64.0.2")}},
		},
	}
	age, old, risk, high := 10*time.Minute, 2*time.Hour, 40.0, 41.0
	for name, c := range map[string]struct {
		change func(q *Question)
		want   bool
		rule   string
	}{
		"all there":        {func(*Question) {}, true, "pay"},
		"sign-in too old":  {func(q *Question) { q.MFAAge = &old }, false, ""},
		"sign-in unknown":  {func(q *Question) { q.MFAAge = nil }, false, ""},
		"risk too high":    {func(q *Question) { q.Risk = &high }, false, ""},
		"risk unknown":     {func(q *Question) { q.Risk = nil }, false, ""},
		"no request":       {func(q *Question) { q.Granted = []string{} }, false, ""},
		"another request":  {func(q *Question) { q.Granted = []string{"other"} }, false, ""},
		"another port":     {func(q *Question) { q.Flow.Port = 5433 }, false, ""},
		"another protocol": {func(q *Question) { q.Flow.Protocol = 17 }, false, ""},
		"web in time":      {func(q *Question) { q.Flow.Port = 80 }, true, "web"},
		"web too late":     {func(q *Question) { q.Flow.Port, q.Now = 80, time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC) }, false, ""},
		"denied":           {func(q *Question) { q.Flow.Port = 81 }, false, "no"},
		"spoofed source":   {func(q *Question) { q.Flow.Source = four("100.64.0.9") }, false, ""},
		"other way":        {func(q *Question) { q.From, q.To = 2, 1 }, false, ""},
		"itself":           {func(q *Question) { q.To = 1 }, false, ""},
	} {
		q := Question{
			From: 1, To: 2, Now: PolicyTime, MFAAge: &age, Risk: &risk, Granted: []string{"payroll"},
			Flow: ruleset.Flow{Source: four("100.64.0.1"), Destination: four("100.64.0.2"), Protocol: 6, Port: 5432},
		}
		c.change(&q)
		got := Decide(doc, dir, q)
		if got.Allowed != c.want || got.Rule != c.rule || len(got.Reasons) == 0 {
			t.Errorf("%s: %+v, want %v by %q", name, got, c.want, c.rule)
		}
		if c.want && !strings.Contains(strings.Join(got.Reasons, "\n"), c.rule+": matches") {
			t.Errorf("%s: reasons %q", name, got.Reasons)
		}
	}
}
