package wg

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/replay"
)

// receiver is a window beside the device's own filter.
type receiver struct {
	window
	filter replay.Filter
}

// hand hands the device messages in a batch, and returns how many the window calls
// repetitions and how many the device drops.
func (r *receiver) hand(counters ...uint64) (repeated, dropped int) {
	for _, c := range counters {
		repeated += int(r.arrives(c, 1))
	}
	for _, c := range counters {
		if r.filter.ValidateCounter(c, device.RejectAfterMessages) {
			r.opens(c, 1)
		} else {
			dropped++
		}
	}
	return repeated, dropped
}

// TestWindowIsTheDevices: whatever comes, in whatever order, what the window calls a
// repetition is what the device drops.
func TestWindowIsTheDevices(t *testing.T) {
	t.Parallel()
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 18))
		var r receiver
		var greatest uint64
		sum := 0
		for range 20_000 {
			var c uint64
			switch n := random.IntN(100); {
			case n < 60:
				c = greatest + 1
			case n < 90: // late, or again
				c = greatest - min(greatest, random.Uint64N(2*windowBehind))
			case n < 99: // some were lost
				c = greatest + random.Uint64N(200)
			default: // many were
				c = greatest + random.Uint64N(4*windowBlocks*counterBlock)
			}
			greatest = max(greatest, c)
			repeated, dropped := r.hand(c)
			if repeated != dropped {
				t.Fatalf("seed %d: counter %d, of which %d is the greatest: %d repetitions, %d dropped", seed, c, greatest, repeated, dropped)
			}
			sum += dropped
		}
		if sum < 1000 {
			t.Fatalf("seed %d: only %d were dropped", seed, sum)
		}
	}
}

// TestWindowOfBatches: the same where many wait for the device at a time, and come
// together with their copies.
func TestWindowOfBatches(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 18))
	var r receiver
	next := uint64(0)
	for range 300 {
		var batch []uint64
		for range 1 + random.IntN(3000) {
			batch = append(batch, next)
			next++
		}
		// Half of them twice, and some of before. What is so old that it leaves the window
		// while it waits is told differently, but that takes more than is handed at once.
		for range len(batch) / 2 {
			batch = append(batch, batch[random.IntN(len(batch))])
		}
		for range 100 {
			batch = append(batch, next-min(next, 1+random.Uint64N(4000)))
		}
		random.Shuffle(len(batch), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })
		if repeated, dropped := r.hand(batch...); repeated != dropped {
			t.Fatalf("up to %d: %d repetitions, %d dropped", next, repeated, dropped)
		}
	}
}

// TestWindowAgainstForgeries: a message that is never opened makes one message be
// called a repetition at the most, and none where its counter is not the peer's.
func TestWindowAgainstForgeries(t *testing.T) {
	t.Parallel()
	var r receiver
	forged := []uint64{1 << 20, 1 << 40, math.MaxUint64, device.RejectAfterMessages, windowBlocks * counterBlock}
	for _, c := range append(forged, forged...) {
		if r.arrives(c, 1) != 0 {
			t.Errorf("a forged counter %d is a repetition of nothing", c)
		}
	}
	r.arrives(5, 1)
	for c := range uint64(3 * windowBlocks * counterBlock) {
		repeated, dropped := r.hand(c)
		if dropped != 0 || repeated != map[bool]int{true: 1}[c == 5] {
			t.Fatalf("counter %d after a forged one: %d repetitions, %d dropped", c, repeated, dropped)
		}
	}
}

