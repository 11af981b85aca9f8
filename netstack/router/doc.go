// Package router makes the kernel route between the overlay and the networks
// of this machine, and keeps it from doing so by itself.
//
// A Router owns three things of a network namespace: a table of nftables, the
// rules and one table of policy routing, and a few switches of the kernel. It
// does three jobs with them. It guards the interface of the overlay: nothing is
// forwarded out of it or into it but what was asked for, whatever other tables
// say (X-04, P22). It serves routes: packets that the engine's filter has
// admitted go on to the networks of Settings.Forward in this machine's name.
// And it leads packets for Settings.Accept into the overlay, without ever
// taking what belongs to this machine's own networks or to what the overlay
// itself is carried by. DESIGN.md says why it is done in this way.
//
// The package starts no goroutines. Everything is done in the network namespace
// of the thread that calls Open and Configure.
package router
