package userstack

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/warren-overlay/warren/netstack/tun"
)

const (
	nic = 1 // the only interface of the stack

	// batchSize is how many packets Read returns at most. It is the batch of
	// the WireGuard device, and enough for two coalesced messages.
	batchSize = 128
)

// Config says what New makes.
type Config struct {
	// Addresses are the device's own overlay addresses, if already known.
	Addresses []netip.Addr

	// MTU in bytes; zero means tun.DefaultMTU.
	MTU int

	// Refuse tells which ports are not forwarded to the host: those of the
	// node's own proxies and metrics, which trust whoever connects from the
	// host. It is called for every new connection and flow, from several
	// goroutines; nil refuses none.
	Refuse func(port uint16) bool

	// MaxTCPConnections and MaxUDPFlows cap what is forwarded to the host at
	// one time, for all peers together; a quarter of each is the cap for one
	// peer, so that one peer cannot lock out the others. Zero means 1024 each.
	MaxTCPConnections int
	MaxUDPFlows       int

	// Device tells which device an address belongs to, or is routed by, so that
	// the caps for one peer hold for all of its addresses together; zero, and
	// a nil Device, make every address a peer of its own. It is called for
	// every new connection and flow, from several goroutines.
	Device func(addr netip.Addr) uint64

	// UDPIdle ends a forwarded UDP flow without traffic in either direction.
	// Zero means 2 minutes (RFC 4787 REQ-5).
	UDPIdle time.Duration

	hostPrefixes func() ([]netip.Prefix, error)
	openEcho     func(to netip.Addr) (echoSocket, error)
}

func (cfg Config) withDefaults() (Config, error) {
	if cfg.MTU == 0 {
		cfg.MTU = tun.DefaultMTU
	}
	if cfg.MaxTCPConnections == 0 {
		cfg.MaxTCPConnections = 1024
	}
	if cfg.MaxUDPFlows == 0 {
		cfg.MaxUDPFlows = 1024
	}
	if cfg.UDPIdle == 0 {
		cfg.UDPIdle = 2 * time.Minute
	}
	if cfg.Device == nil {
		cfg.Device = func(netip.Addr) uint64 { return 0 }
	}
	if cfg.hostPrefixes == nil {
		cfg.hostPrefixes = hostPrefixes
	}
	if cfg.openEcho == nil {
		cfg.openEcho = openEcho
	}
	if cfg.Refuse == nil {
		cfg.Refuse = func(uint16) bool { return false }
	}
	if cfg.MaxTCPConnections < 0 || cfg.MaxUDPFlows < 0 || cfg.UDPIdle < 0 {
		return cfg, errors.New("userstack: negative limit")
	}
	// RFC 8200 §5: IPv6 needs 1280 bytes.
	if cfg.MTU < 1280 || cfg.MTU > 65535 {
		return cfg, fmt.Errorf("userstack: MTU %d is outside 1280 to 65535", cfg.MTU)
	}
	return cfg, nil
}

// A Stack is a host in user space with one interface, which is the tun.Device
// that it also is. All methods may be called concurrently.
type Stack struct {
	cfg     Config
	stack   *stack.Stack
	link    *link
	forward *forwarder
	own     atomic.Pointer[map[netip.Addr]bool] // the map is never changed

	routed atomic.Pointer[routed] // nil where nothing is routed

	invalid atomic.Uint64

	mu     sync.Mutex // serialises SetAddresses and Close, protects closed
	closed bool
}

var _ tun.Device = (*Stack)(nil)

// quiet keeps gvisor from writing to the standard error stream what peers can
// make it write at will; its own counters have it.
var quiet = sync.OnceFunc(func() { log.SetLevel(log.Warning) })

