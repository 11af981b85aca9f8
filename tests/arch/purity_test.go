package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// impure lists what a pure package does not import: the package and all below
// it, but for the exceptions. Each either waits, or brings in something that
// differs from run to run.
var impure = []law{
	{to: []string{"net/..."}, except: []string{"net/netip", "net/url"}, why: "it talks"},
	{to: []string{"os/...", "io/ioutil", "syscall", "flag", "plugin"}, why: "it looks at the machine"},
	{to: []string{"sync/...", "context", "runtime/...", "unsafe", "C"}, why: "it is about goroutines or memory"},
	{to: []string{"math/rand/...", "crypto/rand", "hash/maphash"}, why: "randomness comes as an argument"},
	{to: []string{"log/...", "expvar"}, why: "pure packages return events, they do not log"},
	{to: []string{"testing/...", "database/...", "golang.org/x/sys/..."}, why: "it belongs to a shell or a test"},
}

// ambient names functions and variables that a pure package does not use.
var ambient = map[string]string{
	"time.Now":       "time comes as an argument",
	"time.Since":     "time comes as an argument",
	"time.Until":     "time comes as an argument",
	"time.Sleep":     "a pure package does not wait",
	"time.After":     "a pure package does not wait",
	"time.AfterFunc": "a pure package does not wait",
	"time.Tick":      "a pure package does not wait",
	"time.NewTimer":  "a pure package does not wait",
	"time.NewTicker": "a pure package does not wait",
	"time.Local":     "the machine's time zone is not the caller's",
	"fmt.Print":      "a pure package does not print",
	"fmt.Println":    "a pure package does not print",
	"fmt.Printf":     "a pure package does not print",

	"crypto/ecdh.GenerateKey":    "it has randomness of its own",
	"crypto/ed25519.GenerateKey": "it has randomness of its own",
}

// unordered are the iterators over a map; sorting are the functions that make
// an order of one.
var (
	unordered = []string{"maps.Keys", "maps.Values", "maps.All"}
	sorting   = []string{"slices.Sorted", "slices.SortedFunc", "slices.SortedStableFunc", "maps.Collect", "maps.Insert"}
)

// listed is what go list says of a package.
type listed struct {
	ImportPath string
	Dir        string
	Export     string // file with the export data
	GoFiles    []string
	Module     *struct{ Main bool }
	Error      *struct{ Err string }
}

// listExports builds packages and what they depend on as far as needed, and
// returns what go list says of each by import path.
func listExports(packages []string) (map[string]listed, error) {
	cmd := exec.Command("go", append([]string{
		"list", "-e", "-deps", "-export", "-json=ImportPath,Dir,Export,GoFiles,Module,Error",
	}, packages...)...)
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w\n%s", err, stderr.Bytes())
	}
	all := map[string]listed{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("reading go list: %w", err)
		}
		all[p.ImportPath] = p
	}
}

func TestPurePackages(t *testing.T) {
	var names []string
	for _, p := range table {
		if _, err := os.Stat(filepath.Join(root, p.path)); err == nil && p.kind == pure {
			names = append(names, "./"+p.path)
		}
	}
	all, err := listExports(names)
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	from := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		if all[path].Export == "" {
			return nil, fmt.Errorf("%s was not built", path)
		}
		return os.Open(all[path].Export)
	})
	for _, name := range names {
		path := modulePath + strings.TrimPrefix(name, ".")
		t.Run(strings.TrimPrefix(name, "./"), func(t *testing.T) {
			p := all[path]
			if p.Error != nil {
				t.Fatal(p.Error.Err)
			}
			var files []*ast.File
			for _, f := range p.GoFiles {
				file, err := parser.ParseFile(fset, filepath.Join(p.Dir, f), nil, parser.ParseComments|parser.SkipObjectResolution)
				if err != nil {
					t.Fatal(err)
				}
				files = append(files, file)
			}
			found, err := impurities(fset, path, files, from)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range found {
				t.Errorf("%s: %s", position(fset, f.pos), f.what)
			}
		})
	}
}

// TestPureImports looks at the files of all systems, which the type checker
// above does not see.
func TestPureImports(t *testing.T) {
	for _, s := range module(t).sources {
		if p, ok := entry(s.pkg); !ok || p.kind != pure || s.isTest || s.generated {
			continue
		}
		for _, path := range s.imports() {
			for _, l := range impure {
				if matches(path, l.to) && !matches(path, l.except) {
					t.Errorf("%s imports %s: %s", s.name, path, l.why)
				}
			}
		}
	}
}

// impurity is one place where a package is not pure.
type impurity struct {
	pos  token.Pos
	what string
}

