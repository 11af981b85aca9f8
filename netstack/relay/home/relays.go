package home

import (
	"cmp"
	"encoding/binary"
	"io"
	"slices"
	"time"
)

const (
	// maxConnections bounds the relays that a node is connected to at once: home,
	// standby, and those of peers with homes in 14 other places. The one that was
	// used longest ago gives way.
	maxConnections = 16
	// connectTimeout is when an attempt counts as failed where nobody says so.
	connectTimeout = 15 * time.Second
	// suspectAfter is how long a connection may take until others are preferred:
	// three round trips and a TLS handshake take a second where the way is long.
	suspectAfter = 2 * time.Second
	// idleClose is after how long without use a connection that is neither to the
	// home nor to the standby ends: longer than the pauses of what people do,
	// shorter than the minutes that an unused connection may cost a relay.
	idleClose = time.Minute

	// The wait between two attempts doubles, and is drawn from its upper half, so
	// that nodes that lost one relay together do not come back together. It ends at
	// busyBackoff while packets wait for a relay, so that they flow within 5 s of
	// its return (F06), with time to connect, and at idleBackoff otherwise: 10,000 nodes then come back
	// at 1,300 a second at most, which a relay admits beside its work.
	firstBackoff = 250 * time.Millisecond
	busyBackoff  = 3 * time.Second
	idleBackoff  = 15 * time.Second
	// demand is for how long after packets went over relays a node counts as busy.
	// What it was in the middle of when all relays went away should find it there
	// when they return.
	demand = 5 * time.Minute
	// steady is how long a connection must have lasted for the next failure to
	// count as a first one.
	steady = 10 * time.Second

	// probeInterval is how often a relay is measured by STUN at least: 150 bytes a
	// minute for each relay. Each wait is drawn from its upper half.
	probeInterval = time.Minute
	// retryProbe is after how long without an answer a probe is repeated, up to
	// maxLost times in a row; then the relay counts as not measured.
	retryProbe = 3 * time.Second
	maxLost    = 3
	// measureInterval is how often a relay without a STUN server, or whose server does
	// not answer since no UDP passes, is connected to at least, only to measure it,
	// which takes some round trips and a TLS handshake.
	measureInterval = 15 * time.Minute
	// measureWait is how long such a connection may take to give a round trip.
	measureWait = 5 * time.Second
	// revisitInterval is how often a relay that failed, and that nobody needs since
	// there is another, is connected to at least, to see whether it works again: until
	// then it is nobody's home, however near. 10,000 nodes that left one are 170
	// attempts a second at most, of the 1,300 that a relay admits beside its work.
	revisitInterval = 2 * time.Minute
	// askSpacing is the least time between two measurements that somebody asks for:
	// who asks over and over (a person, or a script of his) costs a relay without a
	// STUN server no more than a connection in that time, and learns nothing older.
	askSpacing = 10 * time.Second
	// maxSamples is how many round trips a relay's is the least of: with jitter the
	// least is what the way takes. sampleLife is how much older than the last one they
	// may be, as many as by STUN come in that time: a way that changed shows.
	maxSamples = 5
	sampleLife = maxSamples * probeInterval

	// A relay takes the home's place once it was better, by gainFloor and a
	// gainShare-th of the home's round trip, for gainTime: under the noise of an
	// ordinary way homes would flap, and each change costs every peer a delta.
	gainFloor = 10 * time.Millisecond
	gainShare = 5
	gainTime  = 90 * time.Second
	// settling is how long after the start, or a change of the network, the margin
	// alone decides: first measurements are still coming in.
	settling = 5 * time.Second
)

type state uint8

const (
	idle state = iota
	connecting
	ready
)

// relay is one relay of the configuration.
type relay struct {
	name string
	stun bool

	state    state
	since    time.Time // when state was entered
	failures int       // since a connection that lasted
	next     time.Time // before which there is no attempt; zero for at once
	used     time.Time // last use by a peer
	denied   bool      // there was no room for its connection
	leaving  bool      // it is about to stop
	revisit  time.Time // where it failed, when it is looked at again

	samples   []sample  // the last round trips
	probeAt   time.Time // next probe, where stun
	connectAt time.Time // next measuring connection, where visited
	lost      int       // probes without an answer
	silent    bool      // so many that its STUN server does not seem to be reached
	measured  time.Time // when the last of samples was taken
	asked     time.Time // when somebody last asked for a measurement, zero for never
	failed    bool      // the attempt to make it failed
	better    time.Time // since when it is better than the home, zero for not
}

