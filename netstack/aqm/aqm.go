package aqm

import (
	"cmp"
	"math"
	"time"
)

const (
	// Target is how long bytes may wait in one queue on average, on a direct path
	// (RFC 8289, 4.2, which looks at the shortest wait instead). Two such queues are
	// on a packet's way, and what waits elsewhere (in sockets, in the TUN device, for
	// a processor) shrinks with them. With less, processors that are the limit go to
	// sleep between the packets of one flow, and waking them costs throughput.
	Target = 5 * time.Millisecond
	// RelayedTarget is the same on a path over a relay, whose queues come on top and
	// are other networks' as well.
	RelayedTarget = time.Millisecond
	// Interval is how long a queue is watched before it is judged: some round trips
	// within one place, so that a sender's answer to one loss is seen before the
	// next (RFC 8289, 4.3). SetWay adds what the way takes.
	Interval = 30 * time.Millisecond
	// MinBacklog is what may wait on average, in bytes, however long that takes: of
	// what a kernel hands over at once (64 KB) one that is sealed and one that is
	// sent. Without it, a machine that is busy with other work and takes milliseconds
	// for every step would be left with no throughput.
	MinBacklog = 2 << 16
	// MaxRoundTrip bounds what SetWay believes.
	MaxRoundTrip = time.Second

	// dropAt is how many times as long as they may bytes wait where packets are
	// dropped. Windows keep the wait about where it may be: flows that obey theirs
	// must not make others lose packets.
	dropAt = 2
	// share is the part of the round trip that bytes may wait on a long way: with
	// less, a sender that halves its window leaves the way idle (RFC 8289, 4.3).
	share = 0.05
	// memory is for how many intervals a backlog that went away is remembered: one
	// that is back by then is met about where it was left (RFC 8289, 4.2).
	memory = 16
	// maxGrow and maxShrink bound by what each flow's part of the queue is multiplied
	// at a time. It shrinks faster than it grows: it is too large while flows are
	// added. minPart is the least, about a packet.
	maxGrow, maxShrink = 1.1, 0.8
	minPart            = 1 << 10
	// forget is by how much it is met more gently (RFC 8289, 5.6).
	forget = 2
)

// Control says whether one queue is too long, and when a packet of it is to be
// dropped. It does not see the queue, only what left it and how long that had waited.
// The zero value is ready and has a direct path of no length. It is not safe for
// concurrent use.
type Control struct {
	target    time.Duration // Target where it is 0
	roundTrip time.Duration

	began   time.Time // of what is being watched; zero before the first packet
	bytes   float64   // that left since
	waiting float64   // the sum of bytes times the seconds that they had waited

	judged   uint64    // how often it was
	wait     float64   // seconds that bytes waited on average, when it was last
	part     float64   // bytes that one flow may have waiting
	long     bool      // whether bytes waited for longer than they may
	short    bool      // whether for less than half as long
	standing bool      // whether packets are dropped
	ended    time.Time // when it stood last; zero for never
	count    int       // of packets that were dropped for it

	due   bool
	since time.Time
}

// A Way is where packets go behind a queue.
type Way struct {
	// Relayed says that it leads over a relay.
	Relayed bool
	// RoundTrip is how long it takes to and fro, at best. Less than zero counts as
	// zero, and more than MaxRoundTrip as that.
	RoundTrip time.Duration
}

// SetWay says where packets go now.
func (c *Control) SetWay(w Way) {
	c.target = Target
	if w.Relayed {
		c.target = RelayedTarget
	}
	c.roundTrip = min(max(w.RoundTrip, 0), MaxRoundTrip)
}

// Left notes that bytes left the queue together at now, after they had waited.
// Moments must not go back.
func (c *Control) Left(bytes int, waited time.Duration, now time.Time) {
	if c.began.IsZero() {
		c.began = now
	}
	c.bytes += float64(bytes)
	c.waiting += float64(bytes) * waited.Seconds()
	if took := now.Sub(c.began); took >= c.watched() {
		c.judge(took, now)
	}
}

// Due reports whether a packet is to be dropped, and since when. It stays so until
// Dropped is called or the queue is short again: the caller chooses one whose loss
// tells a sender something.
func (c *Control) Due() (since time.Time, due bool) { return c.since, c.due }

// Dropped notes that a packet was dropped, or marked.
func (c *Control) Dropped(now time.Time) {
	c.due = false
	c.count++
	c.watch(now)
}

// Spared notes that the packet that would have been dropped was not, since its flow is
// slowed by its window, or will be.
func (c *Control) Spared() { c.due = false }

// watched is how long the queue is watched. While packets are dropped in vain it
// shrinks with the square root of their number, since a sender's throughput falls
// with the square root of its loss (RFC 8289, 4.1).
func (c *Control) watched() time.Duration {
	d := Interval + 2*c.roundTrip
	if c.standing && c.count > 1 {
		d = time.Duration(float64(d) / math.Sqrt(float64(c.count)))
	}
	return d
}

// judge looks at what was watched and begins anew.
func (c *Control) judge(took time.Duration, now time.Time) {
	stands := false
	if c.bytes > 0 {
		// What waits on average is what comes in a second times how long each
		// byte of it waits.
		rate := c.bytes / took.Seconds()
		target := cmp.Or(c.target, Target)
		allowed := max(target.Seconds(), share*c.roundTrip.Seconds(), MinBacklog/rate)
		c.wait = c.waiting / c.bytes
		stands = c.wait > dropAt*allowed
		c.long, c.short = c.wait > allowed, c.wait < allowed/2
		c.divide(allowed, rate)
		c.judged++
	}
	if stands && !c.standing {
		if c.ended.IsZero() || now.Sub(c.ended) > memory*Interval {
			c.count = 0
		} else {
			c.count = max(c.count-forget, 0)
		}
	}
	if c.standing && !stands {
		c.ended = now
	}
	if stands && !c.due {
		c.since = now
	}
	c.standing, c.due = stands, stands
	c.watch(now)
}

// divide finds out what part of the queue is each flow's: as much as makes bytes wait
// for as long as is allowed, at this rate, whatever the number of flows is. One that
// was alone has all of it.
func (c *Control) divide(allowed, rate float64) {
	whole := allowed * rate
	if c.judged == 0 {
		c.part = whole
	}
	change := maxGrow
	if c.wait > 0 {
		change = min(max(allowed/c.wait, maxShrink), maxGrow)
	}
	c.part = min(max(c.part*change, minPart), whole)
}

func (c *Control) watch(now time.Time) { c.began, c.bytes, c.waiting = now, 0, 0 }
