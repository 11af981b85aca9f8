package wg

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxDiverted bounds the packets that are to be diverted and were not sent yet: a
	// question and an answer for some dozens of peers at one moment.
	maxDiverted = 64
	// divertedFor is how long such a packet is waited for: until the device has made
	// a session for it, or given it up.
	divertedFor = pendingLife
)

// diversions are the packets that go over a relay whatever their peer's path is.
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

// Divert has a packet go to its peer over a relay when it is sealed, and by no other
// way: the one that Config.TUN's Read is about to return in buf. It reports whether
// there is room to remember it. A packet that is never sent is forgotten after 5 s;
// one that the device reads into the same buffer before that is diverted in its place.
func (d *Device) Divert(buf []byte, over Relay) bool {
	return d.bind.diverted.add(buf, over, time.Now())
}

func (v *diversions) add(buf []byte, over Relay, now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	kept := v.list[:0]
	for _, known := range v.list {
		if now.Before(known.until) && known.buffer != &buf[0] {
			kept = append(kept, known)
		}
	}
	v.list = kept
	room := len(v.list) < maxDiverted
	if room {
		v.list = append(v.list, diversion{&buf[0], over, now.Add(divertedFor)})
	}
	v.waiting.Store(int32(len(v.list)))
	return room
}

// take returns over what the packet is to go that lies in a buffer, nil for nothing
// special, and forgets that.
func (v *diversions) take(packet []byte, now time.Time) Relay {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i, known := range v.list {
		if known.buffer != &packet[0] {
			continue
		}
		v.list[i] = v.list[len(v.list)-1]
		v.list = v.list[:len(v.list)-1]
		v.waiting.Store(int32(len(v.list)))
		if now.Before(known.until) {
			return known.over
		}
		break
	}
	return nil
}

// divert sends those of the packets for p that are to be diverted, and returns the
// others, in their order.
func (b *bind) divert(p *Peer, bufs [][]byte) [][]byte {
	now := time.Now()
	var rest [][]byte
	for i, packet := range bufs {
		if messageType(packet) == typeTransport {
			if over := b.diverted.take(packet, now); over != nil {
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
