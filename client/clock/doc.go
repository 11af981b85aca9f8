// Package clock is the time by which a node judges how long certificates and
// rules hold.
//
// A wall clock can be set back, by an administrator, by a time server that lies
// or by an attacker with the device in hand, and what has ended would hold
// again. A Clock never goes back: it shows the wall clock's time, but no less
// than its own last time and all that has passed since, the time of a suspended
// machine included. A wall clock that is once far ahead makes certificates end
// early until the daemon is started again; that is the safe direction.
//
// The package starts no goroutine. A Clock is safe for concurrent use, and
// quick enough to be read for every batch of packets.
package clock
