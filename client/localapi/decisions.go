package localapi

import (
	"net/netip"
	"time"
)

// WhyRequest asks whether a flow may be opened.
type WhyRequest struct {
	// To is the name or the overlay address of the device that the flow goes
	// to, or an address behind it. Where From is set, it may be empty: this
	// device.
	To string `json:"to,omitempty"`
	// From is the name or the address of the device that opens the flow; empty
	// stands for this device. One of the two must be this device: a device
	// knows the rules that concern it, and no others.
	From string `json:"from,omitempty"`
	// Protocol is an IP protocol number; those of ICMP stand for a ping.
	Protocol uint8 `json:"protocol"`
	// Port is the destination port, 0 for a protocol that has none.
	Port uint16 `json:"port,omitempty"`
}

// WhyReply says whether a flow may be opened.
type WhyReply struct {
	Allowed bool `json:"allowed"`
	// Text is the answer in one or more lines, for people.
	Text string `json:"text"`
	// Reason is the stable name of the filter's reason: "pass", "drop_no_rule"
	// and so on; "no_device" where no such device is visible to this one.
	Reason string `json:"reason"`
	// Rule is the rule that allows it, or that denies it; empty where none
	// matches.
	Rule string `json:"rule,omitempty"`
	// Opener is "out" where this device opens the flow, else "in".
	Opener string `json:"opener"`
	// Service is what was asked about, such as "tcp:5432".
	Service string `json:"service"`
	// Peer is the name of the other device, Addr its address.
	Peer string     `json:"peer,omitempty"`
	Addr netip.Addr `json:"addr,omitzero"`
	// PolicyEpoch is that of the rules in force.
	PolicyEpoch uint64 `json:"policy_epoch"`
	// Services lists what the rules let be opened instead, or as well.
	Services []string `json:"services"`
	// Until is when the answer may become another without a new policy, because
	// a rule begins or ends; zero for never.
	Until time.Time `json:"until,omitzero"`
	// Would is "would_allow" or "would_deny" where rules in audit mode would
	// change the answer, and WouldRule the one that would.
	Would     string `json:"would,omitempty"`
	WouldRule string `json:"would_rule,omitempty"`
	// CandidateEpoch, Candidate and CandidateRule are as in Flow.
	CandidateEpoch uint64 `json:"candidate_epoch,omitempty"`
	Candidate      string `json:"candidate,omitempty"`
	CandidateRule  string `json:"candidate_rule,omitempty"`
}
