// Package wirepb is the generated encoding of the control protocol. Use package
// wire, whose values are checked.
package wirepb
