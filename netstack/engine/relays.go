package engine

import (
	"context"
	"io"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/warren-overlay/warren/netstack/config"
	"github.com/warren-overlay/warren/netstack/disco"
	"github.com/warren-overlay/warren/netstack/path"
	"github.com/warren-overlay/warren/netstack/relay/home"
	"github.com/warren-overlay/warren/netstack/stun"
)

const (
	// probeAge is how late the answer to a STUN request to a relay may come.
	probeAge = 5 * time.Second
	// maxProbes bounds the requests whose answers are awaited: one to each address
	// family of all relays that there may be, twice.
	maxProbes = 256
)

// relays is the control goroutine's part of the connections to relays.
type relays struct {
	machine *home.Machine
	conns   map[string]*relayConn
	probes  map[stun.TxID]relayProbe
	ctx     context.Context // that of Engine.Run
	running *sync.WaitGroup
}

// relayProbe is a STUN request to the server beside a relay.
type relayProbe struct {
	relay string
	to    netip.AddrPort
	at    time.Time
}

// setRelays makes the relays, and the peers' homes, those of a configuration;
// nil is none.
func (c *control) setRelays(cfg *config.Config, now time.Time) {
	var wanted []home.Relay
	var peers []home.Peer
	conns := make(map[string]*relayConn)
	retry := false
	if cfg != nil {
		for _, r := range cfg.Relays {
			wanted = append(wanted, home.Relay{Name: r.Name, STUN: r.STUN != ""})
			conn := c.relays.conns[r.Name]
			if conn == nil || conn.relay != r || conn.key.Public() != cfg.PrivateKey.Public() {
				conn = &relayConn{e: c.e, device: c.device, relay: r, key: cfg.PrivateKey, err: notNeeded}
			}
			retry = conn.setToken(cfg.RelayToken) || retry
			conns[r.Name] = conn
		}
		for _, p := range cfg.Peers {
			peers = append(peers, home.Peer{Key: p.Member.NodeKey(), Home: p.HomeRelay})
		}
	}
	before := c.relays.conns
	c.relays.conns = conns
	for _, r := range c.relays.machine.Snapshot().Relays {
		if old := before[r.Name]; old != conns[r.Name] {
			old.disconnect()
			if conns[r.Name] != nil {
				// The same name is another relay, or this device has another key.
				c.relays.machine.HandleClosed(r.Name, now)
				retry = true
			}
		}
	}
	c.relays.machine.SetRelays(wanted, now)
	c.relays.machine.SetPeers(peers, now)
	if retry {
		c.relays.machine.HandleRetry(now)
	}
	c.drainRelays()
	for _, p := range c.peers { // one that was added again has its route of before
		c.reroute(p)
	}
}

// setToken gives the connection and the next ones a token, and reports whether
// that may admit a device that was not before.
func (r *relayConn) setToken(token []byte) bool {
	r.mu.Lock()
	same := string(r.token) == string(token)
	r.token = token
	r.mu.Unlock()
	if same {
		return false
	}
	s := r.session.Load()
	if s != nil {
		s.renew(token)
	}
	return s == nil
}

// disconnect ends the attempt that counts.
func (r *relayConn) disconnect() {
	if r.attempt != nil {
		r.attempt.cancel()
		r.attempt = nil
	}
}

// handleRelayEvent takes what a connection tells.
func (c *control) handleRelayEvent(event relayEvent) {
	r, now := event.attempt.conn, c.now()
	if r.attempt != event.attempt {
		return // nobody wants it any more
	}
	name := r.relay.Name
	switch event.kind {
	case relayReady:
		c.relays.machine.HandleReady(name, now)
	case relayClosed:
		r.attempt = nil
		c.relays.machine.HandleClosed(name, now)
	case relayLeaving:
		c.relays.machine.HandleLeaving(name, now)
	case relayMeasured:
		c.relays.machine.HandleRTT(name, event.rtt, now)
	case relayPeerGone:
		c.relays.machine.HandlePeerGone(name, event.peer, now)
	case relayInbound:
		c.relays.machine.HandleInbound(name, event.peer, now)
	}
	c.drainRelays()
}

