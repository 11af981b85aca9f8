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
// lab, which are the documentation's. The test is skipped where miniupnpd is not
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
	g.Host.Nft(`table inet upnp {
	chain forward {
		type filter hook forward priority filter;
		jump ports
	}
	chain ports { }
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
upnp_table_name=upnp
upnp_nat_table_name=upnp
upnp_forward_chain=ports
upnp_nat_chain=prerouting_ports
upnp_nat_postrouting_chain=postrouting_ports
uuid=00000000-0000-4000-8000-0000000000%02x
allow 1024-65535 192.168.1.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
`, outside, say[pcp], say[upnp], wan[3])
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
	out, err := g.Host.Run(g.lab.t.Context(), "nft", "list", "chain", "inet", "upnp", "prerouting_ports")
	if err != nil {
		g.lab.t.Fatalf("%v\n%s", err, out)
	}
	var rules []string
	for line := range strings.Lines(out) {
		if strings.Contains(line, "dnat") {
			rules = append(rules, strings.TrimSpace(line))
		}
	}
	return rules
}
