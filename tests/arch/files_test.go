package arch

import (
	"go/ast"
	"go/token"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	// maxLines is the hard limit of a file that people write. The median of
	// good projects in this field is 80 to 150; what separates them from the
	// rest is the maximum.
	maxLines = 800
	// maxProgramLines is the limit for files of cmd, which hold no logic.
	maxProgramLines = 300
)

func TestFileSizes(t *testing.T) {
	for _, s := range module(t).sources {
		switch {
		case s.generated:
		case s.lines > maxLines:
			t.Errorf("%s has %d lines, over the limit of %d: which two ideas does it hold?", s.name, s.lines, maxLines)
		case within(s.pkg, "cmd/...") && !s.isTest && s.lines > maxProgramLines:
			t.Errorf("%s has %d lines, over the limit of %d for a program: its logic belongs in a package", s.name, s.lines, maxProgramLines)
		}
	}
}

// vague are names that say nothing of what a file or package holds.
var vague = regexp.MustCompile(`(?i)(^|_)(utils?|commons?|helpers?|managers?|misc)(_|$)`)

func TestNamesSayWhatIsInside(t *testing.T) {
	for _, s := range module(t).sources {
		names := append(strings.Split(s.pkg, "/"), strings.TrimSuffix(path.Base(s.name), ".go"))
		for _, name := range names {
			if vague.MatchString(name) {
				t.Errorf("%s: the name %q says nothing of what is inside", s.name, name)
			}
		}
	}
}

// TestNoUnfinishedMarks refuses notes to oneself: what is left to do is an
// issue, what is not built says so to its user.
func TestNoUnfinishedMarks(t *testing.T) {
	mark := regexp.MustCompile(`\b(TODO|FIXME|XXX|HACK)\b`)
	m := module(t)
	for _, s := range m.sources {
		if s.pkg == "tests/arch" || s.generated {
			continue
		}
		for _, group := range s.file.Comments {
			for _, c := range group.List {
				if found := mark.FindString(c.Text); found != "" {
					t.Errorf("%s: %s in a comment; file an issue instead", m.where(c.Pos()), found)
				}
			}
		}
	}
}

var (
	suppression = regexp.MustCompile(`^//\s*nolint`)
	// explained wants the linter by name, and an issue or a reason of some
	// words.
	explained = regexp.MustCompile(`^//nolint:[a-z0-9,]+ // .*(#\d+|\S+ \S+ \S+)`)
)

func TestSuppressionsAreExplained(t *testing.T) {
	m := module(t)
	for _, s := range m.sources {
		for _, group := range s.file.Comments {
			for _, c := range group.List {
				if suppression.MatchString(c.Text) && !explained.MatchString(c.Text) {
					t.Errorf("%s: %s: want //nolint:LINTER // and an issue number or the reason", m.where(c.Pos()), c.Text)
				}
			}
		}
	}
}

func TestExplainedWantsAReason(t *testing.T) {
	for text, want := range map[string]bool{
		"//nolint":                             false,
		"//nolint:errcheck":                    false,
		"//nolint // because it is so":         false,
		"//nolint:errcheck // sorry":           false,
		"//nolint:errcheck // #12":             true,
		"//nolint:errcheck // the peer closed": true,
	} {
		if got := explained.MatchString(text); got != want {
			t.Errorf("explained %q = %v, want %v", text, got, want)
		}
	}
}

// TestPanicsAreOurBugs checks that a panic says that it is a broken invariant
// of ours. Whatever comes from outside is an error, never a panic.
func TestPanicsAreOurBugs(t *testing.T) {
	m := module(t)
	for _, s := range m.sources {
		if p, _ := entry(s.pkg); s.isTest || s.generated || p.kind == support || within(s.pkg, "tests/...") {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 1 {
				return true
			}
			if name, ok := call.Fun.(*ast.Ident); ok && name.Name == "panic" && !strings.HasPrefix(leftmost(call.Args[0]), "BUG: ") {
				t.Errorf("%s: the text of a panic begins \"BUG: \"", m.where(n.Pos()))
			}
			return true
		})
	}
}

// leftmost returns the string that the value of e begins with, as far as the
// source shows it.
func leftmost(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BinaryExpr:
		return leftmost(e.X)
	case *ast.CallExpr: // fmt.Sprintf, errors.New
		if len(e.Args) > 0 {
			return leftmost(e.Args[0])
		}
	case *ast.BasicLit:
		if e.Kind == token.STRING {
			text, err := strconv.Unquote(e.Value)
			if err == nil {
				return text
			}
		}
	}
	return ""
}

// TestEnvironmentIsReadByProgramsOnly checks that nothing below cmd depends on
// environment variables: a component is configured by its Config.
func TestEnvironmentIsReadByProgramsOnly(t *testing.T) {
	reads := []string{"Getenv", "LookupEnv", "Environ", "ExpandEnv"}
	m := module(t)
	for _, s := range m.sources {
		if s.isTest || within(s.pkg, "cmd/...") || within(s.pkg, "tests/...") {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == "os" && slices.Contains(reads, sel.Sel.Name) {
				t.Errorf("%s: os.%s below cmd; take it from a Config", m.where(n.Pos()), sel.Sel.Name)
			}
			return true
		})
	}
}
