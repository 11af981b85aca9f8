package engine

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/warren-overlay/warren/acl/packet"
)

// inbandProtocol is the IP protocol number of what engines say to each other
// inside the tunnel (packet-filter.md, P12): the first of the two for
// experiments (RFC 3692), which no program of a host may send to a peer.
const inbandProtocol = 253

// An in-band message is 12 bytes after the IP header: version, kind, flags, a
// zero, and the nonce that an answer repeats. It is as genuine as the tunnel,
// and comes by whatever path that has now.
const (
	inbandLength  = 12
	inbandVersion = 1

	kindAsk    = 1
	kindAnswer = 2

	// flagServing says in an answer that the device serves all its routes.
	flagServing = 1
)

// inband is one message.
type inband struct {
	kind, flags byte
	nonce       uint64
}

var errInband = errors.New("engine: not an in-band message")

// appendInband appends an IP packet with the message. The addresses are of one
// family.
func appendInband(b []byte, source, destination netip.Addr, m inband) []byte {
	start := len(b)
	if source.Is4() {
		b = append(b, 0x45, 0, 0, 20+inbandLength, 0, 0, 0x40, 0, 64, inbandProtocol, 0, 0)
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
		b = append(b, 0x60, 0, 0, 0, 0, inbandLength, inbandProtocol, 64)
		b = append(b, source.AsSlice()...)
		b = append(b, destination.AsSlice()...)
	}
	b = append(b, inbandVersion, m.kind, m.flags, 0)
	return binary.BigEndian.AppendUint64(b, m.nonce)
}

// parseInband reads the message of a packet that packet.Parse has accepted.
func parseInband(b []byte, info *packet.Info) (inband, error) {
	header := 40
	if info.Version == 4 {
		header = 20
	}
	if info.Fragment() || len(b) != header+inbandLength || b[header] != inbandVersion {
		return inband{}, errInband
	}
	m := inband{kind: b[header+1], flags: b[header+2], nonce: binary.BigEndian.Uint64(b[header+4:])}
	if m.kind != kindAsk && m.kind != kindAnswer {
		return inband{}, errInband
	}
	return m, nil
}

// handleInband takes an in-band message of p's, whose mutex is held. A question
// is answered at once: that the tunnel and the data path work is the answer.
func (d *hostDevice) handleInband(p *peer, b []byte, info *packet.Info) {
	m, err := parseInband(b, info)
	if err != nil {
		return
	}
	if m.kind == kindAnswer {
		select {
		case d.e.answers <- answer{p, m}:
		default: // the next one is as good
		}
		return
	}
	now := d.now()
	if now.Sub(p.answered) < answerGap {
		return
	}
	p.answered = now
	flags := byte(0)
	if d.serving.Load() {
		flags = flagServing
	}
	d.reader.inject(appendInband(nil, info.Destination.Addr(), info.Source.Addr(), inband{kind: kindAnswer, flags: flags, nonce: m.nonce}))
}

// answer is an answer that came from a peer.
type answer struct {
	p *peer
	m inband
}
