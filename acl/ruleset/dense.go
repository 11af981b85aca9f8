package ruleset

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
)

// What is here keeps the memory that one lookup touches small and in few places:
// where ten thousand rules each speak of another host behind a router, nothing
// of the host that is asked about is in a cache, and every step from one place
// to the next takes as long as all the computing.

// briefSpans is how many ranges of ports a brief has room for.
const briefSpans = 4

// brief is what a scope says where that is little: ranges of ports and where
// their cells are. Two fit into a line of the cache.
type brief struct {
	spans [briefSpans]portSpan
	first int32 // the cell of spans[0]; the others follow
	count uint8
	// whole is set where that is not all, and the scope itself must be asked.
	whole bool
}

// portSpan is a range of ports of one protocol.
type portSpan struct {
	first, last uint16
	protocol    uint8
}

// addBrief adds the brief of the next scope.
func (x *index) addBrief(s *services) {
	b := brief{first: int32(len(x.cells))}
	for i := range s.tables {
		t := &s.tables[i]
		for at := range t.cells {
			c := &t.cells[at]
			if c.always == nothing && len(c.timed) == 0 {
				continue
			}
			if b.count == briefSpans || i == len(s.protocols) {
				x.cells = x.cells[:b.first]
				x.briefs = append(x.briefs, brief{whole: true})
				return
			}
			last := uint16(65535)
			if at+1 < len(t.starts) {
				last = t.starts[at+1] - 1
			}
			b.spans[b.count] = portSpan{t.starts[at], last, s.protocols[i]}
			b.count++
			x.cells = append(x.cells, *c)
		}
	}
	x.briefs = append(x.briefs, b)
}

// find returns what scope n says of a protocol and port, nil for nothing.
func (x *index) find(n int32, protocol uint8, port uint16) *cell {
	b := &x.briefs[n]
	if b.whole {
		return x.scopes[n].services.find(protocol, port)
	}
	for i := range b.count {
		if s := &b.spans[i]; s.protocol == protocol && s.first <= port && port <= s.last {
			return &x.cells[b.first+int32(i)]
		}
	}
	return nil
}

// host is an address and the scopes that speak of it.
type host struct {
	address netip.Addr
	scopes  []int32
}

// hostTable finds the scopes of hosts: a hash table that is at most half full.
// The addresses in it are the signer's choice, not a peer's, so that its hash
// needs no seed.
type hostTable struct {
	entries []hostEntry // a power of two, or none
	lists   [][]int32   // of hosts with other than one scope
}

type hostEntry struct {
	high, low uint64
	// only is the scope, or where lists has them, the complement of the place
	// there.
	only [1]int32
	used bool
	four bool // an IPv4 address
}

func newHostTable(hosts []host) (t hostTable) {
	if len(hosts) == 0 {
		return t
	}
	t.entries = make([]hostEntry, 1<<bits.Len(uint(2*len(hosts)-1)))
	for _, h := range hosts {
		e := keyOf(h.address)
		e.used = true
		if len(h.scopes) == 1 {
			e.only[0] = h.scopes[0]
		} else {
			e.only[0] = ^int32(len(t.lists))
			t.lists = append(t.lists, slices.Clip(h.scopes))
		}
		at := e.hash() & (len(t.entries) - 1)
		for t.entries[at].used {
			at = (at + 1) & (len(t.entries) - 1)
		}
		t.entries[at] = e
	}
	return t
}

func keyOf(a netip.Addr) hostEntry {
	b := a.As16()
	return hostEntry{high: binary.BigEndian.Uint64(b[:]), low: binary.BigEndian.Uint64(b[8:]), four: a.Is4()}
}

func (e *hostEntry) hash() int {
	const odd = 0x9e3779b97f4a7c15 // 2^64 by the golden ratio
	h := (e.high ^ bits.RotateLeft64(e.low, 32)) * odd
	h = (h ^ h>>32 ^ e.low) * odd
	return int(h >> 33)
}

// find returns the scopes of a host, and whether it is in the table.
func (t *hostTable) find(a netip.Addr) ([]int32, bool) {
	if len(t.entries) == 0 {
		return nil, false
	}
	key := keyOf(a)
	for at := key.hash() & (len(t.entries) - 1); ; at = (at + 1) & (len(t.entries) - 1) {
		e := &t.entries[at]
		switch {
		case !e.used:
			return nil, false
		case e.high != key.high || e.low != key.low || e.four != key.four:
		case e.only[0] < 0:
			return t.lists[^e.only[0]], true
		default:
			return e.only[:], true
		}
	}
}
