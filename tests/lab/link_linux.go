package lab

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Bare makes a host that is on no LAN.
func (l *Lab) Bare(name string) *Host {
	l.t.Helper()
	return l.newHost(name)
}

// Wire joins two hosts by a cable with an interface of the given name at both
// ends, without addresses.
func Wire(a, b *Host, nameA, nameB string) {
	a.t.Helper()
	a.Do(func() error {
		pair := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: nameA}, PeerName: nameB, PeerNamespace: netlink.NsFd(b.space),
		}
		if err := netlink.LinkAdd(pair); err != nil {
			return fmt.Errorf("adding %s: %w", nameA, err)
		}
		return nil
	})
	a.linkUp(nameA)
	b.linkUp(nameB)
}

func (h *Host) linkUp(name string) {
	h.t.Helper()
	h.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
}

// SetMTU sets the MTU of an interface of the host.
func (h *Host) SetMTU(name string, bytes int) {
	h.t.Helper()
	h.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(link, bytes)
	})
}

// MTU returns the MTU of an interface of the host.
func (h *Host) MTU(name string) (bytes int) {
	h.t.Helper()
	h.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err == nil {
			bytes = link.Attrs().MTU
		}
		return err
	})
	return bytes
}

// Narrow makes the host, a router, carry no packets over so many bytes to an
// address that an interface leads to, as if a link behind it were narrower.
func (h *Host) Narrow(name string, to netip.Addr, bytes int) {
	h.t.Helper()
	h.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.RouteReplace(&netlink.Route{
			LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, MTU: bytes, MTULock: true,
			Dst: &net.IPNet{IP: to.AsSlice(), Mask: net.CIDRMask(to.BitLen(), to.BitLen())},
		})
	})
}

// Bridge joins interfaces of the host into one.
func (h *Host) Bridge(name string, ports ...string) {
	h.t.Helper()
	h.Do(func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		for _, p := range ports {
			port, err := netlink.LinkByName(p)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetMaster(port, br); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(br)
	})
}

// Address gives an interface of the host addresses such as "10.1.0.1/24".
func (h *Host) Address(name string, addresses ...string) {
	h.t.Helper()
	h.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for _, a := range addresses {
			p := netip.MustParsePrefix(a)
			err := netlink.AddrAdd(link, &netlink.Addr{
				IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
				Flags: unix.IFA_F_NODAD,
			})
			if err != nil {
				return fmt.Errorf("adding %s: %w", a, err)
			}
		}
		return nil
	})
}

// Route adds a route of the host by a gateway.
func (h *Host) Route(prefix, via string) {
	h.t.Helper()
	h.Do(func() error {
		p := netip.MustParsePrefix(prefix)
		return netlink.RouteAdd(&netlink.Route{
			Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
			Gw:  netip.MustParseAddr(via).AsSlice(),
		})
	})
}

// replaceRoute makes the gateway the one by which the host reaches the prefix.
func (h *Host) replaceRoute(prefix string, via netip.Addr) {
	h.t.Helper()
	h.Do(func() error {
		p := netip.MustParsePrefix(prefix)
		return netlink.RouteReplace(&netlink.Route{
			Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
			Gw:  via.AsSlice(),
		})
	})
}

// Unplug removes an interface of the host with all that belongs to it.
func (h *Host) Unplug(name string) {
	h.t.Helper()
	h.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
}

// Renumber gives an interface of the host another IPv4 address, as a DHCP server
// may. The ways out that went by the interface stay.
func (h *Host) Renumber(name, address string) {
	h.t.Helper()
	// The kernel would take the other addresses of the network away with the
	// first.
	h.Sysctl("net/ipv4/conf/all/promote_secondaries", "1")
	h.Address(name, address)
	h.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		addresses, err := netlink.AddrList(link, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		p := netip.MustParsePrefix(address)
		// The new one first: an interface without an address loses its routes.
		for _, a := range addresses {
			if !a.IP.Equal(p.Addr().AsSlice()) {
				if err := netlink.AddrDel(link, &a); err != nil {
					return err
				}
			}
		}
		h.V4 = p.Addr()
		return nil
	})
}

// Unroute removes the host's route to a prefix.
func (h *Host) Unroute(prefix string) {
	h.t.Helper()
	h.Do(func() error {
		p := netip.MustParsePrefix(prefix)
		return netlink.RouteDel(&netlink.Route{
			Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
		})
	})
}

// Sysctl sets a switch of the host's network, such as "net/ipv4/ip_forward".
func (h *Host) Sysctl(name, value string) {
	h.t.Helper()
	h.Do(func() error { return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644) })
}

// Masquerade gives everything that leaves the host, by whatever interface, the
// host's address, as careless container engines and administrators do.
func (h *Host) Masquerade() {
	h.t.Helper()
	h.Do(func() error {
		c, err := nftables.New(nftables.WithNetNSFd(int(h.space)))
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Name: "careless", Family: nftables.TableFamilyINet})
		chain := c.AddChain(&nftables.Chain{
			Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Counter{}, &expr.Masq{}}})
		return c.Flush()
	})
}

// Tables returns the names of the host's tables of nftables.
func (h *Host) Tables() []string {
	h.t.Helper()
	var names []string
	h.Do(func() error {
		c, err := nftables.New(nftables.WithNetNSFd(int(h.space)))
		if err != nil {
			return err
		}
		tables, err := c.ListTables()
		for _, t := range tables {
			names = append(names, t.Name)
		}
		return err
	})
	return names
}

// Rules returns the priorities of the host's rules of policy routing.
func (h *Host) Rules() []int {
	h.t.Helper()
	var priorities []int
	h.Do(func() error {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			rules, err := netlink.RuleList(family)
			if err != nil {
				return err
			}
			for _, r := range rules {
				priorities = append(priorities, r.Priority)
			}
		}
		return nil
	})
	return priorities
}

// Enslave adds an interface of the host to one made by Bridge.
func (h *Host) Enslave(bridge, name string) {
	h.t.Helper()
	h.Do(func() error {
		br, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		port, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(port, br)
	})
}
