package router

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/warren-overlay/warren/tests/lab"
)

// site is a router between an overlay, of which a cable stands for the tunnel,
// and an office network.
type site struct {
	router, peer, office *lab.Host
	r                    Router
}

const (
	routerIP, peerIP   = "100.64.0.1", "100.64.0.2"
	routerIP6, peerIP6 = "fd64::1", "fd64::2"
)

func newSite(t *testing.T) *site {
	t.Helper()
	l := lab.New(t)
	s := &site{router: l.Bare("router"), peer: l.Bare("peer"), office: l.Bare("office")}
	lab.Wire(s.router, s.peer, "overlay0", "overlay0")
	lab.Wire(s.router, s.office, "lan0", "eth0")
	s.router.Address("overlay0", routerIP+"/10", routerIP6+"/48")
	s.router.Address("lan0", "10.20.0.1/24", "fd20::1/64")
	s.peer.Address("overlay0", peerIP+"/10", peerIP6+"/48")
	s.peer.Route("10.20.0.0/24", routerIP)
	s.peer.Route("fd20::/64", routerIP6)
	s.office.Address("eth0", "10.20.0.10/24", "fd20::10/64")
	s.office.Route("100.64.0.0/10", "10.20.0.1")
	s.office.Route("fd64::/48", "fd20::1")
	s.introduce()
	s.router.Do(func() (err error) {
		s.r, err = Open("overlay0")
		return err
	})
	t.Cleanup(func() { s.router.Try(s.r.Close) })
	return s
}

// introduce tells router and peer where the other's IPv6 address is: in a tunnel
// nobody asks, and the guard lets nobody ask.
func (s *site) introduce() {
	for _, c := range []struct {
		who, whom *lab.Host
		address   string
	}{{s.peer, s.router, routerIP6}, {s.router, s.peer, peerIP6}} {
		var mac net.HardwareAddr
		c.whom.Do(func() error {
			link, err := netlink.LinkByName("overlay0")
			mac = link.Attrs().HardwareAddr
			return err
		})
		c.who.Do(func() error {
			link, err := netlink.LinkByName("overlay0")
			if err != nil {
				return err
			}
			return netlink.NeighSet(&netlink.Neigh{
				LinkIndex: link.Attrs().Index, Family: netlink.FAMILY_V6, State: netlink.NUD_PERMANENT,
				IP: net.ParseIP(c.address), HardwareAddr: mac,
			})
		})
	}
}

// settings are those of a node that routes the given prefixes.
func settings(forward ...string) Settings {
	s := Settings{
		Own:     []netip.Addr{netip.MustParseAddr(routerIP), netip.MustParseAddr(routerIP6)},
		Overlay: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd64::/48")},
	}
	for _, p := range forward {
		s.Forward = append(s.Forward, netip.MustParsePrefix(p))
	}
	return s
}

func (s *site) configure(settings Settings) {
	s.router.Do(func() error { return s.r.Configure(settings) })
}

// passLimit is how long a connection may take that nothing holds up, and so how long
// one is waited for that must not come about.
const passLimit = 500 * time.Millisecond

func TestGuard(t *testing.T) {
	s := newSite(t)
	s.router.Sysctl("net/ipv4/ip_forward", "1")
	s.router.Sysctl("net/ipv6/conf/all/forwarding", "1")
	if _, err := s.office.SeenAs(t, s.peer, peerIP+":80", passLimit); err != nil {
		t.Fatal("without a guard nothing is forwarded either, so nothing would be tested: ", err)
	}
	for _, masquerade := range []bool{false, true} {
		if masquerade {
			s.router.Masquerade()
		}
		for _, forward := range [][]string{nil, {"10.20.0.0/24", "fd20::/64"}} {
			s.configure(settings(forward...))
			name := fmt.Sprintf("forward %v, masquerade %v: ", forward, masquerade)
			for _, c := range []struct {
				what     string
				from, to *lab.Host
				address  string
				want     string // the address seen; "" for nothing
			}{
				{"office opens towards the overlay", s.office, s.peer, peerIP + ":80", ""},
				{"office opens towards the overlay, v6", s.office, s.peer, "[" + peerIP6 + "]:80", ""},
				{"office reaches the node's overlay address", s.office, s.router, routerIP + ":80", ""},
				{"overlay reaches the node", s.peer, s.router, routerIP + ":80", peerIP},
				{"overlay reaches the node's LAN address", s.peer, s.router, "10.20.0.1:80", ""},
				{"overlay reaches the office", s.peer, s.office, "10.20.0.10:80", "10.20.0.1"},
				{"overlay reaches the office, v6", s.peer, s.office, "[fd20::10]:80", "fd20::1"},
				{"office reaches the node", s.office, s.router, "10.20.0.1:80", "10.20.0.10"},
			} {
				want := c.want
				if forward == nil && c.to == s.office {
					want = ""
				}
				if want == "" && c.address == "10.20.0.1:80" && forward != nil {
					continue // the filter's business: the prefix is served
				}
				got, err := c.from.SeenAs(t, c.to, c.address, passLimit)
				if got != want {
					t.Errorf("%s%s: seen as %q, want %q (%v)", name, c.what, got, want, err)
				}
			}
		}
	}
}

