package path

import (
	"net/netip"
	"slices"
	"time"
)

const (
	// strayProof is how long an address has to be proved from which packets of the
	// tunnel come, until they count as sent by somebody else. A peer that has moved, or
	// that its NAT has forgotten, answers the challenge that its first packet causes:
	// after a round trip, and where nothing but its packets tells of it, after 5 s
	// (REBIND). One to which no challenge gets through leaves that way itself, since its
	// own are not answered either: the relay carries after at most as long (F10). This is
	// twice that.
	strayProof = 10 * time.Second
	// strayGap is after how long without packets an address is forgotten, and a peer
	// that comes back there has all the time again. What comes less often is below
	// strayLimit.
	strayGap = 5 * time.Second
	// strayWindow and strayLimit are how many packets in which time from addresses that
	// were not proved for strayProof, or that are more than maxStrays at a time, raise
	// the alarm. None is what is to be expected; an unused session has six keepalives a
	// minute, which a network that is at odds with itself may bring by some way of
	// before, and any use of the tunnel is more than this.
	strayWindow = time.Minute
	strayLimit  = 20
	// maxStrays bounds the addresses that are waited for: a peer that moves has one, and
	// one more where it moves on at once.
	maxStrays = 8
)

// Stray is how many packets of the tunnel came from an address.
type Stray struct {
	From    Path // a direct one
	Packets uint64
}

// unprovedFrom is an address that packets come from and that is not proved.
type unprovedFrom struct {
	from        Path
	since, last time.Time
}

// strayWatch is what is remembered of strays.
type strayWatch struct {
	waiting []unprovedFrom
	strange recurrence     // packets that are too late, or from too many addresses, to be the peer's
	from    netip.AddrPort // of the last one
}

// HandleStrays says how many packets of the tunnel came from which addresses other than
// the primary's since the last call, and how many more from others that were not told
// apart. They need not be authentic: none of it moves anything, nor is anything sent in
// answer. It reports whether an alarm begins: more of them than networks cause come from
// where the peer does not prove to be. That comes once, and again after a minute
// without; Strayed says whether it lasts. It takes somebody who reads what the peer
// sends: packets carry a number of the session's.
func (a *Agent) HandleStrays(packets []Stray, others uint64, now time.Time) (begins bool) {
	a.advance(now)
	defer a.flush()
	s := &a.strayed
	if !s.strange.over(a.now) {
		s.from = netip.AddrPort{}
	}
	s.waiting = slices.DeleteFunc(s.waiting, func(w unprovedFrom) bool { return a.now.Sub(w.last) > strayGap || a.isProved(w.from) })
	a.stats.Strays += others
	strange := others
	for _, p := range packets {
		if a.isProved(p.From) {
			continue
		}
		a.stats.Strays += p.Packets
		i := slices.IndexFunc(s.waiting, func(w unprovedFrom) bool { return w.from == p.From })
		switch {
		case i < 0 && len(s.waiting) < maxStrays:
			s.waiting = append(s.waiting, unprovedFrom{p.From, a.now, a.now})
			continue
		case i >= 0:
			s.waiting[i].last = a.now
			if a.now.Sub(s.waiting[i].since) < strayProof {
				continue
			}
		}
		strange += p.Packets
		s.from = p.From.Addr
	}
	begins = s.strange.note(strange, a.now)
	if begins {
		a.stats.StrayAlarms++
	}
	return begins
}

// Strayed returns the last address from which packets of the tunnel came and which is
// not the peer's as far as it can be known, while they are too many; false while they
// are not. The address is not valid where they came from too many to be told apart.
func (a *Agent) Strayed(now time.Time) (from netip.AddrPort, ok bool) {
	return a.strayed.from, a.strayed.strange.over(now)
}

// isProved reports whether the peer has answered a challenge from an address since this
// machine's network changed, whatever became of that path since.
func (a *Agent) isProved(p Path) bool {
	c := a.find(p)
	return c != nil && !c.proved.IsZero()
}
