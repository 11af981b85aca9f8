//go:build linux

package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-overlay/warren/tests/lab"
)

// stallLimit is that of fault F14 of reliability.md.
const stallLimit = 3 * time.Second

// mtuOf returns how long packets of a node to another may be: what its status
// says.
func mtuOf(t *testing.T, from, to *lab.Node) int {
	t.Helper()
	s, err := from.API().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range s.Peers {
		if p.Name == to.Host.Name {
			return p.MTU
		}
	}
	return 0
}

// narrows are two hosts of an internet, at its sites 1 and 2, with a network in
// between that carries less than their links do and says nothing of it, as every
// ICMP error is dropped.
type narrows struct {
	internet *lab.Internet
	hosts    []*lab.Host
}

// newNarrows adds the hosts. A router that is like that lowers the segment size of
// TCP, or nothing at all would work behind it. Where it is named, UDP of that
// family, "ipv4" or "ipv6", does not go between the two.
func newNarrows(internet *lab.Internet, bytes int, without string, names ...string) *narrows {
	n := &narrows{internet: internet}
	for _, name := range names {
		n.hosts = append(n.hosts, internet.Public(name))
	}
	n.hop(bytes)
	blocked := ""
	if without != "" {
		blocked = "meta nfproto " + without + ` meta l4proto udp iifname { "site1", "site2" } oifname { "site1", "site2" } drop`
	}
	internet.Core.Nft(`table inet silent {
	chain output {
		type filter hook output priority filter;
		icmp type destination-unreachable drop
		icmpv6 type { packet-too-big, destination-unreachable } drop
	}
	chain forward {
		type filter hook forward priority filter;
		tcp flags syn tcp option maxseg size set rt mtu
		` + blocked + `
	}
}
`)
	return n
}

// hop sets what the network carries towards either host.
func (n *narrows) hop(bytes int) {
	for i, h := range n.hosts {
		port := fmt.Sprintf("site%d", i+1)
		n.internet.Core.Narrow(port, h.V4, bytes)
		n.internet.Core.Narrow(port, h.V6, max(bytes, 1280)) // RFC 8200 5
	}
}

// links sets the MTU of the links of hosts, both of them where none is given.
func (n *narrows) links(bytes int, which ...int) {
	for i, h := range n.hosts {
		if len(which) == 0 || slices.Contains(which, i) {
			h.SetMTU("eth0", bytes)
			n.internet.Core.SetMTU(fmt.Sprintf("site%d", i+1), bytes)
		}
	}
}

// fits waits until two nodes are direct, and know one of the pairs of lengths to be
// the greatest of what a may send b, and b may send a.
func fits(t *testing.T, a, b *lab.Node, want ...[2]int) {
	t.Helper()
	lab.Eventually(t, 30*time.Second, func() error {
		got := [2]int{mtuOf(t, a, b), mtuOf(t, b, a)}
		if kind := pathKind(t, a, b); kind != "direct" || !slices.Contains(want, got) {
			return fmt.Errorf("%s, %v there and back; want one of %v", kind, got, want)
		}
		return nil
	})
}

// both is one length there and back.
func both(bytes int) [2]int { return [2]int{bytes, bytes} }

// goOn requires that flows go on, and stood still no longer than F14 allows since
// begin.
func goOn(t *testing.T, flows []*lab.Transfer, begin time.Time, when string) {
	t.Helper()
	for i, f := range flows {
		f.Steady(t, 30*time.Second)
		gap := f.Gap(begin)
		if t.Logf("flow %d stood still for %v at most %s", i, gap, when); gap > stallLimit {
			t.Errorf("flow %d stood still for %v %s", i, gap, when)
		}
	}
}

// finish ends flows, of which everything must have arrived.
func finish(t *testing.T, flows []*lab.Transfer) {
	t.Helper()
	for _, f := range flows {
		t.Logf("%d bytes arrived as they were sent", f.Finish(t))
	}
}

