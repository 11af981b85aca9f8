package compile_test

import (
	"flag"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/acl/compile"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
	"github.com/warren-overlay/warren/acl/ruleset"
)

func parse(t testing.TB, text string) *policy.Document {
	t.Helper()
	doc, err := policy.Parse([]byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return doc
}

func build(t testing.TB, text string, dir compile.Directory) *compile.Policy {
	t.Helper()
	p, err := compile.Compile(parse(t, text), dir, ident.LabelKey{1}, 1)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return p
}

// decisions is how many flows TestCompiledEqualsReference and
// TestFilteredEqualsReference check each; `make decisions` asks for 10,000,000.
var decisions = flag.Int("decisions", 0, "flows to check against the reference, 0 for 60,000, or 12,000 with -short")

// wanted returns how many decisions are to be checked.
func wanted() int {
	switch {
	case *decisions > 0:
		return *decisions
	case testing.Short():
		return 12_000
	}
	return 60_000
}

// ends holds the compiled rules of pairs of devices, at both ends.
type ends struct {
	p     *compile.Policy
	pairs map[[2]ident.NodeID][2]*ruleset.PeerRules
}

// decide asks the compiled rules of the source and of the destination.
func (e *ends) decide(q acltest.Question) (out, in ruleset.Verdict) {
	rules := e.rules(q)
	return rules[0].Decide(ruleset.Out, q.Flow, q.Now), rules[1].Decide(ruleset.In, q.Flow, q.Now)
}

// rules returns the rules of the source and of the destination.
func (e *ends) rules(q acltest.Question) [2]*ruleset.PeerRules {
	key := [2]ident.NodeID{q.From, q.To}
	rules, ok := e.pairs[key]
	if !ok {
		source, _ := e.p.Identity(q.From)
		target, _ := e.p.Identity(q.To)
		rules[0] = e.p.RuleSet(q.From).ForPeer(&source, &target)
		rules[1] = e.p.RuleSet(q.To).ForPeer(&target, &source)
		e.pairs[key] = rules
	}
	return rules
}

// checkSeed compares the compiled rules of one random policy with the
// reference, at both ends of each flow, and what devices see with what they
// may do. It returns how many flows were allowed.
func checkSeed(t testing.TB, seed uint64, flows int) int {
	r := rand.New(rand.NewPCG(seed, 1))
	dir := acltest.GenDirectory(r, 12)
	text := acltest.GenParts(r, 1+r.IntN(12)).String()
	doc := parse(t, text)
	p := build(t, text, dir)
	e := &ends{p, map[[2]ident.NodeID][2]*ruleset.PeerRules{}}
	allowed := 0
	for range flows {
		q := acltest.GenQuestion(r, &dir)
		want := acltest.Decide(doc, &dir, q)
		out, in := e.decide(q)
		if out.Allowed != want.Allowed || in.Allowed != want.Allowed {
			t.Fatalf("seed %d: %+v: out %+v, in %+v, reference %v\n%s\n%+v\n%+v", seed, q, out, in, want, text,
				dir.Nodes[q.From-1], dir.Nodes[q.To-1])
		}
		if !want.Allowed {
			continue
		}
		allowed++
		if allowed < 50 && (!slices.Contains(p.Peers(q.From), q.To) || !slices.Contains(p.Peers(q.To), q.From)) {
			t.Fatalf("seed %d: %d and %d may talk, but do not see each other\n%s", seed, q.From, q.To, text)
		}
		if until := in.Until; !until.IsZero() {
			later := q
			later.Now = q.Now.Add(until.Sub(q.Now) * 9 / 10)
			if !acltest.Decide(doc, &dir, later).Allowed {
				t.Fatalf("seed %d: %+v is allowed until %v, but not at %v\n%s", seed, q, until, later.Now, text)
			}
		}
	}
	return allowed
}

// The compiled rules decide as the reference does.
func TestCompiledEqualsReference(t *testing.T) {
	const flows = 400
	allowed, checked := 0, 0
	for seed := uint64(0); checked < wanted(); seed++ {
		allowed += checkSeed(t, seed, flows)
		checked += flows
	}
	t.Logf("%d of %d flows allowed", allowed, checked)
	if allowed < checked/50 {
		t.Errorf("only %d of %d flows were allowed: the generator tests little", allowed, checked)
	}
}

// FuzzDecide looks for a seed whose policy is compiled to something else than
// the reference says.
func FuzzDecide(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(seed << 32)
	}
	f.Fuzz(func(t *testing.T, seed uint64) { checkSeed(t, seed, 200) })
}

// FuzzCompile: whatever parses compiles without a panic, decides at both ends
// alike, and is unchanged by being set again.
func FuzzCompile(f *testing.F) {
	whole, err := os.ReadFile("../policy/testdata/whole.hujson")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole, uint64(1))
	for seed := range uint64(8) {
		f.Add([]byte(acltest.GenParts(rand.New(rand.NewPCG(seed, 3)), 6).String()), seed)
	}
	f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
		doc, err := policy.Parse(text)
		if err != nil {
			return
		}
		r := rand.New(rand.NewPCG(seed, 4))
		dir := acltest.GenDirectory(r, 5)
		p, err := compile.Compile(doc, dir, ident.LabelKey{}, 1)
		if err != nil {
			return
		}
		p.RunTests()
		p.Warnings()
		e := &ends{p, map[[2]ident.NodeID][2]*ruleset.PeerRules{}}
		for range 20 {
			q := acltest.GenQuestion(r, &dir)
			out, in := e.decide(q)
			if want := acltest.Decide(doc, &dir, q).Allowed; out.Allowed != want || in.Allowed != want {
				t.Fatalf("%+v: out %v, in %v, reference %v", q, out, in, want)
			}
		}
		for _, id := range p.Nodes() {
			p.SSH(id)
			p.Attributes(id)
		}
		if changed, err := p.SetDocument(doc, 2); err != nil || len(changed) > 0 {
			t.Fatalf("the same document changed %v, %v", changed, err)
		}
	})
}
