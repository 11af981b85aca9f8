package engine

import (
	"fmt"
	"net/netip"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
)

// Question asks whether a flow between this device and a peer may be opened.
type Question struct {
	// Opener is filter.Outbound for a flow of this device's, filter.Inbound for
	// one of the peer's.
	Opener filter.Direction
	// Remote is the peer's address, or one behind the peer.
	Remote netip.Addr
	// Local is this device's address, or one behind it; the zero Addr stands
	// for this device's own of Remote's family.
	Local netip.Addr
	// Protocol is the flow's. That of ICMP of either family stands for a ping.
	Protocol uint8
	// Port is the destination port, 0 for a protocol that has none.
	Port uint16
}

// Answer is the filter's answer to a Question.
type Answer struct {
	filter.Answer
	// Peer is the name of the device that the remote address leads to, Node its
	// id.
	Peer string
	Node ident.NodeID
}

// Why says whether a flow may be opened now, by the rules and everything else
// that this device's filter asks, and what else may be. What the other device's
// filter says is not known here. It sends nothing and changes nothing.
//
// Errors: one that wraps ErrNoPeer or ErrNoFamily; ErrStopped before Apply and
// after Run.
func (e *Engine) Why(q Question) (Answer, error) {
	q.Remote, q.Local = q.Remote.Unmap(), q.Local.Unmap()
	f := e.host.forwarding.Load()
	if f == nil {
		return Answer{}, ErrStopped
	}
	p := f.lookup(q.Remote)
	if p == nil {
		return Answer{}, fmt.Errorf("engine: asking about %v: %w", q.Remote, ErrNoPeer)
	}
	if !q.Local.IsValid() {
		q.Local = f.own(q.Remote)
	}
	if !q.Local.IsValid() {
		return Answer{}, fmt.Errorf("engine: asking about %v: %w", q.Remote, ErrNoFamily)
	}
	if q.Protocol == packet.ICMP || q.Protocol == packet.ICMPv6 {
		q.Protocol = packet.ICMP
		if q.Remote.Is6() {
			q.Protocol = packet.ICMPv6
		}
	}
	asked := filter.Question{Opener: q.Opener, Local: q.Local, Remote: q.Remote, Protocol: q.Protocol, Port: q.Port}
	now := e.cfg.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	return Answer{Answer: p.filter.Why(asked, now), Peer: p.name, Node: p.node}, nil
}

// own returns this device's first address of the family of a, the zero Addr
// where there is none.
func (f *forwarding) own(a netip.Addr) netip.Addr {
	for _, own := range f.self {
		if own.Is4() == a.Is4() {
			return own
		}
	}
	return netip.Addr{}
}
