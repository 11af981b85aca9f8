package wg

import (
	"encoding/binary"
	"sync/atomic"
	"time"
)

// The device keeps packets in queues that nobody else sees: from TUN.Read to the
// socket, and from the socket to TUN.Write. How long each waits there is told by a
// stamp in its own buffer, behind its sealed form: the device seals and opens in
// place, and each of its buffers holds the longest datagram there is.

const (
	// stampSize is the length of a stamp: nanoseconds since the bind was made.
	stampSize = 8
	// sealUnit is what the device pads payloads to, sealTag what it appends (the
	// WireGuard paper, 5.4.6).
	sealUnit, sealTag = 16, 16
	// maxWaited bounds what a stamp is believed. What waits for a handshake waits
	// for less: longer ago is what was left by another use of the buffer.
	maxWaited = 10 * time.Second
)

// stampOf returns the place of the stamp of a transport message that begins with
// buf and is so long; with or without its padding, which does not move it. It is
// nil where the buffer has no room.
func stampOf(buf []byte, message int) []byte {
	at := (message + sealUnit - 1) &^ (sealUnit - 1)
	if at+stampSize > cap(buf) {
		return nil
	}
	return buf[at : at+stampSize]
}

// stamp notes when a message began to wait.
func stamp(buf []byte, message int, at time.Duration) {
	if place := stampOf(buf, message); place != nil {
		binary.LittleEndian.PutUint64(place, uint64(at))
	}
}

// waited returns how long a message has waited, and false where that is not known.
func waited(buf []byte, message int, now time.Duration) (d time.Duration, ok bool) {
	place := stampOf(buf, message)
	if place == nil {
		return 0, false
	}
	d = now - time.Duration(binary.LittleEndian.Uint64(place))
	return d, d >= 0 && d <= maxWaited
}

// sinceMade is the clock of the stamps.
func (b *bind) sinceMade() time.Duration { return time.Since(b.made) }

// noteWaiting notes how long packets that the device sends had waited. They came
// from the host together, so the last one tells for all.
func (b *bind) noteWaiting(p *Peer, bufs [][]byte) {
	if len(bufs) == 0 {
		return
	}
	last := bufs[len(bufs)-1]
	if messageType(last) != typeTransport || len(last) <= sessionHeader+sealTag {
		return // not from the host: part of a handshake, or a keepalive
	}
	d, ok := waited(last, len(last), b.sinceMade())
	if !ok {
		return
	}
	size := 0
	for _, packet := range bufs {
		size += len(packet)
	}
	p.waiting.bytes.Add(uint64(size))
	p.waiting.byteMicroseconds.Add(uint64(size) * uint64(d.Microseconds()))
}

// Waiting tells how long packets waited, in two sums that wrap around: what was
// added since the last time divided by each other is the average.
type Waiting struct {
	Bytes uint64
	// ByteMicroseconds is the sum of bytes times the microseconds that they waited.
	ByteMicroseconds uint64
}

// waiting adds up a Waiting.
type waiting struct{ bytes, byteMicroseconds atomic.Uint64 }

// Waiting returns how long packets to the peer waited between Config.TUN's Read and
// the socket; for a handshake, too. Keepalives and handshakes are not among them.
func (p *Peer) Waiting() Waiting {
	return Waiting{Bytes: p.waiting.bytes.Load(), ByteMicroseconds: p.waiting.byteMicroseconds.Load()}
}

// Waited returns how long buf, a packet as Config.TUN's Write is given it, with its
// payload at offset, has waited since it was read from the socket. It reports false
// where that is not known.
func (d *Device) Waited(buf []byte, offset int) (waiting time.Duration, ok bool) {
	if offset != sessionHeader || len(buf) < offset {
		return 0, false
	}
	return waited(buf, len(buf)+sealTag, d.bind.sinceMade())
}