// New makes a stack that works at once. The error says what is wrong with cfg.
func New(cfg Config) (*Stack, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	quiet()
	s := &Stack{
		cfg:  cfg,
		link: newLink(cfg.MTU),
		stack: stack.New(stack.Options{
			NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
			TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocolCUBIC, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
			HandleLocal:        true,
		}),
	}
	s.own.Store(&map[netip.Addr]bool{})
	if err := s.init(); err != nil {
		s.stack.Destroy()
		return nil, err
	}
	s.forward = newForwarder(s, s.stack, s.targetOf)
	if err := s.SetAddresses(cfg.Addresses); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Stack) init() error {
	if err := setTCPOptions(s.stack); err != nil {
		return err
	}
	if err := s.stack.CreateNIC(nic, s.link); err != nil {
		return fmt.Errorf("userstack: creating the interface: %s", err)
	}
	s.stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nic},
		{Destination: header.IPv6EmptySubnet, NIC: nic},
	})
	return nil
}

func setTCPOptions(s *stack.Stack) error {
	sack := tcpip.TCPSACKEnabled(true)
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	// The buffers grow to what 1 Gbit/s needs over 64 ms; an idle connection
	// holds none of it.
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: tcp.DefaultReceiveBufferSize, Max: 8 << 20}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: tcp.DefaultSendBufferSize, Max: 8 << 20}
	options := []tcpip.SettableTransportProtocolOption{&sack, &moderate, &receive, &send}
	if runtime.GOOS == "windows" {
		// RACK takes the coarse monotonic clock of Windows for reordering and
		// keeps the congestion window small.
		recovery := tcpip.TCPRecovery(0)
		options = append(options, &recovery)
	}
	for _, option := range options {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, option); err != nil {
			return fmt.Errorf("userstack: setting %T: %s", option, err)
		}
	}
	return nil
}

// SetAddresses replaces the device's own addresses. Connections of an address
// that is no longer there end as their packets are no longer taken. Errors:
// an invalid address, after which nothing has changed; os.ErrClosed.
func (s *Stack) SetAddresses(addresses []netip.Addr) error {
	wanted := make(map[netip.Addr]bool, len(addresses))
	for _, addr := range addresses {
		if !addr.IsValid() || addr.Is4In6() || addr.Zone() != "" || addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() {
			return fmt.Errorf("userstack: %v cannot be an address of the device", addr)
		}
		wanted[addr] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	have := *s.own.Load()
	// Sorted, so that errors and the order of source addresses do not vary.
	for _, addr := range slices.SortedFunc(maps.Keys(have), netip.Addr.Compare) {
		if wanted[addr] {
			continue
		}
		if err := s.stack.RemoveAddress(nic, tcpip.AddrFromSlice(addr.AsSlice())); err != nil {
			return fmt.Errorf("userstack: removing address %s: %s", addr, err)
		}
	}
	for _, addr := range slices.SortedFunc(maps.Keys(wanted), netip.Addr.Compare) {
		if have[addr] {
			continue
		}
		err := s.stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{
			Protocol:          protocolOf(addr),
			AddressWithPrefix: tcpip.AddrFromSlice(addr.AsSlice()).WithPrefix(),
		}, stack.AddressProperties{})
		if err != nil {
			return fmt.Errorf("userstack: adding address %s: %s", addr, err)
		}
	}
	s.own.Store(&wanted)
	return nil
}

func protocolOf(addr netip.Addr) tcpip.NetworkProtocolNumber {
	if addr.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

// Configure implements tun.Device. All packets of the stack go into the
// overlay, so that routes mean nothing to it; the engine's peer table has the
// last word.
func (s *Stack) Configure(settings tun.Settings) error {
	if err := settings.Validate(); err != nil {
		return err
	}
	addresses := make([]netip.Addr, 0, len(settings.Addresses))
	for _, prefix := range settings.Addresses {
		addresses = append(addresses, prefix.Addr())
	}
	if err := s.SetAddresses(addresses); err != nil {
		return err
	}
	if settings.MTU != 0 {
		if settings.MTU < 1280 {
			return fmt.Errorf("userstack: MTU %d is less than the 1280 that IPv6 needs", settings.MTU)
		}
		s.link.SetMTU(uint32(settings.MTU))
	}
	return nil
}

// Read implements tun.Device.
func (s *Stack) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	return s.link.read(bufs, sizes, offset)
}

