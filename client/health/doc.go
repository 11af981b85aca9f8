// Package health holds what is wrong with a node as typed facts: a stable code
// that scripts and documentation refer to, how bad it is, whom it concerns, and
// a text that says what to do. A fact stands for as long as its cause does.
//
// The package is pure. A Set is not safe for concurrent use.
package health
