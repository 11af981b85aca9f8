// Package simnet is a simulated internet for tests: hosts, private networks,
// routers with every kind of address translation and filtering, and paths with
// delay, loss, duplication and reordering, all from one seed.
//
// It comes in two layers. Network is pure: packets go in with a time and come
// out with a time, so that pure machines are tested in plain loops. World puts
// a Network behind sockets (sock.Conn), TUN devices (tun.Device) and streams
// (net.Conn) that block on channels only, for whole nodes in a testing/synctest
// bubble; a World must be made inside the bubble that uses it. It starts no
// goroutines; deliveries happen in timer callbacks.
//
// Only tests may import it.
//
// # The model
//
// A Segment is a stretch of network in which every host reaches every other: the
// internet itself, or a LAN behind a Router. A packet for an address that is not
// in its segment goes to the segment's router, which translates IPv4 (RFC 4787)
// and passes IPv6, and IPv4 that is routed, through a stateful firewall. Links can
// have an MTU, and swallow what is longer. Streams are not lost packet by packet: a
// cut stalls them, as TCP would stall, until it heals.
package simnet
