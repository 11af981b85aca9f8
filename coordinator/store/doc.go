// Package store keeps a coordinator's state: a SQLite database with everything
// that is registered and the audit chain, and beside it, in files of their own,
// the private keys. So a copy of the database holds no private key and no
// usable credential.
//
// Commit writes a change and its audit entry in one transaction, which is on
// the disk (WAL, synchronous=FULL) when it returns. A single-use join key is
// consumed inside that transaction by a statement that only one of two can
// succeed with.
//
// The data directory belongs to one process at a time, which holds a lock on
// it, and to one user, with mode 0700; files in it have mode 0600.
//
// The package is a shell. It starts no goroutine. A DB may be used from many at
// a time.
package store
