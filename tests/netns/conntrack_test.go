//go:build linux

package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/netstack/tun"
	"github.com/warren-overlay/warren/tests/lab"
)

// kernelRules are the rules that every vector begins with, as one would write
// them for a firewall on the way: what belongs to a connection passes, and what
// may open one. The protocol 254 is the marker's.
const kernelRules = `
table inet compare {
	chain forward {
		type filter hook forward priority 0; policy drop;
		meta l4proto 254 accept
		ct state invalid drop
		ct state established,related accept
		iifname "peers" ip saddr 100.64.0.2 tcp dport 80 tcp flags & (fin|syn|rst|ack) == syn accept
		iifname "peers" ip6 saddr fd00::2 tcp dport 80 tcp flags & (fin|syn|rst|ack) == syn accept
		iifname "peers" ip saddr 100.64.0.2 udp dport 53 accept
		iifname "peers" ip6 saddr fd00::2 udp dport 53 accept
		iifname "peers" ip saddr 100.64.0.2 icmp type echo-request accept
		iifname "peers" ip6 saddr fd00::2 icmpv6 type echo-request accept
		oifname "peers" ip daddr 100.64.0.2 tcp dport 22 tcp flags & (fin|syn|rst|ack) == syn accept
		oifname "peers" ip6 daddr fd00::2 tcp dport 22 tcp flags & (fin|syn|rst|ack) == syn accept
		oifname "peers" ip daddr 100.64.0.2 udp dport 123 accept
		oifname "peers" ip6 daddr fd00::2 udp dport 123 accept
		oifname "peers" ip daddr 100.64.0.2 icmp type echo-request accept
		oifname "peers" ip6 daddr fd00::2 icmpv6 type echo-request accept
	}
}
`

// compared are the vectors of the rules P6, P9, P10, P13 and P14.
var compared = map[string]string{
	"P6":  "FV-30 FV-31 FV-32 FV-33 FV-34 FV-35 FV-37 FV-38 FV-39",
	"P9":  "FV-01 FV-04 FV-05 FV-06 FV-07 FV-08 FV-09 FV-10 FV-11 FV-12 FV-13 FV-14 FV-15 FV-16",
	"P10": "FV-18 FV-19", "P13": "FV-20 FV-21 FV-22", "P14": "FV-23 FV-24 FV-25 FV-26 FV-27 FV-28 FV-29",
}

// TestKernelConntrack runs the vectors of the stateful rules through the kernel:
// two TUN devices, and between them nftables with connection tracking and the
// same rules. Where the kernel decides otherwise the step is listed with the
// argument for ours; a difference that is not listed fails, and so does one that
// is listed and is none any more.
//
// The kernel's clock can not leap: of a vector only what comes before its first
// "at" is compared.
func TestKernelConntrack(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft, of Debian's package nftables")
	}
	text, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	vectors, err := acltest.ParseVectors(string(text))
	if err != nil {
		t.Fatal(err)
	}
	met := map[string]bool{}
	steps := 0 // of all vectors
	for _, rule := range []string{"P6", "P9", "P10", "P13", "P14"} {
		for _, v := range vectors {
			if !strings.Contains(" "+compared[rule]+" ", " "+v.Name+" ") {
				continue
			}
			t.Run(rule+"/"+v.Name, func(t *testing.T) {
				k := newKernelPath(t)
				for i := range v.Steps {
					s := &v.Steps[i]
					if s.Op == "at" || s.Op == "config" && i > 10 {
						break
					}
					if s.Op != "in" && s.Op != "out" {
						continue
					}
					steps++
					passes := k.passes(s)
					if passes == (s.Want.Verdict == "pass") {
						continue
					}
					key := v.Name + ": " + s.Text
					if v.Name == "FV-37" { // one line stands for 256 packets
						key = numbered.ReplaceAllString(key, "frag=N@0+")
					}
					met[key] = true
					if why, listed := differences[key]; listed {
						t.Logf("line %d: %s: the kernel says %v: %s", s.Line, s.Text, verdictWord(passes), why)
					} else {
						t.Errorf("line %d: not listed: %q: the kernel says %s", s.Line, key, verdictWord(passes))
					}
				}
			})
		}
	}
	for key := range differences {
		if !met[key] {
			t.Errorf("listed as a difference, and is none: %s", key)
		}
	}
	t.Logf("%d steps, %d differences", steps, len(met))
}

var numbered = regexp.MustCompile(`frag=\d+@0\+`)

func verdictWord(passes bool) string {
	if passes {
		return "pass"
	}
	return "drop"
}

// kernelPath is a namespace that forwards between two TUN devices.
type kernelPath struct {
	t      *testing.T
	device [2]tun.Device // by ruleset.Direction: where packets of it begin
	seen   [2]chan []byte
	marks  byte
}

