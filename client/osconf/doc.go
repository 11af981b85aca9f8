// Package osconf is what a node has to know of, or change in, the operating
// system around it: at present, when the machine's network changes.
//
// Goroutines: Monitor.Run runs until its context ends; on Linux it has one more
// that reads the kernel's notices, and waits for it.
package osconf
