//go:build linux

package netns

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/netstack/config"
	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/enginetest"
	"github.com/warren-overlay/warren/netstack/sock"
	"github.com/warren-overlay/warren/tests/lab"
)

const vectorFile = "../vectors/filter/vectors.txt"

// TestVectors runs the vectors of the packet filter through a real engine: what
// a vector says comes in is sealed by a rogue member that filters nothing and
// crosses a real tunnel, and what it says goes out is put into the device. What
// must pass must arrive on the other side, byte by byte, and what must not must
// move the counter that the vector names, by one, and arrive nowhere.
//
// A step asks for what can be seen from outside: not for the rule's name, and
// not for whether a packet opened a flow.
func TestVectors(t *testing.T) {
	text, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	vectors, err := acltest.ParseVectors(string(text))
	if err != nil {
		t.Fatal(err)
	}
	host := lab.New(t).Host("node")
	unused := map[string]bool{}
	for text := range inexpressible {
		unused[text] = true
	}
	for _, device := range []string{"tun", "userspace"} {
		for n, v := range vectors {
			t.Run(device+"/"+v.Name, func(t *testing.T) {
				var side *vectorHost
				if device == "tun" {
					side = kernelHost(t, host, fmt.Sprint("vector", n))
				} else {
					side = userHost(t, []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd00::1")})
				}
				p := newVectorPath(t, side, &v)
				packets := 0
				for i := range v.Steps {
					s := &v.Steps[i]
					if why, ok := inexpressible[s.Text]; ok {
						delete(unused, s.Text)
						t.Logf("line %d left out: %s: %s", s.Line, s.Text, why)
						continue
					}
					if err := p.step(s); err != nil {
						t.Fatalf("line %d, %s: %s: %v", s.Line, v.Title, s.Text, err)
					}
					if s.Op == "in" || s.Op == "out" {
						packets++
					}
				}
				if packets == 0 {
					t.Error("not one packet of the vector was sent on this path")
				}
				p.settle()
			})
		}
	}
	for text := range unused {
		t.Errorf("listed as inexpressible, and no vector has it: %s", text)
	}
}

// inexpressible lists steps that an engine can not be made to do, with the
// reason. It may only shrink.
var inexpressible = map[string]string{
	"in B udp 100.64.0.2:40000 > 100.64.0.1:53 len=10 claims=39 = drop drop_truncated": lengthDropped,
	"in B udp [fd00::2]:40000 > [fd00::1]:53 len=10 claims=19 = drop drop_truncated":   lengthDropped,

	"config overlay=100.64.0.0/10,fd00::/48 strict-echo":         noStrictEcho,
	"in B echo 100.64.0.2 > 100.64.0.1 id=8 = drop drop_no_rule": noStrictEcho,
	"in C echo 100.64.0.3 > 100.64.0.1 id=1 = drop drop_no_rule": noStrictEcho,
	"peer C addresses=100.64.0.2,fd00::2 labels=3":               "a configuration in which two members have one address is refused whole",
}

const (
	lengthDropped = "WireGuard itself drops a packet whose length field lies, and says nothing"
	noStrictEcho  = "the engine offers no such setting"
)

// vectorPath runs one vector.
type vectorPath struct {
	t       *testing.T
	host    *vectorHost
	engine  *engine.Engine
	network *enginetest.Network
	self    *enginetest.Member
	rogues  map[string]*enginetest.Rogue
	removed map[string]bool
	rules   ruleset.RuleSet
	shields bool
	dirty   bool // whether something changed that the engine was not told
	leapt   bool // whether the clock went on by more than a path is trusted
	overlay []netip.Prefix

	// clock is the engine's time since began; it stands still within a step, so
	// that what a vector says of time holds to the nanosecond.
	began time.Time
	start time.Time // of the vector
	clock *atomic.Int64

	toHost []packetSeen // what arrived at the host and no step has asked for
	toPeer map[string][]packetSeen
}

type packetSeen struct {
	bytes []byte
	info  packet.Info
}

func seen(b []byte) packetSeen {
	p := packetSeen{bytes: b}
	packet.Parse(b, &p.info)
	return p
}

// pathTrust is how long an engine sends to a peer without an answer to its
// probes (netstack/path). A rogue has no relay, so the engine has no way to it
// when the clock has gone on by more, until it was probed anew.
const pathTrust = 6 * time.Second

// vectorPatience is how long a step waits for what must happen.
const vectorPatience = 5 * time.Second

func newVectorPath(t *testing.T, host *vectorHost, v *acltest.Vector) *vectorPath {
	t.Helper()
	now := time.Now()
	p := &vectorPath{
		t: t, host: host, network: enginetest.NewNetwork(t, 1, now), rogues: map[string]*enginetest.Rogue{}, removed: map[string]bool{},
		began: now, clock: new(atomic.Int64), toPeer: map[string][]packetSeen{},
	}
	p.network.Genesis.Prefix6 = netip.MustParsePrefix("fd00::/48")
	loopback := netip.MustParseAddr("127.0.0.1")
	listen := func(port uint16) (sock.Conn, error) {
		return sock.Listen(sock.Config{Port: port, Addresses: []netip.Addr{loopback}})
	}
	connected := []netip.Prefix{netip.MustParsePrefix("192.0.2.9/24")} // what the vectors call protected
	for i := range v.Steps {
		if c := v.Steps[i].Config; c != nil {
			for _, served := range c.Connected { // by some address in it
				connected = append(connected, netip.PrefixFrom(served.Addr().Next(), served.Bits()))
			}
		}
	}
	var err error
	p.engine, err = engine.New(engine.Config{
		TUN: host.device, Listen: listen,
		LocalAddresses:    func() ([]netip.Addr, error) { return []netip.Addr{loopback}, nil },
		ConnectedPrefixes: func() ([]netip.Prefix, error) { return connected, nil },
		Now:               func() time.Time { return p.began.Add(time.Duration(p.clock.Load())) },
		Logger:            slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- p.engine.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		host.close()
	})
	if err := p.engine.Apply(nil); err != nil {
		t.Fatal(err)
	}
	// The time in which connections are picked up is over, but where a vector
	// says when the program has started.
	since := time.Hour
	for i := range v.Steps {
		if c := v.Steps[i].Config; c != nil && !c.Started.IsZero() {
			since = acltest.VectorStart.Sub(c.Started)
		}
	}
	p.start = p.began.Add(since)
	p.clock.Store(int64(since))
	p.self = p.network.Join("self", nil)
	p.self.Endpoints = []netip.AddrPort{netip.AddrPortFrom(loopback, p.engine.Status().Port)}
	for _, name := range []string{"B", "C"} {
		r := p.network.Join("peer-"+map[string]string{"B": "b", "C": "c"}[name], nil).Rogue(t, p.self, enginetest.RogueConfig{Address: loopback, Listen: listen})
		t.Cleanup(r.Close)
		p.rogues[name] = r
	}
	return p
}

// identify gives a member what the vector says of it.
func (p *vectorPath) identify(m *enginetest.Member, id *ident.Identity) {
	p.network.Serial++
	c := *m.Certificate
	c.Serial, c.Addresses, c.Labels = p.network.Serial, id.Addresses, id.Labels
	c.Routes = authority.SortRoutes(slices.Clone(id.Routes))
	m.Certificate = &c
}

func (p *vectorPath) apply() error {
	rules := p.rules
	c := p.self.Config(p.began, &rules)
	for _, name := range []string{"B", "C"} {
		if !p.removed[name] {
			peer := p.self.Config(p.began, nil, p.rogues[name].Member).Peers[0]
			peer.Routes = p.rogues[name].Certificate.Routes
			c.Peers = append(c.Peers, peer)
		}
	}
	c.ShieldsUp, c.Overlay = p.shields, p.overlay
	c.Forward = p.self.Certificate.Routes
	if slices.ContainsFunc(p.rogues["B"].Certificate.Routes, func(r netip.Prefix) bool { return r.Bits() == 0 }) {
		c.Exit = config.ExitTunnelButLAN
	}
	if err := p.engine.Apply(c); err != nil {
		return err
	}
	for _, r := range p.rogues {
		r.SendTo(p.self, p.self.Endpoints[0])
	}
	return nil
}

func (p *vectorPath) step(s *acltest.VectorStep) error {
	switch s.Op {
	case "self", "peer", "config", "rule", "drop-rule":
		p.dirty = true
	default:
		// Changes that follow each other are one change.
		if p.dirty {
			p.dirty = false
			if err := p.apply(); err != nil {
				return err
			}
		}
	}
	switch s.Op {
	case "self":
		p.identify(p.self, s.Identity)
	case "peer":
		p.identify(p.rogues[s.Peer].Member, s.Identity)
	case "config":
		p.overlay = s.Config.Overlay
	case "rule":
		r := s.Rule
		if !r.NotAfter.IsZero() {
			r.NotAfter = p.start.Add(r.NotAfter.Sub(acltest.VectorStart))
		}
		p.change(s.Direction, func(all []ruleset.Rule) []ruleset.Rule { return append(all, r) })
	case "drop-rule":
		p.change(s.Direction, func(all []ruleset.Rule) []ruleset.Rule {
			return slices.DeleteFunc(all, func(r ruleset.Rule) bool { return r.ID == s.Rule.ID })
		})
	case "at":
		now := int64(p.start.Add(s.At).Sub(p.began))
		p.leapt = p.leapt || time.Duration(now-p.clock.Load()) > pathTrust
		p.clock.Store(now)
		p.engine.Status() // the control goroutine looks at the clock
		p.engine.Status()
	case "shields":
		p.shields = s.Up
		return p.apply()
	case "remove":
		p.removed[s.Peer] = true
		return p.apply()
	case "flows":
		return p.flows(s)
	case "cut":
		return p.cut(s)
	case "in", "out":
		return p.packet(s)
	}
	return nil
}

func (p *vectorPath) change(d ruleset.Direction, change func([]ruleset.Rule) []ruleset.Rule) {
	if d == ruleset.In {
		p.rules.In = change(slices.Clone(p.rules.In))
	} else {
		p.rules.Out = change(slices.Clone(p.rules.Out))
	}
}

func (p *vectorPath) flows(s *acltest.VectorStep) error {
	return p.eventually(func() error {
		got := 0
		for _, peer := range p.engine.Status().Peers {
			if peer.Key == p.rogues[s.Peer].Key {
				got = peer.Flows
			}
		}
		if got != s.Count {
			return fmt.Errorf("%d flows", got)
		}
		return nil
	})
}

// eventually asks until f returns nil.
func (p *vectorPath) eventually(f func() error) error {
	deadline := time.After(vectorPatience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-deadline:
			return err
		case <-tick.C:
			p.gather()
		}
	}
}

