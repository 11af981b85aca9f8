package sim

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/enginetest"
	"github.com/warren-overlay/warren/netstack/simnet"
)

// directLimit is how long a pair may be on the relay where a direct path is
// possible, from its first packet or from the last change of anything.
const directLimit = 10 * time.Second

// handshakeSlack is what may come on top of the 5 s of a failover where a handshake is
// needed, since a node started again or has another key, and the first one was lost or
// is a moment old: a way must be found, in a second, WireGuard waits for another third
// of one before it begins the next, and that and a packet take two round trips, of half
// a second over the longest relayed way.
const handshakeSlack = 2500 * time.Millisecond

// TestPairs is TestSeeds of netstack/path with two whole nodes, WireGuard and a
// relay in place of the machines that find a path. A pair is put anywhere: behind
// NATs of all kinds, one behind another, behind one carrier, in one LAN, behind
// firewalls, with IPv6 or only that, with UDP blocked; on paths that delay, lose,
// repeat and reorder. Then things happen to it, of which no coordinator
// tells. Within 10 s of each the pair is direct where that is possible; where it is
// not, every packet arrives over the relay. While there is a way to the relay, or
// another one, nothing stops for more than 5 s, or handshakeSlack longer where a session
// is needed, and nothing arrives twice. With -short there are 30 seeds.
//
// A history is the seed's; keys and timers of the engines have a randomness of
// their own.
func TestPairs(t *testing.T) {
	t.Parallel()
	first, last := uint64(1), uint64(*seeds)
	if *seeds == 0 {
		last = uint64(sized(600, 30))
	}
	if *seed != 0 {
		first, last = *seed, *seed
	}
	seen := new(pairsSeen)
	t.Cleanup(func() { seen.check(t, int64(last-first+1)) })
	const shards = 4 // run side by side
	for shard := range uint64(shards) {
		t.Run(fmt.Sprint("shard", shard), func(t *testing.T) {
			t.Parallel()
			for n := first + shard; n <= last; n += shards {
				passed := t.Run(fmt.Sprint(n), func(t *testing.T) {
					run(t, n, func(s *sim) { newCouple(s, n, seen).live() })
				})
				if !passed {
					t.Fatalf("seed %d; to repeat: go test ./tests/sim -run TestPairs -seed %d", n, n)
				}
			}
		})
	}
}

// pairsSeen counts, over all seeds, what was to be seen.
type pairsSeen struct {
	direct, six, relayed, packets atomic.Int64
	// slowest is the longest time that a pair took which needed no luck.
	slowest atomic.Int64
	luck    simnet.Luck
}

// check fails where the seeds have shown one side only.
func (p *pairsSeen) check(t *testing.T, seeds int64) {
	t.Helper()
	t.Logf("pairs were direct %d times, by IPv6 %d times, after %v at most; relayed %d times, where all of %d packets arrived; %v in %v",
		p.direct.Load(), p.six.Load(), time.Duration(p.slowest.Load()), p.relayed.Load(), p.packets.Load(), &p.luck, directLimit)
	if err := p.luck.Check(0); err != nil {
		t.Error(err)
	}
	if seeds >= 30 && (p.direct.Load() < seeds || p.six.Load() < seeds/20 || p.relayed.Load() < seeds/5) {
		t.Errorf("of %d seeds that is too little to say anything", seeds)
	}
}

// couple is a pair that a seed makes up.
type couple struct {
	*sim
	rand    *rand.Rand
	seen    *pairsSeen
	places  *simnet.Places
	nodes   [2]*node
	routers [2]*simnet.Router
	flows   [2]flow       // by who sends
	users   []int         // who sends
	slack   time.Duration // on top of failover, of the last event
	said    []string
}

// flow is the numbered packets from one node of a couple to the other.
type flow struct {
	sent    int
	arrived map[string]int // how often, by what is inside
	heard   time.Time      // when the last one came, or the flow began
	gap     time.Duration  // the longest time without one
}

