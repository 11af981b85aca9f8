package wg

import (
	"encoding/binary"
	"net/netip"
	"sync"
)

const (
	// arrivalRuns is how many runs of packets of a peer are remembered: some for
	// each of the few places from which one peer's packets come at one time.
	arrivalRuns = 8
	// arrivalSlack is how far a batch's counters may be from those of the run
	// that it goes on: more than is under way at one time, so little that one
	// forged counter does not make a run claim all that is to come.
	arrivalSlack = 1 << 14
)

// Origin is from where a packet came: from an address to one of our ports, or over a
// relay. Origins are comparable, as relays are.
type Origin struct {
	// Addr is not valid for a packet that came over a relay.
	Addr netip.AddrPort
	// Socket is the number of the further socket that it came to, 0 for the
	// device's own port.
	Socket uint32
	// Relay is what the packet came over, nil where Addr is valid.
	Relay Relay
}

// arrivalRun is what transport messages that came in a row have in common.
type arrivalRun struct {
	index       uint32 // their receiver
	first, last uint64 // the least and the greatest of their counters
	from        Origin
	noted       bool // false for an empty place
}

// arrivals remembers from where the latest packets of a peer came that were not
// opened yet. Nothing in it is authentic until a packet that was opened is found
// in it. It is written once for a batch.
type arrivals struct {
	mu     sync.Mutex // protects all below
	recent [arrivalRuns]arrivalRun
	next   int
}

func (a *arrivals) note(r arrivalRun) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range a.recent {
		known := &a.recent[i]
		if known.noted && known.index == r.index && known.from == r.from &&
			r.last <= known.last+arrivalSlack && known.first <= r.first+arrivalSlack {
			known.first, known.last = min(known.first, r.first), max(known.last, r.last)
			return
		}
	}
	a.recent[a.next] = r
	a.next = (a.next + 1) % arrivalRuns
}

// source returns from where the message with a receiver and counter came. It reports false where that is not known, and where
// copies of it came from several places: which of them was opened is not known
// then.
func (a *arrivals) source(index uint32, counter uint64) (from Origin, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.recent {
		if !r.noted || r.index != index || counter < r.first || counter > r.last {
			continue
		}
		if ok && r.from != from {
			return Origin{}, false
		}
		from, ok = r.from, true
	}
	return from, ok
}

// arrivalBatch gathers the runs of one batch that the device is handed, so that what is
// noted of them costs little for each packet. It is ready with its bind.
type arrivalBatch struct {
	b *bind

	// last is the session of lastIndex, nil where there is none.
	last      *session
	lastIndex uint32

	// of is the session of run, nil while there is none.
	of       *session
	run      arrivalRun
	packets  uint64     // of the run
	counters counterRun // of the run, as far as they were not judged

	received [links]Traffic
}

// count counts a packet that came by a link.
func (a *arrivalBatch) count(by Link, size int) {
	a.received[by].Packets++
	a.received[by].Bytes += uint64(size)
}

// session returns the session of a transport message or a cookie, nil for none.
func (a *arrivalBatch) session(packet []byte) *session {
	index := binary.LittleEndian.Uint32(packet[4:])
	if a.last == nil || index != a.lastIndex {
		a.last, a.lastIndex = a.b.indexes.lookup(index), index
	}
	return a.last
}

// addOf adds a transport message of p.
func (a *arrivalBatch) addOf(p *Peer, packet []byte, from Origin) {
	// Its index may have been given to nobody, or to another, since it came.
	if s := a.session(packet); s != nil && s.peer == p {
		a.add(s, packet, from)
	}
}

// add adds a transport message of a session.
func (a *arrivalBatch) add(s *session, packet []byte, from Origin) {
	counter := binary.LittleEndian.Uint64(packet[8:])
	if a.of != s || a.run.from != from {
		a.endRun()
		a.of, a.run, a.packets = s, arrivalRun{a.lastIndex, counter, counter, from, true}, 0
	}
	a.packets++
	if !a.counters.add(counter) {
		a.judge()
		a.counters.add(counter)
	}
	a.run.first, a.run.last = min(a.run.first, counter), max(a.run.last, counter)
}

// judge counts those of the gathered messages that the device drops as repetitions.
func (a *arrivalBatch) judge() {
	if n := a.of.arriving().arrives(a.counters.first, a.counters.count); n > 0 {
		a.b.counters.replayedPackets.Add(n)
	}
	a.counters = counterRun{}
}

// endRun notes the run that was gathered.
func (a *arrivalBatch) endRun() {
	if a.of == nil {
		return
	}
	a.judge()
	p := a.of.peer
	p.arrivals.note(a.run)
	if p.path.Load().strayed(&a.run.from) {
		p.strays.note(a.run.from, a.packets)
	}
	a.of = nil
}

// end notes everything that was gathered.
func (a *arrivalBatch) end() {
	a.endRun()
	for link, t := range a.received {
		if t.Packets > 0 {
			a.b.counters.received[link].addMany(t)
		}
	}
}

// Source returns from where buf came, a packet as Config.TUN's Write is given it,
// with its payload at offset. WireGuard has opened the packet, so the peer did send it,
// and it is what came from there that was opened. It reports false where that is not
// known any more, or where copies came from several places.
func (d *Device) Source(buf []byte, offset int) (from Origin, ok bool) {
	if offset < sessionHeader || len(buf) < offset {
		return from, false
	}
	header := buf[offset-sessionHeader:]
	index := binary.LittleEndian.Uint32(header[4:])
	p := d.bind.indexes.owner(index)
	if p == nil {
		return from, false
	}
	return p.arrivals.source(index, binary.LittleEndian.Uint64(header[8:]))
}
