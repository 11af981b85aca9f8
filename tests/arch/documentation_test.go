package arch

import (
	"go/ast"
	"go/token"
	"path"
	"strings"
	"testing"
)

// TestPackageDocs checks that each package is described once, and where a
// reader and go doc find it.
func TestPackageDocs(t *testing.T) {
	m := module(t)
	documented := map[string][]string{}
	for _, s := range m.sources {
		if s.generated {
			continue
		}
		opening := "Package " + s.file.Name.Name
		if s.file.Name.Name == "main" {
			opening = "Command " + path.Base(s.pkg)
		}
		text := s.file.Doc.Text() // without directives, "" for none
		if text != "" {
			documented[s.pkg] = append(documented[s.pkg], s.name)
			if !strings.HasPrefix(text, opening+" ") {
				t.Errorf("%s: the package comment does not begin %q", s.name, opening)
			}
			if base := path.Base(s.name); base != "doc.go" && (base != "main.go" || s.file.Name.Name != "main") {
				t.Errorf("%s: the package comment belongs in doc.go", s.name)
			}
		}
		for _, c := range s.file.Comments {
			if c.End() < s.file.Package && c != s.file.Doc && strings.HasPrefix(c.Text(), opening+" ") {
				t.Errorf("%s: a blank line detaches the package comment, so go doc does not show it", s.name)
			}
		}
	}
	for _, p := range m.packages() {
		if n := len(documented[p]); n != 1 {
			t.Errorf("package %s has %d package comments %v, want one, in doc.go", p, n, documented[p])
		}
	}
}

// TestPackageDocsSayHowTheyWork checks that the comment of a pure package says
// that it is, and the comment of a shell which goroutines it starts, or that it
// starts none.
func TestPackageDocsSayHowTheyWork(t *testing.T) {
	said := map[string]string{}
	written := map[string]bool{} // packages that people wrote, beyond doc.go
	for _, s := range module(t).sources {
		said[s.pkg] += s.file.Doc.Text()
		written[s.pkg] = written[s.pkg] || !s.generated && path.Base(s.name) != "doc.go"
	}
	for _, p := range table {
		switch text := said[p.path]; {
		case text == "" || !written[p.path]:
		case p.kind == pure && !strings.Contains(text, "pure"):
			t.Errorf("package %s is pure, and its comment does not say so", p.path)
		case p.kind == shell && !strings.Contains(strings.ToLower(text), "goroutine"):
			t.Errorf("package %s is a shell, and its comment does not say which goroutines it starts", p.path)
		}
	}
}

// TestExportedNamesAreDocumented checks that every exported name has a comment
// and that it begins with the name, as go doc shows it.
func TestExportedNamesAreDocumented(t *testing.T) {
	m := module(t)
	for _, s := range m.sources {
		if s.isTest || s.generated {
			continue
		}
		for _, d := range s.file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && exportedReceiver(d) {
					checkComment(t, m, d.Name, d.Doc)
				}
			case *ast.GenDecl:
				said := "" // the last comment of the group, which may name several values
				for _, spec := range d.Specs {
					switch spec := spec.(type) {
					case *ast.TypeSpec:
						if spec.Name.IsExported() {
							doc := spec.Doc
							if doc == nil {
								doc = d.Doc
							}
							checkComment(t, m, spec.Name, doc)
						}
					case *ast.ValueSpec:
						// One comment may speak for a group of values, and the
						// comment of one may name those after it.
						if spec.Doc.Text() != "" {
							said = spec.Doc.Text()
						}
						if spec.Names[0].IsExported() && spec.Doc.Text() == "" && spec.Comment.Text() == "" &&
							d.Doc.Text() == "" && !strings.Contains(said, spec.Names[0].Name) {
							t.Errorf("%s: %s has no comment", m.where(spec.Pos()), spec.Names[0].Name)
						}
					}
				}
			}
		}
	}
}

// exportedReceiver reports whether d is a function, or a method of an exported
// type.
func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	for e := d.Recv.List[0].Type; ; {
		switch x := e.(type) {
		case *ast.StarExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.IndexListExpr:
			e = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return false
		}
	}
}

// checkComment fails where doc does not begin with name, an article before it
// allowed.
func checkComment(t *testing.T, m *tree, name *ast.Ident, doc *ast.CommentGroup) {
	t.Helper()
	text := doc.Text()
	if text == "" {
		t.Errorf("%s: %s has no comment", m.where(name.Pos()), name.Name)
		return
	}
	for _, article := range []string{"A ", "An ", "The "} {
		text = strings.TrimPrefix(text, article)
	}
	rest, ok := strings.CutPrefix(text, name.Name)
	if !ok || token.IsIdentifier("x"+rest[:min(len(rest), 1)]) && rest != "" {
		t.Errorf("%s: the comment of %s does not begin with its name", m.where(name.Pos()), name.Name)
	}
}