// TestPathMTU is fault F14: the network between two nodes carries less than
// Ethernet does, in both directions, and nothing says so, as every ICMP error is
// dropped. The links of the nodes themselves are as wide as ever:
//
//	a ---1500--- core ---hop---- b
//	a ---hop---- core ---1500--- b
//
// Connections with long packets go both ways, in both families inside, from before
// there is a direct path. Where the links of the nodes are of jumbo frames, so are
// their devices, until the links become narrow.
func TestPathMTU(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		hop     int
		six     bool // the nodes reach each other by IPv6 only
		want    int  // inside
		shrinks bool
		// jumbo links are as wide as the hop at both nodes, and the devices follow
		// them.
		jumbo bool
	}{
		{hop: 1500, want: 1420, shrinks: true},
		{hop: 1500, six: true, want: 1420},
		{hop: 1280, want: 1216},
		{hop: 1280, six: true, want: 1200},
		{hop: 1200, want: 1136},
		{hop: 9000, want: 8920, jumbo: true},
	} {
		t.Run(fmt.Sprintf("%d, IPv6 %v", test.hop, test.six), func(t *testing.T) {
			n := newTravellers(t)
			other := "ipv6"
			if test.six {
				other = "ipv4"
			}
			between := newNarrows(n.internet, test.hop, other, "a", "b")
			if test.jumbo {
				between.links(test.hop)
				between.hop(test.hop)
			}
			a, b := n.join(t, between.hosts[0]), n.join(t, between.hosts[1])
			begin, flows := openBoth(t, a, b)
			fits(t, a, b, both(test.want))
			goOn(t, flows, begin, "")
			if err := echoLong(a.Host, b.Host, address(b, "-6", 7002)); err != nil {
				t.Error(err)
			}
			if test.shrinks {
				begin = time.Now()
				between.hop(1280)
				fits(t, a, b, both(1216))
				goOn(t, flows, begin, "when the path had shrunk")
			}
			if !test.jumbo {
				devices(t, 1420, between.hosts...)
			} else {
				devices(t, 8920, between.hosts...)
				between.links(1500)
				fits(t, a, b, both(1420))
				devices(t, 1420, between.hosts...)
				for _, f := range flows {
					f.Steady(t, 30*time.Second)
				}
			}
			finish(t, flows)
		})
	}
}

// devices requires an MTU of the hosts' devices.
func devices(t *testing.T, want int, hosts ...*lab.Host) {
	t.Helper()
	for _, h := range hosts {
		if got := h.MTU("warren0"); got != want {
			t.Errorf("the device of %s has an MTU of %d, want %d", h.Name, got, want)
		}
	}
}

// TestPathMTUInUserspace is F14 between a node with a TUN device and one without:
// connections that either opens, in both families, over a hop that says nothing: of
// 1280 bytes, and of jumbo frames at first and 1280 bytes later, when the links become
// narrow as well.
func TestPathMTUInUserspace(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		hop  int
		want [][2]int
	}{
		{1280, [][2]int{both(1216), both(1200)}}, // by IPv4 or IPv6, whichever is nearer
		{9000, [][2]int{both(8920)}},
	} {
		t.Run(fmt.Sprint(test.hop), func(t *testing.T) {
			n := newTravellers(t)
			between := newNarrows(n.internet, test.hop, "", "a", "u")
			if test.hop > 1500 {
				between.links(test.hop)
				between.hop(test.hop)
			}
			const proxy = "127.0.0.1:1081"
			a, u := n.join(t, between.hosts[0]), n.join(t, between.hosts[1], "--tun", userspace, "--http-proxy", proxy)
			begin := time.Now()
			var flows []*lab.Transfer
			for i, family := range families {
				there, back := address(u, family, 7000), address(a, family, 7001)
				opened, err := lab.OpenBulkBy(t, func(ctx context.Context) (net.Conn, error) {
					return a.Host.Dial(ctx, "tcp", there)
				}, u.Host, joined([]string{"127.0.0.1", "::1"}[i], 7000))
				if err != nil {
					t.Fatal(err)
				}
				asked, err := lab.OpenBulkBy(t, func(ctx context.Context) (net.Conn, error) {
					c, err := dialCONNECT(ctx, u.Host, proxy, back)
					if err == nil {
						err = c.SetDeadline(time.Time{})
					}
					return c, err
				}, a.Host, back)
				if err != nil {
					t.Fatal(err)
				}
				flows = append(flows, opened, asked)
			}
			fits(t, a, u, test.want...)
			goOn(t, flows, begin, "")
			if test.hop > 1500 {
				begin = time.Now()
				between.hop(1280)
				between.links(1500)
				fits(t, a, u, both(1216), both(1200))
				goOn(t, flows, begin, "when links and path had shrunk")
			}
			finish(t, flows)
		})
	}
}

// behindPolicy lets nodes reach each other, and what is behind routers.
const behindPolicy = `{
	"tagOwners": {"tag:node": ["alice@example.com"]},
	"autoApprovers": {"routes": {"10.20.0.0/24": ["tag:node"], "fd20::/64": ["tag:node"]}},
	"grants": [{"src": ["tag:node"], "dst": ["tag:node", "10.20.0.0/24", "fd20::/64"], "ip": ["tcp:7000-7099", "udp:7000-7099"]}],
}`

