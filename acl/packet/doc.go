// Package packet reads IP packets: one strict parser for everything that looks
// into a packet, and the builders of the few packets that this program answers
// with itself.
//
// The parser (Parse) turns bytes into a value (Info) without allocating, for
// IPv4 and IPv6 alike, and refuses what a packet inside the network has no
// business to be: IPv4 options, IPv6 extension headers other than one fragment
// header, lengths that do not fit, transport headers that are cut off. What it
// accepts has one reading; a Fault names why it did not.
//
// The builders write into a slice of the caller's: AppendReject answers a
// refused packet, AppendReset and AppendProhibited end a flow without having
// one of its packets, AppendEchoRequest makes a ping, AppendTooBig refuses what is
// too long for its path, SetMTU raises the value of a "packet too big", ClampMSS
// lowers what a TCP connection is opened with, SetWindow what its receiver offers.
//
// The package is pure and holds no state. Slices that are handed in are not
// kept.
package packet
