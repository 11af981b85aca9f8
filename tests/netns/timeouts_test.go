//go:build linux

package netns

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/tests/lab"
)

// kernelTimeout is a time of the kernel's connection tracking beside the one
// that the filter is measured to have.
type kernelTimeout struct {
	setting string
	rule    string
	packets string // of a vector, all of which pass
	kernel  time.Duration
	why     string // where the two differ
}

// kernelTimeouts are those of the rules P6, P9, P10 and P13. The kernel's clock
// can not leap, so TestKernelConntrack compares no times: here its defaults are
// read, and the filter's are measured.
var kernelTimeouts = []kernelTimeout{
	{"nf_conntrack_udp_timeout", "P10", "in B udp 100.64.0.2:40000 > 100.64.0.1:53", 30 * time.Second, ""},
	{
		"nf_conntrack_udp_timeout_stream", "P10",
		"in B udp 100.64.0.2:40000 > 100.64.0.1:53; out B udp 100.64.0.1:53 > 100.64.0.2:40000", 120 * time.Second, "",
	},
	{"nf_conntrack_icmp_timeout", "P13", "in B echo 100.64.0.2 > 100.64.0.1 id=7", 30 * time.Second, ""},
	{"nf_conntrack_icmpv6_timeout", "P13", "in B echo fd00::2 > fd00::1 id=7", 30 * time.Second, ""},
	{
		"nf_conntrack_tcp_timeout_syn_sent", "P9", "in B tcp 100.64.0.2:40000 > 100.64.0.1:80 S", 120 * time.Second,
		"a SYN is repeated for two minutes, and each repetition renews the entry; half the time halves what a flood of them holds",
	},
	{
		"nf_conntrack_tcp_timeout_syn_recv", "P9",
		"in B tcp 100.64.0.2:40000 > 100.64.0.1:80 S; out B tcp 100.64.0.1:80 > 100.64.0.2:40000 SA", 60 * time.Second, "",
	},
	{
		"nf_conntrack_tcp_timeout_established", "P9", established, 432_000 * time.Second,
		"five days hold an entry for whoever vanished; RFC 5382 asks for 2 h 4 min, behind which keep-alives of two hours live",
	},
	{"nf_conntrack_tcp_timeout_fin_wait", "P9", established + "; in B tcp 100.64.0.2:40000 > 100.64.0.1:80 FA", 120 * time.Second, ""},
	{
		"nf_conntrack_tcp_timeout_close_wait", "P9",
		established + "; in B tcp 100.64.0.2:40000 > 100.64.0.1:80 FA; out B tcp 100.64.0.1:80 > 100.64.0.2:40000 A", 60 * time.Second,
		"a half-closed connection may still send, and a pause of a minute is no end of it",
	},
	{
		"nf_conntrack_tcp_timeout_last_ack", "P9",
		established + "; in B tcp 100.64.0.2:40000 > 100.64.0.1:80 FA; out B tcp 100.64.0.1:80 > 100.64.0.2:40000 FA", 30 * time.Second, "",
	},
	{
		"nf_conntrack_tcp_timeout_time_wait", "P9",
		established + "; in B tcp 100.64.0.2:40000 > 100.64.0.1:80 FA; out B tcp 100.64.0.1:80 > 100.64.0.2:40000 FA; in B tcp 100.64.0.2:40000 > 100.64.0.1:80 A",
		120 * time.Second, "",
	},
	{"nf_conntrack_tcp_timeout_close", "P9", established + "; in B tcp 100.64.0.2:40000 > 100.64.0.1:80 R", 10 * time.Second, ""},
	{
		"nf_conntrack_generic_timeout", "P12", "in B ip 100.64.0.2 > 100.64.0.1 protocol=47 len=8", 600 * time.Second,
		"two minutes, as for UDP: nothing is known of the protocol, and our own packets alone renew what the peer may not open",
	},
}

const established = "in B tcp 100.64.0.2:40000 > 100.64.0.1:80 S; out B tcp 100.64.0.1:80 > 100.64.0.2:40000 SA; in B tcp 100.64.0.2:40000 > 100.64.0.1:80 A"

// TestKernelTimeouts compares for how long flows last without a packet.
func TestKernelTimeouts(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft, of Debian's package nftables")
	}
	h := lab.New(t).Host("middle")
	// The settings are there once the kernel tracks.
	if out, err := h.Run(t.Context(), "nft", "add table inet track; add chain inet track c { type filter hook forward priority 0; }; add rule inet track c ct state new accept"); err != nil {
		t.Fatal(out, err)
	}
	for _, k := range kernelTimeouts {
		ours := filterTimeout(t, k.packets)
		var kernel time.Duration
		h.Do(func() error {
			raw, err := os.ReadFile("/proc/sys/net/netfilter/" + k.setting)
			if err != nil {
				return err
			}
			seconds, err := strconv.Atoi(strings.TrimSpace(string(raw)))
			kernel = time.Duration(seconds) * time.Second
			return err
		})
		switch {
		case kernel != k.kernel:
			t.Errorf("%s: the kernel has %v, the table says %v", k.setting, kernel, k.kernel)
		case kernel != ours && k.why == "":
			t.Errorf("%s, %s: the kernel %v, the filter %v, and no argument", k.rule, k.setting, kernel, ours)
		case kernel == ours && k.why != "":
			t.Errorf("%s, %s: listed as a difference, and is none", k.rule, k.setting)
		case k.why != "":
			t.Logf("%s, %s: the kernel %v, the filter %v: %s", k.rule, k.setting, kernel, ours, k.why)
		}
	}
}

// filterTimeout returns for how long the flow that the packets make lasts.
func filterTimeout(t *testing.T, packets string) time.Duration {
	t.Helper()
	const before = `self addresses=100.64.0.1,fd00::1 labels=1
peer B addresses=100.64.0.2,fd00::2 labels=2
rule in all labels=2 any
vector X
`
	var lines []string
	for _, p := range strings.Split(packets, "; ") {
		lines = append(lines, p+" = pass")
	}
	vectors, err := acltest.ParseVectors(before + strings.Join(lines, "\n"))
	if err != nil {
		t.Fatal(err)
	}
	rules := &ruleset.RuleSet{}
	steps := vectors[0].Steps
	now := acltest.VectorStart
	var p *filter.Peer
	for i := range steps {
		switch s := &steps[i]; s.Op {
		case "rule":
			rules.In = append(rules.In, s.Rule)
			p = filter.NewPeer(filter.NewDevice(filter.Config{}), steps[0].Identity, steps[1].Identity, rules.ForPeer(steps[0].Identity, steps[1].Identity), now)
		case "in", "out":
			var info packet.Info
			check := p.Receive
			if s.Direction == ruleset.Out {
				check = p.Send
			}
			if d := check(s.Packet, &info, now); d.Verdict != filter.Pass {
				t.Fatalf("%s: %+v", s.Text, d)
			}
		}
	}
	due, ok := p.NextTimeout()
	if !ok || p.Flows() != 1 {
		t.Fatalf("%d flows", p.Flows())
	}
	// The filter may look earlier than a flow ends.
	for ; ok && p.Flows() > 0; due, ok = p.NextTimeout() {
		now = due
		p.HandleTimeout(due)
	}
	return now.Sub(acltest.VectorStart)
}
