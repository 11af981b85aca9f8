package compile

import (
	"math/bits"
	"slices"
)

// members is a set of slots: a sorted list while it is small, a bitmap once it
// is not. The zero value is empty.
type members struct {
	list []int32
	bits []uint64
	n    int
}

// listLimit is the size from which a set is a bitmap. A bitmap over 10,000
// slots takes 1,250 bytes.
const listLimit = 64

func (m *members) has(slot int32) bool {
	if m.bits != nil {
		word := int(slot >> 6)
		return word < len(m.bits) && m.bits[word]&(1<<(slot&63)) != 0
	}
	_, found := slices.BinarySearch(m.list, slot)
	return found
}

func (m *members) add(slot int32) {
	if m.has(slot) {
		return
	}
	m.n++
	if m.bits == nil && len(m.list) < listLimit {
		at, _ := slices.BinarySearch(m.list, slot)
		m.list = slices.Insert(m.list, at, slot)
		return
	}
	if m.bits == nil {
		for _, s := range m.list {
			m.bits = setBit(m.bits, s)
		}
		m.list = nil
	}
	m.bits = setBit(m.bits, slot)
}

func (m *members) remove(slot int32) {
	if !m.has(slot) {
		return
	}
	m.n--
	if m.bits != nil {
		m.bits[slot>>6] &^= 1 << (slot & 63)
		return
	}
	at, _ := slices.BinarySearch(m.list, slot)
	m.list = slices.Delete(m.list, at, at+1)
}

// orInto adds the members to a bitmap that is long enough.
func (m *members) orInto(b bitmap) {
	for i, word := range m.bits {
		b[i] |= word
	}
	for _, s := range m.list {
		b[s>>6] |= 1 << (s & 63)
	}
}

// clearIn takes the members out of a bitmap and returns how many were in it.
func (m *members) clearIn(b bitmap) int {
	n := 0
	for i, word := range m.bits {
		n += bits.OnesCount64(b[i] & word)
		b[i] &^= word
	}
	for _, s := range m.list {
		n += int(b[s>>6] >> (s & 63) & 1)
		b[s>>6] &^= 1 << (s & 63)
	}
	return n
}

// each calls f for every member in ascending order.
func (m *members) each(f func(slot int32)) {
	bitmap(m.bits).each(f)
	for _, s := range m.list {
		f(s)
	}
}

func setBit(b []uint64, slot int32) []uint64 {
	for len(b) <= int(slot>>6) {
		b = append(b, 0)
	}
	b[slot>>6] |= 1 << (slot & 63)
	return b
}

// bitmap is a set of slots of a fixed size.
type bitmap []uint64

func newBitmap(slots int) bitmap { return make(bitmap, (slots+63)/64) }

func (b bitmap) each(f func(slot int32)) {
	for i, word := range b {
		for ; word != 0; word &= word - 1 {
			f(int32(i*64 + bits.TrailingZeros64(word)))
		}
	}
}

// addDifference adds the slots that are in exactly one of two bitmaps, of which
// nil is the empty one.
func (b bitmap) addDifference(x, y bitmap) {
	for i := range b {
		var word uint64
		if x != nil {
			word = x[i]
		}
		if y != nil {
			word ^= y[i]
		}
		b[i] |= word
	}
}

func (b bitmap) count() int {
	n := 0
	for _, word := range b {
		n += bits.OnesCount64(word)
	}
	return n
}

func (b bitmap) clear(slot int32) {
	if int(slot>>6) < len(b) {
		b[slot>>6] &^= 1 << (slot & 63)
	}
}

func (b bitmap) has(slot int32) bool { return b[slot>>6]&(1<<(slot&63)) != 0 }

func (b bitmap) set(slot int32) { b[slot>>6] |= 1 << (slot & 63) }

// difference calls f for every slot that is in exactly one of the two.
func difference(a, b bitmap, f func(slot int32)) {
	for i := range max(len(a), len(b)) {
		var x, y uint64
		if i < len(a) {
			x = a[i]
		}
		if i < len(b) {
			y = b[i]
		}
		for word := x ^ y; word != 0; word &= word - 1 {
			f(int32(i*64 + bits.TrailingZeros64(word)))
		}
	}
}
