package policy

import (
	"errors"
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestErrorsGolden compares every error of the language, with its position,
// with testdata/errors.txt, which is written to be read aloud.
func TestErrorsGolden(t *testing.T) {
	const file = "testdata/errors.txt"
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, _ := strings.Cut(string(want), "\n")
	var got strings.Builder
	got.WriteString(head + "\n")
	for i, c := range strings.Split(rest, "----\n") {
		text, _, ok := strings.Cut(c, "=>\n")
		if !ok {
			t.Fatalf("case %d has no =>", i)
		}
		_, err := Parse([]byte(text))
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("case %d was accepted: %s", i, text)
			continue
		}
		if i > 0 {
			got.WriteString("----\n")
		}
		got.WriteString(text + "=>\n" + err.Error() + "\n")
		var list ErrorList
		if !errors.As(err, &list) {
			t.Fatalf("case %d: %T is no ErrorList", i, err)
		}
		lines := strings.Split(text, "\n")
		for _, e := range list {
			if e.Line < 1 || e.Line > len(lines) || e.Column < 1 || e.Column > len(lines[e.Line-1])+1 {
				t.Errorf("case %d: %v is not in the text", i, e)
				continue
			}
			if at := lines[e.Line-1][e.Column-1:]; e.Text != "" && !strings.HasSuffix(e.Text, "...") && !strings.Contains(at, strings.TrimSpace(e.Text)) && !isCondition(e) {
				t.Errorf("case %d: %v does not point at %q but at %q", i, e, e.Text, at)
			}
		}
	}
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if got.String() != string(want) {
		t.Errorf("the errors changed; run the test with -update and read them\n%s", got.String())
	}
}

// isCondition reports whether the error points into a condition, whose text is
// the whole of it.
func isCondition(e *ParseError) bool {
	return strings.Contains(e.Text, "node:") || strings.Contains(e.Text, "os ")
}