// TestPathMTUBehindRouter is F14 for a host behind a subnet router, which knows
// nothing of the overlay and has a link of 1500 bytes:
//
//	office ---1500--- gw ---1500--- core ---hop---- b
//	                  gw ---hop---- core ---1500--- b
//
// Connections of a peer carry long packets either way, in both families. They go on
// when the path shrinks, of which the router must tell the host of the office, since
// nobody else can.
func TestPathMTUBehindRouter(t *testing.T) {
	t.Parallel()
	n := newTravellers(t)
	n.coordinator.SetPolicy(behindPolicy)
	between := newNarrows(n.internet, 1500, "ipv6", "gw", "b")
	office := n.internet.Bare("office")
	lab.Wire(office, between.hosts[0], "eth0", "office0")
	office.Address("eth0", "10.20.0.10/24", "fd20::10/64")
	between.hosts[0].Address("office0", "10.20.0.1/24", "fd20::1/64")
	gw := between.hosts[0].Daemon(t)
	gw.CLI("up", "--login-server", n.coordinator.URL(), "--auth-key", n.key, "--hostname", "gw", "--advertise-routes", "10.20.0.0/24,fd20::/64")
	b := n.join(t, between.hosts[1])
	b.CLI("set", "--accept-routes")
	eventuallySeenAs(t, b.Host, office, "10.20.0.10:7010", "10.20.0.1")
	eventuallySeenAs(t, b.Host, office, "[fd20::10]:7010", "fd20::1")

	begin := time.Now()
	var flows []*lab.Transfer
	for i, address := range []string{"10.20.0.10", "fd20::10"} {
		up, err := lab.OpenBulk(t, b.Host, office, joined(address, 7000+2*i))
		if err != nil {
			t.Fatal(err)
		}
		down, err := lab.OpenDownload(t, b.Host, office, joined(address, 7001+2*i))
		if err != nil {
			t.Fatal(err)
		}
		flows = append(flows, up, down)
	}
	fits(t, gw, b, both(1420))
	goOn(t, flows, begin, "")
	for _, family := range []struct {
		address string
		want    int
	}{{"10.20.0.10", 1420}, {"fd20::10", 1420}} {
		if got, err := answersUpTo(b.Host, office, joined(family.address, 7020), 1500); err != nil || got != family.want {
			t.Errorf("the office may send %d bytes from %s, want %d: %v", got, family.address, family.want, err)
		}
	}

	begin = time.Now()
	between.hop(1280)
	fits(t, gw, b, both(1216))
	goOn(t, flows, begin, "when the path had shrunk")
	// Of IPv6, what is not longer than 1280 bytes goes in fragments.
	for _, family := range []struct {
		address string
		want    int
	}{{"10.20.0.10", 1216}, {"fd20::10", 1280}} {
		if got, err := answersUpTo(b.Host, office, joined(family.address, 7021), 1420); err != nil || got != family.want {
			t.Errorf("when the path had shrunk the office may send %d bytes from %s, want %d: %v", got, family.address, family.want, err)
		}
	}
	finish(t, flows)
}

// TestJumboMeetsEthernet has one node on links of jumbo frames, with a device of that
// length, and another with a device like on Ethernet, behind a network that says
// nothing (F14): connections with long packets go both ways. What the link of the
// other does not carry, the system of the one says itself; where only its device is
// short, what is longer arrives all the same.
func TestJumboMeetsEthernet(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		links []int // that are of jumbo frames
		hop   int
		flags []string
		want  [2]int
		// refused is what the system knows when a refuses 8000 bytes, zero where they
		// arrive.
		refused int
	}{
		// 1500 less IPv4, UDP and WireGuard.
		{"a link of 1500 bytes", []int{0}, 1500, nil, [2]int{1440, 1420}, 1440},
		{"a device of 1420 bytes", []int{0, 1}, 9000, []string{"--mtu", "1420"}, [2]int{8920, 1420}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newTravellers(t)
			between := newNarrows(n.internet, test.hop, "ipv6", "a", "b")
			between.links(9000, test.links...)
			between.hop(test.hop)
			a, b := n.join(t, between.hosts[0]), n.join(t, between.hosts[1], test.flags...)
			begin, flows := openBoth(t, a, b)
			fits(t, a, b, test.want)
			devices(t, 8920, a.Host)
			devices(t, 1420, b.Host)
			goOn(t, flows, begin, "")
			for _, family := range families {
				if got, err := answersUpTo(b.Host, a.Host, address(a, family, 7020), 8000); err != nil || got != test.refused {
					t.Errorf("%s: the node of jumbo frames may send %d bytes, want %d: %v", family, got, test.refused, err)
				}
			}
			finish(t, flows)
		})
	}
}

