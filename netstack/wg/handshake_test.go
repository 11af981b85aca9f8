package wg

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/warren-overlay/warren/acl/ident"
)

// recordingRelay keeps what is sent over it.
type recordingRelay struct {
	mu   sync.Mutex // protects sent
	sent [][]byte
}

func (r *recordingRelay) SendPackets(_ ident.NodeKey, packets [][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range packets {
		r.sent = append(r.sent, slices.Clone(p))
	}
}

// kinds returns the types of what was sent, and forgets it.
func (r *recordingRelay) kinds() (kinds []uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.sent {
		kinds = append(kinds, messageType(p))
	}
	r.sent = nil
	return kinds
}

// bound is a bind with one peer, whose messages go over a relay, and what the
// device would send and be given. Its key is less than the peer's where first.
type bound struct {
	*bind
	t     *testing.T
	peer  *Peer
	relay *recordingRelay
	own   ident.NodePrivate
	its   ident.NodePrivate
}

func newBound(t *testing.T, first bool) *bound {
	own, its := fuzzKey(t, 1), fuzzKey(t, 2)
	a, b := own.Public(), its.Public()
	if (slices.Compare(a[:], b[:]) < 0) != first {
		own, its = its, own
	}
	x := &bound{bind: newBind(&Config{}), t: t, relay: &recordingRelay{}, own: own, its: its}
	x.identity.Store(newIdentity(own))
	x.peer = newPeer(its.Public(), x.bind)
	x.peers[x.peer.key] = x.peer
	x.peer.SetPath(Path{Relay: x.relay})
	return x
}

// begin has the device send an initiation from an index, and respond a response to the
// peer's last initiation.
func (x *bound) begin(index uint32) {
	x.sendOwn(renumbered(x.t, x.its, craftInitiation(x.t, x.its, x.own), index))
}

func (x *bound) respond(index uint32) { x.respondTo(x.peer.handshake.heard[:], index) }

// respondTo has the device send the response to an initiation.
func (x *bound) respondTo(initiation []byte, index uint32) {
	m := make([]byte, responseSize)
	binary.LittleEndian.PutUint32(m, typeResponse)
	binary.LittleEndian.PutUint32(m[4:], index)
	copy(m[8:12], initiation[4:8])
	x.sendOwn(m)
}

func (x *bound) sendOwn(m []byte) {
	x.t.Helper()
	if err := x.Send([][]byte{m}, x.peer); err != nil {
		x.t.Fatal(err)
	}
}

// initiation is one of the peer's, numbered.
func (x *bound) initiation(index uint32) []byte {
	return renumbered(x.t, x.own, craftInitiation(x.t, x.own, x.its), index)
}

// answer is a message for an index of this device's.
func answer(kind, index uint32) []byte {
	m := make([]byte, responseSize)
	binary.LittleEndian.PutUint32(m, kind)
	at := 4
	if kind == typeResponse {
		at = 8
	}
	binary.LittleEndian.PutUint32(m[at:], index)
	return m
}

// given returns the types of the messages that the device was given, and forgets
// them.
func (x *bound) given() (kinds []uint32) {
	for len(x.relayed) > 0 {
		kinds = append(kinds, messageType((<-x.relayed).data))
	}
	return kinds
}

func (x *bound) want(what string, got, want []uint32) {
	x.t.Helper()
	if !slices.Equal(got, want) {
		x.t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// TestOneOfTwoBeginnersWaits: of two devices that begin a handshake at the same
// time, the one with the lesser key lets the other's wait for the answer to its
// own, and takes it where that stays out.
func TestOneOfTwoBeginnersWaits(t *testing.T) {
	for name, test := range map[string]struct {
		first    bool
		age      time.Duration // of our own
		again    bool          // ours is sent again by another path then
		moves    bool          // and again by another one while theirs waits
		pathless bool          // ours has not been sent by any path
		answered bool
		at, then []uint32 // what the device is given at once, and after yieldTime
	}{
		"ours is answered":             {first: true, answered: true, at: []uint32{typeResponse}},
		"ours is lost":                 {first: true, then: []uint32{typeInitiation}},
		"ours is old":                  {first: true, age: yieldTime, at: []uint32{typeInitiation}},
		"ours is repeated":             {first: true, age: repeatDelays[0] + time.Millisecond, answered: true, at: []uint32{typeResponse}},
		"ours went again":              {first: true, age: yieldTime, again: true, answered: true, at: []uint32{typeResponse}},
		"theirs goes on":               {first: false, at: []uint32{typeInitiation}},
		"ours goes on by another path": {first: true, moves: true, answered: true, at: []uint32{typeResponse}},
		"ours is lost on another path": {first: true, moves: true, then: []uint32{typeInitiation}},
		"ours has no path":             {first: true, pathless: true, at: []uint32{typeInitiation}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newBound(t, test.first)
				if test.pathless {
					x.peer.SetPath(Path{})
				}
				x.begin(5)
				time.Sleep(test.age)
				synctest.Wait()
				if test.again {
					x.peer.SetPath(Path{Relay: &recordingRelay{}})
				}
				x.handleRelayed(x.relay, x.peer.key, x.initiation(1))
				if test.moves {
					time.Sleep(yieldTime - 50*time.Millisecond)
					x.peer.SetPath(Path{Relay: &recordingRelay{}})
				}
				if test.answered {
					time.Sleep(100 * time.Millisecond)
					x.handleRelayed(x.relay, x.peer.key, answer(typeResponse, 5))
				}
				x.want("at once", x.given(), test.at)
				time.Sleep(2 * yieldTime)
				synctest.Wait()
				x.want("later", x.given(), test.then)
			})
		})
	}
}

