package arch

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// sleeps returns the calls of time.Sleep in file that do not evidently stand in
// a bubble of testing/synctest. In a bubble stands a function literal passed to
// synctest.Test, and a function that calls synctest.Wait, which panics anywhere
// else.
func sleeps(file *ast.File) []token.Pos {
	var found []token.Pos
	var visit func(n ast.Node, bubble bool)
	visit = func(n ast.Node, bubble bool) {
		ast.Inspect(n, func(inner ast.Node) bool {
			switch x := inner.(type) {
			case *ast.FuncDecl:
				if inner != n && x.Body != nil {
					visit(x.Body, bubble || waits(x.Body))
					return false
				}
			case *ast.CallExpr:
				switch {
				case calls(x, "time", "Sleep"):
					if !bubble {
						found = append(found, x.Pos())
					}
				case calls(x, "synctest", "Test"):
					for _, arg := range x.Args {
						visit(arg, true)
					}
					return false
				}
			}
			return true
		})
	}
	visit(file, false)
	return found
}

// waits reports whether body calls synctest.Wait.
func waits(body *ast.BlockStmt) bool {
	found := false
	ast.Inspect(body, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok && calls(call, "synctest", "Wait") {
			found = true
		}
		return !found
	})
	return found
}

// calls reports whether call is pkg.name(…).
func calls(call *ast.CallExpr, pkg, name string) bool {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != name {
		return false
	}
	x, ok := sel.X.(*ast.Ident)
	return ok && x.Name == pkg
}

// TestSleepsOnlyInBubbles checks that no test waits on the real clock: it would
// cost its time on every run, and fail on a slow day. The exceptions in
// testdata/sleeps.txt are counted exactly, so that the list only shrinks.
func TestSleepsOnlyInBubbles(t *testing.T) {
	allowed := map[string]int{}
	text, err := os.ReadFile(filepath.Join("testdata", "sleeps.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		var name string
		var n int
		if _, err := fmt.Sscan(line, &name, &n); err != nil || len(strings.Fields(line)) < 5 {
			t.Errorf("sleeps.txt: %q: want a file, a count and a reason of some words", line)
		}
		allowed[name] = n
	}
	m := module(t)
	for _, s := range m.sources {
		if !s.isTest {
			continue
		}
		found := sleeps(s.file)
		if n := allowed[s.name]; len(found) > n {
			for _, pos := range found {
				t.Errorf("%s: time.Sleep in a test outside a synctest bubble (%d in the file, %d excepted)", m.where(pos), len(found), n)
			}
		} else if len(found) < n {
			t.Errorf("%s has %d sleeps, sleeps.txt excepts %d: lower the number", s.name, len(found), n)
		}
		delete(allowed, s.name)
	}
	for _, name := range slices.Sorted(maps.Keys(allowed)) {
		t.Errorf("sleeps.txt excepts %s, which does not exist: remove its line", name)
	}
}

// TestSleepsAreSeen guards the guard.
func TestSleepsAreSeen(t *testing.T) {
	const text = `package sample
func TestA(t *testing.T) { time.Sleep(1) }
func TestB(t *testing.T) { synctest.Test(t, func(t *testing.T) { go func() { time.Sleep(1) }() }) }
func settle() { time.Sleep(1); synctest.Wait() }
func late() { go func() { time.Sleep(1) }() }
func TestC(t *testing.T) { t.Run("x", func(t *testing.T) { time.Sleep(1) }); synctest.Test(t, nil) }
`
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "sample_test.go", text, 0)
	if err != nil {
		t.Fatal(err)
	}
	var got []int
	for _, pos := range sleeps(file) {
		got = append(got, fset.Position(pos).Line)
	}
	if want := []int{2, 5, 6}; !slices.Equal(got, want) {
		t.Errorf("sleeps in lines %v, want %v", got, want)
	}
}
