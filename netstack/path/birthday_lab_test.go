package path_test

import (
	"flag"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/disco"
	"github.com/warren-overlay/warren/netstack/path"
	"github.com/warren-overlay/warren/netstack/simnet"
)

var birthdays = flag.Uint64("birthdays", 0, "how many seeds TestBirthday tries, 0 for 1000, or 100 with -short")

// checkLuck fails where more pairs had no luck than one in a thousand explains, or
// fewer than least needed some.
func checkLuck(t *testing.T, luck *simnet.Luck, least int) {
	t.Helper()
	if err := luck.Check(least); err != nil {
		t.Error(err)
	}
	t.Log(luck)
}

// TestBirthday: a pair of which one side's NAT draws ports at random and the
// other's lets in only whom it sent to is direct within 10 s of its first use, in
// 999 of 1,000 cases, whoever begins; until then the relay carries everything. One
// socket is left of all.
func TestBirthday(t *testing.T) {
	t.Parallel()
	hard := []simnet.NAT{
		simnet.Symmetric,
		{Mapping: simnet.AddressDependent, Filtering: simnet.EndpointIndependent},
		{Mapping: simnet.AddressAndPortDependent, Filtering: simnet.AddressAndPortDependent, Allocation: simnet.Preserving},
	}
	seeds := *birthdays
	if seeds == 0 {
		seeds = sized[uint64](1000, 100)
	}
	luck := new(simnet.Luck)
	var took []time.Duration
	var most, own uint64
	for seed := range seeds {
		l, a, b := separate(t, seed, hard[seed%3], simnet.PortRestricted)
		use := [][]*node{{a}, {b}, {a, b}}[seed/3%3]
		l.run(time.Second)
		begin := l.now
		for l.now.Sub(begin) < 10*time.Second && (a.primary.Kind != path.Direct || b.primary.Kind != path.Direct) {
			l.run(20*time.Millisecond, use...)
		}
		direct := a.primary.Kind == path.Direct && b.primary.Kind == path.Direct
		luck.Note(direct)
		took = append(took, l.now.Sub(begin))
		sa, sb := a.agent.Snapshot(), b.agent.Snapshot()
		most = max(most, sa.Stats.OpeningsSent, sb.Stats.GuessesSent)
		if a.lost+b.lost > 0 || a.mostSockets != 256 || b.mostSockets != 0 || sa.Stats.GuessesSent > 0 {
			l.fail("%d uses without a way, %d and %d sockets", a.lost+b.lost, a.mostSockets, b.mostSockets)
		}
		if !direct {
			continue
		}
		kept, _, count := a.agent.Sockets()
		if count != 0 || a.primary.Socket != kept || b.primary.Socket != 0 {
			l.fail("sockets %d and %d more are open, %v", kept, count, a.primary)
		}
		if kept == 0 { // the right guess was the port of the node's own socket
			own++
		}
		if seed%50 != 0 {
			continue
		}
		changes := a.changes + b.changes
		l.run(time.Minute, a, b)
		if a.changes+b.changes != changes {
			l.fail("the primary goes on changing")
		}
		// Nobody uses it: the socket is closed once the NAT has forgotten it.
		l.run(4 * time.Minute)
		if kept, _, _ := a.agent.Sockets(); kept != 0 {
			l.fail("socket %d is still open", kept)
		}
		for _, n := range l.nodes {
			if next, ok := n.agent.NextTimeout(); ok {
				l.fail("%s wants to be woken at %v", n.name, next)
			}
		}
	}
	slices.Sort(took)
	t.Logf("direct after: median %v, 95 %% %v, 99 %% %v; at most %d probes", took[len(took)/2], took[len(took)*95/100], took[len(took)*99/100], most)
	checkLuck(t, luck, int(seeds))
	if own > 3+seeds/50 {
		t.Errorf("%d pairs were direct without a further socket, want one in 257", own)
	}
}

// TestBirthdayOfTwoHardNATs: where both NATs draw ports at random nobody guesses,
// and the relay carries.
func TestBirthdayOfTwoHardNATs(t *testing.T) {
	l, a, b := separate(t, 1, simnet.Symmetric, simnet.Symmetric)
	l.run(time.Minute, a, b)
	for _, n := range l.nodes {
		s := n.agent.Snapshot()
		if n.primary.Kind != path.Relay || s.Stats.GuessesSent+s.Stats.OpeningsSent > 0 || s.Birthday.Local != path.MappingHard || s.Birthday.Remote != path.MappingHard {
			l.fail("%s: %v", n.name, n.primary)
		}
	}
}

// TestBirthdayInVain: where something drops what comes from other ports than the
// first, an attempt is given up, and others follow ever more seldom.
func TestBirthdayInVain(t *testing.T) {
	l, a, b := separate(t, 1, simnet.Symmetric, simnet.PortRestricted)
	l.net.Cut(a.host, b.host, true)
	l.net.Cut(b.host, a.host, true)
	l.run(time.Hour, a, b)
	sa, sb := a.agent.Snapshot(), b.agent.Snapshot()
	// At once, and after 5, 10 and 20 minutes.
	if sa.Stats.BirthdaysFailed != 4 || sa.Birthday.Failures != 4 || sb.Stats.BirthdaysFailed != 4 {
		l.fail("%d and %d attempts", sa.Stats.BirthdaysFailed, sb.Stats.BirthdaysFailed)
	}
	if limit := uint64(4 * 2000); sb.Stats.GuessesSent != limit || sa.Stats.OpeningsSent > 4*1300 {
		l.fail("%d guesses, %d openings", sb.Stats.GuessesSent, sa.Stats.OpeningsSent)
	}
	if a.primary.Kind != path.Relay || a.lost+b.lost > 0 {
		l.fail("%v, %d uses without a way", a.primary, a.lost+b.lost)
	}
}