// TestNothingTurnsRound sends packets from one peer to another by way of the
// node, and into the overlay with a source address of it.
func TestNothingTurnsRound(t *testing.T) {
	s := newSite(t)
	s.peer.Address("overlay0", "100.64.0.3/32")
	s.office.Address("eth0", "100.64.0.9/32")
	s.configure(settings("0.0.0.0/0", "::/0"))
	// The peer's other address, by way of the router.
	s.peer.Route("100.64.7.0/24", routerIP)
	s.router.Route("100.64.7.0/24", peerIP)
	heard := lab.ServeUDP(t, s.peer, "0.0.0.0:7")
	send := func(from *lab.Host, local, to string) {
		t.Helper()
		err := from.Within(func() error {
			d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(local))}
			c, err := d.Dial("udp", to)
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("warren"))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	counted := func() int { return s.dropped(t) }
	before := counted()
	send(s.peer, peerIP+":0", "100.64.7.7:7")
	send(s.office, "100.64.0.9:0", peerIP+":7")
	send(s.office, "100.64.0.9:0", "10.20.0.1:7")
	lab.Eventually(t, 3*time.Second, func() error {
		if n := counted() - before; n < 3 {
			return fmt.Errorf("%d of 3 packets were dropped", n)
		}
		return nil
	})
	if n := heard.Load(); n != 0 {
		t.Errorf("%d packets arrived", n)
	}
}

// dropped returns what the table's counters say.
func (s *site) dropped(t *testing.T) int {
	t.Helper()
	out, err := s.router.Run(t.Context(), "nft", "list", "ruleset")
	if err != nil {
		t.Skip("needs nft(8) to read counters: ", err)
	}
	sum := 0
	for line := range strings.Lines(out) {
		var packets, bytes int
		if i := strings.Index(line, "counter packets "); i >= 0 && strings.Contains(line, "drop") {
			if _, err := fmt.Sscanf(line[i:], "counter packets %d bytes %d", &packets, &bytes); err == nil {
				sum += packets
			}
		}
	}
	return sum
}

func TestCloseUndoesEverything(t *testing.T) {
	s := newSite(t)
	before := s.router.Rules()
	wanted := settings("10.20.0.0/24", "fd20::/64")
	wanted.Accept = []netip.Prefix{netip.MustParsePrefix("10.30.0.0/16")}
	s.configure(wanted)
	if got := s.router.Tables(); !slices.Equal(got, []string{"warren-overlay0"}) {
		t.Fatalf("tables %v", got)
	}
	if got := s.router.Rules(); len(got) != len(before)+8 {
		t.Errorf("rules %v, before %v", got, before)
	}
	s.router.Do(s.r.Close)
	if got := s.router.Tables(); len(got) != 0 {
		t.Errorf("tables %v", got)
	}
	if got := s.router.Rules(); !slices.Equal(got, before) {
		t.Errorf("rules %v, before %v", got, before)
	}
	for _, name := range []string{forwarding4, forwarding6} {
		s.router.Do(func() error {
			raw, err := os.ReadFile(filepath.Join("/proc/sys", name))
			if string(raw) != "0\n" {
				t.Errorf("%s is %q", name, raw)
			}
			return err
		})
	}
}

