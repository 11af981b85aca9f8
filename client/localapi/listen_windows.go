package localapi

import "net"

// listenPrivate makes the socket, whose access list is that of its directory.
func listenPrivate(path string) (net.Listener, error) { return net.Listen("unix", path) }
