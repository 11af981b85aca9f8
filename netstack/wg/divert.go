package wg

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

const (
	// maxDiverted bounds the packets to one peer that are to be diverted and were not
	// sent yet. Where no session can be made they wait for divertedFor, in which a peer
	// is asked some 36 times at the most (home's tunnelSpacing) over all the relays
	// that are tried. It is each peer's own, so that a relay that drops the handshakes
	// of some leaves room for what proves the others' relays good.
	maxDiverted = 64
	// divertedFor is how long such a packet is waited for: until the device has made
	// a session for it, or given it up.
	divertedFor = pendingLife
)

// diversions are the packets to one peer that go over a relay whatever its path is.
// They are known by where they lie in memory: the device seals a packet in the buffer
// that it read it into (TestDivertedPacket fails where a new version does not).
type diversions struct {
	waiting atomic.Int32 // the length of list

	mu   sync.Mutex // protects list
	list []diversion
}

type diversion struct {
	buffer *byte
	over   Relay
	until  time.Time
}

// Divert has a packet go to the peer with the key over a relay when it is sealed, and
// by no other way: the one that Config.TUN's Read is about to return in buf. It reports
// whether there is such a peer, and room to remember one more of its packets. A packet
// that is never sent is forgotten after 5 s; one to the same peer that the device reads
// into the same buffer before that is diverted in its place.
func (d *Device) Divert(buf []byte, to ident.NodeKey, over Relay) bool {
	p := d.bind.peer(to)
	return p != nil && p.diverted.add(buf, over, time.Now())
}

func (v *diversions) add(buf []byte, over Relay, now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.drop(func(known diversion) bool { return !now.Before(known.until) || known.buffer == &buf[0] })
	room := len(v.list) < maxDiverted
	if room {
		v.list = append(v.list, diversion{&buf[0], over, now.Add(divertedFor)})
		v.waiting.Store(int32(len(v.list)))
	}
	return room
}

// take returns over what the packet is to go that lies in a buffer, nil for nothing
// special, and forgets that, and what was never sent.
func (v *diversions) take(packet []byte, now time.Time) Relay {
	v.mu.Lock()
	defer v.mu.Unlock()
	var over Relay
	v.drop(func(known diversion) bool {
		expired := !now.Before(known.until)
		taken := known.buffer == &packet[0]
		if taken && !expired {
			over = known.over
		}
		return taken || expired
	})
	return over
}

// drop forgets some. v.mu is held.
func (v *diversions) drop(which func(diversion) bool) {
	v.list = slices.DeleteFunc(v.list, which)
	v.waiting.Store(int32(len(v.list)))
}

// divert sends those of the packets for p that are to be diverted, and returns the
// others, in their order.
func (b *bind) divert(p *Peer, bufs [][]byte) [][]byte {
	now := time.Now()
	var rest [][]byte
	for i, packet := range bufs {
		if messageType(packet) == typeTransport {
			if over := p.diverted.take(packet, now); over != nil {
				if rest == nil {
					rest = append(make([][]byte, 0, len(bufs)), bufs[:i]...)
				}
				over.SendPackets(p.key, bufs[i:i+1])
				b.counters.sent[LinkRelay].addOne(len(packet))
				continue
			}
		}
		if rest != nil {
			rest = append(rest, packet)
		}
	}
	if rest == nil {
		return bufs
	}
	return rest
}
