package disco

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Message is a Ping, a Pong, a CallMe or a Mapping.
type Message interface {
	// appendTo appends the plain form of the message.
	appendTo(dst []byte) ([]byte, error)
}

var (
	_ Message = Ping{}
	_ Message = Pong{}
	_ Message = CallMe{}
	_ Message = Mapping{}
)

// TxID is the random challenge of a Ping, which the Pong repeats.
type TxID [12]byte

// Ping asks the receiver to answer to the address that the ping came from.
type Ping struct {
	TxID TxID
	// Session is drawn at random by the sender when it begins to probe the
	// receiver, and Seq counts its pings from 1. Together they never repeat.
	Session uint64
	Seq     uint64
	// Padding is how many zero bytes make the message longer, at most
	// MaxPadding: a ping of a given length that is answered proves that the path
	// carries packets as long as that.
	Padding int
}

// Pong answers a Ping.
type Pong struct {
	TxID TxID
	// Observed is the address from which the Ping came, as the sender of the
	// Pong saw it, zero where that came over a relay. It is what the peer says, and
	// proves nothing: it is shown to people, who see by it what a NAT does to a way.
	Observed netip.AddrPort
	// InTunnel says that the sender also answers questions inside the tunnel. It goes
	// over relays, where Observed is zero, which it must be. Nodes of versions before
	// it never set it, and do not look at it.
	InTunnel bool
}

// inTunnel is what stands in the place of Observed for InTunnel: an address that
// packets never come from (the discard prefix of RFC 6666), since nodes of versions
// before it take nothing for a Pong but what has an address there, or zeros.
var inTunnel = netip.AddrPortFrom(netip.MustParseAddr("100::1"), 1)

// CallMe asks the receiver to probe the sender at the given addresses, now,
// while the sender probes in its turn. It travels over the relay.
type CallMe struct {
	// Endpoints has at most MaxEndpoints valid addresses with a port.
	Endpoints []netip.AddrPort
}

// MaxEndpoints is the largest number of addresses in one CallMe: more than an
// honest node has, few enough that a hostile one can not make its peer's
// candidate list long.
const MaxEndpoints = 16

// Mapping says what the sender knows of the NAT in front of it, so that the two
// can tell whether ports are to be guessed. It travels over the relay, beside a
// CallMe. It is what the peer says, and proves nothing. Nodes of versions before
// it do not know it, and drop it.
type Mapping struct {
	// Public is where a server saw the sender's own port. It must be valid.
	Public netip.AddrPort
	// Varies means that every destination sees the sender at another port, so
	// that Public's is none that the receiver can send to.
	Varies bool
	// Ports is how many further sockets of the sender's send to the receiver now:
	// as many ports of Public's address let in what comes from the receiver. It is
	// at most MaxPorts, and 0 unless Varies.
	Ports uint16
	// Attempt tells the attempts of one sender apart. It is 0 where Ports is 0,
	// and drawn at random otherwise.
	Attempt uint64
}

// MaxPorts is the largest number of ports that one Mapping may offer: as many
// sockets as a node opens (package path), each of which is a line in its NAT's
// table.
const MaxPorts = 256

// ErrMalformed is wrapped by errors about contents that no sender of ours
// writes.
var ErrMalformed = errors.New("disco: malformed message")

const (
	kindPing    = 1
	kindPong    = 2
	kindCallMe  = 3
	kindMapping = 4

	addrPortSize = 18
	// plainSize is the length of a Ping and of a Pong, padded with zeros.
	plainSize = 1 + len(TxID{}) + addrPortSize + 1
	// mappingSize is the length of a Mapping: kind, whether it varies, address,
	// ports and attempt.
	mappingSize = 1 + 1 + addrPortSize + 2 + 8
)

// MaxPadding makes a ping that fills a jumbo Ethernet frame of 9000 bytes over
// IPv4. Nodes of versions before padding ignore padded pings.
const MaxPadding = 9000 - 20 - 8 - PingSize

func (m Ping) appendTo(dst []byte) ([]byte, error) {
	if m.Padding < 0 || m.Padding > MaxPadding {
		return nil, fmt.Errorf("%w: %d bytes of padding, at most %d", ErrMalformed, m.Padding, MaxPadding)
	}
	start := len(dst)
	dst = append(dst, kindPing)
	dst = append(dst, m.TxID[:]...)
	dst = binary.BigEndian.AppendUint64(dst, m.Session)
	dst = binary.BigEndian.AppendUint64(dst, m.Seq)
	return append(pad(dst, start), make([]byte, m.Padding)...), nil
}

func (m Pong) appendTo(dst []byte) ([]byte, error) {
	start := len(dst)
	dst = append(dst, kindPong)
	dst = append(dst, m.TxID[:]...)
	observed := m.Observed
	switch {
	case m.InTunnel && observed == (netip.AddrPort{}):
		observed = inTunnel
	case m.InTunnel, observed == inTunnel:
		return nil, fmt.Errorf("%w: pong with address %v, in the tunnel %v", ErrMalformed, observed, m.InTunnel)
	case observed == (netip.AddrPort{}):
		return pad(dst, start), nil
	}
	dst, err := appendAddrPort(dst, observed)
	if err != nil {
		return nil, err
	}
	return pad(dst, start), nil
}

