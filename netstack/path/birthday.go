package path

import (
	"encoding/binary"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-overlay/warren/netstack/disco"
)

// The birthday method finds a way between a node whose NAT draws another port at
// random for every destination (the opener) and one whose NAT keeps one port but
// lets in only whom it sent to (the guesser). The opener sends to the guesser from
// many sockets, each of which is a port that lets the guesser in; the guesser
// sends to ports at random until one of them is one of those. DESIGN.md has the
// arithmetic, and why the numbers below are what they are.

const (
	// birthdaySockets is how many sockets the opener sends from: so many lines in
	// its NAT's table, where a carrier may allow a customer a thousand.
	birthdaySockets = disco.MaxPorts
	// Ports are guessed from firstPort on: below, NATs give none to sockets that
	// have none there themselves (RFC 4787, section 4.2.1).
	firstPort, guessedPorts = 1024, 65536 - 1024
	// maxGuesses is how many ports the guesser tries in one attempt, none twice:
	// the chance that none of them is one of the 256 is 0.03 %.
	maxGuesses = 2000
	// birthdayTick is the distance of what is sent in an attempt. With guessesPerTick
	// it is 250 datagrams, or 30 KB, a second: 8 s for all guesses, and 0.7 s for
	// half of all pairs.
	birthdayTick   = 20 * time.Millisecond
	guessesPerTick = 5
	// opensPerTick sends from all sockets within a third of a second; refreshPerTick
	// does so again every 2.6 s, for what was lost, and for the mappings.
	opensPerTick, refreshPerTick = 16, 2
	// lateTicks bounds what a call that comes late makes up for.
	lateTicks = 4
	// birthdayGrace is how long the ordinary probes, of which there are four within
	// it, are given to make an attempt unnecessary.
	birthdayGrace = time.Second
	// attemptTime is how long an attempt lasts: 8 s of guesses, and what the word
	// over the relay and the answers need.
	attemptTime = 10 * time.Second
	// verifyTime is how long both wait, once a guess seems right, for its proof.
	verifyTime = 2 * time.Second
	// turnRetry is how often it is asked whether another peer's attempt is over.
	turnRetry = 100 * time.Millisecond
	// guessedLife is for how long an address that was guessed is remembered, and
	// its socket kept, after its last answer: what NATs keep a mapping for at least
	// (RFC 4787, section 4.3, REQ-5).
	guessedLife = 2 * time.Minute

	// After an attempt that failed the next one waits for birthdayBackoff, twice as
	// long each time up to 80 minutes, unless one of the two moves: what failed
	// with one chance in 3,000 does so for a reason.
	birthdayBackoff = 5 * time.Minute
	maxDoublings    = 4
	// attemptBurst and attemptInterval bound the attempts with one peer, whatever
	// happens and whatever it says: a hostile one can make this node send 2,000
	// datagrams to an address of its choice in 5 minutes, fewer bytes than by
	// probes (probeInterval).
	attemptBurst    = 3
	attemptInterval = 5 * time.Minute
	// openBurst and openInterval bound the attempts of this node as opener, with
	// all peers: a thousand lines in its NAT's table at the worst.
	openBurst    = 3
	openInterval = time.Minute
	// guessBurst and guessInterval bound the guesses of this node, for all peers:
	// an attempt and its answer at once, and as many again in the two minutes after
	// which its NAT has forgotten them.
	guessBurst    = 2500
	guessInterval = 60 * time.Millisecond
	// mappingBurst and mappingInterval are the budget of what the peer says of its
	// mapping.
	mappingBurst    = 8
	mappingInterval = time.Second
)

// BirthdayBudget is what the agents of one node may spend together on guessing
// ports. One attempt in each role is under way at a time. It is no more safe for
// concurrent use than its agents, which must all be used by one goroutine.
type BirthdayBudget struct {
	opener, guesser turn
	opens, guesses  budget
	sockets         uint32 // numbers that were used
}

