package compile_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"github.com/warren-overlay/warren/acl/compile"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
)

// The size of the bars.
const (
	benchRules = 5_000
	benchNodes = 10_000
)

// benchText is a policy as a large organisation has one: most rules are about
// a group, a tag or a subnet, some about everybody.
func benchText(rules int, edited string) string {
	r := rand.New(rand.NewPCG(1, 1))
	var b strings.Builder
	b.WriteString("{\n\"groups\": {\n")
	for g := range 400 {
		fmt.Fprintf(&b, "\"group:g%d\": [", g)
		for range 20 {
			fmt.Fprintf(&b, "\"u%d@example.com\", ", r.IntN(4_000))
		}
		b.WriteString("],\n")
	}
	b.WriteString("},\n\"tagOwners\": {")
	for t := range 500 {
		fmt.Fprintf(&b, "\"tag:t%d\": [\"group:g%d\"], ", t, t%400)
	}
	b.WriteString("},\n\"hosts\": {")
	for h := range 500 {
		fmt.Fprintf(&b, "\"h%d\": \"10.%d.%d.0/24\", ", h, h/250, h%250)
	}
	b.WriteString("},\n\"acls\": [\n")
	for i := range rules {
		src := fmt.Sprintf("\"group:g%d\", \"u%d@example.com\"", r.IntN(400), r.IntN(4_000))
		dst := fmt.Sprintf("\"tag:t%d:%d\", \"h%d:443\"", r.IntN(500), 1+r.IntN(60_000), r.IntN(500))
		switch r.IntN(50) {
		case 0:
			src = "\"autogroup:member\""
		case 1:
			src = "\"*\""
		case 2:
			dst = fmt.Sprintf("\"autogroup:tagged:%d\"", 1+r.IntN(60_000))
		}
		if i == rules/2 {
			dst += edited
		}
		fmt.Fprintf(&b, "{\"action\": \"accept\", \"src\": [%s], \"dst\": [%s]},\n", src, dst)
	}
	b.WriteString("],\n}\n")
	return b.String()
}

func benchNode(r *rand.Rand, id int) compile.Node {
	n := compile.Node{
		ID: ident.NodeID(id), Name: fmt.Sprintf("n%d", id),
		Addresses: []netip.Addr{
			netip.AddrFrom4([4]byte{100, 64 + byte(id>>16), byte(id >> 8), byte(id)}),
			netip.AddrFrom16([16]byte{0: 0xfd, 13: byte(id >> 16), 14: byte(id >> 8), 15: byte(id)}),
		},
	}
	if id%10 < 6 {
		n.Owner = ident.UserID(1 + r.IntN(4_000))
	} else {
		n.Tags = []ident.Tag{ident.Tag(fmt.Sprintf("tag:t%d", r.IntN(500)))}
		if id%100 == 9 {
			n.Routes = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", r.IntN(2), r.IntN(250)))}
		}
	}
	return n
}

func benchDirectory(nodes int) compile.Directory {
	r := rand.New(rand.NewPCG(2, 2))
	var dir compile.Directory
	for id := 1; id <= 4_000; id++ {
		dir.Users = append(dir.Users, compile.User{ID: ident.UserID(id), Name: fmt.Sprintf("u%d@example.com", id-1)})
	}
	for id := 1; id <= nodes; id++ {
		dir.Nodes = append(dir.Nodes, benchNode(r, id))
	}
	return dir
}

func benchPolicy(b *testing.B) (*compile.Policy, compile.Directory) {
	dir := benchDirectory(benchNodes)
	return build(b, benchText(benchRules, ""), dir), dir
}

