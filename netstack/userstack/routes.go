package userstack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// Routes say what peers may reach through this host, besides the device's own
// addresses. The zero value is nothing.
type Routes struct {
	// Forward are the prefixes that are served.
	Forward []netip.Prefix
	// Refuse is what is not served whatever Forward says: the overlay's ranges,
	// the coordinator and the relays, metadata services.
	Refuse []netip.Prefix
}

// ErrRoutes is wrapped by errors about Routes that make no sense.
var ErrRoutes = errors.New("userstack: invalid routes")

func (r *Routes) validate() error {
	for _, p := range slices.Concat(r.Forward, r.Refuse) {
		if !p.IsValid() || p.Addr().Is4In6() || p != p.Masked() {
			return fmt.Errorf("%w: prefix %v", ErrRoutes, p)
		}
	}
	return nil
}

// SetRoutes replaces what is carried for peers. Flows that the new routes do not
// permit end. Nothing is kept of r. The error wraps ErrRoutes, and nothing has
// changed then; or it is os.ErrClosed, or gvisor's text.
func (s *Stack) SetRoutes(r Routes) error {
	if err := r.validate(); err != nil {
		return err
	}
	r = Routes{Forward: slices.Clone(r.Forward), Refuse: slices.Clone(r.Refuse)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	have := s.routed.Load()
	if len(r.Forward) == 0 {
		s.routed.Store(nil)
		if have != nil {
			have.close()
		}
		return nil
	}
	if have != nil {
		have.routes.Store(&r)
		have.forward.endUnless(have.permitted)
		have.echoes.endUnless(have.permitted)
		return nil
	}
	have, err := newRouted(s, &r)
	if err != nil {
		return err
	}
	s.routed.Store(have)
	return nil
}

// routed carries what peers send to hosts behind this one. It is a stack of its
// own, which takes packets for any address: the device's own stack could not
// reach itself any more if it did.
type routed struct {
	owner   *Stack
	stack   *stack.Stack
	link    *branch
	forward *forwarder
	echoes  *echoes
	routes  atomic.Pointer[Routes]
	refused atomic.Uint64 // packets and flows to what is not permitted
	host    hostNetworks
}

// branch is the link of the second stack: what that sends goes into the queue of
// the first, what it receives is its own.
type branch struct {
	*link
	mu         sync.RWMutex // protects dispatcher
	dispatcher stack.NetworkDispatcher
}

var (
	_ stack.LinkEndpoint = (*branch)(nil)
	_ stack.GSOEndpoint  = (*branch)(nil)
)

// Attach implements stack.NetworkLinkEndpoint.
func (b *branch) Attach(dispatcher stack.NetworkDispatcher) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dispatcher = dispatcher
}

// IsAttached implements stack.NetworkLinkEndpoint.
func (b *branch) IsAttached() bool { return b.attached() != nil }

func (b *branch) attached() stack.NetworkDispatcher {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.dispatcher
}

func newRouted(s *Stack, routes *Routes) (*routed, error) {
	r := &routed{
		owner: s, link: &branch{link: s.link},
		stack: stack.New(stack.Options{
			NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
			TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocolCUBIC, udp.NewProtocol},
		}),
	}
	r.host.list = s.cfg.hostPrefixes
	r.routes.Store(routes)
	if err := r.init(); err != nil {
		r.stack.Destroy()
		return nil, err
	}
	r.forward = newForwarder(s, r.stack, r.targetOf)
	r.echoes = newEchoes(r)
	return r, nil
}

func (r *routed) init() error {
	if err := setTCPOptions(r.stack); err != nil {
		return err
	}
	if err := r.stack.CreateNIC(nic, r.link); err != nil {
		return fmt.Errorf("userstack: creating the interface for routes: %s", err)
	}
	if err := r.stack.SetPromiscuousMode(nic, true); err != nil {
		return fmt.Errorf("userstack: taking packets for other addresses: %s", err)
	}
	if err := r.stack.SetSpoofing(nic, true); err != nil {
		return fmt.Errorf("userstack: sending from other addresses: %s", err)
	}
	r.stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nic},
		{Destination: header.IPv6EmptySubnet, NIC: nic},
	})
	return nil
}

// close ends every flow and waits for all goroutines.
func (r *routed) close() {
	r.forward.stop(errRouteGone)
	r.echoes.stop()
	r.stack.Close()
	r.forward.wait()
	r.echoes.wait()
	r.stack.Wait()
}

var errRouteGone = errors.New("userstack: the route is not served any more")

// targetOf decides about a flow by its destination, once more: the filter has
// let the packet pass, but what this process dials is its own doing.
func (r *routed) targetOf(id stack.TransportEndpointID) (target, bool) {
	peer, ok := netip.AddrFromSlice(id.RemoteAddress.AsSlice())
	if !ok {
		return target{}, false
	}
	to, ok := netip.AddrFromSlice(id.LocalAddress.AsSlice())
	if !ok || id.LocalPort == 0 || !r.permitted(to) {
		r.refused.Add(1)
		return target{}, false
	}
	return target{
		peer: r.forward.ownerOf(peer), destination: to, routed: true,
		hosts: []string{netip.AddrPortFrom(to, id.LocalPort).String()},
	}, true
}

