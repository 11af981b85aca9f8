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

// forwarder carries what peers open to the device's own addresses to the
// host's loopback.
type forwarder struct {
	stack *Stack
	ctx   context.Context // ends with the stack
	stop  context.CancelCauseFunc
	tcp   flows
	udp   flows
	// handshakes are those of tcp whose connection is not open yet.
	handshakes flows

	mu      sync.Mutex // protects stopped, and running.Add against wait
	stopped bool
	running sync.WaitGroup
}

func newForwarder(s *Stack) *forwarder {
	handshakes := max(s.cfg.MaxTCPConnections, minHandshakes)
	f := &forwarder{
		stack: s, tcp: newFlows(s.cfg.MaxTCPConnections), udp: newFlows(s.cfg.MaxUDPFlows), handshakes: newFlows(handshakes),
	}
	f.handshakes.maxPeer = maxPeerHandshakes
	f.ctx, f.stop = context.WithCancelCause(context.Background())
	s.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(s.stack, 0, handshakes, f.handleTCP).HandlePacket)
	s.stack.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(s.stack, f.handleUDP).HandlePacket)
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

// target is where a packet of a peer may be forwarded to.
type target struct {
	peer  owner
	hosts [2]string // loopback addresses with port, that of the packet's own family first
}

// targetOf decides about a packet by its destination. Only own addresses are
// forwarded, and only to the loopback addresses.
func (f *forwarder) targetOf(id stack.TransportEndpointID) (target, bool) {
	peer, ok := netip.AddrFromSlice(id.RemoteAddress.AsSlice())
	if !ok {
		return target{}, false
	}
	own, ok := netip.AddrFromSlice(id.LocalAddress.AsSlice())
	if !ok || !(*f.stack.own.Load())[own] || id.LocalPort == 0 || f.stack.cfg.Refuse(id.LocalPort) {
		return target{}, false
	}
	port := strconv.Itoa(int(id.LocalPort))
	hosts := [2]string{net.JoinHostPort("127.0.0.1", port), net.JoinHostPort("::1", port)}
	if own.Is6() {
		hosts[0], hosts[1] = hosts[1], hosts[0]
	}
	return target{peer: f.ownerOf(peer), hosts: hosts}, true
}

// owner is whom a flow is counted for: a device, or an address of none that is
// known.
type owner struct {
	device uint64
	addr   netip.Addr
}

func (f *forwarder) ownerOf(peer netip.Addr) owner {
	if device := f.stack.cfg.Device(peer); device != 0 {
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
