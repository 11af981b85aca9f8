package ruleset

import "time"

// Protocol numbers of ICMP, for echoes.
const (
	protocolICMP   = 1
	protocolICMPv6 = 58
)

// DecideEcho answers whether an echo request, of which f has the addresses, may
// be sent in the given direction at the given time. What a rule says of ICMP of
// the family holds. Where none says anything, a device that may open a flow to
// the destination may ask whether it is there: the first flow that is admitted,
// by protocol and port, answers. ICMP of the other family is no such flow.
func (p *PeerRules) DecideEcho(dir Direction, f Flow, now time.Time) Verdict {
	f.Protocol, f.Port = protocolICMP, 0
	if f.Destination.Is6() {
		f.Protocol = protocolICMPv6
	}
	x := &p.index[dir]
	icmp := x.tally(dir, f, now)
	verdict := icmp.verdict()
	if icmp.decided() {
		return verdict
	}
	reach := x.reach(dir, f, now)
	return verdict.or(reach.verdict())
}

// or returns the verdict of a second question, which was asked because no rule
// answered the first; what audit rules would do is the first one's.
func (v Verdict) or(second Verdict) Verdict {
	second.Until = earlier(v.Until, second.Until)
	second.Would, second.WouldRule = v.Would, v.WouldRule
	if second.Allowed && second.Would == WouldAllow {
		second.Would, second.WouldRule = WouldChangeNothing, ""
	}
	return second
}

// reaches reports whether the rule speaks of flows that are not echoes.
func (r *Rule) reaches() bool {
	for _, s := range r.Services {
		if s.Protocol != protocolICMP && s.Protocol != protocolICMPv6 && s.First <= s.Last {
			return true
		}
	}
	return false
}

// reach returns the rules that match the first flow between the addresses of f
// that is admitted, only those that begin or end where none is.
func (x *index) reach(dir Direction, f Flow, now time.Time) tally {
	t := newTally(x.rules)
	few, many := x.matches(dir, &f)
	var listed [256]bool
	for _, n := range few {
		if !many.has(n) {
			continue
		}
		s := &x.scopes[n].services
		for _, protocol := range s.protocols {
			listed[protocol] = true
		}
		for _, at := range s.timed {
			t.until = earlier(t.until, x.rules[at].Boundary(now))
		}
	}
	until := t.until
	// One protocol that is not listed stands for all that are not.
	unlisted := 0
	for protocol := 1; protocol <= 256; protocol++ {
		p := protocol
		switch {
		case protocol == 256 && unlisted == 0:
			continue
		case protocol == 256:
			p = unlisted
		case protocol == protocolICMP || protocol == protocolICMPv6:
			continue
		case !listed[protocol]:
			unlisted = protocol
			continue
		}
		if found, ok := x.firstAdmitted(few, many, uint8(p), now); ok {
			found.until = until
			return found
		}
	}
	return t
}

// firstAdmitted returns the rules that match the lowest port of a protocol that
// is admitted, and whether there is one. It goes over whole stretches of ports
// of which the same may be opened, so that it takes as many steps as denies and
// accepts that do not hold at all times cut the ports into, not as many as there
// are rules.
func (x *index) firstAdmitted(few []int32, many scopeSet, protocol uint8, now time.Time) (tally, bool) {
	for port := 0; port <= 65535; {
		t := newTally(x.rules)
		denied, ends := port, 65536
		for _, n := range few {
			if !many.has(n) {
				continue
			}
			table := x.scopes[n].services.table(protocol)
			if len(table.starts) == 0 {
				continue
			}
			at := table.find(uint16(port))
			own := newTally(x.rules)
			own.merge(table.cells[at].always)
			for _, rule := range table.cells[at].timed {
				own.add(rule, now)
			}
			t.merge(outcome{own.accept, own.deny, own.auditAccept, own.auditDeny})
			end := table.end(at)
			if own.deny != none {
				denied = max(denied, end)
			}
			ends = min(ends, end)
		}
		switch {
		case t.deny != none:
			port = denied
		case t.accept != none:
			return t, true
		default:
			port = ends
		}
	}
	return tally{}, false
}

// end returns the port after the stretch that goes on with the range at, 65536
// for none.
func (t *ports) end(at int) int {
	if t.last != nil {
		at = int(t.last[at])
	}
	if at+1 == len(t.starts) {
		return 65536
	}
	return int(t.starts[at+1])
}

// stretches returns ports.last.
func stretches(cells []cell) []uint16 {
	last := make([]uint16, len(cells))
	alone := true
	for at := len(cells) - 1; at >= 0; at-- {
		last[at] = uint16(at)
		if at+1 < len(cells) && cells[at].admitsAs(&cells[at+1]) {
			last[at] = last[at+1]
			alone = false
		}
	}
	if alone {
		return nil
	}
	return last
}

// admitsAs reports whether c admits a flow whenever d does.
func (c *cell) admitsAs(d *cell) bool {
	if (c.always.deny == none) != (d.always.deny == none) {
		return false
	}
	if c.always.deny != none {
		return true
	}
	if (c.always.accept == none) != (d.always.accept == none) || len(c.timed) != len(d.timed) {
		return false
	}
	for i := range c.timed {
		if c.timed[i] != d.timed[i] {
			return false
		}
	}
	return true
}
