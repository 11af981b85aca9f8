package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	wgtun "golang.zx2c4.com/wireguard/tun"
)

// newNamespace moves the test's thread into an empty network namespace for the
// rest of the test; thread and namespace end with it.
func newNamespace(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // never unlocked, so that the thread is not used again
	ns, err := netns.New()
	if err != nil {
		t.Skip("a network namespace is not permitted here:", err)
	}
	t.Cleanup(func() { ns.Close() })
}

func open(t *testing.T, cfg Config) *osDevice {
	t.Helper()
	d, err := Open(cfg)
	if errors.Is(err, ErrNoDevice) || errors.Is(err, ErrPermission) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d.(*osDevice)
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

// installed returns the device's addresses and its own routes.
func installed(t *testing.T, d *osDevice) (addresses, routes []netip.Prefix) {
	t.Helper()
	link, err := netlink.LinkByIndex(d.index)
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := netlink.AddrList(link, family)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range list {
			p, _ := prefixOf(a.IPNet)
			addresses = append(addresses, p)
		}
		table, err := netlink.RouteList(link, family)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range table {
			if r.Protocol == routeProtocol {
				p, _ := routePrefix(r, family)
				routes = append(routes, p)
			}
		}
	}
	compare := func(a, b netip.Prefix) int { return a.Compare(b) }
	slices.SortFunc(addresses, compare)
	slices.SortFunc(routes, compare)
	return addresses, routes
}

func TestConfigure(t *testing.T) {
	newNamespace(t)
	d := open(t, Config{Name: "warrentest"})
	steps := []struct {
		name     string
		settings Settings
		disturb  func(link netlink.Link)
	}{
		{name: "first", settings: Settings{
			Addresses: prefixes("100.64.0.1/32", "fd00:77::1/128"),
			Routes:    prefixes("100.64.0.0/10", "fd00:77::/48"),
			MTU:       1400,
		}},
		{name: "again", settings: Settings{
			Addresses: prefixes("100.64.0.1/32", "fd00:77::1/128"),
			Routes:    prefixes("100.64.0.0/10", "fd00:77::/48"),
		}},
		{name: "restored", settings: Settings{
			Addresses: prefixes("100.64.0.1/32", "fd00:77::1/128"),
			Routes:    prefixes("100.64.0.0/10", "fd00:77::/48"),
		}, disturb: func(link netlink.Link) {
			list, _ := netlink.AddrList(link, netlink.FAMILY_V4)
			if err := netlink.AddrDel(link, &list[0]); err != nil {
				t.Fatal(err)
			}
			if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNetOf(netip.MustParsePrefix("10.9.9.9/32"))}); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "changed", settings: Settings{
			Addresses: prefixes("100.64.0.2/32"),
			Routes:    prefixes("10.1.0.0/16", "100.64.0.0/10", "fd00:88::/64"),
		}},
		{name: "default routes", settings: Settings{
			Addresses: prefixes("100.64.0.2/32", "fd00:77::1/128"),
			Routes:    prefixes("0.0.0.0/0", "::/0"),
		}},
		{name: "none", settings: Settings{}},
	}
	for _, step := range steps {
		link, err := netlink.LinkByIndex(d.index)
		if err != nil {
			t.Fatal(err)
		}
		if step.disturb != nil {
			step.disturb(link)
		}
		if err := d.Configure(step.settings); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		addresses, routes := installed(t, d)
		if !slices.Equal(addresses, step.settings.Addresses) || !slices.Equal(routes, step.settings.Routes) {
			t.Errorf("%s: addresses %v routes %v, want %v %v", step.name, addresses, routes, step.settings.Addresses, step.settings.Routes)
		}
		if mtu, _ := d.MTU(); mtu != 1400 {
			t.Errorf("%s: MTU %d", step.name, mtu)
		}
	}
	if err := d.Configure(Settings{Routes: []netip.Prefix{{}}}); err == nil {
		t.Error("an invalid route was accepted")
	}
}

