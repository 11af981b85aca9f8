package filter_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
)

var start = time.Date(2026, 5, 4, 9, 0, 0, 0, time.UTC)

// pair is the fast filter and the reference, which get the same inputs.
type pair struct {
	t     testing.TB
	fast  *filter.Peer
	slow  *acltest.Filter
	now   time.Time
	trace []string
	// The two have budgets of their own, of the same size.
	fastBudget, slowBudget *acltest.Budget
	cfg                    filter.Config
	restarts               int // that flows survived
	reasons                map[filter.Reason]int
	passed                 int
	// candidate is what the fast filter's candidate was made of.
	candidate *candidate
	// outlooks counts what candidates would have changed.
	outlooks map[ruleset.Would]int
}

// candidate is a candidate document's rules, and what it takes two devices for.
type candidate struct {
	self, peer *ident.Identity
	rules      *ruleset.RuleSet
}

// setCandidate gives both filters a candidate, nil for none.
func (p *pair) setCandidate(c *candidate) {
	p.candidate = c
	if c == nil {
		p.note("no candidate")
		p.fast.SetCandidate(nil)
		p.slow.SetCandidate(nil, nil, nil)
		return
	}
	p.note("candidate %d", c.rules.Epoch)
	p.fast.SetCandidate(c.rules.ForPeer(c.self, c.peer))
	p.slow.SetCandidate(c.self, c.peer, c.rules)
}

// drawCandidate returns a random candidate for devices with the addresses and
// routes of self and peer, with labels of its own.
func drawCandidate(w *acltest.FilterWorld, epoch ruleset.Epoch, self, peer *ident.Identity) *candidate {
	c := &candidate{rules: w.Rules(epoch)}
	c.self, c.peer = w.Identities()
	c.self.Addresses, c.self.Routes = self.Addresses, self.Routes
	c.peer.Addresses, c.peer.Routes = peer.Addresses, peer.Routes
	return c
}

func newPair(t testing.TB, cfg filter.Config, budget int, self, peer *ident.Identity, rules *ruleset.RuleSet) *pair {
	p := &pair{t: t, now: start, reasons: map[filter.Reason]int{}, outlooks: map[ruleset.Would]int{}}
	p.fastBudget, p.slowBudget = &acltest.Budget{Flows: budget, Fragments: budget}, &acltest.Budget{Flows: budget, Fragments: budget}
	cfg.Quota = p.fastBudget
	p.cfg = cfg
	p.fast = filter.NewPeer(filter.NewDevice(cfg), self, peer, rules.ForPeer(self, peer), p.now)
	p.slow = acltest.NewFilter(cfg, p.slowBudget, self, peer, rules)
	return p
}

func (p *pair) fail(format string, args ...any) {
	p.t.Helper()
	last := p.trace[max(0, len(p.trace)-25):]
	p.t.Fatalf("%s\nafter\n%s", fmt.Sprintf(format, args...), strings.Join(last, "\n"))
}

func (p *pair) note(format string, args ...any) {
	if p.trace = append(p.trace, fmt.Sprintf("%8.3fs ", p.now.Sub(start).Seconds())+fmt.Sprintf(format, args...)); len(p.trace) > 200 {
		p.trace = slices.Clone(p.trace[100:])
	}
}

func (p *pair) packet(b []byte, d filter.Direction) filter.Decision {
	p.t.Helper()
	var i packet.Info
	if packet.Parse(b, &i) != packet.None {
		return filter.Decision{}
	}
	want := p.slow.Check(&i, d, p.now)
	got := p.fast.CheckInbound
	if d == filter.Outbound {
		got = p.fast.CheckOutbound
	}
	decision := got(&i, p.now)
	p.note("%v %v:%d > %v:%d protocol %d kind %d flags %b fragment %d %v: %v %v", d, i.Source, i.SourcePort, i.Destination,
		i.DestinationPort, i.Protocol, i.Kind, i.Flags, i.FragmentOffset, i.MoreFragments, decision.Verdict, decision.Reason)
	if decision != want {
		p.fail("packet %x %v\n got %+v\nwant %+v", b, d, decision, want)
	}
	p.reasons[decision.Reason]++
	p.outlooks[decision.Candidate.Would]++
	if decision.Verdict == filter.Pass {
		p.passed++
	}
	p.same()
	return decision
}

