// Package proxy provides the SOCKS5 and HTTP proxies through which programs on
// this host reach the overlay when the node has no TUN device.
//
// A proxy carries traffic to the overlay and nowhere else: a destination that
// is not in it is refused with a reason, so that nobody mistakes the proxy for a
// way to the Internet, and no program of the host can use it to look like
// another. It asks for no credentials; whoever can connect to it acts as this
// node, and therefore Listen means the loopback address where no host is named.
//
// Server.Run starts one goroutine for each connection, and a second one while
// the connection carries data; it returns after all of them. Everything that a
// client may make us hold is capped by Config.
package proxy