// gather takes what has arrived on either side.
func (p *vectorPath) gather() {
	for {
		select {
		case b := <-p.host.received:
			p.toHost = append(p.toHost, seen(b))
			continue
		default:
		}
		more := false
		for name, r := range p.rogues {
			select {
			case b := <-r.TUN.Received():
				p.toPeer[name] = append(p.toPeer[name], seen(b))
				more = true
			default:
			}
		}
		if !more {
			return
		}
	}
}

// take removes the first packet that ok accepts from the list.
func take(list []packetSeen, ok func(*packetSeen) bool) ([]packetSeen, bool) {
	at := slices.IndexFunc(list, func(p packetSeen) bool { return ok(&p) })
	if at < 0 {
		return list, false
	}
	return slices.Delete(list, at, at+1), true
}

// tells reports whether the packet tells its receiver that the flow, in which
// the receiver is the source, was ended: a reset, or "administratively
// prohibited".
func (s *packetSeen) tells(flow packet.Tuple) bool {
	i := &s.info
	if flow.Protocol == packet.TCP {
		return i.Kind == packet.TCPSegment && i.Flags&packet.RST != 0 &&
			i.Source == flow.Destination && i.Destination == flow.Source && i.SourcePort == flow.DestinationPort && i.DestinationPort == flow.SourcePort
	}
	return i.Kind == packet.ICMPError && i.Quoted.Source == flow.Source && i.Quoted.Destination == flow.Destination &&
		i.Quoted.Protocol == flow.Protocol && i.Quoted.SourcePort == flow.SourcePort && i.Quoted.DestinationPort == flow.DestinationPort
}

