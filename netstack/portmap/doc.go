// Package portmap asks this machine's gateway to forward a UDP port to it, by
// PCP, NAT-PMP or UPnP IGD, whichever the gateway speaks. When to ask and what
// to believe is decided by nat.Mapper and nat.Pinholes; this package carries it
// out. It is a shell, and starts no goroutine.
//
// # IPv6
//
// Addresses of IPv6 are not translated, but most gateways drop what comes unasked.
// By PCP, or UPnP's WANIPv6FirewallControl, they are asked to let in what comes to
// one address and port, each from that address, since a gateway does so for
// nobody else. The gateway is the default route's, mostly a link-local address,
// and another PCP server than that of IPv4 as far as this package knows.
//
// # Who may answer
//
// None of the protocols authenticates anybody. What is asked goes to the
// gateway of the default route, and only what comes from its address counts, the
// web server that a UPnP device is told to have included; whoever can forge that
// is the network. A gateway that names another of its addresses of IPv6 in UPnP is
// asked at the one that is known, so that nobody can be named in its place. Every
// answer is bounded in bytes, number and time, redirects and compression are
// refused, and no other port than the one that is asked for, and no other machine
// than this one, is ever named in a request.
//
// Sockets are made with Config.Control, so that requests reach the gateway also
// where everything else goes through an exit node.
package portmap
