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

// The phases of a TCP connection (P9).
type phase int

const (
	synSent     phase = iota
	bothSYN           // both sides sent a SYN
	synAnswered       // a SYN-ACK was seen
	open
	halfClosed // one side sent a FIN
	bothFIN
	waiting // TIME_WAIT
	reset
)

// connection is a TCP connection as far as the filter follows it.
type connection struct {
	phase phase
	// crossed: the connection began with a SYN from each side, so that either
	// may do what else only the opener, or only the other side, may.
	crossed bool
	// finFirst and finSecond: who sent the first FIN, and who the second;
	// "opener", "other", or "".
	finFirst, finSecond string
}

func possible(f packet.TCPFlags) bool {
	has := func(x packet.TCPFlags) bool { return f&x != 0 }
	syn, ack, rst, fin := has(packet.SYN), has(packet.ACK), has(packet.RST), has(packet.FIN)
	switch {
	case syn && fin, syn && rst, rst && fin, fin && !ack:
		return false
	case !syn && !ack && !rst && !fin: // null; Xmas is FIN without ACK
		return false
	}
	return true
}

// segment applies a segment to its connection and says whether it is possible
// there, and whether it begins a new connection instead.
func (m *Filter) segment(f *flow, flags packet.TCPFlags, d filter.Direction, now time.Time) (possible, reopens bool) {
	who := "other"
	if f.opener() == d {
		who = "opener"
	}
	c := &f.tcp
	lasts := func(life time.Duration) { f.ends = now.Add(life) }
	switch {
	case flags&packet.RST != 0:
		if c.phase == synSent && who == "opener" {
			return false, false
		}
		if c.phase != reset {
			c.phase = reset
			lasts(10 * time.Second)
		}
		return true, false

	case flags&packet.SYN != 0 && flags&packet.ACK == 0:
		switch c.phase {
		case waiting, reset:
			return true, true
		case synSent:
			if who == "other" {
				c.phase, c.crossed = bothSYN, true
			}
			lasts(60 * time.Second)
			return true, false
		case bothSYN:
			lasts(60 * time.Second)
			return true, false
		case synAnswered:
			return who == "opener" || c.crossed, false
		}
		return who == "opener", false

	case flags&packet.SYN != 0:
		switch c.phase {
		case waiting, reset:
			return false, false
		case synSent, bothSYN:
			if who == "opener" && !c.crossed {
				return false, false
			}
			c.phase = synAnswered
			lasts(60 * time.Second)
			return true, false
		}
		return who == "other" || c.crossed, false
	}

	// ACK, with or without FIN.
	fin := flags&packet.FIN != 0
	note := func() {
		switch {
		case c.finFirst == "":
			c.finFirst = who
		case c.finFirst != who:
			c.finSecond = who
		}
	}
	switch c.phase {
	case synSent, bothSYN:
		return false, false
	case waiting, reset:
		return true, false
	case synAnswered:
		if who == "other" && !c.crossed {
			if fin {
				note()
			}
			return true, false
		}
	}
	if fin {
		note()
	}
	switch {
	case c.finFirst == "":
		c.phase = open
		lasts(2*time.Hour + 4*time.Minute)
	case c.finSecond == "":
		c.phase = halfClosed
		lasts(120 * time.Second)
	case !fin && who == c.finFirst:
		c.phase = waiting
		lasts(120 * time.Second)
	default:
		c.phase = bothFIN
		lasts(30 * time.Second)
	}
	return true, false
}

// prolong sets when a flow of another protocol than TCP ends (P10 to P13).
func (m *Filter) prolong(f *flow, d filter.Direction, now time.Time) {
	fromOpener := f.opener() == d
	first := !fromOpener && !f.answered
	if !fromOpener {
		f.answered = true
	}
	life := func(before, after time.Duration) time.Duration {
		if f.answered {
			return after
		}
		return before
	}
	switch {
	case f.echo:
		if fromOpener {
			f.ends = now.Add(30 * time.Second)
		}
	case f.protocol == packet.SCTP:
		f.ends = now.Add(life(30*time.Second, 300*time.Second))
	case f.protocol == packet.UDP:
		if f.openedByPeer || fromOpener {
			f.ends = now.Add(life(30*time.Second, 120*time.Second))
		} else if first {
			// Only what we send refreshes; the answer makes our last packet
			// count for 120 seconds in place of 30.
			f.ends = f.ends.Add(90 * time.Second)
		}
	default:
		if f.openedByPeer || fromOpener {
			f.ends = now.Add(120 * time.Second)
		}
	}
}

