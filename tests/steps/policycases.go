package main

import (
	"fmt"
	"os"
	"os/exec"
)

// policyCases runs the checker of the captured policies against the command
// `warren policy compile`. The captures are no part of the repository and the
// command may not be built in; the step says so and passes.
func policyCases(warren, checker string) error {
	if _, err := os.Stat(checker); err != nil {
		fmt.Printf("policy-cases: 0 passed, 0 failed, 1 skipped: %s is not there\n", checker)
		return nil
	}
	if out, err := exec.Command(warren, "policy", "compile", "--help").CombinedOutput(); err != nil {
		fmt.Printf("policy-cases: 0 passed, 0 failed, 1 skipped: %s has no command `policy compile`: %s\n", warren, firstLine(out))
		return nil
	}
	cmd := exec.Command("python3", checker, warren, "policy", "compile")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("policy-cases: %w", err)
	}
	return nil
}

// firstLine returns out up to its first line break.
func firstLine(out []byte) string {
	for i, c := range out {
		if c == '\n' {
			return string(out[:i])
		}
	}
	return string(out)
}
