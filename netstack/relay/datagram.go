package relay

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"net/netip"

	"github.com/warren-overlay/warren/acl/ident"
)

// A relay's datagrams begin with one of these. The range is the one that RFC
// 7983 leaves to TURN channels, so that nothing else that a node's port
// receives, WireGuard, STUN and probes, can be taken for one.
const (
	// datagramData is a packet: header and payload, both ways.
	datagramData = 0x40 + iota
	// datagramOpen is a client's request for a cookie, as long as the answer.
	datagramOpen
	// datagramCookie is the answer to it: what only the owner of the source
	// address can read.
	datagramCookie
	// datagramBind gives the cookie back.
	datagramBind
	// datagramBound says that the connection's packets go by this address now.
	datagramBound
	// datagramStale is the answer to a packet from an address that no
	// connection has. It is not authenticated: a hint.
	datagramStale
)

const (
	// DatagramHeader is how much a datagram has in front of its payload: kind,
	// 24 bits that only the two ends of the connection know, and the number of
	// the other member: of the destination on the way to the relay, of the
	// source on the way from it.
	DatagramHeader = 8

	tagSize       = 3
	sequenceSize  = 8
	cookieSize    = 16
	datagramMAC   = 16
	bindSize      = DatagramHeader + sequenceSize + cookieSize + datagramMAC
	boundSize     = DatagramHeader + sequenceSize + datagramMAC
	ethernetMTU   = 1500
	ipv4UDPHeader = 20 + 8
	ipv6UDPHeader = 40 + 8

	// safePayload is what every path carries: 1,280 bytes are the least that IPv6
	// allows (RFC 8200, section 5), and what tunnels and mobile networks keep to
	// for IPv4.
	safePayload = 1280 - ipv6UDPHeader - DatagramHeader
	// wideBindSize is the length of a Bind that proves that the path to the relay
	// carries the longest datagrams.
	wideBindSize = ethernetMTU - ipv4UDPHeader
)

// MaxDatagramPayload returns the largest payload that goes to addr as a
// datagram; what is larger goes by the stream. Over IPv4 it is what an Ethernet
// carries whole: a relay lets routers fragment what it sends where the path is
// narrower, and a client asks first (Link.MaxPayload). Over IPv6, where no router
// fragments, it is what every path carries.
func MaxDatagramPayload(addr netip.Addr) int {
	if addr.Is4() {
		return ethernetMTU - ipv4UDPHeader - DatagramHeader
	}
	return safePayload
}

// tag is what the two ends of a connection put into each header, so that who
// only knows their addresses cannot send in their name.
type tag [tagSize]byte

func putHeader(b []byte, kind byte, t tag, number uint32) {
	b[0] = kind
	copy(b[1:], t[:])
	binary.BigEndian.PutUint32(b[1+tagSize:], number)
}

func readHeader(b []byte) (t tag, number uint32) {
	return tag(b[1:]), binary.BigEndian.Uint32(b[1+tagSize:])
}

// datagramKey derives the key that authenticates what binds datagrams to a
// connection from the product of its admission: it is never sent.
func datagramKey(shared []byte, c *challenge) []byte {
	key, err := hkdf.Key(sha256.New, shared, c.nonce[:], "warren relay datagrams v1", sha256.Size)
	if err != nil {
		panic("BUG: relay: HKDF refused its arguments: " + err.Error())
	}
	return key
}

// appendMAC appends the MAC over all of b.
func appendMAC(b, key []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(b)
	var sum [sha256.Size]byte
	return append(b, mac.Sum(sum[:0])[:datagramMAC]...)
}

// authentic reports whether b ends with its MAC.
func authentic(b, key []byte) bool {
	body := b[:len(b)-datagramMAC]
	mac := hmac.New(sha256.New, key)
	mac.Write(body)
	var sum [sha256.Size]byte
	return hmac.Equal(mac.Sum(sum[:0])[:datagramMAC], b[len(body):])
}

// writeBinding returns a message of the exchange that binds an address. It lies
// in buf where that has room.
func writeBinding(buf []byte, kind byte, t tag, number uint32, sequence uint64, cookie, key []byte) []byte {
	var header [DatagramHeader]byte
	putHeader(header[:], kind, t, number)
	b := append(buf[:0], header[:]...)
	b = binary.BigEndian.AppendUint64(b, sequence)
	b = append(b, cookie...)
	return appendMAC(b, key)
}

func readSequence(b []byte) uint64 { return binary.BigEndian.Uint64(b[DatagramHeader:]) }

func readCookie(b []byte) []byte {
	const start = DatagramHeader + sequenceSize
	return b[start : start+cookieSize]
}

// Link is how a client's data path uses datagrams: which numbers its peers
// have. It is immutable.
type Link struct {
	relay  netip.AddrPort
	limit  int
	tag    tag
	number map[ident.NodeKey]uint32
	key    map[uint32]ident.NodeKey
}

// Relay returns where datagrams go and come from.
func (l *Link) Relay() netip.AddrPort { return l.relay }

// Header returns what a datagram to the peer begins with, and whether the relay
// has said a number for it; else its packets go by the stream.
func (l *Link) Header(to ident.NodeKey) (header [DatagramHeader]byte, ok bool) {
	number, ok := l.number[to]
	putHeader(header[:], datagramData, l.tag, number)
	return header, ok
}

// MaxPayload returns the largest payload of a datagram; what is larger goes by
// the stream. It is MaxDatagramPayload where the path to the relay was seen to
// carry that, else what every path carries.
func (l *Link) MaxPayload() int { return l.limit }

// Open returns whose packet a datagram of the relay carries, and the payload,
// which aliases it. It is false for what is no packet of this connection, or of
// a member whose number is not known.
func (l *Link) Open(datagram []byte) (from ident.NodeKey, payload []byte, ok bool) {
	if len(datagram) <= DatagramHeader || datagram[0] != datagramData {
		return from, nil, false
	}
	t, number := readHeader(datagram)
	if t != l.tag {
		return from, nil, false
	}
	from, ok = l.key[number]
	return from, datagram[DatagramHeader:], ok
}

// IsDatagram reports whether a packet looks like a relay's datagram.
func IsDatagram(b []byte) bool {
	return len(b) >= DatagramHeader && b[0] >= datagramData && b[0] <= datagramStale
}

// IsDatagramPacket reports whether it looks like one that carries a packet, not
// one for Session.HandleDatagram.
func IsDatagramPacket(b []byte) bool { return IsDatagram(b) && b[0] == datagramData }

// peers are the numbers that a relay has said.
type peers struct {
	number map[ident.NodeKey]uint32
	key    map[uint32]ident.NodeKey
}

// maxPeers bounds the numbers that a client keeps: 160 KB. Packets to others go
// by the stream.
const maxPeers = 4096

// set notes the number of a peer, zero for none, and reports whether there was
// room.
func (p *peers) set(key ident.NodeKey, number uint32) bool {
	old, known := p.number[key]
	if known {
		delete(p.key, old)
		delete(p.number, key)
	}
	if number == 0 {
		return true
	}
	if len(p.number) >= maxPeers {
		return false
	}
	if p.number == nil {
		p.number, p.key = make(map[ident.NodeKey]uint32), make(map[uint32]ident.NodeKey)
	}
	if other, taken := p.key[number]; taken {
		delete(p.number, other) // the relay's last word holds
	}
	p.number[key], p.key[number] = number, key
	return true
}

func (p *peers) link(relay netip.AddrPort, limit int, t tag) *Link {
	return &Link{relay: relay, limit: limit, tag: t, number: maps.Clone(p.number), key: maps.Clone(p.key)}
}
