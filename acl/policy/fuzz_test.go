package policy

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/acltest/cputime"
)

// seedPolicies adds every golden text and a document that uses all sections.
func seedPolicies(f *testing.F) {
	golden, err := os.ReadFile("testdata/errors.txt")
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range strings.Split(string(golden), "----\n") {
		text, _, _ := strings.Cut(c, "=>\n")
		f.Add([]byte(text))
	}
	whole, err := os.ReadFile("testdata/whole.hujson")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
}

// FuzzParse: any text is a document or errors with places in it, in bounded
// time, and what formatting makes of it says the same.
func FuzzParse(f *testing.F) {
	seedPolicies(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		start := cputime.Used(t)
		doc, err := Parse(text)
		if took := cputime.Used(t) - start; took > 5*time.Second {
			t.Fatalf("%d bytes took %v", len(text), took)
		}
		formatted, formatErr := Format(text)
		if err != nil {
			var list ErrorList
			if !errors.As(err, &list) || len(list) == 0 || !errors.Is(err, ErrInvalid) || doc != nil {
				t.Fatalf("%T %v", err, err)
			}
			for _, e := range list {
				if e.Line < 1 || e.Column < 1 || e.Line > bytes.Count(text, []byte("\n"))+1 || e.Message == "" {
					t.Fatalf("%+v", e)
				}
			}
			return
		}
		if formatErr != nil {
			t.Fatalf("parsed, but not formatted: %v", formatErr)
		}
		again, err := Parse(formatted)
		if err != nil {
			t.Fatalf("formatted text is refused: %v\n%s", err, formatted)
		}
		if len(again.Rules) != len(doc.Rules) {
			t.Fatalf("%d rules became %d", len(doc.Rules), len(again.Rules))
		}
		for i := range doc.Rules {
			if doc.Rules[i].Digest != again.Rules[i].Digest || doc.Rules[i].ID != again.Rules[i].ID {
				t.Fatalf("rule %d says something else", i)
			}
		}
	})
}

// FuzzFormat: formatting is stable and keeps every comment.
func FuzzFormat(f *testing.F) {
	seedPolicies(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		once, err := Format(text)
		if err != nil {
			return
		}
		twice, err := Format(once)
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("formatting twice differs: %v\n%q\n%q", err, once, twice)
		}
		if a, b := commentText(text), commentText(once); a != b {
			t.Fatalf("comments changed from %q to %q", a, b)
		}
	})
}

// commentText is all that stands in comments, without space.
func commentText(text []byte) string {
	var out strings.Builder
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '"':
			for i++; i < len(text) && text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
				}
			}
		case bytes.HasPrefix(text[i:], []byte("//")):
			end := bytes.IndexByte(text[i:], '\n')
			if end < 0 {
				end = len(text) - i
			}
			out.Write(text[i : i+end])
			i += end
		case bytes.HasPrefix(text[i:], []byte("/*")):
			end := bytes.Index(text[i+2:], []byte("*/"))
			if end < 0 {
				end = len(text) - i - 4
			}
			out.Write(text[i : i+end+4])
			i += end + 3
		}
	}
	return strings.Join(strings.Fields(out.String()), "")
}

// FuzzCondition: a condition that parses has one spelling that parses to the
// same, and never panics on any attribute.
func FuzzCondition(f *testing.F) {
	for _, s := range []string{
		"node:os == 'macos'", "node:osVersion >= '14.2'", "custom:x IN ['a', 'b', 3]", "ip:country NOT IN [\"DE\"]",
		"node:tsStateEncrypted == true", "custom:n < 3.5e2", "custom:x IS SET", "custom:x NOT SET", "custom:x IS NOT SET", "a:b=='c' ",
	} {
		f.Add(s, "14.10")
	}
	f.Fuzz(func(t *testing.T, text, value string) {
		c, fault := parseCondition(text)
		if fault != nil {
			if fault.at < 0 || fault.at > len(text) || fault.message == "" {
				t.Fatalf("%+v", fault)
			}
			return
		}
		for _, v := range c.Values {
			if v.Type == Text && strings.ContainsRune(v.Text, '\'') {
				return // written in double quotes; the canonical spelling has single ones
			}
		}
		again, fault := parseCondition(c.String())
		if fault != nil || again.String() != c.String() {
			t.Fatalf("%q became %q: %+v", text, c.String(), fault)
		}
		attributes := map[string]Value{c.Attribute: {Text: value}}
		if got, want := again.Holds(attributes), c.Holds(attributes); got != want {
			t.Fatalf("%q holds %v, %q %v", text, want, c.String(), got)
		}
		if c.Operator != NotSet && c.Holds(nil) {
			t.Fatalf("%q holds of a device of which nothing is known", text)
		}
		if a, b := compareVersions(value, text), compareVersions(text, value); a != -b {
			t.Fatalf("versions %q and %q compare %d and %d", value, text, a, b)
		}
	})
}