func newCouple(s *sim, seed uint64, seen *pairsSeen) *couple {
	c := &couple{sim: s, rand: rand.New(rand.NewPCG(seed, 3)), seen: seen}
	s.dualStack()
	c.users = [][]int{{0}, {1}, {0, 1}}[c.rand.IntN(3)]
	s.world.Do(func(n *simnet.Network) {
		n.SetPath(c.path())
		c.places = simnet.NewPlaces(n, c.rand, func(site string) { c.say("%s", site) })
		for i, at := range c.places.Two() {
			c.routers[i] = at.Router
			c.nodes[i] = &node{host: at.Segment.NewHost([]string{"a", "b"}[i], at.Addrs...)}
			c.say("%s in %s, %v", c.nodes[i].host.Name(), at.Segment.Name(), at.Addrs)
		}
		if r := c.routers[c.rand.IntN(2)]; r != nil && c.rand.IntN(12) == 0 {
			c.say("a router blocks UDP")
			r.BlockUDP(true)
		}
	})
	for i, n := range c.nodes {
		c.nodes[i] = s.startAt(n.host.Name(), n.host, firstPort+uint16(i), nil) // two behind one NAT that overloads ports must differ
		c.flows[i].arrived = make(map[string]int)
	}
	s.meet(c.nodes[0], c.nodes[1])
	return c
}

func (c *couple) say(format string, args ...any) {
	c.said = append(c.said, fmt.Sprintf("%8.1fs ", time.Since(bubbleStart).Seconds())+fmt.Sprintf(format, args...))
}

func (c *couple) fail(format string, args ...any) {
	c.Helper()
	for i, n := range c.nodes {
		c.Logf("%s: %+v", n.host.Name(), n.engine.Status())
		if p, err := n.engine.Paths(c.nodes[1-i].Addr4()); err == nil {
			c.Logf("%s: %+v", n.host.Name(), p)
		}
	}
	c.Fatalf("%s\nhistory:\n%s", fmt.Sprintf(format, args...), strings.Join(c.said, "\n"))
}

// path makes up how the internet is. Loss is at most 2 %: at more, ten seconds
// would now and then not be enough, and rightly so. Nothing is corrupted: the
// checksums of UDP make that a loss, and TestSeeds does without them.
func (c *couple) path() simnet.Path {
	return simnet.Path{
		Delay:  time.Duration(1+c.rand.IntN(120)) * time.Millisecond,
		Jitter: time.Duration(1+c.rand.IntN(30)) * time.Millisecond,
		Loss:   c.rand.Float64() * 0.02, Duplicate: c.rand.Float64() * 0.1,
		Reorder: c.rand.Float64() * 0.1,
	}
}

// live lets the pair be used, and things happen to it.
func (c *couple) live() {
	c.sleep(time.Duration(c.rand.IntN(2000)) * time.Millisecond)
	c.begin()
	c.settle()
	for range 2 {
		c.event()
		c.settle()
	}
}

// begin begins to wait for packets: there is a way for them from now on.
func (c *couple) begin() {
	c.take()
	for i := range c.flows {
		c.flows[i].heard, c.flows[i].gap = time.Now(), 0
	}
}

// use has those who use the pair send ten packets a second.
func (c *couple) use(d time.Duration) {
	for begin := time.Now(); time.Since(begin) < d; c.take() {
		for _, i := range c.users {
			f := &c.flows[i]
			f.sent++
			from, to := c.nodes[i], c.nodes[1-i]
			from.tun.Send(enginetest.UDP(netip.AddrPortFrom(from.Addr4(), 5000), netip.AddrPortFrom(to.Addr4(), 53), fmt.Sprint("number ", f.sent)))
		}
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
	}
}

// take takes what has arrived.
func (c *couple) take() {
	for _, i := range c.users {
		f := &c.flows[i]
		for more := true; more; {
			select {
			case b := <-c.nodes[1-i].tun.Received():
				if at := strings.LastIndex(string(b), "number "); at >= 0 {
					f.heard = time.Now()
					if f.arrived[string(b[at:])]++; f.arrived[string(b[at:])] > 1 {
						c.fail("a packet arrived twice: %s", b[at:])
					}
				}
			default:
				more = false
			}
		}
		f.gap = max(f.gap, time.Since(f.heard))
	}
}

func (c *couple) direct() bool {
	a, b := c.nodes[0], c.nodes[1]
	return a.path(b).Kind == engine.PathDirect && b.path(a).Kind == engine.PathDirect
}

