package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// lists is where the per-binary lists of modules are kept; tests/arch writes
// them.
const lists = "tests/arch/testdata/modules"

// generate deletes what is generated, makes it again and compares it with what
// was there. It fails where the two differ, which means that somebody edited
// generated code, or a source without regenerating, and leaves the new files
// for them to commit.
func generate() error {
	before, err := generated()
	if err != nil {
		return err
	}
	for name := range before {
		if err := os.Remove(name); err != nil {
			return fmt.Errorf("generate: %w", err)
		}
	}
	for _, args := range [][]string{
		{"generate", "./..."},
		{"test", "-count=1", "-run=^TestBinaryModules$", "./tests/arch", "-update"},
	} {
		if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
			for name, content := range before { // a failed generator must not cost the tree
				if err := os.WriteFile(name, content, 0o644); err != nil {
					return fmt.Errorf("generate: putting %s back: %w", name, err)
				}
			}
			return fmt.Errorf("generate: go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	after, err := generated()
	if err != nil {
		return err
	}
	changed := 0
	for name, content := range after {
		if !bytes.Equal(before[name], content) {
			changed++
			fmt.Printf("generate: %s was not up to date\n", name)
		}
	}
	for name := range before {
		if _, ok := after[name]; !ok {
			changed++
			fmt.Printf("generate: %s is no longer generated\n", name)
		}
	}
	fmt.Printf("generate: %d files, %d changed\n", len(after), changed)
	if changed > 0 {
		return fmt.Errorf("generate: commit the files above: %w", errFailed)
	}
	return nil
}

// generated returns the generated files of the tree, by path: those that
// protoc-gen-go writes, and the lists of modules.
func generated() (map[string][]byte, error) {
	out, err := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard",
		"*.pb.go", lists+"/*").Output()
	if err != nil {
		return nil, fmt.Errorf("generate: listing generated files: %w", err)
	}
	files := map[string][]byte{}
	for name := range strings.Lines(string(out)) {
		name = strings.TrimSpace(name)
		content, err := os.ReadFile(name)
		if os.IsNotExist(err) {
			continue // deleted, not yet committed
		}
		if err != nil {
			return nil, fmt.Errorf("generate: %w", err)
		}
		files[name] = content
	}
	return files, nil
}
