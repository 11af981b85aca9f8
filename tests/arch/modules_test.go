package arch

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// update rewrites testdata/modules instead of comparing with it.
var update = flag.Bool("update", false, "rewrite testdata/modules")

// dependency is a third-party import path that packages of the module use, and
// everything below it that has no line of its own.
type dependency struct {
	path string
	why  string
	// importers are the only packages (patterns) that may import it. Tests, and
	// what stands in tests/, may import whatever has a line.
	importers []string
}

// dependencies has one line for every third-party import of the module.
var dependencies = []dependency{
	{
		path: "github.com/coder/websocket", why: "control channel and relay through every proxy (RFC 6455)",
		importers: []string{"coordinator/wire/channel", "netstack/relay/relayhttp"},
	},
	{
		path: "github.com/flynn/noise", why: "Noise IK, the handshake of the control channel",
		importers: []string{"coordinator/wire/channel"},
	},
	{
		path: "github.com/gaissmai/bart", why: "longest-prefix match that is immutable and fast",
		importers: []string{"netstack/route"},
	},
	{
		path: "github.com/google/nftables", why: "NATs and firewalls of the kernel without running other programs",
		importers: []string{"netstack/router"},
	},
	{
		path: "github.com/huin/goupnp", why: "UPnP IGD: descriptions of routers, and SOAP to their services",
		importers: []string{"netstack/portmap"},
	},
	{
		path: "github.com/mattn/go-sqlite3", why: "the coordinator's database, in the process",
		importers: []string{"coordinator/store"},
	},
	{
		path: "github.com/prometheus/client_golang", why: "metrics in the form that monitoring reads",
		importers: []string{"client/agent", "coordinator/server", "netstack/engine", "netstack/relay/relayserver"},
	},
	{
		path: "github.com/rogpeppe/go-internal", why: "testscript: what the programs do, as text",
	},
	{
		path: "github.com/spf13/cobra", why: "command lines with help and completion as people expect them",
		importers: []string{"client/policy", "cmd/internal/commandline", "cmd/warren", "cmd/warren-coordinator", "cmd/warren-relay"},
	},
	{
		path: "github.com/spf13/pflag", why: "cobra's flags by name: a relay compares those of its start with those of now",
		importers: []string{"cmd/warren-relay"},
	},
	{
		path: "github.com/tailscale/hujson", why: "the policy's text: JSON with comments and trailing commas, with positions",
		importers: []string{"acl/policy"},
	},
	{
		path: "github.com/vishvananda/netlink", why: "devices, addresses and routes of the kernel without running other programs",
		importers: []string{"client/osconf", "netstack/portmap", "netstack/router", "netstack/sock", "netstack/tun"},
	},
	{
		path: "github.com/vishvananda/netns", why: "network namespaces for tests with real sockets",
	},
	{
		path: "go.yaml.in/yaml/v3", why: "configuration files as administrators write them, with the line of what is wrong",
		importers: []string{"cmd/warren-relay"},
	},
	{
		path: "golang.org/x/crypto", why: "ChaCha20-Poly1305 and BLAKE2, which the standard library lacks",
		importers: []string{"netstack/disco", "netstack/wg"},
	},
	{
		path: "golang.org/x/net", why: "echo requests from sockets that need no privileges; a SOCKS5 client that is not ours, to test our server with",
		importers: []string{"netstack/userstack"},
	},
	{
		path: "golang.org/x/sys", why: "system calls that package syscall has frozen without",
		importers: []string{"client/clock", "client/localapi", "client/osconf", "client/statefile", "netstack/portmap", "netstack/router", "netstack/sock", "netstack/tun"},
	},
	{
		path: "golang.org/x/time", why: "rate limits",
		importers: []string{"coordinator/server"},
	},
	{
		path: "golang.zx2c4.com/wireguard", why: "WireGuard itself, upstream and unforked",
		importers: []string{"netstack/wg"},
	},
	{
		path: "golang.zx2c4.com/wireguard/tun", why: "WireGuard's TUN devices, with the kernel's segmentation offload",
		importers: []string{"netstack/tun", "netstack/wg"},
	},
	{
		path: "gvisor.dev/gvisor", why: "TCP, UDP and ICMP in the process, for nodes without root",
		importers: []string{"netstack/userstack"},
	},
	{
		path: "google.golang.org/protobuf", why: "messages of the control protocol, which other programs may read and old ones must skip over",
		importers: []string{"acl/flowlog", "acl/flowlog/flowlogpb", "coordinator/wire", "coordinator/wire/wirepb"},
	},
}

// dependencyFor returns the line with the longest path that import path is at
// or below.
func dependencyFor(path string) (dependency, bool) {
	var best dependency
	for _, d := range dependencies {
		if within(path, d.path+"/...") && len(d.path) > len(best.path) {
			best = d
		}
	}
	return best, best.path != ""
}

