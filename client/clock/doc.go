// Package clock is the time by which a node judges how long certificates and
// rules hold.
//
// A wall clock can be set back, by an administrator, by a time server that lies
// or by an attacker with the device in hand, and what has ended would hold
// again. A Clock never goes back: it shows the wall clock's time, but no less
// than its own last time and all that has passed since, the time of a suspended
// machine included.
//
// A wall clock can also be set far ahead, and what holds would end. That is the
// safe direction, but only until the right time is known: the coordinator tells
// it on every connection (client/control), and from then on a Clock that is held
// shows only what passes. How far it is off is judged by whoever knows. A machine
// that was paused as a whole, as a virtual one can be, has missed that time until
// it is connected again.
//
// The package starts no goroutine. A Clock is safe for concurrent use, and
// quick enough to be read for every batch of packets.
package clock