// NewBirthdayBudget returns a budget of which nothing is used.
func NewBirthdayBudget(now time.Time) *BirthdayBudget {
	return &BirthdayBudget{
		opens:   newBudget(openBurst, openInterval, now),
		guesses: newBudget(guessBurst, guessInterval, now),
	}
}

// turn is whose attempt is under way. It ends by itself, for agents that are not
// used any more.
type turn struct {
	of    *Agent
	until time.Time
}

// free reports whether a may have the turn.
func (t *turn) free(a *Agent) bool { return t.of == nil || t.of == a || !a.now.Before(t.until) }

func (t *turn) take(a *Agent) { t.of, t.until = a, a.now.Add(attemptTime+verifyTime) }

func (t *turn) leave(a *Agent) {
	if t.of == a {
		t.of = nil
	}
}

// BirthdayRole says what an Agent does in an attempt.
type BirthdayRole uint8

const (
	// BirthdayNone means that no attempt is under way.
	BirthdayNone BirthdayRole = iota
	// BirthdayOpener sends from many sockets.
	BirthdayOpener
	// BirthdayGuesser sends to many ports.
	BirthdayGuesser
)

// String returns the role in one word, which never changes.
func (r BirthdayRole) String() string {
	switch r {
	case BirthdayNone:
		return "none"
	case BirthdayOpener:
		return "opener"
	case BirthdayGuesser:
		return "guesser"
	}
	return "unknown"
}

// birthday is the state of guessing with one peer.
type birthday struct {
	mine, theirs disco.Mapping // without ports; no valid Public where not known
	tell         bool          // the peer is to be told of mine

	role  BirthdayRole
	began time.Time
	next  time.Time // when to go on; zero for not
	ticks int       // that are due
	hit   time.Time // when a guess seemed right, zero for not (any more)
	sent  int       // probes of this attempt

	attempt uint64 // of the opener, and the session of what is sent
	seq     uint64

	// The opener's. Sockets are numbered from 1, and no number is used again, for
	// no peer of the node.
	first  uint32 // of the attempt
	winner uint32 // by which the hit came
	kept   uint32 // that a path uses, from an attempt before; 0 for none

	// The guesser's.
	offer  time.Time // until when the peer's offer stands, zero for none
	taken  uint64    // the attempt that was offered last
	tried  []uint64  // ports, a bit each, from firstPort on
	needed time.Time // since when there is no other way, zero for there is

	failures int
	again    time.Time // not before
	attempts budget
	heard    budget
}

// SetLocalMapping says at which IPv4 address a server saw the node's own port, and
// whether each destination sees another port of it. The zero value means that
// this is not known; no ports are guessed then.
func (a *Agent) SetLocalMapping(public netip.AddrPort, varies bool, now time.Time) {
	a.advance(now)
	mine := disco.Mapping{}
	if public = unmap(public); public.Addr().Is4() && public.Port() != 0 {
		mine = disco.Mapping{Public: public, Varies: varies}
	}
	if differ(a.birthday.mine, mine) {
		a.endBirthday()
		a.birthday.renew()
		a.birthday.tell = a.active && a.primary.Kind != Direct
	}
	a.birthday.mine = mine
	a.flush()
}

// HandleMapping takes what the peer says, over the relay, of the NAT in front of
// it. The error is ErrBudget or ErrAddress.
func (a *Agent) HandleMapping(m disco.Mapping, now time.Time) error {
	a.advance(now)
	defer a.flush()
	b := &a.birthday
	if !b.heard.take(a.now) {
		a.stats.MappingsOverBudget++
		return ErrBudget
	}
	public := unmap(m.Public)
	if !public.Addr().Is4() || !a.usable(public) {
		return ErrAddress
	}
	theirs := disco.Mapping{Public: public, Varies: m.Varies}
	if differ(b.theirs, theirs) {
		a.endBirthday()
		b.renew()
	}
	b.theirs = theirs
	if m.Ports > 0 && m.Attempt != b.taken {
		b.taken, b.offer = m.Attempt, a.now.Add(attemptTime)
		if b.role == BirthdayGuesser {
			a.endBirthday() // of an offer that is withdrawn
		}
	}
	return nil
}

