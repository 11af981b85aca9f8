package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/acltest/cputime"
)

func parsed(t *testing.T, text string) *Document {
	t.Helper()
	doc, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestParseWhole(t *testing.T) {
	text, err := os.ReadFile("testdata/whole.hujson")
	if err != nil {
		t.Fatal(err)
	}
	doc := parsed(t, string(text))
	if len(doc.Groups) != 2 || len(doc.Rules) != 6 || len(doc.SSH) != 1 || len(doc.Resources) != 1 || len(doc.JIT) != 1 || len(doc.Tests) != 1 || !doc.Options.RandomizeClientPort {
		t.Errorf("%+v", doc)
	}
	if got := doc.Rules[0].Pos; got != (Position{10, 3}) {
		t.Errorf("the first rule is at %v", got)
	}
	if doc.Rules[1].ID != "no-printer" || doc.Rules[1].Mode != Audit || !doc.Rules[1].Deny {
		t.Errorf("%+v", doc.Rules[1])
	}
	if doc.Rules[2].SrcPosture == nil || doc.Rules[0].SrcPosture != nil {
		t.Error("an empty srcPosture is not told from none")
	}
}

func TestIDFollowsContent(t *testing.T) {
	a := parsed(t, `{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:1"]}, {"action": "accept", "src": ["*"], "dst": ["*:2"]}]}`)
	b := parsed(t, `{
		"groups": {"group:x": []},
		"acls": [ // another one first
			{"action": "accept", "src": ["*"], "dst": ["*:3"]},
			{"dst": [ "*:2" ], "src": ["*"], "action": "accept"},
			{"action": "accept", "src": ["*"], "dst": ["*:2"]},
		]}`)
	if a.Rules[1].ID != b.Rules[1].ID || a.Rules[1].Digest != b.Rules[1].Digest {
		t.Error("an unrelated edit renamed a rule")
	}
	if b.Rules[2].ID != b.Rules[1].ID+".2" {
		t.Errorf("a repeated rule is called %s", b.Rules[2].ID)
	}
	if a.Rules[0].ID == a.Rules[1].ID {
		t.Error("two rules have one id")
	}
}

func TestDigestSeesAddresses(t *testing.T) {
	const text = `{"hosts": {"h": "10.0.0.%d"}, "acls": [{"action": "accept", "src": ["h"], "dst": ["*:1"]}]}`
	a, b := parsed(t, fmt.Sprintf(text, 1)), parsed(t, fmt.Sprintf(text, 2))
	if a.Rules[0].ID != b.Rules[0].ID {
		t.Error("a host's new address renamed the rule")
	}
	if a.Rules[0].Digest == b.Rules[0].Digest {
		t.Error("a host's new address is not seen")
	}
}

func TestLegacySpellings(t *testing.T) {
	doc := parsed(t, `{"Groups": {"group:a": ["A@Example.com"]}, "ACLs": [{"Action": "accept", "Users": ["group:a"], "Ports": ["*:*"]}],
		"Tests": [{"User": "a@example.com", "Allow": ["10.0.0.1:1"]}]}`)
	r := doc.Rules[0]
	if len(r.Src) != 1 || len(r.Dst) != 1 || doc.Groups[0].Members[0].Name != "a@example.com" || doc.Tests[0].Src.Name != "a@example.com" || len(doc.Tests[0].Accept) != 1 {
		t.Errorf("%+v", doc)
	}
}

func TestIPSets(t *testing.T) {
	doc := parsed(t, `{"hosts": {"lan": "10.1.0.0/16"}, "ipsets": {
		"ipset:a": ["add 10.0.0.0/8", "remove lan", "10.1.2.3", "ipset:b"],
		"ipset:b": ["192.168.0.1-192.168.0.6", "fd7a::/16"],
		"ipset:empty": ["10.0.0.0/8", "remove 0.0.0.0/0"],
	}}`)
	in := func(set int, a string) bool {
		return slices.ContainsFunc(doc.IPSets[set].Prefixes, func(p netip.Prefix) bool { return p.Contains(netip.MustParseAddr(a)) })
	}
	for a, want := range map[string]bool{
		"10.0.0.1": true, "10.1.2.4": false, "10.1.2.3": true, "10.2.0.0": true, "192.168.0.1": true, "192.168.0.6": true,
		"192.168.0.7": false, "192.168.0.0": false, "fd7a::1": true, "fd7b::": false,
	} {
		if got := in(0, a); got != want {
			t.Errorf("%s in ipset:a: %v", a, got)
		}
	}
	if n := len(doc.IPSets[2].Prefixes); n != 0 {
		t.Errorf("the empty set has %d prefixes", n)
	}
}

func TestRangePrefixesCoverTheRange(t *testing.T) {
	for _, c := range [][2]string{
		{"0.0.0.0", "255.255.255.255"},
		{"10.0.0.1", "10.0.0.1"},
		{"10.0.0.1", "10.0.1.254"},
		{"255.255.255.254", "255.255.255.255"},
		{"::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
		{"fd00::1", "fd00::1:0"},
	} {
		first, last := netip.MustParseAddr(c[0]), netip.MustParseAddr(c[1])
		next := first
		prefixes := rangePrefixes(first, last)
		for i, p := range prefixes {
			if p.Addr() != next || p != p.Masked() {
				t.Fatalf("%v: %v", c, prefixes)
			}
			if i < len(prefixes)-1 {
				next = lastAddress(p).Next()
			}
		}
		if end := lastAddress(prefixes[len(prefixes)-1]); end != last {
			t.Errorf("%v ends at %v: %v", c, end, prefixes)
		}
	}
}

// hostileTime bounds the processor's time that a text may take: nearly three times
// what the slowest takes on a busy machine, 1.5 s.
const hostileTime = 4 * time.Second

// Texts made to be expensive are answered in bounded time.
func TestHostileTexts(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds of a processor")
	}
	many := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	texts := map[string]string{
		"too long":        strings.Repeat(" ", MaxSize+1),
		"deep":            strings.Repeat("[", 1_000_000),
		"deep objects":    strings.Repeat(`{"a":`, 500_000),
		"deep in app":     `{"grants": [{"src": ["*"], "dst": ["*"], "app": {"a.b/c": [` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `]}}]}`,
		"open comment":    "/*" + strings.Repeat("/", 1_000_000),
		"open string":     `{"` + strings.Repeat("a", 1_000_000),
		"not utf-8":       "{\"groups\": {\"group:\xff\": []}}",
		"many rules":      `{"acls": [` + strings.Repeat(`{},`, MaxRules+1) + `]}`,
		"many errors":     `{"acls": [` + strings.Repeat(`{"x": 1},`, MaxRules) + `]}`,
		"many keys":       `{` + many(100_000, `"k%d": 1,`) + `}`,
		"many groups":     `{"groups": {` + many(MaxDefinitions+1, `"group:%d": [],`) + `}}`,
		"long name":       `{"groups": {"group:` + strings.Repeat("a", 300) + `": []}}`,
		"wide rule":       `{"acls": [{"action": "accept", "src": [` + strings.Repeat(`"*",`, 2_000) + `], "dst": [` + strings.Repeat(`"*:1",`, 2_000) + `]}]}`,
		"many pairs":      `{"acls": [{"action": "accept", "src": [` + strings.Repeat(`"*",`, 999) + `], "dst": [` + many(1_000, `"*:1%d",`) + `]}]}`,
		"many ports":      `{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:` + strings.Repeat("1,", 1_500) + `1"]}]}`,
		"ipset work":      `{"ipsets": {"ipset:a": [` + many(9_999, `"fd00:%x::1-fd00:%[1]x:ffff::fffe",`) + `]}}`,
		"ipset pyramid":   `{"ipsets": {"ipset:0": [` + many(5_000, `"fd00:%x::-fd00:%[1]x:ffff::1",`) + `], ` + pyramid(40) + `}}`,
		"same rule":       `{"acls": [` + strings.Repeat(`{"action": "accept", "src": ["*"], "dst": ["*:1"]},`, MaxRules) + `"x"]}`,
		"long conditions": `{"postures": {"posture:a": ["a:b IN [` + strings.Repeat("'x',", 10_000) + `]"]}}`,
	}
	var got strings.Builder
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		start := cputime.Used(t)
		_, err := Parse([]byte(texts[name]))
		if took := cputime.Used(t) - start; took > hostileTime {
			t.Errorf("%s took %v", name, took)
		} else {
			t.Logf("%s took %v", name, took)
		}
		if err == nil {
			t.Errorf("%s was accepted", name)
			continue
		}
		if len(err.Error()) > 100_000 {
			t.Errorf("%s: the error has %d bytes", name, len(err.Error()))
		}
		first, _, _ := strings.Cut(err.Error(), "\n")
		fmt.Fprintf(&got, "%s\n\t%s\n", name, first)
	}
	// The messages about limits, beside those of testdata/errors.txt.
	const file = "testdata/limits.txt"
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || got.String() != string(want) {
		t.Errorf("%v: got\n%s", err, got.String())
	}
}

// pyramid defines sets that each list the one before many times.
func pyramid(height int) string {
	var b strings.Builder
	for i := 1; i < height; i++ {
		fmt.Fprintf(&b, `"ipset:%d": [%s],`, i, strings.Repeat(fmt.Sprintf(`"ipset:%d",`, i-1), 200))
	}
	return b.String()
}

func TestFormatKeepsComments(t *testing.T) {
	const text = "// head\n{\"acls\":[/* a */{\"action\":\"accept\",\n// b\n\"src\":[\"*\"],\"dst\":[\"*:*\"]}]} // tail\n"
	once, err := Format([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, comment := range []string{"// head", "/* a */", "// b", "// tail"} {
		if !strings.Contains(string(once), comment) {
			t.Errorf("%q is lost in\n%s", comment, once)
		}
	}
	if twice, err := Format(once); err != nil || string(twice) != string(once) {
		t.Errorf("formatting twice differs: %v\n%s\n%s", err, once, twice)
	}
}
