package flowlog

import (
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// Party is one side of a flow, as its certificate names it.
type Party struct {
	Node ident.NodeID
	// Name is the device's name at that time.
	Name string
	// User is zero for a tagged device.
	User ident.UserID
	// Certificate is the serial of the certificate that says which labels the
	// device had.
	Certificate uint64
	// Address may be one behind the device. Its port is 0 for a protocol that
	// has none; a ping has its identifier as the source's.
	Address netip.AddrPort
}

// Traffic counts whole packets of the tunnel.
type Traffic struct{ Packets, Bytes uint64 }

// Record is one flow, or denials of one kind within ten seconds.
type Record struct {
	// ID names the record among all of one device. The record of a flow's
	// opening and that of its end have the same.
	ID uint64
	// Allowed is set for flows that were admitted.
	Allowed bool
	// Opener is filter.Outbound where the device that reports opened the flow,
	// or tried to.
	Opener filter.Direction
	// Source opened the flow, or tried to.
	Source, Destination Party
	Protocol            uint8
	// Rule admitted the flow, or denies it; empty where no rule matches.
	Rule ruleset.RuleID
	// Epoch is that of the rules by which it was decided.
	Epoch ruleset.Epoch
	// Reason is why it was denied: a filter.Reason's name. Empty for a flow.
	Reason string
	// Would is what audit rules would have made of it, WouldRule which of them.
	Would     ruleset.Would
	WouldRule ruleset.RuleID
	// Candidate is what a candidate document would have made of it.
	Candidate ruleset.Outlook
	// Start is when the flow was opened, or first denied.
	Start time.Time
	// End is when the flow ended, or when it was last denied; zero while the
	// flow lasts.
	End time.Time
	// EndReason is why a flow ended: a filter.End's name.
	EndReason string
	// EndEpoch is the epoch at the end of a flow.
	EndEpoch ruleset.Epoch
	// Sent is what the source sent, Received what it got; known at the end.
	Sent, Received Traffic
	// Attempts counts the packets of a denied kind.
	Attempts uint64
	// Others is set where the record stands for all further denials of the
	// peer in these ten seconds, of whatever ports and reasons.
	Others bool

	// Sequence counts the changes in one Log: it is that of the record's last
	// one. It is not encoded.
	Sequence uint64
}

// merge takes over from the record of a flow's opening what that of its end
// does not know.
func (r *Record) merge(opening *Record) {
	r.Start, r.Epoch = opening.Start, opening.Epoch
	r.Rule = opening.Rule
	r.Would, r.WouldRule, r.Candidate = opening.Would, opening.WouldRule, opening.Candidate
	r.Source, r.Destination = opening.Source, opening.Destination
}

// Sides are the two devices whose flows a filter.Peer decides on.
type Sides struct{ Self, Peer Party }

// newRecord makes a record of an event. now is the present time, by which the
// event's own clock is corrected: it may have been set since.
func newRecord(nonce uint64, sides *Sides, e *filter.Event, now time.Time) Record {
	self, peer := sides.Self, sides.Peer
	self.Address = netip.AddrPortFrom(e.Flow.Source.Addr(), e.Flow.SourcePort)
	peer.Address = netip.AddrPortFrom(e.Flow.Destination.Addr(), e.Flow.DestinationPort)
	at := now.Round(0).Add(-now.Sub(e.At)).UTC()
	r := Record{
		ID: identify(nonce, sides, e), Allowed: e.Kind != filter.FlowDenied, Opener: e.Opener,
		Source: self, Destination: peer, Protocol: e.Flow.Protocol, Rule: e.Rule, Epoch: e.Epoch,
		Would: e.Would, WouldRule: e.WouldRule, Candidate: e.Candidate, Start: at,
	}
	sent, received := filter.Outbound, filter.Inbound
	if e.Opener == filter.Inbound {
		r.Source, r.Destination = peer, self
		sent, received = received, sent
	}
	switch e.Kind {
	case filter.FlowOpened:
	case filter.FlowDenied:
		r.Reason, r.End, r.Attempts = e.Reason.String(), at, 1
	case filter.FlowEnded:
		r.Start, r.End, r.EndReason, r.EndEpoch = at.Add(-e.Lasted), at, e.End.String(), e.Epoch
		// The rules of the opening are not known here any more.
		r.Epoch = 0
		r.Sent = Traffic{uint64(e.Packets[sent]), e.Bytes[sent]}
		r.Received = Traffic{uint64(e.Packets[received]), e.Bytes[received]}
	}
	return r
}

// identify mixes what makes a flow one: both devices, the tuple and the moment
// of its opening, by the FNV-1a hash. The nonce makes it another after a
// restart.
func identify(nonce uint64, sides *Sides, e *filter.Event) uint64 {
	h := nonce ^ 14695981039346656037
	mix := func(v uint64) {
		for shift := 0; shift < 64; shift += 8 {
			h = (h ^ v>>shift&0xff) * 1099511628211
		}
	}
	f := &e.Flow
	for _, v := range [...]uint64{
		uint64(sides.Self.Node), uint64(sides.Peer.Node), f.Source.Hi, f.Source.Lo, f.Destination.Hi, f.Destination.Lo,
		uint64(f.SourcePort)<<32 | uint64(f.DestinationPort)<<16 | uint64(f.Protocol)<<8 | uint64(e.Opener),
		uint64(e.At.Add(-e.Lasted).UnixNano()),
	} {
		mix(v)
	}
	return h
}