// differ reports whether one says another thing than the other. The port of one
// that varies is nobody's concern.
func differ(one, other disco.Mapping) bool {
	return one.Varies != other.Varies || one.Public.Addr() != other.Public.Addr() ||
		!one.Varies && one.Public.Port() != other.Public.Port()
}

// renew makes an attempt worth its while again: something changed.
func (b *birthday) renew() { b.failures, b.again = 0, time.Time{} }

// Sockets returns which further sockets are to be open: the one of a path that
// works, 0 for none, and count from first on, 0 for none. Those that Transmits
// leave by are opened when there is something to send; all others are to be
// closed.
func (a *Agent) Sockets() (kept, first, count uint32) {
	if a.birthday.role == BirthdayOpener {
		return a.birthday.kept, a.birthday.first, birthdaySockets
	}
	return a.birthday.kept, 0, 0
}

// opens reports whether this node is the one to open sockets, and there is need.
func (a *Agent) opens() bool {
	b := &a.birthday
	return b.mine.Varies && b.theirs.Public.IsValid() && !b.theirs.Varies && a.relay && a.wantsBirthday()
}

// guesses reports whether this node is the one to guess ports, and there is need.
func (a *Agent) guesses() bool {
	b := &a.birthday
	return b.mine.Public.IsValid() && !b.mine.Varies && b.theirs.Varies && a.wantsBirthday()
}

func (a *Agent) wantsBirthday() bool {
	return a.cfg.Birthday != nil && a.active && a.primary.Kind != Direct && !slices.ContainsFunc(a.candidates, a.alive)
}

// weighBirthday begins to wait for an attempt where there is need of one, and ends
// the one that is not needed any more.
func (a *Agent) weighBirthday() {
	b := &a.birthday
	opens := a.opens()
	needed := opens || a.guesses()
	switch {
	case !needed:
		a.winBirthday()
		a.endBirthday()
		if b.needed = (time.Time{}); !b.offer.IsZero() {
			b.offer, b.taken = time.Time{}, 0 // it is made again, and may be of use then
		}
		return
	case b.needed.IsZero():
		b.needed = a.now
	}
	if b.role == BirthdayNone && b.next.IsZero() {
		switch {
		case opens:
			b.next = later(later(b.needed.Add(birthdayGrace), b.again), a.now)
		case !b.offer.IsZero():
			b.next = later(b.again, a.now)
		}
	}
}

// winBirthday notes that an attempt has led to a path, if it has.
func (a *Agent) winBirthday() {
	b := &a.birthday
	if b.role == BirthdayNone || !slices.ContainsFunc(a.candidates, func(c *candidate) bool {
		return c.sources&SourceGuessed != 0 && a.alive(c) && c.socket == b.winner
	}) {
		return
	}
	a.stats.BirthdaysWon++
	b.renew()
	if b.role == BirthdayOpener {
		kept := b.kept
		b.kept, b.winner = b.winner, 0
		a.leaveSocket(kept)
	}
}

// endBirthday ends the attempt that is under way, and the wait for one.
func (a *Agent) endBirthday() {
	b := &a.birthday
	if b.role != BirthdayNone {
		a.cfg.Birthday.opener.leave(a)
		a.cfg.Birthday.guesser.leave(a)
	}
	winner := b.winner
	b.role, b.next, b.ticks, b.hit, b.winner, b.tried = BirthdayNone, time.Time{}, 0, time.Time{}, 0, nil
	a.leaveSocket(winner)
}

// leaveSocket forgets the candidates that are reached from a further socket.
func (a *Agent) leaveSocket(socket uint32) {
	if socket == 0 {
		return
	}
	for _, c := range a.candidates {
		if c.socket == socket {
			c.sources = 0
		}
	}
	a.prune()
}

