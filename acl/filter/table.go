package filter

import (
	"math/bits"

	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// key names a flow as seen from this device. For an echo the side that asked
// has the identifier as its port; two sides that ask with one identifier have
// two flows. It consists of whole words, so that it is built, hashed and
// compared without the processor waiting for narrow writes to be joined.
type key struct {
	local, remote packet.Address
	tail          uint64 // local port, remote port, protocol, asked: see tailOf
}

func tailOf(localPort, remotePort uint16, protocol uint8, by asked) uint64 {
	return uint64(localPort)<<48 | uint64(remotePort)<<32 | uint64(protocol)<<8 | uint64(by)
}

func (k *key) localPort() uint16  { return uint16(k.tail >> 48) }
func (k *key) remotePort() uint16 { return uint16(k.tail >> 32) }
func (k *key) protocol() uint8    { return uint8(k.tail >> 8) }
func (k *key) asked() asked       { return asked(k.tail) }

func (k *key) equal(l *key) bool {
	return (k.local.Lo^l.local.Lo)|(k.remote.Lo^l.remote.Lo)|(k.tail^l.tail)|
		(k.local.Hi^l.local.Hi)|(k.remote.Hi^l.remote.Hi) == 0
}

// asked says who sent the request of an echo.
type asked uint8

const (
	notEcho asked = iota
	askedByUs
	askedByPeer
)

// entryFlags are facts about a flow.
type entryFlags uint16

const (
	// inUse: the entry is a flow, not free room.
	inUse entryFlags = 1 << iota
	// openedByPeer: the peer opened it; else this device did.
	openedByPeer
	// simultaneous: both sides sent a SYN.
	simultaneous
	finOpener
	finResponder
	// finOpenerFirst: of the two FINs the opener's came first.
	finOpenerFirst
	// spokeIn and spokeOut: entry.end is known for the direction.
	spokeIn
	spokeOut
)

// entry is one flow. Times are ticks (Peer.tick).
type entry struct {
	key        key
	state      state
	flags      entryFlags
	generation uint32 // of the rules that admitted it: Peer.generation
	deadline   int64  // when it ends without another packet
	until      int64  // when its rule must be asked again
	opened     int64
	// end is the sequence number after the last byte that was sent in each
	// Direction: what a reset needs to be believed.
	end     [2]uint32
	packets [2]uint32
	bytes   [2]uint64
	links   [2]link
	rule    ruleset.RuleID
}

// handle names an entry of a table: its place plus one, 0 is none.
type handle uint32

type link struct{ previous, next handle }

// The lists that an entry can be in, by the number of its link.
const (
	linkOrder = iota // every flow, in the order of opening
	linkClass        // half-open flows, or echoes, in the order of opening
)

// list is a chain of entries from the oldest to the newest.
type list struct {
	which          int
	oldest, newest handle
	length         int
}

// table holds the flows of one peer: entries in one slice, found through an
// open-addressing index of (hash, handle) words with linear probing. Taking an
// entry out shifts the index back, so there are no tombstones and a lookup
// costs the same after any history.
type table struct {
	entries []entry
	free    handle // chain of free entries by links[0].next
	index   []uint64
	order   list
	opening list // half-open flows
	echoes  list
}

// firstEntries is how many flows a table holds before it grows for the first
// time; it doubles from then on.
const firstEntries = 4

func newTable() table {
	return table{order: list{which: linkOrder}, opening: list{which: linkClass}, echoes: list{which: linkClass}}
}

func (t *table) length() int { return t.order.length }

func (t *table) at(h handle) *entry { return &t.entries[h-1] }

// hash mixes the key with the seed by folded multiplication (as wyhash does).
// Without the seed nobody can choose keys that collide.
func hash(seed [2]uint64, k *key) uint32 {
	a := mix(k.local.Hi^seed[0], k.local.Lo^seed[1])
	b := mix(k.remote.Hi^seed[1], k.remote.Lo^seed[0]^a)
	c := mix(b^seed[0], k.tail^seed[1]^a)
	return uint32(c>>32) ^ uint32(c)
}

func mix(a, b uint64) uint64 {
	high, low := bits.Mul64(a, b)
	return high ^ low
}

// find returns the flow with the key, or 0.
func (t *table) find(k *key, h uint32) handle {
	if len(t.index) == 0 {
		return 0
	}
	mask := uint32(len(t.index) - 1)
	for at := h & mask; ; at = (at + 1) & mask {
		slot := t.index[at]
		if slot == 0 {
			return 0
		}
		if uint32(slot>>32) == h && t.entries[uint32(slot)-1].key.equal(k) {
			return handle(slot)
		}
	}
}

// insert adds a flow with the key, which must not be in the table, and returns
// it empty but for the key. The table must hold less than MaxFlows.
func (t *table) insert(k *key, h uint32) handle {
	if t.free == 0 {
		t.grow()
	}
	n := t.free
	e := t.at(n)
	t.free = e.links[0].next
	*e = entry{key: *k, flags: inUse}
	t.store(n, h)
	t.push(&t.order, n)
	return n
}

func (t *table) store(n handle, h uint32) {
	mask := uint32(len(t.index) - 1)
	at := h & mask
	for t.index[at] != 0 {
		at = (at + 1) & mask
	}
	t.index[at] = uint64(h)<<32 | uint64(n)
}

// grow doubles the room. The index stays at most half full.
func (t *table) grow() {
	old := len(t.entries)
	room := max(firstEntries, 2*old)
	entries := make([]entry, room)
	copy(entries, t.entries)
	t.entries = entries
	for n := handle(room); int(n) > old; n-- {
		t.at(n).links[0].next = t.free
		t.free = n
	}
	slots := t.index
	t.index = make([]uint64, 2*room)
	for _, slot := range slots {
		if slot != 0 {
			t.store(handle(slot), uint32(slot>>32))
		}
	}
}

// remove takes the flow out of the table. h must be the hash of its key.
func (t *table) remove(n handle, h uint32) {
	e := t.at(n)
	t.unlink(&t.order, n)
	t.declassify(n)
	mask := uint32(len(t.index) - 1)
	hole := h & mask
	for uint32(t.index[hole]) != uint32(n) {
		hole = (hole + 1) & mask
	}
	for at := hole; ; {
		at = (at + 1) & mask
		slot := t.index[at]
		if slot == 0 {
			break
		}
		home := uint32(slot>>32) & mask
		if (at-home)&mask >= (at-hole)&mask {
			t.index[hole] = slot
			hole = at
		}
	}
	t.index[hole] = 0
	*e = entry{links: [2]link{{next: t.free}}}
	t.free = n
}

// classify puts the flow into the list of its kind, as the newest.
func (t *table) classify(n handle) {
	switch e := t.at(n); {
	case e.key.asked() != notEcho:
		t.push(&t.echoes, n)
	case e.state.halfOpen():
		t.push(&t.opening, n)
	}
}

// declassify takes the flow out of the list of its kind, if it is in one. It
// must be called before a half-open flow becomes another.
func (t *table) declassify(n handle) {
	switch e := t.at(n); {
	case e.key.asked() != notEcho:
		t.unlink(&t.echoes, n)
	case e.state.halfOpen():
		t.unlink(&t.opening, n)
	}
}

func (t *table) push(l *list, n handle) {
	t.at(n).links[l.which] = link{previous: l.newest}
	if l.newest != 0 {
		t.at(l.newest).links[l.which].next = n
	} else {
		l.oldest = n
	}
	l.newest = n
	l.length++
}

func (t *table) unlink(l *list, n handle) {
	here := t.at(n).links[l.which]
	if here.previous != 0 {
		t.at(here.previous).links[l.which].next = here.next
	} else {
		l.oldest = here.next
	}
	if here.next != 0 {
		t.at(here.next).links[l.which].previous = here.previous
	} else {
		l.newest = here.previous
	}
	t.at(n).links[l.which] = link{}
	l.length--
}
