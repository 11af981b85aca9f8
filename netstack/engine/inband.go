package engine

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/netstack/relay/home"
	"github.com/warren-overlay/warren/netstack/tun"
	"github.com/warren-overlay/warren/netstack/wg"
)

// inbandProtocol is the IP protocol number of what engines say to each other
// inside the tunnel (packet-filter.md, P12): the first of the two for
// experiments (RFC 3692), which no program of a host may send to a peer.
const inbandProtocol = 253

// An in-band message is 12 bytes after the IP header: version, kind, flags, a
// zero, and the nonce that an answer repeats. It is as genuine as the tunnel. An ask
// and its answer go by whatever path there is. A relay ask goes over the relay that it
// is about, and its answer over the relay that the ask came by; zeros make both as
// long as packets that programs send, so that the relay cannot tell them from those.
// Nodes of versions before relay asks do not know them, and drop them.
const (
	inbandLength  = 12
	inbandVersion = 1

	kindAsk         = 1
	kindAnswer      = 2
	kindRelayAsk    = 3
	kindRelayAnswer = 4

	// flagServing says in an answer that the device serves all its routes.
	flagServing = 1

	// maxInband is the length of the longest relay ask: what every device has for its
	// MTU, and every relay carries.
	maxInband = tun.DefaultMTU
	// relayAnswerGap is the least time between two answers to relay asks of one peer:
	// under the least time between two of its asks (home, tunnelSpacing).
	relayAnswerGap = 50 * time.Millisecond
)

// inband is one message.
type inband struct {
	kind, flags byte
	nonce       uint64
	// length is that of the IP packet of a relay ask and its answer, as far as it is
	// neither too short for the message nor over maxInband.
	length int
}

// padded reports whether zeros may follow the message.
func (m *inband) padded() bool { return m.kind == kindRelayAsk || m.kind == kindRelayAnswer }

var errInband = errors.New("engine: not an in-band message")

// appendInband appends an IP packet with the message. The addresses are of one
// family.
func appendInband(b []byte, source, destination netip.Addr, m inband) []byte {
	start, header := len(b), 40
	if source.Is4() {
		header = 20
	}
	length := header + inbandLength
	if m.padded() {
		length = max(length, min(m.length, maxInband))
	}
	if source.Is4() {
		b = append(b, 0x45, 0, byte(length>>8), byte(length), 0, 0, 0x40, 0, 64, inbandProtocol, 0, 0)
		b = append(b, source.AsSlice()...)
		b = append(b, destination.AsSlice()...)
		var sum uint32
		for i := start; i < start+20; i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		sum = sum&0xffff + sum>>16
		sum += sum >> 16
		binary.BigEndian.PutUint16(b[start+10:], ^uint16(sum))
	} else {
		payload := length - header
		b = append(b, 0x60, 0, 0, 0, byte(payload>>8), byte(payload), inbandProtocol, 64)
		b = append(b, source.AsSlice()...)
		b = append(b, destination.AsSlice()...)
	}
	b = append(b, inbandVersion, m.kind, m.flags, 0)
	b = binary.BigEndian.AppendUint64(b, m.nonce)
	return append(b, make([]byte, length-header-inbandLength)...)
}

// parseInband reads the message of a packet that packet.Parse has accepted.
func parseInband(b []byte, info *packet.Info) (inband, error) {
	header := 40
	if info.Version == 4 {
		header = 20
	}
	if info.Fragment() || len(b) < header+inbandLength || b[header] != inbandVersion {
		return inband{}, errInband
	}
	m := inband{kind: b[header+1], flags: b[header+2], nonce: binary.BigEndian.Uint64(b[header+4:])}
	rest := b[header+inbandLength:]
	switch {
	case m.padded():
		if len(b) > maxInband || slices.ContainsFunc(rest, func(c byte) bool { return c != 0 }) {
			return inband{}, errInband
		}
		m.length = len(b)
	case m.kind != kindAsk && m.kind != kindAnswer, len(rest) > 0:
		return inband{}, errInband
	}
	return m, nil
}

