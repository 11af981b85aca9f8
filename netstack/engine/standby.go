package engine

import (
	"encoding/binary"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/config"
)

// Several peers may have one route. One of them has the prefix; while packets
// go to it, it is asked every second whether it is there, and when it stays
// silent for silenceLimit the next one gets the prefix. Nothing else moves a
// prefix: neither what the coordinator says of who is online, nor that the
// preferred one came back, which would end flows for no gain.
const (
	// askInterval is how often a router in use is asked.
	askInterval = time.Second
	// silenceLimit is three questions without an answer. With askInterval it
	// bounds the time until another router has the prefix to 3.5 s.
	silenceLimit = 2500 * time.Millisecond
	// deadInterval is how often a router that was given up is asked.
	deadInterval = 5 * time.Second
	// useLimit is for how long after its last packet a router counts as used.
	useLimit = 15 * time.Second
	// answerGap is the least time between two answers to one peer.
	answerGap = 100 * time.Millisecond
	// maxAnswers bounds the answers that wait for the control goroutine.
	maxAnswers = 64
)

// standby is what is known of the routers of prefixes that have several.
type standby struct {
	// holders says who has a prefix.
	holders map[netip.Prefix]ident.NodeKey
	// groups are the candidates for each prefix that has several, in the order
	// of preference.
	groups  map[netip.Prefix][]ident.NodeKey
	routers map[ident.NodeKey]*routerHealth
	next    time.Time // when ask is called next; zero for not
}

// routerHealth is what is known of one candidate.
type routerHealth struct {
	used  time.Time // when its last packet passed, about
	asked time.Time // when it was last asked
	// since is when the first question was asked that is not answered; zero
	// for none.
	since time.Time
	dead  bool
	nonce uint64
}

// suspect reports whether a question went unanswered.
func (h *routerHealth) suspect(now time.Time) bool {
	return h.dead || !h.since.IsZero() && now.Sub(h.since) >= askInterval/2
}

// answer takes an answer, and reports whether the router is another than it was
// taken for.
func (h *routerHealth) answer(serving bool) bool {
	h.since = time.Time{}
	changed := serving == h.dead
	h.dead = !serving
	return changed
}

// assign says who has each route of the peers, which are in order.
func (c *control) assign(inOrder []config.Peer) map[netip.Prefix]ident.NodeKey {
	candidates := make(map[netip.Prefix][]ident.NodeKey)
	for _, p := range inOrder {
		for _, r := range p.Routes {
			candidates[r] = append(candidates[r], p.Member.NodeKey())
		}
	}
	s := &standby{
		holders: make(map[netip.Prefix]ident.NodeKey), groups: make(map[netip.Prefix][]ident.NodeKey),
		routers: make(map[ident.NodeKey]*routerHealth), next: c.standby.next,
	}
	for prefix, keys := range candidates {
		if len(keys) > 1 {
			s.groups[prefix] = keys
			for _, key := range keys {
				h := c.standby.routers[key]
				if h == nil {
					h = &routerHealth{}
				}
				s.routers[key] = h
			}
		}
		before, had := c.standby.holders[prefix]
		s.holders[prefix] = s.choose(keys, before, had)
	}
	c.standby = *s
	return s.holders
}

// choose returns the candidate that is to have a prefix: the one that has it
// unless that is dead, else the first that is not.
func (s *standby) choose(keys []ident.NodeKey, before ident.NodeKey, had bool) ident.NodeKey {
	alive := func(key ident.NodeKey) bool { h := s.routers[key]; return h == nil || !h.dead }
	had = had && slices.Contains(keys, before)
	if had && alive(before) {
		return before
	}
	// Those that owe no answer go before those that do.
	for _, fit := range []func(ident.NodeKey) bool{
		func(key ident.NodeKey) bool { h := s.routers[key]; return h == nil || !h.dead && h.since.IsZero() }, alive,
	} {
		if i := slices.IndexFunc(keys, fit); i >= 0 {
			return keys[i]
		}
	}
	if had {
		return before
	}
	return keys[0]
}

// handleUse notices that packets go to p.
func (c *control) handleUse(p *peer, now time.Time) {
	if h := c.standby.routers[p.key]; h != nil {
		h.used = now
		c.ask(now)
	}
}

