package relay

import (
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

const (
	// maxQueue bounds the bytes that wait for one destination: 50 ms at
	// 80 Mbit/s. Longer queues only add delay.
	maxQueue = 512 << 10
	// maxPart bounds one sender's part of it: a burst of one TCP window of an
	// ordinary path.
	maxPart = 256 << 10
	// maxSenders bounds the parts, for a destination that many send to.
	maxSenders = 1024
	// quantum is what a sender may have in one turn. A turn must be able to take
	// the largest packet.
	quantum = frameHeaderSize + maxBody
)

// part is what one sender has in a destination's queue.
type part struct {
	sender  ident.NodeKey
	frames  [][]byte
	first   int
	bytes   int
	deficit int
}

// queue holds the frames for one destination, by sender. Senders with frames
// take turns of quantum bytes (deficit round robin, Shreedhar and Varghese
// 1995).
type queue struct {
	bytes int
	parts []*part // those with frames, the next turn's first
	index map[ident.NodeKey]*part
	spare *part // the last one that ran empty, with its storage
}

// push adds a frame of a sender and returns how many frames were dropped for
// it: the frame itself where the sender's part is full, else older ones of
// whoever has most.
func (q *queue) push(sender ident.NodeKey, frame []byte, free *buffers) (dropped int) {
	p := q.index[sender]
	if p == nil {
		if len(q.parts) >= maxSenders {
			free.put(frame)
			return 1
		}
		if q.index == nil {
			q.index = make(map[ident.NodeKey]*part)
		}
		p = q.spare
		if p == nil {
			p = new(part)
		}
		q.spare = nil
		p.sender, p.deficit = sender, 0
		q.index[sender] = p
		q.parts = append(q.parts, p)
	}
	if p.bytes+len(frame) > maxPart {
		free.put(frame)
		return 1
	}
	p.frames = append(p.frames, frame)
	p.bytes += len(frame)
	q.bytes += len(frame)
	for q.bytes > maxQueue {
		i := q.longest()
		free.put(q.take(q.parts[i]))
		dropped++
		if q.parts[i].bytes == 0 {
			q.drop(i)
		}
	}
	return dropped
}

func (q *queue) longest() int {
	longest := 0
	for i, p := range q.parts {
		if p.bytes > q.parts[longest].bytes {
			longest = i
		}
	}
	return longest
}

// take removes the oldest frame of a part that has one.
func (q *queue) take(p *part) []byte {
	frame := p.frames[p.first]
	p.frames[p.first] = nil
	p.first++
	if p.first == len(p.frames) {
		p.frames, p.first = p.frames[:0], 0
	} else if p.first >= 64 && 2*p.first >= len(p.frames) {
		// A part that never runs empty must not grow by what it already gave.
		n := copy(p.frames, p.frames[p.first:])
		clear(p.frames[n:])
		p.frames, p.first = p.frames[:n], 0
	}
	p.bytes -= len(frame)
	q.bytes -= len(frame)
	return frame
}

func (q *queue) drop(i int) {
	delete(q.index, q.parts[i].sender)
	q.spare = q.parts[i]
	q.parts = append(q.parts[:i], q.parts[i+1:]...)
}

// pop appends frames to dst while they fit below limit, and returns how many.
func (q *queue) pop(dst []byte, limit int, free *buffers) ([]byte, int) {
	packets := 0
	for len(q.parts) > 0 {
		p := q.parts[0]
		if p.deficit < len(p.frames[p.first]) {
			p.deficit += quantum
		}
		for p.bytes > 0 && len(p.frames[p.first]) <= p.deficit {
			if len(dst)+len(p.frames[p.first]) > limit {
				return dst, packets
			}
			frame := q.take(p)
			p.deficit -= len(frame)
			dst = append(dst, frame...)
			free.put(frame)
			packets++
		}
		if p.bytes == 0 {
			q.drop(0)
			continue
		}
		copy(q.parts, q.parts[1:])
		q.parts[len(q.parts)-1] = p
	}
	return dst, packets
}

// clear empties the queue and returns how many frames it had.
func (q *queue) clear(free *buffers) (dropped int) {
	for _, p := range q.parts {
		for p.bytes > 0 {
			free.put(q.take(p))
			dropped++
		}
	}
	*q = queue{}
	return dropped
}

// buffers keeps frames for their next use.
type buffers struct{ free [][]byte }

const (
	// bufferSize holds a frame of an ordinary packet; larger ones are not kept.
	bufferSize = 2048
	// maxFree bounds what is kept to 2 MiB.
	maxFree = 1024
)

// get returns an empty slice with room for n bytes.
func (b *buffers) get(n int) []byte {
	if n > bufferSize {
		return make([]byte, 0, n)
	}
	if last := len(b.free) - 1; last >= 0 {
		buf := b.free[last]
		b.free[last] = nil
		b.free = b.free[:last]
		return buf
	}
	return make([]byte, 0, bufferSize)
}

func (b *buffers) put(buf []byte) {
	if cap(buf) == bufferSize && len(b.free) < maxFree {
		b.free = append(b.free, buf[:0])
	}
}

// bucket is a token bucket, of bytes or of requests.
type bucket struct {
	rate  int64 // bytes per second
	burst int64
	level int64
	at    time.Time
}

// newBucket returns a full bucket of a quarter of a second, but always with
// enough for some packets.
func newBucket(rate int64, now time.Time) bucket {
	return newBucketOf(rate, max(rate/4, 4*MaxPacket), now)
}

func newBucketOf(rate, burst int64, now time.Time) bucket {
	return bucket{rate: rate, burst: burst, level: burst, at: now}
}

// take takes n of it, if they are there.
func (b *bucket) take(n int64, now time.Time) bool {
	b.refill(now)
	return b.spend(n)
}

// refill adds what was gained until now.
func (b *bucket) refill(now time.Time) {
	if b.level >= b.burst {
		b.at = now
		return
	}
	if elapsed := min(now.Sub(b.at), time.Minute); elapsed > 0 {
		if gained := int64(float64(b.rate) * elapsed.Seconds()); gained > 0 {
			b.level = min(b.level+gained, b.burst)
			b.at = now
		}
	}
}

// spend takes n of what is there.
func (b *bucket) spend(n int64) bool {
	if b.level < n {
		return false
	}
	b.level -= n
	return true
}

// list is a doubly linked list of connections, the one heard longest ago first.
type list struct {
	oldest, newest *conn
	count          int
}

func (l *list) push(c *conn) {
	l.count++
	c.older, c.newer = l.newest, nil
	if l.newest != nil {
		l.newest.newer = c
	} else {
		l.oldest = c
	}
	l.newest = c
}

func (l *list) remove(c *conn) {
	l.count--
	if c.older != nil {
		c.older.newer = c.newer
	} else {
		l.oldest = c.newer
	}
	if c.newer != nil {
		c.newer.older = c.older
	} else {
		l.newest = c.older
	}
	c.older, c.newer = nil, nil
}
