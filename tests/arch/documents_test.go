package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// documents lists the pages that people read, from the module's directory.
func documents(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"*.md", "docs/*.md", "tests/*/*.md"} {
		names, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, names...)
	}
	if len(all) < 5 {
		t.Fatalf("found only %d documents", len(all))
	}
	return all
}

var (
	link        = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	makeTarget  = regexp.MustCompile("(?m)(?:`|^\\$ )make ([a-z][a-z-]*)")
	declaration = regexp.MustCompile(`(?m)^([a-z-]+):`)
	treePath    = regexp.MustCompile("`((?:acl|client|cmd|coordinator|docs|netstack|tests)/[a-zA-Z0-9_./-]+)`")
)

// TestDocumentsPointAtWhatIsThere checks that links, paths and make targets in
// the documents exist.
func TestDocumentsPointAtWhatIsThere(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	targets := map[string]bool{}
	for _, m := range declaration.FindAllStringSubmatch(string(makefile), -1) {
		targets[m[1]] = true
	}
	for _, name := range documents(t) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s links to %s, which is not there", name, m[1])
			}
		}
		for _, m := range treePath.FindAllStringSubmatch(string(text), -1) {
			// A path may end in a name of the package: acl/authority.Admit.
			path := m[1]
			if _, err := os.Stat(filepath.Join(root, path)); err == nil {
				continue
			}
			path, _, _ = strings.Cut(path, ".")
			if _, err := os.Stat(filepath.Join(root, path)); err != nil {
				t.Errorf("%s speaks of %s, which is not there", name, m[1])
			}
		}
		for _, m := range makeTarget.FindAllStringSubmatch(string(text), -1) {
			if !targets[m[1]] {
				t.Errorf("%s says `make %s`, which is no target", name, m[1])
			}
		}
	}
}
