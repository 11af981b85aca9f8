package sim

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/enginetest"
	"github.com/warren-overlay/warren/netstack/simnet"
)

var (
	seeds = flag.Int("seeds", 0, "how many seeds TestSeeds and TestPairs try, 0 for 50 and 600, or 15 and 30 with -short")
	seed  = flag.Uint64("seed", 0, "the one seed that they try, 0 for all")
)

// TestSeeds lets whole engines live through a history that a seed makes up:
// NATs, loss, roaming, outages, rotated keys, changed rules, removals. All the
// time a model, which knows nothing but who may open what, judges every packet
// that arrives; after each event it says which must arrive.
//
// A history is the seed's; keys and timers of the engines have a randomness of
// their own, so that a failure that hangs on them may need some repetitions.
func TestSeeds(t *testing.T) {
	t.Parallel()
	first, last := uint64(1), uint64(*seeds)
	if *seeds == 0 {
		last = uint64(sized(50, 15))
	}
	if *seed != 0 {
		first, last = *seed, *seed
	}
	for n := first; n <= last; n++ {
		passed := t.Run(fmt.Sprint(n), func(t *testing.T) {
			run(t, n, func(s *sim) { newHistory(s, n).play() })
		})
		if !passed {
			t.Fatalf("seed %d; to repeat: go test ./tests/sim -run TestSeeds -seed %d", n, n)
		}
	}
}

const (
	// packetPort is the destination of the packets that the model judges.
	packetPort = 7777
	// lasting is the first source port of the flows that last for the whole
	// history, one for each pair; those of the others are below.
	lasting = 60000
)

// events is how much happens in one history.
const events = 8

// history is one run and the model that judges it.
type history struct {
	*sim
	rand    *rand.Rand
	places  *simnet.Places
	members []*member
	said    []string // what happened, for who reads a failure
	port    uint16   // the last source port of a flow

	mu   sync.Mutex         // protects all below, and members' rules and applied
	sent map[string]*parcel // by the packet
}

// member is a node with what the model knows of it.
type member struct {
	*node
	index  int
	router *simnet.Router // nil on the internet itself
	// lenient nodes let everything out, as one whose own filter is broken.
	lenient bool
	// gone members were removed: nobody may hear of them.
	gone bool
	// may[o][d] says that this node's rules let o open flows to d; o or d is
	// this node. It is a superset while rules change.
	may map[[2]int]bool
}

// parcel is a packet that was sent.
type parcel struct {
	opener, target int // of the flow
	to             int
	// either says that the packet may belong to a flow that target opened: an
	// answer whose flow has ended opens one of its own.
	either  bool
	arrived int
}

func newHistory(s *sim, seed uint64) *history {
	h := &history{sim: s, rand: rand.New(rand.NewPCG(seed, 1)), sent: map[string]*parcel{}}
	s.dualStack()
	s.world.Do(func(n *simnet.Network) {
		h.places = simnet.NewPlaces(n, h.rand, func(site string) { h.say("%s", site) })
	})
	return h
}

func (h *history) say(format string, args ...any) {
	h.said = append(h.said, fmt.Sprintf("%8.1fs ", time.Since(bubbleStart).Seconds())+fmt.Sprintf(format, args...))
}

func (h *history) fail(format string, args ...any) {
	h.Helper()
	h.Fatalf("%s\nhistory:\n%s", fmt.Sprintf(format, args...), strings.Join(h.said, "\n"))
}

// sleep lets simulated time go by, and all come to rest.
func (h *history) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// play lives through the history.
func (h *history) play() {
	for i := range 2 + h.rand.IntN(3) {
		h.join(i)
	}
	h.policy()
	for _, m := range h.members {
		m.connected()
	}
	h.check()
	for range events {
		h.event()
		h.tell()
		h.check()
	}
	h.heal()
}

