package arch

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// licence is a licence that dependencies may have: those that ask for no more
// than their text to be passed on.
type licence struct {
	name  string
	marks []string // phrases, all of which its text has, in one spacing
}

// licences is the allow-list, the more particular ones first.
var licences = []licence{
	{"Apache-2.0", []string{"Apache License", "Version 2.0, January 2004", "Grant of Patent License"}},
	{"BSD-3-Clause", []string{"Redistributions of source code must retain", "Redistributions in binary form must reproduce", "endorse or promote products derived from"}},
	{"BSD-2-Clause", []string{"Redistributions of source code must retain", "Redistributions in binary form must reproduce"}},
	{"MIT", []string{"Permission is hereby granted, free of charge", "The above copyright notice and this permission notice"}},
	{"ISC", []string{"Permission to use, copy, modify, and", "distribute this software for any purpose with or without fee", "appear in all copies"}},
}

// classify returns the name of the licence that text is, or "".
func classify(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	for _, l := range licences {
		if !slices.ContainsFunc(l.marks, func(mark string) bool { return !strings.Contains(text, mark) }) {
			return l.name
		}
	}
	return ""
}

// TestLicence checks that the project has its own licence in full.
func TestLicence(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "LICENSE"))
	if err != nil {
		t.Fatal(err)
	}
	if classify(string(text)) != "Apache-2.0" || !strings.Contains(string(text), "END OF TERMS AND CONDITIONS") {
		t.Error("LICENSE is not the full text of the Apache License, version 2.0")
	}
}

// TestLicencesOfDependencies checks that every module whose code the module or
// its tests are built from lies under a licence of the list.
func TestLicencesOfDependencies(t *testing.T) {
	lines := listModules(t, nil, "-test", "-f", "{{with .Module}}{{.Path}}={{.Dir}}{{end}}", "./...")
	for _, line := range lines {
		path, dir, _ := strings.Cut(line, "=")
		if path == modulePath {
			continue
		}
		if dir == "" {
			t.Errorf("%s is not in the module cache", path)
			continue
		}
		names, err := filepath.Glob(filepath.Join(dir, "LICEN[CS]E*"))
		if err != nil {
			t.Fatal(err)
		}
		copying, err := filepath.Glob(filepath.Join(dir, "COPYING*"))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(append(names, copying...), func(name string) bool {
			text, err := os.ReadFile(name)
			return err == nil && classify(string(text)) != ""
		}) {
			t.Errorf("%s: no licence of the list in %q; is it one that the project may use?", path, names)
		}
	}
}

// TestClassifyRefusesOtherLicences guards the guard.
func TestClassifyRefusesOtherLicences(t *testing.T) {
	for _, text := range []string{
		"",
		"GNU GENERAL PUBLIC LICENSE Version 3, 29 June 2007",
		"Mozilla Public License Version 2.0",
		"Permission is hereby granted, free of charge", // half of MIT
	} {
		if got := classify(text); got != "" {
			t.Errorf("classify(%.30q) = %q, want none", text, got)
		}
	}
}