// cut waits until both sides were told.
func (p *vectorPath) cut(s *acltest.VectorStep) error {
	// A removed peer is told nothing, and one without a path can not be.
	told, toldPeer := false, p.removed[s.Peer] || p.leapt
	return p.eventually(func() error {
		if !told {
			p.toHost, told = take(p.toHost, func(b *packetSeen) bool { return b.tells(s.Cut) })
		}
		if !toldPeer {
			p.toPeer[s.Peer], toldPeer = take(p.toPeer[s.Peer], func(b *packetSeen) bool { return b.tells(s.Cut.Reverse()) })
		}
		if !told || !toldPeer {
			return fmt.Errorf("the host was told: %v, the peer was told: %v", told, toldPeer)
		}
		return nil
	})
}

// packet sends a packet and waits for what must become of it.
func (p *vectorPath) packet(s *acltest.VectorStep) error {
	p.gather()
	rogue, incoming := p.rogues[s.Peer], s.Direction == ruleset.In
	var info packet.Info
	fault := packet.Parse(s.Packet, &info)
	reason := s.Want.Reason
	if incoming {
		reason = p.beforeTheFilter(s, &info, fault)
	} else if p.nobody(&info, fault) {
		reason = "no_peer"
	}
	before := p.engine.Status().Drops
	send := func() error {
		if !incoming {
			return p.host.send(s.Packet)
		}
		if !rogue.TUN.Send(s.Packet) {
			return fmt.Errorf("the rogue can not send it")
		}
		return nil
	}
	if err := send(); err != nil {
		return err
	}
	arrived := func() (ok bool) {
		match := func(b *packetSeen) bool { return sameBut(b.bytes, s.Packet, &info, s.Want.MTU) }
		p.gather()
		if incoming {
			p.toHost, ok = take(p.toHost, match)
		} else {
			p.toPeer[s.Peer], ok = take(p.toPeer[s.Peer], match)
		}
		return ok
	}
	if s.Want.Verdict == "control" {
		return nil // it is the engine's; settle finds it where it arrived
	}
	if s.Want.Verdict == "pass" {
		tries, now := 0, p.clock.Load()
		return p.eventually(func() error {
			if arrived() {
				if p.clock.Load() == now {
					return nil
				}
				// Once more, at the time that the vector means.
				p.clock.Store(now)
				if err := send(); err != nil {
					return err
				}
			} else if tries++; !incoming && p.leapt && tries%20 == 0 {
				// The engine probes for a path as time goes on.
				p.clock.Add(int64(250 * time.Millisecond))
				if err := send(); err != nil {
					return err
				}
			}
			return fmt.Errorf("it did not arrive; dropped %v, before %v", p.engine.Status().Drops, before)
		})
	}
	err := p.eventually(func() error {
		drops := p.engine.Status().Drops
		if got := drops[reason] - before[reason]; got != 1 {
			return fmt.Errorf("%s went up by %d; dropped %v, before %v", reason, got, drops, before)
		}
		return nil
	})
	if err == nil && arrived() {
		err = fmt.Errorf("it arrived")
	}
	if err == nil && s.Want.Verdict == "reject" {
		flow := packet.Tuple{Source: info.Source, Destination: info.Destination, SourcePort: info.SourcePort, DestinationPort: info.DestinationPort, Protocol: info.Protocol}
		err = p.eventually(func() (err error) {
			var told bool
			if p.toHost, told = take(p.toHost, func(b *packetSeen) bool {
				return b.tells(flow) || info.Kind == packet.EchoRequest && b.info.Kind == packet.ICMPError
			}); !told {
				return fmt.Errorf("the host was not told")
			}
			return nil
		})
	}
	return err
}

