package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

func TestReportCountsAndShows(t *testing.T) {
	var out bytes.Buffer
	r := newReport(&out)
	for _, e := range []event{
		{Action: "output", Package: "a", Test: "TestGood", Output: "noise of a passing test\n"},
		{Action: "pass", Package: "a", Test: "TestGood"},
		{Action: "output", Package: "a", Test: "TestBad", Output: "=== RUN   TestBad\n"},
		{Action: "output", Package: "a", Test: "TestBad", Output: "--- FAIL: TestBad\n"},
		{Action: "output", Package: "a", Test: "TestBad", Output: "    a_test.go:3: broken\n"},
		{Action: "fail", Package: "a", Test: "TestBad"},
		{Action: "output", Package: "a", Test: "TestRoot", Output: "=== RUN   TestRoot\n"},
		{Action: "output", Package: "a", Test: "TestRoot", Output: "    a_test.go:9: needs root\n"},
		{Action: "output", Package: "a", Test: "TestRoot", Output: "--- SKIP: TestRoot (0.00s)\n"},
		{Action: "skip", Package: "a", Test: "TestRoot"},
		{Action: "pass", Package: "a", Test: "FuzzParse/seed#0"},
		{Action: "pass", Package: "a", Test: "FuzzParse/1f"},
		{Action: "pass", Package: "a", Test: "FuzzParse"},
		{Action: "output", Package: "a", Test: "TestCrash", Output: "=== RUN   TestCrash\n"},
		{Action: "output", Package: "a", Test: "TestCrash", Output: "fatal error: why\n"},
		{Action: "output", Package: "a", Output: "FAIL\ta\t0.1s\n"},
		{Action: "fail", Package: "a"},
		{Action: "output", Package: "b", Output: "PASS\n"},
		{Action: "output", Package: "b", Output: "ok  \tb\t0.1s\n"},
		{Action: "pass", Package: "b"},
		{Action: "fail", Package: "c"},
		{Action: "build-output", ImportPath: "c", Output: "c.go:1: undefined: x\n"},
	} {
		r.handle(e)
	}
	if r.passed != 4 || r.failed != 2 || r.skipped != 1 {
		t.Errorf("passed %d, failed %d, skipped %d; want 4, a test and a package that does not build, 1", r.passed, r.failed, r.skipped)
	}
	if n := r.replayed[key{"a", "FuzzParse"}]; n != 2 {
		t.Errorf("replayed %d entries of FuzzParse, want 2", n)
	}
	const want = "--- FAIL: TestBad\n    a_test.go:3: broken\n" +
		"skip a TestRoot: a_test.go:9: needs root\n" +
		"FAIL\ta\t0.1s\na TestCrash did not end:\nfatal error: why\nok  \tb\t0.1s\nc.go:1: undefined: x\n"
	if out.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", out.String(), want)
	}
}

// TestReportsAtTheEnd: what tests report comes after all else, a test's lines one
// behind the other however they came, of those that fail as well; other attributes,
// and how go test prints them, do not.
func TestReportsAtTheEnd(t *testing.T) {
	var out bytes.Buffer
	r := newReport(&out)
	for _, e := range []event{
		{Action: "attr", Package: "a", Test: "TestMatrix", Key: "report", Value: "        public"},
		{Action: "output", Package: "a", Test: "TestMatrix", Output: "=== ATTR  TestMatrix report         public\n"},
		{Action: "attr", Package: "a", Test: "TestBad", Key: "report", Value: "half of it"},
		{Action: "attr", Package: "a", Test: "TestMatrix", Key: "owner", Value: "nobody"},
		{Action: "attr", Package: "a", Test: "TestMatrix", Key: "report", Value: "public  direct"},
		{Action: "pass", Package: "a", Test: "TestMatrix"},
		{Action: "output", Package: "a", Test: "TestBad", Output: "=== ATTR  TestBad report half of it\n"},
		{Action: "output", Package: "a", Test: "TestBad", Output: "--- FAIL: TestBad\n"},
		{Action: "fail", Package: "a", Test: "TestBad"},
		{Action: "attr", Package: "b", Test: "TestMatrix", Key: "report", Value: "another"},
		{Action: "pass", Package: "b", Test: "TestMatrix"},
	} {
		r.handle(e)
	}
	r.showReports()
	const want = "--- FAIL: TestBad\n" +
		"a TestMatrix reports:\n        public\npublic  direct\n" +
		"a TestBad reports:\nhalf of it\n" +
		"b TestMatrix reports:\nanother\n"
	if out.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", out.String(), want)
	}
}

// reportVariable has TestReported report.
const reportVariable = "WARREN_STEPS_REPORT"

// TestReported is for TestStepShowsReports, which runs it in a process of its own.
func TestReported(t *testing.T) {
	if line := os.Getenv(reportVariable); line != "" {
		t.Log("not for people")
		t.Attr(reportKey, line)
	}
}

// TestStepShowsReports runs go test as a step does: what a passing test reports is
// printed, spaces and all, and what it logs is not.
func TestStepShowsReports(t *testing.T) {
	var out bytes.Buffer
	r := newReport(&out)
	t.Setenv(reportVariable, "  kept  as it is")
	if err := r.run("-count=1", "-run=^TestReported$", "."); err != nil {
		t.Fatal(err, out.String())
	}
	r.showReports()
	if !strings.HasSuffix(out.String(), "/tests/steps TestReported reports:\n  kept  as it is\n") || strings.Contains(out.String(), "not for people") {
		t.Errorf("printed\n%s", out.String())
	}
}

func TestFuzzDeclarations(t *testing.T) {
	// Put together here, so that the step does not find targets in this file.
	text := strings.ReplaceAll(`
FUNC FuzzA(f *testing.F) {
FUNC TestB(t *testing.T) {
	FUNC FuzzC(f *testing.F) {
FUNC Fuzz(x *testing.F) {
FUNC FuzzyD(n int) {
`, "FUNC", "func")
	var got []string
	for _, m := range declaration.FindAllStringSubmatch(text, -1) {
		got = append(got, m[1])
	}
	if len(got) != 2 || got[0] != "FuzzA" || got[1] != "Fuzz" {
		t.Errorf("found %v, want [FuzzA Fuzz]", got)
	}
}

// TestUsage checks that nothing runs on a wrong command line.
func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		nil,
		{"unknown"},
		{"install", "now"},
		{"test"},
		{"fuzz", "60s"},
		{"fuzz", "soon", "./..."},
		{"policy-cases", "bin/warren"},
		{"man", "bin/warren"},
	} {
		if err := run(args); err == nil {
			t.Errorf("run(%q) = nil, want a usage error", args)
		}
	}
}
