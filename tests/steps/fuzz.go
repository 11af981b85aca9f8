package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// errNothingRan is returned where a fuzz step executed nothing: a green fuzz
// step that fuzzed nothing is worse than none.
var errNothingRan = errors.New("a fuzz target executed nothing")

// target is one fuzz function.
type target struct{ pkg, name string }

// declaration matches the head of a fuzz function.
var declaration = regexp.MustCompile(`(?m)^func (Fuzz\w*)\(\w+ \*testing\.F\)`)

// targets lists the fuzz functions of the packages that patterns name, in the
// order of their packages. It reads the sources, so that the tests of packages
// without a target need not be linked.
func targets(patterns []string) ([]target, error) {
	const format = `{{$p := .}}{{range .TestGoFiles}}{{$p.ImportPath}} {{$p.Dir}}/{{.}}{{"\n"}}{{end}}` +
		`{{range .XTestGoFiles}}{{$p.ImportPath}} {{$p.Dir}}/{{.}}{{"\n"}}{{end}}`
	out, err := exec.Command("go", append([]string{"list", "-f", format}, patterns...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("listing test files: %w", err)
	}
	var found []target
	for line := range strings.Lines(string(out)) {
		pkg, file, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		source, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("looking for fuzz targets: %w", err)
		}
		for _, m := range declaration.FindAllSubmatch(source, -1) {
			found = append(found, target{pkg, string(m[1])})
		}
	}
	slices.SortFunc(found, func(a, b target) int {
		return strings.Compare(a.pkg+" "+a.name, b.pkg+" "+b.name)
	})
	if len(found) == 0 {
		return nil, errors.New("no fuzz target found")
	}
	return found, nil
}

// replay runs the committed corpora, with the race detector off so that it
// stays quick. It fails where a target has no entry.
func replay(patterns []string) error {
	all, err := targets(patterns)
	if err != nil {
		return err
	}
	r := newReport(os.Stdout)
	if err := r.run(append([]string{"-run=^Fuzz", "-timeout=10m"}, packages(all)...)...); err != nil {
		return err
	}
	executions, empty := 0, 0
	for _, t := range all {
		n := r.replayed[key{t.pkg, t.name}]
		executions += n
		if n == 0 {
			empty++
			fmt.Printf("fuzz-replay: %s %s: no entry; commit some under testdata/fuzz/%s\n", t.pkg, t.name, t.name)
		}
	}
	fmt.Printf("fuzz-replay: %d targets, %d executions, %d failed\n", len(all), executions, r.failed)
	if empty > 0 {
		return errNothingRan
	}
	return nil
}

// packages lists the packages of targets, each once.
func packages(all []target) []string {
	var pkgs []string
	for _, t := range all {
		pkgs = append(pkgs, t.pkg)
	}
	return slices.Compact(pkgs)
}

// executions matches the progress lines of go test -fuzz.
var executions = regexp.MustCompile(`execs: (\d+)`)

// fuzz runs every target for the time each, one after the other.
func fuzz(each time.Duration, patterns []string) error {
	all, err := targets(patterns)
	if err != nil {
		return err
	}
	total, failed := 0, 0
	for _, t := range all {
		// Without a bound, shortening one long input that is merely new takes a
		// minute, in which next to nothing else is tried.
		cmd := exec.Command("go", "test", "-run=^$", "-fuzz=^"+t.name+"$", "-fuzztime="+each.String(), "-fuzzminimizetime=10x", t.pkg)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		n := 0
		for _, m := range executions.FindAllStringSubmatch(out.String(), -1) {
			n, _ = strconv.Atoi(m[1]) // the last line counts them all
		}
		total += n
		fmt.Printf("fuzz: %s %s: %d executions\n", t.pkg, t.name, n)
		if err != nil || n == 0 {
			failed++
			fmt.Print(out.String())
		}
	}
	fmt.Printf("fuzz: %d targets, %d executions, %d failed\n", len(all), total, failed)
	if failed > 0 {
		return fmt.Errorf("fuzz: %d targets found an input or executed nothing", failed)
	}
	return nil
}
