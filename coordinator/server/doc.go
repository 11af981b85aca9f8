// Package server is a running coordinator: it opens the data directory, serves
// the control protocol, the genesis record and the administrator's socket, and
// owns the one loop in which everything is decided.
//
// # The loop
//
// Run has one goroutine that alone touches the registry's state, the network
// and the sessions. Everything else hands it functions to run. A command goes
// through decide, commit and apply without anything in between, and only then is
// anybody told; so what a node or an administrator was told is on the disk, and
// memory never holds what the disk does not. Whom nodes must not hold any more is
// told in the same turn; maps are made some at a time, and what administrators
// want comes before them. Where the disk fails for good (store.ErrBroken), Run ends
// with the error, for the service manager to start it anew.
//
// # Goroutines
//
// Run starts the loop and one goroutine for each listener. Each control
// connection has two: that of the HTTP server, which reads, and one that
// writes. Run returns when all have ended.
//
// # Before a node is known
//
// A stranger costs one of a bounded number of connections, which is bounded for
// each address as well as the rate of new ones, from the handshake until it is
// registered: 10 seconds for the handshake and 30 for each step after it,
// headers of 16 KiB, no bodies, messages of 8 KiB. Refused registrations have
// entries in the audit log at a bounded rate; those over it are counted there.
package server
