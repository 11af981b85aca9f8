// Package portmap asks this machine's gateway to forward a UDP port to it, by
// PCP, NAT-PMP or UPnP IGD, whichever the gateway speaks. When to ask and what
// to believe is decided by nat.Mapper; this package carries it out. It is a
// shell, starts no goroutine, and is for IPv4, where addresses are translated.
//
// # Who may answer
//
// None of the three protocols authenticates anybody. What is asked goes to the
// gateway of the default route, and only what comes from its address counts, the
// web server that a UPnP device is told to have included; whoever can forge that
// is the network. Every answer is bounded in bytes, number and time, redirects
// and compression are refused, and no other port than the one that is asked for,
// and no other machine than this one, is ever named in a request.
//
// Sockets are made with Config.Control, so that requests reach the gateway also
// where everything else goes through an exit node.
package portmap
