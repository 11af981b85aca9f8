package path

import (
	"io"
	"slices"
	"time"

	"github.com/warren-overlay/warren/netstack/disco"
)

const (
	// idleAfter is how long after its last use a peer is silent: above the pauses
	// of interactive use, below the time for which it would pay to keep the
	// mappings of NATs alive for nothing.
	idleAfter = 45 * time.Second
	// trust is how long an answer vouches for a path that is not being checked:
	// two beats and some.
	trust = 6500 * time.Millisecond
	// beat is the distance of pings on the primary of an active peer. With the
	// check it bounds the time in which a dead path is left to 4.5 s.
	beat = 3 * time.Second
	// quiet is how long the primary may neither answer nor carry anything while
	// packets leave before it is asked out of turn. A path across a continent that
	// dies under traffic is in doubt 0.1 s later and left after 0.9 s, so that the
	// third of TCP's repetitions, after 1.4 s (RFC 6298, doubling from 200 ms), and
	// mostly the second, already goes another way.
	quiet = 300 * time.Millisecond
	// A check asks checkTries times; any answer ends it. At 20 % loss each way it
	// fails wrongly once in 160 (0.36^5). The tries are three round trips apart,
	// of which the last answers say how long they are, but not less than
	// minSpacing, for ways that lose all for a moment, and not more than
	// maxSpacing, which allows for round trips of up to 1.5 s. While the primary
	// carries data to us, its answers may wait in the same queue, which traffic
	// has made longer than the least round trip: the check then lasts for
	// checkTries at maxSpacing.
	checkTries = 5
	minSpacing = 100 * time.Millisecond
	maxSpacing = 300 * time.Millisecond

	// slowProbe and fastProbe are the distances of probes after a burst, with a
	// direct path and without one. Nobody tells of a path that heals: it is to be
	// found within 5 s (reliability.md, F10).
	slowProbe = 60 * time.Second
	fastProbe = 4 * time.Second

	// probeBurst and probeInterval are the budget of challenges: a burst of eight
	// for eight candidates at once, and eight a second in the long run. What an
	// enrolled but hostile peer can make this node send to strangers is thus
	// under 700 B/s.
	probeBurst    = 64
	probeInterval = 125 * time.Millisecond
	// strayBurst and strayInterval are the budget of challenges to addresses that
	// only a ping named: some for each of the few that are remembered, and one a
	// second in the long run. Behind two
	// NATs that take a new port for every destination, or one that hairpins, each
	// such challenge shows the peer a new address of ours, and its challenge one
	// of its own to us, without end.
	strayBurst    = 32
	strayInterval = time.Second
	// answerBurst and answerInterval are the budget of pongs, one for paths that
	// work and one for all other sources. An honest peer needs as many as it has
	// probes.
	answerBurst    = 64
	answerInterval = 100 * time.Millisecond
	// callBurst and callInterval are the budget of the peer's calls, each of
	// which can start a burst.
	callBurst    = 4
	callInterval = time.Second

	// callBack is the age at which our own last call is too old for the peer to
	// know our addresses, so that its call is answered by one. It is longer than
	// a round trip over a relay, so that two nodes do not call in turns.
	callBack = 10 * time.Second
	// echoInterval spaces the challenges with which pings are met while a burst
	// is under way: the peer's ping just opened its NAT for us.
	echoInterval = 50 * time.Millisecond
	// A peer that is not used meets pings with challenges for stirTime, as long as
	// a burst lasts, and then not before stirGap: two nodes of which neither is
	// used would otherwise go on for ever, each because the other does.
	stirTime = 10 * time.Second
	stirGap  = 30 * time.Second
	// movedInterval spaces the challenges with which packets of the peer's from an
	// address that is not proved are met. Somebody on the way who sends them on
	// from his own address makes this node send him three a second, and no more
	// than strayBurst and strayInterval allow.
	movedInterval = 300 * time.Millisecond
	// distressInterval spaces the bursts of a tunnel that gets no answer: it
	// complains every 5 s.
	distressInterval = 2 * time.Second
	// skipAge is how late a probe may be sent. An older one is dropped: the
	// machine slept, and what it missed is not to be made up for in a burst.
	skipAge = time.Second
)

// probeDelays are the distances of the probes of a burst. The first few are
// short because both ends must send before NATs on both sides let anything in,
// and their clocks of use and call are a round trip apart.
var probeDelays = [...]time.Duration{
	100 * time.Millisecond, 150 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2 * time.Second, 4 * time.Second,
}

// callDelays are the distances of our calls while there is no direct path; the
// last one repeats.
var callDelays = [...]time.Duration{time.Second, 3 * time.Second, 6 * time.Second, 30 * time.Second}

