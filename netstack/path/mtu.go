package path

import (
	"io"
	"slices"
	"time"

	"github.com/warren-overlay/warren/netstack/disco"
)

const (
	// BaseMTU is the MTU at which a direct path is used until more or less is
	// proved: the least that IPv6 may have, and what nearly every path carries
	// with the tunnel's and the underlay's headers around it (RFC 8899 5.1.2,
	// BASE_PLPMTU).
	BaseMTU = 1280

	// tunnelOverhead is what the tunnel adds to a packet: 16 bytes of header and
	// 16 of authenticator.
	tunnelOverhead = 32
	// paddingUnit is what packets are padded to inside the tunnel, so that sizes
	// between two multiples of it are worth nothing.
	paddingUnit = 16

	// raiseFirst and raiseLast are how long a search that ended below the most
	// waits until it asks for more: soon at first, in case the answers were lost
	// and not the questions too long, then as RFC 8899 5.1.1 says
	// (PMTU_RAISE_TIMER). Each time is twice the last one.
	raiseFirst = 30 * time.Second
	raiseLast  = 10 * time.Minute

	// largeFor is for how long one HandleLarge counts: it is called once a second
	// while long packets leave.
	largeFor = 2 * time.Second
	// confirmEvery, confirmTries and confirmSpacing bound the time in which a
	// path that swallows long packets is noticed to 1.25 s: before the third
	// repetition of TCP, 1.4 s after the first loss at its least timeout of
	// 200 ms, so that the flow goes on then and not with the fourth, at 3 s. At
	// 20 % loss each way a confirmation fails wrongly once in 160.
	confirmEvery   = 500 * time.Millisecond
	confirmTries   = 5
	confirmSpacing = 150 * time.Millisecond

	// sizeBurst and sizeInterval are the budget of padded pings: two searches at
	// once with all their tries, and 29 KB/s at 1452 bytes in the long run. They
	// only go to addresses that answered.
	sizeBurst    = 80
	sizeInterval = 50 * time.Millisecond
	// maxSizes is how many padded pings without an answer are remembered: those
	// of one search (askDelays).
	maxSizes = 64
)

// askDelays are the distances of the tries of a search, or twice the round trip
// where that is longer.
var askDelays = [...]time.Duration{
	100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 400 * time.Millisecond,
}

// likely are the MTUs inside the tunnel, multiples of paddingUnit, that paths
// mostly have; a search asks for all of them at once, and between two of them in
// halves. For IPv4 and IPv6 below: 576 bytes; 1200; 1280; and the least that
// IPv6 may have inside.
var likely = [...]int{
	512, 1024, 1136, 1200, 1216,
	BaseMTU, 1344, 1392, 1408, 1440, // mobile networks, other tunnels, PPPoE, Ethernet
	4304, 8912, // FDDI, jumbo frames
}

// sizes is the search for the MTU of the path to one candidate (packetization
// layer path MTU discovery, RFC 8899, with padded pings). All its sizes are MTUs
// inside the tunnel.
type sizes struct {
	proved  int // the largest that was answered; 0 for none
	tooLong int // the smallest that was not answered, for all its tries; 0 for none

	asked   []int     // under way, rising; nil for no search
	tries   int       // of the search or of the confirmation
	next    time.Time // when to try again, to ask for more or to confirm; zero for not
	ended   time.Time // when the last search ended
	raises  int       // how often more was asked for since the path was new
	settled bool      // the first search has said something

	confirming time.Time // when the confirmation began, zero for none
	confirmed  time.Time // last answer to the proved size
	large      time.Time // until when long packets make confirmations

	outstanding []sizeChallenge // oldest first
}

type sizeChallenge struct {
	challenge
	size int
}

// datagram returns how long the longest datagram is that packets up to an MTU
// make.
func (a *Agent) datagram(mtu int) int {
	return min((mtu+paddingUnit-1)&^(paddingUnit-1), a.cfg.MTU) + tunnelOverhead
}

