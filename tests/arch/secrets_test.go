package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"slices"
	"testing"
)

// secretName matches the names that values are given which an attacker must
// not learn by timing a comparison.
var secretName = regexp.MustCompile(`(?i)(secret|private(key)?|password|passphrase)(bytes)?$`)

// comparing are functions that compare and stop at the first difference.
var comparing = [][2]string{
	{"bytes", "Equal"},
	{"bytes", "Compare"},
	{"slices", "Equal"},
	{"strings", "EqualFold"},
	{"strings", "Compare"},
	{"reflect", "DeepEqual"},
}

// secretComparisons returns where file compares a secret other than with
// crypto/subtle. A comparison with a constant, as "is it empty", is none.
func secretComparisons(file *ast.File) []token.Pos {
	var found []token.Pos
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BinaryExpr:
			if (n.Op == token.EQL || n.Op == token.NEQ) && !constant(n.X) && !constant(n.Y) && (secret(n.X) || secret(n.Y)) {
				found = append(found, n.Pos())
			}
		case *ast.CallExpr:
			if slices.ContainsFunc(comparing, func(f [2]string) bool { return calls(n, f[0], f[1]) }) && slices.ContainsFunc(n.Args, secret) {
				found = append(found, n.Pos())
			}
		}
		return true
	})
	return found
}

// constant reports whether e is a literal, nil or a composite zero value.
func constant(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.BasicLit, *ast.CompositeLit:
		return true
	case *ast.Ident:
		return e.Name == "nil"
	}
	return false
}

// secret reports whether e is named as a secret.
func secret(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.Ident:
		return secretName.MatchString(e.Name)
	case *ast.SelectorExpr:
		return secretName.MatchString(e.Sel.Name)
	case *ast.CallExpr:
		name, ok := e.Fun.(*ast.SelectorExpr)
		return ok && secretName.MatchString(name.Sel.Name)
	case *ast.IndexExpr:
		return false // one byte, or one of several: judged by its own name
	case *ast.SliceExpr:
		return secret(e.X)
	case *ast.ParenExpr:
		return secret(e.X)
	}
	return false
}

// TestSecretsAreComparedInConstantTime checks that no secret is compared with
// == or a function that stops at the first difference.
func TestSecretsAreComparedInConstantTime(t *testing.T) {
	m := module(t)
	for _, s := range m.sources {
		if s.isTest || s.generated {
			continue
		}
		for _, pos := range secretComparisons(s.file) {
			t.Errorf("%s: a secret is compared with crypto/subtle.ConstantTimeCompare only", m.where(pos))
		}
	}
}

// TestPrivateKeysDoNotCompare checks that the struct types of acl/ident that
// hold a private key cannot be compared with == at all: their common part has
// a field of a type that has no ==.
func TestPrivateKeysDoNotCompare(t *testing.T) {
	holders, guarded := 0, false
	for _, s := range module(t).sources {
		if s.pkg != "acl/ident" || s.isTest {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			fields, ok := spec.Type.(*ast.StructType)
			switch {
			case spec.Name.Name == "secret" && ok:
				guarded = slices.ContainsFunc(fields.Fields.List, func(f *ast.Field) bool {
					_, ok := f.Type.(*ast.FuncType)
					return ok
				})
			case regexp.MustCompile(`Private$`).MatchString(spec.Name.Name):
				holders++
				if !ok || !slices.ContainsFunc(fields.Fields.List, func(f *ast.Field) bool {
					x, ok := f.Type.(*ast.Ident)
					return ok && x.Name == "secret"
				}) {
					t.Errorf("ident.%s does not keep its key in a secret", spec.Name.Name)
				}
			}
			return true
		})
	}
	if !guarded {
		t.Error("ident.secret can be compared: it has no field that is a function")
	}
	if holders == 0 {
		t.Error("acl/ident has no private key types; where did they go?")
	}
}

// TestSecretComparisonsAreSeen guards the guard.
func TestSecretComparisonsAreSeen(t *testing.T) {
	const text = `package sample
func f() {
	_ = secret == other
	_ = a.Secret != b.Secret
	_ = bytes.Equal(key.SecretBytes(), x)
	_ = secret == ""
	_ = a.Password == nil
	_ = secretID == other
	_ = subtle.ConstantTimeCompare(secret, other) == 1
	_ = strings.EqualFold(a, password)
	_ = len(secret) == n
}
`
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "sample.go", text, 0)
	if err != nil {
		t.Fatal(err)
	}
	var got []int
	for _, pos := range secretComparisons(file) {
		got = append(got, fset.Position(pos).Line)
	}
	if want := []int{3, 4, 5, 10}; !slices.Equal(got, want) {
		t.Errorf("comparisons in lines %v, want %v", got, want)
	}
}
