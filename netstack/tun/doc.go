// Package tun provides the device through which IP packets enter and leave the
// overlay: the operating system's TUN device, its addresses and its routes.
//
// Device is also what netstack/userstack implements for nodes without a TUN
// device, and what the engine wraps with the packet filter.
//
// On Linux the device is that of golang.zx2c4.com/wireguard/tun, with its
// segmentation offloads; addresses and routes are set over netlink. The device
// belongs to the process: it, its addresses and its routes vanish when the
// process ends in whatever way. Open starts three goroutines, which end with
// Close: two of the wireguard-go device, which watch the interface's state, and
// one that takes their events and learns from them of a changed MTU.
package tun
