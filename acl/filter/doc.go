// Package filter decides on every packet between this device and one peer: the
// stateful packet filter. What it does exactly is the design page "Packet
// filter", rules P0 to P23; DESIGN.md beside this file says how, and why.
//
// A Peer holds all state for one peer: its flows, its fragments, its budgets.
// State of one peer can therefore never admit a packet of another. The caller
// parses a packet (acl/packet), or has the Peer do it (Receive), asks
// CheckInbound or CheckOutbound, and does what the Decision says. It asks
// NextTimeout when to call HandleTimeout, and drains NextCut after every call
// that can end flows (SetRules, SetShields, Remove, HandleTimeout and the
// checks themselves).
//
// The package is pure: no clock, no goroutine, no lock. A Peer is not safe for
// concurrent use; the engine guards each one with a mutex of its own. Times that
// are handed in should carry a monotonic reading: idle times are measured with
// it, and the end of a rule is reached at the earlier of both clocks, so that
// neither a clock set back nor a suspended machine makes a flow outlive its
// rule.
//
// In the steady state a check does not allocate. An idle Peer holds no table.
package filter
