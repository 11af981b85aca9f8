package compile_test

import (
	"math/rand/v2"
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

// bothEnds asks the compiled rules of the source and of the destination.
func bothEnds(p *compile.Policy, q acltest.Question) (out, in ruleset.Verdict) {
	source, _ := p.Identity(q.From)
	target, _ := p.Identity(q.To)
	out = p.RuleSet(q.From).ForPeer(&source, &target).Decide(ruleset.Out, q.Flow, q.Now)
	in = p.RuleSet(q.To).ForPeer(&target, &source).Decide(ruleset.In, q.Flow, q.Now)
	return out, in
}

// The compiled rules decide as the reference does, at both ends, and devices
// that may talk see each other.
func TestCompiledEqualsReference(t *testing.T) {
	policies, flows := 150, 300
	if testing.Short() {
		policies = 40
	}
	allowed := 0
	for seed := range uint64(policies) {
		r := rand.New(rand.NewPCG(seed, 1))
		dir := acltest.GenDirectory(r, 12)
		text := acltest.GenParts(r, 1+r.IntN(8)).String()
		doc := parse(t, text)
		p := build(t, text, dir)
		for range flows {
			q := acltest.GenQuestion(r, &dir)
			want := acltest.Decide(doc, &dir, q)
			out, in := bothEnds(p, q)
			if out.Allowed != want.Allowed || in.Allowed != want.Allowed {
				t.Fatalf("seed %d: %+v: out %+v, in %+v, reference %v\n%s\n%+v\n%+v", seed, q, out, in, want, text,
					dir.Nodes[q.From-1], dir.Nodes[q.To-1])
			}
			if !want.Allowed {
				continue
			}
			allowed++
			if !slices.Contains(p.Peers(q.From), q.To) || !slices.Contains(p.Peers(q.To), q.From) {
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
	}
	t.Logf("%d of %d flows allowed", allowed, policies*flows)
	if allowed < policies*flows/50 {
		t.Errorf("only %d flows were allowed: the generator tests little", allowed)
	}
}