// TestBirthdayAfterRebinding: a NAT that forgets the mapping that was found costs
// another attempt, at once; and one that does so again and again no more of them
// than the budget allows.
func TestBirthdayAfterRebinding(t *testing.T) {
	l := newLab(t, 3, ordinary)
	lanA, router := l.net.Internet().NewLAN("a", simnet.Symmetric, addr4(1, 1, 1, 1), netip.Prefix{})
	lanB, _ := l.net.Internet().NewLAN("b", simnet.PortRestricted, addr4(2, 2, 2, 2), netip.Prefix{})
	a := l.join(0, lanA.NewHost("a", addr4(192, 168, 1, 2)), 3)
	b := l.join(1, lanB.NewHost("b", addr4(192, 168, 1, 2)), 3)
	l.setRelay(true)
	l.run(11*time.Second, a, b)
	for i := range 20 {
		router.Rebind()
		l.run(12*time.Second, a, b)
		if i < 2 && (a.primary.Kind != path.Direct || b.primary.Kind != path.Direct) {
			l.fail("rebinding %d: %v and %v", i, a.primary, b.primary)
		}
	}
	for _, n := range l.nodes {
		// Three at once, and one in 5 minutes, of which 4 have gone by.
		if s := n.agent.Snapshot().Stats; s.BirthdaysBegun != 3 || n.lost > 0 {
			l.fail("%s: %d attempts", n.name, s.BirthdaysBegun)
		}
	}
}

// TestBirthdayOfAHostilePeer: a peer that says every second that it has moved and
// opened ports, to have this node send to strangers, gets no more than its share;
// and what one that says it is easy to reach has this node open is bounded, too.
func TestBirthdayOfAHostilePeer(t *testing.T) {
	public := netip.AddrPortFrom(addr4(2, 2, 2, 2), 1000)
	for name, c := range map[string]struct {
		mine  bool // whether our NAT varies
		limit uint64
		sent  func(s path.Stats) uint64
	}{
		// Three attempts at once and one each 5 minutes, for an hour.
		"guesser": {false, 15 * 2000, func(s path.Stats) uint64 { return s.GuessesSent }},
		"opener":  {true, 15 * 1300, func(s path.Stats) uint64 { return s.OpeningsSent }},
	} {
		now := epoch
		a, err := path.New(path.Config{Rand: rand.NewChaCha8([32]byte{1}), Birthday: path.NewBirthdayBudget(now)}, now)
		if err != nil {
			t.Fatal(err)
		}
		a.HandleRelayState(true, now)
		a.SetLocalMapping(public, c.mine, now)
		var strangers, relayed uint64
		for i := range 3600 {
			next := now.Add(time.Second)
			a.HandleOutboundUse(now)
			m := disco.Mapping{Public: netip.AddrPortFrom(addr4(6, 6, byte(i>>8), byte(i)), 1000), Varies: !c.mine}
			if m.Varies {
				m.Ports, m.Attempt = disco.MaxPorts, uint64(i+1)
			}
			if i%17 == 0 || i < 10 {
				_ = a.HandleMapping(m, now)
			}
			for at, ok := a.NextTimeout(); ok && at.Before(next); at, ok = a.NextTimeout() {
				now = at
				a.HandleTimeout(now)
				for sent, ok := a.NextTransmit(); ok; sent, ok = a.NextTransmit() {
					if sent.To.Kind == path.Direct {
						strangers++
					} else {
						relayed++
					}
				}
				for _, ok := a.NextEvent(); ok; _, ok = a.NextEvent() {
				}
			}
			now = next
		}
		s := a.Snapshot().Stats
		if strangers > c.limit || strangers < c.limit/4 || c.sent(s) != strangers || relayed > 1000 {
			t.Errorf("%s: %d datagrams to strangers, at most %d; %d over the relay; %+v", name, strangers, c.limit, relayed, s)
		}
	}
}

// TestBirthdayBudgetIsShared: a node with many peers of whom all need ports to be
// guessed begins one attempt at a time, and three at once.
func TestBirthdayBudgetIsShared(t *testing.T) {
	now := epoch
	shared := path.NewBirthdayBudget(now)
	var agents []*path.Agent
	for i := range byte(10) {
		a, err := path.New(path.Config{Rand: rand.NewChaCha8([32]byte{i}), Birthday: shared}, now)
		if err != nil {
			t.Fatal(err)
		}
		a.HandleRelayState(true, now)
		a.SetLocalMapping(netip.AddrPortFrom(addr4(2, 2, 2, 2), 1000), true, now)
		a.HandleOutboundUse(now)
		if err := a.HandleMapping(disco.Mapping{Public: netip.AddrPortFrom(addr4(3, 3, 3, i), 1000)}, now); err != nil {
			t.Fatal(err)
		}
		agents = append(agents, a)
	}
	begun := func() (n uint64) {
		for _, a := range agents {
			n += a.Snapshot().Stats.BirthdaysBegun
		}
		return n
	}
	for range 3 * 60 * 50 {
		now = now.Add(20 * time.Millisecond)
		sockets := uint32(0)
		for _, a := range agents {
			a.HandleOutboundUse(now)
			for _, ok := a.NextTransmit(); ok; _, ok = a.NextTransmit() {
			}
			for _, ok := a.NextEvent(); ok; _, ok = a.NextEvent() {
			}
			_, _, count := a.Sockets()
			sockets += count
		}
		if sockets > disco.MaxPorts {
			t.Fatalf("%d sockets at one time", sockets)
		}
	}
	// Three at once, and one a minute for two minutes and some.
	if n := begun(); n != 5 && n != 6 {
		t.Errorf("%d attempts in three minutes", n)
	}
}