// birthdayStep does what is due at a.now, and moves b.next on.
func (a *Agent) birthdayStep() {
	b := &a.birthday
	b.next = time.Time{}
	switch {
	case b.role == BirthdayNone && a.now.Before(b.again):
	case b.role == BirthdayNone:
		a.beginBirthday()
	case a.now.Sub(b.began) >= attemptTime && (b.hit.IsZero() || a.now.Sub(b.hit) >= verifyTime):
		a.stats.BirthdaysFailed++
		b.again = a.now.Add(birthdayBackoff << min(b.failures, maxDoublings))
		b.failures++
		b.offer = time.Time{}
		a.endBirthday()
	default:
		if !b.hit.IsZero() && a.now.Sub(b.hit) >= verifyTime {
			b.hit = time.Time{} // it was a mistake
			winner := b.winner
			b.winner = 0
			a.leaveSocket(winner)
		}
		if b.hit.IsZero() {
			b.ticks = min(b.ticks+1, lateTicks)
		}
		b.next = a.now.Add(birthdayTick)
	}
}

// beginBirthday begins an attempt, or waits for the turn.
func (a *Agent) beginBirthday() {
	b, shared := &a.birthday, a.cfg.Birthday
	opens := a.opens()
	if !opens && (!a.guesses() || b.offer.IsZero() || !a.now.Before(b.offer)) {
		b.offer = time.Time{}
		return
	}
	mine := &shared.guesser
	if opens {
		mine = &shared.opener
	}
	if b.next = b.attempts.when(a.now); opens {
		b.next = later(b.next, shared.opens.when(a.now))
	}
	if !mine.free(a) {
		b.next = later(b.next, a.now.Add(turnRetry))
	}
	if b.next.After(a.now) {
		return
	}
	var raw [8]byte
	if _, err := io.ReadFull(a.cfg.Rand, raw[:]); err != nil {
		a.stats.RandFailed++
		b.next = a.now.Add(turnRetry)
		return
	}
	mine.take(a)
	b.attempts.take(a.now)
	b.attempt, b.seq = binary.BigEndian.Uint64(raw[:])|1, 0
	b.began, b.sent, b.next, b.ticks = a.now, 0, a.now.Add(birthdayTick), 1
	a.stats.BirthdaysBegun++
	if !opens {
		b.role, b.offer, b.tried = BirthdayGuesser, time.Time{}, make([]uint64, guessedPorts/64)
		return
	}
	shared.opens.take(a.now)
	b.role, b.tell = BirthdayOpener, true
	b.first = shared.sockets + 1
	shared.sockets += birthdaySockets
}

// sendBirthday sends what is due of an attempt.
func (a *Agent) sendBirthday() {
	b := &a.birthday
	for ; b.ticks > 0; b.ticks-- {
		switch b.role {
		case BirthdayNone:
		case BirthdayOpener:
			n := refreshPerTick
			if b.sent < birthdaySockets {
				n = opensPerTick
			}
			for range n {
				a.transmit(Transmit{DirectFrom(b.first+uint32(b.sent%birthdaySockets), b.theirs.Public), b.ping()})
				a.stats.OpeningsSent++
				if b.sent++; b.sent%birthdaySockets == 0 {
					b.tell = true // again, if it was lost
				}
			}
		case BirthdayGuesser:
			for range guessesPerTick {
				a.guess()
			}
		}
	}
	if b.tell && a.relay && a.cfg.Birthday != nil && b.mine.Public.IsValid() {
		m := b.mine
		if b.role == BirthdayOpener {
			m.Ports, m.Attempt = birthdaySockets, b.attempt
		}
		a.stats.MappingsSent++
		a.transmit(Transmit{viaRelay, m})
	}
	b.tell = false
}