// impurities type-checks a package and lists where it is not pure. Generated
// files are checked for their types only: what they do inside is their
// generator's.
func impurities(fset *token.FileSet, path string, files []*ast.File, from types.Importer) ([]impurity, error) {
	info := &types.Info{
		Types: map[ast.Expr]types.TypeAndValue{},
		Uses:  map[*ast.Ident]types.Object{},
	}
	if _, err := (&types.Config{Importer: from}).Check(path, fset, files, info); err != nil {
		return nil, fmt.Errorf("type-checking: %w", err)
	}
	var found []impurity
	for _, file := range files {
		if ast.IsGenerated(file) {
			continue
		}
		sorted := map[ast.Expr]bool{} // arguments of a sorting function
		ast.Inspect(file, func(n ast.Node) bool {
			report := func(what string) { found = append(found, impurity{n.Pos(), what}) }
			switch n := n.(type) {
			case *ast.GoStmt:
				report("a pure package starts no goroutine")
			case *ast.SelectStmt, *ast.SendStmt:
				report("a pure package does not wait on channels")
			case *ast.UnaryExpr:
				if n.Op == token.ARROW {
					report("a pure package does not wait on channels")
				}
			case *ast.RangeStmt:
				switch info.TypeOf(n.X).Underlying().(type) {
				case *types.Map:
					report("range over a map has no order; use slices.Sorted(maps.Keys(m))")
				case *types.Chan:
					report("a pure package does not wait on channels")
				}
			case *ast.CallExpr:
				name := qualified(info, n.Fun)
				if slices.Contains(sorting, name) && len(n.Args) > 0 {
					sorted[n.Args[len(n.Args)-1]], sorted[n.Args[0]] = true, true
				}
				if slices.Contains(unordered, name) && !sorted[n] {
					report(name + " has no order; wrap it in slices.Sorted")
				}
				if name == "print" || name == "println" {
					report("a pure package does not print")
				}
			case *ast.SelectorExpr:
				if why := ambient[qualified(info, n)]; why != "" {
					report(qualified(info, n) + ": " + why)
				}
			}
			return true
		})
	}
	return found, nil
}

// qualified returns "path.Name" for a package-level function or variable, the
// name of a builtin, and "" for the rest.
func qualified(info *types.Info, e ast.Expr) string {
	switch e := ast.Unparen(e).(type) {
	case *ast.IndexExpr:
		return qualified(info, e.X)
	case *ast.Ident:
		if b, ok := info.Uses[e].(*types.Builtin); ok {
			return b.Name()
		}
	case *ast.SelectorExpr:
		// A package's scope holds neither fields nor methods.
		if o := info.Uses[e.Sel]; o != nil && o.Pkg() != nil && o.Parent() == o.Pkg().Scope() {
			return o.Pkg().Path() + "." + o.Name()
		}
	}
	return ""
}

// position returns pos as a path from the module's directory and a line.
func position(fset *token.FileSet, pos token.Pos) string {
	p := fset.Position(pos)
	if dir, err := filepath.Abs(root); err == nil {
		if name, err := filepath.Rel(dir, p.Filename); err == nil {
			return fmt.Sprintf("%s:%d", filepath.ToSlash(name), p.Line)
		}
	}
	return fmt.Sprintf("%s:%d", p.Filename, p.Line)
}

// TestImpuritiesAreSeen guards the guard: every line marked "want" is one, and
// no other.
func TestImpuritiesAreSeen(t *testing.T) {
	const text = `package sample
import (
	"fmt"
	"maps"
	"slices"
	"time"
)
type named map[string]int
func f(m map[string]int, n named, c chan int, at time.Time) {
	go f(m, n, c, at) // want
	for range m {} // want
	for k := range n { _ = k } // want
	for range c {} // want
	c <- 1 // want
	<-c // want
	select {} // want
	_ = time.Now() // want
	clock := time.Now; _ = clock // want
	_ = time.Since(at) // want
	_ = at.In(time.Local) // want
	_ = at.After(at)
	fmt.Println() // want
	println() // want
	for range maps.Keys(m) {} // want
	for range slices.Sorted(maps.Keys(m)) {}
	for range slices.SortedFunc(maps.Keys(m), func(a, b string) int { return 0 }) {}
	_ = slices.Collect(maps.Values(m)) // want
	for range 3 {}
	for range []int{1} {}
	for range "abc" {}
	_ = fmt.Sprint()
}
`
	all, err := listExports([]string{"fmt", "maps", "slices", "time"})
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "sample.go", text, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	from := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(all[path].Export) })
	found, err := impurities(fset, "sample", []*ast.File{file}, from)
	if err != nil {
		t.Fatal(err)
	}
	var got, want []int
	for _, f := range found {
		got = append(got, fset.Position(f.pos).Line)
	}
	for i, line := range strings.Split(text, "\n") {
		if strings.Contains(line, "// want") {
			want = append(want, i+1)
		}
	}
	slices.Sort(got)
	if got = slices.Compact(got); !slices.Equal(got, want) {
		t.Errorf("impure lines %v, want %v", got, want)
	}
}
