package pcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Port is the UDP port of gateways (RFC 6887, section 19.1; RFC 6886, section
// 3.1).
const Port = 5351

// The versions, by which the protocols are told apart.
const (
	versionNATPMP = 0
	versionPCP    = 2
)

const (
	opAddress = 0 // NAT-PMP: which address the gateway has outside
	opMapUDP  = 1 // NAT-PMP: map a UDP port
	opMap     = 1 // PCP: MAP
	response  = 0x80

	udp = 17 // the protocol number in PCP's MAP

	headerSize = 24 // of PCP
	mapSize    = 36 // of what follows it in MAP

	// MaxSize is the longest message of PCP (RFC 6887, section 7).
	MaxSize = 1100
	// maxLifetime is the longest lifetime that is taken for what it says: a day
	// as RFC 6887, section 15 has it for the longest that a gateway should
	// grant. What is above counts as this.
	maxLifetime = 24 * time.Hour
)

var (
	// ErrMalformed is wrapped by errors about bytes that are no message of
	// these protocols.
	ErrMalformed = errors.New("pcp: not a PCP or NAT-PMP response")
	// ErrVersion means that the gateway does not speak the protocol that it was
	// asked in.
	ErrVersion = errors.New("pcp: the gateway does not speak this version")
)

// RefusedError means that the gateway refuses; nothing was mapped.
type RefusedError struct {
	// NATPMP says which of the two protocols Code belongs to.
	NATPMP bool
	// Code is the result code (RFC 6887, section 7.4; RFC 6886, section 3.5).
	Code uint16
	// Wait is for how long the gateway says that it will go on refusing; zero
	// where it does not say. It is at most 24 h.
	Wait time.Duration
}

// Error names the code.
func (e *RefusedError) Error() string {
	names, protocol := pcpCodes[:], "PCP"
	if e.NATPMP {
		names, protocol = natpmpCodes[:], "NAT-PMP"
	}
	name := "unknown"
	if int(e.Code) < len(names) {
		name = names[e.Code]
	}
	return fmt.Sprintf("pcp: the gateway refuses: %s code %d (%s)", protocol, e.Code, name)
}

var pcpCodes = [...]string{
	"success", "unsupported version", "not authorized", "malformed request", "unsupported opcode", "unsupported option",
	"malformed option", "network failure", "no resources", "unsupported protocol", "user exceeded quota",
	"cannot provide external address", "address mismatch", "excessive remote peers",
}

var natpmpCodes = [...]string{
	"success", "unsupported version", "not authorized", "network failure", "out of resources", "unsupported opcode",
}

// Nonce names a PCP mapping: only who knows it can change or delete it.
type Nonce [12]byte

// Mapping is a request for a mapping, or what was granted.
type Mapping struct {
	// Nonce is random for a new mapping, and the same again to renew or delete
	// it. NAT-PMP has none.
	Nonce Nonce
	// Internal is this host's UDP port.
	Internal uint16
	// External is the address and port outside: what is wished for, the zero
	// value for any, or what was granted. In NAT-PMP the address is not part of
	// it.
	External netip.AddrPort
	// Lifetime is for how long; zero deletes. It is whole seconds on the wire.
	Lifetime time.Duration
}

// AppendMap appends a PCP request for a UDP mapping of the host with the given
// address, which must be the one that the request is sent from.
func AppendMap(b []byte, client netip.Addr, m Mapping) []byte {
	b = append(b, versionPCP, opMap, 0, 0)
	b = binary.BigEndian.AppendUint32(b, seconds(m.Lifetime))
	b = appendAddr(b, client)
	b = append(b, m.Nonce[:]...)
	b = append(b, udp, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, m.Internal)
	b = binary.BigEndian.AppendUint16(b, m.External.Port())
	wish := m.External.Addr()
	if !wish.IsValid() {
		// Any address of the client's family (RFC 6887, section 11.1).
		wish = netip.IPv6Unspecified()
		if client.Unmap().Is4() {
			wish = netip.IPv4Unspecified()
		}
	}
	return appendAddr(b, wish)
}

// ParseMap reads the response to AppendMap.
//
// Errors: ErrVersion, where the gateway knows NAT-PMP only or nothing of both; a
// *RefusedError; one that wraps ErrMalformed.
func ParseMap(b []byte) (Mapping, error) {
	if len(b) < 4 || b[1]&response == 0 {
		return Mapping{}, fmt.Errorf("%w: no response", ErrMalformed)
	}
	if b[0] != versionPCP {
		// A gateway that knows NAT-PMP only answers in NAT-PMP (RFC 6887, appendix
		// A), another one in its own version (section 9).
		return Mapping{}, ErrVersion
	}
	if len(b) < headerSize || len(b) > MaxSize || len(b)%4 != 0 {
		return Mapping{}, fmt.Errorf("%w: %d bytes", ErrMalformed, len(b))
	}
	if op := b[1] &^ response; op != opMap {
		return Mapping{}, fmt.Errorf("%w: response to opcode %d", ErrMalformed, op)
	}
	lifetime := span(binary.BigEndian.Uint32(b[4:]))
	switch code := b[3]; code {
	case 0:
	case 1:
		return Mapping{}, ErrVersion
	default:
		return Mapping{}, &RefusedError{Code: uint16(code), Wait: lifetime}
	}
	if len(b) < headerSize+mapSize {
		return Mapping{}, fmt.Errorf("%w: MAP of %d bytes", ErrMalformed, len(b))
	}
	body := b[headerSize:]
	if body[12] != udp {
		return Mapping{}, fmt.Errorf("%w: protocol %d", ErrMalformed, body[12])
	}
	m := Mapping{
		Nonce: Nonce(body[:12]), Internal: binary.BigEndian.Uint16(body[16:]), Lifetime: lifetime,
		External: netip.AddrPortFrom(netip.AddrFrom16([16]byte(body[20:36])).Unmap(), binary.BigEndian.Uint16(body[18:])),
	}
	// Options may follow; none was asked for, so none is read.
	return m, nil
}

// AppendNATPMPAddress appends the NAT-PMP request for the gateway's address
// outside.
func AppendNATPMPAddress(b []byte) []byte { return append(b, versionNATPMP, opAddress) }

// ParseNATPMPAddress reads the response to AppendNATPMPAddress. Errors:
// ErrVersion; a *RefusedError; one that wraps ErrMalformed.
func ParseNATPMPAddress(b []byte) (netip.Addr, error) {
	if err := natpmpHeader(b, opAddress, 12); err != nil {
		return netip.Addr{}, err
	}
	return netip.AddrFrom4([4]byte(b[8:12])), nil
}

// AppendNATPMPMap appends the NAT-PMP request for a UDP mapping.
func AppendNATPMPMap(b []byte, m Mapping) []byte {
	b = append(b, versionNATPMP, opMapUDP, 0, 0)
	b = binary.BigEndian.AppendUint16(b, m.Internal)
	external := m.External.Port()
	if m.Lifetime == 0 {
		external = 0 // deletes (RFC 6886, section 3.4)
	}
	b = binary.BigEndian.AppendUint16(b, external)
	return binary.BigEndian.AppendUint32(b, seconds(m.Lifetime))
}

// ParseNATPMPMap reads the response to AppendNATPMPMap. External has the zero
// Addr. Errors are those of ParseNATPMPAddress.
func ParseNATPMPMap(b []byte) (Mapping, error) {
	if err := natpmpHeader(b, opMapUDP, 16); err != nil {
		return Mapping{}, err
	}
	return Mapping{
		Internal: binary.BigEndian.Uint16(b[8:]),
		External: netip.AddrPortFrom(netip.Addr{}, binary.BigEndian.Uint16(b[10:])),
		Lifetime: span(binary.BigEndian.Uint32(b[12:])),
	}, nil
}

// natpmpHeader checks what all responses of NAT-PMP begin with, and the length
// of one that grants.
func natpmpHeader(b []byte, op byte, size int) error {
	if len(b) < 4 || b[1]&response == 0 {
		return fmt.Errorf("%w: no response", ErrMalformed)
	}
	if b[0] != versionNATPMP {
		return ErrVersion
	}
	if b[1] != op|response {
		return fmt.Errorf("%w: response to opcode %d", ErrMalformed, b[1]&^response)
	}
	switch code := binary.BigEndian.Uint16(b[2:]); code {
	case 0:
	case 1:
		return ErrVersion
	default:
		return &RefusedError{NATPMP: true, Code: code}
	}
	if len(b) != size {
		return fmt.Errorf("%w: %d bytes, want %d", ErrMalformed, len(b), size)
	}
	return nil
}

func appendAddr(b []byte, a netip.Addr) []byte {
	raw := a.As16() // IPv4 addresses stand in their mapped form
	return append(b, raw[:]...)
}

// seconds returns a lifetime as it is on the wire: whole seconds, no more than
// the longest and no less than one unless it is zero.
func seconds(d time.Duration) uint32 {
	switch {
	case d <= 0:
		return 0
	case d < time.Second:
		return 1
	}
	return uint32(min(d, maxLifetime) / time.Second)
}

func span(seconds uint32) time.Duration {
	return min(time.Duration(seconds)*time.Second, maxLifetime)
}
