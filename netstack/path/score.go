package path

import (
	"fmt"
	"net/netip"
	"time"
)

// Kind says how a path goes.
type Kind uint8

const (
	// None means that there is no way to the peer.
	None Kind = iota
	// Relay is the way over the relay.
	Relay
	// Direct is the way straight to an address.
	Direct
)

// String returns the kind as a metric label.
func (k Kind) String() string {
	switch k {
	case None:
		return "none"
	case Relay:
		return "relay"
	case Direct:
		return "direct"
	}
	return "unknown"
}

// Path is one way to the peer. Paths are comparable; the zero value is None.
type Path struct {
	Kind Kind
	// Addr is the peer's address of a Direct path, zero for others. It is never
	// an IPv4 address mapped into IPv6.
	Addr netip.AddrPort
	// Socket is the number of the further socket of this node that a Direct path
	// leaves by, 0 for the node's own port; see Agent.Sockets.
	Socket uint32
}

// viaRelay is the path over the relay.
var viaRelay = Path{Kind: Relay}

// DirectTo returns the direct path to an address from the node's own port.
func DirectTo(a netip.AddrPort) Path { return DirectFrom(0, a) }

// DirectFrom returns the direct path to an address from a further socket.
func DirectFrom(socket uint32, a netip.AddrPort) Path { return Path{Direct, unmap(a), socket} }

// String returns "none", "relay" or "direct", the address, and the socket where
// that is a further one.
func (p Path) String() string {
	switch {
	case p.Kind == Direct && p.Socket != 0:
		return fmt.Sprintf("direct %v from socket %d", p.Addr, p.Socket)
	case p.Kind == Direct:
		return fmt.Sprintf("direct %v", p.Addr)
	}
	return p.Kind.String()
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// Class says what kind of address a direct path goes to.
type Class uint8

const (
	// ClassGlobal4 is an IPv4 address that is not private: mostly a NAT's.
	ClassGlobal4 Class = iota
	// ClassGlobal6 is an IPv6 address that is not private.
	ClassGlobal6
	// ClassLocal is a private or link-local address (RFC 1918, 4193, 3927): both
	// nodes are in one network, or joined by a private one.
	ClassLocal
)

// ClassOf returns the class of an address.
func ClassOf(a netip.Addr) Class {
	a = a.Unmap()
	switch {
	case a.IsPrivate(), a.IsLinkLocalUnicast(), a.IsLoopback():
		return ClassLocal
	case a.Is6():
		return ClassGlobal6
	}
	return ClassGlobal4
}

// Score is what is known of a path that works.
type Score struct {
	Kind  Kind
	Class Class // of a Direct path
	// RTT is the least of the recent round trips of a Direct path.
	RTT time.Duration
}

const (
	// switchFloor and a tenth of the current cost (switchShare) are what a change
	// must gain: under the jitter of an ordinary path a change would follow the
	// noise.
	switchFloor = 5 * time.Millisecond
	switchShare = 10

	// Each class costs more than the next better one by so much that, at equal
	// round trips, it clears the gain that a change must have: the two nodes,
	// which measure the same round trip, then agree on the class. The handicap
	// grows with the round trip (13/10 for each class) for the same reason.
	classStep = 12 * time.Millisecond
)

// cost orders direct paths; less is better. An IPv6 path costs less than an
// IPv4 one since it has no translation in its way that could expire.
func (s Score) cost() time.Duration {
	switch s.Class {
	case ClassLocal:
		return s.RTT
	case ClassGlobal6:
		return s.RTT*13/10 + classStep
	default:
		return s.RTT*169/100 + 2*classStep
	}
}

// Better reports whether a is so much better than b, the path in use, that it
// is worth to change. It is never true both ways, and a chain of changes never
// returns to where it began, because each one lowers the cost.
func Better(a, b Score) bool {
	if a.Kind != b.Kind {
		return a.Kind > b.Kind
	}
	if a.Kind != Direct {
		return false
	}
	return a.cost()+switchFloor+b.cost()/switchShare < b.cost()
}
