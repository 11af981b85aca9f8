//go:build linux

package netns

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-overlay/warren/client/health"
	"github.com/warren-overlay/warren/netstack/stun"
	"github.com/warren-overlay/warren/tests/lab"
)

// The first bytes of WireGuard's messages (whitepaper, section 5.4).
const (
	initiation = 1
	response   = 2
	transport  = 4
)

// underAttack are two nodes, one of which an attacker is on the way to, with a
// host of his own elsewhere. There is one way from one to the other, by one family.
type underAttack struct {
	*travellers
	laptop, db *lab.Node
	line       *lab.Line

	attacker netip.AddrPort
	// arrived counts what comes to the attacker, by first byte.
	arrived [256]atomic.Int64
	bytes   atomic.Int64

	mu       sync.Mutex // protects captured
	captured map[lab.Direction]map[byte][][]byte
}

// withoutIPv6 is what leaves IPv4 only.
const withoutIPv6 = "meta nfproto ipv6 drop"

// newUnderAttack has IPv4 only.
func newUnderAttack(t *testing.T) *underAttack {
	t.Helper()
	return newTravellers(t).underAttack(t, withoutIPv6)
}

// underAttack has a rule of nft(8) say what nobody carries from site to site.
func (n *travellers) underAttack(t *testing.T, without string) *underAttack {
	t.Helper()
	a := &underAttack{travellers: n}
	a.internet.Core.Nft("table inet without { chain forward { type filter hook forward priority filter\n" + without + "\n}\n}\n")
	host, line := a.internet.PublicByLine("laptop", 1)
	a.line = line
	a.laptop, a.db = a.join(t, host), a.join(t, a.internet.Public("db"))
	eventuallyRouted(t, a.laptop, a.db)
	eve := a.internet.Public("attacker")
	socket := eve.ListenPacket(t, eve.V4.String()+":0")
	a.attacker = netip.MustParseAddrPort(socket.LocalAddr().String())
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, _, err := socket.ReadFrom(b)
			if err != nil {
				return
			}
			a.arrived[b[0]].Add(1)
			a.bytes.Add(int64(n))
		}
	}()
	return a
}

// capture keeps the datagrams that pass by the line, the first few of each kind, as far
// as which is true of them.
func (a *underAttack) capture(which func(packet []byte) bool) {
	a.captured = map[lab.Direction]map[byte][][]byte{lab.Outbound: {}, lab.Inbound: {}}
	a.line.Watch(func(d lab.Direction, packet []byte) bool {
		if payload, ok := lab.UDPPayload(packet); ok && len(payload) > 0 && which(packet) {
			a.mu.Lock()
			defer a.mu.Unlock()
			if kinds := a.captured[d]; len(kinds[payload[0]]) < 64 {
				kinds[payload[0]] = append(kinds[payload[0]], append([]byte(nil), packet...))
			}
		}
		return true
	})
}

// ours reports whether a packet is a UDP datagram over IPv4 between the two nodes.
func (a *underAttack) ours(packet []byte) bool {
	from, to := lab.Endpoints(packet)
	return from.Addr() == a.laptop.Host.V4 && to.Addr() == a.db.Host.V4 || from.Addr() == a.db.Host.V4 && to.Addr() == a.laptop.Host.V4
}

// taken returns captured packets.
func (a *underAttack) taken(d lab.Direction, kind byte) [][]byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([][]byte(nil), a.captured[d][kind]...)
}

// forget drops captured packets of a kind.
func (a *underAttack) forget(kind byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, kinds := range a.captured {
		delete(kinds, kind)
	}
}

// fromAttacker returns the packet as the attacker sends it.
func (a *underAttack) fromAttacker(packet []byte) []byte {
	return lab.PacketFrom(packet, a.attacker.Addr().As4(), a.attacker.Port())
}

