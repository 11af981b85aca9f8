package arch

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// modulePath is the path of the module whose tree is checked.
const modulePath = "github.com/warren-overlay/warren"

// root is the module's directory, seen from this package's.
const root = "../.."

// source is one Go file of the module, of whatever operating system.
type source struct {
	name      string // path from the module's directory, with slashes
	pkg       string // directory, from the module's
	file      *ast.File
	lines     int
	isTest    bool
	generated bool
}

// imports returns the paths that the file imports, in its order.
func (s *source) imports() []string {
	var paths []string
	for _, spec := range s.file.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			panic("BUG: arch: the parser let an import path through: " + err.Error())
		}
		paths = append(paths, path)
	}
	return paths
}

// tree is the module's Go files, ordered by name.
type tree struct {
	fset    *token.FileSet
	sources []*source
}

// load parses the module once for all tests. Directories that hold a module of
// their own, test data and hidden directories are left out.
var load = sync.OnceValues(func() (*tree, error) {
	t := &tree{fset: token.NewFileSet()}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skip(path, d.Name())
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(t.fset, path, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		t.sources = append(t.sources, &source{
			name:      name,
			pkg:       name[:max(strings.LastIndexByte(name, '/'), 0)],
			file:      file,
			lines:     strings.Count(string(text), "\n"),
			isTest:    strings.HasSuffix(name, "_test.go"),
			generated: ast.IsGenerated(file),
		})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("arch: reading the tree: %w", err)
	}
	return t, nil
})

// skip returns fs.SkipDir for a directory that is no part of the module.
func skip(path, name string) error {
	if path == root {
		return nil
	}
	if name == "testdata" || name == "bin" || name == "dist" || name == "node_modules" ||
		strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") {
		return fs.SkipDir
	}
	if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil {
		return fs.SkipDir
	}
	return nil
}

// module returns the tree, and fails the test where it cannot be read.
func module(t *testing.T) *tree {
	t.Helper()
	m, err := load()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// packages lists the directories that hold Go files, ordered.
func (t *tree) packages() []string {
	var all []string
	for _, s := range t.sources {
		all = append(all, s.pkg)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// where returns the file and line of pos, as an editor takes them.
func (t *tree) where(pos token.Pos) string {
	p := t.fset.Position(pos)
	name, err := filepath.Rel(root, p.Filename)
	if err != nil {
		name = p.Filename
	}
	return fmt.Sprintf("%s:%d", filepath.ToSlash(name), p.Line)
}

// within reports whether pkg is what pattern names: itself, or with a pattern
// that ends in "/..." a package below.
func within(pkg, pattern string) bool {
	prefix, deep := strings.CutSuffix(pattern, "/...")
	return pkg == prefix || deep && strings.HasPrefix(pkg, prefix+"/")
}

// own returns the package of the module that path imports, and false for an
// import from elsewhere.
func own(path string) (string, bool) {
	if path == modulePath {
		return "", true
	}
	return strings.CutPrefix(path, modulePath+"/")
}

// standard reports whether path is a package of the standard library: its
// first element has no dot.
func standard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}
