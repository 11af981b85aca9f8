package engine

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/netstack/config"
	"github.com/warren-overlay/warren/netstack/disco"
	"github.com/warren-overlay/warren/netstack/path"
	"github.com/warren-overlay/warren/netstack/route"
	"github.com/warren-overlay/warren/netstack/wg"
)

// apply makes a validated configuration the one in force. What must go goes
// before anything else, and whatever fails later.
func (c *control) apply(cfg *config.Config) error {
	now := c.now()
	if cfg != nil && !now.Before(cfg.Self.NotAfter().Add(cfg.Lead)) {
		c.e.log.Warn("this device's certificate has ended: no peers")
		cfg = nil
	}
	c.collectAll(now)
	rekeyed := cfg != nil && c.cfg != nil && cfg.Self.NodeKey() != c.cfg.Self.NodeKey()
	wanted, claims := c.wanted(cfg, now)
	contested := c.contested(claims, func(ident.NodeKey) bool { return rekeyed })
	var errs []error
	if err := c.suspend(contested); err != nil {
		errs = append(errs, err)
	}

	// Membership that ends. Nothing of these peers can be opened once remove
	// returns.
	for _, p := range c.sorted() {
		if _, stays := wanted[p.key]; !stays || rekeyed {
			c.remove(p)
		}
	}
	c.retreat(claims)
	before := c.cfg
	c.cfg = cfg
	if cfg == nil || before == nil || !sameFilterDevice(before, cfg) {
		c.setFilterDevice(now)
	}
	if cfg == nil {
		c.e.host.forwarding.Store(nil)
		c.setRelays(nil, now)
		c.setMapping()
		return c.configureDevice(nil)
	}

	// Rules, before any packet of a new peer can come.
	var rules *ruleset.RuleSet
	if cfg.Rules != nil {
		rules = cfg.Rules.Set()
	}
	self := cfg.Self.Identity()
	for _, p := range c.sorted() {
		want := wanted[p.key]
		if before.Self != cfg.Self || before.Rules != cfg.Rules || before.ShieldsUp != cfg.ShieldsUp || p.member != want.Member {
			c.refilter(p, want.Member, self, rules, now)
		} else if before.Candidate != cfg.Candidate {
			c.setCandidate(p)
		}
		if !slices.Equal(p.endpoints, want.Endpoints) {
			p.endpoints = slices.Clone(want.Endpoints)
		}
	}
	if err := c.device.SetPrivateKey(cfg.PrivateKey); err != nil {
		errs = append(errs, err)
	}
	for _, want := range cfg.Peers {
		key := want.Member.NodeKey()
		if _, wanted := wanted[key]; !wanted || c.peers[key] != nil {
			continue
		}
		if err := c.add(want, self, rules, now); err != nil {
			errs = append(errs, fmt.Errorf("engine: adding %s: %w", want.Member.Name(), err))
		}
	}
	for _, p := range c.peers {
		p.allowed = claims[p.key]
	}
	if err := c.publishTable(cfg, contested); err != nil {
		errs = append(errs, err)
	}
	if err := c.setTunnels(); err != nil {
		errs = append(errs, err)
	}
	if len(contested) > 0 {
		if c.e.suspended != nil {
			c.e.suspended()
		}
		if err := c.publishTable(cfg, nil); err != nil {
			errs = append(errs, err)
		}
	}
	c.setRelays(cfg, now)
	c.bringUp(now)
	c.resolve.set(cfg.STUN)
	c.setMapping()
	c.underlay.set(cfg.Underlay)
	if err := c.configureDevice(cfg); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// wanted returns the peers of a configuration that are members now, and which
// prefixes each of them gets. A prefix has one owner: a device's own addresses
// go before routes, and of several routers one has the route (assign).
func (c *control) wanted(cfg *config.Config, now time.Time) (map[ident.NodeKey]config.Peer, map[ident.NodeKey][]netip.Prefix) {
	peers := make(map[ident.NodeKey]config.Peer)
	claims := make(map[ident.NodeKey][]netip.Prefix)
	if cfg == nil {
		c.standby = standby{}
		return peers, claims
	}
	taken := make(map[netip.Prefix]bool)
	for _, a := range cfg.Self.Identity().Addresses {
		taken[netip.PrefixFrom(a, a.BitLen())] = true
	}
	inOrder := slices.Clone(cfg.Peers)
	slices.SortFunc(inOrder, func(a, b config.Peer) int { return compareNodes(a.Member, b.Member) })
	claim := func(key ident.NodeKey, p netip.Prefix) {
		if !taken[p] {
			taken[p] = true
			claims[key] = append(claims[key], p)
		}
	}
	for _, p := range inOrder {
		if !now.Before(p.Member.NotAfter().Add(cfg.Lead)) {
			c.e.log.Warn("peer's certificate has ended", "peer", p.Member.Name())
			continue
		}
		key := p.Member.NodeKey()
		peers[key] = p
		for _, a := range p.Member.Identity().Addresses {
			claim(key, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	members := slices.DeleteFunc(slices.Clone(inOrder), func(p config.Peer) bool {
		_, member := peers[p.Member.NodeKey()]
		return !member
	})
	holders := c.assign(members)
	for _, p := range members {
		for _, r := range p.Routes {
			if key := p.Member.NodeKey(); holders[r] == key {
				claim(key, r)
			}
		}
	}
	return peers, claims
}

// retreat removes the tunnels of peers that lose a prefix to another one, so
// that no packet that the one has sent is taken for the other's. They are added
// again with the prefixes that they keep.
func (c *control) retreat(claims map[ident.NodeKey][]netip.Prefix) {
	owner := make(map[netip.Prefix]ident.NodeKey)
	for key, prefixes := range claims {
		for _, p := range prefixes {
			owner[p] = key
		}
	}
	for _, p := range c.peers {
		for _, prefix := range p.allowed {
			if now, owned := owner[prefix]; owned && now != p.key {
				c.device.RemovePeer(p.key)
				p.tunnel, p.retreated = nil, true
				break
			}
		}
	}
}

// remove ends a peer, in the order of packet-filter.md, P20. What of its
// prefixes is contested must be suspended.
func (c *control) remove(p *peer) {
	c.device.RemovePeer(p.key)
	p.mu.Lock()
	p.filter.Remove()
	p.mu.Unlock()
	c.drainCuts(p)
	c.collect(p, c.now())
	c.e.host.retire(p)
	c.retirePaths(p)
	p.endSockets()
	delete(c.peers, p.key)
	c.deadlines.set(p, time.Time{})
	p.rearm, p.sweep, p.collect = time.Time{}, time.Time{}, time.Time{}
}

// expire removes a peer whose certificate has ended.
func (c *control) expire(p *peer) {
	c.e.log.Info("peer's certificate has ended", "peer", p.member.Name())
	contested := c.contested(c.claimsWithout(p), func(ident.NodeKey) bool { return false })
	if err := c.suspend(contested); err != nil {
		c.e.log.Error("finding peers", "error", err)
	}
	c.remove(p)
	if c.standby.routers[p.key] != nil {
		// Another router has its routes from now on.
		if err := c.apply(c.cfg); err != nil {
			c.e.log.Warn("giving routes to another router", "error", err)
		}
		return
	}
	if err := c.publishTable(c.cfg, nil); err != nil {
		c.e.log.Error("finding peers", "error", err)
	}
	if err := c.configureDevice(c.cfg); err != nil {
		c.e.log.Warn("configuring the TUN device", "error", err)
	}
}

// refilter gives a peer that stays another certificate or other rules, and ends
// the flows that they do not admit.
func (c *control) refilter(p *peer, member *authority.Peer, self *ident.Identity, rules *ruleset.RuleSet, now time.Time) {
	p.member = member
	identity := member.Identity()
	narrowed := rules.ForPeer(self, identity)
	p.mu.Lock()
	p.name = member.Name()
	p.filter.SetRules(self, identity, narrowed, now)
	p.filter.SetShields(c.cfg.ShieldsUp, now)
	c.setEnd(p, now)
	p.mu.Unlock()
	c.setCandidate(p)
	c.sweep(p, now)
}

// setCandidate gives a peer the candidate document's rules. Its flows stay as
// they are.
func (c *control) setCandidate(p *peer) {
	var narrowed *ruleset.PeerRules
	if c.cfg.Candidate != nil {
		narrowed = c.cfg.Candidate.ForPeer(c.cfg.Self.Identity(), p.member.Identity())
	}
	p.mu.Lock()
	p.filter.SetCandidate(narrowed)
	p.mu.Unlock()
}

// add makes a peer that the data path does not know yet.
func (c *control) add(want config.Peer, self *ident.Identity, rules *ruleset.RuleSet, now time.Time) error {
	sealer, opener, err := disco.NewPair(c.cfg.PrivateKey, want.Member.NodeKey())
	if err != nil {
		return err
	}
	agent, err := path.New(path.Config{Rand: c.e.cfg.Rand, Loopback: c.loopback, Refuse: c.refuses, MTU: c.tunnelMTU(), RelayMTU: relayMTU, Birthday: c.birthday}, now)
	if err != nil {
		return err
	}
	identity := want.Member.Identity()
	p := &peer{
		key: want.Member.NodeKey(), node: want.Member.Node(), name: want.Member.Name(), member: want.Member,
		endpoints: slices.Clone(want.Endpoints),
		sealer:    sealer, opener: opener, agent: agent, place: -1,
	}
	p.notePath(wg.Path{}) // there is always one to follow
	p.filter = filter.NewPeer(c.filter, self, identity, rules.ForPeer(self, identity), now)
	p.filter.SetShields(c.cfg.ShieldsUp, now)
	c.setEnd(p, now)
	c.setCandidate(p)
	c.takeOver(p, now)
	c.peers[p.key] = p
	return nil
}

// refuses reports whether an address must not be probed: one inside the overlay.
// One that is only routed there may be: what carries the tunnel never goes into
// it.
func (c *control) refuses(a netip.Addr) bool {
	f := c.e.host.forwarding.Load()
	if f == nil {
		return false
	}
	if slices.Contains(f.self, a) || c.cfg != nil && slices.ContainsFunc(c.cfg.Overlay, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return true
	}
	p := f.lookup(a)
	return p != nil && p.member.Identity().OwnsAddress(a)
}

// publishTable gives the data path the peers of a configuration; suspended
// prefixes are nobody's. Where the table can not be built, it gets none.
func (c *control) publishTable(cfg *config.Config, suspended []netip.Prefix) error {
	if cfg == nil {
		c.e.host.forwarding.Store(nil)
		return nil
	}
	f := &forwarding{
		peers: c.sorted(), byKey: maps.Clone(c.peers), self: slices.Clone(cfg.Self.Identity().Addresses),
		byTag: make(map[disco.Tag]*peer, len(c.peers)),
	}
	for _, p := range f.peers {
		f.byTag[p.opener.Tag()] = p
	}
	var entries []route.Entry
	none := make(map[netip.Prefix]bool, len(suspended))
	for _, prefix := range suspended {
		none[prefix] = true
		// There is no peer with this number: lookup finds none.
		entries = append(entries, route.Entry{Prefix: prefix, Peer: route.Peer(len(f.peers))})
	}
	for i, p := range f.peers {
		identity := p.member.Identity()
		for _, prefix := range p.allowed {
			if none[prefix] {
				continue
			}
			own := prefix.IsSingleIP() && identity.OwnsAddress(prefix.Addr())
			entries = append(entries, route.Entry{Prefix: prefix, Peer: route.Peer(i), Own: own})
		}
	}
	table, err := route.New(entries)
	if err != nil {
		c.e.host.forwarding.Store(nil)
		return fmt.Errorf("engine: building the table of peers: %w", err)
	}
	f.table = table
	c.e.host.forwarding.Store(f)
	return nil
}

// setTunnels makes WireGuard's peers those of the configuration.
func (c *control) setTunnels() error {
	tunnels := make([]wg.PeerConfig, 0, len(c.peers))
	for _, p := range c.sorted() {
		tunnels = append(tunnels, wg.PeerConfig{Key: p.key, AllowedIPs: p.allowed})
	}
	err := c.device.SetPeers(tunnels)
	for _, p := range c.sorted() {
		if tunnel := c.device.Peer(p.key); tunnel != nil {
			if p.tunnel != tunnel {
				p.tunnel = tunnel
				p.sealing.Store(tunnel)
				c.setPath(p)
			}
			if p.retreated {
				p.retreated = false
				err = errors.Join(err, c.device.BeginHandshake(p.key))
			}
			continue
		}
		c.remove(p) // the error says why
	}
	return err
}

// bringUp tells new agents what the others know.
func (c *control) bringUp(now time.Time) {
	report := c.nat.Report()
	endpoints := candidates(report)
	for _, p := range c.peers {
		p.agent.SetLocalCandidates(endpoints, now)
		p.setMapping(c, report)
		p.agent.HandleRelayState(c.relayed, now)
		p.agent.SetRemoteCandidates(p.endpoints, now)
		if p.heir {
			// What was not taken over is told to both sides, now that there
			// is a tunnel.
			p.heir = false
			c.sweep(p, now)
		}
		c.drain(p)
	}
}

// sorted returns the peers in the order of their ids.
func (c *control) sorted() []*peer {
	all := make([]*peer, 0, len(c.peers))
	for _, p := range c.peers {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *peer) int { return compareNodes(a.member, b.member) })
	return all
}

func compareNodes(a, b *authority.Peer) int {
	switch {
	case a.Node() < b.Node():
		return -1
	case a.Node() > b.Node():
		return 1
	}
	ka, kb := a.NodeKey(), b.NodeKey()
	return slices.Compare(ka[:], kb[:])
}