// echo sends a datagram through the tunnel and waits for its echo. A socket that
// was opened before the tunnel's addresses were there never gets one.
func (a *underAttack) echo(t *testing.T, to string) {
	t.Helper()
	lab.Eventually(t, 30*time.Second, func() error {
		return lab.EchoUDP(within(t, 2*time.Second), a.laptop.Host, to)
	})
}

func (a *underAttack) paths(t *testing.T) string {
	t.Helper()
	text := ""
	for _, n := range []*lab.Node{a.laptop, a.db} {
		s, err := n.API().Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range s.Peers {
			text += fmt.Sprintf("%s to %s: %s %v\n", n.Host.Name, p.Name, p.Path.Kind, p.Path.Addr)
		}
	}
	return text
}

// arrived waits until so many packets are counted.
func arrived(t *testing.T, counted func() float64, want float64) {
	t.Helper()
	lab.Eventually(t, 30*time.Second, func() error {
		if n := counted(); n < want {
			return fmt.Errorf("of %v repeated packets, %v are counted", want, n)
		}
		return nil
	})
}

// fromElsewhere returns the facts of a node about packets that come from where a peer
// does not prove to be.
func fromElsewhere(t *testing.T, n *lab.Node) (facts []health.Fact) {
	t.Helper()
	s, err := n.API().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range s.Health {
		if f.Code == health.PacketsFromElsewhere {
			facts = append(facts, f)
		}
	}
	return facts
}

// nobodyStrays fails where a node was alarmed by packets from elsewhere (F19): what
// moves honestly must not do that.
func nobodyStrays(t *testing.T, nodes ...*lab.Node) {
	t.Helper()
	for _, n := range nodes {
		t.Logf("%s: %v packets came from where nothing was proved yet", n.Host.Name, metric(t, n, "warren_path_events_total", `event="packet_stray"`))
		if alarms := metric(t, n, "warren_path_events_total", `event="packets_straying"`); alarms != 0 {
			t.Errorf("%s: %v alarms, packets seemed to come from elsewhere", n.Host.Name, alarms)
		}
	}
}