// TestOneBeginsWhileItAnswers: the device with the lesser key that makes an
// initiation while it is being given the other's does not send it where it answers
// the other's, or each would give up its own; it does where it does not answer,
// however many others somebody makes up meanwhile.
func TestOneBeginsWhileItAnswers(t *testing.T) {
	for name, test := range map[string]struct {
		first    bool
		pause    time.Duration // between the two
		responds bool
		forged   bool
		at, then []uint32 // what is sent at once, and after answerTime
	}{
		"answered":               {first: true, responds: true, at: []uint32{typeResponse}},
		"not answered":           {first: true, then: []uint32{typeInitiation}},
		"not answered, others":   {first: true, forged: true, then: []uint32{typeInitiation}},
		"the other's was before": {first: true, pause: answerTime, at: []uint32{typeInitiation}},
		"the greater key":        {first: false, responds: true, at: []uint32{typeInitiation, typeResponse}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newBound(t, test.first)
				x.handleRelayed(x.relay, x.peer.key, x.initiation(1))
				time.Sleep(test.pause)
				x.begin(5)
				if test.responds {
					x.respond(6)
				}
				x.want("at once", x.relay.kinds(), test.at)
				if test.forged {
					time.Sleep(apart)
					x.handleRelayed(x.relay, x.peer.key, x.initiation(2))
				}
				time.Sleep(answerTime)
				synctest.Wait()
				x.want("later", x.relay.kinds(), test.then)
			})
		})
	}
}

// TestDeferredInitiationOfOneWhoLeft: an initiation that waits for what the device
// answers is not sent where the peer is none any more by then.
func TestDeferredInitiationOfOneWhoLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newBound(t, true)
		x.handleRelayed(x.relay, x.peer.key, x.initiation(1))
		x.begin(5)
		x.indexes.forget(x.peer)
		time.Sleep(answerTime)
		synctest.Wait()
		x.want("to nobody", x.relay.kinds(), nil)
		if n := x.counters.snapshot().YieldedInitiations; n != 1 {
			t.Errorf("%d were deferred, want 1", n)
		}
	})
}

