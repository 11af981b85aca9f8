package filter

import "github.com/warren-overlay/warren/acl/packet"

// Verdict is what the caller must do with a packet. A caller that does not know
// a value must treat it as Drop.
type Verdict uint8

const (
	// Drop: no packet, no reply.
	Drop Verdict = iota
	// Pass: hand the packet on, cut to packet.Info.Length, after
	// packet.SetMTU where Decision.MTU is not 0.
	Pass
	// Reject (outbound only): drop it, and give the local stack what
	// packet.AppendReject makes of it.
	Reject
	// Control (inbound only): hand the packet to the in-band control protocol
	// and to nobody else.
	Control
)

// String returns the lower-case name of the verdict.
func (v Verdict) String() string {
	switch v {
	case Pass:
		return "pass"
	case Reject:
		return "reject"
	case Control:
		return "control"
	default:
		return "drop"
	}
}

// Direction is a packet's direction as seen from this device.
type Direction uint8

const (
	// Inbound packets come from the peer.
	Inbound Direction = iota
	// Outbound packets go to the peer.
	Outbound
)

// String returns "in" or "out".
func (d Direction) String() string {
	if d == Inbound {
		return "in"
	}
	return "out"
}

// Reason says why a packet was decided on as it was. The values are appended
// to, never reordered; their names are metric labels and stay what they are.
type Reason uint8

const (
	// Passed: the packet belongs to a flow that is, or now became, allowed.
	Passed Reason = iota

	// DropTruncated: packet.Truncated.
	DropTruncated
	// DropVersion: packet.Version.
	DropVersion
	// DropIPOptions: packet.Options.
	DropIPOptions
	// DropExtension: packet.Extension.
	DropExtension
	// DropEmbedded4: packet.Embedded4.
	DropEmbedded4
	// DropTransport: packet.Transport.
	DropTransport
	// DropFragmentHeader: packet.Fragmented.
	DropFragmentHeader
	// DropQuote: packet.Quoted.
	DropQuote

	// DropSpoof: the source is not an address that the sender may use.
	DropSpoof
	// DropDestination: the destination is neither the receiver's own nor
	// behind it.
	DropDestination
	// DropMulticast: multicast, broadcast or link-local.
	DropMulticast

	// DropFragment: a later fragment whose first one was not admitted (or came
	// too long ago, or could not be remembered).
	DropFragment
	// DropFragmentOverlap: a later fragment that would overwrite the first.
	DropFragmentOverlap
	// DropFragmentLength: a later fragment that ends beyond what a packet can
	// be, or not on a multiple of 8 though more are to come.
	DropFragmentLength
	// DropFragmentRepeated: a second first fragment.
	DropFragmentRepeated
	// DropFragmentPoisoned: belongs to a packet of which a fragment was bad.
	DropFragmentPoisoned

	// DropTCPFlags: flags that no segment has.
	DropTCPFlags
	// DropTCPState: a segment that the connection's state does not allow.
	DropTCPState
	// DropNoFlow: the packet cannot open a flow and belongs to none.
	DropNoFlow

	// DropICMPType: an ICMP message that is never admitted.
	DropICMPType
	// DropICMPNoFlow: an ICMP error about a packet that its receiver did not
	// send in a live flow with its sender.
	DropICMPNoFlow
	// DropICMPRate: more ICMP errors than 100 a second.
	DropICMPRate
	// DropMTU: a "packet too big" that would not lower the MTU.
	DropMTU

	// DropNoRule: no rule admits the flow.
	DropNoRule
	// DropDenied: a deny rule matches the flow.
	DropDenied
	// DropShields: a flow from a peer while shields are up.
	DropShields
	// DropUnsolicited: a flow opened from behind a default route; only replies
	// may come from there.
	DropUnsolicited
	// DropQuota: the flow is allowed, but the device's table is full and this
	// peer has nothing in it to give up.
	DropQuota
	// DropControl: the in-band control protocol where it may not be.
	DropControl
	// DropRemoved: the peer was removed.
	DropRemoved

	reasons
)

// NumReasons is the number of Reason values.
const NumReasons = int(reasons)

var reasonNames = [NumReasons]string{
	"pass",
	"drop_truncated", "drop_version", "drop_ipopt", "drop_ext6", "drop_embedded4", "drop_transport",
	"drop_frag_header", "drop_icmp_quote",
	"drop_spoof", "drop_destination", "drop_multicast",
	"drop_frag", "drop_frag_overlap", "drop_frag_length", "drop_frag_repeated", "drop_frag_poisoned",
	"drop_tcp_flags", "drop_tcp_state", "drop_no_flow",
	"drop_icmp_type", "drop_icmp_no_flow", "drop_icmp_rate", "drop_mtu",
	"drop_no_rule", "drop_denied", "drop_shields", "drop_unsolicited", "drop_quota", "drop_control", "drop_removed",
}

// String returns the stable name of the reason, or "unknown".
func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return "unknown"
}

// FaultReason returns the reason for dropping what the parser refused.
func FaultReason(f packet.Fault) Reason {
	switch f {
	case packet.None:
		return Passed
	case packet.Version:
		return DropVersion
	case packet.Options:
		return DropIPOptions
	case packet.Extension:
		return DropExtension
	case packet.Embedded4:
		return DropEmbedded4
	case packet.Transport:
		return DropTransport
	case packet.Fragmented:
		return DropFragmentHeader
	case packet.Quoted:
		return DropQuote
	default:
		return DropTruncated
	}
}

// End says why a flow ended. The values are appended to, never reordered.
type End uint8

const (
	// EndIdle: no packet for as long as the flow's state lasts.
	EndIdle End = iota
	// EndReopened: the same tuple was opened anew.
	EndReopened
	// EndEvicted: it gave way to a newer flow of the same peer.
	EndEvicted
	// EndRule: the rules, or the identities, admit it no more.
	EndRule
	// EndShields: shields went up.
	EndShields
	// EndRemoved: the peer was removed.
	EndRemoved
	// EndHandedOver: this run of the program ends, and the next one goes on
	// with the flow.
	EndHandedOver

	ends
)

var endNames = [ends]string{"idle", "reopened", "evicted", "rule", "shields", "removed", "handed_over"}

// String returns the stable name, or "unknown".
func (e End) String() string {
	if e < ends {
		return endNames[e]
	}
	return "unknown"
}
