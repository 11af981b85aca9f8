// Package authority decides who is a member of the network and which rules
// hold: it verifies signed device certificates, signed rules and relay
// admissions against the network's genesis record, and is the only place that
// can make a Peer.
//
// Everything that can reach a device's data plane passes Authority.Admit,
// whether it came in a full map, in a delta or from the cache on disk; there is
// no other constructor of Peer. Every check fails closed: what cannot be
// verified is absent, and the caller is told why by an error of a fixed set.
//
// What is signed is a canonical record (package canonical) with the context of
// its kind and the network's fingerprint in front, so that no signature can be
// taken for one of another kind or network.
//
// In managed mode one key of the coordinator's holds all signing roles. The
// genesis record lists keys with roles, so that signing can move away from the
// coordinator without a change on the devices.
//
// The package is pure. An Authority is not safe for concurrent use; a Peer and
// a Rules are immutable and may be shared.
package authority
