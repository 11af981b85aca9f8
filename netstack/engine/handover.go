package engine

import (
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/ident"
)

// takeOverStep is how many flows are taken over at a time: no more than whose
// events fit.
const takeOverStep = filter.MaxEvents / 2

// handOver ends all flows without a word and leaves them to the next run.
func (c *control) handOver() {
	if c.e.cfg.HandOver == nil || c.cfg == nil {
		return
	}
	now := c.now()
	s := &filter.Snapshot{Self: c.cfg.Self.NodeKey(), At: now.Round(0)}
	c.collectAll(now)
	for _, p := range c.peers {
		p.mu.Lock()
		flows := p.filter.HandOver(now)
		p.mu.Unlock()
		if len(flows) > 0 {
			s.Peers = append(s.Peers, filter.PeerFlows{Peer: p.key, Flows: flows})
		}
		c.collect(p, now)
	}
	if len(s.Peers) == 0 {
		return
	}
	slices.SortFunc(s.Peers, func(a, b filter.PeerFlows) int { return slices.Compare(a.Peer[:], b.Peer[:]) })
	c.e.cfg.HandOver(s)
}

// inheritance is what the run before has left, for peers that are not there yet.
type inheritance struct {
	self  ident.NodeKey
	at    time.Time
	peers map[ident.NodeKey][]filter.SavedFlow
}

func newInheritance(s *filter.Snapshot) *inheritance {
	if s == nil {
		return nil
	}
	h := &inheritance{self: s.Self, at: s.At, peers: make(map[ident.NodeKey][]filter.SavedFlow, len(s.Peers))}
	for _, p := range s.Peers {
		h.peers[p.Peer] = p.Flows
	}
	return h
}

// takeOver goes on with the flows that the run before had with p, a peer that
// no packet can reach yet. Each is taken over at most once.
func (c *control) takeOver(p *peer, now time.Time) {
	c.forgetInheritance(now)
	h := c.inherited
	if h == nil {
		return
	}
	if h.self != c.cfg.Self.NodeKey() {
		c.e.log.Warn("the flows of the last run are another device's and not taken over")
		c.inherited = nil
		return
	}
	flows := h.peers[p.key]
	if delete(h.peers, p.key); len(h.peers) == 0 {
		c.inherited = nil
	}
	taken := 0
	for step := range slices.Chunk(flows, takeOverStep) {
		p.mu.Lock()
		taken += p.filter.TakeOver(step, h.at, now)
		p.mu.Unlock()
		c.collect(p, now)
	}
	if len(flows) > 0 {
		p.heir = true
		c.e.log.Info("flows of the last run go on", "peer", p.member.Name(), "flows", taken, "ended", len(flows)-taken)
	}
}

// forgetInheritance gives up what is too old to be taken over.
func (c *control) forgetInheritance(now time.Time) {
	if c.inherited == nil {
		return
	}
	if age := now.Round(0).Sub(c.inherited.at); age < 0 || age > filter.MaxSnapshotAge {
		c.e.log.Info("flows of the last run are too old to go on, or of the future", "peers", len(c.inherited.peers), "age", age)
		c.inherited = nil
	}
}