func (h *history) join(i int) {
	m := &member{index: i, may: map[[2]int]bool{}, lenient: h.rand.IntN(4) == 0}
	name := fmt.Sprint("n", i)
	var host *simnet.Host
	h.world.Do(func(n *simnet.Network) {
		at := h.places.One()
		m.router, host = at.Router, at.Segment.NewHost(name, at.Addrs...)
		h.say("%s joins in %s at %v, lenient: %v", name, at.Segment.Name(), at.Addrs, m.lenient)
	})
	m.node = h.sim.start(name, host, nil)
	h.members = append(h.members, m)
	h.running.Go(func() {
		for {
			select {
			case <-h.ctx.Done():
				return
			case b := <-m.tun.Received():
				h.judge(m, b)
			}
		}
	})
}

// judge is called for every packet that m's applications get.
func (h *history) judge(m *member, b []byte) {
	info := parsed(h, b)
	if info.Protocol != packet.UDP {
		return // an ICMP error of a filter
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	p, ok := h.sent[string(b)]
	switch {
	case !ok:
		h.Errorf("n%d got a packet that nobody sent: %+v", m.index, info)
	case p.to != m.index:
		h.Errorf("n%d got a packet to n%d", m.index, p.to)
	case p.arrived > 0:
		h.Errorf("n%d got a packet twice", m.index)
	case p.either && m.may[[2]int{p.target, p.opener}]:
	case !m.may[[2]int{p.opener, p.target}]:
		h.Errorf("n%d got a packet of a flow from n%d to n%d, which no rule of it allows", m.index, p.opener, p.target)
	}
	if ok {
		p.arrived++
	}
}

// policy makes up who may open flows to whom, and tells all.
func (h *history) policy() {
	open := map[[2]int]bool{}
	var text []string
	for i := range h.members {
		for j := range h.members {
			if i != j && h.rand.IntN(2) == 0 {
				open[[2]int{i, j}] = true
				text = append(text, fmt.Sprintf("n%d>n%d", i, j))
			}
		}
	}
	h.say("policy: %s", strings.Join(text, " "))
	h.apply(open)
}

// apply gives the members their rules one after another, in a random order.
func (h *history) apply(open map[[2]int]bool) {
	for _, i := range h.rand.Perm(len(h.members)) {
		m := h.members[i]
		if m.gone {
			continue
		}
		next := map[[2]int]bool{}
		set := &ruleset.RuleSet{}
		m.peers = nil
		for j, other := range h.members {
			if i == j || other.gone {
				continue
			}
			m.peers = append(m.peers, other.node)
			if to := [2]int{i, j}; open[to] || m.lenient {
				next[to] = true
				set.Out = append(set.Out, enginetest.Allow("rule", other.Member, ruleset.AnyProtocol, 0))
			}
			if from := [2]int{j, i}; open[from] {
				next[from] = true
				set.In = append(set.In, enginetest.Allow("rule", other.Member, ruleset.AnyProtocol, 0))
			}
		}
		// What either allows may pass while the rules change.
		h.mu.Lock()
		for flow := range next {
			m.may[flow] = true
		}
		h.mu.Unlock()
		m.node.apply(set)
		synctest.Wait()
		h.mu.Lock()
		m.may = next
		h.mu.Unlock()
		if h.rand.IntN(3) == 0 {
			h.sleep(time.Duration(h.rand.IntN(500)) * time.Millisecond)
		}
	}
}

// open returns who may open flows to whom: what the receiver allows, since the
// sender's own word does not count.
func (h *history) open() map[[2]int]bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := map[[2]int]bool{}
	for j, m := range h.members {
		for flow := range m.may {
			if flow[1] == j && !m.gone {
				all[flow] = true
			}
		}
	}
	return all
}

// tell passes on where the members are, as a coordinator does after a while.
func (h *history) tell() {
	h.sleep(time.Duration(h.rand.IntN(3000)) * time.Millisecond)
	for _, m := range h.members {
		if !m.gone {
			m.Endpoints = m.engine.Status().Endpoints
		}
	}
	h.apply(h.open())
}