func newKernelPath(t *testing.T) *kernelPath {
	k := &kernelPath{t: t}
	h := lab.New(t).Host("middle")
	for d, name := range []string{ruleset.In: "peers", ruleset.Out: "own"} {
		h.Do(func() (err error) {
			if k.device[d], err = tun.Open(tun.Config{Name: name}); err != nil {
				return err
			}
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(link); err != nil {
				return err
			}
			for _, p := range [][]string{{"100.64.0.0/10", "fd00::/48"}, {"100.64.0.1/32", "fd00::1/128"}}[d] {
				_, to, err := net.ParseCIDR(p)
				if err != nil {
					return err
				}
				if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: to, Scope: netlink.SCOPE_LINK}); err != nil {
					return fmt.Errorf("route %s: %w", p, err)
				}
			}
			return nil
		})
		k.seen[d] = make(chan []byte, 1024)
		go k.read(d)
		t.Cleanup(func() { k.device[d].Close() })
	}
	for _, setting := range []string{
		"net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.netfilter.nf_conntrack_checksum=0",
	} {
		name, value, _ := strings.Cut(setting, "=")
		h.Do(func() error {
			return os.WriteFile("/proc/sys/"+strings.ReplaceAll(name, ".", "/"), []byte(value), 0)
		})
	}
	file := t.TempDir() + "/rules"
	if err := os.WriteFile(file, []byte(kernelRules), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := h.Run(t.Context(), "nft", "-f", file); err != nil {
		t.Fatal(out, err)
	}
	return k
}

func (k *kernelPath) read(d int) {
	n := k.device[d].BatchSize()
	bufs, sizes := make([][]byte, n), make([]int, n)
	for i := range bufs {
		bufs[i] = make([]byte, 1<<16)
	}
	for {
		n, err := k.device[d].Read(bufs, sizes, tun.Headroom)
		for i := range n {
			k.seen[d] <- append([]byte(nil), bufs[i][tun.Headroom:tun.Headroom+sizes[i]]...)
		}
		if err != nil && !errors.Is(err, tun.ErrTooManySegments) {
			return
		}
	}
}

