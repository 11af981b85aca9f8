// Package cputime tells tests how long processors have worked for them, so that
// what bounds the work of code under test does not depend on what else the machine
// does. It starts no goroutines.
package cputime
