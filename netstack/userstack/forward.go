package userstack

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const (
	// minHandshakes is the least number of connections altogether whose local
	// service has not answered yet, or whose handshake is not complete; there
	// may be as many as connections.
	minHandshakes = 512
	// maxPeerHandshakes is that number for one peer. It is small, because
	// handshakes cost the peer nothing: SYNs beyond it are dropped and come
	// again.
	maxPeerHandshakes = 32
)

// forwarder carries the flows of peers that end in a stack on to where target
// says, from the host's own sockets.
type forwarder struct {
	cfg    *Config
	target func(id stack.TransportEndpointID) (target, bool)
	dial   func(ctx context.Context, network, address string) (net.Conn, error)
	ctx    context.Context // ends with the stack
	stop   context.CancelCauseFunc
	tcp    flows
	udp    flows
	// handshakes are those of tcp whose connection is not open yet.
	handshakes flows

	mu      sync.Mutex // protects stopped and carried, and running.Add against wait
	stopped bool
	carried map[*carried]struct{}
	running sync.WaitGroup
}

// carried is one flow that goes on to somewhere else.
type carried struct {
	destination netip.Addr
	cancel      context.CancelFunc
}

// newForwarder takes what comes into the stack on, with the limits of s.
func newForwarder(s *Stack, into *stack.Stack, choose func(stack.TransportEndpointID) (target, bool)) *forwarder {
	handshakes := max(s.cfg.MaxTCPConnections, minHandshakes)
	f := &forwarder{
		cfg: &s.cfg, target: choose, dial: (&net.Dialer{}).DialContext, carried: make(map[*carried]struct{}), tcp: newFlows(s.cfg.MaxTCPConnections), udp: newFlows(s.cfg.MaxUDPFlows), handshakes: newFlows(handshakes),
	}
	f.handshakes.maxPeer = maxPeerHandshakes
	f.ctx, f.stop = context.WithCancelCause(context.Background())
	into.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(into, 0, handshakes, f.handleTCP).HandlePacket)
	into.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(into, f.handleUDP).HandlePacket)
	return f
}

// begin announces a goroutine that wait must wait for; false means that there
// must be no more.
func (f *forwarder) begin() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return false
	}
	f.running.Add(1)
	return true
}

// wait returns when all flows have ended; stop must have been called.
func (f *forwarder) wait() {
	f.mu.Lock()
	f.stopped = true
	f.mu.Unlock()
	f.running.Wait()
}

// carry announces a flow to a destination; its context ends with the forwarder
// and with endUnless. done must be called at its end.
func (f *forwarder) carry(destination netip.Addr) (ctx context.Context, done func()) {
	ctx, cancel := context.WithCancel(f.ctx)
	c := &carried{destination, cancel}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.carried[c] = struct{}{}
	return ctx, func() {
		cancel()
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.carried, c)
	}
}

// endUnless ends the flows to destinations that are not permitted.
func (f *forwarder) endUnless(permitted func(netip.Addr) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.carried {
		if !permitted(c.destination) {
			c.cancel()
		}
	}
}

// target is where a packet of a peer may be forwarded to.
type target struct {
	peer        owner
	destination netip.Addr // of the packet
	hosts       []string   // addresses with port; the next is tried where one refuses
	routed      bool       // whether it lies behind this host
}

// targetOf decides about a packet by its destination. Only own addresses are
// forwarded, and only to the loopback addresses, that of the packet's own
// family first.
func (s *Stack) targetOf(id stack.TransportEndpointID) (target, bool) {
	peer, ok := netip.AddrFromSlice(id.RemoteAddress.AsSlice())
	if !ok {
		return target{}, false
	}
	own, ok := netip.AddrFromSlice(id.LocalAddress.AsSlice())
	if !ok || !(*s.own.Load())[own] || id.LocalPort == 0 || s.cfg.Refuse(id.LocalPort) {
		return target{}, false
	}
	port := strconv.Itoa(int(id.LocalPort))
	hosts := []string{net.JoinHostPort("127.0.0.1", port), net.JoinHostPort("::1", port)}
	if own.Is6() {
		hosts[0], hosts[1] = hosts[1], hosts[0]
	}
	return target{peer: s.forward.ownerOf(peer), destination: own, hosts: hosts}, true
}

// owner is whom a flow is counted for: a device, or an address of none that is
// known.
type owner struct {
	device uint64
	addr   netip.Addr
}

func (f *forwarder) ownerOf(peer netip.Addr) owner {
	if device := f.cfg.Device(peer); device != 0 {
		return owner{device: device}
	}
	return owner{addr: peer}
}

// flows counts what is open, altogether and for each peer.
type flows struct {
	max, maxPeer            int
	opened, refused, capped atomic.Uint64

	mu    sync.Mutex // protects total and peers
	total int
	peers map[owner]int // open flows, never zero
}

func newFlows(limit int) flows {
	return flows{max: limit, maxPeer: max(limit/4, 1), peers: make(map[owner]int)}
}

// acquire takes a place for a flow of peer, or counts that there is none.
func (f *flows) acquire(peer owner) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.total >= f.max || f.peers[peer] >= f.maxPeer {
		f.capped.Add(1)
		return false
	}
	f.total++
	f.peers[peer]++
	return true
}

func (f *flows) release(peer owner) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.total--
	if f.peers[peer]--; f.peers[peer] == 0 {
		delete(f.peers, peer)
	}
}

// open returns how many flows are open.
func (f *flows) open() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.total
}
