//go:build linux

package netns

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/tests/lab"
)

// TestCandidateIsReported puts a policy into audit that denies what is open and
// admits what is not, and takes it away, on the kernel's TUN device and on the
// stack in user space: both ends' records say what it would change, refused
// connections stay refused, and open ones lose nothing.
func TestCandidateIsReported(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "--tun", "userspace")
	file := filepath.Join(t.TempDir(), "candidate.hujson")
	if err := os.WriteFile(file, []byte(`{
		"groups": {"group:eng": ["bob@example.com"], "group:ops": ["alice@example.com"]},
		"tagOwners": {"tag:db": [], "tag:web": []},
		"grants": [{"id": "ops", "src": ["group:ops"], "dst": ["tag:db", "tag:web"], "ip": ["tcp:22"]}],
	}`), 0o600); err != nil {
		t.Fatal(err)
	}
	targets := []struct {
		node *lab.Node
		udp  int // a port that the policy admits
	}{{n.db, 5353}, {n.web, 8080}}
	local := map[string]string{"-4": "127.0.0.1", "-6": "::1"}
	start := func(name string, node *lab.Node, family string, port int) *cutFlow {
		listen := address(node, family, port)
		if node == n.web {
			listen = joined(local[family], port)
		}
		f := startUDP(t, name+" "+node.Host.Name+family, n.laptop.Host, node.Host, listen, address(node, family, port))
		lab.Eventually(t, 20*time.Second, func() error {
			if got := f.arrived.Load(); got < 10 {
				return fmt.Errorf("%s: %d packets arrived", f.name, got)
			}
			return nil
		})
		return f
	}
	var open []*cutFlow
	for _, target := range targets {
		for _, family := range families {
			f := start("opened before", target.node, family, target.udp)
			f.base.Store(f.sent.Load() + 5)
			open = append(open, f)
		}
	}
	n.coordinator.Admin("policy", "audit", "set", file)
	for _, target := range targets {
		for _, family := range families {
			to := target.node.IP(family)
			lab.Eventually(t, 20*time.Second, func() error {
				out, err := n.laptop.Try("debug", "why", to, "tcp:22")
				if err == nil || !strings.HasPrefix(out, "denied: no rule") || !strings.Contains(out, `the candidate policy (epoch 1) would allow it by rule "ops"`) {
					return fmt.Errorf("debug why says, with an error %t: %s", err != nil, out)
				}
				return nil
			})
			if err := lab.EchoTCP(within(t, 3*time.Second), n.laptop.Host, address(target.node, family, 22)); err == nil {
				t.Error("a candidate has opened a port")
			}
			record := findFlow(t, n.laptop, to, 22)
			if record["verdict"] != "denied" || record["candidate"] != "would_allow" || record["candidate_rule"] != "ops" || record["candidate_epoch"] != 1.0 {
				t.Errorf("record %v", record)
			}
			for _, node := range []*lab.Node{n.laptop, target.node} {
				// What the candidate denies is all that was open before.
				if out := node.CLI("flows"); strings.Contains(out, "candidate 1: would_deny") {
					t.Errorf("%s was asked about a flow that was open:\n%s", node.Host.Name, out)
				}
			}
		}
	}
	// What is opened now is opened as ever, and written down at both ends.
	if err := lab.EchoTCP(within(t, 3*time.Second), n.laptop.Host, address(n.db, "-4", 5432)); err != nil && !strings.Contains(err.Error(), "refused") {
		t.Errorf("what the policy admits: %v", err)
	}
	for _, node := range []*lab.Node{n.laptop, n.db} {
		lab.Eventually(t, 20*time.Second, func() error {
			if out := node.CLI("flows"); !strings.Contains(out, address(n.db, "-4", 5432)+"), rule") || !strings.Contains(out, "candidate 1: would_deny by no rule") {
				return fmt.Errorf("%s has recorded\n%s", node.Host.Name, out)
			}
			return nil
		})
	}
	n.coordinator.Admin("policy", "audit", "clear")
	lab.Eventually(t, 20*time.Second, func() error {
		if out, _ := n.laptop.Try("debug", "why", "db", "tcp:22"); strings.Contains(out, "candidate") {
			return fmt.Errorf("after it was cleared: %s", out)
		}
		return nil
	})
	for _, f := range open {
		f.end()
		lab.Eventually(t, 5*time.Second, func() error {
			sent := f.sent.Load() - f.base.Load()
			if lost := sent - f.counted.Load(); lost != 0 || sent < 20 || f.told[0].at.Load() != 0 {
				return fmt.Errorf("%s lost %d of %d packets, told %d", f.name, lost, sent, f.told[0].at.Load())
			}
			return nil
		})
	}
}