// visited reports whether r is measured by connecting to it.
func (r *relay) visited() bool { return !r.stun || r.silent }

// sample is one round trip.
type sample struct {
	rtt time.Duration
	at  time.Time
}

// rtt returns the round trip, zero where none is known.
func (r *relay) rtt() time.Duration {
	if len(r.samples) == 0 {
		return 0
	}
	return slices.MinFunc(r.samples, func(a, b sample) int { return cmp.Compare(a.rtt, b.rtt) }).rtt
}

// measure takes a round trip of a connection, or of a probe. The next is due after a
// while.
func (m *Machine) measure(r *relay, rtt time.Duration, probe bool) {
	r.samples = slices.DeleteFunc(r.samples, func(s sample) bool { return m.now.Sub(s.at) >= sampleLife })
	if len(r.samples) == maxSamples {
		r.samples = slices.Delete(r.samples, 0, 1)
	}
	r.samples = append(r.samples, sample{rtt, m.now})
	r.measured = m.now
	if probe {
		r.silent = false
	}
	if r.visited() { // whose probes go on
		r.connectAt = m.now.Add(m.jittered(measureInterval))
		return
	}
	r.lost, r.probeAt = 0, m.now.Add(m.jittered(probeInterval))
}

// down reports whether the last that is known of the relay is a failure, that it
// takes too long to connect to, or that it is about to stop.
func (m *Machine) down(r *relay) bool {
	switch r.state {
	case ready:
		return r.leaving
	case connecting:
		return r.failures > 0 || m.now.Sub(r.since) >= suspectAfter
	case idle:
	}
	return r.failures > 0
}

// busy reports whether packets wait for a relay, or may.
func (m *Machine) busy() bool { return !m.used.IsZero() && m.now.Sub(m.used) < demand }

// closed notes the end of a connection or of an attempt.
func (m *Machine) closed(r *relay) {
	if r.state == ready {
		m.stats.ConnectionLosses++
		if m.now.Sub(r.since) >= steady {
			r.failures = 0
		}
	} else {
		m.stats.ConnectFailures++
	}
	r.state, r.since, r.leaving = idle, m.now, false
	r.failed = true
	r.samples = nil // what comes back may be far away
	limit := idleBackoff
	if m.busy() {
		limit = busyBackoff
	}
	wait := min(firstBackoff<<min(r.failures, 10), limit)
	r.failures++
	jittered := m.jittered(wait)
	r.next = m.now.Add(jittered)
	// The one draw does for both. In microseconds the product is 2e18 at most.
	r.revisit = m.now.Add(revisitInterval * (jittered / time.Microsecond) / (wait / time.Microsecond))
	for _, p := range m.active {
		if p.via == r {
			m.lose(p, r)
		}
	}
}

// jittered draws a wait from the upper half of the given one.
func (m *Machine) jittered(wait time.Duration) time.Duration {
	var raw [2]byte
	if _, err := io.ReadFull(m.cfg.Rand, raw[:]); err != nil {
		return wait
	}
	return wait/2 + wait/2*time.Duration(binary.BigEndian.Uint16(raw[:]))>>16
}

// attempt returns when r may be connected to. A wait that began while nobody
// needed relays is cut short when somebody does.
func (m *Machine) attempt(r *relay) time.Time {
	if latest := r.since.Add(busyBackoff); m.busy() && r.next.After(latest) {
		return latest
	}
	return r.next
}

// drop forgets a relay that is not configured any more.
func (m *Machine) drop(r *relay) {
	if r.state != idle {
		m.emit(Output{Kind: Disconnect, Relay: r.name})
	}
	if m.home == r {
		m.setHome(nil)
	}
	for _, p := range m.ordered() {
		if p.via == r {
			m.setRoute(p, nil)
		}
		p.forget(r)
	}
}

// probeDue measures the relays whose time it is.
func (m *Machine) probeDue() {
	for _, r := range m.relays {
		if !r.stun || m.now.Before(r.probeAt) {
			continue
		}
		if r.lost == maxLost {
			r.lost = 0
			if !r.silent {
				r.silent, r.connectAt = true, m.now
				if r.state != ready { // else the connection measures it
					r.samples = nil
				}
			}
			r.probeAt = m.now.Add(m.jittered(probeInterval))
			continue
		}
		r.lost++
		r.probeAt = m.now.Add(retryProbe)
		m.emit(Output{Kind: Probe, Relay: r.name})
	}
}

