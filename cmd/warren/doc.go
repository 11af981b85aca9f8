// Command warren is a node of a Warren network: the daemon (warren daemon) and
// the command line that speaks with it.
//
// It is flags, texts and wiring; what decides is in the client packages. Exit
// status: 0 done, 1 failed, 2 wrong usage.
package main
