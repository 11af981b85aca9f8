package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/flowlog"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/alarm"
	"github.com/warren-overlay/warren/netstack/config"
	"github.com/warren-overlay/warren/netstack/disco"
	"github.com/warren-overlay/warren/netstack/nat"
	"github.com/warren-overlay/warren/netstack/path"
	"github.com/warren-overlay/warren/netstack/relay/home"
	"github.com/warren-overlay/warren/netstack/sock"
	"github.com/warren-overlay/warren/netstack/stun"
	"github.com/warren-overlay/warren/netstack/wg"
)

const (
	// maxDatagram is the longest packet that the control goroutine looks at: a
	// padded ping.
	maxDatagram = disco.MaxSize
	// touchInterval is how often a used peer is noticed. It adds to the time in
	// which a path that died under traffic is left: TCP repeats what it sent
	// 0.2, 0.6, 1.4 and 3 s after the path died (RFC 6298 from 200 ms on), and
	// the third of these is to find another one.
	touchInterval = 250 * time.Millisecond
	// distressAfter is how many handshake initiations without an answer make a
	// path suspect: the first may have been lost.
	distressAfter = 2
	// localInterval is how often this machine's addresses are listed, for
	// systems that do not tell of changes.
	localInterval = 30 * time.Second
)

// control is the state of the control goroutine.
type control struct {
	e      *Engine
	device *wg.Device
	nat    *nat.Discoverer
	filter *filter.Device
	seed   [2]uint64 // of the filters
	quota  *quota
	began  time.Time
	// inherited is nil when nothing is left to be taken over.
	inherited *inheritance

	cfg       *config.Config
	peers     map[ident.NodeKey]*peer
	deadlines deadlines
	loopback  bool // whether peers may be probed on the loopback interface
	relayed   bool // whether there is a relay
	relays    relays
	birthday  *path.BirthdayBudget
	local     []netip.AddrPort
	nextLocal time.Time
	linkMTU   int // of the device, as this machine's links have it; 0 for not followed
	givenMTU  int // what of that the device was given
	mapping   mapping
	resolve   *resolver
	servers   []netip.AddrPort // that are asked for our public addresses
	moves     uint64           // of the public address, as far as they were dealt with
	standby   standby
	underlay  *resolver    // finds the addresses of Config.Underlay
	except    []netip.Addr // of the underlay, as far as they are known
	connected []netip.Prefix
	unguarded bool // whether it was said that the router cannot guard
	stats     controlStats
	// retired is what the agents of removed peers have counted, by pathEvents.
	retired map[string]uint64
	events  []filter.Event  // of collect, kept for the next one
	checks  []chan struct{} // closed when the check of the network is over
}

// controlStats counts what the control goroutine dropped.
type controlStats struct {
	forgedProbes uint64
	sendErrors   uint64
	socketErrors uint64 // further sockets that could not be opened
}

func newControl(e *Engine) (*control, error) {
	var raw [24]byte
	if _, err := io.ReadFull(e.cfg.Rand, raw[:]); err != nil {
		return nil, fmt.Errorf("engine: drawing a seed: %w", err)
	}
	e.flows.update(func(*flowlog.Log) { e.flows.log = flowlog.New(binary.NativeEndian.Uint64(raw[16:])) })
	now := e.cfg.Now()
	c := &control{
		retired: make(map[string]uint64),
		e:       e, quota: new(quota), began: now,
		seed: [2]uint64{binary.NativeEndian.Uint64(raw[:]), binary.NativeEndian.Uint64(raw[8:])},
		nat:  nat.New(nat.Config{Rand: e.cfg.Rand}, now),

		birthday: path.NewBirthdayBudget(now),
		peers:    make(map[ident.NodeKey]*peer),
		resolve:  newResolver(e), underlay: newResolver(e),
		inherited: newInheritance(e.cfg.Inherited),
	}
	c.mapping = newMapping(e.cfg.PortMapper, c.refuses, now)
	e.cfg.Inherited = nil
	c.filter = c.newFilterDevice()
	c.relays.conns, c.relays.probes = make(map[string]*relayConn), make(map[stun.TxID]relayProbe)
	var err error
	if c.relays.machine, err = home.New(home.Config{Rand: e.cfg.Rand}, now); err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	return c, nil
}

