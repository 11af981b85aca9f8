package route

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/gaissmai/bart"
)

// Peer names a peer by its place in a list of the caller's, which lives and
// dies with the table.
type Peer int32

// Entry is one prefix of a peer.
type Entry struct {
	Prefix netip.Prefix
	Peer   Peer
	// Own says that Prefix is one of the device's own addresses, and not a route
	// behind it. An own address always beats a route: a device that routes a
	// network can not take another device's address by routing exactly that.
	Own bool
}

var (
	// ErrPrefix is wrapped by errors about a prefix that is not valid, has host
	// bits, is mapped IPv4, or is said to be an address and is not a single one.
	ErrPrefix = errors.New("route: unusable prefix")
	// ErrConflict is wrapped by the error about an address that two peers own.
	ErrConflict = errors.New("route: two peers with one address")
)

// Table is an immutable map from prefixes to peers. The nil and the zero Table
// are empty. It is safe for concurrent use.
type Table struct {
	// Fast costs more memory than bart's other tables and a slower build, and
	// looks up fastest; see BenchmarkLookup.
	prefixes bart.Fast[slot]
}

type slot struct {
	peer Peer
	own  bool
}

// New returns the table of the given entries. Where several peers have the same
// route, the first in the list gets it. The error wraps ErrPrefix or
// ErrConflict, and there is no table then: one that is partly right would send
// packets to the wrong peer. The slice is not kept.
func New(entries []Entry) (*Table, error) {
	t := new(Table)
	for _, e := range entries {
		switch {
		case !e.Prefix.IsValid(), e.Prefix != e.Prefix.Masked(), e.Prefix.Addr().Is4In6(),
			e.Own && !e.Prefix.IsSingleIP():
			return nil, fmt.Errorf("%w: %v", ErrPrefix, e.Prefix)
		}
		old, ok := t.prefixes.Get(e.Prefix)
		if ok && old.own && e.Own && old.peer != e.Peer {
			return nil, fmt.Errorf("%w: %v", ErrConflict, e.Prefix)
		}
		if !ok || e.Own && !old.own {
			t.prefixes.Insert(e.Prefix, slot{e.Peer, e.Own})
		}
	}
	return t, nil
}

// Lookup returns the peer with the longest prefix that holds a, and whether
// there is one. IPv4 mapped into IPv6 is looked up as IPv4; zones do not count.
func (t *Table) Lookup(a netip.Addr) (Peer, bool) {
	if t == nil {
		return 0, false
	}
	s, ok := t.prefixes.Lookup(a.Unmap())
	return s.peer, ok
}

// Len returns the number of prefixes.
func (t *Table) Len() int {
	if t == nil {
		return 0
	}
	return t.prefixes.Size()
}