// icmpError is P14.
func (m *Filter) icmpError(i *packet.Info, d filter.Direction, onlyReply bool, now time.Time) filter.Decision {
	q := &i.Quoted
	want := flow{
		protocol: q.Protocol, echo: q.Kind == packet.EchoRequest || q.Kind == packet.EchoReply, identifier: q.Identifier,
	}
	// The packet that failed was sent by whom the error goes to.
	if d == filter.Inbound {
		want.local, want.remote = q.Source.Addr(), q.Destination.Addr()
		want.localPort, want.remotePort = q.SourcePort, q.DestinationPort
		want.openedByPeer = q.Kind == packet.EchoReply
	} else {
		want.local, want.remote = q.Destination.Addr(), q.Source.Addr()
		want.localPort, want.remotePort = q.DestinationPort, q.SourcePort
		want.openedByPeer = q.Kind == packet.EchoRequest
	}
	var f *flow
	if q.Source == i.Destination {
		f = m.find(&want)
	}
	if f == nil || !m.alive(f, now) {
		return drop(filter.DropICMPNoFlow)
	}
	if onlyReply && f.opener() == d {
		return filter.Decision{Reason: filter.DropUnsolicited, Rule: f.rule}
	}
	decision := filter.Decision{Verdict: filter.Pass, Rule: f.rule}
	tooBig := i.Version == 4 && i.Type == 3 && i.Code == 4 || i.Version == 6 && i.Type == 2
	if tooBig && d == filter.Inbound {
		mtu := i.MTU
		least := map[uint8]uint32{4: 576, 6: 1280}[i.Version]
		if mtu < least {
			mtu = least
			decision.MTU = uint16(least)
		}
		if mtu >= uint32(m.Config.MTU) {
			return filter.Decision{Reason: filter.DropMTU, Rule: f.rule}
		}
	}
	if !m.errors[d].take(now, 100) {
		return filter.Decision{Reason: filter.DropICMPRate, Rule: f.rule}
	}
	return decision
}

// fragment is what is remembered of a fragmented packet (P6).
type fragment struct {
	source, destination packet.Address
	protocol            uint8
	id                  uint32
	until               time.Time
	firstEnds           int
	poisoned            bool
}

// fragment decides on a fragment before anything else is asked about it.
func (m *Filter) fragment(i *packet.Info, now time.Time) filter.Reason {
	var known *fragment
	for _, r := range m.fragments {
		if r.source == i.Source && r.destination == i.Destination && r.protocol == i.Protocol && r.id == i.FragmentID && now.Before(r.until) {
			known = r
			break
		}
	}
	length := int(i.Length) - int(i.HeaderLength)
	end := int(i.FragmentOffset) + length
	if i.Version == 4 {
		end += 20
	}
	switch {
	case i.FragmentOffset == 0 && known == nil:
		return filter.Passed
	case i.FragmentOffset == 0:
		known.poisoned = true
		return filter.DropFragmentRepeated
	case known == nil:
		return filter.DropFragment
	case known.poisoned:
		return filter.DropFragmentPoisoned
	case int(i.FragmentOffset) < known.firstEnds:
		known.poisoned = true
		return filter.DropFragmentOverlap
	case end > 65535 || i.MoreFragments && length%8 != 0:
		known.poisoned = true
		return filter.DropFragmentLength
	}
	return filter.Passed
}

// remember records a first fragment that was admitted.
func (m *Filter) remember(i *packet.Info, now, until time.Time) {
	if !i.MoreFragments {
		return
	}
	if len(m.fragments) >= 256 {
		m.expireFragments(now)
	}
	if len(m.fragments) >= 256 || m.Budget != nil && !m.Budget.TakeFragment() {
		return
	}
	m.fragments = append(m.fragments, &fragment{
		source: i.Source, destination: i.Destination, protocol: i.Protocol, id: i.FragmentID,
		until: sooner(until, now.Add(30*time.Second)), firstEnds: int(i.Length) - int(i.HeaderLength),
	})
}

func (m *Filter) expireFragments(now time.Time) {
	all := m.fragments
	m.fragments = nil
	for _, r := range all {
		if now.Before(r.until) {
			m.fragments = append(m.fragments, r)
		} else if m.Budget != nil {
			m.Budget.ReturnFragment()
		}
	}
}