// TestReplays are the faults F18 and F18b: what was captured between two nodes
// comes again, thousands of times, from its own source and from elsewhere, and
// after a restart of the node that it goes to. Nothing is delivered, nothing
// answered, no path moves.
func TestReplays(t *testing.T) {
	t.Parallel()
	a := newUnderAttack(t)
	to := address(a.db, "-4", 7000)
	echoes := lab.ServeUDP(t, a.db.Host, to)
	a.echo(t, to)
	eventuallyDirect(t, a.laptop, a.db)
	// Without the relay, the next handshake goes straight, where it is captured.
	hub := a.coordinator.Host.V4
	a.internet.Core.Nft(fmt.Sprintf("table ip hub { chain forward { type filter hook forward priority filter\nip saddr %v drop\nip daddr %v drop\n}\n}\n", hub, hub))
	a.capture(a.ours)
	a.laptop.Kill()
	a.laptop.Start()
	a.echo(t, to)
	eventuallyDirect(t, a.laptop, a.db)
	// A probe of before may be one that its receiver has never seen: it was not there, or
	// too many came at a time.
	a.forget(probeMagic)
	lab.Eventually(t, 30*time.Second, func() error {
		if len(a.taken(lab.Outbound, initiation)) == 0 || len(a.taken(lab.Inbound, response)) == 0 ||
			len(a.taken(lab.Outbound, transport)) < 10 || len(a.taken(lab.Outbound, probeMagic)) < 3 || len(a.taken(lab.Inbound, probeMagic)) < 3 {
			a.echo(t, to)
			return fmt.Errorf("there are not enough packets to repeat yet")
		}
		return nil
	})
	paths := a.paths(t)
	handshakes, packets := a.taken(lab.Outbound, initiation), a.taken(lab.Outbound, transport)

	delivered, answers := echoes.Load(), len(a.taken(lab.Inbound, response))
	passed := metric(t, a.db, "warren_inbound_passed_packets_total")
	// A copy of an initiation is refused, or is one too many to be looked at.
	lost := func(n *lab.Node, reasons ...string) (sum float64) {
		for _, reason := range reasons {
			sum += metric(t, n, "warren_lost_packets_total", fmt.Sprintf("reason=%q", reason))
		}
		return sum
	}
	repeated := func(n *lab.Node) float64 { return lost(n, "replayed_packet") }
	refused := func(n *lab.Node) float64 { return lost(n, "replayed_handshake", "initiation_rate") }
	repeatedBefore, refusedBefore, initiations := repeated(a.db), refused(a.db), len(handshakes)
	const burst, bursts, ofHandshakes = 250, 40, 250 / 50
	for sent := range bursts {
		for i := range burst {
			packet := packets[i%len(packets)]
			if i%50 == 0 {
				packet = handshakes[i%len(handshakes)]
			}
			if i%2 == 0 {
				packet = a.fromAttacker(packet)
			}
			a.line.Send(lab.Outbound, packet)
		}
		arrived(t, func() float64 { return repeated(a.db) - repeatedBefore }, float64((sent+1)*(burst-ofHandshakes)))
		arrived(t, func() float64 { return refused(a.db) - refusedBefore }, float64((sent+1)*ofHandshakes))
	}
	const back, backBursts = 100, 10
	for _, test := range []struct {
		kind    byte
		reasons []string
	}{
		{response, []string{"refused_response", "initiation_rate", "unknown_receiver"}},
		{transport, []string{"replayed_packet", "unknown_receiver"}},
	} {
		before, packet := lost(a.laptop, test.reasons...), a.taken(lab.Inbound, test.kind)[0]
		for sent := range backBursts {
			for range back {
				a.line.Send(lab.Inbound, packet)
			}
			arrived(t, func() float64 { return lost(a.laptop, test.reasons...) - before }, float64((sent+1)*back))
		}
		if n := lost(a.laptop, test.reasons...) - before; n != back*backBursts {
			t.Errorf("of %d repeated packets of type %d, %v are counted", back*backBursts, test.kind, n)
		}
	}
	// A copy of a probe was answered before, or answers nothing, or is one too many to
	// be looked at.
	probed := func(n *lab.Node) float64 {
		sum := lost(n, "control_share", "control_overflow")
		for _, event := range []string{"ping_replayed", "ping_over_budget", "pong_unsolicited"} {
			sum += metric(t, n, "warren_path_events_total", fmt.Sprintf("event=%q", event))
		}
		return sum
	}
	probes := a.taken(lab.Outbound, probeMagic)
	for _, test := range []struct {
		d      lab.Direction
		to     *lab.Node
		probes [][]byte
	}{{lab.Outbound, a.db, probes}, {lab.Inbound, a.laptop, a.taken(lab.Inbound, probeMagic)}} {
		before := probed(test.to)
		for sent := range backBursts {
			for i := range back {
				packet := test.probes[i/2%len(test.probes)]
				if test.d == lab.Outbound && i%2 == 0 {
					packet = a.fromAttacker(packet)
				}
				a.line.Send(test.d, packet)
			}
			arrived(t, func() float64 { return probed(test.to) - before }, float64((sent+1)*back))
		}
		// An honest pong may have come too late meanwhile.
		const late = 5
		if n := probed(test.to) - before; n > back*backBursts+late {
			t.Errorf("of %d repeated probes to %s, %v are counted", back*backBursts, test.to.Host.Name, n)
		}
	}
	a.echo(t, to) // behind all of them
	if n := metric(t, a.db, "warren_inbound_passed_packets_total") - passed; n != float64(echoes.Load()-delivered) {
		t.Errorf("of %d repeated packets the filter passed %v, and %d datagrams were sent", burst*bursts, n, echoes.Load()-delivered)
	}
	if n := repeated(a.db) - repeatedBefore; n != bursts*(burst-ofHandshakes) {
		t.Errorf("of %d repeated packets, %v are counted", bursts*(burst-ofHandshakes), n)
	}
	// The laptop may have repeated one of its own, where the answer was late.
	own := len(a.taken(lab.Outbound, initiation)) - initiations
	if n := refused(a.db) - refusedBefore; n < bursts*ofHandshakes || n > float64(bursts*ofHandshakes+own) {
		t.Errorf("of %d repeated initiations, and %d of the laptop's own, %v are counted", bursts*ofHandshakes, own, n)
	}
	if n := len(a.taken(lab.Inbound, response)) - answers; n != 0 {
		t.Errorf("%d repeated initiations were answered", n)
	}
	if now := a.paths(t); now != paths {
		t.Errorf("paths were\n%sand are\n%s", paths, now)
	}
	if n := a.bytes.Load(); n != 0 {
		t.Errorf("%d bytes came to the attacker", n)
	}

	// A node that was started again remembers no probe, so that it may answer one that
	// it answered before. That moves nothing: the attacker gets no packet of a tunnel.
	a.db.Kill()
	a.db.Start()
	lab.ServeUDP(t, a.db.Host, address(a.db, "-4", 7001))
	for range 100 {
		for _, packet := range append(handshakes, packets...) {
			a.line.Send(lab.Outbound, a.fromAttacker(packet))
		}
	}
	a.echo(t, address(a.db, "-4", 7001))
	if n := a.bytes.Load(); n != 0 {
		t.Errorf("after a restart %d bytes came to the attacker", n)
	}
	for range 10 {
		for _, packet := range probes {
			a.line.Send(lab.Outbound, a.fromAttacker(packet))
		}
	}
	a.echo(t, address(a.db, "-4", 7001))
	eventuallyDirect(t, a.laptop, a.db)
	for kind := range byte(transport + 1) {
		if n := a.arrived[kind].Load(); n != 0 {
			t.Errorf("after a restart %d packets of type %d came to the attacker", n, kind)
		}
	}
	if now := a.paths(t); now != paths {
		t.Errorf("paths were\n%sand after a restart are\n%s", paths, now)
	}
	t.Logf("after a restart %d bytes came to the attacker, who had sent %d copies of probes", a.bytes.Load(), 10*len(probes))
}

