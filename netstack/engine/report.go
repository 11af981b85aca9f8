package engine

import (
	"slices"
	"strings"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/wg"
)

// status returns the state for people.
func (c *control) status() Status {
	name, err := c.e.cfg.TUN.Name()
	if err != nil {
		name = ""
	}
	report := c.nat.Report()
	s := Status{
		Running: true, Configured: c.cfg != nil,
		Device: name, Port: c.device.Port(), Endpoints: slices.Clone(report.Endpoints), NAT: report, Mapping: c.mapping.mapper.Mapping(),
		Pinholes: c.mapping.pinholes.Mappings(), Relays: c.relayStatus(), Drops: c.drops(),
	}
	if i := slices.IndexFunc(s.Relays, func(r RelayStatus) bool { return r.Home }); i >= 0 {
		home := s.Relays[i]
		s.Relay = &home
	}
	if c.cfg != nil && c.cfg.Rules != nil {
		s.Epoch = c.cfg.Rules.Set().Epoch
	}
	stats, err := c.device.Stats()
	if err != nil {
		c.e.log.Warn("listing the tunnels", "error", err)
	}
	for _, p := range c.sorted() {
		s.Peers = append(s.Peers, c.peerStatus(p, stats[p.key]))
	}
	slices.SortStableFunc(s.Peers, func(a, b PeerStatus) int { return strings.Compare(a.Name, b.Name) })
	return s
}

func (c *control) peerStatus(p *peer, stats wg.Stats) PeerStatus {
	p.mu.Lock()
	flows := p.filter.Flows()
	p.mu.Unlock()
	s := PeerStatus{
		Node: p.member.Node(), Key: p.key, Name: p.member.Name(),
		Addresses: slices.Clone(p.member.Identity().Addresses),
		Path:      pathFrom(c.tunnelPath(p, p.agent.Primary())),
		Active:    p.agent.Snapshot().Active, Flapping: p.agent.Flapping(c.now()), LastHandshake: stats.LastHandshake,
		MTU: p.agent.MTU(), RxBytes: stats.RxBytes, TxBytes: stats.TxBytes, Flows: flows, NotAfter: p.member.NotAfter(),
	}
	if from, ok := p.agent.Strayed(c.now()); ok {
		s.Strayed, s.StrayedFrom = true, from
	}
	return s
}

// drops returns all counters of dropped packets that are not zero.
func (c *control) drops() map[string]uint64 {
	out := c.losses()
	counters := c.filtered(c.device.Counters())
	for r := filter.Passed + 1; int(r) < filter.NumReasons; r++ {
		for _, d := range []filter.Direction{filter.Inbound, filter.Outbound} {
			out[r.String()] += counters.Packets(d, 4, r) + counters.Packets(d, 6, r)
		}
	}
	for reason, n := range out {
		if n == 0 {
			delete(out, reason)
		}
	}
	return out
}

// filtered returns what the filters have counted. WireGuard looks at the source
// of a packet before they can, with the same prefixes.
func (c *control) filtered(tunnel wg.Counters) filter.Counters {
	counters, _ := c.e.host.totals(c.peers)
	counters.CountMany(filter.Inbound, 4, filter.DropSpoof, tunnel.Spoofed4)
	counters.CountMany(filter.Inbound, 6, filter.DropSpoof, tunnel.Spoofed6)
	counters.CountMany(filter.Inbound, 4, filter.DropVersion, tunnel.NotIP)
	return counters
}

// losses returns the counters of packets that were lost outside the filter, by
// reason.
func (c *control) losses() map[string]uint64 {
	_, noPeer := c.e.host.totals(nil)
	tunnel := c.device.Counters()
	return map[string]uint64{
		"too_big":            c.e.host.tooBig.Load(),
		"no_peer":            noPeer[filter.Inbound] + noPeer[filter.Outbound],
		"no_path":            tunnel.NoPath,
		"queue_outbound":     c.e.host.shed[filter.Outbound].dropped.Load(),
		"queue_inbound":      c.e.host.shed[filter.Inbound].dropped.Load(),
		"unknown_initiation": tunnel.UnknownInitiations,
		"replayed_handshake": tunnel.ReplayedInitiations,
		"replayed_packet":    tunnel.ReplayedPackets,
		"refused_response":   tunnel.RefusedResponses,
		"unknown_receiver":   tunnel.UnknownReceivers,
		"initiation_rate":    tunnel.Limited,
		"relay_overflow":     tunnel.RelayOverflow,
		"relay_queue":        c.relayDropCount(),
		"control_overflow":   c.e.intake.overflow.Load(),
		"control_share":      c.e.intake.overused.Load(),
		"inject_overflow":    c.e.host.reader.overflow.Load(),
		"unknown_probe":      c.e.intake.unknown.Load(),
		"forged_probe":       c.stats.forgedProbes,
		"unknown_stun":       c.e.intake.answers.Load(),
		"unknown_protocol":   c.e.intake.others.Load(),
		"socket_error":       c.stats.socketErrors,
		"send_error":         tunnel.SendErrors + c.stats.sendErrors,
		"receive_error":      tunnel.ReceiveErrors,
	}
}

// retire keeps what a removed peer's filter has counted.
func (d *hostDevice) retire(p *peer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.filter.TakeCounters(&d.counters)
}

// totals returns what all filters have counted, removed ones included.
func (d *hostDevice) totals(peers map[ident.NodeKey]*peer) (filter.Counters, [2]uint64) {
	for _, p := range peers {
		d.retire(p)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counters, d.noPeer
}
