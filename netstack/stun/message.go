package stun

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
)

// TxID is the 96-bit transaction id (RFC 8489, section 5). It must be drawn at
// random for each request: it is all that keeps a stranger who does not see the
// request from answering it.
type TxID [12]byte

// Kind says what a message is.
type Kind uint8

const (
	// Request is a Binding request.
	Request Kind = iota + 1
	// Response is a Binding success response.
	Response
	// Failure is a Binding error response.
	Failure
)

// Message is what a parsed message says.
type Message struct {
	Kind Kind
	TxID TxID
	// Mapped is the XOR-MAPPED-ADDRESS of a Response: the source address of the
	// request as the server saw it. It is valid for every Response and zero for
	// other kinds.
	Mapped netip.AddrPort
	// Code is the ERROR-CODE of a Failure (RFC 8489, section 14.8), 0 where it
	// is missing or the message is of another kind.
	Code int
}

var (
	// ErrNotSTUN means that the packet does not begin with a STUN header.
	ErrNotSTUN = errors.New("stun: not a STUN message")
	// ErrMalformed is wrapped by errors about a message with a STUN header and
	// contents against RFC 8489.
	ErrMalformed = errors.New("stun: malformed message")
	// ErrUnsupported is wrapped by errors about a well-formed message that is no
	// Binding request or response, or that demands an attribute unknown here.
	ErrUnsupported = errors.New("stun: unsupported message")
)

const (
	headerSize  = 20
	magicCookie = 0x2112A442

	typeRequest  = 0x0001
	typeResponse = 0x0101
	typeFailure  = 0x0111

	attrMappedAddress    = 0x0001
	attrErrorCode        = 0x0009
	attrUnknown          = 0x000A
	attrXORMappedAddress = 0x0020
	attrSoftware         = 0x8022
	attrFingerprint      = 0x8028

	fingerprintSize = 8
	fingerprintMask = 0x5354554e

	// optional is the bit of an attribute's type that allows a receiver to skip
	// what it does not know (RFC 8489, section 14).
	optional = 0x8000
)

// padding is the SOFTWARE text of our requests. Its length is chosen so that a
// request is as long as the longest answer to it: 20 header + 24 XOR-MAPPED-
// ADDRESS of an IPv6 address + 8 FINGERPRINT.
const padding = "warren path probe v1"

// RequestSize is the length of what AppendRequest appends.
const RequestSize = headerSize + 4 + len(padding) + fingerprintSize

// Is reports whether b looks like a STUN message, for telling protocols on one
// socket apart (RFC 8489, section 6.3; RFC 7983). It looks at the header only.
func Is(b []byte) bool {
	return len(b) >= headerSize && b[0]&0xc0 == 0 &&
		binary.BigEndian.Uint32(b[4:]) == magicCookie &&
		int(binary.BigEndian.Uint16(b[2:]))+headerSize == len(b)
}

// Parse reads one message that fills b. It returns ErrNotSTUN, or an error that
// wraps ErrMalformed or ErrUnsupported. Nothing of b is kept.
func Parse(b []byte) (Message, error) {
	var m Message
	if !Is(b) {
		return m, ErrNotSTUN
	}
	if len(b)%4 != 0 {
		return m, fmt.Errorf("%w: length not a multiple of four", ErrMalformed)
	}
	switch binary.BigEndian.Uint16(b) {
	case typeRequest:
		m.Kind = Request
	case typeResponse:
		m.Kind = Response
	case typeFailure:
		m.Kind = Failure
	default:
		return Message{}, fmt.Errorf("%w: type %#04x", ErrUnsupported, binary.BigEndian.Uint16(b))
	}
	copy(m.TxID[:], b[8:headerSize])
	for at := headerSize; at < len(b); {
		kind, value, next, err := attribute(b, at)
		if err != nil {
			return Message{}, err
		}
		if err := m.read(kind, value); err != nil {
			return Message{}, err
		}
		if kind == attrFingerprint {
			if next != len(b) {
				return Message{}, fmt.Errorf("%w: FINGERPRINT is not last", ErrMalformed)
			}
			if len(value) != 4 || binary.BigEndian.Uint32(value) != fingerprint(b[:at]) {
				return Message{}, fmt.Errorf("%w: wrong FINGERPRINT", ErrMalformed)
			}
		}
		at = next
	}
	if m.Kind == Response && !m.Mapped.IsValid() {
		return Message{}, fmt.Errorf("%w: response without XOR-MAPPED-ADDRESS", ErrMalformed)
	}
	return m, nil
}

