// Package userstack is a TCP/IP stack in user space behind tun.Device, for
// nodes that run without a TUN device and without root. It is the only importer
// of gvisor.
//
// The engine reads the packets that the stack sends and writes those that come
// from peers, as it does with a TUN device. Programs on the host reach peers
// through DialContext (netstack/proxy serves it as SOCKS5 and HTTP), and peers
// reach the host's services: a TCP connection or a UDP flow to one of the
// device's own addresses is forwarded to the same port on the host's loopback
// address, unless a Listen call of this stack serves the port. Without routes
// nothing else is ever forwarded: the destination is compared with the device's
// own addresses, and the only addresses dialled are 127.0.0.1 and ::1. Echo
// requests to own addresses are answered by the stack.
//
// With SetRoutes the host routes for peers: TCP, UDP and echo requests to a
// prefix that is served are carried on by sockets of this process, in the name of
// the host. A second stack takes them, because one that takes packets for any
// address cannot reach itself. Each flow's destination is judged once more before
// it is dialled: never loopback, link-local, group, broadcast or metadata
// addresses, those of this host, the overlay, or what carries it; nor, by a
// default route, the networks that this host is connected to.
//
// Which peer may reach which port is decided by the packet filter before a
// packet gets here. To the local service the connection comes from the loopback
// address.
//
// Goroutines: the stack has one TCP worker for each processor, from New to
// Close. A forwarded TCP connection has two goroutines, from the peer's SYN to
// the end of the connection; a forwarded UDP flow has two, until it was idle for
// the configured time; one for echo requests has two, until 30 s after the last
// request. Close ends all of them and waits for them.
//
// gVisor parks its workers where testing/synctest does not see it: a Stack in a
// bubble keeps the bubble's clock from advancing.
package userstack
