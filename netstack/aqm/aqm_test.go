package aqm

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

var start = time.Unix(1_000_000, 0)

// feed has rate bytes a second leave, in batches of step, for d, after they waited
// each; it drops what is due at once and returns when that was.
func feed(c *Control, at *time.Time, d, step time.Duration, rate float64, waited time.Duration) (dropped []time.Duration) {
	begin := *at
	for end := at.Add(d); at.Before(end); {
		*at = at.Add(step)
		c.Left(int(rate*step.Seconds()), waited, *at)
		if _, due := c.Due(); due {
			c.Dropped(*at)
			dropped = append(dropped, at.Sub(begin))
		}
	}
	return dropped
}

// TestLeftAlone: nothing is dropped for what waits briefly, or where little waits,
// or on a way that is so long that the wait is a small part of it.
func TestLeftAlone(t *testing.T) {
	for name, test := range map[string]struct {
		rate   float64
		waited time.Duration
		way    Way
		drops  bool
	}{
		"as long as is allowed":               {1.25e9, dropAt * Target, Way{}, false},
		"more than that":                      {1.25e9, dropAt*Target + 50*time.Microsecond, Way{}, true},
		"the same over a relay":               {1.25e9, dropAt * RelayedTarget, Way{Relayed: true}, false},
		"more than that over a relay":         {1.25e9, dropAt*RelayedTarget + 50*time.Microsecond, Way{Relayed: true}, true},
		"a busy machine, little throughput":   {5e6, 50 * time.Millisecond, Way{}, false},
		"the same with more":                  {10e6, 50 * time.Millisecond, Way{}, true},
		"14 ms of a way of 160 ms":            {125e6, 14 * time.Millisecond, Way{RoundTrip: 160 * time.Millisecond}, false},
		"14 ms of a way of 20 ms":             {125e6, 14 * time.Millisecond, Way{RoundTrip: 20 * time.Millisecond}, true},
		"a round trip that nobody can have":   {125e6, 120 * time.Millisecond, Way{RoundTrip: time.Hour}, true},
		"a round trip that is less than none": {125e6, 14 * time.Millisecond, Way{RoundTrip: -time.Hour}, true},
	} {
		t.Run(name, func(t *testing.T) {
			var c Control
			c.SetWay(test.way)
			at := start
			got := feed(&c, &at, 10*time.Second, time.Millisecond, test.rate, test.waited)
			if len(got) > 0 != test.drops {
				t.Errorf("dropped %d packets", len(got))
			}
		})
	}
}

// TestDropsFollowTheLaw: while a queue stands, the n-th packet is dropped Interval
// divided by the square root of n after the one before it, and no longer when it does
// not.
func TestDropsFollowTheLaw(t *testing.T) {
	var c Control
	at := start
	const step = 10 * time.Microsecond
	got := feed(&c, &at, time.Second, step, 125e6, 20*time.Millisecond)
	if len(got) < 100 || got[0] < Interval || got[0] > Interval+2*step {
		t.Fatalf("%d packets dropped, the first after %v", len(got), got[0])
	}
	for n := 1; n < 100; n++ {
		want := time.Duration(float64(Interval) / math.Sqrt(float64(n)))
		if gap := got[n] - got[n-1]; gap < want || gap > want+2*step {
			t.Fatalf("%v between packets %d and %d, want %v", gap, n, n+1, want)
		}
	}
	if got := feed(&c, &at, time.Second, step, 125e6, 100*time.Microsecond); len(got) > 1 {
		t.Errorf("%d packets dropped when the queue was short again", len(got))
	}
}

// TestBacklogIsRemembered: one that comes back is met about where it was left, one
// that comes back late is not.
func TestBacklogIsRemembered(t *testing.T) {
	for pause, remembered := range map[time.Duration]bool{5 * Interval: true, 30 * Interval: false} {
		var c Control
		at := start
		before := feed(&c, &at, time.Second, 50*time.Microsecond, 125e6, 20*time.Millisecond)
		feed(&c, &at, pause, 50*time.Microsecond, 125e6, 0)
		after := feed(&c, &at, 3*Interval, 50*time.Microsecond, 125e6, 20*time.Millisecond)
		if len(before) < 100 {
			t.Fatalf("%d packets dropped", len(before))
		}
		if quick := len(after) > 10; quick != remembered {
			t.Errorf("after %v: %d packets dropped in three intervals", pause, len(after))
		}
	}
}