// most is the MTU that a search can find.
func (a *Agent) most() int {
	return min(a.cfg.MTU, (disco.MaxSize-tunnelOverhead)&^(paddingUnit-1))
}

func (a *Agent) base() int { return min(BaseMTU, a.most()) }

// MTU returns the MTU of the primary path inside the tunnel: the length of the
// longest packet that it is known to carry. Without a path it is Config.MTU, as
// nothing is carried then.
func (a *Agent) MTU() int {
	switch a.primary.Kind {
	case Direct:
		if c := a.find(a.primary); c != nil {
			return a.mtuOf(c)
		}
	case Relay:
		if a.cfg.RelayMTU > 0 {
			return min(a.cfg.MTU, a.cfg.RelayMTU)
		}
	case None:
	}
	return a.cfg.MTU
}

func (a *Agent) mtuOf(c *candidate) int {
	if c.sizes.proved > 0 {
		return c.sizes.proved
	}
	return a.base()
}

// MaxDatagram returns the length of the longest datagram that the primary path
// is known to carry whole, 0 where no limit is known.
func (a *Agent) MaxDatagram() int {
	if mtu := a.MTU(); a.primary.Kind == Direct && mtu < a.cfg.MTU {
		return a.datagram(mtu)
	}
	return 0
}

// HandleLarge says that packets that need a good part of the MTU are on their
// way to the peer: that the path carries them is confirmed while that goes on.
// It is cheap; once a second is enough.
func (a *Agent) HandleLarge(now time.Time) {
	a.advance(now)
	if c := a.find(a.primary); a.primary.Kind == Direct && c != nil && c.sizes.proved > 0 {
		c.sizes.large = a.now.Add(largeFor)
		if s := &c.sizes; s.asked == nil && s.confirming.IsZero() {
			s.next = sooner(s.next, s.confirmed.Add(confirmEvery))
		}
	}
	a.flush()
}

// SetMTU says that the tunnel's own device has another MTU, as Config.MTU. More is
// asked for at once.
func (a *Agent) SetMTU(mtu int, now time.Time) {
	a.advance(now)
	if mtu != a.cfg.MTU {
		a.cfg.MTU = mtu
		for _, c := range a.candidates {
			s := &c.sizes
			s.rest()
			s.outstanding, s.tooLong, s.raises, s.ended = nil, 0, 0, time.Time{}
			s.proved = min(s.proved, a.most()) // what carries more carries this
		}
	}
	a.flush()
}

// HandleTooLong says that a padded ping that NextTransmit gave is longer than the
// interface on the way there carries: sizes from that one on are not asked
// for any more. It does nothing for other pings.
func (a *Agent) HandleTooLong(to Path, m disco.Ping, now time.Time) {
	a.advance(now)
	if c := a.find(to); c != nil {
		a.refuseSize(c, m.TxID)
	}
	a.flush()
}

func (a *Agent) refuseSize(c *candidate, id disco.TxID) {
	s := &c.sizes
	i := slices.IndexFunc(s.outstanding, func(o sizeChallenge) bool { return o.id == id })
	if i < 0 {
		return
	}
	size := s.outstanding[i].size
	s.outstanding = slices.Delete(s.outstanding, i, i+1)
	if s.asked == nil || size <= s.proved {
		return // a confirmation: that no answer comes says the same
	}
	if s.tooLong == 0 || size < s.tooLong {
		s.tooLong = size
	}
	s.asked = slices.DeleteFunc(s.asked, func(other int) bool { return other >= size })
	switch {
	case len(s.asked) > 0:
	case s.proved == 0 && size >= a.base():
		s.asked, s.tries, s.next = a.narrow(s.tooLong), 1, a.now
	default:
		a.searched(c)
	}
}

// narrow returns the sizes below the base that are less than a size.
func (a *Agent) narrow(below int) (out []int) {
	for _, size := range likely {
		if size < min(a.base(), below) {
			out = append(out, size)
		}
	}
	return out
}