// same compares what is left behind.
func (p *pair) same() {
	p.t.Helper()
	if p.fast.Flows() != p.slow.Flows() {
		p.fail("%d flows, want %d", p.fast.Flows(), p.slow.Flows())
	}
	if *p.fastBudget != *p.slowBudget {
		p.fail("budget %+v, want %+v", *p.fastBudget, *p.slowBudget)
	}
	var cuts []packet.Tuple
	for cut, ok := p.fast.NextCut(); ok; cut, ok = p.fast.NextCut() {
		cuts = append(cuts, cut.Flow)
	}
	want := p.slow.TakeCuts()
	order := func(a, b packet.Tuple) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) }
	slices.SortFunc(cuts, order)
	slices.SortFunc(want, order)
	if !slices.Equal(cuts, want) {
		p.fail("cut flows %v, want %v", cuts, want)
	}
}

// advance moves the clock and does what is due, as an engine would.
func (p *pair) advance(d time.Duration) {
	p.t.Helper()
	p.now = p.now.Add(d)
	for n := 0; ; n++ {
		if due, ok := p.fast.NextTimeout(); !ok || due.After(p.now) {
			return
		}
		if n == 0 {
			p.slow.HandleTimeout(p.now)
			p.note("timeout")
		}
		if n > 100 {
			p.fail("timeouts do not end")
		}
		p.fast.HandleTimeout(p.now)
		if next, ok := p.fast.NextTimeout(); !ok || next.After(p.now) {
			p.same()
		}
	}
}

func (p *pair) setRules(self, peer *ident.Identity, rules *ruleset.RuleSet) {
	p.note("rules")
	p.fast.SetRules(self, peer, rules.ForPeer(self, peer), p.now)
	p.slow.SetRules(self, peer, rules)
}

// restart hands the flows over to a filter of a next run, some time later, by
// way of bytes.
func (p *pair) restart(pause time.Duration, shields bool, self, peer *ident.Identity, rules *ruleset.RuleSet) {
	p.t.Helper()
	p.note("restart after %v", pause)
	saved := p.now
	before := filter.Snapshot{At: saved, Peers: []filter.PeerFlows{{Flows: p.fast.HandOver(saved)}}}
	if cut, ok := p.fast.NextCut(); ok || p.fast.Flows() != 0 {
		p.fail("handed over, %d flows are left and %+v was cut", p.fast.Flows(), cut)
	}
	after, err := filter.ParseSnapshot(before.Append(nil))
	if err != nil {
		p.fail("%v", err)
	}
	p.now = p.now.Add(pause)
	p.fast = filter.NewPeer(filter.NewDevice(p.cfg), self, peer, rules.ForPeer(self, peer), p.now)
	p.fast.SetShields(shields, p.now)
	if c := p.candidate; c != nil {
		p.fast.SetCandidate(c.rules.ForPeer(c.self, c.peer))
	}
	taken := p.fast.TakeOver(after.Peers[0].Flows, after.At, p.now)
	if taken != p.fast.Flows() {
		p.fail("%d flows taken over, the table has %d", taken, p.fast.Flows())
	}
	p.restarts += taken
	p.slow.Restart(saved, p.now)
	p.same()
}