// drainRelays carries out what the machine wants.
func (c *control) drainRelays() {
	for {
		o, ok := c.relays.machine.NextOutput()
		if !ok {
			return
		}
		conn := c.relays.conns[o.Relay] // nil where it is none
		switch o.Kind {
		case home.Connect:
			ctx, cancel := context.WithCancel(c.relays.ctx)
			conn.attempt = &relayAttempt{conn: conn, cancel: cancel, out: outbox{wake: make(chan struct{}, 1)}}
			attempt := conn.attempt
			conn.begins()
			c.relays.running.Go(func() {
				defer cancel()
				attempt.run(c.relays.ctx, ctx)
			})
		case home.Disconnect:
			if conn != nil {
				conn.disconnect()
			}
		case home.Probe:
			c.probeRelay(conn)
		case home.Measure:
			if conn == nil {
				continue
			}
			if s := conn.session.Load(); s != nil {
				s.measure()
			}
		case home.Check:
			if p := c.peers[o.Peer]; p != nil {
				c.sendRelayed(p, conn, c.relays.machine.Ping(o))
			}
		case home.AskInTunnel:
			if p := c.peers[o.Peer]; p != nil && conn != nil {
				c.askInTunnel(p, conn, o)
			}
		case home.Handshake:
			if err := c.device.Renew(o.Peer); err != nil {
				c.e.log.Debug("renewing a session", "peer", c.nameOf(o.Peer), "error", err)
			}
			if p := c.peers[o.Peer]; p != nil {
				c.wantHandshake(p) // one may have been begun too short a time ago
			}
		case home.HomeChanged:
			c.e.log.Info("home relay", "name", o.Relay)
			c.publish()
		case home.RouteChanged:
			if p := c.peers[o.Peer]; p != nil {
				c.reroute(p)
			}
		case home.RouteBarred:
			c.e.log.Warn("a relay answers and carries no data", "relay", o.Relay, "peer", c.nameOf(o.Peer))
		case home.OnlineChanged:
			c.handleOnline(c.relays.machine.Online())
		}
	}
}

// reroute makes the relay of a peer the one that the machine says.
func (c *control) reroute(p *peer) {
	before := p.relay
	p.relay = c.relays.conns[c.relays.machine.Route(p.key)]
	if before == p.relay {
		return
	}
	if p.tunnel != nil {
		c.setPath(p)
	}
	if before != nil && p.relay != nil {
		for _, h := range before.takeHeld(p.key) {
			p.relay.SendPackets(h.to, [][]byte{h.data})
		}
	}
}

// handleOnline notices that there is a relay, or none any more.
func (c *control) handleOnline(online bool) {
	c.relayed = online
	now := c.now()
	for _, p := range c.peers {
		p.agent.HandleRelayState(online, now)
		c.drain(p)
	}
}

// useRelay notices that packets are exchanged with p over a relay, or would be.
func (c *control) useRelay(p *peer, now time.Time) {
	if p.agent.Primary().Kind != path.Direct {
		c.relays.machine.HandleUse(p.key, now)
		c.drainRelays()
	}
}

// handleRelayedProbe takes an authentic message that came over a relay, and
// reports whether it was about the relay and not about direct paths.
func (c *control) handleRelayedProbe(p *peer, name string, m disco.Message, now time.Time) (handled bool, err error) {
	switch m := m.(type) {
	case disco.Ping:
		if c.relays.machine.HandlePing(name, p.key, now) && c.relays.conns[name] != nil {
			c.sendRelayed(p, c.relays.conns[name], disco.Pong{TxID: m.TxID, InTunnel: true})
		}
		handled = true
	case disco.Pong:
		err = c.relays.machine.HandlePong(name, p.key, m, now)
		handled = true
	}
	c.drainRelays()
	return handled, err
}

