package sim

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/warren-overlay/warren/netstack/alarm"
	"github.com/warren-overlay/warren/netstack/enginetest"
)

const (
	// streamSpacing is the distance of a stream's segments, streamWindow how many
	// may be unanswered.
	streamSpacing = 10 * time.Millisecond
	streamWindow  = 256
	// resent is how many segments are sent again at once.
	resent = 16
	// minRTO is the first wait for an answer: the least of Linux, 200 ms, and a
	// round trip. It doubles up to maxRTO (RFC 6298, section 5.5).
	minRTO, maxRTO = 240 * time.Millisecond, 60 * time.Second
	// dupThresh is how many answers that say nothing new make a segment count as
	// lost (RFC 5681, section 3.2).
	dupThresh = 3
)

// The answers to segments, and to those that came before: the sender does not
// take the latter for news of a loss (RFC 2883).
const answerNew, answerOld = "ack", "dup"

// numbered is a reliable flow with the clock of TCP: numbered segments that are
// answered cumulatively, sent again when no answer comes in ever longer times,
// or after three answers that repeat the last. The real one of gVisor can not be
// used in a bubble (architecture.md).
type numbered struct {
	from, to *node

	mu sync.Mutex // protects all below
	// The sender's part.
	next, acked, recover uint32
	repeated             int // answers that said nothing new
	sent                 time.Time
	rto                  time.Duration
	timeouts, fast       int
	// The receiver's part.
	want     uint32
	ahead    map[uint32]bool
	progress time.Time // when the application last got something
	gaps     []time.Duration
	late     int // segments that came after later ones
	farthest int // most segments that waited for an earlier one
}

// startStream starts a stream that goes on until the bubble ends. It takes all
// that both nodes' applications receive.
func (s *sim) startStream(from, to *node) *numbered {
	st := &numbered{from: from, to: to, rto: minRTO, sent: time.Now(), progress: time.Now(), ahead: make(map[uint32]bool)}
	s.running.Go(func() {
		for {
			select {
			case <-s.ctx.Done():
				return
			case b := <-to.tun.Received():
				st.receive(b)
			}
		}
	})
	s.running.Go(func() {
		tick := alarm.New(streamSpacing)
		defer tick.Stop()
		for {
			select {
			case <-s.ctx.Done():
				return
			case b := <-from.tun.Received():
				st.answered(b)
			case <-tick.C:
				tick.Set(streamSpacing)
				st.tick()
			}
		}
	})
	return st
}

func (st *numbered) send(number uint32) {
	st.from.tun.Send(enginetest.UDP(netip.AddrPortFrom(st.from.Addr4(), 5000), netip.AddrPortFrom(st.to.Addr4(), 53), fmt.Sprint("seg ", number)))
}

func (st *numbered) tick() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.next > st.acked && time.Since(st.sent) >= st.rto {
		st.timeouts++
		st.rto, st.sent, st.recover = min(2*st.rto, maxRTO), time.Now(), st.next
		st.resend()
		return
	}
	if st.next-st.acked < streamWindow {
		if st.next == st.acked {
			st.sent = time.Now()
		}
		st.send(st.next)
		st.next++
	}
}

// resend sends the first segments that are not answered again.
func (st *numbered) resend() {
	for number := st.acked; number < min(st.acked+resent, st.next); number++ {
		st.send(number)
	}
}

// answered takes an answer at the sender.
func (st *numbered) answered(b []byte) {
	var want uint32
	var kind string
	if _, err := fmt.Sscanf(string(b[28:]), "%s %d", &kind, &want); err != nil {
		return
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case want > st.acked:
		st.acked, st.repeated, st.rto, st.sent = want, 0, minRTO, time.Now()
		if st.acked < st.recover {
			st.resend() // the next ones are lost as well
		}
	case kind == answerNew && want == st.acked && st.next > st.acked:
		if st.repeated++; st.repeated == dupThresh && st.acked >= st.recover {
			st.fast++
			st.recover = st.next
			st.resend()
		}
	}
}

// receive takes a segment at the receiver.
func (st *numbered) receive(b []byte) {
	var number uint32
	if _, err := fmt.Sscanf(string(b[28:]), "seg %d", &number); err != nil {
		return
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	kind := answerNew
	switch {
	case number < st.want:
		kind = answerOld
	case number == st.want:
		st.gaps = append(st.gaps, time.Since(st.progress))
		st.progress = time.Now()
		if len(st.ahead) > 0 {
			st.late++
		}
		for st.want++; st.ahead[st.want]; st.want++ {
			delete(st.ahead, st.want)
		}
	default:
		st.ahead[number] = true
		st.farthest = max(st.farthest, len(st.ahead))
	}
	st.to.tun.Send(enginetest.UDP(netip.AddrPortFrom(st.to.Addr4(), 53), netip.AddrPortFrom(st.from.Addr4(), 5000), fmt.Sprint(kind, " ", st.want)))
}

// worst returns the longest time since the last call in which the application
// got nothing, the one that lasts included.
func (st *numbered) worst() time.Duration {
	st.mu.Lock()
	defer st.mu.Unlock()
	longest := max(time.Since(st.progress), slices.Max(append(st.gaps, 0)))
	st.gaps = nil
	return longest
}

// stalled returns for how long nothing has arrived in order.
func (st *numbered) stalled() time.Duration {
	st.mu.Lock()
	defer st.mu.Unlock()
	return time.Since(st.progress)
}

// counts returns how often the sender waited in vain, took a segment for lost,
// and how many segments came late.
func (st *numbered) counts() (timeouts, fast, late, farthest int) {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.timeouts, st.fast, st.late, st.farthest
}

// quantile returns the value that the given share of a list does not exceed.
func quantile(list []time.Duration, share float64) time.Duration {
	sorted := slices.Sorted(slices.Values(list))
	return sorted[min(len(sorted)-1, int(share*float64(len(sorted))))]
}
