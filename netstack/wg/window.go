package wg

import (
	"encoding/binary"
	"math/bits"
	"sync"
)

const (
	// windowBehind is how far a counter may be behind the greatest one that was opened
	// for the device to take it still: its own window (RFC 6479 with 128 blocks of 64,
	// of which one is being filled). TestWindowIsTheDevices fails where a new version
	// has another.
	windowBehind = 127 * counterBlock
	// counterBlock is how many counters share a word of a window.
	counterBlock = 64
	// windowBlocks is the length of a window: as much before the greatest counter that
	// was opened as behind it. More than 8,192 packets of one session wait for the
	// device only where it is hopelessly behind, and what is farther ahead is mostly
	// what was lost before it, which ends with the first that is opened.
	windowBlocks = 256
	// aheadBlocks is the part of it that is ahead.
	aheadBlocks = windowBlocks - windowBehind/counterBlock - 1
)

// window tells which counters of a session came before. The device drops what comes
// again, and counts nothing; so the bind notes what it hands to the device, and the
// device's TUN side what was opened. Only that moves the window: nobody can, by
// inventing a counter, have it take packets of the peer's for old ones.
type window struct {
	mu sync.Mutex // protects all below
	// opened is the greatest counter of a packet that the device wrote to its TUN.
	opened uint64
	// seen has a bit for each counter from windowBehind before opened, to
	// aheadBlocks behind it.
	seen [windowBlocks]uint64
}

// arrives notes messages with so many counters in a row, which the device is handed,
// and returns how many of them it can not take beside others: those with a counter that
// came before, or too far behind to be told. Of what is farther ahead than the window
// goes nothing is known until a packet near it is opened.
func (w *window) arrives(first, count uint64) (repeated uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.opened > first && w.opened-first > windowBehind {
		repeated = min(w.opened-first-windowBehind, count)
		first, count = first+repeated, count-repeated
	}
	if ahead := w.limit() - min(first, w.limit()); count > ahead {
		count = ahead
	}
	return repeated + w.mark(first, count)
}

// opens notes that messages with so many counters in a row were opened.
func (w *window) opens(first, count uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if last := first + count - 1; last > w.opened {
		block := w.opened / counterBlock
		passed := min(last/counterBlock-block, windowBlocks)
		end := last/counterBlock + aheadBlocks
		for b := end - passed + 1; b <= end; b++ {
			w.seen[b%windowBlocks] = 0
		}
		w.opened = last
	}
	if behind := w.opened - min(w.opened, windowBehind); first < behind {
		gone := min(behind-first, count)
		first, count = behind, count-gone
	}
	w.mark(first, count)
}

// limit is the first counter that is farther ahead than the window goes.
func (w *window) limit() uint64 { return (w.opened/counterBlock + aheadBlocks + 1) * counterBlock }

// mark sets the bits of counters in a row, all of them in the window, and returns how
// many were set.
func (w *window) mark(first, count uint64) (set uint64) {
	for count > 0 {
		at := first % counterBlock
		n := min(count, counterBlock-at)
		mask := ^uint64(0) >> (counterBlock - n) << at
		word := &w.seen[first/counterBlock%windowBlocks]
		set += uint64(bits.OnesCount64(*word & mask))
		*word |= mask
		first, count = first+n, count-n
	}
	return set
}

// counterRun gathers counters that follow each other.
type counterRun struct{ first, count uint64 }

// add reports whether a counter is the next one, and takes it then, or is the first.
func (r *counterRun) add(counter uint64) bool {
	if r.count == 0 {
		r.first = counter
	} else if counter != r.first+r.count {
		return false
	}
	r.count++
	return true
}

// arriving returns the window of a session in which messages are arriving. It allocates
// once in the life of a session.
func (s *session) arriving() *window {
	w := s.window.Load()
	if w == nil {
		s.window.CompareAndSwap(nil, new(window))
		w = s.window.Load()
	}
	return w
}

// opened notes packets that the device writes to its TUN. They are of one peer, and
// mostly of one session.
func (b *bind) opened(bufs [][]byte, offset int) {
	if offset < sessionHeader {
		return // there is nothing to tell by
	}
	var index uint32
	var w *window
	var run counterRun
	flush := func() {
		if w != nil && run.count > 0 {
			w.opens(run.first, run.count)
		}
		run = counterRun{}
	}
	for i, buf := range bufs {
		header := buf[offset-sessionHeader:]
		if own := binary.LittleEndian.Uint32(header[4:]); i == 0 || own != index {
			flush()
			w, index = b.indexes.lookup(own).windowOf(), own
		}
		if counter := binary.LittleEndian.Uint64(header[8:]); !run.add(counter) {
			flush()
			run.add(counter)
		}
	}
	flush()
}

// windowOf returns the window of a session, nil for none.
func (s *session) windowOf() *window {
	if s == nil {
		return nil
	}
	return s.window.Load()
}
