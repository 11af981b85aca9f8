// Package audit is the record of what was changed in a network, by whom and
// when, as a chain of hashes: each entry's hash covers the one before it, so
// that no entry can be changed, taken out or moved without breaking every hash
// after it. What a chain cannot show by itself is a missing end; for that its
// head is kept elsewhere and compared.
//
// The store writes an entry in the transaction of the change that it tells of,
// so there is none without the other.
//
// The package is pure. Its values are not safe for concurrent use.
package audit