// TestSentOn is fault F19: an attacker on the way takes the packets of a tunnel
// and sends them on from his own address. They are delivered, but what goes back
// does not go to him, and when he stops nothing has changed. The receiver learns of it:
// there is one alarm, which names him.
func TestSentOn(t *testing.T) {
	t.Parallel()
	a := newUnderAttack(t)
	up := lab.StartPulse(t, a.laptop.Host, a.db.Host, address(a.db, "-4", 7002))
	down := lab.StartPulse(t, a.db.Host, a.laptop.Host, address(a.laptop, "-4", 7003))
	x := lab.StartTransfer(t, a.db.Host, a.laptop.Host, address(a.laptop, "-4", 7001))
	eventuallyDirect(t, a.laptop, a.db)
	paths := a.paths(t)
	begin := time.Now()
	var sentOn atomic.Int64
	a.line.Watch(func(d lab.Direction, packet []byte) bool {
		payload, ok := lab.UDPPayload(packet)
		if d != lab.Outbound || !ok || len(payload) == 0 || payload[0] != transport || !a.ours(packet) {
			return true
		}
		sentOn.Add(1)
		a.line.Send(lab.Outbound, a.fromAttacker(packet))
		return false
	})
	lab.Eventually(t, 30*time.Second, func() error {
		if n := sentOn.Load(); n < 500 {
			return fmt.Errorf("%d packets were sent on", n)
		}
		return nil
	})
	const alarms = `event="packets_straying"`
	nobodyStrays(t, a.laptop)
	lab.Eventually(t, 30*time.Second, func() error {
		facts := fromElsewhere(t, a.db)
		if len(facts) != 1 || facts[0].Severity != health.Alarm || !strings.Contains(facts[0].Text, a.attacker.String()) {
			return fmt.Errorf("after %v: %+v", time.Since(begin), facts)
		}
		return nil
	})
	t.Logf("an alarm after %v", time.Since(begin).Round(time.Second))
	if n := metric(t, a.db, "warren_path_events_total", alarms); n != 1 {
		t.Errorf("%v alarms are counted", n)
	}
	if n := metric(t, a.db, "warren_health_messages", `type="alarm"`); n != 1 {
		t.Errorf("%v alarms are shown to monitoring", n)
	}
	if n := strings.Count(a.db.Log(), "come from where the peer does not prove to be"); n != 1 {
		t.Errorf("%d lines in the log", n)
	}
	nobodyStrays(t, a.laptop)
	a.line.Watch(nil)
	end := time.Now()
	up.Steady(t, 10*time.Second)
	down.Steady(t, 10*time.Second)
	if gap := max(up.Gap(begin), down.Gap(begin)); gap > 3*time.Second {
		t.Errorf("nothing for %v", gap)
	}
	if now := a.paths(t); now != paths {
		t.Errorf("paths were\n%sand are\n%s", paths, now)
	}
	for kind := range byte(transport + 1) {
		if n := a.arrived[kind].Load(); n != 0 {
			t.Errorf("%d packets of type %d came to the attacker", n, kind)
		}
	}
	t.Logf("%d packets sent on in %v; nothing for %v; %d bytes of challenges came to the attacker", sentOn.Load(), end.Sub(begin).Round(time.Second), max(up.Gap(begin), down.Gap(begin)), a.bytes.Load())
	x.Finish(t)
}

