// Package sock provides the UDP sockets over which peers, relays and STUN
// servers are reached: one port for both address families, read and written in
// batches.
//
// On Linux a batch is one recvmmsg or sendmmsg system call, and runs of
// datagrams of one size to one destination are handed to the kernel, and taken
// from it, as one message (UDP_SEGMENT and UDP_GRO, udp(7)). Callers never see
// a coalesced message: every buffer holds one datagram as it was on the wire.
// Elsewhere a batch is one datagram. On Linux, macOS and Windows datagrams are sent
// whole or not at all (DontFragment); only what is here for Linux has been run.
//
// Addresses are always unmapped: an IPv4 peer is an IPv4 address, never
// ::ffff:a.b.c.d.
//
// The package starts no goroutines.
package sock