// ping returns a ping whose answer nobody waits for: whoever gets it sends a
// challenge of his own. It is of another session than challenges are, of which
// hundreds that are lost would make the peer's window move on.
func (b *birthday) ping() disco.Ping {
	b.seq++
	var id disco.TxID
	binary.BigEndian.PutUint64(id[:], b.attempt)
	binary.BigEndian.PutUint32(id[8:], uint32(b.seq))
	return disco.Ping{TxID: id, Session: b.attempt, Seq: b.seq}
}

// guess sends to one more port.
func (a *Agent) guess() {
	b := &a.birthday
	if b.sent == maxGuesses || !a.cfg.Birthday.guesses.take(a.now) {
		return
	}
	for range 16 { // one draw in twenty is below firstPort or was tried
		var raw [2]byte
		if _, err := io.ReadFull(a.cfg.Rand, raw[:]); err != nil {
			a.stats.RandFailed++
			return
		}
		port := binary.BigEndian.Uint16(raw[:])
		if port < firstPort || b.tried[(port-firstPort)/64]&(1<<((port-firstPort)%64)) != 0 {
			continue
		}
		b.tried[(port-firstPort)/64] |= 1 << ((port - firstPort) % 64)
		b.sent++
		a.stats.GuessesSent++
		a.transmit(Transmit{DirectTo(netip.AddrPortFrom(b.theirs.Public.Addr(), port)), b.ping()})
		return
	}
}

// listens reports whether pings to a further socket count: to the one that a path
// uses, or to any of an attempt until one of them has the say.
func (a *Agent) listens(socket uint32) bool {
	b := &a.birthday
	if socket == b.kept {
		return true
	}
	return b.role == BirthdayOpener && socket-b.first < birthdaySockets && (b.winner == 0 || b.winner == socket)
}

// meet returns the candidate that an authentic ping came from, and stops guessing
// where that shows that a guess was right. One socket has the say at a time: the
// peer would prove several otherwise, and use one that is then closed.
func (a *Agent) meet(from Path) *candidate {
	b := &a.birthday
	guessed := b.role == BirthdayOpener && from.Socket != 0 && from.Socket != b.kept ||
		b.role == BirthdayGuesser && from.Socket == 0 && from.Addr.Addr() == b.theirs.Public.Addr() && b.hit.IsZero()
	if !guessed || a.find(from) != nil {
		return a.observe(from)
	}
	if b.role == BirthdayGuesser {
		a.forgetGuessed(func(*candidate) bool { return true })
	}
	b.hit, b.winner = a.now, from.Socket
	c := a.add(from, SourceGuessed)
	c.guessed = a.now
	return c
}

// forgetGuessed makes addresses that were guessed those of no source, if nothing
// else is known of them.
func (a *Agent) forgetGuessed(which func(*candidate) bool) {
	for _, c := range a.candidates {
		if c.sources&SourceGuessed != 0 && which(c) && c.path() != a.primary {
			if c.sources &^= SourceGuessed | SourceProved; c.socket != 0 {
				c.sources = 0
			}
		}
	}
	a.prune()
}

// forgetTime is when the first address that was guessed is forgotten, zero for
// never.
func (a *Agent) forgetTime() time.Time {
	var first time.Time
	for _, c := range a.candidates {
		if t := c.guessedUntil(); c.sources&SourceGuessed != 0 && c.path() != a.primary && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first
}

func (c *candidate) guessedUntil() time.Time {
	return later(c.guessed.Add(attemptTime), c.proved.Add(guessedLife))
}

// forgetStep forgets addresses that were guessed and have not answered for long,
// and the socket of one.
func (a *Agent) forgetStep() {
	a.forgetGuessed(func(c *candidate) bool { return !a.now.Before(c.guessedUntil()) })
	if b := &a.birthday; b.kept != 0 && !slices.ContainsFunc(a.candidates, func(c *candidate) bool { return c.socket == b.kept }) {
		b.kept = 0
	}
}