// attribute returns the attribute at b[at:] and where the next one begins.
func attribute(b []byte, at int) (kind uint16, value []byte, next int, err error) {
	if len(b)-at < 4 {
		return 0, nil, 0, fmt.Errorf("%w: cut attribute header", ErrMalformed)
	}
	kind = binary.BigEndian.Uint16(b[at:])
	size := int(binary.BigEndian.Uint16(b[at+2:]))
	padded := (size + 3) &^ 3
	if len(b)-at-4 < padded {
		return 0, nil, 0, fmt.Errorf("%w: attribute longer than the message", ErrMalformed)
	}
	return kind, b[at+4 : at+4+size], at + 4 + padded, nil
}

// read takes one attribute. The first one of its type counts (RFC 8489,
// section 14).
func (m *Message) read(kind uint16, value []byte) error {
	switch {
	case kind == attrXORMappedAddress && m.Kind == Response:
		if m.Mapped.IsValid() {
			return nil
		}
		mapped, ok := parseXORMapped(value, m.TxID)
		if !ok {
			return fmt.Errorf("%w: XOR-MAPPED-ADDRESS", ErrMalformed)
		}
		m.Mapped = mapped
	case kind == attrErrorCode && m.Kind == Failure:
		if len(value) < 4 || value[2] < 3 || value[2] > 6 || value[3] > 99 {
			return fmt.Errorf("%w: ERROR-CODE", ErrMalformed)
		}
		if m.Code == 0 {
			m.Code = int(value[2])*100 + int(value[3])
		}
	case kind == attrMappedAddress, kind == attrUnknown, kind == attrXORMappedAddress, kind == attrErrorCode:
		// Known and of no use here: middleboxes rewrite MAPPED-ADDRESS.
	case kind&optional == 0:
		return fmt.Errorf("%w: attribute %#04x must be understood", ErrUnsupported, kind)
	}
	return nil
}

// parseXORMapped reads the value of RFC 8489, section 14.2. Port 0 is refused:
// no packet comes from there.
func parseXORMapped(value []byte, id TxID) (netip.AddrPort, bool) {
	if len(value) < 4 {
		return netip.AddrPort{}, false
	}
	port := binary.BigEndian.Uint16(value[2:]) ^ magicCookie>>16
	mask := xorMask(id)
	var addr netip.Addr
	switch {
	case value[1] == 1 && len(value) == 8:
		addr = netip.AddrFrom4([4]byte(xored(value[4:], mask[:4])))
	case value[1] == 2 && len(value) == 20:
		// A server on a dual-stack socket may write IPv4 this way.
		addr = netip.AddrFrom16([16]byte(xored(value[4:], mask[:]))).Unmap()
	default:
		return netip.AddrPort{}, false
	}
	if port == 0 || addr.IsUnspecified() {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(addr, port), true
}

func xorMask(id TxID) (mask [16]byte) {
	binary.BigEndian.PutUint32(mask[:], magicCookie)
	copy(mask[4:], id[:])
	return mask
}

func xored(value, mask []byte) []byte {
	out := make([]byte, len(value))
	for i := range value {
		out[i] = value[i] ^ mask[i]
	}
	return out
}

// fingerprint is the value of FINGERPRINT over the message before it, whose
// header already counts the attribute (RFC 8489, section 14.7).
func fingerprint(before []byte) uint32 {
	return crc32.ChecksumIEEE(before) ^ fingerprintMask
}

// AppendRequest appends a Binding request of RequestSize bytes to dst.
func AppendRequest(dst []byte, id TxID) []byte {
	start := len(dst)
	dst = appendHeader(dst, typeRequest, RequestSize-headerSize, id)
	dst = binary.BigEndian.AppendUint16(dst, attrSoftware)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(padding)))
	dst = append(dst, padding...)
	return appendFingerprint(dst, start)
}

