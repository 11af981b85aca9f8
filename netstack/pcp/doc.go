// Package pcp speaks the two protocols by which a host asks its gateway to
// forward a port to it: the Port Control Protocol (RFC 6887), of which it knows
// the MAP opcode for UDP, and its predecessor NAT-PMP (RFC 6886). They share a
// port and tell each other apart by their first byte, so that one socket serves
// both.
//
// The package is a codec: pure, and strict about what it reads, which is any
// datagram that anybody in the local network can forge. Whether an answer
// belongs to a request is for the caller to say: it compares source, nonce and
// port.
//
// It exists because no maintained library speaks PCP, and because libraries for
// NAT-PMP open a socket of their own, which then follows the machine's routes
// into the overlay where an exit node is used.
package pcp