func TestConfigureKeepsForeignRoutes(t *testing.T) {
	newNamespace(t)
	dummy := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "other"}}
	if err := netlink.LinkAdd(dummy); err != nil {
		t.Skip("no dummy interfaces here:", err)
	}
	if err := netlink.LinkSetUp(dummy); err != nil {
		t.Fatal(err)
	}
	taken := netip.MustParsePrefix("100.64.0.0/10")
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: dummy.Index, Dst: ipNetOf(taken), Scope: netlink.SCOPE_LINK}); err != nil {
		t.Fatal(err)
	}
	d := open(t, Config{Name: "warrentest"})
	err := d.Configure(Settings{Addresses: prefixes("100.64.0.1/32"), Routes: []netip.Prefix{taken, netip.MustParsePrefix("10.0.0.0/8")}})
	if err == nil {
		t.Error("the route of another interface was taken without an error")
	}
	if _, routes := installed(t, d); !slices.Equal(routes, prefixes("10.0.0.0/8")) {
		t.Errorf("routes %v: the rest was not done", routes)
	}
	// A route somebody put on our device is not ours to remove.
	theirs := &netlink.Route{LinkIndex: d.index, Dst: ipNetOf(netip.MustParsePrefix("192.0.2.0/24")), Scope: netlink.SCOPE_LINK}
	if err := netlink.RouteAdd(theirs); err != nil {
		t.Fatal(err)
	}
	if err := d.Configure(Settings{Addresses: prefixes("100.64.0.1/32")}); err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteDel(theirs); err != nil {
		t.Errorf("the administrator's route: %v", err)
	}
}

func TestCloseRemovesAll(t *testing.T) {
	newNamespace(t)
	d := open(t, Config{Name: "warrentest"})
	if err := d.Configure(Settings{Addresses: prefixes("100.64.0.1/32"), Routes: prefixes("100.64.0.0/10")}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		bufs, sizes := buffers(d.BatchSize())
		for {
			if _, err := d.Read(bufs, sizes, Headroom); err != nil {
				if !errors.Is(err, os.ErrClosed) {
					t.Errorf("Read: %v", err)
				}
				return
			}
		}
	})
	for range 2 {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	if _, err := d.Write([][]byte{make([]byte, 100)}, Headroom); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write after Close: %v", err)
	}
	if err := d.Configure(Settings{}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Configure after Close: %v", err)
	}
	if _, err := netlink.LinkByName("warrentest"); err == nil {
		t.Error("the interface is still there")
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
		if err != nil || len(routes) != 0 {
			t.Errorf("routes left: %v, %v", routes, err)
		}
	}
}

func TestOpenExistingName(t *testing.T) {
	newNamespace(t)
	d := open(t, Config{Name: "warrentest"})
	if _, err := Open(Config{Name: "warrentest"}); !errors.Is(err, ErrBusy) {
		t.Errorf("a device in use: %v", err)
	}
	d.Close()
	dummy := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "warrentest"}}
	if err := netlink.LinkAdd(dummy); err != nil {
		t.Skip("no dummy interfaces here:", err)
	}
	if _, err := Open(Config{Name: "warrentest"}); !errors.Is(err, ErrNotTUN) {
		t.Errorf("a name of another kind of interface: %v", err)
	}
	if err := netlink.LinkDel(dummy); err != nil {
		t.Fatal(err)
	}
	// What "ip tuntap add" or a crashed program of another make leaves.
	persistent := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "warrentest"}, Mode: netlink.TUNTAP_MODE_TUN}
	if err := netlink.LinkAdd(persistent); err != nil {
		t.Fatal(err)
	}
	for _, file := range persistent.Fds {
		file.Close()
	}
	if err := netlink.AddrAdd(persistent, &netlink.Addr{IPNet: ipNetOf(netip.MustParsePrefix("10.0.0.1/32"))}); err != nil {
		t.Fatal(err)
	}
	d = open(t, Config{Name: "warrentest"})
	if err := d.Configure(Settings{Addresses: prefixes("100.64.0.1/32")}); err != nil {
		t.Fatal(err)
	}
	if addresses, _ := installed(t, d); !slices.Equal(addresses, prefixes("100.64.0.1/32")) {
		t.Errorf("taken over with addresses %v", addresses)
	}
	d.Close()
	if _, err := netlink.LinkByName("warrentest"); err == nil {
		t.Error("the taken-over interface outlives us")
	}
}

func TestOpenDefaultName(t *testing.T) {
	newNamespace(t)
	a, b := open(t, Config{}), open(t, Config{})
	nameA, _ := a.Name()
	nameB, _ := b.Name()
	if nameA != "warren0" || nameB != "warren1" {
		t.Errorf("names %q and %q", nameA, nameB)
	}
}

func TestMTUChangedOutside(t *testing.T) {
	newNamespace(t)
	d := open(t, Config{Name: "warrentest"})
	if err := d.Configure(Settings{}); err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByIndex(d.index)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetMTU(link, 1300); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for mtu := 0; mtu != 1300; mtu, _ = d.MTU() {
		if time.Now().After(deadline) {
			t.Fatal("the changed MTU was never noticed")
		}
		runtime.Gosched()
	}
}

func buffers(n int) (bufs [][]byte, sizes []int) {
	bufs = make([][]byte, n)
	for i := range bufs {
		bufs[i] = make([]byte, Headroom+65535)
	}
	return bufs, make([]int, n)
}