// AppendResponse appends to dst the success response to a request with the
// given id that came from the given address, with a FINGERPRINT where
// withFingerprint is set. It panics for an invalid address.
func AppendResponse(dst []byte, id TxID, from netip.AddrPort, withFingerprint bool) []byte {
	if !from.IsValid() {
		panic("BUG: stun: response about no address")
	}
	start := len(dst)
	dst = appendHeader(dst, typeResponse, responseSize(from, withFingerprint)-headerSize, id)
	addr := from.Addr().Unmap()
	family := byte(1)
	if addr.Is6() {
		family = 2
	}
	raw, mask := addr.AsSlice(), xorMask(id)
	dst = binary.BigEndian.AppendUint16(dst, attrXORMappedAddress)
	dst = binary.BigEndian.AppendUint16(dst, uint16(4+len(raw)))
	dst = append(dst, 0, family)
	dst = binary.BigEndian.AppendUint16(dst, from.Port()^magicCookie>>16)
	for i, c := range raw {
		dst = append(dst, c^mask[i])
	}
	if withFingerprint {
		dst = appendFingerprint(dst, start)
	}
	return dst
}

func responseSize(from netip.AddrPort, withFingerprint bool) int {
	n := headerSize + 8 + 4
	if from.Addr().Unmap().Is6() {
		n = headerSize + 8 + 16
	}
	if withFingerprint {
		n += fingerprintSize
	}
	return n
}

func appendHeader(dst []byte, kind uint16, body int, id TxID) []byte {
	dst = binary.BigEndian.AppendUint16(dst, kind)
	dst = binary.BigEndian.AppendUint16(dst, uint16(body))
	dst = binary.BigEndian.AppendUint32(dst, magicCookie)
	return append(dst, id[:]...)
}

func appendFingerprint(dst []byte, start int) []byte {
	sum := fingerprint(dst[start:])
	dst = binary.BigEndian.AppendUint16(dst, attrFingerprint)
	dst = binary.BigEndian.AppendUint16(dst, 4)
	return binary.BigEndian.AppendUint32(dst, sum)
}

// Respond appends to dst the answer to a packet that came from the given
// address, and reports whether there is one. There is none, and dst comes back
// as it was, where the packet is no well-formed Binding request or where the
// answer would be longer than the request, so that a forged source address
// gains an attacker nothing. The answer carries a FINGERPRINT where the request
// did. Errors are not answered: a stranger learns nothing from silence.
func Respond(dst, request []byte, from netip.AddrPort) ([]byte, bool) {
	m, err := Parse(request)
	if err != nil || m.Kind != Request || !from.IsValid() || from.Port() == 0 {
		return dst, false
	}
	marked := hasFingerprint(request)
	if responseSize(from, marked) > len(request) {
		return dst, false
	}
	return AppendResponse(dst, m.TxID, from, marked), true
}

// hasFingerprint reports whether a message that Parse accepted ends with a
// FINGERPRINT.
func hasFingerprint(b []byte) bool {
	last := len(b) - fingerprintSize
	if last < headerSize {
		return false
	}
	for at := headerSize; at < len(b); {
		kind, _, next, err := attribute(b, at)
		if err != nil {
			return false
		}
		if kind == attrFingerprint {
			return true
		}
		at = next
	}
	return false
}