// ask asks the routers that are due, gives up those that stay silent, and sets
// the time of the next call.
func (c *control) ask(now time.Time) {
	due, lost := c.standby.step(now)
	for _, key := range due {
		c.sendAsk(key, c.standby.routers[key], now)
	}
	for _, key := range lost {
		c.e.log.Warn("a router does not answer; its routes go to another", "peer", c.nameOf(key))
	}
	if len(lost) > 0 {
		c.reassign()
	}
}

// step returns the routers that are to be asked now, as if that had been done,
// and those that are given up, and sets the time of the next call.
func (s *standby) step(now time.Time) (due, lost []ident.NodeKey) {
	s.next = time.Time{}
	wanted := make(map[ident.NodeKey]bool)
	for prefix, keys := range s.groups {
		holder := s.routers[s.holders[prefix]]
		if holder == nil || holder.used.IsZero() || now.Sub(holder.used) >= useLimit {
			continue
		}
		for _, key := range keys {
			// The others are asked when it gets doubtful, so that the choice
			// falls on one that is there.
			if key == s.holders[prefix] || holder.suspect(now) || s.routers[key].dead {
				wanted[key] = true
			}
		}
	}
	for key, h := range s.routers {
		if !wanted[key] {
			h.since = time.Time{} // nobody waits for it
			continue
		}
		interval := askInterval
		if h.dead {
			interval = deadInterval
		}
		if now.Sub(h.asked) >= interval {
			due = append(due, key)
			h.asked = now
			if h.since.IsZero() {
				h.since = now
			}
		}
		if !h.dead && !h.since.IsZero() && now.Sub(h.since) >= silenceLimit {
			h.dead = true
			lost = append(lost, key)
		}
		s.next = earlier(s.next, h.asked.Add(interval))
		if !h.dead && !h.since.IsZero() {
			s.next = earlier(s.next, h.since.Add(silenceLimit))
		}
	}
	return due, lost
}

// sendAsk asks one router, through the tunnel and past the filter.
func (c *control) sendAsk(key ident.NodeKey, h *routerHealth, now time.Time) {
	p := c.peers[key]
	if p == nil {
		return
	}
	from, to, ok := c.inbandAddresses(p)
	if !ok {
		return
	}
	var raw [8]byte
	if _, err := io.ReadFull(c.e.cfg.Rand, raw[:]); err != nil {
		c.e.log.Warn("asking a router", "error", err)
		return
	}
	h.nonce = binary.BigEndian.Uint64(raw[:])
	if h.dead {
		// One that was started again does not know the session.
		c.beginHandshake(key)
	}
	c.e.host.reader.inject(appendInband(nil, from, to, inband{kind: kindAsk, nonce: h.nonce}))
	p.agent.HandleOutboundUse(now)
	c.drain(p)
}

// handleRouterAnswer notices that a router is there, and whether it serves.
func (c *control) handleRouterAnswer(a answer) {
	h := c.standby.routers[a.p.key]
	if h == nil || a.m.nonce != h.nonce || h.nonce == 0 {
		return
	}
	h.nonce = 0
	if !h.answer(a.m.flags&flagServing != 0) {
		return
	}
	if h.dead {
		c.e.log.Warn("a router does not serve its routes; they go to another", "peer", c.nameOf(a.p.key))
	} else {
		c.e.log.Info("a router is back", "peer", c.nameOf(a.p.key))
	}
	c.reassign()
}

// reassign chooses anew and carries it out where it makes a difference.
func (c *control) reassign() {
	for prefix, keys := range c.standby.groups {
		before := c.standby.holders[prefix]
		if c.standby.choose(keys, before, true) == before {
			continue
		}
		if err := c.apply(c.cfg); err != nil {
			c.e.log.Warn("giving routes to another router", "error", err)
		}
		c.beginHandshake(c.standby.holders[prefix])
		return
	}
}

// beginHandshake has a session made at once, in case that the present one is
// known to this side only.
func (c *control) beginHandshake(key ident.NodeKey) {
	if err := c.device.BeginHandshake(key); err != nil {
		c.e.log.Debug("beginning a handshake", "peer", c.nameOf(key), "error", err)
	}
}

func (c *control) nameOf(key ident.NodeKey) string {
	if p := c.peers[key]; p != nil {
		return p.member.Name()
	}
	return key.Short()
}
