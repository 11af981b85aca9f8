package policy

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// run carries out one command line and returns what it printed and the exit
// status.
func run(stdin string, args ...string) (out, problems string, status int) {
	var stdout, stderr bytes.Buffer
	c := Command()
	c.SetArgs(args)
	c.SetIn(strings.NewReader(stdin))
	c.SetOut(&stdout)
	c.SetErr(&stderr)
	err := c.Execute()
	if err != nil {
		fmt.Fprintln(&stderr, "policy:", err)
	}
	return stdout.String(), stderr.String(), Status(err)
}

// TestSessions replays command lines from testdata/*.session: a line that
// begins with "$ " is run, the lines after it are what it prints, and the last
// of them its exit status.
func TestSessions(t *testing.T) {
	files, err := filepath.Glob("testdata/*.session")
	if err != nil || len(files) == 0 {
		t.Fatal("no sessions", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for line := range strings.Lines(string(want)) {
				command, ok := strings.CutPrefix(line, "$ policy ")
				if !ok {
					continue
				}
				args := strings.Fields(command)
				for i, a := range args {
					if strings.HasSuffix(a, ".hujson") || strings.HasSuffix(a, "inventory.json") {
						args[i] = filepath.Join("testdata", a)
					}
				}
				out, problems, status := run("", args...)
				fmt.Fprintf(&got, "$ policy %s%s%s[status %d]\n\n", command, out, problems, status)
			}
			text := strings.ReplaceAll(got.String(), "testdata"+string(filepath.Separator), "")
			if *update {
				if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if text != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", text, want)
			}
		})
	}
}

func TestStandardInputAndFormat(t *testing.T) {
	const loose = "// why\n{\"acls\":[],}"
	out, _, status := run(loose, "format", "-")
	if status != 0 || !strings.Contains(out, "// why") {
		t.Errorf("format printed %q with status %d", out, status)
	}
	name := filepath.Join(t.TempDir(), "p.hujson")
	if err := os.WriteFile(name, []byte(loose), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, status := run("", "format", "--check", name); status != 1 {
		t.Errorf("--check of a loose file has status %d", status)
	}
	if _, _, status := run("", "format", "--write", name); status != 0 {
		t.Errorf("--write has status %d", status)
	}
	got, err := os.ReadFile(name)
	if err != nil || string(got) != out {
		t.Errorf("the file holds %q, %v", got, err)
	}
	if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode became %v, %v", info.Mode(), err)
	}
	if _, _, status := run("", "format", "--check", name); status != 0 {
		t.Errorf("--check of a formatted file has status %d", status)
	}
}

func TestMissingFile(t *testing.T) {
	c := Command()
	c.SetArgs([]string{"check", filepath.Join(t.TempDir(), "none")})
	if err := c.Execute(); !errors.Is(err, os.ErrNotExist) || Status(err) != 1 {
		t.Errorf("got %v", err)
	}
}
