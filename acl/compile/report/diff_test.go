package report_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/acl/compile/report"
	"github.com/warren-overlay/warren/acl/policy"
)

// A flow that two policies decide differently stands in their difference, and
// where the difference is empty they decide alike.
func TestDiffMissesNothing(t *testing.T) {
	differences := 0
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 5))
		dir := acltest.GenDirectory(r, 8)
		parts := acltest.GenParts(r, 5)
		texts := [2]string{parts.String()}
		section, rule := acltest.GenRule(r, 77)
		if section == "acls" {
			parts.ACLs = append(parts.ACLs, rule)
		} else {
			parts.Grants = append(parts.Grants, rule)
		}
		texts[1] = parts.String()
		var docs [2]*policy.Document
		for i, text := range texts {
			doc, err := policy.Parse([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			docs[i] = doc
		}
		before, problems := report.Load([]byte(texts[0]), dir)
		after, more := report.Load([]byte(texts[1]), dir)
		if problems != nil || more != nil {
			t.Fatal(problems, more)
		}
		now := acltest.PolicyTime
		changes := report.Diff(before, after, now)
		for range 400 {
			q := acltest.GenQuestion(r, &dir)
			q.Now = now
			was, is := acltest.Decide(docs[0], &dir, q).Allowed, acltest.Decide(docs[1], &dir, q).Allowed
			if was == is {
				continue
			}
			differences++
			want := "gains"
			if was {
				want = "loses"
			}
			from, to, protocol := dir.Nodes[q.From-1].Name, dir.Nodes[q.To-1].Name, policy.ProtocolName(q.Flow.Protocol)
			if !slices.ContainsFunc(changes, func(c report.Change) bool {
				return c.Change == want && c.To == to && slices.Contains(c.From, from) &&
					slices.ContainsFunc(c.Access, func(a string) bool { return strings.HasPrefix(a, protocol) })
			}) {
				t.Fatalf("seed %d: %s %s to %s by %+v, which is not in\n%s\n%s", seed, from, want, to, q.Flow, report.Table(changes), rule)
			}
		}
		if same := report.Diff(after, after, now); len(same) != 0 {
			t.Fatalf("seed %d: a policy differs from itself: %v", seed, same)
		}
	}
	if differences == 0 {
		t.Error("no two policies differed")
	}
	t.Logf("%d differing flows", differences)
}

// What explain says is what the reference decides.
func TestExplainDecides(t *testing.T) {
	allowed := 0
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 6))
		dir := acltest.GenDirectory(r, 8)
		text := acltest.GenParts(r, 8).String()
		doc, err := policy.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		p, problems := report.Load([]byte(text), dir)
		if problems != nil {
			t.Fatal(problems)
		}
		for range 60 {
			q := acltest.GenQuestion(r, &dir)
			q.Flow.Source, q.Flow.Destination = dir.Nodes[q.From-1].Addresses[0], dir.Nodes[q.To-1].Addresses[0]
			port := policy.ProtocolName(q.Flow.Protocol)
			if policy.HasPorts(q.Flow.Protocol) {
				q.Flow.Port++
				port += ":" + strings.TrimSpace(string(rune('0'+q.Flow.Port)))
				if q.Flow.Port > 9 {
					continue
				}
			}
			want := acltest.Decide(doc, &dir, q)
			list, err := report.Explain(p, dir.Nodes[q.From-1].Name, dir.Nodes[q.To-1].Name, port, q.Now)
			if err != nil || len(list) != 1 {
				t.Fatalf("seed %d: %v, %v", seed, list, err)
			}
			e := list[0]
			if (e.Verdict == "allowed") != want.Allowed || e.Reason == "" || (e.Decided != nil) != (want.Rule != "") || want.Rule != "" && want.Allowed && e.Decided.ID != want.Rule {
				t.Fatalf("seed %d: %+v says %+v, the reference %+v\n%s", seed, q, e, want, text)
			}
			if want.Allowed {
				allowed++
			}
		}
	}
	if allowed == 0 {
		t.Error("nothing was allowed")
	}
}

func TestInventoryErrors(t *testing.T) {
	for text, want := range map[string]string{
		`{`: "unexpected end", `{"nodes": [{"name": ""}]}`: "no name", `{"nodes": [{"name": "a", "tags": ["x"]}]}`: "not a tag",
		`{"nodes": [{"name": "a", "user": "bob"}]}`: "not among the users", `{"nodes": [{"name": "a", "ipv4": "1"}]}`: "not an address",
		`{"nodes": [{"name": "a", "approved_routes": ["1"]}]}`: "not a prefix",
	} {
		if _, err := report.ParseInventory([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if dir, err := report.ParseInventory(nil); err != nil || len(dir.Nodes) != 0 {
		t.Errorf("no text: %v, %v", dir, err)
	}
}
