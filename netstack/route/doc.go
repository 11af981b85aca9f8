// Package route finds the peer that an overlay address belongs to.
//
// A Table is built once from all prefixes and never changes; whoever holds one
// swaps the pointer for the next. Lookup takes the longest prefix, locks
// nothing and allocates nothing. The package is pure.
package route