// run is the control goroutine.
func (c *control) run(ctx context.Context, running *sync.WaitGroup) error {
	c.relays.ctx, c.relays.running = ctx, running
	defer c.end()
	c.refreshLocal(c.now())
	timer := alarm.New(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			c.handOver()
			return nil
		case err := <-c.e.failed:
			return err
		case f := <-c.e.requests:
			f(c)
		case d := <-c.e.intake.datagrams:
			c.handleDatagram(d)
		case d := <-c.e.intake.strays:
			c.handleDatagram(d)
		case p := <-c.e.touched:
			c.handleTouch(p)
		case a := <-c.e.answers:
			c.handleAnswer(a)
		case hosts := <-c.underlay.found:
			c.setUnderlay(hosts)
		case p := <-c.e.noted:
			c.handleNote(p)
		case event := <-c.e.relayEvents:
			c.handleRelayEvent(event)
		case servers := <-c.resolve.found:
			c.setServers(servers)
		case m := <-c.mapping.answers:
			c.handleMapped(m)
		case <-timer.C:
			c.handleTimeout()
		}
		c.drainMapping(ctx, running)
		c.resolve.start(ctx, running)
		c.underlay.start(ctx, running)
		c.drainNAT()
		c.endChecks()
		if next := c.nextTimeout(); next.IsZero() {
			timer.Stop()
		} else {
			timer.Set(next.Sub(c.now()))
		}
	}
}

func (c *control) now() time.Time { return c.e.cfg.Now() }

// lead is how far the engine's clock is ahead of the network's time.
func (c *control) lead() time.Duration {
	if c.cfg == nil {
		return 0
	}
	return c.cfg.Lead
}

// setEnd has p's filter pass no packet once p's certificate or this device's own has
// ended: a machine that wakes up may get packets before the control goroutine has
// removed p (F12). p.mu must be held, or p in no table yet.
func (c *control) setEnd(p *peer, now time.Time) {
	if c.cfg != nil {
		p.filter.SetEnd(earlier(c.endOf(p.member), c.endOf(c.cfg.Self)), now)
	}
}

// endOf returns when a member's certificate ends, by the engine's clock.
func (c *control) endOf(member *authority.Peer) time.Time { return member.NotAfter().Add(c.lead()) }

// end cuts all peers before the engine stops.
func (c *control) end() {
	c.endMapping()
	if err := c.apply(nil); err != nil {
		c.e.log.Warn("ending the data plane", "error", err)
	}
}

func (c *control) nextTimeout() time.Time {
	next := earlier(earlier(c.nextLocal, c.standby.next), c.e.flows.nextTimeout())
	if t, ok := c.nat.NextTimeout(); ok {
		next = earlier(next, t)
	}
	if t, ok := c.relays.machine.NextTimeout(); ok {
		next = earlier(next, t)
	}
	if t, ok := c.mapping.mapper.NextTimeout(); ok {
		next = earlier(next, t)
	}
	if t, ok := c.mapping.pinholes.NextTimeout(); ok {
		next = earlier(next, t)
	}
	if len(c.deadlines) > 0 {
		next = earlier(next, c.deadlines[0].deadline)
	}
	if c.cfg != nil {
		next = earlier(next, c.endOf(c.cfg.Self))
	}
	return next
}

func (c *control) handleTimeout() {
	now := c.now()
	if c.cfg != nil && !now.Before(c.endOf(c.cfg.Self)) {
		c.e.log.Warn("this device's certificate has ended: no peers any longer")
		if err := c.apply(nil); err != nil {
			c.e.log.Warn("removing all peers", "error", err)
		}
		return
	}
	if !c.nextLocal.IsZero() && !now.Before(c.nextLocal) {
		c.refreshLocal(now)
	}
	c.forgetInheritance(now)
	c.e.flows.update(func(l *flowlog.Log) { l.HandleTimeout(now) })
	if !c.standby.next.IsZero() && !now.Before(c.standby.next) {
		c.ask(now)
	}
	c.nat.HandleTimeout(now)
	if t, ok := c.relays.machine.NextTimeout(); ok && !now.Before(t) {
		c.relays.machine.HandleTimeout(now)
		c.drainRelays()
	}
	c.mapping.mapper.HandleTimeout(now)
	c.mapping.pinholes.HandleTimeout(now)
	for len(c.deadlines) > 0 && !now.Before(c.deadlines[0].deadline) {
		p := c.deadlines[0]
		if !now.Before(c.endOf(p.member)) {
			c.expire(p)
			continue
		}
		if !p.rearm.IsZero() && !now.Before(p.rearm) {
			c.rearm(p, now)
		}
		if !p.sweep.IsZero() && !now.Before(p.sweep) {
			c.sweep(p, now)
		}
		if !p.collect.IsZero() && !now.Before(p.collect) {
			c.collect(p, now)
		}
		p.agent.HandleTimeout(now)
		c.drain(p)
	}
}