// TestInitiationIsNotSentAgainBesideTheAnswer: a path that comes with the peer's
// initiation carries the answer to that, and not our own initiation of before.
func TestInitiationIsNotSentAgainBesideTheAnswer(t *testing.T) {
	for name, answers := range map[string]bool{"it is answered": true, "the device does not answer": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newBound(t, false)
				x.peer.SetPath(Path{})
				x.begin(5)
				x.handleRelayed(x.relay, x.peer.key, x.initiation(1))
				x.peer.SetPath(Path{Relay: x.relay})
				x.want("at once", x.relay.kinds(), nil)
				want := []uint32{typeInitiation}
				if answers {
					x.respond(6)
					want = []uint32{typeResponse}
				}
				time.Sleep(answerTime)
				synctest.Wait()
				x.want("then", x.relay.kinds(), want)
				x.handleRelayed(x.relay, x.peer.key, answer(typeTransport, 6))
				x.handleRelayed(x.relay, x.peer.key, answer(typeTransport, 5))
			})
		})
	}
}

// TestOneMessageAtATime: the device is given the next message of a handshake with
// a peer when it is done with the last, wherever it came from.
func TestOneMessageAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newBound(t, false)
		x.begin(5)
		from := netip.MustParseAddrPort("192.0.2.1:1")
		response := answer(typeResponse, 5)
		messages := []struct {
			name string
			give func() (direct bool)
			kind uint32
		}{
			{"an initiation by the relay", func() bool { x.handleRelayed(x.relay, x.peer.key, x.initiation(1)); return false }, typeInitiation},
			{"a response by the relay", func() bool { x.handleRelayed(x.relay, x.peer.key, response); return false }, typeResponse},
			{"a response on the direct way", func() bool {
				sizes := []int{len(response)}
				x.mapBatch([][]byte{bytes.Clone(response)}, sizes, []netip.AddrPort{from}, make([]conn.Endpoint, 1))
				return sizes[0] > 0
			}, typeResponse},
			{"an initiation by the relay, again", func() bool { x.handleRelayed(x.relay, x.peer.key, x.initiation(2)); return false }, typeInitiation},
		}
		for i, m := range messages {
			if direct := m.give(); direct {
				t.Errorf("%s: the device is given it at once", m.name)
			}
			var want []uint32
			if i == 0 {
				want = []uint32{m.kind}
			}
			x.want(m.name, x.given(), want)
		}
		for _, m := range messages[1:] {
			time.Sleep(apart - time.Millisecond)
			synctest.Wait()
			x.want("before the turn of "+m.name, x.given(), nil)
			time.Sleep(time.Millisecond)
			synctest.Wait()
			x.want("in the turn of "+m.name, x.given(), []uint32{m.kind})
		}
		time.Sleep(apart)
		if direct := messages[2].give(); !direct {
			t.Error("the device is not given a message that comes alone")
		}
	})
}

// TestResponseThatWaitsIsAnAnswer: handshakes count as answered as soon as the
// response is there, by whichever way it comes and whether or not the device is given
// it at once.
func TestResponseThatWaitsIsAnAnswer(t *testing.T) {
	from := netip.MustParseAddrPort("192.0.2.1:1")
	for way, give := range map[string]func(x *bound, response []byte) (atOnce bool){
		"relay": func(x *bound, response []byte) bool {
			x.handleRelayed(x.relay, x.peer.key, response)
			return len(x.given()) > 0
		},
		"direct": func(x *bound, response []byte) bool {
			sizes := []int{len(response)}
			x.mapBatch([][]byte{response}, sizes, []netip.AddrPort{from}, make([]conn.Endpoint, 1))
			return sizes[0] > 0
		},
		"further socket": func(x *bound, response []byte) bool {
			s := &Socket{bind: x.bind, closed: make(chan struct{})}
			s.take(response, from)
			return len(x.furtherIn) > 0
		},
	} {
		for name, waits := range map[string]bool{"alone": false, "in its turn": true} {
			t.Run(way+", "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					x := newBound(t, false)
					if waits {
						x.handleRelayed(x.relay, x.peer.key, x.initiation(1))
						x.given()
					}
					x.begin(5)
					if n := x.peer.Unanswered(); n != 1 {
						t.Fatalf("%d unanswered after one initiation", n)
					}
					if atOnce := give(x, answer(typeResponse, 5)); atOnce == waits {
						t.Errorf("given to the device at once: %v", atOnce)
					}
					if n := x.peer.Unanswered(); n != 0 {
						t.Errorf("%d unanswered after the response", n)
					}
					time.Sleep(2 * apart)
				})
			})
		}
	}
}

