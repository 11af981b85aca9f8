package path

import "time"

const (
	// distressPatience is for how long a tunnel complains about a primary that
	// answers challenges until the primary is left: time for two more handshakes,
	// which are repeated every 5 s.
	distressPatience = 10 * time.Second
	// distressGap is after how long without a complaint the tunnel is taken to
	// work again: the time of three handshakes.
	distressGap = 15 * time.Second
	// barTime is for how long a path that carries no tunnel is not used; it
	// doubles up to maxBarTime for a path that fails again before it worked for
	// as long as that.
	barTime    = time.Minute
	maxBarTime = 16 * time.Minute
)

// distress is how long a tunnel has complained without a break.
type distress struct {
	since, last time.Time // zero for none
}

func (d *distress) note(now time.Time) {
	if d.since.IsZero() || now.Sub(d.last) > distressGap {
		d.since = now
	}
	d.last = now
}

// HandleDistress says that the tunnel gets no answer: its handshake was
// repeated in vain. The primary is checked, or a better one looked for, at once.
// A direct primary that answers every check while the tunnel goes on to complain
// carries nothing but challenges, and is left for a while if there is another
// way.
func (a *Agent) HandleDistress(now time.Time) {
	a.advance(now)
	a.use()
	if a.primary.Kind == Direct {
		a.distress.note(a.now)
		if c := a.find(a.primary); a.carriesNothing(c) {
			a.bar(c)
		} else {
			a.check()
		}
	} else {
		for _, c := range a.candidates {
			if a.now.Sub(c.wanted) >= distressInterval {
				a.schedule([]*candidate{c})
			}
		}
		if a.now.Sub(a.called) >= distressInterval {
			a.scheduleCall()
		}
	}
	a.flush()
}

// carriesNothing reports whether the primary c is to be left for another way.
func (a *Agent) carriesNothing(c *candidate) bool {
	if a.now.Sub(a.distress.since) < distressPatience || !c.proved.After(a.distress.since) {
		return false
	}
	if a.relay {
		return true
	}
	for _, other := range a.candidates {
		if other != c && a.alive(other) {
			return true
		}
	}
	return false
}

// bar leaves the primary c, and asks it again when the bar ends.
func (a *Agent) bar(c *candidate) {
	if a.now.Sub(c.barred) >= maxBarTime {
		c.bars = 0
	}
	c.barred = a.now.Add(min(barTime<<min(c.bars, 8), maxBarTime))
	c.bars++
	a.stats.Barred++
	a.choose(ReasonLost)
	a.schedule(a.candidates)
	a.scheduleCall()
}

// unbar says that c carries the tunnel.
func (a *Agent) unbar(c *candidate) {
	barred := a.now.Before(c.barred)
	c.barred, c.bars = time.Time{}, 0
	if barred && a.active {
		a.schedule([]*candidate{c})
	}
	if c.path() == a.primary {
		a.distress = distress{}
	}
}