// handleInband takes an in-band message of p's, whose mutex is held: buf is what
// WireGuard wrote, with the packet at offset. A question is answered at once: that the
// tunnel and the data path work is the answer.
func (d *hostDevice) handleInband(p *peer, buf []byte, offset int, info *packet.Info) {
	m, err := parseInband(buf[offset:offset+int(info.Length)], info)
	if err != nil {
		return
	}
	reply := inband{nonce: m.nonce}
	var over wg.Relay
	switch m.kind {
	case kindAnswer, kindRelayAnswer:
		d.tell(answer{p: p, m: m})
		return
	case kindAsk:
		if !mayAnswer(&p.answered[0], answerGap, d.now()) {
			return
		}
		reply.kind = kindAnswer
		if d.serving.Load() {
			reply.flags = flagServing
		}
	case kindRelayAsk:
		if !mayAnswer(&p.answered[1], relayAnswerGap, d.now()) {
			return
		}
		// Where that is not known it goes by p's path.
		if device := d.device.Load(); device != nil {
			from, _ := device.Source(buf, offset)
			over = from.Relay
		}
		if by, ok := over.(*relayConn); ok {
			d.tell(answer{p, m, by})
		}
		reply.kind, reply.length = kindRelayAnswer, p.lengths.pick(byte(m.nonce), m.length)
	}
	d.reader.injectOver(appendInband(nil, info.Destination.Addr(), info.Source.Addr(), reply), over)
}

// mayAnswer reports whether an answer may be given now, so long after the last one,
// and notes it.
func mayAnswer(last *time.Time, gap time.Duration, now time.Time) bool {
	if now.Sub(*last) < gap {
		return false
	}
	*last = now
	return true
}

// answer is an answer that came from a peer, or a relay ask and over which relay.
type answer struct {
	p    *peer
	m    inband
	over *relayConn
}

// tell tells the control goroutine of an answer. Where that is busy the next one is as
// good.
func (d *hostDevice) tell(a answer) {
	select {
	case d.e.answers <- a:
	default:
	}
}

// lengths are those of the last packets that left for a peer, one of each run of them,
// and of the longest lately: a relay that drops long packets stops what sends them, so
// that they get few among others. The zero value has none.
type lengths struct {
	last [8]uint16 // a ring, 0 for none
	next int
	// longest is that of the longest since until-lengthsFor, and in as long before.
	longest [2]uint16
	until   time.Time
}

// lengthsFor is for how long the longest packet is remembered at least: TCP repeats
// what is lost after 3 and 6 s when it has been for some seconds (RFC 6298).
const lengthsFor = 10 * time.Second

// note notes the last packet of a run, and the longest.
func (l *lengths) note(last, longest int, now time.Time) {
	l.last[l.next] = uint16(min(last, maxInband))
	l.next = (l.next + 1) % len(l.last)
	if !now.Before(l.until) {
		l.longest[1] = l.longest[0]
		if now.Sub(l.until) >= lengthsFor {
			l.longest[1] = 0
		}
		l.longest[0], l.until = 0, now.Add(lengthsFor)
	}
	l.longest[0] = max(l.longest[0], uint16(min(longest, maxInband)))
}

// pick returns one of the lengths, the same for the same draw, or otherwise where
// there is none. Every other draw is the longest.
func (l *lengths) pick(draw byte, otherwise int) int {
	n := len(l.last)
	if l.last[n-1] == 0 {
		n = l.next // it was not filled yet
	}
	switch {
	case n == 0:
		return otherwise
	case draw%2 == 0:
		return int(max(l.longest[0], l.longest[1]))
	}
	return int(l.last[int(draw/2)%n])
}

// usualLength is that of a relay ask where nothing has left for the peer: as long as a
// ping's packet of most systems.
const usualLength = 84

// askInTunnel sends what the relays' machine wants to have asked inside the tunnel.
func (c *control) askInTunnel(p *peer, over *relayConn, o home.Output) {
	from, to, ok := c.inbandAddresses(p)
	if !ok {
		return
	}
	p.mu.Lock()
	length := p.lengths.pick(o.Draw, usualLength)
	p.mu.Unlock()
	c.e.host.reader.injectOver(appendInband(nil, from, to, inband{kind: kindRelayAsk, nonce: o.Nonce, length: length}), over)
}

// inbandAddresses returns this device's address and p's, of one family, for in-band
// messages to p.
func (c *control) inbandAddresses(p *peer) (from, to netip.Addr, ok bool) {
	if c.cfg == nil {
		return from, to, false
	}
	for _, to := range p.member.Identity().Addresses {
		for _, from := range c.cfg.Self.Identity().Addresses {
			if from.Is4() == to.Is4() {
				return from, to, true
			}
		}
	}
	return from, to, false
}

// handleAnswer notices that a peer answered in band, or asked about a relay.
func (c *control) handleAnswer(a answer) {
	if c.peers[a.p.key] != a.p {
		return
	}
	switch a.m.kind {
	case kindAnswer:
		c.handleRouterAnswer(a)
	case kindRelayAsk:
		c.relays.machine.HandleTunnelAsk(a.over.relay.Name, a.p.key, c.now())
	case kindRelayAnswer:
		if err := c.relays.machine.HandleTunnelAnswer(a.p.key, a.m.nonce, c.now()); err != nil {
			c.e.log.Debug("answer refused", "peer", a.p.member.Name(), "error", err)
		}
	}
	c.drainRelays()
}