// TestResponseGoesBack: where relays carry the packets to a peer, the response to its
// initiation, and each repetition, goes over the relay that the initiation came over.
func TestResponseGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newBound(t, false)
		other := &recordingRelay{}
		initiation := x.initiation(1)
		x.handleRelayed(other, x.peer.key, initiation)
		x.respond(7)
		time.Sleep(replyInterval)
		x.handleRelayed(other, x.peer.key, initiation)
		x.want("where it came from", other.kinds(), []uint32{typeResponse, typeResponse})
		time.Sleep(replyInterval)
		x.handleRelayed(x.relay, x.peer.key, initiation)
		x.want("by the peer's path", x.relay.kinds(), []uint32{typeResponse})

		// What begins at this end goes by the path.
		x.begin(8)
		x.want("an initiation", x.relay.kinds(), []uint32{typeInitiation})
		x.want("where the last one came from", other.kinds(), nil)
		x.handleRelayed(x.relay, x.peer.key, answer(typeTransport, 8)) // it has arrived
	})
}

// TestResponseGoesBackDespiteOthers: initiations that somebody makes up in the peer's
// name after its own do not draw the response to that over the relay that they come by.
func TestResponseGoesBackDespiteOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newBound(t, false)
		from, hostile := &recordingRelay{}, &recordingRelay{}
		genuine := x.initiation(1)
		x.handleRelayed(from, x.peer.key, genuine)
		for i := range uint32(peerBurst) {
			x.handleRelayed(hostile, x.peer.key, x.initiation(2+i))
		}
		x.respondTo(genuine, 7)
		x.want("where it came from", from.kinds(), []uint32{typeResponse})
		x.want("where the others came from", hostile.kinds(), nil)
		x.handleRelayed(x.relay, x.peer.key, answer(typeTransport, 7))

		// It comes again by another way, before it was answered.
		time.Sleep(10 * time.Second)
		again := x.initiation(100)
		x.handleRelayed(hostile, x.peer.key, again)
		x.handleRelayed(from, x.peer.key, again)
		x.respondTo(again, 8)
		x.want("where it came from last", from.kinds(), []uint32{typeResponse})
		x.want("where it came from first", hostile.kinds(), nil)
		x.handleRelayed(x.relay, x.peer.key, answer(typeTransport, 8))

		// Of what is not known any more, the response goes by the path.
		for i := range uint32(maxCameOver) {
			time.Sleep(time.Second)
			x.handleRelayed(from, x.peer.key, x.initiation(200+i))
		}
		from.kinds()
		x.respondTo(genuine, 10)
		x.want("of one of long ago, by the path", x.relay.kinds(), []uint32{typeResponse})
		x.want("of one of long ago, where it came from", from.kinds(), nil)
		if n := len(x.peer.handshake.cameOver); n != maxCameOver {
			t.Errorf("%d are remembered, want %d", n, maxCameOver)
		}
		x.indexes.forget(x.peer)
	})
}