func (m CallMe) appendTo(dst []byte) ([]byte, error) {
	if len(m.Endpoints) > MaxEndpoints {
		return nil, fmt.Errorf("%w: %d endpoints, at most %d", ErrMalformed, len(m.Endpoints), MaxEndpoints)
	}
	dst = append(dst, kindCallMe, byte(len(m.Endpoints)))
	for _, e := range m.Endpoints {
		var err error
		if dst, err = appendAddrPort(dst, e); err != nil {
			return nil, err
		}
	}
	return dst, nil
}

func (m Mapping) appendTo(dst []byte) ([]byte, error) {
	if !m.possible() {
		return nil, fmt.Errorf("%w: mapping with %d ports, varying %v, attempt %d", ErrMalformed, m.Ports, m.Varies, m.Attempt)
	}
	varies := byte(0)
	if m.Varies {
		varies = 1
	}
	dst, err := appendAddrPort(append(dst, kindMapping, varies), m.Public)
	if err != nil {
		return nil, err
	}
	dst = binary.BigEndian.AppendUint16(dst, m.Ports)
	return binary.BigEndian.AppendUint64(dst, m.Attempt), nil
}

// possible reports whether the parts of m go together.
func (m Mapping) possible() bool {
	return m.Ports <= MaxPorts && (m.Varies || m.Ports == 0) && (m.Ports == 0) == (m.Attempt == 0)
}

func parseMapping(b []byte) (Message, error) {
	if len(b) != mappingSize || b[1] > 1 {
		return nil, fmt.Errorf("%w: mapping", ErrMalformed)
	}
	public, err := parseAddrPort(b[2 : 2+addrPortSize])
	if err != nil {
		return nil, err
	}
	rest := b[2+addrPortSize:]
	m := Mapping{Public: public, Varies: b[1] == 1, Ports: binary.BigEndian.Uint16(rest), Attempt: binary.BigEndian.Uint64(rest[2:])}
	if !m.possible() {
		return nil, fmt.Errorf("%w: mapping with %d ports", ErrMalformed, m.Ports)
	}
	return m, nil
}

func pad(dst []byte, start int) []byte {
	for len(dst)-start < plainSize {
		dst = append(dst, 0)
	}
	return dst
}

// appendAddrPort writes 16 bytes of address, IPv4 mapped into IPv6, and the
// port.
func appendAddrPort(dst []byte, a netip.AddrPort) ([]byte, error) {
	if !usable(a) {
		return nil, fmt.Errorf("%w: address %v", ErrMalformed, a)
	}
	raw := a.Addr().As16()
	dst = append(dst, raw[:]...)
	return binary.BigEndian.AppendUint16(dst, a.Port()), nil
}

func parseAddrPort(b []byte) (netip.AddrPort, error) {
	a := netip.AddrPortFrom(netip.AddrFrom16([16]byte(b)).Unmap(), binary.BigEndian.Uint16(b[16:]))
	if !usable(a) {
		return netip.AddrPort{}, fmt.Errorf("%w: address %v", ErrMalformed, a)
	}
	return a, nil
}

// usable reports whether a is an address that can be written and that a packet
// can come from. A zone means something on one host only.
func usable(a netip.AddrPort) bool {
	return a.IsValid() && a.Port() != 0 && a.Addr().Zone() == "" &&
		!a.Addr().IsUnspecified() && !a.Addr().IsMulticast()
}

// parseMessage reads what appendTo wrote, and nothing else: padding must be
// zero and nothing may follow.
func parseMessage(b []byte) (Message, error) {
	if len(b) == 0 {
		return nil, fmt.Errorf("%w: empty", ErrMalformed)
	}
	switch b[0] {
	case kindPing:
		if len(b) < plainSize || len(b) > plainSize+MaxPadding || !allZero(b[29:]) {
			return nil, fmt.Errorf("%w: ping", ErrMalformed)
		}
		return Ping{
			TxID:    TxID(b[1:13]),
			Session: binary.BigEndian.Uint64(b[13:]),
			Seq:     binary.BigEndian.Uint64(b[21:]),
			Padding: len(b) - plainSize,
		}, nil
	case kindPong:
		if len(b) != plainSize || !allZero(b[31:]) {
			return nil, fmt.Errorf("%w: pong", ErrMalformed)
		}
		if allZero(b[13:31]) {
			return Pong{TxID: TxID(b[1:13])}, nil
		}
		observed, err := parseAddrPort(b[13:31])
		if err != nil {
			return nil, err
		}
		if observed == inTunnel {
			return Pong{TxID: TxID(b[1:13]), InTunnel: true}, nil
		}
		return Pong{TxID: TxID(b[1:13]), Observed: observed}, nil
	case kindCallMe:
		return parseCallMe(b[1:])
	case kindMapping:
		return parseMapping(b)
	default:
		return nil, fmt.Errorf("%w: kind %d", ErrMalformed, b[0])
	}
}

func parseCallMe(b []byte) (Message, error) {
	if len(b) == 0 || int(b[0]) > MaxEndpoints || len(b)-1 != int(b[0])*addrPortSize {
		return nil, fmt.Errorf("%w: call-me", ErrMalformed)
	}
	endpoints := make([]netip.AddrPort, 0, b[0])
	for b = b[1:]; len(b) > 0; b = b[addrPortSize:] {
		e, err := parseAddrPort(b[:addrPortSize])
		if err != nil {
			return nil, err
		}
		endpoints = append(endpoints, e)
	}
	return CallMe{Endpoints: endpoints}, nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
