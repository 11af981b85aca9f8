// Package tun provides the device through which IP packets enter and leave the
// overlay: the operating system's TUN device, its addresses and its routes.
//
// Device is also what netstack/userstack implements for nodes without a TUN
// device, and what the engine wraps with the packet filter.
package tun