func (k *kernelPath) write(d ruleset.Direction, b []byte) {
	k.t.Helper()
	buf := append(make([]byte, tun.Headroom, tun.Headroom+len(b)+64), b...)
	if b[0]>>4 == 4 { // the kernel looks at the header's checksum, the filter does not
		header := buf[tun.Headroom : tun.Headroom+int(b[0]&15)*4]
		header[10], header[11] = 0, 0
		var sum uint32
		for i := 0; i < len(header); i += 2 {
			sum += uint32(header[i])<<8 | uint32(header[i+1])
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		header[10], header[11] = byte(^sum>>8), byte(^sum)
	}
	// That the kernel refuses a packet at once is an answer as well.
	k.device[d].Write([][]byte{buf}, tun.Headroom)
}

// sourceOf returns the source of a packet that may not parse.
func sourceOf(b []byte) netip.Addr {
	from, to := 8, 24
	if b[0]>>4 == 4 {
		from, to = 12, 16
	}
	a, _ := netip.AddrFromSlice(b[from:to])
	return a
}

// passes sends the packet of a step and reports whether anything comes out on
// the other side before a marker that was sent after it.
func (k *kernelPath) passes(s *acltest.VectorStep) bool {
	k.t.Helper()
	k.write(s.Direction, s.Packet)
	k.marks++
	from, to := netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("100.64.0.1")
	if s.Direction == ruleset.Out {
		from, to = to, from
	}
	marker := acltest.Packet{Source: from, Destination: to, Protocol: 254, Length: int(k.marks)}
	k.write(s.Direction, marker.Bytes())
	passed := false
	timeout := time.After(5 * time.Second)
	for {
		select {
		case b := <-k.seen[1-s.Direction]:
			var info packet.Info
			if packet.Parse(b, &info) == packet.None && info.Protocol == 254 {
				return passed
			}
			// What the kernel itself says to the network is not the packet.
			passed = passed || sourceOf(b) == sourceOf(s.Packet)
		case <-timeout:
			k.t.Fatal("no marker came out")
		}
	}
}

// differences are the steps at which the kernel decides otherwise, and why ours
// is right for an access control.
var differences = map[string]string{
	"FV-14: out B tcp 100.64.0.1:80 > 100.64.0.2:40000 RA = pass rule=web": window,
	"FV-14: in B tcp 100.64.0.2:22 > 100.64.0.1:40000 RA = pass rule=ssh":  window,

	"FV-22: in C reply 100.64.0.2 > 100.64.0.1 id=7 = drop drop_spoof":                                                                     identity,
	"FV-24: in C icmp 100.64.0.2 > 100.64.0.1 type=3 code=3 about udp 100.64.0.1:40000 > 100.64.0.2:123 = drop drop_spoof":                 identity,
	"FV-24: in C icmp 100.64.0.3 > 100.64.0.1 type=3 code=3 about udp 100.64.0.1:40000 > 100.64.0.2:123 = drop drop_icmp_no_flow":          anyRouter,
	"FV-27: in B icmp 100.64.0.2 > 100.64.0.1 type=3 code=4 mtu=1420 about udp 100.64.0.1:40000 > 100.64.0.2:123 = drop drop_mtu rule=ntp": mtuIgnored,
	"FV-27: in B icmp fd00::2 > fd00::1 type=2 mtu=9000 about udp [fd00::1]:40000 > [fd00::2]:123 = drop drop_mtu rule=ntp":                mtuIgnored,
	"FV-28: in B icmp 100.64.0.2 > 100.64.0.1 type=3 code=3 keep=27 about udp 100.64.0.1:40000 > 100.64.0.2:123 = drop drop_icmp_quote":    shortQuote,

	"FV-30: in B udp 100.64.0.2:40000 > 100.64.0.1:53 len=1272 frag=7@0+ = pass new rule=dns": held,
	"FV-30: in B udp 100.64.0.2:0 > 100.64.0.1:0 len=1280 frag=7@1280+ = pass":                held,
	"FV-30: in B udp [fd00::2]:40000 > [fd00::1]:53 len=1272 frag=8@0+ = pass new rule=dns":   held,
	"FV-30: out B udp 100.64.0.1:40000 > 100.64.0.2:123 len=8 frag=7@0+ = pass new rule=ntp":  held,
	"FV-31: in B udp 100.64.0.2:40000 > 100.64.0.1:53 len=8 frag=8@0+ = pass new rule=dns":    held,
	"FV-34: in B tcp 100.64.0.2:40000 > 100.64.0.1:80 S len=4 frag=7@0+ = pass new rule=web":  held,
	"FV-35: in B udp 100.64.0.2:40000 > 100.64.0.1:53 len=8 frag=7@0+ = pass new rule=dns":    held,
	"FV-37: in B udp 100.64.0.2:40000 > 100.64.0.1:53 len=8 frag=N@0+ = pass new rule=dns":    held,
	"FV-37: in B udp 100.64.0.2:40000 > 100.64.0.1:53 len=8 frag=N@0+ = pass rule=dns":        held,
	"FV-39: in B echo 100.64.0.2 > 100.64.0.1 id=7 len=8 frag=7@0+ = pass new rule=web":       held,
	"FV-39: in B echo fd00::2 > fd00::1 id=7 len=8 frag=7@0+ = pass new rule=web":             held,

	"FV-34: in B tcp 100.64.0.2:0 > 100.64.0.1:0 - len=16 frag=7@24 = drop drop_frag_poisoned": repeated,
	"FV-35: in B udp 100.64.0.2:0 > 100.64.0.1:0 len=8 frag=7@16 = drop drop_frag_poisoned":    repeated,
	"FV-37: in B udp 100.64.0.2:0 > 100.64.0.1:0 len=8 frag=257@16 = drop drop_frag":           "the kernel's memory for fragments is one for all senders, 4 MB, so that one of them can fill it; ours is bounded for each peer, and what is not remembered is refused",
}

// The arguments.
const (
	held = "the kernel holds fragments back until it can put the packet together, which costs memory for every packet and a timer; " +
		"the filter decides on the first one, which must hold the whole header, and lets the rest follow only behind what it has seen, " +
		"so that the receiver can not put together another header than the one that was judged (P6)"
	repeated = "the kernel ignores a fragment that lies within one it has, and goes on: what it has judged is what it puts together. " +
		"The filter hands fragments on, and which copy the receiver keeps is the receiver's choice: after an overlap nothing of the packet passes (P6)"
	window = "the kernel compares a refusal's acknowledgment with the SYN, and the vector's segments count nothing; " +
		"the filter tracks no windows (P9): who sends is proved by the tunnel's keys, so that only the peer of the connection itself could inject"
	identity  = "the kernel knows addresses only, and whoever has the wire may use B's; the filter knows by the tunnel's key that C has sent it (P0, P2)"
	anyRouter = "for the kernel an error may come from any router on the way; in the overlay there is none but the peer itself, " +
		"and an error about a flow with B that C sends is an attack on it (P14)"
	mtuIgnored = "the kernel hands an MTU on that is no smaller than the link's, for the receiver to ignore; there is no honest reason to send it (P14)"
	shortQuote = "the kernel finds the flow by what is left of the quote, here 7 of the 8 bytes that RFC 792 asks for; the filter asks for all 8 (P14)"
)