// chooseHome sets the home to the best relay there is.
func (m *Machine) chooseHome() {
	if m.home != nil && m.down(m.home) {
		if best := m.bestBut(m.home); best != nil && !m.down(best) {
			m.setHome(best)
		}
	}
	if m.home == nil {
		m.setHome(m.bestBut(nil))
		return
	}
	least := time.Duration(0)
	if rtt := m.home.rtt(); rtt > 0 {
		least = rtt - gainFloor - rtt/gainShare
	}
	var best *relay
	for _, r := range m.relays {
		if r == m.home || m.down(r) || r.rtt() == 0 || m.home.rtt() == 0 || r.rtt() >= least {
			r.better = time.Time{}
			continue
		}
		if r.better.IsZero() {
			r.better = m.now
		}
		due := m.now.Sub(r.better) >= gainTime || m.now.Sub(m.began) < settling
		if due && (best == nil || r.rtt() < best.rtt()) {
			best = r
		}
	}
	if best != nil {
		m.setHome(best)
	}
}

// bestBut returns the relay that is the best home beside the given one: one that
// works before one that failed, one that is connected where none was measured,
// the nearest, and the first.
func (m *Machine) bestBut(not *relay) *relay {
	var best *relay
	for _, r := range m.relays {
		if r != not && (best == nil || m.compareHomes(r, best) < 0) {
			best = r
		}
	}
	return best
}

func (m *Machine) compareHomes(a, b *relay) int {
	if m.down(a) != m.down(b) {
		return order(m.down(b))
	}
	ra, rb := a.rtt(), b.rtt()
	switch {
	case ra > 0 && rb > 0 && ra != rb:
		return order(ra < rb)
	case (ra > 0) != (rb > 0):
		return order(ra > 0)
	case (a.state == ready) != (b.state == ready):
		return order(a.state == ready)
	}
	return 0 // a later one is not better
}

// order returns a negative number where first holds.
func order(first bool) int {
	if first {
		return -1
	}
	return 1
}

func (m *Machine) setHome(r *relay) {
	if r == m.home {
		return
	}
	m.home = r
	for _, other := range m.relays {
		other.better = time.Time{}
	}
}

// standby returns the first relay that is not the home and works, or might.
func (m *Machine) standby() *relay {
	var last *relay
	for _, r := range m.relays {
		if r == m.home {
			continue
		}
		if !m.down(r) {
			return r
		}
		if last == nil {
			last = r
		}
	}
	return last
}

