package aqm

import (
	"math/rand/v2"
	"testing"
	"time"
)

// flow is a TCP flow whose sender has always more to send, and sends whatever it may:
// no lost packet slows it down.
type flow struct {
	way     time.Duration // to and fro beside the queue
	offered uint32

	window  Window
	acked   uint32
	allowed uint32
	sent    uint32
	rate    float64 // bytes a second, over the second half
}

// run sends flows through a queue that passes rate bytes a second, for total, in
// steps in which each flow gets the share of the rate that its packets have in the
// queue. It returns how long bytes waited on average in the second half, and what
// share of the rate was used.
func run(flows []*flow, rate float64, total time.Duration, random *rand.Rand) (wait time.Duration, used float64) {
	const step = 100 * time.Microsecond
	var c Control
	c.SetWay(Way{Relayed: true})
	var waiting, passed float64
	type acknowledgment struct {
		flow  *flow
		bytes uint32
		due   time.Duration
	}
	var coming []acknowledgment
	for _, f := range flows {
		f.acked = random.Uint32() // sequence numbers may wrap around
		f.sent, f.allowed = f.acked, f.offered
	}
	queued := make([]float64, len(flows))
	for at := time.Duration(0); at < total; at += step {
		now := start.Add(at)
		later := coming[:0]
		for _, a := range coming {
			if a.due > at {
				later = append(later, a)
				continue
			}
			a.flow.acked += a.bytes
			a.flow.allowed = a.flow.window.Bound(&c, a.flow.acked, a.flow.offered, 0, now)
		}
		coming = later
		var backlog float64
		for i, f := range flows {
			if room := int32(f.acked + f.allowed - f.sent); room > 0 {
				f.sent += uint32(room)
				queued[i] += float64(room)
				f.window.Sent(f.sent)
			}
			backlog += queued[i]
		}
		if backlog == 0 {
			continue
		}
		share := min(rate*step.Seconds()/backlog, 1)
		waited := time.Duration(backlog / rate * float64(time.Second))
		c.Left(int(backlog*share), waited, now)
		if at > total/2 {
			waiting += backlog * share * waited.Seconds()
			passed += backlog * share
		}
		for i, f := range flows {
			bytes := uint32(queued[i] * share)
			if share == 1 {
				bytes = uint32(queued[i])
			}
			if bytes == 0 {
				continue
			}
			queued[i] -= float64(bytes)
			coming = append(coming, acknowledgment{f, bytes, at + f.way + time.Duration(random.Int64N(int64(step)))})
			if at > total/2 {
				f.rate += float64(bytes) / (total / 2).Seconds()
			}
		}
	}
	if passed > 0 {
		wait = time.Duration(waiting / passed * float64(time.Second))
	}
	return wait, passed / (rate * (total / 2).Seconds())
}

// TestWindowsShortenTheQueue: of one flow, and of many, whatever window they offer,
// and the rate stays used.
func TestWindowsShortenTheQueue(t *testing.T) {
	const rate = 150e6
	for n, most := range map[int]time.Duration{1: 2 * RelayedTarget, 10: 2 * RelayedTarget, 50: 12 * RelayedTarget} {
		seeds := uint64(3)
		if testing.Short() {
			seeds = 1
		}
		for seed := range seeds {
			random := rand.New(rand.NewPCG(seed, 2))
			var flows []*flow
			for range n {
				flows = append(flows, &flow{way: time.Millisecond, offered: uint32(16<<20/n) + random.Uint32N(1<<20)})
			}
			wait, used := run(flows, rate, 5*time.Second, random)
			if wait > most || used < 0.95 {
				t.Errorf("%d flows, seed %d: %v on average, %.2f of the rate", n, seed, wait, used)
			}
			for i, f := range flows {
				if f.rate < rate/float64(n)/4 {
					t.Errorf("%d flows, seed %d: flow %d got %.0f bytes a second", n, seed, i, f.rate)
				}
			}
		}
	}
}

// TestLongWayKeepsItsWindow: a flow whose bytes are on a long way, most of them, is
// not slowed because another one fills the queue; alone, its window is what its
// receiver offers.
func TestLongWayKeepsItsWindow(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 3))
	long := func() *flow { return &flow{way: 100 * time.Millisecond, offered: 5 << 20} }
	alone := long()
	run([]*flow{alone}, 150e6, 2*time.Second, random)
	if alone.allowed != alone.offered {
		t.Fatalf("alone it may send %d bytes, not %d", alone.allowed, alone.offered)
	}
	beside, short := long(), &flow{way: time.Millisecond, offered: 8 << 20}
	run([]*flow{beside, short}, 150e6, 20*time.Second, random)
	if beside.rate < 0.8*alone.rate {
		t.Errorf("%.0f bytes a second beside a flow that fills the queue, %.0f alone", beside.rate, alone.rate)
	}
}

