package sock

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// LocalConfig says which of the host's addresses LocalAddrs returns.
type LocalConfig struct {
	// Overlay lists the overlay's own prefixes and addresses; nothing inside
	// them is returned, for a path through the overlay cannot carry it.
	Overlay []netip.Prefix

	// Loopback adds the loopback addresses: for several nodes on one host.
	Loopback bool

	// Containers adds the addresses of interfaces that container and
	// virtual-machine engines make. They are left out otherwise: every such
	// host has the same ones, and no peer reaches them. Bridges are told apart
	// by what is joined to them, others by their names.
	Containers bool
}

// LocalAddrs returns the unicast addresses of this host's interfaces under
// which peers may reach it, sorted, without repetition: those of interfaces
// that are up, without link-local ones (they mean nothing without a zone), and
// as cfg says. A host without any yields none.
func LocalAddrs(cfg LocalConfig) ([]netip.Addr, error) {
	var found []netip.Addr
	err := eachPrefix(cfg.interfaces(), func(_ net.Interface, p netip.Prefix) {
		if cfg.wantAddr(p.Addr()) {
			found = append(found, p.Addr())
		}
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, netip.Addr.Compare)
	return slices.Compact(found), nil
}

// LinkMTU returns the largest MTU, in bytes, of the interfaces of whose addresses
// LocalAddrs returns some; zero where there is none.
func LinkMTU(cfg LocalConfig) (bytes int, err error) {
	err = eachPrefix(cfg.interfaces(), func(ifi net.Interface, p netip.Prefix) {
		if cfg.wantAddr(p.Addr()) {
			bytes = max(bytes, ifi.MTU)
		}
	})
	return bytes, err
}

// interfaces returns which interfaces count.
func (cfg LocalConfig) interfaces() (want func(net.Interface) bool) {
	var guests map[string]bool
	if links, err := listLinks(); err == nil && !cfg.Containers {
		guests = bridges(links)
	}
	return func(ifi net.Interface) bool { return cfg.wantInterface(ifi.Name, ifi.Flags, guests) }
}

// InterfacePrefixes returns the addresses of those interfaces of this host that
// are wanted, unmapped and each with the length of its network, in the system's
// order.
func InterfacePrefixes(want func(net.Interface) bool) ([]netip.Prefix, error) {
	var all []netip.Prefix
	err := eachPrefix(want, func(_ net.Interface, p netip.Prefix) { all = append(all, p) })
	return all, err
}

// eachPrefix calls f for what InterfacePrefixes returns.
func eachPrefix(want func(net.Interface) bool, f func(ifi net.Interface, p netip.Prefix)) error {
	interfaces, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("sock: listing interfaces: %w", err)
	}
	for _, ifi := range interfaces {
		if !want(ifi) {
			continue
		}
		addrs, err := ifi.Addrs()
		if err != nil {
			continue // it vanished meanwhile
		}
		for _, a := range addrs {
			ipNet, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			addr, ok := netip.AddrFromSlice(ipNet.IP)
			ones, bits := ipNet.Mask.Size()
			if addr = addr.Unmap(); ok && bits == addr.BitLen() {
				f(ifi, netip.PrefixFrom(addr, ones))
			}
		}
	}
	return nil
}

// containerInterfaces are the names, up to a number or an identifier, that
// Docker, Podman, libvirt, LXC, LXD and the Kubernetes network plugins give
// their bridges and host ends.
var containerInterfaces = []string{
	"docker", "br-", "veth", "cni", "virbr", "vnet", "podman", "lxcbr", "lxdbr",
	"flannel", "cali", "cilium", "kube-", "weave",
}

// wantInterface expects what bridges returned, nil where the system does not
// tell of kinds.
func (cfg LocalConfig) wantInterface(name string, flags net.Flags, guests map[string]bool) bool {
	if flags&net.FlagUp == 0 || flags&net.FlagLoopback != 0 && !cfg.Loopback {
		return false
	}
	if forGuests, isBridge := guests[name]; isBridge {
		return cfg.Containers || !forGuests
	}
	return cfg.Containers || !slices.ContainsFunc(containerInterfaces, func(prefix string) bool {
		return strings.HasPrefix(name, prefix)
	})
}

// wantAddr expects an unmapped address.
func (cfg LocalConfig) wantAddr(addr netip.Addr) bool {
	if !addr.IsGlobalUnicast() && !addr.IsLoopback() {
		return false
	}
	if addr.IsLoopback() && !cfg.Loopback {
		return false
	}
	return !slices.ContainsFunc(cfg.Overlay, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// ConnectedPrefixes returns the networks that this host's interfaces are in,
// each as the host's own address with the network's length, sorted, without
// repetition: of interfaces that are up, without loopback and link-local ones,
// and without those whose address is in own.
func ConnectedPrefixes(own []netip.Prefix) ([]netip.Prefix, error) {
	cfg := LocalConfig{Overlay: own, Containers: true}
	found, err := InterfacePrefixes(func(ifi net.Interface) bool { return cfg.wantInterface(ifi.Name, ifi.Flags, nil) })
	if err != nil {
		return nil, err
	}
	found = slices.DeleteFunc(found, func(p netip.Prefix) bool { return !cfg.wantAddr(p.Addr()) })
	slices.SortFunc(found, netip.Prefix.Compare)
	return slices.Compact(found), nil
}
