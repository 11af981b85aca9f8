package filter

import (
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/acl/ruleset"
)

// Limits and times of the packet filter, with where they come from.
const (
	// MaxFlows bounds one peer's flows, so that a flood by one peer leaves
	// room for the others (P7). The whole device's bound is the Quota's.
	MaxFlows = 8192
	// MaxHalfOpen bounds the flows of one peer of which only one side has
	// spoken (P7): the cost of a SYN flood.
	MaxHalfOpen = 1024
	// MaxEchoes bounds the outstanding echo requests with one peer (P13).
	MaxEchoes = 256
	// MaxFragments bounds the fragmented packets of one peer that are
	// remembered at a time (P6).
	MaxFragments = 256

	// DeviceFlows and DeviceFragments are the bounds over all peers that a
	// Quota should enforce (P6, P7).
	DeviceFlows     = 65536
	DeviceFragments = 4096

	// PickUpWindow is how long after Config.Started a TCP connection may be
	// joined in its middle (P9), so that a restart of the program does not end
	// connections that rules still admit.
	PickUpWindow = 120 * time.Second

	fragmentLife = 30 * time.Second // P6

	tcpSynLife         = 60 * time.Second            // P9
	tcpEstablishedLife = 2*time.Hour + 4*time.Minute // RFC 5382 REQ-5
	tcpFinLife         = 120 * time.Second           // P9
	tcpLastAckLife     = 30 * time.Second            // P9
	tcpTimeWaitLife    = 120 * time.Second           // P9
	tcpClosedLife      = 10 * time.Second            // P9
	udpOpenLife        = 30 * time.Second            // P10
	udpRepliedLife     = 120 * time.Second           // RFC 4787 REQ-5
	sctpOpenLife       = 30 * time.Second            // P11
	sctpRepliedLife    = 300 * time.Second           // P11
	otherLife          = 120 * time.Second           // P12
	echoLife           = 30 * time.Second            // P13

	// icmpErrorRate is how many ICMP errors a second pass in each direction,
	// with as many at once after a second of silence (P14).
	icmpErrorRate = 100
	// rejectRate is how many refused packets a second the local side is told
	// about for each destination (P17).
	rejectRate = 10
	// maxRejectDestinations bounds the destinations that are told apart for
	// rejectRate; a peer has few addresses, but a router stands for many.
	maxRejectDestinations = 64

	// defaultMTU is the least that IPv6 may have inside the tunnel.
	defaultMTU = 1280
	// The least MTU that a "packet too big" can set (P14, RFC 8200 5).
	minMTU4 = 576
	minMTU6 = 1280

	// sweepInterval is the least time between two sweeps over a peer's flows.
	sweepInterval = time.Second
	// sweepStep is how many flows one HandleTimeout looks at: about 0.2 ms, so
	// that no packet waits long for the peer's lock.
	sweepStep = 1024
)

// Quota counts what all peers of the device hold together. It is shared by all
// Peers and therefore safe for concurrent use.
type Quota interface {
	// TakeFlow takes one of DeviceFlows, or returns false where none is left.
	TakeFlow() bool
	// ReturnFlow gives back one that was taken.
	ReturnFlow()
	// TakeFragment takes one of DeviceFragments, or returns false.
	TakeFragment() bool
	// ReturnFragment gives back one that was taken.
	ReturnFragment()
}

// Config is what all Peers of a device share. It is not written to after the
// first Peer was made.
type Config struct {
	// Seed are random bits that nobody outside the program knows. With a seed
	// that a peer knows, it can choose flows that make lookups slow.
	Seed [2]uint64
	// Quota bounds what all peers hold together; nil is no bound.
	Quota Quota
	// Started is when the program began to filter; the pick-up window is
	// counted from it. The zero time is long ago: no window.
	Started time.Time
	// Lead is how far the times that the filter is given are ahead of those that
	// rules speak of, negative where they are behind; zero where they agree.
	Lead time.Duration
	// Overlay holds the network's own ranges: nothing behind a router may be
	// addressed in them, or come from them.
	Overlay []netip.Prefix
	// Protected holds what no peer may reach, or come from, through a route:
	// this machine's addresses outside the network, the subnets that it is
	// connected to and does not offer as a route, the coordinator and relays.
	Protected []netip.Prefix
	// Connected holds the subnets that this machine is connected to, served or
	// not: their broadcast addresses are nobody's (P4). Those of Protected need
	// not be repeated.
	Connected []netip.Prefix
	// ControlProtocol is the IP protocol number of the in-band control
	// protocol, 0 where there is none.
	ControlProtocol uint8
	// MTU is the tunnel's MTU, 0 for 1280.
	MTU uint16
	// StrictEcho admits an echo request only by a rule that admits ICMP.
	// Without it any rule that admits something to the destination does.
	StrictEcho bool
	// Events makes every Peer record flows and denials for NextEvent.
	Events bool
}

// Decision is what becomes of one packet.
type Decision struct {
	Verdict Verdict
	Reason  Reason
	// NewFlow is set where the packet opened a flow.
	NewFlow bool
	// Would says what the audit rules would have made of a new flow.
	Would ruleset.Would
	// MTU, if not 0, must be written into the packet (packet.SetMTU) before
	// it is handed on.
	MTU uint16
	// Rule is the rule that admits the packet's flow, or that denies it; empty
	// where no rule was asked or none matched.
	Rule ruleset.RuleID
	// WouldRule is the audit rule behind Would.
	WouldRule ruleset.RuleID
	// Candidate says what a candidate document would have made of a flow that
	// the rules were asked about: a new one, or one that was denied.
	Candidate ruleset.Outlook
}