// sooner returns the earlier of two times, of which zero is none.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// sought reports whether enough is known of the MTU of the path to c that it can
// take over from one that works, and begins to find out where it is not. A path
// that is used before would make packets that are too long for now be refused,
// and applications remember that for many minutes.
func (a *Agent) sought(c *candidate) bool {
	if a.cfg.MTU == 0 || c.sizes.settled {
		return true
	}
	for _, other := range a.candidates {
		if other != c && other.addr.Addr() == c.addr.Addr() && other.sizes.proved > 0 {
			// A NAT gave the peer another port: the way there is the same.
			c.sizes = sizes{proved: other.sizes.proved, settled: true, ended: a.now}
			return true
		}
	}
	if c.sizes.asked == nil {
		a.search(c)
	}
	return false
}

// search begins to look for more than is proved.
func (a *Agent) search(c *candidate) {
	s := &c.sizes
	s.asked, s.tries, s.confirming = nil, 0, time.Time{}
	for _, size := range likely {
		if size > s.proved && size >= a.base() && size < a.most() {
			s.asked = append(s.asked, size)
		}
	}
	if s.proved < a.most() {
		s.asked = append(s.asked, a.most())
	}
	s.next = a.now
}

// reconfirm has the proved size of a new primary asked for again, if the last
// answer is old: the path may be another one by now.
func (a *Agent) reconfirm(c *candidate) {
	if s := &c.sizes; s.proved > 0 && s.asked == nil && a.now.Sub(s.confirmed) >= confirmEvery {
		s.confirming, s.tries, s.next = a.now, 0, a.now
	}
}

// rest stops asking.
func (s *sizes) rest() {
	s.asked, s.next, s.confirming = nil, time.Time{}, time.Time{}
	s.settled = s.settled && s.proved > 0
}

// sizeTime is when sizeStep has something to do.
func (a *Agent) sizeTime() (next time.Time) {
	if a.cfg.MTU == 0 || !a.active {
		return time.Time{}
	}
	for _, c := range a.candidates {
		next = sooner(next, c.sizes.next)
	}
	return next
}

// sizeSteps does what is due. It is not done in arrears: a try counts only when
// it was sent, so that a machine that slept does not take its sleep for a path
// that swallows long packets.
func (a *Agent) sizeSteps() {
	if a.cfg.MTU == 0 || !a.active {
		return
	}
	for _, c := range a.candidates {
		s := &c.sizes
		if c.path() == a.primary && !s.settled && s.asked == nil {
			a.search(c)
		}
		switch {
		case s.next.IsZero():
			if c.path() == a.primary && s.asked == nil && s.proved < a.most() {
				a.raise(c)
			}
		case s.next.After(a.now):
		case s.asked != nil:
			a.searchStep(c)
		case c.path() != a.primary:
			s.next, s.confirming = time.Time{}, time.Time{}
		case !s.confirming.IsZero():
			a.confirmStep(c)
		case a.now.Before(s.large) && s.proved > 0 && a.now.Sub(s.confirmed) >= confirmEvery:
			a.confirm(c)
		default:
			a.raise(c)
		}
	}
}

// raise asks for more where it is time to, and says when it will be.
func (a *Agent) raise(c *candidate) {
	s := &c.sizes
	s.next = time.Time{}
	if s.proved < a.most() {
		due := s.ended.Add(min(raiseFirst<<min(s.raises, 8), raiseLast))
		if !due.After(a.now) {
			s.raises++
			a.search(c)
			a.searchStep(c)
			return
		}
		s.next = due
	}
	if a.now.Before(s.large) && s.proved > 0 {
		s.next = sooner(s.next, s.confirmed.Add(confirmEvery))
	}
	if !s.next.IsZero() && !s.next.After(a.now) {
		s.next = a.now.Add(confirmSpacing)
	}
}

func (a *Agent) searchStep(c *candidate) {
	s := &c.sizes
	if s.tries > 0 && s.proved > 0 {
		a.settle(c)
	}
	if s.tries == len(askDelays) {
		a.searched(c)
		return
	}
	if s.tries == 1 && s.proved == 0 && s.asked[0] >= a.base() {
		// Not even the least came through: it may be a tunnel in a tunnel.
		s.asked = append(a.narrow(a.base()), s.asked...)
	}
	sent := false
	for _, size := range s.asked {
		sent = a.ask(c, size) || sent
	}
	s.next = a.now.Add(max(askDelays[s.tries], 2*c.rtt()))
	if sent {
		s.tries++
	}
}

