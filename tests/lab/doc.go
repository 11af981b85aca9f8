// Package lab runs Warren's programs as they are shipped, on several hosts that
// are network namespaces of one machine: real kernels' routing, real TUN
// devices, real sockets.
//
// A Lab is one LAN:
//
//	host a         host b         host c        ...
//	eth0           eth0           eth0          10.77.0.N/24, fd77::N/64
//	  |              |              |
//	  +----veth------+----veth------+           a bridge in a namespace of its own
//
// An Internet is a router with sites around it instead: public hosts, and
// gateways with a NAT and a LAN behind them.
//
// Relays, and coordinators where a test asks for it, serve by TLS on port 443, with
// certificates of an authority of the lab's own that programs on hosts trust. An
// Internet has names for its hosts where a test gives some.
//
// It needs root and Linux; New and NewInternet skip the test with the reason elsewhere.
// Namespaces have no names and processes die with the test, so nothing is left
// behind, not even after a crash. Traffic stays inside.
//
// Goroutines: one for each host, bound to a thread in the host's namespace, and those
// of what the test itself serves on hosts, such as proxies, until the test ends.
package lab
