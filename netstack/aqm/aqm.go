package aqm

import (
	"math"
	"time"
)

const (
	// Target is how long bytes may wait in one queue on average. Two such queues
	// are on a packet's way, and what waits elsewhere (in sockets, in the TUN
	// device, for a processor) shrinks with them. It is less than the 5 ms of RFC
	// 8289, which looks at the shortest wait: here it is the average.
	Target = time.Millisecond
	// Interval is how long a queue is watched before it is judged: some round trips
	// within one place, so that a sender's answer to one loss is seen before the
	// next (RFC 8289, 4.3). SetRoundTrip adds what the way takes.
	Interval = 30 * time.Millisecond
	// MinBacklog is what may wait on average, in bytes, however long that takes: of
	// what a kernel hands over at once (64 KB) one that is read, one that is sealed
	// and one that is sent. Without it, a machine that is busy with other work and
	// takes milliseconds for every step would be left with no throughput.
	MinBacklog = 3 << 16
	// MaxRoundTrip bounds what SetRoundTrip believes.
	MaxRoundTrip = time.Second

	// share is the part of the round trip that bytes may wait on a long way: with
	// less, a sender that halves its window leaves the way idle (RFC 8289, 4.3).
	share = 0.05
	// memory is for how many intervals a backlog that went away is remembered: one
	// that is back by then is met about where it was left (RFC 8289, 4.2).
	memory = 16
	// forget is by how much it is met more gently (RFC 8289, 5.6).
	forget = 2
)

// Control says when a packet of one queue is to be dropped. It does not see the
// queue, only what left it and how long that had waited. The zero value is ready
// and knows of no round trip. It is not safe for concurrent use.
type Control struct {
	roundTrip time.Duration

	began   time.Time // of what is being watched; zero before the first packet
	bytes   float64   // that left since
	waiting float64   // the sum of bytes times the seconds that they had waited

	standing bool
	ended    time.Time // when it stood last; zero for never
	count    int       // of packets that were dropped for it

	due   bool
	since time.Time
}

// SetRoundTrip says how long the way behind the queue takes to and fro, at best.
// Less than zero counts as zero, and more than MaxRoundTrip as that.
func (c *Control) SetRoundTrip(d time.Duration) { c.roundTrip = min(max(d, 0), MaxRoundTrip) }

// Left notes that bytes left the queue together at now, after they had waited.
// Moments must not go back.
func (c *Control) Left(bytes int, waited time.Duration, now time.Time) {
	if c.began.IsZero() {
		c.began = now
	}
	c.bytes += float64(bytes)
	c.waiting += float64(bytes) * waited.Seconds()
	if took := now.Sub(c.began); !c.due && took >= c.window() {
		c.judge(took, now)
	}
}

// Due reports whether a packet is to be dropped, and since when. It stays so until
// Dropped is called: the caller chooses one whose loss tells a sender something.
func (c *Control) Due() (since time.Time, due bool) { return c.since, c.due }

// Dropped notes that a packet was dropped, or marked.
func (c *Control) Dropped(now time.Time) {
	c.due = false
	c.count++
	c.watch(now)
}

// window is how long the queue is watched. While packets are dropped in vain it
// shrinks with the square root of their number, since a sender's throughput falls
// with the square root of its loss (RFC 8289, 4.1).
func (c *Control) window() time.Duration {
	d := Interval + 2*c.roundTrip
	if c.standing && c.count > 1 {
		d = time.Duration(float64(d) / math.Sqrt(float64(c.count)))
	}
	return d
}

// judge looks at what was watched and begins anew.
func (c *Control) judge(took time.Duration, now time.Time) {
	target := max(Target.Seconds(), share*c.roundTrip.Seconds())
	// What waits on average is what comes in a second times how long each byte of
	// it waits.
	stands := c.waiting > MinBacklog*took.Seconds() && c.waiting > target*c.bytes
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
	c.standing, c.due, c.since = stands, stands, now
	c.watch(now)
}

func (c *Control) watch(now time.Time) { c.began, c.bytes, c.waiting = now, 0, 0 }
