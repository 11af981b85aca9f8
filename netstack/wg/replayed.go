package wg

import (
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/device"

	"github.com/warren-overlay/warren/acl/ident"
)

// saysReplayed is what WireGuard says of an initiation whose time stamp is not
// later than that of the peer's last one; TestInitiationFromThePast fails where a
// new version says it in other words.
const saysReplayed = "%v - ConsumeMessageInitiation: handshake replay @ %v"

// maxReplayed bounds the peers that are remembered: more than send initiations at
// one time. What comes on top is not remembered, and is with its next one.
const maxReplayed = 1024

// replayed are the peers of which an initiation was refused as a repetition. It
// was one that somebody has captured, or the peer's clock was set back.
type replayed struct {
	count atomic.Uint64
	some  atomic.Bool // whether there are any

	mu    sync.Mutex // protects peers
	peers map[*device.Peer]struct{}
}

func (r *replayed) note(p *device.Peer) {
	r.count.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.peers == nil {
		r.peers = make(map[*device.Peer]struct{})
	}
	if len(r.peers) < maxReplayed {
		r.peers[p] = struct{}{}
		r.some.Store(true)
	}
}

// take reports whether p was noted, and forgets it.
func (r *replayed) take(p *device.Peer) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.peers[p]
	delete(r.peers, p)
	r.some.Store(len(r.peers) > 0)
	return ok
}

// AnswerReplayed begins a handshake with the peer where an initiation of its was
// refused as a repetition since the last call. It is for a moment in which the
// peer is known to be there by other means: the clock that its initiations are
// stamped by may have been set back, and then this device's own are the only ones
// that pass (WireGuard whitepaper, section 5.1). It reports whether it began one;
// as BeginHandshake, it does not more often than every 5 s.
func (d *Device) AnswerReplayed(key ident.NodeKey) bool {
	if !d.bind.counters.replayed.some.Load() {
		return false
	}
	p := d.device.LookupPeer(device.NoisePublicKey(key))
	return p != nil && d.bind.counters.replayed.take(p) && d.BeginHandshake(key) == nil
}