func (m *Filter) forgetFragments() {
	for range m.fragments {
		if m.Budget != nil {
			m.Budget.ReturnFragment()
		}
	}
	m.fragments = nil
}

// where is what an address is to a device.
type where int

const (
	nowhere where = iota
	own
	behind
	behindDefault
)

func (m *Filter) localPlace(a netip.Addr) where { return m.place(m.self, nil, a) }

func (m *Filter) remotePlace(a netip.Addr) where { return m.place(m.peer, m.self, a) }

// place says what a is to the device; an address of another device's is never
// the device's own (P2, P3).
func (m *Filter) place(device, other *ident.Identity, a netip.Addr) where {
	if device.OwnsAddress(a) && !noHost(a) && (other == nil || !other.OwnsAddress(a)) {
		return own
	}
	if m.barred(a) {
		return nowhere
	}
	if a.Is6() {
		b := a.As16()
		translated := netip.Addr{}
		switch {
		case netip.MustParsePrefix("2002::/16").Contains(a):
			translated = netip.AddrFrom4([4]byte(b[2:6]))
		case netip.MustParsePrefix("64:ff9b::/96").Contains(a), netip.MustParsePrefix("64:ff9b:1::/48").Contains(a):
			translated = netip.AddrFrom4([4]byte(b[12:]))
		}
		if translated.IsValid() && m.barred(translated) {
			return nowhere
		}
	}
	found := nowhere
	for _, p := range device.Routes {
		if p.Contains(a) && p.Bits() > 0 {
			return behind
		}
		if p.Contains(a) {
			found = behindDefault
		}
	}
	return found
}

// barred reports whether nothing that is forwarded may have the address.
func (m *Filter) barred(a netip.Addr) bool {
	if noHost(a) || m.self.OwnsAddress(a) || m.subnetBroadcast(a) {
		return true
	}
	switch a.String() { // metadata services of clouds
	case "168.63.129.16", "192.0.0.192", "100.100.100.200", "fd00:ec2::254":
		return true
	}
	for _, prefixes := range [][]netip.Prefix{m.Config.Overlay, m.Config.Protected} {
		for _, p := range prefixes {
			if p.Contains(a) {
				return true
			}
		}
	}
	return false
}

// noHost reports whether no host can have the address.
func noHost(a netip.Addr) bool {
	return a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() ||
		a == netip.MustParseAddr("255.255.255.255") || netip.MustParsePrefix("0.0.0.0/8").Contains(a)
}

// group reports whether a is multicast, broadcast or link-local (P4).
func (m *Filter) group(a netip.Addr) bool {
	if a.IsMulticast() || a.IsLinkLocalUnicast() || a == netip.MustParseAddr("255.255.255.255") {
		return true
	}
	return m.subnetBroadcast(a)
}

// subnetBroadcast reports whether a is the broadcast address of a subnet that
// this machine is connected to (P4).
func (m *Filter) subnetBroadcast(a netip.Addr) bool {
	for _, p := range slices.Concat(m.Config.Protected, m.Config.Connected) {
		if a.Is4() && p.Bits() > 0 && p.Bits() < 31 && p.Contains(a) && !p.Contains(a.Next()) {
			return true
		}
	}
	return false
}

// admits asks whether the flow may be opened in direction d (P16 to P18).
func (m *Filter) admits(f *flow, d filter.Direction, onlyReply bool, now time.Time) (ruleset.Verdict, filter.Reason) {
	l, r := m.localPlace(f.local), m.remotePlace(f.remote)
	opener := r
	if d == filter.Outbound {
		opener = l
	}
	if onlyReply || l == nowhere || r == nowhere || opener == behindDefault {
		return ruleset.Verdict{}, filter.DropUnsolicited
	}
	if d == filter.Inbound && m.shields {
		return ruleset.Verdict{}, filter.DropShields
	}
	verdict := m.decide(f, d, now)
	if m.candidate != nil {
		verdict.Candidate.Epoch = m.candidate.rules.Epoch
		if other := m.candidate.decide(f, d, now); other.Allowed != verdict.Allowed {
			verdict.Candidate.Would, verdict.Candidate.Rule = ruleset.WouldDeny, other.Rule
			if other.Allowed {
				verdict.Candidate.Would = ruleset.WouldAllow
			}
		}
	}
	switch {
	case verdict.Allowed:
		return verdict, filter.Passed
	case verdict.Rule != "":
		return verdict, filter.DropDenied
	}
	return verdict, filter.DropNoRule
}