// TestRefusedInitiationIsTriedAgain: an initiation that came right after another may be
// refused by the device, which answers the first. Its repetition is no repetition to
// the device then, and is not answered by the response to the first.
func TestRefusedInitiationIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newBound(t, false)
		first, second := x.initiation(1), x.initiation(2)
		x.handleRelayed(x.relay, x.peer.key, first)
		x.respond(7)
		x.handleRelayed(x.relay, x.peer.key, second)
		time.Sleep(replyInterval)
		synctest.Wait()
		x.want("both", x.given(), []uint32{typeInitiation, typeInitiation})
		x.want("the answer to the first", x.relay.kinds(), []uint32{typeResponse})
		x.handleRelayed(x.relay, x.peer.key, second)
		x.want("the second, again", x.given(), []uint32{typeInitiation})
		x.want("what was said to the first", x.relay.kinds(), nil)
		x.respond(8)
		time.Sleep(replyInterval)
		x.handleRelayed(x.relay, x.peer.key, second)
		x.want("one that is answered", x.given(), nil)
		x.want("its answer", x.relay.kinds(), []uint32{typeResponse, typeResponse})
		x.handleRelayed(x.relay, x.peer.key, answer(typeTransport, 8))
	})
}

// TestWaitingInitiationsAreFew: what waits is bounded, and what does not fit goes
// to the device, as without waiting.
func TestWaitingInitiationsAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newBound(t, true)
		x.begin(5)
		for i := range uint32(maxHeld + 2) {
			x.handleRelayed(x.relay, x.peer.key, x.initiation(i))
		}
		x.want("what does not fit", x.given(), []uint32{typeInitiation})
		time.Sleep(apart)
		synctest.Wait()
		x.want("what does not fit, in its turn", x.given(), []uint32{typeInitiation})
		time.Sleep(2 * yieldTime)
		synctest.Wait()
		if n := len(x.given()); n != maxHeld {
			t.Errorf("%d were given to the device later, want %d", n, maxHeld)
		}
		if n := x.counters.snapshot().YieldedInitiations; n != maxHeld {
			t.Errorf("%d are counted, want %d", n, maxHeld)
		}
	})
}

// TestLostHandshakesAreSentAgain: an initiation that nothing comes for is sent
// again before the device makes another, and the answer to it, where the peer
// repeats it; and both by another path as soon as there is one. What has arrived
// is not.
func TestLostHandshakesAreSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newBound(t, false)
		x.begin(5)
		time.Sleep(pendingLife)
		synctest.Wait()
		x.want("an initiation without an answer", x.relay.kinds(), []uint32{1, 1, 1, 1})

		x.begin(6)
		time.Sleep(200 * time.Millisecond)
		x.handleRelayed(x.relay, x.peer.key, answer(typeResponse, 6))
		other := &recordingRelay{}
		x.peer.SetPath(Path{Relay: other})
		time.Sleep(pendingLife)
		synctest.Wait()
		x.want("an initiation with an answer", x.relay.kinds(), []uint32{typeInitiation})
		x.want("the same by another path", other.kinds(), nil)
		x.given()

		initiation := x.initiation(1)
		x.handleRelayed(other, x.peer.key, initiation)
		x.respond(7)
		for range 3 {
			time.Sleep(replyInterval)
			x.handleRelayed(other, x.peer.key, initiation)
			x.handleRelayed(other, x.peer.key, initiation)
		}
		x.want("given to the device", x.given(), []uint32{typeInitiation})
		x.want("responses", other.kinds(), []uint32{2, 2, 2, 2})
		x.peer.SetPath(Path{Relay: x.relay})
		x.want("the response by another path", x.relay.kinds(), []uint32{typeResponse})
		x.handleRelayed(x.relay, x.peer.key, answer(typeTransport, 7))
		time.Sleep(replyInterval)
		x.handleRelayed(other, x.peer.key, initiation)
		x.peer.SetPath(Path{Relay: other})
		x.want("a response that has arrived", slices.Concat(x.relay.kinds(), other.kinds()), nil)
		if n := x.counters.snapshot(); n.ReplayedInitiations != 7 || n.RepeatedHandshakes != 6 {
			t.Errorf("%d repetitions counted, %d sent", n.ReplayedInitiations, n.RepeatedHandshakes)
		}
		x.indexes.forget(x.peer)
	})
}
