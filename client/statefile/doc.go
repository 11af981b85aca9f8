// Package statefile keeps a node's state in one directory: its private keys,
// its preferences, and what it has verified of its network.
//
// The directory belongs to the daemon's user alone and has mode 0700; files
// have mode 0600. On Windows it has an access list of its own, which lets in
// that user, SYSTEM and Administrators, and which the files inherit. Both are
// checked at the start, and a directory that somebody else may enter is
// refused. A file is replaced as a whole: written beside the
// old one, synchronised, renamed, and the directory synchronised, so that after
// a crash it is the old one or the new one.
//
// A Directory may be used by one process; its lock sees to that. Its methods
// are safe for concurrent use. The package starts no goroutine.
package statefile