// captured returns messages of a kind that a has sent.
func captured(t *testing.T, a *side, kind uint32) (out [][]byte) {
	t.Helper()
	for len(a.tap) > 0 {
		if p := receive(t, a.tap); messageType(p) == kind {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		t.Fatal("nothing was captured")
	}
	return out
}

// replayAll has a stranger send packets again and again, and waits for all to have
// come to the device.
func replayAll(t *testing.T, to *side, times int, packets [][]byte) {
	t.Helper()
	received := func() (n uint64) {
		for _, link := range to.device.Counters().Received {
			n += link.Packets
		}
		return n + to.device.Counters().Limited + to.device.Counters().UnknownReceivers
	}
	for range times {
		before := received()
		stranger(t, to.at, packets...)
		eventually(t, func() error {
			if n := received() - before; n < uint64(len(packets)) {
				return fmt.Errorf("%d of %d came", n, len(packets))
			}
			return nil
		})
	}
}

// TestReplayedPacketsAreCounted is a part of fault F18: each packet of the tunnel that
// comes again is counted, and no other is.
func TestReplayedPacketsAreCounted(t *testing.T) {
	a, b, _, _ := connected(t)
	for content := range byte(60) {
		pass(t, a, b, content)
	}
	if n := b.device.Counters().ReplayedPackets; n != 0 {
		t.Fatalf("%d repetitions of packets that came once", n)
	}
	packets := captured(t, a, typeTransport)
	// What was opened moves the window on, or later packets would be too far ahead.
	last := packets[len(packets)-1]
	w := b.device.bind.indexes.lookup(binary.LittleEndian.Uint32(last[4:])).windowOf()
	w.mu.Lock()
	if w.opened != binary.LittleEndian.Uint64(last[8:]) {
		t.Errorf("opened up to %d, the last one is %d", w.opened, binary.LittleEndian.Uint64(last[8:]))
	}
	w.mu.Unlock()
	const times = 20
	replayAll(t, b, times, packets)
	if n, want := b.device.Counters().ReplayedPackets, uint64(times*len(packets)); n != want {
		t.Errorf("%d repetitions were counted, want %d", n, want)
	}
	pass(t, a, b, 3)
	if len(b.tun.in) != 0 {
		t.Error("a repetition was opened")
	}
	// Over a relay, too.
	b.device.HandleRelayed(nil, a.key, packets[0])
	eventually(t, func() error {
		if n, want := b.device.Counters().ReplayedPackets, uint64(times*len(packets)+1); n != want {
			return fmt.Errorf("%d repetitions were counted, want %d", n, want)
		}
		return nil
	})
}

// TestReplayedResponsesAreCounted: so is each response, whether the device refuses it
// or it is not given it.
func TestReplayedResponsesAreCounted(t *testing.T) {
	a, b, _, _ := connected(t)
	const times = 100
	replayAll(t, a, 5, slices.Repeat(captured(t, b, typeResponse)[:1], times/5))
	eventually(t, func() error {
		if c := a.device.Counters(); c.RefusedResponses+c.Limited+c.UnknownReceivers != times {
			return fmt.Errorf("%d refused, %d too many, %d for nobody", c.RefusedResponses, c.Limited, c.UnknownReceivers)
		} else if c.RefusedResponses == 0 {
			return errors.New("none was refused")
		}
		return nil
	})
	pass(t, b, a, 3)
}

// receiving returns what hands a batch of full packets of one session, all new, to the
// device, and writes them to the TUN as the device does when it has opened them.
func receiving(t testing.TB, batch int) (next func(), repeated func() uint64) {
	const index = 7
	x := newBind(&Config{})
	p := newPeer(fuzzKey(t, 2).Public(), x)
	x.indexes.sessions[index] = &session{peer: p}
	bufs, sizes := make([][]byte, batch), make([]int, batch)
	from, eps := make([]netip.AddrPort, batch), make([]conn.Endpoint, batch)
	at := netip.MustParseAddrPort("192.0.2.1:1")
	p.SetPath(Path{Direct: at})
	for i := range bufs {
		bufs[i] = make([]byte, 1452, 2048)
		from[i] = at
		binary.LittleEndian.PutUint32(bufs[i], typeTransport)
		binary.LittleEndian.PutUint32(bufs[i][4:], index)
	}
	counter := uint64(0)
	return func() {
		for i := range bufs {
			sizes[i] = len(bufs[i])
			binary.LittleEndian.PutUint64(bufs[i][8:], counter)
			counter++
		}
		x.mapBatch(bufs, sizes, from, eps)
		x.opened(bufs, sessionHeader)
	}, x.counters.replayedPackets.Load
}

// TestReceivingAllocatesNothing: nothing is allocated for a packet, and in 200,000 of a
// session none is a repetition.
func TestReceivingAllocatesNothing(t *testing.T) {
	next, repeated := receiving(t, 8)
	if n := testing.AllocsPerRun(25_000, next); n != 0 {
		t.Errorf("%v allocations for each batch", n)
	}
	if n := repeated(); n != 0 {
		t.Errorf("%d repetitions", n)
	}
}

// BenchmarkReceive is what the bind does for each packet that it hands to the device,
// and what its TUN side does for each that was opened.
func BenchmarkReceive(b *testing.B) {
	for _, batch := range []int{1, 8, 128} {
		next, repeated := receiving(b, batch)
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				next()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/packet")
			if n := repeated(); n != 0 {
				b.Fatalf("%d repetitions", n)
			}
		})
	}
}