// settle uses the pair for as long as it may take to be direct, and judges it.
func (c *couple) settle() {
	c.Helper()
	begin, took := time.Now(), time.Duration(0)
	for time.Since(begin) < directLimit {
		c.use(500 * time.Millisecond)
		if took == 0 && c.direct() {
			took = time.Since(begin)
		}
	}
	direct, possible, luck := c.direct(), false, false
	c.world.Do(func(*simnet.Network) {
		a, b := c.nodes[0].host, c.nodes[1].host
		possible, luck = simnet.DirectPossible(a, b), simnet.GuessNeeded(a, b)
	})
	if luck {
		c.seen.luck.Note(direct)
	} else if possible {
		if !direct {
			c.fail("not direct after %v, but that is possible", directLimit)
		}
		c.seen.slowest.Store(max(c.seen.slowest.Load(), int64(took)))
	}
	for _, i := range c.users {
		if gap := c.flows[i].gap; gap > failover+c.slack {
			c.fail("nothing arrived from %s for %v", c.nodes[i].host.Name(), gap)
		}
		c.flows[i].gap = 0 // the next event's are its own
	}
	if !direct {
		c.carried()
		return
	}
	c.seen.direct.Add(1)
	if c.nodes[0].path(c.nodes[1]).Addr.Addr().Is6() {
		c.seen.six.Add(1)
	}
}

// carried requires that every packet arrives over the relay.
func (c *couple) carried() {
	c.Helper()
	var before [2]int
	for i, f := range c.flows {
		before[i] = f.sent
	}
	c.use(2 * time.Second)
	c.sleep(time.Second) // what is under way
	c.take()
	if c.direct() {
		return // by good luck, and meanwhile
	}
	for _, i := range c.users {
		from, f := c.nodes[i], &c.flows[i]
		if p := from.path(c.nodes[1-i]); p.Kind == engine.PathNone {
			c.fail("%s has no path", from.host.Name())
		}
		for number := before[i] + 1; number <= f.sent; number++ {
			if f.arrived[fmt.Sprint("number ", number)] == 0 {
				c.fail("packet %d from %s did not arrive over the relay: %v", number, from.host.Name(), from.path(c.nodes[1-i]))
			}
			c.seen.packets.Add(1)
		}
	}
	c.seen.relayed.Add(1)
}

// event lets one thing happen, and returns when it is over.
func (c *couple) event() {
	i := c.rand.IntN(2)
	n, peer := c.nodes[i], c.nodes[1-i]
	c.slack = 0
	switch c.rand.IntN(9) {
	case 0:
		c.world.Do(func(*simnet.Network) {
			at := c.places.One()
			c.say("%s moves to %s %v", n.host.Name(), at.Segment.Name(), at.Addrs)
			n.host.Move(at.Segment, at.Addrs...)
			c.routers[i] = at.Router
		})
		n.engine.HandleNetworkChange()
	case 1:
		c.say("%s's router restarts", n.host.Name())
		c.world.Do(func(*simnet.Network) {
			if c.routers[i] != nil {
				c.routers[i].Rebind()
			}
		})
	case 2:
		c.say("%s has no default route for 10 s", n.host.Name())
		c.world.Do(func(*simnet.Network) { n.host.SetDefaultRoute(false) })
		n.engine.HandleNetworkChange()
		c.use(10 * time.Second)
		c.world.Do(func(*simnet.Network) { n.host.SetDefaultRoute(true) })
		n.engine.HandleNetworkChange()
		c.begin()
	case 3:
		p := c.path()
		c.say("the internet is like %+v", p)
		c.world.Do(func(n *simnet.Network) { n.SetPath(p) })
	case 4:
		quiet := time.Duration(c.rand.IntN(300)) * time.Second
		c.say("nothing for %v", quiet)
		c.sleep(quiet)
		c.begin()
	case 5:
		c.say("one way fails for 20 s, from %s", n.host.Name())
		c.cut(n, peer, true)
		c.use(20 * time.Second)
		c.cut(n, peer, false)
	case 6:
		away := time.Duration(c.rand.IntN(90)) * time.Second
		c.say("the relay is away for %v", away)
		c.world.Do(func(*simnet.Network) { c.server.SetDown(true) })
		c.use(away)
		c.world.Do(func(*simnet.Network) { c.server.SetDown(false) })
		c.begin()
	case 7:
		c.say("%s's program restarts", n.host.Name())
		n.restart()
		n.apply(n.rules)
		c.begin()
		c.slack = handshakeSlack
	case 8:
		c.say("%s has a new key", n.host.Name())
		n.Rotate()
		for _, j := range c.rand.Perm(2) {
			c.nodes[j].apply(c.nodes[j].rules)
			c.use(time.Duration(c.rand.IntN(500)) * time.Millisecond)
		}
		c.begin()
		c.slack = handshakeSlack
	}
}

// cut stops or lets through what goes from a node to the other.
func (c *couple) cut(from, to *node, cut bool) {
	c.world.Do(func(n *simnet.Network) { n.Cut(from.host, to.host, cut) })
}
