package wg

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

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
	// Whole is the length of the longest datagram that the way to Direct carries
	// in one piece; longer ones go over Relay where it is not nil, else so that
	// they may be fragmented. Zero means that all are sent whole.
	Whole int
	// Relay carries the packets where Direct is not valid, and as well where Both
	// is set: the peer then drops what comes twice, as it drops replays.
	Relay Relay
	Both  bool
}

// pendingLife is how long a handshake message waits for a path: until the
// device sends the next one (RekeyTimeout).
const pendingLife = 5 * time.Second

// Peer is one peer of a device, and the endpoint by which the device knows it.
// All methods may be called concurrently.
type Peer struct {
	key  ident.NodeKey
	bind *bind

	path       atomic.Pointer[Path]
	unanswered atomic.Uint32
	// initiations limits those that are opened of what comes from the peer's
	// path, or over a relay under its name.
	initiations limiter
	arrivals    arrivals

	mu sync.Mutex // protects all below
	// pending is the last handshake message that had no path, so that the
	// first handshake needs no repetition when a path is found moments later.
	pending   []byte
	pendingAt time.Time
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

// SetPath says where packets to the peer go from now on. A handshake message
// that had no path until now is sent at once.
func (p *Peer) SetPath(path Path) {
	p.bind.move(p, &path)
	if !path.Direct.IsValid() && path.Relay == nil {
		return
	}
	p.mu.Lock()
	pending, at := p.pending, p.pendingAt
	p.pending = nil
	p.mu.Unlock()
	if pending != nil && time.Since(at) < pendingLife {
		p.bind.send(p, &path, [][]byte{pending})
	}
}

// Unanswered returns how many handshake initiations were sent since the last
// packet that seemed to come from the peer. It is a hint: nothing about it is
// authenticated.
func (p *Peer) Unanswered() int { return int(p.unanswered.Load()) }

// keepPending keeps the last handshake message among bufs for a path to come,
// and reports how many of bufs are lost.
func (p *Peer) keepPending(bufs [][]byte) (lost int) {
	lost = len(bufs)
	for _, b := range bufs {
		if kind := messageType(b); kind != typeInitiation && kind != typeResponse {
			continue
		}
		p.mu.Lock()
		p.pending, p.pendingAt = append([]byte(nil), b...), time.Now()
		p.mu.Unlock()
		lost--
	}
	return lost
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