// permitted reports whether peers may reach the address through this host: it
// lies in what is served, and is neither one that no packet is ever forwarded
// to, nor one of this host's own, of the overlay or of what carries it, nor a
// broadcast address; a default route does not lead into the networks that this
// host is connected to. An IPv6 address that a translator on the way turns into
// an IPv4 address is judged by that as well. Where the host's addresses cannot
// be listed nothing is permitted.
func (r *routed) permitted(a netip.Addr) bool {
	routes := r.routes.Load()
	if !slices.ContainsFunc(routes.Forward, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return false
	}
	connected, ok := r.host.current()
	if !ok {
		return false
	}
	if inner, translated := embedded4(a); translated && !r.harmless(inner, routes, connected) {
		return false
	}
	return r.harmless(a, routes, connected)
}

func (r *routed) harmless(a netip.Addr, routes *Routes, connected []netip.Prefix) bool {
	if !a.IsValid() || a.Is4In6() || a.Zone() != "" || !a.IsGlobalUnicast() || a.Is4() && a.As4()[0] == 0 ||
		(*r.owner.own.Load())[a] || slices.ContainsFunc(routes.Refuse, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return false
	}
	for _, network := range connected {
		served := slices.ContainsFunc(routes.Forward, func(p netip.Prefix) bool { return p.Bits() > 0 && p.Overlaps(network) })
		if network.Addr() == a || network.Contains(a) && (!served || broadcastOf(network, a)) {
			return false
		}
	}
	return true
}

// broadcastOf reports whether a, which lies in the network, is its broadcast
// address.
func broadcastOf(network netip.Prefix, a netip.Addr) bool {
	return a.Is4() && network.Bits() < 31 && !network.Masked().Contains(a.Next())
}

// embedded4 returns the IPv4 address inside a 6to4 (RFC 3056) or NAT64 (RFC
// 6052, RFC 8215) address.
func embedded4(a netip.Addr) (netip.Addr, bool) {
	if !a.Is6() {
		return netip.Addr{}, false
	}
	b := a.As16()
	switch {
	case b[0] == 0x20 && b[1] == 0x02:
		return netip.AddrFrom4([4]byte(b[2:6])), true
	case netip.PrefixFrom(a, 96).Masked() == nat64, netip.PrefixFrom(a, 48).Masked() == nat64Local:
		return netip.AddrFrom4([4]byte(b[12:])), true
	}
	return netip.Addr{}, false
}

var (
	nat64      = netip.MustParsePrefix("64:ff9b::/96")
	nat64Local = netip.MustParsePrefix("64:ff9b:1::/48")
)

// hostNetworksLife is for how long a list of the host's addresses is used: a
// scan would otherwise list them for every packet.
const hostNetworksLife = time.Second

// hostNetworks lists the host's addresses with their networks.
type hostNetworks struct {
	list func() ([]netip.Prefix, error)

	mu    sync.Mutex // protects the rest
	last  []netip.Prefix
	until time.Time
}

// current returns the host's addresses, and false where they are not known. The
// slice is not to be changed.
func (h *hostNetworks) current() ([]netip.Prefix, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := time.Now(); now.After(h.until) {
		last, err := h.list()
		if err != nil {
			return nil, false
		}
		h.last, h.until = last, now.Add(hostNetworksLife)
	}
	return h.last, true
}

// hostPrefixes returns the addresses of the host's interfaces.
func hostPrefixes() ([]netip.Prefix, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("userstack: listing the host's addresses: %w", err)
	}
	var all []netip.Prefix
	for _, a := range addrs {
		ipNet, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		addr, ok := netip.AddrFromSlice(ipNet.IP)
		if !ok {
			continue
		}
		addr = addr.Unmap()
		if ones, bits := ipNet.Mask.Size(); bits > 0 {
			all = append(all, netip.PrefixFrom(addr, min(ones, addr.BitLen())))
		}
	}
	return all, nil
}

// destinationOf returns the destination of a packet as it stands in the header.
func destinationOf(packet []byte) (netip.Addr, bool) {
	switch {
	case len(packet) >= header.IPv4MinimumSize && packet[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(packet[16:20])), true
	case len(packet) >= header.IPv6MinimumSize && packet[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(packet[24:40])), true
	}
	return netip.Addr{}, false
}

// takes reports whether the packet is to be carried to a host behind this one.
func (r *routed) takes(packet []byte) bool {
	to, ok := destinationOf(packet)
	if !ok || (*r.owner.own.Load())[to] {
		return false
	}
	return slices.ContainsFunc(r.routes.Load().Forward, func(p netip.Prefix) bool { return p.Contains(to) })
}