// beforeTheFilter returns the counter that a packet moves which the vector sends
// in from a peer. WireGuard asks for the source before the filter can, and knows
// no removed peer.
func (p *vectorPath) beforeTheFilter(s *acltest.VectorStep, info *packet.Info, fault packet.Fault) string {
	if p.removed[s.Peer] {
		return "unknown_receiver"
	}
	source := netip.Addr{}
	switch b := s.Packet; {
	case b[0]>>4 == 4:
		source, _ = netip.AddrFromSlice(b[12:16])
	default:
		source, _ = netip.AddrFromSlice(b[8:24])
	}
	owner := ""
	for _, name := range []string{"C", "B"} { // the older one has it
		if slices.Contains(p.rogues[name].Certificate.Addresses, source) {
			owner = name
		}
	}
	if owner != s.Peer && !slices.ContainsFunc(p.rogues[s.Peer].Certificate.Routes, func(r netip.Prefix) bool { return r.Contains(source) }) {
		return "drop_spoof"
	}
	return s.Want.Reason
}

// nobody reports whether the host sends the packet to nobody's address: there is
// no peer whose filter could be asked.
func (p *vectorPath) nobody(info *packet.Info, fault packet.Fault) bool {
	a := info.Destination.Addr()
	if fault != packet.None || a.IsMulticast() || a.IsLinkLocalUnicast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return false
	}
	for _, r := range p.rogues {
		if slices.Contains(r.Certificate.Addresses, a) || slices.ContainsFunc(r.Certificate.Routes, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return false
		}
	}
	return true
}

// sameBut compares a packet that arrived with the one that was sent: without
// what came behind it, and but for the MTU that the filter writes.
func sameBut(got, sent []byte, info *packet.Info, mtu uint16) bool {
	sent = sent[:min(int(info.Length), len(sent))]
	if mtu != 0 {
		sent = bytes.Clone(sent)
		packet.SetMTU(sent, mtu)
	}
	return bytes.Equal(got, sent)
}

// settle ends the test where something arrived that no step has sent, and that
// does not tell of the end of a flow.
func (p *vectorPath) settle() {
	p.gather()
	check := func(where string, list []packetSeen) {
		for i := range list {
			b := &list[i]
			if b.info.Kind != packet.ICMPError && (b.info.Kind != packet.TCPSegment || b.info.Flags&packet.RST == 0) {
				p.t.Errorf("nobody sent what arrived at %s: % x", where, b.bytes)
			}
		}
	}
	check("the host", p.toHost)
	for name, list := range p.toPeer {
		check(name, list)
	}
}
