// Package nat learns how this machine looks from outside: its public addresses,
// and whether the NAT in front of it gives every destination the same one.
//
// The Discoverer asks several STUN servers and compares their answers. It has
// the shape of all machines here: inputs, NextTimeout and HandleTimeout, and
// outputs to drain after every call. It is pure and not safe for concurrent
// use.
//
// STUN answers are not authenticated. An answer counts only where it carries
// the random id of an outstanding request and comes from the server that was
// asked; even so, what is learned is a hint to give to peers, who prove it
// before they use it.
package nat
