// Package report puts a compiled policy into the forms that people and
// programs read: the inventory and answer of `policy compile`, explanations,
// the difference between two policies, and the checks before one is put in
// force.
//
// The package is pure: it reads and writes values, never files.
package report
