// Package proxy provides the SOCKS5 and HTTP proxies through which programs on
// this host reach the overlay when the node has no TUN device.
package proxy