// openPorts returns the ports of a protocol, "udp" or "tcp", that are open to others on
// a host, in either family.
func openPorts(t *testing.T, h *lab.Host, protocol string) []uint16 {
	t.Helper()
	found := make(map[uint16]bool)
	h.Do(func() error {
		for _, name := range []string{protocol, protocol + "6"} {
			text, err := os.ReadFile("/proc/thread-self/net/" + name)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(text)) {
				fields := strings.Fields(line)
				if len(fields) < 4 || !strings.Contains(fields[1], ":") || strings.Trim(fields[2], "0:") != "" {
					continue // the heading, or a socket with one remote
				}
				at := strings.LastIndex(fields[1], ":")
				if local := fields[1][:at]; local == "0100007F" || local == "00000000000000000000000001000000" {
					continue // 127.0.0.1 and ::1, in the order of this machine's bytes
				}
				port, err := strconv.ParseUint(fields[1][at+1:], 16, 16)
				if err != nil {
					return err
				}
				found[uint16(port)] = true
			}
		}
		return nil
	})
	return slices.Sorted(maps.Keys(found))
}

// probe is what a stranger sends to one port.
type probe struct {
	to   netip.AddrPort
	what []byte
	*net.UDPConn
}

// answers returns how many datagrams have come back, and how many bytes are in them.
func (p *probe) answers(t *testing.T) (datagrams, bytes int) {
	t.Helper()
	raw, err := p.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 1<<16)
	err = raw.Control(func(fd uintptr) {
		for {
			n, _, err := unix.Recvfrom(int(fd), buffer, unix.MSG_DONTWAIT)
			if errors.Is(err, unix.ECONNREFUSED) {
				continue // reported once
			}
			if err != nil {
				return
			}
			datagrams, bytes = datagrams+1, bytes+n
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return datagrams, bytes
}

// TestAmplification is fault F16: whatever a stranger sends to any open UDP port
// of nodes, coordinator and relay, by IPv4 or IPv6, the answer is not longer, and to
// what seems to be a handshake there is none. What connects to a TCP port gets nothing
// before it has asked, and then the error of an HTTP server at the most.
func TestAmplification(t *testing.T) {
	t.Parallel()
	internet := lab.NewInternet(t)
	relay, cfg := internet.Public("relay"), lab.RelayConfig{Name: "fra-1", Datagrams: true}
	n := newTravellersOn(t, internet, "--relay", relay.RelayEntry(cfg))
	relay.Relay(t, n.coordinator, cfg)
	a := n.underAttack(t, withoutIPv6)
	eve := a.internet.Public("eve")
	// What is real but for its sender is everything that a node sends from its start on:
	// to its peer, to STUN servers and to both relays. Not what goes by IPv6, which arrives
	// nowhere: a probe of the peer's that comes for the first time is answered, and met
	// with a challenge.
	a.capture(func(packet []byte) bool { return packet[0]>>4 == 4 })
	a.laptop.Kill()
	a.laptop.Start()
	to := address(a.db, "-4", 7000)
	lab.ServeUDP(t, a.db.Host, to)
	a.echo(t, to)
	eventuallyDirect(t, a.laptop, a.db)
	var payloads [][]byte
	lab.Eventually(t, 30*time.Second, func() error {
		payloads = nil
		asked := map[netip.Addr]bool{}
		for first := range 256 {
			for _, packet := range a.taken(lab.Outbound, byte(first)) {
				payload, _ := lab.UDPPayload(packet)
				payloads = append(payloads, payload)
				asked[netip.AddrFrom4([4]byte(packet[16:]))] = true
			}
		}
		for _, h := range []*lab.Host{a.coordinator.Host, relay, a.db.Host} {
			if !asked[h.V4] {
				return fmt.Errorf("nothing was sent to %s yet", h.Name)
			}
		}
		return nil
	})
	own := len(payloads)
	// And every first byte in several lengths.
	source := rand.NewChaCha8([32]byte{16})
	for first := range 256 {
		for _, size := range []int{1, 16, 64, 148, 600} {
			b := make([]byte, size)
			source.Read(b)
			b[0] = byte(first)
			if first <= transport && size >= 4 {
				copy(b[1:], []byte{0, 0, 0})
			}
			payloads = append(payloads, b)
		}
	}
	plain := stun.AppendRequest(nil, stun.TxID{1})
	payloads = append(payloads, plain, plain[:20], slices.Concat(plain, make([]byte, 100)))
	t.Logf("%d kinds of datagrams, of which a node sent %d", len(payloads), own)

	a.internet.Core.Nft("delete table inet without\n")
	hosts := []*lab.Host{a.coordinator.Host, relay, a.laptop.Host, a.db.Host}
	nodes := map[*lab.Host]*lab.Node{a.laptop.Host: a.laptop, a.db.Host: a.db}
	for _, h := range hosts {
		for _, addr := range []netip.Addr{h.V4, h.V6} {
			flood(t, eve, h, addr, nodes[h], payloads)
		}
	}
	answered := 0
	for _, h := range hosts {
		for _, port := range openPorts(t, h, "tcp") {
			for _, addr := range []netip.Addr{h.V4, h.V6} {
				preludes(t, eve, netip.AddrPortFrom(addr, port))
				answered++
			}
		}
	}
	if answered < 4 {
		t.Errorf("only %d TCP ports were tried", answered)
	}
}

// flood has a stranger send datagrams to all open ports of an address, which is a node's
// or else a STUN server's.
func flood(t *testing.T, eve, h *lab.Host, addr netip.Addr, node *lab.Node, payloads [][]byte) {
	t.Helper()
	ports := openPorts(t, h, "udp")
	if len(ports) == 0 {
		t.Errorf("%s has no open port", h.Name)
	}
	probes := make([]*probe, 0, len(ports)*len(payloads))
	for _, port := range ports {
		for _, payload := range payloads {
			p := &probe{to: netip.AddrPortFrom(addr, port), what: payload}
			p.UDPConn = dialed(t, eve, p.to)
			defer p.Close()
			p.Write(payload)
			probes = append(probes, p)
		}
	}
	// What comes last is counted, or answered, behind all the others.
	if node != nil {
		const reason = `reason="unknown_protocol"`
		before := metric(t, node, "warren_lost_packets_total", reason)
		marker := dialed(t, eve, netip.AddrPortFrom(addr, wgPort(t, node)))
		defer marker.Close()
		lab.Eventually(t, 30*time.Second, func() error {
			marker.Write([]byte{255, 1})
			if metric(t, node, "warren_lost_packets_total", reason) == before {
				return fmt.Errorf("%s has not come to the last datagram", h.Name)
			}
			return nil
		})
	} else {
		asked := &probe{UDPConn: dialed(t, eve, netip.AddrPortFrom(addr, 3478))}
		defer asked.Close()
		lab.Eventually(t, 30*time.Second, func() error {
			asked.Write(stun.AppendRequest(nil, stun.TxID{2}))
			if n, _ := asked.answers(t); n == 0 {
				return fmt.Errorf("%v answers no STUN request", addr)
			}
			return nil
		})
	}
	answers := 0
	for _, p := range probes {
		datagrams, got := p.answers(t)
		answers += datagrams
		if got > len(p.what) {
			t.Errorf("%v answers %d bytes of type %d by %d", p.to, len(p.what), p.what[0], got)
		}
		if got > 0 && p.what[0] >= initiation && p.what[0] <= transport {
			t.Errorf("%v answers a stranger's message of type %d", p.to, p.what[0])
		}
	}
	if node == nil && answers == 0 {
		t.Error("not even a STUN request was answered")
	}
	t.Logf("%s %v: ports %v, %d datagrams, %d answers", h.Name, addr, ports, len(probes), answers)
}

// httpError is more than the answer of an HTTP server to what is no request.
const httpError = 512

// preludes connects to a port as a stranger, again and again, and sends what is no
// greeting.
func preludes(t *testing.T, eve *lab.Host, to netip.AddrPort) {
	t.Helper()
	garbage := make([]byte, 4096)
	rand.NewChaCha8([32]byte{17}).Read(garbage)
	upgrade := "GET /warren/v1/control HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	most := 0
	for what, sent := range map[string][]byte{
		"one byte": garbage[:1], "bytes at random": garbage, "empty lines": []byte("\r\n\r\n"),
		"a ClientHello cut short":      append([]byte{22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3}, garbage[:32]...),
		"half a request":               []byte("GET / HTTP/1.1\r\nHost: x\r\n"),
		"a long header":                []byte("GET / HTTP/1.1\r\nHost: " + strings.Repeat("x", 2048) + "\r\n\r"),
		"a channel of bytes at random": append([]byte(upgrade), garbage...),
	} {
		var c net.Conn
		eve.Do(func() (err error) {
			c, err = net.DialTimeout("tcp", to.String(), 10*time.Second)
			return err
		})
		defer c.Close()
		c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v: %d bytes, and %v, before anything was sent", to, n, err)
		}
		c.Write(sent)
		c.(*net.TCPConn).CloseWrite()
		c.SetReadDeadline(time.Now().Add(30 * time.Second))
		got, err := io.ReadAll(c)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v keeps the connection of a stranger that sends %s", to, what)
		}
		most = max(most, len(got))
		if len(got) > max(len(sent), httpError) {
			t.Errorf("%v answers %s, %d bytes, by %d", to, what, len(sent), len(got))
		}
	}
	t.Logf("%v: at most %d bytes to a stranger", to, most)
}

// dialed opens a UDP socket of the host's to an address.
func dialed(t *testing.T, h *lab.Host, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	h.Do(func() (err error) {
		c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	})
	return c
}

// wgPort returns the UDP port of a node.
func wgPort(t *testing.T, n *lab.Node) uint16 {
	t.Helper()
	s, err := n.API().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s.Port
}
