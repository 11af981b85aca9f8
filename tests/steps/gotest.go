package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// errFailed is returned by a step that has already said what failed.
var errFailed = errors.New("failed")

// event is one line of `go test -json` (cmd/test2json).
type event struct {
	Action     string
	Package    string
	ImportPath string // of build output
	Test       string
	Output     string
	Key, Value string // of Action "attr"
}

// reportKey is the key of a test's attribute (testing.T.Attr) whose value is a line
// for people: what it measured. It is shown at the end of the step, whether the test
// passed or not. Other attributes are not for this program.
const reportKey = "report"

// key names a test of a package, or with Test empty the package itself.
type key struct{ pkg, test string }

// report gathers the events of one run of go test.
type report struct {
	out                     io.Writer
	passed, failed, skipped int
	replayed                map[key]int // entries that ran, per fuzz target
	output                  map[key][]string
	broken                  map[string]bool // packages of which a test failed
	reports                 map[key][]string
	reporters               []key // in the order in which they began to report
}

func newReport(out io.Writer) *report {
	return &report{out: out, replayed: map[key]int{}, output: map[key][]string{}, broken: map[string]bool{}, reports: map[key][]string{}}
}

// handle takes the next event: it counts tests and prints what a person must
// see, which is failures with their output, skips with their reason, and the
// closing line of each package.
func (r *report) handle(e event) {
	k := key{e.Package, e.Test}
	switch e.Action {
	case "output":
		r.output[k] = append(r.output[k], e.Output)
	case "attr":
		if e.Key == reportKey {
			if _, known := r.reports[k]; !known {
				r.reporters = append(r.reporters, k)
			}
			r.reports[k] = append(r.reports[k], e.Value)
		}
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "pass":
		r.closing(k)
		if e.Test != "" {
			r.passed++
			r.count(k)
		}
		delete(r.output, k)
	case "skip":
		if e.Test != "" {
			r.skipped++
			fmt.Fprintf(r.out, "skip %s %s: %s\n", e.Package, e.Test, reason(r.output[k]))
		}
		delete(r.output, k)
	case "fail":
		// A package that fails without a test of its own that failed, as one
		// that does not build, counts as one.
		if e.Test != "" || !r.broken[e.Package] {
			r.failed++
		}
		r.broken[e.Package] = true
		for _, line := range r.output[k] {
			if !strings.HasPrefix(line, "=== ") { // that a test ran, paused, went on
				fmt.Fprint(r.out, line)
			}
		}
		delete(r.output, k)
		if e.Test == "" {
			r.unended(e.Package)
		}
	}
}

// unended prints what tests of a failed package said that never ended: a program
// that crashes says why in the name of the test that ran just then.
func (r *report) unended(pkg string) {
	for _, k := range slices.SortedFunc(maps.Keys(r.output), func(a, b key) int { return strings.Compare(a.test, b.test) }) {
		if k.pkg != pkg {
			continue
		}
		fmt.Fprintf(r.out, "%s %s did not end:\n", k.pkg, k.test)
		for _, line := range r.output[k] {
			if !strings.HasPrefix(line, "=== ") {
				fmt.Fprint(r.out, line)
			}
		}
		delete(r.output, k)
	}
}

// closing prints the line go test ends a passing package with.
func (r *report) closing(k key) {
	if k.test != "" {
		return
	}
	for _, line := range r.output[k] {
		if strings.HasPrefix(line, "ok  \t") {
			fmt.Fprint(r.out, line)
		}
	}
}

// showReports prints what tests reported, each under its name.
func (r *report) showReports() {
	for _, k := range r.reporters {
		fmt.Fprintf(r.out, "%s %s reports:\n", k.pkg, k.test)
		for _, line := range r.reports[k] {
			fmt.Fprintln(r.out, line)
		}
	}
}

// count notes the seed of a fuzz target that just ran as a test.
func (r *report) count(k key) {
	target, _, found := strings.Cut(k.test, "/")
	if found && strings.HasPrefix(target, "Fuzz") {
		r.replayed[key{k.pkg, target}]++
	}
}

// reason is what a skipped test said, in one line.
func reason(output []string) string {
	var said []string
	for _, line := range output {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "---") {
			said = append(said, line)
		}
	}
	if len(said) == 0 {
		return "no reason given"
	}
	return strings.Join(said, " ")
}

// run executes go test with args and feeds its events to r. It returns
// errFailed where go test does not exit with 0.
func (r *report) run(args ...string) error {
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("steps: opening the output of go test: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("steps: starting go test: %w", err)
	}
	lines := bufio.NewReader(stdout)
	for {
		line, err := lines.ReadBytes('\n')
		var e event
		switch {
		case len(line) == 0:
		case json.Unmarshal(line, &e) == nil:
			r.handle(e)
		default:
			r.out.Write(line)
		}
		if err != nil {
			break
		}
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("go test: %w: %w", errFailed, err)
	}
	return nil
}

// test runs go test with args under the name of a step, and prints what tests
// reported at the end. It fails where a test fails, and where none ran.
func test(name string, args []string) error {
	r := newReport(os.Stdout)
	err := r.run(args...)
	r.showReports()
	fmt.Printf("%s: %d passed, %d failed, %d skipped\n", name, r.passed, r.failed, r.skipped)
	if err == nil && r.passed+r.skipped == 0 {
		return fmt.Errorf("%s: no test ran", name)
	}
	return err
}
