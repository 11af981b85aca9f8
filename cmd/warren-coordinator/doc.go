// Command warren-coordinator runs a network's coordinator (serve) and is the
// administrator's tool: all its other commands talk to the running coordinator
// over the Unix socket in the data directory, except those that only read the
// audit log.
//
// It exits with 0 where it did what was asked, 1 where that failed, and 2 where
// the command line was wrong.
package main
