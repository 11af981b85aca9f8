// Package nat learns how this machine looks from outside: its public addresses,
// and whether the NAT in front of it gives every destination the same one.
//
// The Discoverer asks several STUN servers and compares their answers. It has
// the shape of all machines here: inputs, NextTimeout and HandleTimeout, and
// outputs to drain after every call. It is pure and not safe for concurrent
// use.
//
// The Mapper and the Pinholes keep this device's port open at its gateway, which
// somebody else asks: for IPv4, and for each global address of IPv6.
//
// # Ports that are guessed
//
// Behind a NAT that gives every destination another port, in a row, the next few
// are predicted (Report.Predicted). A peer that sends from one port, and to all of
// them, lets in what comes from the right one, however strict its own NAT is; where
// both NATs are of that kind, each port depends on the other, and the relay
// carries. So it does where another host behind the NAT opened more flows in
// between than are predicted: the answers of the servers, whose mappings are kept
// alive, do not show that.
//
// Ports that are drawn at random are not predicted. Two agents find one of many by
// the birthday method where one of the two NATs is easy; package path, DESIGN.md,
// has the arithmetic. MappingVaries without Predicted says that it is needed.
//
// # Trust
//
// STUN answers are not authenticated. An answer counts only where it carries
// the random id of an outstanding request and comes from the server that was
// asked; even so, what is learned is a hint to give to peers, who prove it
// before they use it.
package nat
