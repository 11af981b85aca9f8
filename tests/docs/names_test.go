package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var codeDeclaration = regexp.MustCompile(`(?m)^\t\w+ +Code = "([a-z-]+)"`)

// TestHealthCodesAreExplained holds the table of troubleshooting.md against the
// codes that there are: each has a line, and each line a code.
func TestHealthCodesAreExplained(t *testing.T) {
	source, err := os.ReadFile(filepath.Join(root, "client", "health", "fact.go"))
	if err != nil {
		t.Fatal(err)
	}
	var codes []string
	for _, m := range codeDeclaration.FindAllStringSubmatch(string(source), -1) {
		codes = append(codes, m[1])
	}
	if len(codes) < 10 {
		t.Fatalf("found only the codes %q", codes)
	}
	text, err := os.ReadFile(filepath.Join(root, "docs", "troubleshooting.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "## Health messages")
	table, _, _ = strings.Cut(table, "\n## ")
	var explained []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|").FindAllStringSubmatch(table, -1) {
		explained = append(explained, m[1])
	}
	for _, code := range codes {
		if !slices.Contains(explained, code) {
			t.Errorf("docs/troubleshooting.md does not explain %s", code)
		}
	}
	for _, code := range explained {
		if !slices.Contains(codes, code) {
			t.Errorf("docs/troubleshooting.md explains %s, which there is not", code)
		}
	}
}

var metricName = regexp.MustCompile(`^warren_[a-z_]+`)

// TestMetricsNamedAreThere checks that metrics that the documents name are
// declared somewhere in the programs.
func TestMetricsNamedAreThere(t *testing.T) {
	var declared strings.Builder
	for _, name := range []string{
		"netstack/engine/metrics.go", "netstack/engine/events.go", "netstack/relay/relayserver/metrics.go", "client/agent/metrics.go", "client/agent/userspace.go", "coordinator/server/metrics.go",
	} {
		source, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		declared.Write(source)
	}
	named := 0
	for _, p := range pages(t) {
		for _, s := range p.inline {
			m := metricName.FindString(s.text)
			if m == "" || m == "warren_" {
				continue
			}
			named++
			short := strings.TrimPrefix(strings.TrimPrefix(m, "warren_"), "coordinator_")
			if !strings.Contains(declared.String(), `"`+m+`"`) && !strings.Contains(declared.String(), `"`+short+`"`) {
				t.Errorf("%s:%d: nothing declares the metric %s", p.name, s.line, m)
			}
		}
	}
	if named < 5 {
		t.Errorf("found only %d metrics in the documents", named)
	}
}