// setOption sets an option of a socket that is being made.
func setOption(c syscall.RawConn, level, option, value int) (err error) {
	if refused := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, value) }); refused != nil {
		return refused
	}
	return err
}

// answersUpTo has a host send a datagram to another, which answers with packets of
// the given length that may not be cut, until its system says that they are too
// long for their way. It returns how long they may be as the system knows then, zero
// where an answer arrives.
func answersUpTo(from, to *lab.Host, address string, length int) (bytes int, err error) {
	var server net.PacketConn
	if err := to.Try(func() (err error) {
		listener := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return setOption(c, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }}
		server, err = listener.ListenPacket(context.Background(), "udp", address)
		return err
	}); err != nil {
		return 0, err
	}
	defer server.Close()
	var client net.Conn
	if err := from.Try(func() (err error) {
		client, err = net.Dial("udp", address)
		return err
	}); err != nil {
		return 0, err
	}
	defer client.Close()
	if _, err := client.Write([]byte("how long may packets be?")); err != nil {
		return 0, err
	}
	if err := server.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return 0, err
	}
	_, asker, err := server.ReadFrom(make([]byte, 100))
	if err != nil {
		return 0, err
	}
	// Connected, the socket can be asked.
	local, err := netip.ParseAddrPort(address)
	if err != nil {
		return 0, err
	}
	server.Close()
	level, discover, does, known, header := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO, unix.IP_MTU, 28
	if local.Addr().Is6() {
		level, discover, does, known, header = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO, unix.IPV6_MTU, 48
	}
	var answers net.Conn
	// A program that another test is starting holds the closed socket until it runs, so
	// the address is shared.
	dialer := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(local), Control: func(_, _ string, c syscall.RawConn) error {
		return errors.Join(setOption(c, level, discover, does), setOption(c, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	}}
	if err := to.Try(func() (err error) {
		answers, err = dialer.Dial("udp", asker.String())
		return err
	}); err != nil {
		return 0, err
	}
	defer answers.Close()
	long := make([]byte, length-header)
	for end := time.Now().Add(20 * time.Second); ; {
		_, err := answers.Write(long)
		if errors.Is(err, unix.EMSGSIZE) {
			break
		}
		if err != nil {
			return 0, err
		}
		if time.Now().After(end) {
			return 0, fmt.Errorf("nobody said that %d bytes are too long", length)
		}
		if err := client.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			return 0, err
		}
		if n, err := client.Read(make([]byte, length)); err == nil && n == len(long) {
			return 0, nil
		}
	}
	raw, err := answers.(*net.UDPConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	if refused := raw.Control(func(fd uintptr) { bytes, err = unix.GetsockoptInt(int(fd), level, known) }); refused != nil {
		return 0, refused
	}
	return bytes, err
}

// openBoth opens connections from a to b by IPv4 and from b to a by IPv6 at the
// same time, and returns when that was.
func openBoth(t *testing.T, a, b *lab.Node) (begin time.Time, flows []*lab.Transfer) {
	t.Helper()
	there, back := address(b, "-4", 7000), address(a, "-6", 7001)
	flows = make([]*lab.Transfer, 2)
	errs := make([]error, 2)
	begin = time.Now()
	var opening sync.WaitGroup
	opening.Go(func() { flows[0], errs[0] = lab.OpenBulk(t, a.Host, b.Host, there) })
	opening.Go(func() { flows[1], errs[1] = lab.OpenBulk(t, b.Host, a.Host, back) })
	opening.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return begin, flows
}

// echoLong sends datagrams of 1280 bytes of IPv6, which every path carries, and
// waits until one arrives.
func echoLong(from, to *lab.Host, address string) error {
	var server net.PacketConn
	if err := to.Try(func() (err error) {
		server, err = net.ListenPacket("udp", address)
		return err
	}); err != nil {
		return err
	}
	defer server.Close()
	var client net.Conn
	if err := from.Try(func() (err error) {
		client, err = net.Dial("udp", address)
		return err
	}); err != nil {
		return err
	}
	defer client.Close()
	want, got := bytes.Repeat([]byte("warren 7"), (1280-48)/8), make([]byte, 2000)
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		if _, err := client.Write(want); err != nil {
			return fmt.Errorf("a packet that IPv6 allows everybody was refused: %w", err)
		}
		if err := server.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			return err
		}
		if n, _, err := server.ReadFrom(got); err == nil {
			if !bytes.Equal(got[:n], want) {
				return errors.New("a long datagram arrived altered")
			}
			return nil
		}
	}
	return errors.New("no packet of 1280 bytes arrived")
}
