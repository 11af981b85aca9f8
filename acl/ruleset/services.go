package ruleset

import (
	"bytes"
	"container/heap"
	"slices"
)

// outcome is what rules say that hold at all times: of each kind the one that
// counts, or none.
type outcome struct{ accept, deny, auditAccept, auditDeny place }

var nothing = outcome{none, none, none, none}

// cell is what a scope says of a range of ports of one protocol.
type cell struct {
	always outcome
	timed  []place // rules that do not hold at all times, ascending
}

func (c *cell) equal(d *cell) bool {
	return c.always == d.always && slices.Equal(c.timed, d.timed)
}

// services says what the rules of a scope say of protocols and ports.
type services struct {
	// protocols are those that rules name, ascending; tables has one for each,
	// and a last one for all the others.
	protocols []byte
	tables    []ports
	// timed are the enforced rules that do not hold at all times and speak of
	// more than echoes, in the order of the list.
	timed []place
}

// ports maps every port to a cell.
type ports struct {
	// starts are the first ports of the ranges, ascending, the first 0.
	starts []uint16
	cells  []cell
	// last has, for each range, the last one up to which the same may be opened;
	// nil where that is always the range itself.
	last []uint16
	// pages has, for each value of a port's high byte, the range in which the
	// first port with it lies; it is there where there are many ranges.
	pages []uint16
}

// manyRanges is from where on a table has pages: below it a binary search takes
// at most as many steps as it does within a page.
const manyRanges = 32

// table returns the table for a protocol, which is empty where no rule speaks
// of it.
func (s *services) table(protocol uint8) *ports {
	n := bytes.IndexByte(s.protocols, protocol)
	if n < 0 {
		n = len(s.protocols)
	}
	return &s.tables[n]
}

// find returns the cell for a protocol and port, nil where no rule speaks of
// the protocol.
func (s *services) find(protocol uint8, port uint16) *cell {
	t := s.table(protocol)
	if len(t.starts) == 0 {
		return nil
	}
	return &t.cells[t.find(port)]
}

// find returns the range in which the port lies. The table must not be empty.
func (t *ports) find(port uint16) int {
	low, high := 0, len(t.starts)
	if t.pages != nil {
		page := port >> 8
		low = int(t.pages[page])
		if page < 255 {
			high = int(t.pages[page+1]) + 1
		}
	}
	// The range is the last one that starts at the port or before.
	for high-low > 1 {
		if middle := (low + high) / 2; t.starts[middle] <= port {
			low = middle
		} else {
			high = middle
		}
	}
	return low
}

func newServices(rules []Rule, members []place) services {
	var s services
	for _, at := range members {
		r := &rules[at]
		for _, svc := range r.Services {
			if svc.Protocol != AnyProtocol {
				s.protocols = append(s.protocols, svc.Protocol)
			}
		}
		if r.Mode == Enforce && r.timed() && r.reaches() {
			s.timed = append(s.timed, at)
		}
	}
	slices.Sort(s.protocols)
	s.protocols = slices.Clip(slices.Compact(s.protocols))
	s.tables = make([]ports, 0, len(s.protocols)+1)
	for _, protocol := range s.protocols {
		s.tables = append(s.tables, newPorts(rules, members, protocol))
	}
	s.tables = append(s.tables, newPorts(rules, members, AnyProtocol))
	return s
}

// timed reports whether the rule does not hold at all times.
func (r *Rule) timed() bool {
	return !r.NotBefore.IsZero() || !r.NotAfter.IsZero() || r.Schedule != nil
}

// reign is a range of ports in which a rule has a say.
type reign struct {
	first, last uint16
	rule        place
}

// newPorts sweeps over the ports of one protocol and notes where the outcome
// changes. It takes n log n steps for n services.
func newPorts(rules []Rule, members []place, protocol uint8) ports {
	var reigns []reign
	bounds := []int{0}
	for _, at := range members {
		for _, svc := range rules[at].Services {
			if svc.Protocol != protocol && svc.Protocol != AnyProtocol || svc.First > svc.Last {
				continue
			}
			reigns = append(reigns, reign{svc.First, svc.Last, at})
			bounds = append(bounds, int(svc.First), int(svc.Last)+1)
		}
	}
	if len(reigns) == 0 {
		return ports{}
	}
	slices.SortStableFunc(reigns, func(a, b reign) int { return int(a.first) - int(b.first) })
	slices.Sort(bounds)
	bounds = slices.Compact(bounds)
	byPlace := func(a, b place) bool { return a < b }
	byPreference := func(a, b place) bool { return prefer(rules, a, b) }
	accepts, denies := contest{before: byPreference}, contest{before: byPlace}
	auditAccepts, auditDenies := contest{before: byPlace}, contest{before: byPlace}
	var timed []reign
	var t ports
	for _, port := range bounds {
		if port > 65535 {
			break
		}
		for len(reigns) > 0 && int(reigns[0].first) <= port {
			next := reigns[0]
			reigns = reigns[1:]
			switch r := &rules[next.rule]; {
			case r.timed():
				timed = append(timed, next)
			case r.Mode == Enforce && r.Action == Accept:
				heap.Push(&accepts, next)
			case r.Mode == Enforce:
				heap.Push(&denies, next)
			case r.Action == Accept:
				heap.Push(&auditAccepts, next)
			default:
				heap.Push(&auditDenies, next)
			}
		}
		timed = slices.DeleteFunc(timed, func(r reign) bool { return int(r.last) < port })
		c := cell{always: outcome{
			accepts.winner(port), denies.winner(port), auditAccepts.winner(port), auditDenies.winner(port),
		}}
		for _, r := range timed {
			c.timed = append(c.timed, r.rule)
		}
		slices.Sort(c.timed)
		c.timed = slices.Compact(c.timed)
		if n := len(t.cells); n > 0 && t.cells[n-1].equal(&c) {
			continue
		}
		t.starts = append(t.starts, uint16(port))
		t.cells = append(t.cells, c)
	}
	t.starts, t.cells = slices.Clip(t.starts), slices.Clip(t.cells)
	t.last = stretches(t.cells)
	if len(t.starts) >= manyRanges {
		t.pages = make([]uint16, 256)
		for page := range t.pages {
			n, exact := slices.BinarySearch(t.starts, uint16(page<<8))
			if !exact {
				n--
			}
			t.pages[page] = uint16(n)
		}
	}
	return t
}

// contest is a heap of reigns with the one that counts on top; those that are
// over are taken out when they come up.
type contest struct {
	reigns []reign
	before func(a, b place) bool
}

func (c *contest) winner(port int) place {
	for len(c.reigns) > 0 && int(c.reigns[0].last) < port {
		heap.Pop(c)
	}
	if len(c.reigns) == 0 {
		return none
	}
	return c.reigns[0].rule
}

// Len implements heap.Interface.
func (c *contest) Len() int { return len(c.reigns) }

// Less implements heap.Interface.
func (c *contest) Less(i, j int) bool { return c.before(c.reigns[i].rule, c.reigns[j].rule) }

// Swap implements heap.Interface.
func (c *contest) Swap(i, j int) { c.reigns[i], c.reigns[j] = c.reigns[j], c.reigns[i] }

// Push implements heap.Interface.
func (c *contest) Push(r any) { c.reigns = append(c.reigns, r.(reign)) }

// Pop implements heap.Interface.
func (c *contest) Pop() any {
	r := c.reigns[len(c.reigns)-1]
	c.reigns = c.reigns[:len(c.reigns)-1]
	return r
}
