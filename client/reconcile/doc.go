// Package reconcile turns what a node believes of its network and what its user
// wants into the configuration of the data plane. The engine compares it with
// the one before and carries out the difference.
//
// The package is pure.
package reconcile