// schedule sets the time at which p is looked at again.
func (c *control) schedule(p *peer) {
	next := earlier(c.endOf(p.member), earlier(p.rearm, earlier(p.sweep, p.collect)))
	if t, ok := p.agent.NextTimeout(); ok {
		next = earlier(next, t)
	}
	c.deadlines.set(p, next)
}

// handleTouch notices that packets were exchanged with p.
func (c *control) handleTouch(p *peer) {
	if c.peers[p.key] != p {
		return
	}
	now := c.now()
	c.takeArrival(p, now)
	p.agent.HandleOutboundUse(now)
	p.noteLarge(now)
	c.handleUse(p, now)
	c.useRelay(p, now)
	if p.rearm.IsZero() {
		p.rearm = now.Add(touchInterval)
	}
	c.drain(p)
}

// takeArrival tells p's agent by which path a packet came, if one did since the
// last time.
func (c *control) takeArrival(p *peer, now time.Time) {
	if a := p.arrived.Swap(nil); a != nil && now.Sub(a.at) <= touchInterval {
		p.agent.HandleInbound(a.by, path.Data, a.at, now)
	}
}

// takeStrays tells p's agent of packets that came from elsewhere than where p's path
// leads.
func (c *control) takeStrays(p *peer, now time.Time) {
	places, others := p.tunnel.TakeStrays()
	if len(places) == 0 && others == 0 {
		return
	}
	packets := make([]path.Stray, 0, len(places))
	for _, s := range places {
		packets = append(packets, path.Stray{From: path.DirectFrom(s.From.Socket, s.From.Addr), Packets: s.Packets})
	}
	if p.agent.HandleStrays(packets, others, now) {
		from, _ := p.agent.Strayed(now)
		c.e.log.Warn("packets of the tunnel with a peer come from where the peer does not prove to be", "peer", p.member.Name(), "from", from)
	}
}

// rearm lets the data path tell of p again.
func (c *control) rearm(p *peer, now time.Time) {
	p.rearm = time.Time{}
	p.touched.Store(false)
	c.takeArrival(p, now)
	c.takeStrays(p, now)
	p.noteLarge(now)
	c.sweep(p, now)
	c.renew(p)
	if p.tunnel.Unanswered() >= distressAfter {
		p.agent.HandleDistress(now)
	}
}

// wantHandshake has a session made with a peer that knows none of ours, as far as we
// know: packets to it are sealed for nobody until then, which WireGuard notices after
// 15 s only (KeepaliveTimeout and RekeyTimeout).
func (c *control) wantHandshake(p *peer) {
	if !p.renews && p.tunnel != nil {
		p.renews, p.unanswered = true, p.tunnel.Unanswered()
	}
	c.renew(p)
}

// renew begins the handshake that is wanted with p as soon as there may be another one,
// unless one has begun or was answered since.
func (c *control) renew(p *peer) {
	if !p.renews {
		return
	}
	if p.tunnel.Unanswered() == p.unanswered {
		c.beginHandshake(p.key)
	}
	p.renews = p.tunnel.Unanswered() == p.unanswered
}

// drain carries out what p's agent wants, and sets p's next time.
func (c *control) drain(p *peer) {
	for {
		t, ok := p.agent.NextTransmit()
		if !ok {
			break
		}
		c.transmit(p, t)
	}
	for {
		event, ok := p.agent.NextEvent()
		if !ok {
			break
		}
		if event.Restarted {
			c.e.log.Debug("a peer has started again", "peer", p.member.Name())
			c.wantHandshake(p)
			continue
		}
		p.direct.Store(&event.Primary.Addr)
		p.both = event.Both
		c.setPath(p)
		if event.Why == path.ReasonLost {
			// The NAT in front of us may have forgotten us: ask for our public
			// address now, not at the next round.
			c.nat.HandleDistress(c.now())
			c.drainNAT()
		}
		if event.FlapsBegin {
			c.e.log.Warn("the path to a peer changes again and again", "peer", p.member.Name(), "why", event.Why)
		}
		c.e.log.Debug("path changed", "peer", p.member.Name(), "path", event.Primary, "why", event.Why)
	}
	c.closeSockets(p)
	c.setMTU(p)
	c.setWay(p)
	c.schedule(p)
}

