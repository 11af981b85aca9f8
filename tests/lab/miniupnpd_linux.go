package lab

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// MapsPorts has the gateway run miniupnpd, which forwards ports to hosts of the
// LAN that ask for it: in PCP, in UPnP, or both. It does so from an address of
// its own, which MapsPorts returns: miniupnpd refuses to believe in those of the
// lab, which are the documentation's. Where the LAN has IPv6, it opens pinholes
// in the gateway's firewall as well. The test is skipped where miniupnpd is not
// installed.
func (g *Gateway) MapsPorts(t testing.TB, pcp, upnp bool) netip.Addr {
	t.Helper()
	program, err := exec.LookPath("miniupnpd")
	if err != nil {
		program = "/usr/sbin/miniupnpd" // not in every user's PATH
		if _, err := os.Stat(program); err != nil {
			t.Skip("miniupnpd is not installed")
		}
	}
	// Of a network that is nobody's in the lab, and different for each gateway.
	wan := g.Host.V4.As4()
	outside := netip.AddrFrom4([4]byte{5, 5, wan[2], wan[3]})
	g.Host.Address("wan0", outside.String()+"/32")
	g.internet.Core.Route(outside.String()+"/32", g.Host.V4.String())
	silence := ""
	if !pcp { // it answers PCP over IPv6 whatever enable_natpmp says (2.3.1)
		silence = "udp dport 5351 drop"
	}
	g.Host.Nft(`table inet upnp {
	chain input {
		type filter hook input priority filter;
		` + silence + `
	}
	chain prerouting {
		type nat hook prerouting priority dstnat;
		jump prerouting_ports
	}
	chain prerouting_ports { }
	chain postrouting {
		type nat hook postrouting priority srcnat;
		jump postrouting_ports
	}
	chain postrouting_ports { }
}
`)
	say := map[bool]string{true: "yes", false: "no"}
	config := fmt.Sprintf(`ext_ifname=wan0
ext_ip=%v
listening_ip=lan0
enable_natpmp=%s
enable_upnp=%s
secure_mode=yes
upnp_table_name=gateway
upnp_nat_table_name=upnp
upnp_forward_chain=pinholes
upnp_nat_chain=prerouting_ports
upnp_nat_postrouting_chain=postrouting_ports
ipv6_disable=%s
uuid=00000000-0000-4000-8000-0000000000%02x
allow 1024-65535 192.168.1.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
`, outside, say[pcp], say[upnp], say[!g.v6.IsValid()], wan[3])
	dir := t.TempDir()
	file := filepath.Join(dir, "miniupnpd.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	g.Host.launch(t, program, "-d", "-f", file, "-P", filepath.Join(dir, "pid"))
	return outside
}

// Forwarded returns the ports that miniupnpd forwards at the moment, as nft
// lists the rules.
func (g *Gateway) Forwarded() []string {
	g.lab.t.Helper()
	return g.accepted("upnp", "prerouting_ports", "dnat")
}

// Pinholes returns the pinholes that miniupnpd has opened for IPv6 at the moment,
// as nft lists the rules: "th dport PORT", and the address in hexadecimal digits.
func (g *Gateway) Pinholes() []string {
	g.lab.t.Helper()
	// It accepts in this chain what it forwards over IPv4, too.
	var holes []string
	for _, rule := range g.accepted("gateway", "pinholes", "accept") {
		if strings.Contains(rule, "@nh,192,128") {
			holes = append(holes, rule)
		}
	}
	return holes
}

// accepted returns the rules of a chain with the given verdict.
func (g *Gateway) accepted(table, chain, verdict string) []string {
	g.lab.t.Helper()
	out, err := g.Host.Run(g.lab.t.Context(), "nft", "list", "chain", "inet", table, chain)
	if err != nil {
		g.lab.t.Fatalf("%v\n%s", err, out)
	}
	var rules []string
	for line := range strings.Lines(out) {
		if strings.Contains(line, verdict) {
			rules = append(rules, strings.TrimSpace(line))
		}
	}
	return rules
}