// settle lets the path to c take over if it is the best.
func (a *Agent) settle(c *candidate) {
	if !c.sizes.settled {
		c.sizes.settled = true
		a.choose(ReasonProved)
	}
}

// searched ends one step of a search: everything that was asked for has an
// answer, or had all its tries.
func (a *Agent) searched(c *candidate) {
	s := &c.sizes
	if len(s.asked) > 0 {
		s.tooLong = s.asked[0]
	}
	s.asked, s.tries = nil, 0
	between := (s.proved + s.tooLong) / 2 &^ (paddingUnit - 1)
	if s.proved > 0 && s.tooLong > 0 && between > s.proved {
		s.asked = []int{between}
		s.next = a.now
	} else {
		s.ended = a.now
		a.raise(c)
	}
	a.settle(c)
}

// confirm asks whether the proved size still comes through.
func (a *Agent) confirm(c *candidate) {
	c.sizes.confirming, c.sizes.tries = a.now, 0
	a.confirmStep(c)
}

func (a *Agent) confirmStep(c *candidate) {
	s := &c.sizes
	if s.tries == confirmTries {
		if !c.proved.After(s.confirming) {
			// Short pings are not answered, either: the check of the path decides.
			s.confirming, s.tries = a.now, 1
		} else {
			a.stats.BlackHoles++
			s.confirming, s.raises, s.proved, s.tooLong = time.Time{}, 0, 0, 0
			a.search(c)
			a.searchStep(c)
			return
		}
	}
	if s.tries == 1 {
		a.check()
	}
	if a.ask(c, s.proved) {
		s.tries++
	}
	s.next = a.now.Add(max(confirmSpacing, 2*c.rtt()))
}

// ask sends a ping that makes a datagram as long as packets of the size do. It
// reports whether it did.
func (a *Agent) ask(c *candidate, size int) bool {
	if !a.sizeProbes.take(a.now) {
		a.stats.ProbesOverBudget++
		return false
	}
	var id disco.TxID
	if _, err := io.ReadFull(a.cfg.Rand, id[:]); err != nil {
		a.stats.RandFailed++
		return false
	}
	s := &c.sizes
	if len(s.outstanding) == maxSizes {
		s.outstanding = slices.Delete(s.outstanding, 0, 1)
	}
	s.outstanding = append(s.outstanding, sizeChallenge{challenge{id, a.now}, size})
	a.seq++
	a.stats.SizesSent++
	a.transmit(Transmit{c.path(), disco.Ping{
		TxID: id, Session: a.session, Seq: a.seq, Padding: max(0, a.datagram(size)-disco.PingSize),
	}})
	return true
}

// answerSize takes a pong and reports whether it answers a padded ping that was
// sent to c.
func (a *Agent) answerSize(c *candidate, id disco.TxID) bool {
	s := &c.sizes
	i := slices.IndexFunc(s.outstanding, func(o sizeChallenge) bool { return o.id == id })
	if i < 0 {
		return false
	}
	o := s.outstanding[i]
	s.outstanding = slices.Delete(s.outstanding, i, i+1)
	if a.now.Sub(o.at) > answerAge {
		return false
	}
	// A padded ping shows life as a short one does, but for the round trip.
	c.prove(a.now)
	if o.size >= s.proved {
		s.proved, s.confirmed = o.size, a.now
		if !s.confirming.IsZero() {
			s.confirming = time.Time{}
			s.next = a.now
		}
	}
	if o.size >= s.tooLong {
		s.tooLong = 0
	}
	if s.asked != nil {
		s.asked = slices.DeleteFunc(s.asked, func(size int) bool { return size <= s.proved })
		if len(s.asked) == 0 {
			a.searched(c)
		}
	}
	return true
}
