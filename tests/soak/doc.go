// Package soak keeps a network busy for a long time and watches for what only
// time shows: memory, goroutines and descriptors that grow. It runs the
// programs as `make build` makes them, in userspace, without root, on one
// machine: `make soak SOAKTIME=10m`.
//
// One round: a policy edit that must cut a live connection, its opposite, which
// must let a new one through, a device that joins, uses the network and leaves,
// a device that is revoked while it talks, and now and then a coordinator, with
// its relay, that dies by SIGKILL while connections go on. Some nodes live
// through all of it; they and the coordinator are measured every few seconds.
package soak
