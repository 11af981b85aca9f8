package main

import (
	"fmt"
	"os/exec"
	"strings"
)

// deps checks what the programs are made of: go.mod is tidy, the modules are
// the ones go.sum names, and govulncheck knows of no vulnerability that the
// code reaches. Licences and the reason of each dependency are tests of
// tests/arch. Where the vulnerability database cannot be reached the step says
// so and goes on: that part is then unchecked, not passed.
func deps(govulncheck string) error {
	passed, failed, skipped := 0, 0, 0
	for _, args := range [][]string{{"mod", "tidy", "-diff"}, {"mod", "verify"}} {
		if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
			failed++
			fmt.Printf("deps: go %s: %v\n%s\n", strings.Join(args, " "), err, firstLines(string(out), 20))
			continue
		}
		passed++
	}
	out, err := exec.Command(govulncheck, "./...").CombinedOutput()
	switch {
	case err == nil:
		passed++
	case unreachable(string(out)):
		skipped++
		fmt.Printf("deps: govulncheck was NOT run: the vulnerability database cannot be reached from here (%s)\n",
			lastLine(string(out)))
	default:
		failed++
		fmt.Printf("deps: govulncheck: %v\n%s\n", err, firstLines(string(out), 60))
	}
	fmt.Printf("deps: %d passed, %d failed, %d skipped\n", passed, failed, skipped)
	if failed > 0 {
		return fmt.Errorf("deps: %w", errFailed)
	}
	return nil
}

// unreachable reports whether govulncheck could not fetch its database, as
// opposed to having found something. The tool has no exit status for it.
func unreachable(out string) bool {
	return strings.Contains(out, "fetching vulnerabilities")
}

// lastLine returns the last line of out that is not empty.
func lastLine(out string) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return lines[len(lines)-1]
}

// firstLines returns the first n lines of out, and says where there are more.
func firstLines(out string, n int) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) > n {
		lines = append(lines[:n], fmt.Sprintf("... %d lines more", len(lines)-n))
	}
	return strings.Join(lines, "\n")
}
