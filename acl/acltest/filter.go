package acltest

import (
	"net/netip"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// Filter is the packet filter for one peer, written down rule by rule (P0 to
// P23 of the design page) and with no thought of speed: flows are a list, rules
// are searched from the first to the last, every time is a time.Time. The fast
// filter must say the same about every packet.
type Filter struct {
	Config filter.Config
	// Budget is what all Filters of one device share; nil is no bound.
	Budget *Budget

	self, peer *ident.Identity
	rules      *ruleset.RuleSet
	candidate  *Filter // knows the candidate's labels and rules, and no flows
	shields    bool
	removed    bool
	epoch      int
	flows      []*flow // oldest first
	fragments  []*fragment
	errors     [2]credit
	rejects    map[netip.Addr]*credit
	cuts       []packet.Tuple
}

// Budget counts what the Filters of one device hold together.
type Budget struct{ Flows, Fragments int }

// TakeFlow implements filter.Quota, not for concurrent use.
func (b *Budget) TakeFlow() bool { return take(&b.Flows) }

// ReturnFlow implements filter.Quota.
func (b *Budget) ReturnFlow() { b.Flows++ }

// TakeFragment implements filter.Quota.
func (b *Budget) TakeFragment() bool { return take(&b.Fragments) }

// ReturnFragment implements filter.Quota.
func (b *Budget) ReturnFragment() { b.Fragments++ }

var _ filter.Quota = (*Budget)(nil)

func take(n *int) bool {
	if *n > 0 {
		*n--
		return true
	}
	return false
}

// flow is an entry of the connection table (P7).
type flow struct {
	local, remote         netip.Addr
	protocol              uint8
	localPort, remotePort uint16
	// echo flows are told apart by who asked with which identifier.
	echo       bool
	identifier uint16

	openedByPeer bool
	opened       time.Time
	ends         time.Time // without another packet
	asks         time.Time // when the rule must be asked again; zero is never
	epoch        int
	rule         ruleset.RuleID

	answered bool // both sides have spoken; for protocols other than TCP
	tcp      connection
}

// halfOpen reports whether the flow counts against the bound for half-open ones.
func (f *flow) halfOpen() bool {
	if f.protocol == packet.TCP {
		return f.tcp.phase == synSent || f.tcp.phase == bothSYN || f.tcp.phase == synAnswered
	}
	return !f.echo && !f.answered
}

func (f *flow) opener() filter.Direction {
	if f.openedByPeer {
		return filter.Inbound
	}
	return filter.Outbound
}

// credit is a token bucket of rate tokens a second, full at the start. Tokens
// are kept as the time that it takes to earn them.
type credit struct {
	started bool
	earned  time.Duration
	at      time.Time
}

func (c *credit) take(now time.Time, rate int) bool {
	price := time.Second / time.Duration(rate)
	if !c.full(now, rate) {
		c.earned += now.Sub(c.at)
	} else {
		c.earned = time.Duration(rate) * price
	}
	c.started, c.at = true, now
	if c.earned < price {
		return false
	}
	c.earned -= price
	return true
}

func (c *credit) full(now time.Time, rate int) bool {
	return !c.started || c.earned+now.Sub(c.at) >= time.Second/time.Duration(rate)*time.Duration(rate)
}

// NewFilter returns the reference filter for one peer.
func NewFilter(cfg filter.Config, budget *Budget, self, peer *ident.Identity, rules *ruleset.RuleSet) *Filter {
	if cfg.MTU == 0 {
		cfg.MTU = 1280
	}
	return &Filter{Config: cfg, Budget: budget, self: self, peer: peer, rules: rules, rejects: map[netip.Addr]*credit{}}
}

// SetRules does what filter.Peer.SetRules does (P19).
func (m *Filter) SetRules(self, peer *ident.Identity, rules *ruleset.RuleSet) {
	m.self, m.peer, m.rules = self, peer, rules
	m.renew()
}

// SetCandidate does what filter.Peer.SetCandidate does: the identities are those
// that the candidate document gives the two devices. A nil set is no candidate.
func (m *Filter) SetCandidate(self, peer *ident.Identity, rules *ruleset.RuleSet) {
	m.candidate = nil
	if rules != nil {
		m.candidate = NewFilter(m.Config, nil, self, peer, rules)
	}
}

// SetShields does what filter.Peer.SetShields does (P18).
func (m *Filter) SetShields(up bool) {
	if up != m.shields {
		m.shields = up
		m.renew()
	}
}

func (m *Filter) renew() {
	m.epoch++
	m.forgetFragments()
}

// Remove does what filter.Peer.Remove does (P20).
func (m *Filter) Remove() {
	m.removed = true
	m.forgetFragments()
	for len(m.flows) > 0 {
		m.end(m.flows[0], true)
	}
}

// Restart does what filter.Peer.HandOver does at a time, and TakeOver of the
// Peer of the next run at a later one (P9): flows go on if the snapshot is young
// enough and the rules admit them; nothing else is remembered.
func (m *Filter) Restart(saved, taken time.Time) {
	m.renew()
	m.errors, m.rejects = [2]credit{}, map[netip.Addr]*credit{}
	for _, f := range slices.Clone(m.flows) {
		if taken.Sub(saved) > 60*time.Second {
			m.end(f, false)
			continue
		}
		m.alive(f, taken)
	}
}

// HandleTimeout takes out everything that has ended and matches every flow of
// an older epoch again (P19).
func (m *Filter) HandleTimeout(now time.Time) {
	m.expireFragments(now)
	for _, f := range slices.Clone(m.flows) {
		m.alive(f, now)
	}
}

// Flows returns how many flows the table holds.
func (m *Filter) Flows() int { return len(m.flows) }

// TakeCuts returns the flows that were ended while both sides may believe in
// them, since the last call.
func (m *Filter) TakeCuts() []packet.Tuple {
	cuts := m.cuts
	m.cuts = nil
	return cuts
}

// Check decides on one packet.
func (m *Filter) Check(i *packet.Info, d filter.Direction, now time.Time) filter.Decision {
	if m.removed {
		return drop(filter.DropRemoved)
	}
	source, destination := i.Source.Addr(), i.Destination.Addr()
	local, remote := destination, source
	if d == filter.Outbound {
		local, remote = source, destination
	}

	// P4: what the local side sends to groups and neighbours stays here.
	if d == filter.Outbound && m.group(destination) {
		return drop(filter.DropMulticast)
	}
	// P2: source.
	sender, receiver := m.remotePlace, m.localPlace
	if d == filter.Outbound {
		sender, receiver = receiver, sender
	}
	from := sender(source)
	if from == nowhere {
		return drop(filter.DropSpoof)
	}
	// P3: destination.
	if receiver(destination) == nowhere {
		if m.group(destination) {
			return drop(filter.DropMulticast)
		}
		return drop(filter.DropDestination)
	}
	onlyReply := from == behindDefault

	// P12: the in-band control protocol.
	if m.Config.ControlProtocol != 0 && i.Protocol == m.Config.ControlProtocol {
		if d == filter.Inbound && m.remotePlace(source) == own && m.localPlace(destination) == own && !i.Fragment() {
			return filter.Decision{Verdict: filter.Control}
		}
		return drop(filter.DropControl)
	}
	// P6: fragments.
	if i.Fragment() {
		if reason := m.fragment(i, now); reason != filter.Passed {
			return drop(reason)
		}
		if i.Kind == packet.LaterFragment {
			return filter.Decision{Verdict: filter.Pass}
		}
	}
	switch i.Kind {
	case packet.ICMPOther: // P15
		return drop(filter.DropICMPType)
	case packet.ICMPError: // P14
		return m.icmpError(i, d, onlyReply, now)
	case packet.TCPSegment: // P9
		if !possible(i.Flags) {
			return drop(filter.DropTCPFlags)
		}
	}

	// P7, P8: the connection table.
	want := flow{
		local: local, remote: remote, protocol: i.Protocol,
		echo: i.Kind == packet.EchoRequest || i.Kind == packet.EchoReply, identifier: i.Identifier,
		openedByPeer: d == filter.Inbound, localPort: i.DestinationPort, remotePort: i.SourcePort,
	}
	if d == filter.Outbound {
		want.localPort, want.remotePort = i.SourcePort, i.DestinationPort
	}
	if i.Kind == packet.EchoReply {
		want.openedByPeer = d == filter.Outbound
	}
	if f := m.find(&want); f != nil && m.alive(f, now) {
		reopen := false
		if f.protocol == packet.TCP {
			var possible bool
			if possible, reopen = m.segment(f, i.Flags, d, now); !possible {
				return filter.Decision{Reason: filter.DropTCPState, Rule: f.rule}
			}
		} else {
			m.prolong(f, d, now)
		}
		if !reopen {
			m.remember(i, now, f.asks)
			return filter.Decision{Verdict: filter.Pass, Rule: f.rule}
		}
		m.end(f, false)
	}
	return m.open(&want, i, d, onlyReply, now)
}

func drop(r filter.Reason) filter.Decision { return filter.Decision{Reason: r} }

// open decides on a packet that belongs to no flow.
func (m *Filter) open(f *flow, i *packet.Info, d filter.Direction, onlyReply bool, now time.Time) filter.Decision {
	middle := false
	switch i.Kind {
	case packet.EchoReply, packet.SCTPPacket: // P11, P13
		return m.refuse(drop(filter.DropNoFlow), i, d, now)
	case packet.TCPSegment:
		if i.Flags&(packet.SYN|packet.ACK|packet.RST|packet.FIN) != packet.SYN {
			age := now.Sub(m.Config.Started)
			window := !m.Config.Started.IsZero() && age >= 0 && age < 120*time.Second
			if !window || i.Flags&(packet.SYN|packet.RST) != 0 {
				return m.refuse(drop(filter.DropNoFlow), i, d, now)
			}
			middle = true
		}
	}
	verdict, reason := m.admits(f, d, onlyReply, now)
	if reason != filter.Passed && middle {
		if v, r := m.admits(f, 1-d, false, now); r == filter.Passed {
			verdict, reason = v, r
			f.openedByPeer = !f.openedByPeer
		}
	}
	decision := filter.Decision{Reason: reason, Rule: verdict.Rule, Would: verdict.Would, WouldRule: verdict.WouldRule, Candidate: verdict.Candidate}
	if reason != filter.Passed {
		return m.refuse(decision, i, d, now)
	}
	f.tcp.phase = synSent
	if middle {
		f.tcp.phase = open
	}
	if !m.makeRoom(f) {
		decision.Reason = filter.DropQuota
		return decision
	}
	f.opened, f.epoch, f.rule = now, m.epoch, verdict.Rule
	f.asks = asks(verdict, now)
	m.flows = append(m.flows, f)
	switch {
	case middle:
		m.segment(f, i.Flags, d, now)
	case f.protocol == packet.TCP:
		f.ends = now.Add(60 * time.Second)
	default:
		m.prolong(f, d, now)
	}
	m.remember(i, now, f.asks)
	decision.Verdict, decision.NewFlow = filter.Pass, true
	return decision
}

// makeRoom keeps the bounds of P7 and P13 and reports whether there is room for
// another flow.
func (m *Filter) makeRoom(f *flow) bool {
	oldest := func(of func(*flow) bool) *flow {
		if at := slices.IndexFunc(m.flows, of); at >= 0 {
			return m.flows[at]
		}
		return nil
	}
	number := func(of func(*flow) bool) (n int) {
		for _, f := range m.flows {
			if of(f) {
				n++
			}
		}
		return n
	}
	isEcho := func(f *flow) bool { return f.echo }
	any := func(*flow) bool { return true }
	evict := func() {
		victim := oldest((*flow).halfOpen)
		if victim == nil {
			victim = oldest(any)
		}
		m.end(victim, false)
	}
	if f.echo && number(isEcho) >= 256 {
		m.end(oldest(isEcho), false)
	}
	if f.halfOpen() && number((*flow).halfOpen) >= 1024 {
		m.end(oldest((*flow).halfOpen), false)
	}
	if len(m.flows) >= 8192 {
		evict()
	}
	if m.Budget == nil || m.Budget.TakeFlow() {
		return true
	}
	if len(m.flows) == 0 {
		return false
	}
	evict()
	return m.Budget.TakeFlow()
}

// refuse lets the local side know, at most 10 times a second for each of at
// most 64 destinations at a time (P17).
func (m *Filter) refuse(decision filter.Decision, i *packet.Info, d filter.Direction, now time.Time) filter.Decision {
	if d == filter.Inbound || i.Fragment() || i.Kind == packet.EchoReply ||
		i.Kind == packet.TCPSegment && i.Flags&packet.RST != 0 {
		return decision
	}
	destination := i.Destination.Addr()
	if m.rejects[destination] == nil {
		busy := 0
		for _, c := range m.rejects {
			if !c.full(now, 10) {
				busy++
			}
		}
		if busy >= 64 {
			return decision
		}
		m.rejects[destination] = &credit{}
	}
	if m.rejects[destination].take(now, 10) {
		decision.Verdict = filter.Reject
	}
	return decision
}

func (m *Filter) find(want *flow) *flow {
	for _, f := range m.flows {
		if f.local == want.local && f.remote == want.remote && f.protocol == want.protocol && f.echo == want.echo &&
			f.localPort == want.localPort && f.remotePort == want.remotePort &&
			(!f.echo || f.identifier == want.identifier && f.openedByPeer == want.openedByPeer) {
			return f
		}
	}
	return nil
}

// alive reports whether a flow goes on at now, and ends it where it does not.
func (m *Filter) alive(f *flow, now time.Time) bool {
	if !now.Before(f.ends) {
		m.end(f, false)
		return false
	}
	if f.epoch == m.epoch && (f.asks.IsZero() || now.Before(f.asks)) {
		return true
	}
	d := f.opener()
	verdict, reason := m.admits(f, d, false, now)
	if reason != filter.Passed || verdict.MaxSession > 0 && now.Sub(f.opened) >= verdict.MaxSession {
		m.end(f, true)
		return false
	}
	f.epoch, f.rule = m.epoch, verdict.Rule
	f.asks = verdict.Until
	if verdict.MaxSession > 0 {
		f.asks = sooner(f.asks, f.opened.Add(verdict.MaxSession))
	}
	return true
}

func asks(v ruleset.Verdict, opened time.Time) time.Time {
	if v.MaxSession > 0 {
		return sooner(v.Until, opened.Add(v.MaxSession))
	}
	return v.Until
}

func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// end takes the flow out. cut says that both sides may still believe in it.
func (m *Filter) end(f *flow, cut bool) {
	m.flows = slices.DeleteFunc(m.flows, func(g *flow) bool { return g == f })
	if m.Budget != nil {
		m.Budget.ReturnFlow()
	}
	over := f.protocol == packet.TCP && (f.tcp.phase == reset || f.tcp.phase == waiting)
	if cut && !f.echo && !over && len(m.cuts) < 8192 {
		m.cuts = append(m.cuts, packet.Tuple{
			Source: packet.AddressOf(f.local), Destination: packet.AddressOf(f.remote),
			SourcePort: f.localPort, DestinationPort: f.remotePort, Protocol: f.protocol,
		})
	}
}

// SetConfig does what filter.Peer.SetDevice does.
func (m *Filter) SetConfig(cfg filter.Config) {
	if cfg.MTU == 0 {
		cfg.MTU = 1280
	}
	m.Config = cfg
	if m.candidate != nil {
		m.candidate.Config = cfg
	}
	m.renew()
}