// TestCrash leaves a Router without Close: the next Open removes what is left,
// also where the interface has another name by then.
func TestCrash(t *testing.T) {
	s := newSite(t)
	before := s.router.Rules()
	wanted := settings("10.20.0.0/24")
	wanted.Exit = true
	s.configure(wanted)
	for _, name := range []string{"overlay0", "other0"} {
		if name == "other0" {
			s.configure(wanted)
			s.router.Do(func() error {
				link, err := netlink.LinkByName("overlay0")
				if err != nil {
					return err
				}
				return netlink.LinkDel(link)
			})
		}
		var again Router
		s.router.Do(func() (err error) {
			again, err = Open(name)
			return err
		})
		defer s.router.Do(func() error { return again.Close() })
		if got := s.router.Tables(); len(got) != 0 {
			t.Errorf("tables %v survive the next start", got)
		}
		if got := s.router.Rules(); !slices.Equal(got, before) {
			t.Errorf("rules %v survive the next start, before %v", got, before)
		}
		s.router.Do(func() error { s.r.(*kernelRouter).good = false; return nil })
		s.router.Do(func() error { s.r.(*kernelRouter).table = false; return nil })
	}
}

// TestLeading asks the kernel where packets would go.
func TestLeading(t *testing.T) {
	s := newSite(t)
	s.router.Do(func() error { return nil })
	s.router.Route("0.0.0.0/0", "10.20.0.254")
	base := settings()
	base.Except = []netip.Addr{netip.MustParseAddr("203.0.113.9")}
	accept := base
	accept.Accept = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("203.0.113.0/24")}
	exit, exitLAN := base, base
	exit.Exit, exitLAN.Exit, exitLAN.KeepLAN = true, true, true
	for _, c := range []struct {
		name     string
		settings Settings
		overlay  []string // destinations that lead into the overlay
		direct   []string
	}{
		{"nothing", base, nil, []string{"10.20.0.10", "10.30.0.1", "203.0.113.5", "203.0.113.9", "198.51.100.1"}},
		// The LAN lies inside of 10.0.0.0/8.
		{"accepted", accept, []string{"10.30.0.1", "203.0.113.5"}, []string{"10.20.0.10", "203.0.113.9", "198.51.100.1"}},
		{"exit", exit, []string{"10.20.0.10", "10.30.0.1", "198.51.100.1"}, []string{"203.0.113.9"}},
		{"exit but LAN", exitLAN, []string{"10.30.0.1", "198.51.100.1"}, []string{"10.20.0.10", "203.0.113.9"}},
		{"nothing again", base, nil, []string{"10.20.0.10", "10.30.0.1", "198.51.100.1"}},
	} {
		s.configure(c.settings)
		for i, list := range [][]string{c.overlay, c.direct} {
			for _, to := range list {
				out, err := s.router.Run(t.Context(), "ip", "route", "get", to)
				if err != nil {
					t.Fatal(err)
				}
				if overlay := strings.Contains(out, "dev overlay0"); overlay != (i == 0) {
					t.Errorf("%s: %s goes by %q", c.name, to, out)
				}
				// What carries the overlay never leads into it.
				out, err = s.router.Run(t.Context(), "ip", "route", "get", to, "mark", fmt.Sprint(Mark))
				if err != nil || strings.Contains(out, "dev overlay0") {
					t.Errorf("%s: %s, marked, goes by %q, %v", c.name, to, out, err)
				}
			}
		}
	}
	// Without a route of its own a marked packet goes nowhere.
	s.configure(exit)
	if out, err := s.router.Run(t.Context(), "ip", "-6", "route", "get", "2001:db8::1", "mark", fmt.Sprint(Mark)); err == nil {
		t.Errorf("a marked packet without a route goes by %q", out)
	}
	if out, err := s.router.Run(t.Context(), "ip", "-6", "route", "get", "2001:db8::1"); err != nil || !strings.Contains(out, "dev overlay0") {
		t.Errorf("IPv6 leaves around the exit node: %q, %v", out, err)
	}
}

func TestUnavailable(t *testing.T) {
	r := Unavailable(ErrUnsupported)
	if err := r.Configure(settings()); err != nil {
		t.Error(err)
	}
	if err := r.Configure(settings("10.20.0.0/24")); !errors.Is(err, ErrUnsupported) {
		t.Error(err)
	}
	leading := settings()
	leading.Exit, leading.Accept = true, leading.Overlay
	if err := r.Configure(leading); !errors.Is(err, ErrUnsupported) {
		t.Error(err)
	}
	bad := settings()
	bad.Accept = []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("10.0.0.1"), 8)}
	if err := bad.Validate(); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}
