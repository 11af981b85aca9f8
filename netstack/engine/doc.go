// Package engine runs the data plane of a node: it carries packets between the
// TUN device and the peers of a configuration, filters each of them, and finds
// the paths.
//
// # Data path and control
//
// The data path runs in WireGuard's goroutines (package wg): what the host
// sends is filtered as it is read from the TUN device, what a peer sends as it
// is written to it. It takes no lock but the mutex of the one peer whose packet
// it looks at, and finds the peer in an immutable table behind an atomic
// pointer. Its ways to the control goroutine are bounded channels; what does
// not fit is counted and dropped, and none of it is a decision.
//
// One control goroutine owns everything that decides on paths: an agent for
// each peer (package path), the discoverer of our own addresses (package nat),
// the sealers of probes (package disco), the configuration and its timers. It
// changes the data path by swapping the table, setting a peer's path, and
// setting a filter's rules under the peer's mutex.
//
// # Membership and rules
//
// Nobody needs to tell the engine that a certificate or a rule has ended: it
// removes a peer when its certificate's validity ends, and the filters end the
// flows of rules that do not hold any longer. A peer is removed in the order of
// packet-filter.md, P20: WireGuard's keys are zeroed and nothing of the peer's
// can be opened any more, then its flows are deleted, then its paths.
//
// When Run ends the filters' flows are handed over to the next run, which asks
// the rules about each of them again when their peer is added (P9).
//
// A prefix that moves from one peer to another that both stay is taken from the
// one by removing it and adding it again, so that no packet that the one sent
// can be filtered as the other's.
//
// # Records and captures
//
// The filters note what they decide (filter.Event); the control goroutine makes
// records of it (package acl/flowlog), which Flows and Denials read without it.
// Why asks a filter what it would decide. A Capture is fed by the data path,
// through a queue that is bounded in bytes and drops what does not fit, and
// written by the goroutine that calls Capture.Write; while there is none, the
// data path loads one pointer for each batch.
//
// # Goroutines
//
// Engine.Run starts: the control goroutine; one that reads the TUN device; three
// for each relay that it is connected to (session, reader, writer); one for
// wg(8) where the device has an interface name; one for each lookup of a STUN
// server's name; one for each further socket, of which there are 256 while a
// peer's port is guessed and one for each path that was found so; and WireGuard's
// own. All have ended when it returns.
package engine
