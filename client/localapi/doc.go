// Package localapi is how programs on a machine speak with its node: HTTP over
// a Unix socket, with versioned paths and JSON, a Server for the daemon and a
// Client for the command line.
//
// The socket has mode 0600. Who connects is known from the kernel (SO_PEERCRED
// on Linux, LOCAL_PEERCRED on macOS) and never from what is said: verbs that
// change something are for root and for the daemon's own user, those that only
// read for everyone who can open the socket. On Windows the kernel does not
// tell, and who can open the socket, in a private directory, may do all. There
// is no TCP listener, so no web page can reach the API.
//
// Goroutines: Server.Run serves until its context ends, with one goroutine for
// each connection, and waits for them.
package localapi
