//go:build linux

package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

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

// TestPathMTU is fault F14: the network between two nodes carries less than
// Ethernet does, in both directions, and nothing says so, as every ICMP error is
// dropped. The links of the nodes themselves are as wide as ever:
//
//	a ---1500--- core ---hop---- b
//	a ---hop---- core ---1500--- b
//
// A router that is like that lowers the segment size of TCP, or nothing at all
// would work behind it. Connections with long packets go both ways, in both
// families inside, from before there is a direct path. Where the links of the nodes
// are of jumbo frames, so are their devices, until the links become narrow.
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
			hosts := []*lab.Host{n.internet.Public("a"), n.internet.Public("b")}
			ports := []string{"site1", "site2"}
			hop := func(bytes int) {
				for i, h := range hosts {
					n.internet.Core.Narrow(ports[i], h.V4, bytes)
					n.internet.Core.Narrow(ports[i], h.V6, max(bytes, 1280)) // RFC 8200 5
				}
			}
			links := func(bytes int) {
				for i, h := range hosts {
					h.SetMTU("eth0", bytes)
					n.internet.Core.SetMTU(ports[i], bytes)
				}
			}
			if test.jumbo {
				links(test.hop)
			}
			hop(test.hop)
			other := "ipv6"
			if test.six {
				other = "ipv4"
			}
			n.internet.Core.Nft(`table inet silent {
	chain output {
		type filter hook output priority filter;
		icmp type destination-unreachable drop
		icmpv6 type { packet-too-big, destination-unreachable } drop
	}
	chain forward {
		type filter hook forward priority filter;
		tcp flags syn tcp option maxseg size set rt mtu
		meta nfproto ` + other + ` meta l4proto udp iifname { "site1", "site2" } oifname { "site1", "site2" } drop
	}
}
`)
			a, b := n.join(t, hosts[0]), n.join(t, hosts[1])
			begin, flows := openBoth(t, a, b)
			fits := func(want int) {
				t.Helper()
				lab.Eventually(t, 30*time.Second, func() error {
					there, back := mtuOf(t, a, b), mtuOf(t, b, a)
					if kind := pathKind(t, a, b); kind != "direct" || there != want || back != want {
						return fmt.Errorf("%s, %d there, %d back; want %d", kind, there, back, want)
					}
					return nil
				})
			}
			fits(test.want)
			for i, f := range flows {
				f.Steady(t, 30*time.Second)
				gap := f.Gap(begin)
				if t.Logf("flow %d stood still for %v at most", i, gap); gap > stallLimit {
					t.Errorf("flow %d stood still for %v", i, gap)
				}
			}
			if err := echoLong(a.Host, b.Host, address(b, "-6", 7002)); err != nil {
				t.Error(err)
			}
			if test.shrinks {
				begin = time.Now()
				hop(1280)
				fits(1216)
				for i, f := range flows {
					f.Steady(t, 30*time.Second)
					gap := f.Gap(begin)
					if t.Logf("flow %d stood still for %v when the path had shrunk", i, gap); gap > stallLimit {
						t.Errorf("flow %d stood still for %v", i, gap)
					}
				}
			}
			device := func(want int) {
				t.Helper()
				for _, h := range hosts {
					if got := h.MTU("warren0"); got != want {
						t.Errorf("the device of %s has an MTU of %d, want %d", h.Name, got, want)
					}
				}
			}
			if !test.jumbo {
				device(1420)
			} else {
				device(8920)
				links(1500)
				fits(1420)
				device(1420)
				for _, f := range flows {
					f.Steady(t, 30*time.Second)
				}
			}
			for _, f := range flows {
				t.Logf("%d bytes arrived as they were sent", f.Finish(t))
			}
		})
	}
}

// TestPathMTUInUserspace is F14 between a node with a TUN device and one without:
// connections that either opens, in both families, over a hop of 1280 bytes that
// says nothing.
func TestPathMTUInUserspace(t *testing.T) {
	t.Parallel()
	n := newTravellers(t)
	hosts := []*lab.Host{n.internet.Public("a"), n.internet.Public("u")}
	for i, h := range hosts {
		port := []string{"site1", "site2"}[i]
		n.internet.Core.Narrow(port, h.V4, 1280)
		n.internet.Core.Narrow(port, h.V6, 1280)
	}
	n.internet.Core.Nft(`table inet silent {
	chain output {
		type filter hook output priority filter;
		icmp type destination-unreachable drop
		icmpv6 type { packet-too-big, destination-unreachable } drop
	}
	chain forward {
		type filter hook forward priority filter;
		tcp flags syn tcp option maxseg size set rt mtu
	}
}
`)
	const proxy = "127.0.0.1:1081"
	a, u := n.join(t, hosts[0]), n.join(t, hosts[1], "--tun", userspace, "--http-proxy", proxy)
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
	lab.Eventually(t, 30*time.Second, func() error {
		there, back := mtuOf(t, a, u), mtuOf(t, u, a)
		// By IPv4 or IPv6, whichever is nearer.
		if kind := pathKind(t, a, u); kind != "direct" || there != back || there != 1216 && there != 1200 {
			return fmt.Errorf("%s, %d there, %d back", kind, there, back)
		}
		return nil
	})
	for i, f := range flows {
		f.Steady(t, 30*time.Second)
		gap := f.Gap(begin)
		if t.Logf("flow %d stood still for %v at most", i, gap); gap > stallLimit {
			t.Errorf("flow %d stood still for %v", i, gap)
		}
	}
	for _, f := range flows {
		t.Logf("%d bytes arrived as they were sent", f.Finish(t))
	}
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
