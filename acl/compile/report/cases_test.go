package report_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/warren-overlay/warren/acl/compile/report"
)

// casesDir holds the captured answers, beside the repository and no part of
// it.
const casesDir = "../../../../shared/policy-cases"

type capturedCase struct {
	ID         string                                `json:"id"`
	Policy     json.RawMessage                       `json:"policy"`
	Users      json.RawMessage                       `json:"users"`
	Nodes      []capturedNode                        `json:"nodes"`
	Accepted   bool                                  `json:"accepted"`
	Message    string                                `json:"message"`
	Filter     map[string][]capturedRule             `json:"filter"`
	Peers      map[string][]string                   `json:"peers"`
	SSH        map[string][]report.SSHAnswer         `json:"ssh"`
	Attributes map[string]map[string]json.RawMessage `json:"attributes"`
}

type capturedNode struct {
	Name     string   `json:"name"`
	IPv4     string   `json:"ipv4"`
	IPv6     string   `json:"ipv6"`
	Approved []string `json:"approved_routes"`
}

// capturedRule is read from both sides, so that they are compared in the form
// in which they are printed.
type capturedRule struct {
	Protocols    []int                     `json:"protocols"`
	Sources      []string                  `json:"sources"`
	Destinations []report.DestinationRange `json:"destinations"`
	Capabilities []report.CapabilityAnswer `json:"capabilities"`
}

// TestCapturedCases compares the answers with those that a hosted service gave
// to the same policies, by meaning: who reaches which address, protocol and
// port, who sees whom, who logs in as whom, and which attributes and
// capabilities a device has.
func TestCapturedCases(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(casesDir, "*.jsonl"))
	if err != nil || len(files) == 0 {
		t.Skipf("the captured cases are not at %s: they are no part of the repository", casesDir)
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 16<<20)
		for lines.Scan() {
			var raw map[string]json.RawMessage
			var c capturedCase
			if err := json.Unmarshal(lines.Bytes(), &raw); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			t.Run(c.ID, func(t *testing.T) { runCase(t, &c, raw) })
		}
		if err := lines.Err(); err != nil {
			t.Fatal(err)
		}
	}
}

func runCase(t *testing.T, c *capturedCase, raw map[string]json.RawMessage) {
	inventory, err := json.Marshal(map[string]json.RawMessage{"users": raw["users"], "nodes": raw["nodes"]})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := report.ParseInventory(inventory)
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := json.Indent(&text, c.Policy, "", "  "); err != nil {
		t.Fatal(err)
	}
	answer, p := report.Compile(text.Bytes(), dir)
	if answer.Accepted != c.Accepted {
		t.Fatalf("accepted %v, want %v %q; errors %v", answer.Accepted, c.Accepted, c.Message, answer.Errors)
	}
	if !c.Accepted {
		if len(answer.Errors) == 0 || answer.Errors[0].Line == 0 {
			t.Fatalf("refused without a message or a place: %v", answer.Errors)
		}
		return
	}
	report.Expand(answer, p, dir)
	// Through JSON, as a user would see it.
	var printed struct {
		Nodes map[string]struct {
			Filter     []capturedRule             `json:"filter"`
			Peers      []string                   `json:"peers"`
			SSH        []report.SSHAnswer         `json:"ssh"`
			Attributes map[string]json.RawMessage `json:"attributes"`
		} `json:"nodes"`
	}
	if err := json.Unmarshal(report.JSON(answer), &printed); err != nil {
		t.Fatal(err)
	}
	space := addressSpace(c)
	for name, want := range c.Filter {
		got := printed.Nodes[name].Filter
		if diff := compareTables(filterTable(c, name, space, want, got), filterTable(c, name, space, got, want)); diff != "" {
			t.Errorf("%s: filter: %s", name, diff)
		}
		if diff := compareTables(capabilityTable(space, want), capabilityTable(space, got)); diff != "" {
			t.Errorf("%s: capabilities: %s", name, diff)
		}
	}
	for name, want := range c.Peers {
		if got := printed.Nodes[name].Peers; !slices.Equal(got, want) {
			t.Errorf("%s: peers %v, want %v", name, got, want)
		}
	}
	for name, want := range c.SSH {
		compareSSH(t, name, want, printed.Nodes[name].SSH)
	}
	compareAttributes(t, c, func(name string) map[string]json.RawMessage { return printed.Nodes[name].Attributes })
}

func prefix(t string) netip.Prefix {
	if p, err := netip.ParsePrefix(t); err == nil {
		return p
	}
	a := netip.MustParseAddr(t)
	return netip.PrefixFrom(a, a.BitLen())
}