// tunnelPath returns how WireGuard sends to p on the given path.
func (c *control) tunnelPath(p *peer, on path.Path) wg.Path {
	switch on.Kind {
	case path.Direct:
		if p.both && p.relay != nil {
			return wg.Path{Direct: on.Addr, Socket: p.sockets[on.Socket], Relay: p.relay, Both: true}
		}
		return wg.Path{Direct: on.Addr, Socket: p.sockets[on.Socket]}
	case path.Relay:
		if p.relay != nil {
			return wg.Path{Relay: p.relay}
		}
	case path.None:
	}
	return wg.Path{}
}

// transmit seals a message of p's agent and sends it.
func (c *control) transmit(p *peer, t path.Transmit) {
	sealed, err := p.sealer.Seal(nil, t.Message, c.e.cfg.Rand)
	if err != nil {
		c.e.log.Warn("sealing a probe", "error", err)
		return
	}
	switch t.To.Kind {
	case path.Direct:
		var fits bool
		if t.To.Socket == 0 {
			fits = c.send(sealed, t.To.Addr)
		} else if s := c.socket(p, t.To.Socket); s != nil {
			fits = c.noteSent(s.Send(sealed, t.To.Addr))
		} else {
			break // it was closed since
		}
		if ping, ok := t.Message.(disco.Ping); ok && !fits {
			p.agent.HandleTooLong(t.To, ping, c.now())
		}
	case path.Relay:
		if p.relay != nil {
			p.relay.SendPackets(p.key, [][]byte{sealed})
		}
	case path.None:
		panic("BUG: engine: a message to nowhere")
	}
}

// send sends a message that is not WireGuard's, and reports whether the interface
// on its way carries one of that length.
func (c *control) send(packet []byte, to netip.AddrPort) (fits bool) {
	return c.noteSent(c.device.SendControl(packet, to))
}

func (c *control) noteSent(err error) (fits bool) {
	if errors.Is(err, sock.ErrTooLong) {
		return false // an answer, too
	}
	if err != nil {
		c.stats.sendErrors++
	}
	return true
}

// setServers sets whom to ask for our public addresses.
func (c *control) setServers(servers []netip.AddrPort) {
	c.servers = servers
	c.expectAnswers()
	c.nat.SetServers(servers, c.now())
}

// expectAnswers tells the data path whose STUN answers to let in: those of the
// servers, and of others beside relays that were asked.
func (c *control) expectAnswers() {
	known := make([]netip.AddrPort, 0, len(c.servers)+len(c.relays.probes))
	for _, s := range c.servers {
		known = append(known, netip.AddrPortFrom(s.Addr().Unmap(), s.Port()))
	}
	for _, p := range c.relays.probes {
		known = append(known, netip.AddrPortFrom(p.to.Addr().Unmap(), p.to.Port()))
	}
	c.e.intake.servers.Store(&known)
}

func (c *control) handleDatagram(d datagram) {
	d.taken()
	defer c.e.buffers.Put(d.data)
	packet := *d.data
	if d.peer != nil {
		c.handleProbe(d, packet)
		return
	}
	if m, err := stun.Parse(packet); err == nil && !c.handleProbeAnswer(m, d.from) {
		// What answers no request of ours is counted there.
		_ = c.nat.HandleResponse(d.from, m, c.now())
	}
}

func (c *control) handleProbe(d datagram, packet []byte) {
	p := d.peer
	if c.peers[p.key] != p {
		c.e.intake.unknown.Add(1) // it was a peer's when it came
		return
	}
	message, err := p.opener.Open(packet)
	if err != nil {
		c.stats.forgedProbes++
		return
	}
	now := c.now()
	if !d.relayed.IsZero() {
		handled, err := c.handleRelayedProbe(p, d.relay, message, now)
		if err != nil {
			c.e.log.Debug("probe refused", "peer", p.member.Name(), "relay", d.relay, "error", err)
		}
		if handled {
			c.answerReplayed(p, err)
			return
		}
	}
	switch m := message.(type) {
	case disco.Ping:
		err = p.agent.HandleSocketPing(d.socket, d.from, m, now)
	case disco.Pong:
		err = p.agent.HandleSocketPong(d.socket, d.from, m, now)
	case disco.CallMe:
		if !d.relayed.IsZero() {
			err = p.agent.HandleCallMe(m, now)
		}
	case disco.Mapping:
		if !d.relayed.IsZero() {
			err = p.agent.HandleMapping(m, now)
		}
	}
	if err != nil {
		c.e.log.Debug("probe refused", "peer", p.member.Name(), "error", err)
	}
	c.answerReplayed(p, err)
	c.drain(p)
}

