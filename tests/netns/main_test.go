//go:build linux

package netns

import (
	"flag"
	"os"
	"testing"

	"github.com/warren-overlay/warren/tests/lab"
)

func TestMain(m *testing.M) {
	code := m.Run()
	lab.RemovePrograms()
	os.Exit(code)
}

// long makes the faults run for as long as reliability.md has them.
var long = flag.Bool("long", false, "give the faults their full time; for make soak")

// writeReadme has TestMatrix put what it measured into README.md.
var writeReadme = flag.Bool("readme", false, "have TestMatrix write what it measures into README.md")

// times returns how often something is done: short in make test.
func times(short, full int) int {
	if *long {
		return full
	}
	return short
}

// stops returns for how many seconds a program is stopped (fault F12): briefly, for
// longer than WireGuard's sessions live, and than it keeps their keys.
func stops() []int {
	if *long {
		return []int{30, 200, 700}
	}
	return []int{30}
}