// Write implements tun.Device. Packets that are no IP packets are counted and
// dropped; the buffers are copied and left as they are.
func (s *Stack) Write(bufs [][]byte, offset int) (int, error) {
	dispatcher := s.link.attached()
	if dispatcher == nil {
		return 0, os.ErrClosed
	}
	c := coalescer{dispatcher: dispatcher}
	r := s.routed.Load()
	var behind coalescer
	if r != nil {
		behind.dispatcher = r.link.attached()
	}
	for _, buf := range bufs {
		packet := buf[offset:]
		if behind.dispatcher != nil && r.takes(packet) {
			if !r.echoes.handle(packet) {
				behind.deliver(packet)
			}
			continue
		}
		if !c.deliver(packet) {
			s.invalid.Add(1)
		}
	}
	c.flush()
	behind.flush()
	return len(bufs), nil
}

// MTU implements tun.Device.
func (s *Stack) MTU() (int, error) { return int(s.link.MTU()), nil }

// Name implements tun.Device.
func (s *Stack) Name() (string, error) { return "userspace", nil }

// BatchSize implements tun.Device.
func (s *Stack) BatchSize() int { return batchSize }

// Close implements tun.Device: it ends all connections and waits for every
// goroutine.
func (s *Stack) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if r := s.routed.Swap(nil); r != nil {
		r.close()
	}
	s.forward.stop(context.Canceled)
	s.stack.Close()
	s.link.close()
	s.forward.wait()
	s.stack.Wait()
	return nil
}

// Stats are the counters of a Stack since New.
type Stats struct {
	InvalidPackets uint64 // written packets that were no IP packets
	DroppedPackets uint64 // sent packets that met a full queue because Read was too slow

	TCPForwarded uint64 // connections of peers that reached a service of the host
	TCPRefused   uint64 // answered with a reset: no service, or a port that Refuse names
	TCPCapped    uint64 // answered with a reset because of MaxTCPConnections

	UDPForwarded uint64 // flows of peers that were opened
	UDPRefused   uint64 // packets that opened no flow because of Refuse or a local error
	UDPCapped    uint64 // packets that opened no flow because of MaxUDPFlows

	// Routed counts what goes to hosts behind this one since SetRoutes began to
	// serve any.
	Routed RoutedStats
}

// RoutedStats are the counters of what is carried to hosts behind this one.
type RoutedStats struct {
	NotPermitted uint64 // flows and echo requests to where nothing may go

	TCPForwarded uint64 // connections that a host took
	TCPRefused   uint64 // connections that none took
	TCPCapped    uint64 // SYNs beyond MaxTCPConnections or a peer's share of it

	UDPForwarded uint64 // flows that were opened
	UDPRefused   uint64 // packets that opened no flow for want of permission or a socket
	UDPCapped    uint64 // packets that opened no flow because of MaxUDPFlows

	EchoForwarded uint64 // identifiers that hosts were asked with
	EchoRefused   uint64 // those for which the system permits no socket
	EchoCapped    uint64 // requests beyond the cap of 256, or of 64 for one peer
}

// Stats returns the counters.
func (s *Stack) Stats() Stats {
	f := s.forward
	stats := Stats{
		InvalidPackets: s.invalid.Load(),
		DroppedPackets: s.link.dropped.Load(),
		TCPForwarded:   f.tcp.opened.Load(),
		TCPRefused:     f.tcp.refused.Load(),
		TCPCapped:      f.tcp.capped.Load() + f.handshakes.capped.Load(),
		UDPForwarded:   f.udp.opened.Load(),
		UDPRefused:     f.udp.refused.Load(),
		UDPCapped:      f.udp.capped.Load(),
	}
	if r := s.routed.Load(); r != nil {
		f, e := r.forward, &r.echoes.flows
		stats.Routed = RoutedStats{
			NotPermitted: r.refused.Load(),
			TCPForwarded: f.tcp.opened.Load(), TCPRefused: f.tcp.refused.Load(), TCPCapped: f.tcp.capped.Load() + f.handshakes.capped.Load(),
			UDPForwarded: f.udp.opened.Load(), UDPRefused: f.udp.refused.Load(), UDPCapped: f.udp.capped.Load(),
			EchoForwarded: e.opened.Load(), EchoRefused: e.refused.Load(), EchoCapped: e.capped.Load(),
		}
	}
	return stats
}