func TestThirdPartyImports(t *testing.T) {
	used := map[string]bool{} // dependencies, and "dependency importer", that occur
	said := map[string]bool{} // complaints, each once for a package
	complain := func(s *source, what string) {
		if !said[s.pkg+what] {
			said[s.pkg+what] = true
			t.Errorf("%s: %s", s.name, what)
		}
	}
	for _, s := range module(t).sources {
		for _, path := range s.imports() {
			if _, ok := own(path); ok || standard(path) {
				continue
			}
			d, ok := dependencyFor(path)
			if !ok {
				complain(s, "imports "+firstElements(path, 3)+", which is not in the table of tests/arch/modules_test.go: add its line, with the reason")
				continue
			}
			used[d.path] = true
			if s.isTest || within(s.pkg, "tests/...") {
				continue
			}
			for _, pattern := range d.importers {
				if within(s.pkg, pattern) {
					used[d.path+" "+pattern] = true
				}
			}
			if !matches(s.pkg, d.importers) {
				complain(s, "imports "+d.path+", which only ["+strings.Join(d.importers, " ")+"] and tests may")
			}
		}
	}
	for _, d := range dependencies {
		if d.why == "" {
			t.Errorf("%s has no reason", d.path)
		}
		if !used[d.path] {
			t.Errorf("nothing imports %s: remove its line", d.path)
		}
		for _, pattern := range d.importers {
			if !used[d.path+" "+pattern] {
				t.Errorf("the table lets %s import %s, which it does not: remove it", pattern, d.path)
			}
		}
	}
}

// firstElements returns the first n elements of an import path.
func firstElements(path string, n int) string {
	elements := strings.Split(path, "/")
	return strings.Join(elements[:min(n, len(elements))], "/")
}

// TestGoModHasAReasonForEachModule checks that go.mod requires directly what
// the table above has a line for, and nothing else.
func TestGoModHasAReasonForEachModule(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	direct := directRequirements(string(text))
	for _, path := range direct {
		if !slices.ContainsFunc(dependencies, func(d dependency) bool { return within(d.path, path+"/...") }) {
			t.Errorf("go.mod requires %s, for which the table has no line", path)
		}
	}
}

// directRequirements lists the modules that go.mod requires without the
// comment "// indirect".
func directRequirements(text string) []string {
	var direct []string
	block := false
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 2 && fields[0] == "require" && fields[1] == "(":
			block = true
		case len(fields) == 1 && fields[0] == ")":
			block = false
		case len(fields) >= 3 && fields[0] == "require":
			fields = fields[1:]
			fallthrough
		case block && len(fields) >= 2:
			if !strings.HasSuffix(strings.TrimSpace(line), "// indirect") {
				direct = append(direct, fields[0])
			}
		}
	}
	return direct
}

// binary is a program of cmd and the systems it is built for.
type binary struct {
	name    string
	cgo     string
	systems []string
}

// binaries says how each directory of cmd is built.
var binaries = []binary{
	{"warren", "0", []string{"darwin", "linux", "windows"}},
	{"warren-coordinator", "1", []string{"linux"}},
	{"warren-relay", "0", []string{"linux"}},
}

// TestBinaryModules compares the modules that each program is built from with
// the committed list, so that a new one is seen in review. `make generate`
// rewrites the lists.
func TestBinaryModules(t *testing.T) {
	there := map[string]bool{}
	for _, path := range module(t).packages() {
		if name, ok := strings.CutPrefix(path, "cmd/"); ok && !strings.Contains(name, "/") {
			there[name] = true
		}
	}
	for _, b := range binaries {
		if !there[b.name] {
			t.Errorf("cmd/%s does not exist: remove its line", b.name)
			continue
		}
		delete(there, b.name)
		got := b.modules(t)
		name := filepath.Join("testdata", "modules", b.name+".txt")
		if *update {
			if err := os.WriteFile(name, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if !bytes.Equal(got, want) {
			t.Errorf("the modules of %s are not those of %s (run `make generate` and look at the difference):\n%s", b.name, name, got)
		}
	}
	for name := range there {
		t.Errorf("cmd/%s has no line in tests/arch/modules_test.go", name)
	}
}

// modules lists the third-party modules of the program, one a line, each with
// the systems that it is built into.
func (b binary) modules(t *testing.T) []byte {
	t.Helper()
	systems := map[string][]string{}
	for _, system := range b.systems {
		for _, path := range listModules(t, []string{"GOOS=" + system, "GOARCH=amd64", "CGO_ENABLED=" + b.cgo},
			"-f", "{{with .Module}}{{.Path}}{{end}}", "./cmd/"+b.name) {
			systems[path] = append(systems[path], system)
		}
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "# Modules built into %s, and for which systems. Written by make generate.\n", b.name)
	for _, path := range slices.Sorted(maps.Keys(systems)) {
		if path != modulePath {
			fmt.Fprintf(&out, "%s %s\n", path, strings.Join(systems[path], " "))
		}
	}
	return out.Bytes()
}

// listModules runs go list -deps in the module's directory and returns its
// lines, each once.
func listModules(t *testing.T, env []string, args ...string) []string {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-deps"}, args...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %s: %v\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	lines := strings.Fields(string(out))
	slices.Sort(lines)
	return slices.Compact(lines)
}
