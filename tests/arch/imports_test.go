package arch

import (
	"slices"
	"strings"
	"testing"
)

// entry returns the table's line for a package.
func entry(path string) (pkg, bool) {
	i := slices.IndexFunc(table, func(p pkg) bool { return p.path == path })
	if i < 0 {
		return pkg{}, false
	}
	return table[i], true
}

// matches reports whether one of patterns names path.
func matches(path string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return within(path, p) })
}

func TestEveryPackageIsInTheTable(t *testing.T) {
	there := module(t).packages()
	for _, path := range there {
		if _, ok := entry(path); !ok {
			t.Errorf("package %s is not in the table of tests/arch/packages_test.go: add its line, with its kind and what it may import", path)
		}
	}
	seen := map[string]bool{}
	for _, p := range table {
		if seen[p.path] {
			t.Errorf("%s stands twice in the table", p.path)
		}
		seen[p.path] = true
		if p.why == "" {
			t.Errorf("%s: the table does not say what it is for", p.path)
		}
		if !slices.Contains(there, p.path) {
			t.Errorf("the table has a line for %s, which does not exist: remove the line", p.path)
		}
		for _, pattern := range p.imports {
			if !slices.ContainsFunc(there, func(path string) bool { return within(path, pattern) }) {
				t.Errorf("the table lets %s import %s, which does not exist: remove it", p.path, pattern)
			}
		}
	}
}

func TestImportsFollowTheTable(t *testing.T) {
	for _, s := range module(t).sources {
		p, ok := entry(s.pkg)
		if !ok {
			continue // TestEveryPackageIsInTheTable says so
		}
		for _, path := range s.imports() {
			target, ok := own(path)
			if !ok {
				continue
			}
			if target == s.pkg && s.isTest {
				continue // an external test of the package
			}
			to, ok := entry(target)
			if !ok {
				continue
			}
			switch {
			case s.isTest:
			case to.kind == support && !within(s.pkg, "tests/...") && p.kind != support:
				t.Errorf("%s imports %s, which only tests may", s.name, target)
			case to.kind == program:
				t.Errorf("%s imports the program %s", s.name, target)
			case p.kind == pure && to.kind != pure:
				t.Errorf("%s imports %s: a pure package imports pure packages only", s.name, target)
			case !matches(target, p.imports):
				t.Errorf("%s imports %s; the table lets %s import only [%s]", s.name, target, s.pkg, strings.Join(p.imports, " "))
			}
		}
	}
}

func TestImportsFollowTheLayers(t *testing.T) {
	m := module(t)
	for _, l := range laws {
		if l.why == "" {
			t.Errorf("the law from %v to %v has no reason", l.from, l.to)
		}
		for _, pattern := range slices.Concat(l.from, l.to, l.except) {
			if !strings.Contains(strings.TrimSuffix(pattern, "/..."), "/") {
				continue // the directories at the top are given
			}
			if !slices.ContainsFunc(m.packages(), func(path string) bool { return within(path, pattern) }) {
				t.Errorf("the law from %v to %v names %s, which does not exist", l.from, l.to, pattern)
			}
		}
		for _, s := range m.sources {
			if s.isTest || !matches(s.pkg, l.from) {
				continue
			}
			for _, path := range s.imports() {
				target, ok := own(path)
				if ok && matches(target, l.to) && !matches(target, l.except) {
					t.Errorf("%s imports %s: %s", s.name, target, l.why)
				}
			}
		}
	}
}