// present returns a member that was not removed.
func (h *history) present() *member {
	for {
		if m := h.members[h.rand.IntN(len(h.members))]; !m.gone {
			return m
		}
	}
}

// event lets one thing happen.
func (h *history) event() {
	m := h.present()
	switch h.rand.IntN(9) {
	case 0, 1:
		h.policy()
	case 2:
		h.world.Do(func(n *simnet.Network) {
			at := h.places.One()
			m.router = at.Router
			m.host.Move(at.Segment, at.Addrs...)
			h.say("n%d moves to %s at %v", m.index, at.Segment.Name(), at.Addrs)
		})
		m.engine.HandleNetworkChange()
	case 3:
		if m.router == nil {
			return
		}
		h.say("n%d's router restarts", m.index)
		h.world.Do(func(*simnet.Network) { m.router.Rebind() })
	case 4:
		h.say("the relay goes")
		h.world.Do(func(*simnet.Network) { h.server.SetDown(true) })
		h.sleep(time.Duration(h.rand.IntN(120)) * time.Second)
		h.world.Do(func(*simnet.Network) { h.server.SetDown(false) })
		h.say("the relay is back")
	case 5:
		m.Rotate()
		h.say("n%d has a new key", m.index)
	case 6:
		path := simnet.Path{
			Delay:  time.Duration(5+h.rand.IntN(100)) * time.Millisecond,
			Jitter: time.Duration(h.rand.IntN(30)) * time.Millisecond,
			Loss:   h.rand.Float64() * 0.1, Duplicate: h.rand.Float64() * 0.2,
			Reorder: h.rand.Float64() * 0.2, Corrupt: h.rand.Float64() * 0.02,
		}
		h.say("the internet is like %+v", path)
		h.world.Do(func(n *simnet.Network) { n.SetPath(path) })
	case 7:
		quiet := time.Duration(h.rand.IntN(900)) * time.Second
		h.say("nothing happens for %v", quiet)
		h.sleep(quiet)
	case 8:
		left := 0
		for _, other := range h.members {
			if !other.gone {
				left++
			}
		}
		if left <= 2 {
			return
		}
		h.say("n%d is removed", m.index)
		m.gone = true
		h.apply(h.open())
	}
}

// check sends packets of new flows between all members, and answers: what the
// rules allow must arrive, and nothing else does.
func (h *history) check() {
	for i, from := range h.members {
		for j, to := range h.members {
			if i == j {
				continue
			}
			h.last(from, to)
			h.port = max(h.port+1, 1024)
			h.mu.Lock()
			allowed := !from.gone && !to.gone && to.may[[2]int{i, j}] && from.may[[2]int{i, j}]
			h.mu.Unlock()
			if !allowed {
				for range 3 {
					h.send(from, to, i, j, h.port)
					h.sleep(100 * time.Millisecond)
				}
				continue
			}
			h.arrives(from, to, i, j)
			h.arrives(to, from, i, j)
		}
	}
	// Time for what must not arrive to arrive.
	h.sleep(2 * time.Second)
	if h.Failed() {
		h.fail("see above")
	}
}

// last sends a packet each way of the flow that lasts. Whether it arrives is a
// matter of what was allowed before; the model says when it may not.
func (h *history) last(from, to *member) {
	port := lasting + uint16(from.index*len(h.members)+to.index)
	h.send(from, to, from.index, to.index, port)
	h.sleep(200 * time.Millisecond)
	h.send(to, from, from.index, to.index, port)
	h.sleep(200 * time.Millisecond)
}

// recovery is how long a packet that is allowed may take from the first try,
// whatever happened before: a path that is dead must be noticed, or a relay be
// connected to again, and a handshake be made on a way that loses and corrupts (F13).
const recovery = failover + 15*time.Second

