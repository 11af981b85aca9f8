package main

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/warren-overlay/warren/coordinator/server"
)

// announce says on standard output which network is served and where, and on
// the first start what to type next.
func (m *Main) announce(s *server.Server, o serveOptions, listen netip.AddrPort) {
	verb := "Serving"
	if s.Created() {
		verb = "Created"
	}
	fmt.Fprintf(m.Stdout, "%s network %s\n", verb, s.Fingerprint())
	urls := reachable(listen)
	if o.publicURL != "" {
		urls = []string{o.publicURL}
	}
	fmt.Fprintln(m.Stdout, "Devices reach it at:")
	for _, u := range urls {
		fmt.Fprintln(m.Stdout, "  "+u)
	}
	if users := s.Users(); users == 0 {
		fmt.Fprintf(m.Stdout, `Next, add a person and make a join key for a device:
  warren-coordinator --data %[1]s users create alice@example.com
  warren-coordinator --data %[1]s keys create --user alice@example.com
and on the device:
  warren up --login-server %[2]s --auth-key KEY
`, m.data, urls[0])
	}
}

// reachable returns the URLs of an address that is listened on: for the
// unspecified one, of every address that this host has, other hosts' view
// first.
func reachable(listen netip.AddrPort) []string {
	own := []netip.Addr{listen.Addr().Unmap()}
	if listen.Addr().IsUnspecified() {
		own = hostAddresses(listen.Addr().Is4())
	}
	var out []string
	for _, a := range own {
		out = append(out, "http://"+netip.AddrPortFrom(a, listen.Port()).String())
	}
	return out
}

func hostAddresses(only4 bool) []netip.Addr {
	interfaces, err := net.InterfaceAddrs()
	if err != nil {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	var out []netip.Addr
	for _, i := range interfaces {
		network, ok := i.(*net.IPNet)
		if !ok {
			continue
		}
		a, ok := netip.AddrFromSlice(network.IP)
		if a = a.Unmap(); ok && !a.IsLinkLocalUnicast() && (a.Is4() || !only4) {
			out = append(out, a)
		}
	}
	slices.SortStableFunc(out, func(a, b netip.Addr) int { return rank(a) - rank(b) })
	return out
}

// rank puts addresses that other hosts can use first, and IPv4 before IPv6.
func rank(a netip.Addr) int {
	n := 0
	if a.IsLoopback() {
		n += 2
	}
	if a.Is6() {
		n++
	}
	return n
}
