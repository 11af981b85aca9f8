package wg

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/warren-overlay/warren/acl/ident"
)

// Relay carries sealed packets to peers without a direct path.
type Relay interface {
	// SendPackets sends the packets to the peer. It neither changes nor keeps
	// them, does not block, and may drop any of them.
	SendPackets(to ident.NodeKey, packets [][]byte)
}

// Path says where the sealed packets to one peer go. The zero value is
// nowhere.
type Path struct {
	// Direct is the peer's address, where it is valid.
	Direct netip.AddrPort
	// Socket is the further socket that packets to Direct leave by, nil for the
	// device's own port.
	Socket *Socket
	// Whole is the length of the longest datagram that the way to Direct carries
	// in one piece; longer ones go over Relay where it is not nil, else so that
	// they may be fragmented. Zero means that all are sent whole.
	Whole int
	// Relay carries the packets where Direct is not valid, and as well where Both
	// is set: the peer then drops what comes twice, as it drops replays.
	Relay Relay
	Both  bool
}

// Peer is one peer of a device, and the endpoint by which the device knows it.
// All methods may be called concurrently.
type Peer struct {
	key  ident.NodeKey
	bind *bind

	path       atomic.Pointer[Path]
	unanswered atomic.Uint32
	// awaited is the index of handshake.last plus one, zero for none: what comes for
	// it was made by who has that message.
	awaited atomic.Uint64
	// initiations limits those that are opened of what comes from the peer's
	// path, or over a relay under its name.
	initiations limiter
	arrivals    arrivals
	strays      strays
	waiting     waiting
	diverted    diversions

	mu        sync.Mutex // protects all below
	handshake handshake
	indexes   []ownIndex // those that the device gave to this peer, oldest first
	removed   bool
}

var _ conn.Endpoint = (*Peer)(nil)

func newPeer(key ident.NodeKey, b *bind) *Peer {
	p := &Peer{key: key, bind: b, initiations: newLimiter(peerRate, peerBurst)}
	p.path.Store(new(Path))
	return p
}

// Key returns the peer's WireGuard key.
func (p *Peer) Key() ident.NodeKey { return p.key }

// Path returns where packets to the peer go now.
func (p *Peer) Path() Path { return *p.path.Load() }

// SetPath says where packets to the peer go from now on. A handshake message that
// had no path until now, or that went elsewhere and may not have arrived, is sent
// there at once.
func (p *Peer) SetPath(path Path) {
	if path.Socket != nil {
		path.Socket.used.Store(true)
	}
	before := p.bind.move(p, &path)
	if moved := path.way() != before.way(); moved && (path.Direct.IsValid() || path.Relay != nil) {
		p.sendAgain(&path)
	}
}

// way is a path without what is of no concern to a short packet.
func (path *Path) way() Path {
	if path.Direct.IsValid() && !path.Both {
		return Path{Direct: path.Direct, Socket: path.Socket}
	}
	return Path{Direct: path.Direct, Socket: path.Socket, Relay: path.Relay, Both: path.Both}
}

// Unanswered returns how many handshake initiations were sent since the last
// packet that seemed to come from the peer. It is a hint: nothing about it is
// authenticated.
func (p *Peer) Unanswered() int { return int(p.unanswered.Load()) }

// isHeard notes that a packet came that seems to be the peer's.
func (p *Peer) isHeard() {
	if p.unanswered.Load() != 0 { // packets mostly leave it alone
		p.unanswered.Store(0)
	}
}

// ClearSrc implements conn.Endpoint: the system chooses source addresses.
func (p *Peer) ClearSrc() {}

// SrcToString implements conn.Endpoint.
func (p *Peer) SrcToString() string { return "" }

// SrcIP implements conn.Endpoint.
func (p *Peer) SrcIP() netip.Addr { return netip.Addr{} }

// DstToString implements conn.Endpoint with the peer's direct address, or
// 0.0.0.0:0 where it has none: wg(8) wants an address to parse.
func (p *Peer) DstToString() string {
	if direct := p.path.Load().Direct; direct.IsValid() {
		return direct.String()
	}
	return "0.0.0.0:0"
}

// DstToBytes implements conn.Endpoint with the peer's key, to which cookies are
// bound. A cookie is sent along the peer's path, so whoever else uses the
// peer's public key to cause load never gets one.
func (p *Peer) DstToBytes() []byte { return p.key[:] }

// DstIP implements conn.Endpoint with a value of the peer's own, by which the
// device limits the rate of handshakes under load.
func (p *Peer) DstIP() netip.Addr { return netip.AddrFrom16([16]byte(p.key[:16])) }
