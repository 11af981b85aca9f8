package wg

import (
	"net/netip"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/device"
)

// Link is the kind of way that a sealed packet took.
type Link int

// The kinds of ways, in the order of Counters.Sent and Counters.Received.
const (
	LinkIPv4 Link = iota
	LinkIPv6
	LinkRelay
)

// links is the number of kinds.
const links = int(LinkRelay) + 1

// String returns the kind as a metric label.
func (l Link) String() string {
	switch l {
	case LinkIPv4:
		return "direct_ipv4"
	case LinkIPv6:
		return "direct_ipv6"
	case LinkRelay:
		return "relay"
	}
	return "unknown"
}

func linkOf(a netip.AddrPort) Link {
	if a.Addr().Is4() {
		return LinkIPv4
	}
	return LinkIPv6
}

type traffic struct{ packets, bytes atomic.Uint64 }

func (t *traffic) add(bufs [][]byte) {
	size := 0
	for _, b := range bufs {
		size += len(b)
	}
	t.packets.Add(uint64(len(bufs)))
	t.bytes.Add(uint64(size))
}

func (t *traffic) addOne(size int) {
	t.packets.Add(1)
	t.bytes.Add(uint64(size))
}

func (t *traffic) addMany(more Traffic) {
	t.packets.Add(more.Packets)
	t.bytes.Add(more.Bytes)
}

type counters struct {
	sent, received [links]traffic
	nobody         [typeTransport]atomic.Uint64 // by message type less one
	limited        atomic.Uint64
	noPath         atomic.Uint64
	relayOverflow  atomic.Uint64
	sendErrors     atomic.Uint64
	receiveErrors  atomic.Uint64
	// refused are packets that were opened and that WireGuard itself then
	// dropped: by IP version for their source, and those of no IP version.
	spoofed4, spoofed6, notIP atomic.Uint64
	replayed                  replayed
	// replayedPackets are transport messages whose counter came before, or is too old.
	// refusedResponses are those that the device was handed and did not take.
	replayedPackets, refusedResponses atomic.Uint64
	// repeated are handshake messages that were sent once more, yielded initiations
	// of peers that waited for the answer to ours.
	repeated, yielded atomic.Uint64
}

// What WireGuard says when it drops a packet that it has opened. It counts
// nothing itself. TestSpoofedSourcesAreCounted fails where a new version says it
// in other words.
const (
	saysSpoofed4 = "IPv4 packet with disallowed source address from %v"
	saysSpoofed6 = "IPv6 packet with disallowed source address from %v"
	saysNotIP    = "Packet with invalid IP version from %v"
)

// saysRefusedResponse is what WireGuard says of a response that answers no handshake
// that is under way, or is forged. TestReplayedResponsesAreCounted fails where a new
// version says it in other words.
const saysRefusedResponse = "Received invalid response message from %s"

// verbosef is WireGuard's log of details, of which only these are of use.
func (c *counters) verbosef(format string, args ...any) {
	switch format {
	case saysReplayed:
		if p, ok := args[0].(*device.Peer); ok {
			c.replayed.note(p)
		}
	case saysRefusedResponse:
		c.refusedResponses.Add(1)
	case saysSpoofed4:
		c.spoofed4.Add(1)
	case saysSpoofed6:
		c.spoofed6.Add(1)
	case saysNotIP:
		c.notIP.Add(1)
	}
}

// Traffic counts sealed packets and their bytes.
type Traffic struct{ Packets, Bytes uint64 }

// Counters is what a device counted since it was made.
type Counters struct {
	// Sent and Received are by Link.
	Sent, Received [links]Traffic
	// UnknownInitiations are handshakes of keys that are no peers, or that are
	// malformed; UnknownReceivers are packets for an index that this device did
	// not hand out, or not to their sender.
	UnknownInitiations, UnknownReceivers uint64
	// ReplayedInitiations are those of peers that are their last one again, or whose
	// time stamp is not later than its.
	ReplayedInitiations uint64
	// ReplayedPackets are transport messages that the device was handed and whose
	// counter came before in the same session, or is too far behind for that to be told:
	// of all that carry one counter, one at the most is opened. A path that is in doubt
	// causes some, since packets go both ways then (Path.Both). Not among them are
	// repetitions, of what is over 8,192 packets ahead of all that was opened, that come
	// before one of these is.
	ReplayedPackets uint64
	// RefusedResponses are answers to handshakes that the device did not take: there is
	// no such handshake any more, or they are forged.
	RefusedResponses uint64
	// RepeatedHandshakes are messages of handshakes that were sent again because
	// they may have been lost, YieldedInitiations those of peers that had to wait
	// because this device had begun one at the same time.
	RepeatedHandshakes, YieldedInitiations uint64
	// Limited are initiations over the rate that strangers, or one peer, may
	// cause, and messages of handshakes of which too many of one peer wait.
	Limited uint64
	// NoPath are packets for which there was neither a direct path nor a relay.
	NoPath uint64
	// RelayOverflow are packets from the relay that came faster than the
	// device took them.
	RelayOverflow uint64
	// Spoofed4 and Spoofed6 are packets of peers whose source is none of the
	// peer's prefixes, NotIP those that are neither IPv4 nor IPv6.
	Spoofed4, Spoofed6, NotIP uint64
	// SendErrors and ReceiveErrors are what the operating system refused.
	SendErrors, ReceiveErrors uint64
}

func (c *counters) snapshot() Counters {
	out := Counters{
		UnknownInitiations: c.nobody[typeInitiation-1].Load(),
		UnknownReceivers: c.nobody[typeResponse-1].Load() + c.nobody[typeCookie-1].Load() +
			c.nobody[typeTransport-1].Load(),
		ReplayedInitiations: c.replayed.count.Load(),
		ReplayedPackets:     c.replayedPackets.Load(), RefusedResponses: c.refusedResponses.Load(),
		RepeatedHandshakes: c.repeated.Load(), YieldedInitiations: c.yielded.Load(),
		Limited: c.limited.Load(), NoPath: c.noPath.Load(), RelayOverflow: c.relayOverflow.Load(),
		Spoofed4: c.spoofed4.Load(), Spoofed6: c.spoofed6.Load(), NotIP: c.notIP.Load(),
		SendErrors: c.sendErrors.Load(), ReceiveErrors: c.receiveErrors.Load(),
	}
	for l := range links {
		out.Sent[l] = Traffic{c.sent[l].packets.Load(), c.sent[l].bytes.Load()}
		out.Received[l] = Traffic{c.received[l].packets.Load(), c.received[l].bytes.Load()}
	}
	return out
}