// wanted returns the relays to be connected to, the most urgent first, and those
// for which there is no room.
func (m *Machine) wanted() (out, over []*relay) {
	add := func(r *relay) {
		if r != nil && !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	add(m.home)
	if m.home != nil && (m.home.state != ready || !m.used.IsZero() && m.now.Sub(m.used) < idleClose) {
		add(m.standby())
	}
	rest := slices.Clone(m.relays)
	slices.SortStableFunc(rest, func(a, b *relay) int { return b.used.Compare(a.used) })
	for _, r := range rest {
		if !r.used.IsZero() && m.now.Sub(r.used) < idleClose {
			add(r)
		}
	}
	for _, r := range m.relays {
		if m.measuring(r) || m.revisiting(r) {
			add(r)
		}
	}
	if len(out) > maxConnections {
		return out[:maxConnections], out[maxConnections:]
	}
	return out, nil
}

// measuring reports whether r is to be connected to only to measure it. An
// attempt that gave nothing is over for good with its connectAt (giveUp).
func (m *Machine) measuring(r *relay) bool {
	if !r.visited() || len(m.relays) == 1 || m.now.Before(r.connectAt) {
		return false
	}
	return (!m.down(r) || r.awaited(m.now)) && (r.state == idle || m.now.Sub(r.since) < measureWait)
}

// revisiting reports whether r, which failed, is to be connected to only to see
// whether it works again: until it was measured, which shows that it does, or its
// time is over.
func (m *Machine) revisiting(r *relay) bool {
	if r.failures == 0 || len(m.relays) == 1 || m.now.Before(r.revisit) {
		return false
	}
	return r.state == idle || m.now.Sub(r.since) < measureWait && (r.state != ready || r.measured.Before(r.since))
}

// HandleMeasure says that somebody wants to know how far the relays are now. Those
// that were measured in the last askSpacing, or asked for, are not measured again;
// of those that have to be connected to, as many are at a time as there is room for.
// Relays that failed are tried again, when their wait for another attempt is over, also
// where a STUN server beside them has just answered. Measuring says when all is over.
func (m *Machine) HandleMeasure(now time.Time) {
	m.begin(now)
	for _, r := range m.relays {
		if m.now.Sub(r.asked) < askSpacing || r.failures == 0 && m.now.Sub(r.measured) < askSpacing {
			continue
		}
		r.asked, r.failed = m.now, false
		r.lost, r.probeAt = 0, m.now
		if r.state == ready {
			m.emit(Output{Kind: Measure, Relay: r.name})
		} else {
			r.connectAt, r.revisit = m.now, m.now
		}
	}
	m.settle()
}

// Measuring reports whether a measurement that was asked for is under way. It is
// over, one way or the other, within measureWait.
func (m *Machine) Measuring() bool {
	return slices.ContainsFunc(m.relays, func(r *relay) bool { return r.awaited(m.now) })
}

// awaited reports whether r is to be measured since somebody asked, or tried again where
// it failed, and may still be.
func (r *relay) awaited(now time.Time) bool {
	tried := r.state == connecting && r.failures > 0
	return !r.asked.IsZero() && !r.failed && (tried || r.measured.Before(r.asked)) && now.Sub(r.asked) < measureWait
}

// giveUp ends attempts to measure that gave nothing.
func (m *Machine) giveUp() {
	for _, r := range m.relays {
		if r.visited() && !m.now.Before(r.connectAt) && (m.down(r) && !r.awaited(m.now) || r.state != idle && m.now.Sub(r.since) >= measureWait) {
			r.connectAt = m.now.Add(m.jittered(measureInterval))
		}
	}
}

// connect brings the connections into line with what is wanted.
func (m *Machine) connect() {
	m.giveUp()
	wanted, over := m.wanted()
	for _, r := range m.relays {
		denied := slices.Contains(over, r)
		if denied && !r.denied {
			m.stats.OverCap++
		}
		r.denied = denied
		if r.state == connecting && m.now.Sub(r.since) >= connectTimeout {
			m.emit(Output{Kind: Disconnect, Relay: r.name})
			m.closed(r)
		}
		if r.state != idle && !slices.Contains(wanted, r) {
			m.emit(Output{Kind: Disconnect, Relay: r.name})
			if m.down(r) && !r.leaving && (r.failures > 0 || !r.measured.After(r.since)) {
				m.closed(r) // it had its time, and was not only to be measured
				continue
			}
			if r.state == ready && !r.leaving {
				r.failures = 0 // it worked for as long as it was wanted
			}
			r.state, r.since, r.leaving = idle, m.now, false
		}
	}
	for _, r := range wanted {
		if r.state == idle && !m.now.Before(m.attempt(r)) {
			r.state, r.since = connecting, m.now
			m.emit(Output{Kind: Connect, Relay: r.name})
		}
	}
}

// deadline returns when there is something to do, zero for never.
func (m *Machine) deadline() time.Time {
	var next time.Time
	wanted, _ := m.wanted()
	for _, r := range m.relays {
		switch r.state {
		case idle:
			if slices.Contains(wanted, r) {
				next = earlier(next, later(m.attempt(r), m.now))
			}
		case connecting:
			next = earlier(next, r.since.Add(connectTimeout))
			if end := r.since.Add(suspectAfter); end.After(m.now) {
				next = earlier(next, end)
			}
		case ready:
		}
		if r.stun {
			next = earlier(next, r.probeAt)
		}
		switch {
		case !r.visited() || len(m.relays) == 1:
		case r.connectAt.After(m.now):
			next = earlier(next, r.connectAt)
		case r.state != idle:
			next = earlier(next, r.since.Add(measureWait))
		}
		if !r.better.IsZero() {
			next = earlier(next, r.better.Add(gainTime))
		}
		if r.awaited(m.now) {
			next = earlier(next, r.asked.Add(measureWait))
		}
		if r.failures > 0 && len(m.relays) > 1 {
			switch {
			case r.revisit.After(m.now):
				next = earlier(next, r.revisit)
			case m.revisiting(r) && r.state != idle:
				next = earlier(next, r.since.Add(measureWait))
			}
		}
		if end := r.used.Add(idleClose); !r.used.IsZero() && end.After(m.now) {
			next = earlier(next, end)
		}
	}
	if end := m.used.Add(idleClose); !m.used.IsZero() && end.After(m.now) {
		next = earlier(next, end)
	}
	for _, p := range m.active {
		next = earlier(earlier(next, m.checkTime(p)), m.tunnelTime(p))
	}
	return next
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
