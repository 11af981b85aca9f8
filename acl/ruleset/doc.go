// Package ruleset holds compiled rules: the part of a network's policy that
// concerns one device, in the form in which the coordinator signs it, the
// device keeps it, and the packet filter asks it.
//
// Rules speak of labels, not of addresses of other devices, so a device that
// joins or leaves changes no rule set. A rule set is narrowed once for each
// peer (RuleSet.ForPeer); the narrowed form answers for a flow in a time that
// does not depend on how many rules there are.
//
// The package is pure: it reads no clock and starts no goroutine. A RuleSet
// and a PeerRules are immutable once made and safe for concurrent use.
package ruleset
