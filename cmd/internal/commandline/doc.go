// Package commandline is how Warren's programs answer those who type: what a wrong
// command line is, what is printed about an error, the exit status, and which
// build a program is.
//
// It keeps no state and starts no goroutine.
package commandline