// TestWindowIsNotTakenBack: whatever the queue does, what the sender may send never
// becomes less than it was, nor more than is offered, and a window that is open is
// not closed.
func TestWindowIsNotTakenBack(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 4))
		var c Control
		var w Window
		now := start
		scale, lowered := uint8(random.IntN(15)), false
		acked, edge, offeredEdge := random.Uint32(), uint32(0), uint32(0)
		for i := range 2000 {
			now = now.Add(time.Duration(random.Int64N(int64(5 * time.Millisecond))))
			c.Left(1<<20, time.Duration(random.Int64N(int64(10*time.Millisecond))), now)
			if i > 0 {
				acked += random.Uint32N(max(edge-acked, 1))
				w.Sent(edge - random.Uint32N(min(MinWindow, edge-acked+1)))
			}
			// A receiver does not take back either, and offers whole units.
			offered := random.Uint32N(4 << 20)
			if i > 0 {
				offered = max(offered, offeredEdge-acked)
			}
			offered = (offered + 1<<scale - 1) &^ (1<<scale - 1)
			offeredEdge = acked + offered
			got := w.Bound(&c, acked, offered, scale, now)
			lowered = lowered || got < offered
			if got > offered || got == 0 && offered > 0 || got%(1<<scale) != 0 {
				t.Fatalf("seed %d, %d: %d of %d offered", seed, i, got, offered)
			}
			if i > 0 && int32(acked+got-edge) < 0 {
				t.Fatalf("seed %d, %d: %d bytes taken back", seed, i, edge-acked-got)
			}
			edge = acked + got
		}
		if !lowered {
			t.Fatalf("seed %d: nothing was lowered; this test shows nothing", seed)
		}
	}
}

// TestWindowIsGivenBack: a flow on a long way whose window was lowered has it again
// soon after the queue is short, though little of it passes while a queue is judged; and
// one whose receiver offers little for a moment keeps its bound.
func TestWindowIsGivenBack(t *testing.T) {
	const way, offered = 150 * time.Millisecond, 4 << 20
	var c Control
	var w Window
	now, acked := start, uint32(0)
	allowed := uint32(offered)
	turn := func(waited time.Duration, offered uint32) {
		sent := acked + allowed
		w.Sent(sent)
		for range 15 { // the data arrives little by little
			now = now.Add(way / 15)
			c.Left(1<<20, waited, now)
			if acked += allowed / 15; int32(sent-acked) < 15 {
				acked = sent
			}
			allowed = w.Bound(&c, acked, offered, 0, now)
			w.Sent(acked + allowed)
		}
	}
	for range 100 {
		turn(30*time.Millisecond, offered)
	}
	if allowed > offered/8 {
		t.Fatalf("a window of %d is left; this test shows nothing", allowed)
	}
	turn(30*time.Millisecond, 20<<10)
	if turn(30*time.Millisecond, offered); allowed > offered/8 {
		t.Errorf("a window of %d after less was offered for a moment", allowed)
	}
	begin := now
	for allowed < offered {
		if turn(0, offered); now.Sub(begin) > 5*time.Second {
			t.Fatalf("a window of %d after %v", allowed, now.Sub(begin))
		}
	}
}

// TestQuietFlowIsLeftAlone: what a flow that sends little may send is not lowered.
func TestQuietFlowIsLeftAlone(t *testing.T) {
	var c Control
	var w Window
	now := start
	for i := range uint32(1000) {
		now = now.Add(time.Millisecond)
		c.Left(1<<20, 20*time.Millisecond, now)
		w.Sent(i * 64)
		if got := w.Bound(&c, i*64, 1<<20, 0, now); got != 1<<20 {
			t.Fatalf("%d bytes of %d", got, 1<<20)
		}
	}
	if !c.long {
		t.Fatal("the queue did not stand; this test shows nothing")
	}
}

// TestNarrowWindow: a flow need not lose packets while its window can be less, from
// before it was lowered for the first time; one that keeps the queue long with the
// least window must.
func TestNarrowWindow(t *testing.T) {
	var c Control
	var w Window
	now, acked := start, uint32(0)
	allowed, lowered := uint32(1<<20), false
	send := func(waited time.Duration) {
		now = now.Add(time.Millisecond)
		c.Left(1<<20, waited, now)
		acked += allowed
		w.Sent(acked)
		allowed = w.Bound(&c, acked, 1<<20, 0, now)
	}
	for range 100 {
		send(Target / 2)
	}
	for range 100000 {
		if !w.Slows() {
			if allowed > MinWindow || !lowered {
				t.Fatalf("a window of %d slows nobody; lowered %v", allowed, lowered)
			}
			return
		}
		send(20 * time.Millisecond)
		lowered = lowered || allowed < 1<<20
	}
	t.Fatalf("never narrow; lowered %v, %d bytes at last", lowered, allowed)
}

// TestSmallOfferSparesNobody: a flow that fills a queue although its receiver offers
// little is one to drop packets of: its window cannot be lowered.
func TestSmallOfferSparesNobody(t *testing.T) {
	for offered, slows := range map[uint32]bool{MinWindow: false, 1 << 20: true} {
		var c Control
		var w Window
		now, acked := start, uint32(0)
		for range 100 {
			now = now.Add(time.Millisecond)
			c.Left(1<<20, 20*time.Millisecond, now)
			acked += MinWindow
			w.Sent(acked)
			w.Bound(&c, acked, offered, 0, now)
		}
		if w.Slows() != slows {
			t.Errorf("a flow that is offered %d bytes is slowed by its window: %v", offered, !slows)
		}
	}
}