// TestDueStays: what is due waits for a packet whose loss tells something.
func TestDueStays(t *testing.T) {
	var c Control
	for i := range 100 {
		c.Left(1<<20, 20*time.Millisecond, start.Add(time.Duration(i)*time.Millisecond))
	}
	since, due := c.Due()
	if want := start.Add(Interval); !due || !since.Equal(want) {
		t.Fatalf("due %v since %v, want %v", due, since, want)
	}
	c.Dropped(start.Add(100 * time.Millisecond))
	if _, due := c.Due(); due {
		t.Fatal("due again at once")
	}
}

// sender is TCP as far as a queue can tell: its window grows by a segment each round
// trip and loses three tenths with a packet (RFC 9438 4.6, the Reno-friendly part of
// CUBIC, but faster).
type sender struct{ window float64 }

const (
	segment   = 1400
	maxWindow = 4 << 20 // what Linux sends without an answer (tcp_wmem)
)

// converge runs n senders through a queue that is emptied in bursts, as a processor
// gets to it, and returns how long bytes waited on average, and the share of the
// rate that was used.
func converge(n int, controlled bool, seed uint64) (wait time.Duration, used float64) {
	const (
		rate  = 150e6 // bytes a second
		way   = 300 * time.Microsecond
		total = 20 * time.Second
	)
	random := rand.New(rand.NewPCG(seed, 1))
	senders := make([]sender, n)
	for i := range senders {
		senders[i].window = maxWindow / float64(n) // slow start has overshot
	}
	var c Control
	c.SetWay(Way{Relayed: true})
	var waiting, passed float64
	for at := time.Duration(0); at < total; {
		// A turn: the queue waits until a processor is there, then all that is in
		// flight goes through.
		burst := time.Duration(random.Int64N(int64(500 * time.Microsecond)))
		var flight float64
		for _, s := range senders {
			flight += s.window
		}
		turn := max(time.Duration(flight/rate*float64(time.Second)), way+burst)
		waited := max(turn-way, 0)
		if at > total/4 {
			waiting += flight * waited.Seconds()
			passed += flight
		}
		// It leaves as a kernel hands it over.
		for left := flight; left > 0; left -= 1 << 16 {
			now := start.Add(at + time.Duration((1-left/flight)*float64(turn)))
			c.Left(int(min(left, 1<<16)), waited, now)
			if _, due := c.Due(); due && controlled {
				c.Dropped(now)
				s := &senders[random.IntN(n)]
				s.window = max(s.window*0.7, 2*segment)
			}
		}
		at += turn
		for i := range senders {
			senders[i].window = min(senders[i].window+segment, maxWindow/float64(n))
		}
	}
	return time.Duration(waiting / passed * float64(time.Second)), passed / (rate * total.Seconds() * 3 / 4)
}

// TestSendersConverge: the queue of a few senders becomes short, and the rate stays
// used. Without control it is as long as their windows. Of many, of which each loss
// reaches only one, a third is left.
func TestSendersConverge(t *testing.T) {
	for n, most := range map[int]time.Duration{1: 6 * RelayedTarget, 10: 6 * RelayedTarget, 50: 9 * RelayedTarget} {
		for seed := range uint64(5) {
			wait, used := converge(n, true, seed)
			if wait > most || used < 0.85 {
				t.Errorf("%d senders, seed %d: %v on average, %.2f of the rate", n, seed, wait, used)
			}
			if wait, _ := converge(n, false, seed); wait < 20*time.Millisecond {
				t.Errorf("%d senders without control: %v on average; this test shows nothing", n, wait)
			}
		}
	}
}