// addressSpace returns points that tell apart what the inventory can: every
// device's addresses, and of every route the first and a middle address.
func addressSpace(c *capturedCase) map[string][]netip.Addr {
	out := map[string][]netip.Addr{}
	for _, n := range c.Nodes {
		points := []netip.Addr{netip.MustParseAddr(n.IPv4), netip.MustParseAddr(n.IPv6)}
		for _, r := range n.Approved {
			p := prefix(r)
			points = append(points, p.Addr(), p.Addr().Next())
			for _, m := range c.Nodes {
				for _, inner := range m.Approved {
					if q := prefix(inner); p.Overlaps(q) && q.Bits() > p.Bits() {
						points = append(points, q.Addr())
					}
				}
			}
		}
		out[n.Name] = points
	}
	return out
}

func covers(list []string, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(t string) bool { return prefix(t).Contains(a) })
}

// filterTable lists what the rules admit, as "source > destination port
// protocol", at the ports at which either side has a boundary.
func filterTable(c *capturedCase, name string, space map[string][]netip.Addr, rules, others []capturedRule) map[string]bool {
	ports := map[int]bool{0: true, 65535: true}
	for _, list := range [2][]capturedRule{rules, others} {
		for _, r := range list {
			for _, d := range r.Destinations {
				for _, p := range []int{d.First - 1, d.First, d.Last, d.Last + 1} {
					if 0 <= p && p <= 65535 {
						ports[p] = true
					}
				}
			}
		}
	}
	out := map[string]bool{}
	for _, r := range rules {
		for peer, points := range space {
			for _, source := range points {
				if peer == name || slices.Contains(space[name], source) || !covers(r.Sources, source) {
					continue
				}
				for _, d := range r.Destinations {
					for _, target := range space[name] {
						if !prefix(d.Prefix).Contains(target) {
							continue
						}
						for port := range ports {
							for _, protocol := range r.Protocols {
								if d.First <= port && port <= d.Last {
									out[fmt.Sprintf("%v > %v %d %d", source, target, port, protocol)] = true
								}
							}
						}
					}
				}
			}
		}
	}
	return out
}

func capabilityTable(space map[string][]netip.Addr, rules []capturedRule) map[string]bool {
	out := map[string]bool{}
	for _, r := range rules {
		for _, points := range space {
			for _, source := range points {
				if !covers(r.Sources, source) {
					continue
				}
				for _, capability := range r.Capabilities {
					values, _ := json.Marshal(capability.Values)
					var plain any
					_ = json.Unmarshal(values, &plain)
					out[fmt.Sprintf("%v > %v %s %v", source, prefix(capability.Prefix), capability.Name, plain)] = true
				}
			}
		}
	}
	return out
}

func compareTables(want, got map[string]bool) string {
	var diff []string
	for k := range want {
		if !got[k] {
			diff = append(diff, "missing "+k)
		}
	}
	for k := range got {
		if !want[k] {
			diff = append(diff, "too much "+k)
		}
	}
	slices.Sort(diff)
	if len(diff) > 5 {
		diff = append(diff[:5], "...")
	}
	return strings.Join(diff, "; ")
}

// login is the verdict of the first rule that matches.
func login(rules []report.SSHAnswer, from, user string) string {
	for _, r := range rules {
		if !slices.ContainsFunc(r.Principals, func(p report.Principal) bool { return p.NodeIP == from }) {
			continue
		}
		local, ok := r.SSHUsers[user]
		if !ok {
			local = r.SSHUsers["*"]
		}
		switch {
		case local == "":
		case local == "=":
			return verdictOf(r) + " as " + user
		default:
			return verdictOf(r) + " as " + local
		}
	}
	return "denied"
}

func verdictOf(r report.SSHAnswer) string {
	if r.Action.HoldAndDelegate != "" {
		return "check"
	}
	return "accept"
}

func compareSSH(t *testing.T, name string, want, got []report.SSHAnswer) {
	users, from := map[string]bool{"root": true, "somebody": true}, map[string]bool{}
	for _, r := range slices.Concat(want, got) {
		for user := range r.SSHUsers {
			users[user] = user != "*"
		}
		for _, p := range r.Principals {
			from[p.NodeIP] = true
		}
	}
	for address := range from {
		for user, named := range users {
			if a, b := login(want, address, user), login(got, address, user); named && a != b {
				t.Errorf("%s: %s from %s is %s, want %s", name, user, address, b, a)
			}
		}
	}
}

func compareAttributes(t *testing.T, c *capturedCase, got func(string) map[string]json.RawMessage) {
	var doc struct {
		NodeAttrs []struct {
			Attr []string `json:"attr"`
		} `json:"nodeAttrs"`
	}
	if err := json.Unmarshal(c.Policy, &doc); err != nil {
		t.Fatal(err)
	}
	for name, want := range c.Attributes {
		for _, entry := range doc.NodeAttrs {
			for _, attribute := range entry.Attr {
				_, wanted := want[attribute]
				if _, found := got(name)[attribute]; found != wanted {
					t.Errorf("%s: attribute %s is %v, want %v", name, attribute, found, wanted)
				}
			}
		}
	}
}
