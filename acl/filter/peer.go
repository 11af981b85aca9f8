package filter

import (
	"math"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// Device is what all Peers of one device share: a Config made ready for use. It
// is immutable and safe for concurrent use.
type Device struct {
	Config
	overlay, protected ranges
	broadcasts         []packet.Address
}

// NewDevice makes a Config ready. It keeps no slice of it.
func NewDevice(cfg Config) *Device {
	d := &Device{Config: cfg, overlay: newRanges(cfg.Overlay), protected: newRanges(cfg.Protected)}
	if d.MTU == 0 {
		d.MTU = defaultMTU
	}
	// The last address of a connected IPv4 subnet is its broadcast address; a
	// subnet of one or two addresses has none (RFC 3021).
	for _, p := range slices.Concat(cfg.Protected, cfg.Connected) {
		if p.IsValid() && p.Addr().Is4() && p.Bits() > 0 && p.Bits() < 31 {
			d.broadcasts = append(d.broadcasts, rangeOf(p).last)
		}
	}
	d.Overlay, d.Protected, d.Connected = nil, nil, nil
	return d
}

// Peer is the filter's state for one peer. It is not safe for concurrent use.
type Peer struct {
	shared     *Device
	self, peer side
	rules      *ruleset.PeerRules
	// candidate is asked beside rules and decides nothing; nil for none.
	candidate *ruleset.PeerRules
	// generation counts what rules, identities and settings the flows were
	// matched against. A flow of an older one is matched again before its next
	// packet.
	generation uint32
	shieldsUp  bool
	removed    bool

	base time.Time // when tick was 0
	// flows and its helpers. due is a time before which no flow ends.
	flows     table
	due       int64
	lastTick  int64
	lastSweep int64
	sweeping  bool
	cursor    int

	ends       int64 // the tick from which on no packet passes
	fragments  []fragmentRecord
	icmpErrors [2]bucket // by Direction
	rejects    []destinationBucket

	passed [2][families]uint64
	drops  *Counters // nil until the first drop
	cuts   queue[Cut]
	events *eventLog
}

// never is a tick that is not reached.
const never = math.MaxInt64

// SetEnd says when the peer stops being one: from then on no packet passes, also
// before the owner has called Remove. What a suspended machine slept through counts
// as in the times that rules speak of. The zero time is never, which it is at first.
func (p *Peer) SetEnd(end, now time.Time) {
	p.ends = never
	if !end.IsZero() {
		p.ends = after(p.clock(now), end.Sub(p.base.Round(0).Add(time.Duration(p.clock(now)))))
	}
}

// NewPeer returns the state for one peer: no flows, shields down. self and peer
// are what the two certificates vouch for, rules the rule set narrowed to the
// two; nil rules deny everything. The identities are not kept.
func NewPeer(device *Device, self, peer *ident.Identity, rules *ruleset.PeerRules, now time.Time) *Peer {
	p := &Peer{shared: device, rules: rules, base: now, flows: newTable(), ends: never, due: never, lastSweep: math.MinInt64}
	p.self, p.peer = newSides(self, peer)
	if device.Events {
		p.events = &eventLog{}
	}
	return p
}

// SetRules replaces identities and rules. From this moment on every flow is
// matched again before its next packet passes, and every flow within the calls
// of HandleTimeout that NextTimeout then asks for. What no longer matches ends,
// and comes out of NextCut. What was remembered of fragments is forgotten. The
// identities are not kept.
func (p *Peer) SetRules(self, peer *ident.Identity, rules *ruleset.PeerRules, now time.Time) {
	p.self, p.peer = newSides(self, peer)
	p.rules = rules
	p.renew(now)
}

// SetCandidate replaces the rules of the candidate document, which are asked
// about every flow that the rules are asked about when it is opened or denied,
// for the records alone; nil for no candidate. Flows that there are, and
// everything that is decided, stay as they are.
func (p *Peer) SetCandidate(rules *ruleset.PeerRules) { p.candidate = rules }

// SetDevice replaces what all peers share, as after a change of the machine's
// own addresses. It acts on flows as SetRules does. Seed and Quota must be
// those of the device that it replaces.
func (p *Peer) SetDevice(device *Device, now time.Time) {
	p.shared = device
	p.renew(now)
}

// SetShields raises or lowers shields: while they are up no flow from the peer
// is admitted, whatever the rules say, and those that it had opened end.
func (p *Peer) SetShields(up bool, now time.Time) {
	if p.shieldsUp != up {
		p.shieldsUp = up
		p.renew(now)
	}
}

func (p *Peer) renew(now time.Time) {
	p.tick(now)
	p.generation++
	p.forgetFragments()
	if p.flows.length() > 0 && !p.removed {
		p.beginSweep()
	}
}

// Remove ends everything. The local sides of the flows come out of NextCut; the
// peer is told nothing. No packet passes afterwards.
func (p *Peer) Remove() {
	p.removed = true
	p.forgetFragments()
	for p.flows.order.oldest != 0 {
		p.end(p.flows.order.oldest, EndRemoved)
	}
	p.flows = newTable()
	p.sweeping = false
}

// Flows returns how many flows the table holds, those included that ended for
// want of packets and were not yet swept out.
func (p *Peer) Flows() int { return p.flows.length() }

// TakeCounters adds what was counted since the last call to c. A caller that
// removes a Peer should call it once more before.
func (p *Peer) TakeCounters(c *Counters) {
	for d := range p.passed {
		for f := range p.passed[d] {
			c.packets[d][f][Passed] += p.passed[d][f]
		}
	}
	p.passed = [2][families]uint64{}
	if p.drops != nil {
		c.Add(p.drops)
		p.drops = nil
	}
}

// tick returns how long after base now is, in nanoseconds, by the monotonic
// clock where now has it. Idle times are measured in ticks.
func (p *Peer) tick(now time.Time) int64 {
	p.lastTick = int64(now.Sub(p.base))
	return p.lastTick
}

// clock is like tick, but never behind the wall clock: it counts the time that
// a machine was suspended, and does not stand still where the clock is set
// back. What rules say of time is measured with it.
func (p *Peer) clock(now time.Time) int64 {
	return max(int64(now.Sub(p.base)), int64(now.Round(0).Sub(p.base)))
}

// wall is the time that the rules are asked about.
func (p *Peer) wall(now time.Time) time.Time {
	return p.base.Round(0).Add(time.Duration(p.clock(now)) - p.shared.Lead)
}

// beginSweep makes the next calls of HandleTimeout look at every flow.
func (p *Peer) beginSweep() {
	p.sweeping, p.cursor, p.due = true, 0, never
}

// NextTimeout returns when HandleTimeout should be called next, and false where
// there is nothing to wait for. The time may be past. It changes with every
// other call.
func (p *Peer) NextTimeout() (time.Time, bool) {
	switch {
	case p.sweeping:
		return p.base.Add(time.Duration(p.lastTick)), true
	case p.flows.length() == 0 && len(p.fragments) == 0:
		return time.Time{}, false
	}
	due := p.due
	for i := range p.fragments {
		due = min(due, p.fragments[i].expires)
	}
	if due == never {
		return time.Time{}, false
	}
	if p.lastSweep != math.MinInt64 {
		due = max(due, p.lastSweep+int64(sweepInterval))
	}
	return p.base.Add(time.Duration(due)), true
}

// HandleTimeout takes out what has ended and matches again what has to be. It
// looks at a bounded number of flows: a caller goes on while NextTimeout says
// so, and may let go of its lock in between.
func (p *Peer) HandleTimeout(now time.Time) {
	tick := p.tick(now)
	p.expireFragments(tick)
	if !p.sweeping {
		if p.flows.length() == 0 {
			p.flows = newTable()
			return
		}
		p.beginSweep()
	}
	stop := min(p.cursor+sweepStep, len(p.flows.entries))
	for ; p.cursor < stop; p.cursor++ {
		if p.flows.entries[p.cursor].flags&inUse == 0 {
			continue
		}
		if n := handle(p.cursor + 1); p.current(n, tick, now) {
			e := p.flows.at(n)
			p.due = min(p.due, e.deadline, e.until)
		}
	}
	if p.cursor == len(p.flows.entries) {
		p.sweeping = false
		p.lastSweep = tick
		if p.flows.length() == 0 {
			p.flows = newTable()
		}
	}
}

// current reports whether the flow has not ended, and ends it where it has:
// because it was idle for too long, or because the rules that it is matched
// against again no longer admit it.
func (p *Peer) current(n handle, tick int64, now time.Time) bool {
	e := p.flows.at(n)
	if e.deadline <= tick {
		p.end(n, EndIdle)
		return false
	}
	if e.generation == p.generation && (e.until == never || p.clock(now) < e.until) {
		return true
	}
	return p.rematch(n, now)
}

// rematch asks the rules again whether the flow may be, in the direction in
// which it was opened (P19).
func (p *Peer) rematch(n handle, now time.Time) bool {
	e := p.flows.at(n)
	d := e.opener()
	if d == Inbound && p.shieldsUp {
		p.end(n, EndShields)
		return false
	}
	verdict := ruleset.Verdict{}
	if p.mayOpen(d, e.key.local, e.key.remote) {
		verdict = p.decide(p.rules, d, &e.key, now)
	}
	until := p.untilOf(&verdict, e.opened, now)
	if !verdict.Allowed || until <= p.clock(now) {
		p.end(n, EndRule)
		return false
	}
	e.generation, e.until, e.rule = p.generation, until, verdict.Rule
	p.due = min(p.due, until)
	return true
}

// mayOpen reports whether the addresses are ones between which a flow can be
// opened in the direction; it is what check asks of the first packet.
func (p *Peer) mayOpen(d Direction, local, remote packet.Address) bool {
	l, r := p.self.place(local), p.peer.place(remote)
	if l == nowhere || r == nowhere || l != owned && p.unreachable(local) || r != owned && p.unreachable(remote) {
		return false
	}
	if d == Inbound {
		return r != beyond
	}
	return l != beyond
}

// decide asks the rules about a flow that is opened in direction d; nil rules
// deny it.
func (p *Peer) decide(rules *ruleset.PeerRules, d Direction, k *key, now time.Time) ruleset.Verdict {
	if rules == nil {
		return ruleset.Verdict{}
	}
	flow := ruleset.Flow{Source: k.remote.Addr(), Destination: k.local.Addr(), Protocol: k.protocol(), Port: k.localPort()}
	direction := ruleset.In
	if d == Outbound {
		direction = ruleset.Out
		flow.Source, flow.Destination, flow.Port = flow.Destination, flow.Source, k.remotePort()
	}
	at := now
	if rules.Timed() {
		at = p.wall(now)
	}
	if k.asked() == notEcho {
		return rules.Decide(direction, flow, at)
	}
	flow.Port = 0
	if p.shared.StrictEcho {
		return rules.Decide(direction, flow, at)
	}
	return rules.DecideEcho(direction, flow, at)
}

// untilOf returns the tick at which a flow that was opened at a tick must be
// matched again.
func (p *Peer) untilOf(v *ruleset.Verdict, opened int64, now time.Time) int64 {
	until := int64(never)
	if !v.Until.IsZero() {
		until = after(p.clock(now), v.Until.Sub(p.wall(now)))
	}
	if v.MaxSession > 0 {
		until = min(until, after(opened, v.MaxSession))
	}
	return until
}

// after returns the tick that lies d after t, never where that is too far.
func after(t int64, d time.Duration) int64 {
	if int64(d) > never-max(t, 0) {
		return never
	}
	return t + int64(d)
}

// opener returns the direction of the packet that opened the flow.
func (e *entry) opener() Direction {
	if e.flags&openedByPeer != 0 {
		return Inbound
	}
	return Outbound
}

// end takes the flow out and says so where somebody must know.
func (p *Peer) end(n handle, why End) {
	p.note(n, why)
	e := p.flows.at(n)
	p.flows.remove(n, hash(p.shared.Seed, &e.key))
	if p.shared.Quota != nil {
		p.shared.Quota.ReturnFlow()
	}
}

// note records the end of a flow, before it is taken out.
func (p *Peer) note(n handle, why End) {
	e := p.flows.at(n)
	p.noteEnded(e, why)
	if why != EndRule && why != EndShields && why != EndRemoved || e.key.asked() != notEcho ||
		e.key.protocol() == packet.TCP && (e.state == timeWait || e.state == closed) {
		return
	}
	if p.cuts.length() < MaxFlows {
		p.cuts.push(cutOf(e, why))
	}
}