// arrives sends packets of a flow until one arrives.
func (h *history) arrives(from, to *member, opener, target int) {
	h.Helper()
	begin := time.Now()
	for time.Since(begin) < recovery {
		p := h.send(from, to, opener, target, h.port)
		h.sleep(500 * time.Millisecond)
		h.mu.Lock()
		arrived := p.arrived > 0
		h.mu.Unlock()
		if arrived {
			return
		}
	}
	h.fail("nothing arrives from n%d at n%d within %v\n%+v\n%+v", from.index, to.index, recovery, from.engine.Status(), to.engine.Status())
}

// send sends a packet of the flow that opener has to target from a port.
func (h *history) send(from, to *member, opener, target int, port uint16) *parcel {
	out, in := netip.AddrPortFrom(from.Addr4(), port), netip.AddrPortFrom(to.Addr4(), packetPort)
	if from.index != opener {
		out, in = netip.AddrPortFrom(from.Addr4(), packetPort), netip.AddrPortFrom(to.Addr4(), port)
	}
	h.mu.Lock()
	b := enginetest.UDP(out, in, fmt.Sprint(len(h.sent)))
	p := &parcel{opener: opener, target: target, to: to.index, either: port >= lasting}
	h.sent[string(b)] = p
	h.mu.Unlock()
	from.tun.Send(slices.Clone(b))
	return p
}

// heal ends what was bad and allows everything. Within 10 s of the last change every
// pair talks directly where the NATs permit it, and over the relay where they do not.
func (h *history) heal() {
	h.say("all is well")
	h.world.Do(func(n *simnet.Network) { n.SetPath(simnet.Path{Delay: 20 * time.Millisecond}) })
	open := map[[2]int]bool{}
	for i := range h.members {
		for j := range h.members {
			open[[2]int{i, j}] = i != j
		}
	}
	h.apply(open)
	h.tell()
	h.together(directLimit)
	var relayed [][2]*member
	for i, a := range h.members {
		for _, b := range h.members[:i] {
			if a.gone || b.gone {
				continue
			}
			possible := false
			h.world.Do(func(*simnet.Network) {
				// Of several peers the guesses take turns, and spoil each other's;
				// TestPairs has them.
				possible = simnet.DirectUnguessed(a.host, b.host)
			})
			there, back := a.path(b.node), b.path(a.node)
			switch {
			case there.Kind == engine.PathDirect && back.Kind == engine.PathDirect:
			case possible:
				h.fail("n%d and n%d are not direct within %v: %v, %v", a.index, b.index, directLimit, there, back)
			default:
				relayed = append(relayed, [2]*member{a, b}, [2]*member{b, a})
			}
		}
	}
	parcels := h.together(2 * time.Second)
	h.sleep(time.Second) // what is under way
	for _, pair := range relayed {
		from, to := pair[0], pair[1]
		if from.path(to.node).Kind == engine.PathDirect {
			continue // meanwhile
		}
		h.mu.Lock()
		lost := 0
		for _, p := range parcels[pair] {
			if p.arrived == 0 {
				lost++
			}
		}
		h.mu.Unlock()
		if lost > 0 {
			h.fail("of %d packets from n%d to n%d the relay lost %d", len(parcels[pair]), from.index, to.index, lost)
		}
	}
	h.check()
}

// together has every member send to every other for a while, and returns what was
// sent.
func (h *history) together(d time.Duration) map[[2]*member][]*parcel {
	parcels := map[[2]*member][]*parcel{}
	h.port++
	for begin := time.Now(); time.Since(begin) < d; h.sleep(200 * time.Millisecond) {
		for i, from := range h.members {
			for j, to := range h.members {
				if i != j && !from.gone && !to.gone {
					pair := [2]*member{from, to}
					parcels[pair] = append(parcels[pair], h.send(from, to, i, j, h.port))
				}
			}
		}
	}
	return parcels
}
