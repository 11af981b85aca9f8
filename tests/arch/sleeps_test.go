package arch

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// sleeps returns the calls of time.Sleep in file that do not evidently stand in
// a bubble of testing/synctest. In a bubble stands a function literal passed to
// synctest.Test, or to one of opening, the functions of the package that pass
// theirs on to it; a function that calls synctest.Wait, which panics anywhere
// else; and one that is given a value of inhabitants, the types of the package
// that there are in bubbles only.
func sleeps(file *ast.File, opening, inhabitants map[string]bool) []token.Pos {
	var found []token.Pos
	var visit func(n ast.Node, bubble bool)
	visit = func(n ast.Node, bubble bool) {
		ast.Inspect(n, func(inner ast.Node) bool {
			switch x := inner.(type) {
			case *ast.FuncDecl:
				if inner != n && x.Body != nil {
					visit(x.Body, bubble || contains(x.Body, "Wait") || given(x, inhabitants))
					return false
				}
			case *ast.CallExpr:
				switch {
				case calls(x, "time", "Sleep"):
					if !bubble {
						found = append(found, x.Pos())
					}
				case calls(x, "synctest", "Test") || opens(x, opening):
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

// contains reports whether body calls the function of package synctest.
func contains(body *ast.BlockStmt, name string) bool {
	found := false
	ast.Inspect(body, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok && calls(call, "synctest", name) {
			found = true
		}
		return !found
	})
	return found
}

// openers returns the names of the functions of a file that call
// synctest.Test and are no tests themselves.
func openers(file *ast.File) []string {
	var names []string
	for _, d := range file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Body != nil &&
			!strings.HasPrefix(f.Name.Name, "Test") && contains(f.Body, "Test") {
			names = append(names, f.Name.Name)
		}
	}
	return names
}

// passed returns the types of the package that the functions named give to
// functions that they are passed: what a bubble is set up with.
func passed(file *ast.File, opening map[string]bool) []string {
	var names []string
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || f.Recv != nil || !opening[f.Name.Name] {
			continue
		}
		for _, param := range f.Type.Params.List {
			if inner, ok := param.Type.(*ast.FuncType); ok {
				names = append(names, typeNames(inner.Params)...)
			}
		}
	}
	return names
}

// holders returns the struct types of a file with a field of one of the types
// named.
func holders(file *ast.File, held map[string]bool) []string {
	var names []string
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.TypeSpec); ok {
			if s, ok := spec.Type.(*ast.StructType); ok && slices.ContainsFunc(typeNames(s.Fields), func(name string) bool { return held[name] }) {
				names = append(names, spec.Name.Name)
			}
		}
		return true
	})
	return names
}

// given reports whether f has a receiver or a parameter of one of the types
// named.
func given(f *ast.FuncDecl, inhabitants map[string]bool) bool {
	for _, list := range []*ast.FieldList{f.Recv, f.Type.Params} {
		if slices.ContainsFunc(typeNames(list), func(name string) bool { return inhabitants[name] }) {
			return true
		}
	}
	return false
}

// typeNames returns the names of the package's own types in a list, of which
// some may be pointers.
func typeNames(list *ast.FieldList) []string {
	if list == nil {
		return nil
	}
	var names []string
	for _, field := range list.List {
		t := field.Type
		if star, ok := t.(*ast.StarExpr); ok {
			t = star.X
		}
		if name, ok := t.(*ast.Ident); ok && types.Universe.Lookup(name.Name) == nil {
			names = append(names, name.Name)
		}
	}
	return names
}

// opens reports whether call is of one of the functions named.
func opens(call *ast.CallExpr, names map[string]bool) bool {
	f, ok := call.Fun.(*ast.Ident)
	return ok && names[f.Name]
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
	opening := map[string]map[string]bool{} // by package
	for _, s := range m.sources {
		for _, name := range openers(s.file) {
			if opening[s.pkg] == nil {
				opening[s.pkg] = map[string]bool{}
			}
			opening[s.pkg][name] = true
		}
	}
	inhabitants := map[string]map[string]bool{} // by package
	add := func(pkg string, names []string) (grew bool) {
		if inhabitants[pkg] == nil {
			inhabitants[pkg] = map[string]bool{}
		}
		for _, name := range names {
			grew = grew || !inhabitants[pkg][name]
			inhabitants[pkg][name] = true
		}
		return grew
	}
	for _, s := range m.sources {
		if s.isTest {
			add(s.pkg, passed(s.file, opening[s.pkg]))
		}
	}
	// What holds an inhabitant is one, too.
	for grew := true; grew; {
		grew = false
		for _, s := range m.sources {
			if s.isTest && add(s.pkg, holders(s.file, inhabitants[s.pkg])) {
				grew = true
			}
		}
	}
	for _, s := range m.sources {
		if !s.isTest {
			continue
		}
		found := sleeps(s.file, opening[s.pkg], inhabitants[s.pkg])
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
func bubble(t *testing.T, f func()) { synctest.Test(t, func(t *testing.T) { f() }) }
func TestD(t *testing.T) { bubble(t, func() { time.Sleep(1) }) }
func TestE(t *testing.T) { other(t, func() { time.Sleep(1) }) }
func world(t *testing.T, f func(w *place, n int)) { synctest.Test(t, func(t *testing.T) { f(nil, 1) }) }
func visit(w *place) { time.Sleep(1) }
type inn struct { *place }
func (i inn) stay() { time.Sleep(1) }
func count(n int) { time.Sleep(1) }
`
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "sample_test.go", text, 0)
	if err != nil {
		t.Fatal(err)
	}
	var got []int
	for _, pos := range sleeps(file, map[string]bool{"bubble": true}, map[string]bool{"place": true, "inn": true}) {
		got = append(got, fset.Position(pos).Line)
	}
	if want := []int{2, 5, 6, 9, 14}; !slices.Equal(got, want) {
		t.Errorf("sleeps in lines %v, want %v", got, want)
	}
	if names := openers(file); !slices.Equal(names, []string{"bubble", "world"}) {
		t.Errorf("functions that open a bubble: %v, want [bubble world]", names)
	}
	if names := passed(file, map[string]bool{"world": true}); !slices.Equal(names, []string{"place"}) {
		t.Errorf("types of bubbles: %v, want [place]", names)
	}
	if names := holders(file, map[string]bool{"place": true}); !slices.Equal(names, []string{"inn"}) {
		t.Errorf("types that hold one: %v, want [inn]", names)
	}
}