// run plays a random history against both.
func run(t testing.TB, w *acltest.FilterWorld, steps int) *pair {
	self, peer := w.Identities()
	budget := []int{0, 3, 60, 1000, 1000, 1000}[w.Rand.IntN(6)]
	rules := w.Rules(1)
	p := newPair(t, w.Config(), budget, self, peer, rules)
	shields := false
	for step := range steps {
		switch w.Rand.IntN(60) {
		case 0:
			rules = w.Rules(ruleset.Epoch(step))
			p.setRules(self, peer, rules)
		case 1:
			self, peer = w.Identities()
			p.setRules(self, peer, rules)
			if p.candidate != nil { // as an engine does
				p.setCandidate(drawCandidate(w, ruleset.Epoch(step), self, peer))
			}
		case 2:
			shields = w.Rand.IntN(4) == 0
			p.note("shields %v", shields)
			p.fast.SetShields(shields, p.now)
			p.slow.SetShields(shields)
		case 3:
			p.restart(time.Duration(w.Rand.IntN(64))*time.Second, shields, self, peer, rules)
		case 4:
			if w.Rand.IntN(3) == 0 {
				p.setCandidate(nil)
			} else {
				p.setCandidate(drawCandidate(w, ruleset.Epoch(step), self, peer))
			}
		default:
			b, d := w.Packet()
			if p.packet(b, d).Verdict == filter.Pass || w.Rand.IntN(10) == 0 {
				w.Passed()
			}
		}
		// Timeouts are not always served at once.
		if wait := w.Step(); w.Rand.IntN(3) == 0 {
			p.advance(wait)
		} else if w.Rand.IntN(2) == 0 {
			p.now = p.now.Add(wait)
		}
	}
	p.note("remove")
	p.fast.Remove()
	p.slow.Remove()
	p.same()
	b, d := w.Packet()
	p.packet(b, d)
	if *p.fastBudget != (acltest.Budget{Flows: budget, Fragments: budget}) {
		p.fail("after removal the budget is %+v", *p.fastBudget)
	}
	return p
}

func TestFilterEqualsReference(t *testing.T) {
	reasons, passed, restarts := map[filter.Reason]int{}, 0, 0
	outlooks := map[ruleset.Would]int{}
	seeds := uint64(150)
	if testing.Short() {
		seeds = 50
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			p := run(t, &acltest.FilterWorld{Rand: rand.New(rand.NewPCG(seed, 7)), Start: start}, 500)
			passed += p.passed
			restarts += p.restarts
			for r, n := range p.reasons {
				reasons[r] += n
			}
			for would, n := range p.outlooks {
				outlooks[would] += n
			}
		})
	}
	t.Logf("%d packets passed, %d flows outlived a restart; %v", passed, restarts, reasons)
	if restarts == 0 {
		t.Error("no flow outlived a restart")
	}
	if outlooks[ruleset.WouldAllow] == 0 || outlooks[ruleset.WouldDeny] == 0 {
		t.Errorf("what candidates would have changed: %v", outlooks)
	}
	if testing.Short() {
		return
	}
	for r := filter.DropSpoof; int(r) < filter.NumReasons; r++ {
		if reasons[r] == 0 && r != filter.DropICMPRate {
			t.Errorf("no packet met %v", r)
		}
	}
}

// FuzzCheck lets the fuzzer choose the seed, and packets that no generator
// would make.
func FuzzCheck(f *testing.F) {
	for seed := range uint64(4) {
		w := acltest.FilterWorld{Rand: rand.New(rand.NewPCG(seed, 7)), Start: start}
		var packets []byte
		for range 20 {
			b, d := w.Packet()
			packets = append(packets, byte(d)|byte(w.Rand.IntN(64))<<1, byte(len(b)))
			packets = append(packets, b[:min(len(b), 255)]...)
		}
		f.Add(seed, packets)
	}
	f.Fuzz(func(t *testing.T, seed uint64, input []byte) {
		w := &acltest.FilterWorld{Rand: rand.New(rand.NewPCG(seed, 7)), Start: start}
		self, peer := w.Identities()
		rules := w.Rules(1)
		p := newPair(t, w.Config(), 50, self, peer, rules)
		// Each packet is a direction and a wait, a length, and as many bytes.
		for len(input) >= 2 {
			control, length := input[0], min(int(input[1]), len(input)-2)
			p.packet(input[2:2+length], filter.Direction(control&1))
			input = input[2+length:]
			switch wait := control >> 1; {
			case wait == 127:
				rules = w.Rules(2)
				p.setRules(self, peer, rules)
			case wait == 126:
				p.restart(time.Duration(length)*time.Second, false, self, peer, rules)
			case wait > 100:
				p.advance(time.Duration(wait-100) * 10 * time.Second)
			case wait > 60:
				p.now = p.now.Add(time.Duration(wait-60) * time.Second)
			}
		}
	})
}