// NextTimeout returns when HandleTimeout wants to be called: the last time
// given where output is pending, false where nothing will happen without input.
func (a *Agent) NextTimeout() (time.Time, bool) {
	if len(a.out) > 0 || len(a.events) > 0 {
		return a.now, true
	}
	next, ok := a.deadline()
	if t := a.sizeTime(); !t.IsZero() && (!ok || t.Before(next)) {
		return later(t, a.now), true
	}
	return next, ok
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// HandleTimeout does what is due at now.
func (a *Agent) HandleTimeout(now time.Time) {
	a.advance(now)
	a.flush()
}

// advance moves the clock to now and does what was due on the way, in order and
// each at its own time, so that a late call decides as punctual ones would
// have. Probes are only noted; flush sends at most one to each candidate.
func (a *Agent) advance(now time.Time) {
	if now.Before(a.now) {
		a.stats.ClockBack++
		return
	}
	for {
		d, ok := a.deadline()
		if !ok || d.After(now) {
			break
		}
		if d.After(a.now) {
			a.now = d
		}
		a.step()
	}
	a.now = now
}

// deadline returns the earliest time at which step has something to do, never
// one that has passed.
func (a *Agent) deadline() (time.Time, bool) {
	var next time.Time
	consider := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	if a.active {
		consider(a.used.Add(idleAfter))
	}
	consider(a.checkTime())
	consider(a.staleTime())
	consider(a.callNext)
	consider(a.birthday.next)
	consider(a.forgetTime())
	for _, c := range a.candidates {
		consider(c.next)
	}
	if next.IsZero() {
		return time.Time{}, false
	}
	if next.Before(a.now) {
		next = a.now
	}
	return next, true
}

// checkTime is when the primary is to be asked, or given up.
func (a *Agent) checkTime() time.Time {
	if !a.active || a.primary.Kind != Direct {
		return time.Time{}
	}
	if !a.checking.IsZero() {
		return a.checkNext
	}
	c := a.find(a.primary)
	if c.proved.IsZero() {
		return a.now
	}
	return c.proved.Add(beat)
}

// staleTime is when an unused direct primary gives way to the relay.
func (a *Agent) staleTime() time.Time {
	if a.active || a.primary.Kind != Direct || !a.relay {
		return time.Time{}
	}
	if c := a.find(a.primary); !c.proved.IsZero() {
		return c.proved.Add(trust)
	}
	return a.now
}

// step does everything that is due at a.now. Each part moves its own deadline
// on.
func (a *Agent) step() {
	due := func(t time.Time) bool { return !t.IsZero() && !t.After(a.now) }
	if a.active && due(a.used.Add(idleAfter)) {
		a.rest()
	}
	if due(a.checkTime()) {
		a.checkStep()
	}
	if due(a.staleTime()) {
		a.choose(ReasonIdle)
	}
	if due(a.callNext) {
		a.callStepNow()
	}
	if due(a.forgetTime()) {
		a.forgetStep()
	}
	if due(a.birthday.next) {
		a.birthdayStep()
	}
	for _, c := range a.candidates {
		if due(c.next) {
			a.probeStep(c)
		}
	}
	a.setBoth()
	a.weighBirthday()
}

// setBoth says when packets are to go both ways, and when no more.
func (a *Agent) setBoth() {
	if both := a.primary.Kind == Direct && a.relay && a.doubtful(a.find(a.primary)); both != a.both {
		a.both = both
		a.emit()
	}
}

// use notes that the peer is used.
func (a *Agent) use() {
	a.used = a.now
	if a.active {
		return
	}
	a.active = true
	a.choose(ReasonProved)
	a.schedule(a.candidates)
	a.scheduleCall()
	if a.primary.Kind == Direct && !a.alivePrimary() {
		a.check()
	}
}

// stir reports whether a ping of the peer, while it is not used, is met with a
// challenge.
func (a *Agent) stir() bool {
	if a.stirred.IsZero() || a.now.Sub(a.stirred) >= stirGap {
		a.stirred = a.now
	}
	return a.now.Sub(a.stirred) < stirTime
}

// rest ends the activity of a peer that is not used.
func (a *Agent) rest() {
	a.active, a.checking, a.callNext = false, time.Time{}, time.Time{}
	for _, c := range a.candidates {
		c.next = time.Time{}
		c.sizes.rest()
	}
	a.choose(ReasonIdle)
}

// schedule begins a burst at each of the given candidates, at those that are
// barred when the bar ends.
func (a *Agent) schedule(cs []*candidate) {
	for _, c := range cs {
		if a.now.Before(c.barred) {
			c.step, c.next = 0, c.barred
			continue
		}
		c.step, c.next = 0, a.now
		a.probeStep(c)
	}
}

// want notes that a challenge to c is due.
func (a *Agent) want(c *candidate) { c.due, c.wanted = a.now, a.now }

// wantCall notes that a call is due.
func (a *Agent) wantCall() { a.callDue, a.called = true, a.now }

func (a *Agent) probeStep(c *candidate) {
	a.want(c)
	switch {
	case c.stray():
		// The way there is open now if ever, and the next ping opens it again.
		c.next = time.Time{}
	case c.step < len(probeDelays):
		c.next = a.now.Add(probeDelays[c.step])
		c.step++
	case !a.active:
		c.next = time.Time{}
	case a.primary.Kind == Direct:
		c.next = a.now.Add(slowProbe)
	default:
		c.next = a.now.Add(fastProbe)
	}
	if a.primary.Kind == Direct && c.step == len(probeDelays) && c.sources == SourceObserved && a.active {
		// Where a direct path stands, an address that nobody lists and that did not
		// answer a burst is not worth more.
		c.next = time.Time{}
	}
}

// scheduleCall asks the peer over the relay to probe, now and again until there
// is a direct path.
func (a *Agent) scheduleCall() {
	a.callStep = 0
	a.callStepNow()
}

func (a *Agent) callStepNow() {
	a.callNext = time.Time{}
	if !a.relay || !a.active || a.callStep > 0 && a.primary.Kind == Direct {
		return
	}
	a.wantCall()
	a.callNext = a.now.Add(callDelays[min(a.callStep, len(callDelays)-1)])
	a.callStep++
}

// check asks the primary whether it still answers. It does nothing while a
// check is under way or where the primary is not direct.
func (a *Agent) check() {
	if a.primary.Kind == Direct && a.active && a.checking.IsZero() {
		a.checking, a.checks = a.now, 0
		a.checkStep()
	}
}

// checkIfQuiet checks the primary c unless it has answered, or carried data to
// us, of late. The peer's challenges vouch for nothing: packets may go one way
// only.
func (a *Agent) checkIfQuiet(c *candidate) {
	if a.now.Sub(c.vouched()) >= quiet {
		a.check()
	}
}

// vouched is when c was last known to work.
func (c *candidate) vouched() time.Time {
	if c.carried.After(c.proved) {
		return c.carried
	}
	return c.proved
}

// spacing is the distance of the tries of a check of c. It goes by the greatest
// of the recent round trips: where they grow, the next one is not lost yet.
func (c *candidate) spacing() time.Duration {
	if len(c.samples) == 0 {
		return maxSpacing
	}
	return min(max(3*slices.Max(c.samples), minSpacing), maxSpacing)
}

func (a *Agent) checkStep() {
	if a.checking.IsZero() {
		a.checking, a.checks = a.now, 0
	}
	c := a.find(a.primary)
	carries := !a.both && a.carries(c) && a.now.Sub(a.checking) < checkTries*maxSpacing
	if a.checks < checkTries || carries {
		a.checks++
		a.want(c)
		a.checkNext = a.now.Add(c.spacing())
		if a.checks >= checkTries && carries {
			a.checkNext = a.now.Add(maxSpacing)
		}
		a.choose(ReasonLost)
		return
	}
	a.stats.Losses++
	c.lost = true
	for _, other := range a.candidates {
		// What ended this path may have ended the others, and to find out one
		// after the other takes a check each.
		other.doubted = other.proved.Before(a.checking)
	}
	c.sources &^= SourceProved
	if c.sources == 0 {
		// It stays a hint: it worked until now.
		c.sources = SourceObserved
	}
	a.checking = time.Time{}
	a.choose(ReasonLost)
	a.schedule(a.candidates)
	a.scheduleCall()
}

// carries reports whether the primary c carried data to us since its check began,
// while nothing says that the peer does not hear us: its answers may be on their
// way.
func (a *Agent) carries(c *candidate) bool {
	return c.carried.After(a.checking) && !a.unheard
}

// doubtful reports whether the primary c left the first challenge of its check
// unanswered and carries nothing; once it was doubtful it is until the check
// ends, for what then comes may come since packets go both ways. The peer's
// challenges do not count: they come where only the way to the peer is cut.
func (a *Agent) doubtful(c *candidate) bool {
	if a.checking.IsZero() || a.checks < 2 || a.both {
		return a.both && !a.checking.IsZero()
	}
	return !a.carries(c) && (len(c.samples) == 0 || a.now.Sub(a.checking) >= 2*slices.Max(c.samples))
}

// alive reports whether a candidate can be the primary on the strength of its
// last answer.
func (a *Agent) alive(c *candidate) bool {
	if c.proved.IsZero() || c.lost || a.now.Before(c.barred) || c.doubted && a.relay {
		return false
	}
	// The primary of an active peer is under watch: the check decides.
	return a.now.Sub(c.proved) < trust || a.active && c.path() == a.primary
}

func (a *Agent) alivePrimary() bool {
	c := a.find(a.primary)
	return c != nil && a.now.Sub(c.proved) < trust && !c.proved.IsZero()
}

// choose sets the primary to the best path there is.
func (a *Agent) choose(why Reason) {
	var current, best *candidate
	outlived := false
	if a.primary.Kind == Direct {
		current = a.find(a.primary)
		outlived = current != nil && a.outlived(current)
		if current != nil && a.alive(current) && !outlived {
			best = current
		}
	}
	for _, c := range a.candidates {
		if !a.alive(c) || c == best || c == current && outlived {
			continue
		}
		switch {
		case best == nil, best == current && Better(c.score(), best.score()),
			best != current && c.score().cost() < best.score().cost():
			best = c
		}
	}
	if works := current != nil && a.alive(current); best != nil && best != current && !a.sought(best) && !outlived && (works || a.relay) {
		// What works goes on to carry until it is known what best carries.
		if best = nil; works {
			best = current
		}
	}
	switch {
	case best != nil:
		if outlived {
			current.lost = true
		}
		a.setPrimary(best.path(), why)
	case a.relay:
		a.setPrimary(viaRelay, why)
	default:
		a.setPrimary(a.lastResort(current), why)
	}
}

// outlived reports whether the primary c is doubtful while another address has
// answered since c was last known to work: the peer, or its NAT, has moved.
func (a *Agent) outlived(c *candidate) bool {
	return a.doubtful(c) && slices.ContainsFunc(a.candidates, func(other *candidate) bool {
		return other != c && a.alive(other) && other.proved.After(c.vouched())
	})
}

// lastResort is where packets go when nothing is proved and there is no relay:
// on where they went, or to what was proved last, unless that failed.
func (a *Agent) lastResort(current *candidate) Path {
	if current != nil && !current.lost {
		return a.primary
	}
	var best *candidate
	for _, c := range a.candidates {
		if !c.lost && !c.proved.IsZero() && (best == nil || c.proved.After(best.proved)) {
			best = c
		}
	}
	if best == nil {
		return Path{}
	}
	return best.path()
}

// flush sends what fell due: one challenge to each candidate that wants one,
// and one call.
func (a *Agent) flush() {
	a.sizeSteps()
	a.setBoth()
	for _, c := range a.candidates {
		if c.due.IsZero() {
			continue
		}
		late := a.now.Sub(c.due)
		c.due = time.Time{}
		if late > skipAge {
			a.stats.ProbesSkipped++
			continue
		}
		a.probe(c)
	}
	if a.callDue {
		a.callDue = false
		if a.relay {
			a.stats.CallsSent++
			a.transmit(Transmit{viaRelay, disco.CallMe{Endpoints: append(a.local[:0:0], a.local...)}})
			a.birthday.tell = true
		}
	}
	a.weighBirthday()
	a.sendBirthday()
}

func (a *Agent) probe(c *candidate) {
	if !a.afford(c) {
		a.stats.ProbesOverBudget++
		return
	}
	var id disco.TxID
	if _, err := io.ReadFull(a.cfg.Rand, id[:]); err != nil {
		a.stats.RandFailed++
		return
	}
	if len(c.outstanding) == maxOutstanding {
		c.outstanding = append(c.outstanding[:0], c.outstanding[1:]...)
	}
	c.outstanding = append(c.outstanding, challenge{id, a.now})
	a.seq++
	a.stats.PingsSent++
	a.transmit(Transmit{c.path(), disco.Ping{TxID: id, Session: a.session, Seq: a.seq}})
}

// afford takes a challenge to c from the budgets that it counts for.
func (a *Agent) afford(c *candidate) bool {
	if c.path() == a.primary {
		return a.watches.take(a.now)
	}
	if !a.probes.has(a.now) || c.stray() && !a.strays.take(a.now) {
		return false
	}
	return a.probes.take(a.now)
}

// budget is a token bucket of whole tokens.
type budget struct {
	burst    int
	interval time.Duration // between two tokens
	left     int
	at       time.Time // since when the next token grows
}

func newBudget(burst int, interval time.Duration, now time.Time) budget {
	return budget{burst, interval, burst, now}
}

func (b *budget) has(now time.Time) bool {
	if n := now.Sub(b.at) / b.interval; n > 0 {
		b.left = int(min(time.Duration(b.burst), time.Duration(b.left)+n))
		b.at = b.at.Add(n * b.interval)
	}
	return b.left > 0
}

// when returns when there is a token.
func (b *budget) when(now time.Time) time.Time {
	if b.has(now) {
		return now
	}
	return b.at.Add(b.interval)
}

func (b *budget) take(now time.Time) bool {
	if !b.has(now) {
		return false
	}
	b.left--
	return true
}
