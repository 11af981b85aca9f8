package path_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/path"
	"github.com/warren-overlay/warren/netstack/simnet"
)

var (
	seeds = flag.Uint64("seeds", 0, "how many seeds TestSeeds tries, 0 for 1000, or 100 with -short")
	seed  = flag.Uint64("seed", 0, "the one seed that TestSeeds tries, 0 for all")
)

// sized returns how much a test tries: full, or with -short, which the race detector
// is run with because it takes ten times as long and finds little in pure code, short.
func sized[T any](full, short T) T {
	if testing.Short() {
		return short
	}
	return full
}

// TestSeeds puts a pair anywhere: behind NATs of all kinds, one behind another,
// behind one carrier, in one LAN, behind firewalls, with IPv6 or only that, with
// UDP blocked; on paths that delay, lose, repeat, reorder and corrupt. Then
// things happen to them. After each, within 10 s, the pair is direct exactly
// where that is possible; and while the relay is there, no packet is ever
// without a way.
func TestSeeds(t *testing.T) {
	first, last := uint64(1), *seeds
	if last == 0 {
		last = sized[uint64](1000, 100)
	}
	if *seed != 0 {
		first, last = *seed, *seed
	}
	luck := new(simnet.Luck)
	t.Cleanup(func() { checkLuck(t, luck, 0) })
	const shards = 8 // run side by side
	for shard := range uint64(shards) {
		t.Run(fmt.Sprint("shard", shard), func(t *testing.T) {
			t.Parallel()
			for n := first + shard; n <= last; n += shards {
				newPair(t, n).live(luck)
				if t.Failed() {
					t.Fatalf("seed %d; to repeat: go test ./netstack/path -run TestSeeds -args -seed=%d", n, n)
				}
			}
		})
	}
}

// pair is a lab that a seed makes up.
type pair struct {
	*lab
	rand    *rand.Rand
	places  *simnet.Places
	routers [2]*simnet.Router
}

func newPair(t *testing.T, seed uint64) *pair {
	p := &pair{rand: rand.New(rand.NewPCG(seed, 2))}
	p.lab = newLab(t, seed, p.path())
	p.lab.log = append(p.lab.log, fmt.Sprint("seed ", seed))
	p.relayDelay = time.Duration(1+p.rand.IntN(100)) * time.Millisecond
	p.places = simnet.NewPlaces(p.net, p.rand, func(site string) { p.say("%s", site) })
	p.place(seed)
	p.setRelay(true)
	return p
}

func (p *pair) say(format string, args ...any) {
	p.lab.log = append(p.lab.log, fmt.Sprintf("%v ", p.now.Sub(epoch))+fmt.Sprintf(format, args...))
}

func (p *pair) chance(oneIn int) bool { return p.rand.IntN(oneIn) == 0 }

// path makes up how the internet is. Loss is at most 2 %: at more, ten seconds
// would now and then not be enough, and rightly so.
func (p *pair) path() simnet.Path {
	return simnet.Path{
		Delay:  time.Duration(1+p.rand.IntN(120)) * time.Millisecond,
		Jitter: time.Duration(1+p.rand.IntN(30)) * time.Millisecond,
		Loss:   p.rand.Float64() * 0.02, Duplicate: p.rand.Float64() * 0.1,
		Reorder: p.rand.Float64() * 0.1, Corrupt: p.rand.Float64() * 0.01,
	}
}

// place puts both hosts somewhere.
func (p *pair) place(seed uint64) {
	for i, at := range p.places.Two() {
		p.routers[i] = at.Router
		p.join(i, at.Segment.NewHost([]string{"a", "b"}[i], at.Addrs...), seed)
	}
	if p.chance(12) {
		p.block(p.rand.IntN(2))
	}
}

func (p *pair) block(i int) {
	if r := p.routers[i]; r != nil {
		p.say("%s's router blocks UDP", p.nodes[i].name)
		r.BlockUDP(true)
	}
}

// live lets the pair be used, and things happen to it.
func (p *pair) live(luck *simnet.Luck) {
	p.run(time.Duration(p.rand.IntN(2000)) * time.Millisecond)
	users := [][]*node{{p.nodes[0]}, {p.nodes[1]}, {p.nodes[0], p.nodes[1]}}[p.rand.IntN(3)]
	p.settle(luck, users...)
	for range 2 {
		p.event()
		p.settled(luck, users)
	}
	// Once nobody uses them any more they fall silent, both.
	p.run(2 * time.Minute)
	before := p.sent()
	p.run(time.Minute)
	if n := p.sent() - before; n > 0 {
		p.fail("%d messages in a minute between two that nobody uses", n)
	}
}

// sent counts what both have sent.
func (p *pair) sent() (n uint64) {
	for _, node := range p.nodes {
		s := node.agent.Snapshot().Stats
		n += s.PingsSent + s.PongsSent + s.CallsSent + s.MappingsSent + s.OpeningsSent + s.GuessesSent
	}
	return n
}

// settled is settle after something happened. What the two know of each other
// from before may now make possible what the model calls impossible, by good
// luck; it must be true of both then.
func (p *pair) settled(luck *simnet.Luck, users []*node) {
	p.t.Helper()
	p.run(10*time.Second, users...)
	a, b := p.nodes[0], p.nodes[1]
	direct := a.primary.Kind == path.Direct && b.primary.Kind == path.Direct
	if simnet.GuessNeeded(a.host, b.host) {
		luck.Note(direct)
	} else if simnet.DirectPossible(a.host, b.host) && !direct {
		p.fail("%v and %v after 10 s, but a direct path is possible", a.primary, b.primary)
	}
	if a.lost > 0 || b.lost > 0 {
		p.fail("no way for %d and %d packets", a.lost, b.lost)
	}
}

// event lets one thing happen.
func (p *pair) event() {
	i := p.rand.IntN(2)
	n, router := p.nodes[i], p.routers[i]
	switch p.rand.IntN(6) {
	case 0:
		at := p.places.One()
		p.say("%s moves to %s %v", n.name, at.Segment.Name(), at.Addrs)
		n.host.Move(at.Segment, at.Addrs...)
		p.routers[i] = at.Router
		p.changed(n)
	case 1:
		if router == nil {
			return
		}
		p.say("%s's router restarts", n.name)
		router.Rebind()
	case 2:
		p.say("%s has no default route for 10 s", n.name)
		n.host.SetDefaultRoute(false)
		p.changed(n)
		p.run(10*time.Second, p.nodes[0], p.nodes[1])
		n.host.SetDefaultRoute(true)
		p.changed(n)
	case 3:
		p.net.SetPath(p.path())
	case 4:
		p.say("nothing for a while")
		p.run(time.Duration(p.rand.IntN(300)) * time.Second)
	case 5:
		p.say("one way fails for 20 s, from %s", n.name)
		p.net.Cut(n.host, p.peer(n).host, true)
		p.run(5*time.Second, p.nodes[0], p.nodes[1])
		for _, n := range p.nodes {
			if n.primary.Kind != path.Relay {
				p.fail("%s: %v 5 s after one way failed", n.name, n.primary)
			}
		}
		p.run(15*time.Second, p.nodes[0], p.nodes[1])
		p.net.Cut(n.host, p.peer(n).host, false)
	}
}

// changed tells n's machines that its network changed.
func (p *pair) changed(n *node) {
	p.locals(n)
	n.nat.HandleNetworkChange(p.now)
	n.agent.HandleNetworkChange(p.now)
}