// BenchmarkCompile is a full compile of 5,000 rules for 10,000 devices, with
// the rule set and peers of each worked out, and the memory that it takes.
func BenchmarkCompile(b *testing.B) {
	text, dir := []byte(benchText(benchRules, "")), benchDirectory(benchNodes)
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var p *compile.Policy
	for b.Loop() {
		doc, err := policy.Parse(text)
		if err != nil {
			b.Fatal(err)
		}
		if p, err = compile.Compile(doc, dir, ident.LabelKey{}, 1); err != nil {
			b.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "MB-kept")
	runtime.KeepAlive(p)
}

// BenchmarkEveryView is what follows a full compile when every device asks at
// once: the rule set and peers of 10,000 devices.
func BenchmarkEveryView(b *testing.B) {
	p, _ := benchPolicy(b)
	rules, peers := 0, 0
	for b.Loop() {
		rules, peers = 0, 0
		for _, id := range p.Nodes() {
			set := p.RuleSet(id)
			rules += len(set.In) + len(set.Out)
			peers += len(p.Peers(id))
		}
	}
	b.ReportMetric(float64(rules)/benchNodes, "rules/device")
	b.ReportMetric(float64(peers)/benchNodes, "peers/device")
}

// BenchmarkJoin is one device that joins and leaves again.
func BenchmarkJoin(b *testing.B) {
	p, _ := benchPolicy(b)
	r := rand.New(rand.NewPCG(3, 3))
	id := benchNodes
	for b.Loop() {
		id++
		n := benchNode(r, id)
		p.SetNode(n)
		b.StopTimer()
		p.RemoveNode(n.ID)
		b.StartTimer()
	}
}

// BenchmarkRetag is one device that changes its tag.
func BenchmarkRetag(b *testing.B) {
	p, _ := benchPolicy(b)
	r := rand.New(rand.NewPCG(4, 4))
	for b.Loop() {
		p.SetNode(benchNode(r, 7))
	}
}

// BenchmarkEditRule is one rule that changes in a document of 5,000: with
// parsing, and without.
func BenchmarkEditRule(b *testing.B) {
	p, _ := benchPolicy(b)
	texts := [2][]byte{[]byte(benchText(benchRules, "")), []byte(benchText(benchRules, ", \"tag:t1:7\", \"h2:8\""))}
	i := 0
	b.Run("parse=false", func(b *testing.B) {
		var docs [2]*policy.Document
		for j, text := range texts {
			docs[j] = parse(b, string(text))
		}
		for b.Loop() {
			i++
			if _, err := p.SetDocument(docs[i%2], 2); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("parse=true", func(b *testing.B) {
		for b.Loop() {
			i++
			doc, err := policy.Parse(texts[i%2])
			if err != nil {
				b.Fatal(err)
			}
			if _, err := p.SetDocument(doc, 2); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkEditWideRule is a rule between all devices that comes and goes, or
// whose port changes; with another such rule beside it, which makes that the
// rule changes nobody's list of peers, and without; with parsing, and without.
func BenchmarkEditWideRule(b *testing.B) {
	const wide = "\"acls\": [{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:%d\"]},"
	plain := benchText(benchRules, "")
	with := func(text string, port int) string {
		return strings.Replace(text, "\"acls\": [", fmt.Sprintf(wide, port), 1)
	}
	for _, c := range []struct {
		name     string
		from, to string
	}{
		{"beside=no/change=comes", plain, with(plain, 9)},
		{"beside=no/change=port", with(plain, 8), with(plain, 9)},
		{"beside=yes/change=comes", with(plain, 7), with(with(plain, 7), 9)},
	} {
		for _, parsing := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/parse=%v", c.name, parsing), func(b *testing.B) {
				texts := [2]string{c.from, c.to}
				docs := [2]*policy.Document{parse(b, c.from), parse(b, c.to)}
				p := build(b, c.from, benchDirectory(benchNodes))
				for i := 1; b.Loop(); i++ {
					doc := docs[i%2]
					if parsing {
						doc = parse(b, texts[i%2])
					}
					if _, err := p.SetDocument(doc, 2); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkWarnings is the search for what is probably not meant, in a
// document in which every tenth rule denies.
func BenchmarkWarnings(b *testing.B) {
	text := benchText(benchRules, "")
	parts := strings.Split(text, `{"action": "accept"`)
	for i := range parts {
		if i > 0 {
			action := `{"action": "accept"`
			if i%10 == 0 {
				action = `{"action": "deny"`
			}
			parts[i] = action + parts[i]
		}
	}
	p := build(b, strings.Join(parts, ""), benchDirectory(benchNodes))
	for b.Loop() {
		p.Warnings()
	}
}