// sendRelayed seals a message for p and sends it over a relay.
func (c *control) sendRelayed(p *peer, over *relayConn, m disco.Message) {
	sealed, err := p.sealer.Seal(nil, m, c.e.cfg.Rand)
	if err != nil {
		c.e.log.Warn("sealing a probe", "error", err)
		return
	}
	over.SendPackets(p.key, [][]byte{sealed})
}

// probeRelay asks the STUN server beside a relay, whose name is looked up where
// it is one.
func (c *control) probeRelay(conn *relayConn) {
	if a, err := netip.ParseAddrPort(conn.relay.STUN); err == nil {
		c.sendProbe(conn, a)
		return
	}
	c.relays.running.Go(func() {
		addrs := c.resolve.resolve(c.relays.ctx, []string{conn.relay.STUN})
		select {
		case c.e.requests <- func(c *control) { c.sendProbes(conn, addrs) }:
		case <-c.relays.ctx.Done():
		}
	})
}

// sendProbes asks at one address of each family: the first answer counts.
func (c *control) sendProbes(conn *relayConn, addrs []netip.AddrPort) {
	for _, six := range []bool{false, true} {
		i := slices.IndexFunc(addrs, func(a netip.AddrPort) bool { return a.Addr().Is6() == six })
		if i >= 0 {
			c.sendProbe(conn, addrs[i])
		}
	}
}

func (c *control) sendProbe(conn *relayConn, to netip.AddrPort) {
	now := c.now()
	for id, p := range c.relays.probes {
		if now.Sub(p.at) >= probeAge {
			delete(c.relays.probes, id)
		}
	}
	var id stun.TxID
	if len(c.relays.probes) >= maxProbes || c.relays.conns[conn.relay.Name] != conn {
		return
	}
	if _, err := io.ReadFull(c.e.cfg.Rand, id[:]); err != nil {
		c.e.log.Warn("drawing a STUN request", "error", err)
		return
	}
	c.relays.probes[id] = relayProbe{conn.relay.Name, to, now}
	c.expectAnswers()
	c.send(stun.AppendRequest(nil, id), to)
}

// handleProbeAnswer takes a STUN response, and reports whether it is of a server
// beside a relay that was asked.
func (c *control) handleProbeAnswer(m stun.Message, from netip.AddrPort) bool {
	p, ok := c.relays.probes[m.TxID]
	if !ok || p.to != netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) {
		return false
	}
	delete(c.relays.probes, m.TxID)
	now := c.now()
	c.relays.machine.HandleProbe(p.relay, now.Sub(p.at), now)
	c.drainRelays()
	return true
}

// relayStatus returns the state of the relays for people, in the order of the
// configuration.
func (c *control) relayStatus() []RelayStatus {
	var out []RelayStatus
	now := c.now()
	for _, r := range c.relays.machine.Snapshot().Relays {
		conn := c.relays.conns[r.Name]
		s := RelayStatus{Name: r.Name, Region: conn.relay.Region, URL: conn.relay.URL, Home: r.Home, Failed: r.Down, RTT: r.RTT, Barred: r.Barred}
		if !r.Measured.IsZero() {
			s.RTTAge = max(0, now.Sub(r.Measured))
		}
		s.Connected, s.Error = conn.connected()
		s.Queued = conn.holds()
		if session := conn.session.Load(); session != nil {
			s.Datagrams = session.datagrams.link.Load() != nil
			s.Queued += session.attempt.out.queued()
		}
		out = append(out, s)
	}
	return out
}

// relayDropCount counts the packets that waited for relays and were dropped.
func (c *control) relayDropCount() uint64 {
	n := c.e.relayDrops.Load()
	for _, conn := range c.relays.conns {
		if s := conn.session.Load(); s != nil {
			n += s.attempt.out.drops()
		}
	}
	return n
}

// path is how packets go that the relay carries.
func (r *relayConn) path() Path {
	return Path{Kind: PathRelay, Relay: r.relay.Name, Region: r.relay.Region}
}
