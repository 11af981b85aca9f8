// Package flowlogpb is the generated encoding of records of flows. Use package
// flowlog, whose values are checked.
package flowlogpb