// answerReplayed begins a handshake with p, whose probe was taken with err, where
// its own seem to come from the past.
func (c *control) answerReplayed(p *peer, err error) {
	if err == nil && c.device.AnswerReplayed(p.key) {
		c.e.log.Info("a peer's handshakes come from the past: beginning one", "peer", p.member.Name())
	}
}

func (c *control) handleNetworkChange() {
	now := c.now()
	c.refreshLocal(now)
	c.nat.HandleNetworkChange(now)
	// The servers first: behind a NAT that numbers ports in a row, those that follow
	// theirs are told to peers, and so must be those of the challenges to peers.
	c.drainNAT()
	c.handleMove(now)
}

// handleMove finds the relays, the mapping and all paths anew: connections, and
// what was proved, were of the public address before.
func (c *control) handleMove(now time.Time) {
	c.e.log.Info("this device is reached at other addresses than before")
	c.relays.machine.HandleNetworkChange(now)
	c.drainRelays()
	c.mapping.mapper.HandleNetworkChange(now)
	c.mapping.pinholes.HandleNetworkChange(now)
	for _, p := range c.peers {
		p.agent.HandleNetworkChange(now)
		c.drain(p)
	}
}

// refreshLocal lists this machine's addresses.
func (c *control) refreshLocal(now time.Time) {
	c.nextLocal = now.Add(localInterval)
	c.resolve.retry()
	c.underlay.retry()
	c.refreshConnected(now)
	c.followLinks(now)
	addrs, err := c.localAddresses()
	if err != nil {
		c.e.log.Warn("listing local addresses", "error", err)
		return
	}
	port := c.device.Port()
	local := make([]netip.AddrPort, 0, len(addrs))
	loopback, ipv4 := false, false
	for _, a := range addrs {
		local = append(local, netip.AddrPortFrom(a, port))
		loopback, ipv4 = loopback || a.IsLoopback(), ipv4 || a.Is4()
	}
	c.e.onlyIPv6.Store(len(addrs) > 0 && !ipv4)
	if slices.Equal(local, c.local) {
		return
	}
	c.local, c.loopback = local, loopback
	c.nat.SetLocal(local, now)
	c.setMapping()
	c.setFilterDevice(now)
}

func (c *control) localAddresses() ([]netip.Addr, error) {
	if c.e.cfg.LocalAddresses != nil {
		return c.e.cfg.LocalAddresses()
	}
	return sock.LocalAddrs(c.localConfig())
}

// localConfig leaves out this device's own addresses in the overlay.
func (c *control) localConfig() (cfg sock.LocalConfig) {
	if c.cfg != nil {
		for _, a := range c.cfg.Self.Identity().Addresses {
			cfg.Overlay = append(cfg.Overlay, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return cfg
}

// candidates are where peers may reach this node now: what they are told over
// the relay, when both begin to probe. The coordinator, which tells it later, is
// not given the ports that are predicted.
func candidates(r nat.Report) []netip.AddrPort { return slices.Concat(r.Endpoints, r.Predicted) }

// drainNAT sends STUN requests and tells of endpoints that changed.
func (c *control) drainNAT() {
	for {
		t, ok := c.nat.NextTransmit()
		if !ok {
			break
		}
		c.send(t.Packet, t.To)
	}
	report, changed := c.nat.NextEvent()
	if !changed {
		return
	}
	now := c.now()
	c.mapping.mapper.SetSeen(report.Public4.Addr(), now)
	if report.Moves != c.moves {
		c.moves = report.Moves
		c.handleMove(now)
	}
	for _, p := range c.peers {
		p.agent.SetLocalCandidates(candidates(report), now)
		p.setMapping(c, report)
		c.drain(p)
	}
	c.publish()
}