// throughDevice opens a device, and a socket whose packets leave by it.
func throughDevice(t *testing.T) (*osDevice, *net.UDPConn) {
	t.Helper()
	newNamespace(t)
	d := open(t, Config{Name: "warrentest"})
	if err := d.Configure(Settings{Addresses: prefixes("100.64.0.1/32"), Routes: prefixes("100.64.0.0/10")}); err != nil {
		t.Fatal(err)
	}
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort("100.64.0.9:7")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return d, conn
}

// TestPacketsBothWays sends a datagram through the device and answers it.
func TestPacketsBothWays(t *testing.T) {
	d, conn := throughDevice(t)
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	bufs, sizes := buffers(d.BatchSize())
	for answered := false; !answered; {
		n, err := d.Read(bufs, sizes, Headroom)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			packet := bufs[i][Headroom : Headroom+sizes[i]]
			if packet[0]>>4 != 4 || packet[9] != 17 || !bytes.HasSuffix(packet, []byte("hello")) {
				continue
			}
			// Swapping addresses and ports leaves every checksum right.
			for j := range 4 {
				packet[12+j], packet[16+j] = packet[16+j], packet[12+j]
			}
			src, dst := binary.BigEndian.Uint16(packet[20:]), binary.BigEndian.Uint16(packet[22:])
			binary.BigEndian.PutUint16(packet[20:], dst)
			binary.BigEndian.PutUint16(packet[22:], src)
			if _, err := d.Write([][]byte{bufs[i][:Headroom+sizes[i]]}, Headroom); err != nil {
				t.Fatal(err)
			}
			answered = true
		}
	}
	reply := make([]byte, 100)
	n, err := conn.Read(reply)
	if err != nil || string(reply[:n]) != "hello" {
		t.Fatalf("reply %q, %v", reply[:n], err)
	}
	if _, err := d.Write(bufs[:1], Headroom-1); err == nil {
		t.Error("a write without headroom was accepted")
	}
}

// TestReadTakesWhatWaits: packets that wait are read at once, in their order.
func TestReadTakesWhatWaits(t *testing.T) {
	d, conn := throughDevice(t)
	const sent = 20
	for i := range byte(sent) {
		if _, err := conn.Write([]byte{'n', i}); err != nil {
			t.Fatal(err)
		}
	}
	bufs, sizes := buffers(d.BatchSize())
	n, err := d.Read(bufs, sizes, Headroom)
	if err != nil {
		t.Fatal(err)
	}
	next := byte(0) // the kernel's own packets, of IPv6, come in between
	for i := range n {
		if packet := bufs[i][Headroom : Headroom+sizes[i]]; packet[0]>>4 == 4 {
			if !bytes.Equal(packet[28:], []byte{'n', next}) {
				t.Fatalf("packet %d is % x", next, packet)
			}
			next++
		}
	}
	if next != sent {
		t.Errorf("%d of %d packets were read at once", next, sent)
	}
}

// pieces is a native device that hands over pieces of so many packets.
type pieces struct {
	wgtun.Device
	sizes []int
}

func (p *pieces) Read(bufs [][]byte, sizes []int, _ int) (int, error) {
	if len(p.sizes) == 0 {
		return 0, os.ErrClosed
	}
	n := p.sizes[0]
	p.sizes = p.sizes[1:]
	clear(sizes[:min(n, len(bufs))])
	if n > len(bufs) {
		return len(bufs), wgtun.ErrTooManySegments
	}
	return n, nil
}

// TestShortSegmentsGetAllTheRoom: what does not fit behind another piece is lost once,
// and no more after that; and a device that ends says so after what it had.
func TestShortSegmentsGetAllTheRoom(t *testing.T) {
	reader, writer, err := os.Pipe() // always readable
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	defer writer.Close()
	if _, err := writer.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	raw, err := reader.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	d := &osDevice{native: &pieces{sizes: []int{10, 15, 54, 40, 20, 122, 10, 122}}, raw: raw}
	bufs, sizes := buffers(128)
	for i, want := range []struct {
		n   int
		err error
	}{
		{79, nil},                 // three pieces are enough
		{40, nil},                 // one is
		{128, ErrTooManySegments}, // one that does not fit behind another
		{10, nil}, {122, nil},     // none behind another any more
		{0, os.ErrClosed},
	} {
		if n, err := d.Read(bufs, sizes, Headroom); n != want.n || !errors.Is(err, want.err) {
			t.Fatalf("read %d: %d packets, %v; want %d, %v", i, n, err, want.n, want.err)
		}
	}
	d = &osDevice{native: &pieces{sizes: []int{10}}, raw: raw}
	if n, err := d.Read(bufs, sizes, Headroom); n != 10 || err != nil {
		t.Fatalf("%d packets and %v of a device that ends", n, err)
	}
}
