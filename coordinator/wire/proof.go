package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"

	"github.com/warren-overlay/warren/acl/ident"
)

// Binding names one channel: the hash of its handshake, which no other channel
// has.
type Binding [32]byte

// Proof shows the coordinator on one channel that who speaks there holds the
// private half of a node key, so that nobody can claim the key of another
// device, who could then not use it, or be taken for its owner. It is a MAC
// over the binding and the key, by what X25519 makes of the node key and the
// coordinator's channel key, which only their owners can compute.
type Proof [sha256.Size]byte

// ProveNodeKey makes the proof for a channel to the coordinator. It returns
// ident.ErrMalformedKey for a channel key of low order.
func ProveNodeKey(node ident.NodePrivate, coordinator ident.ChannelKey, channel Binding) (Proof, error) {
	shared, err := node.SharedWith(ident.NodeKey(coordinator))
	if err != nil {
		return Proof{}, fmt.Errorf("wire: proving the node key: %w", err)
	}
	return proof(shared, node.Public(), channel), nil
}

// Shows reports whether p proves to the coordinator that the other end of the
// channel holds the node key.
func (p Proof) Shows(node ident.NodeKey, coordinator ident.ChannelPrivate, channel Binding) bool {
	shared, err := coordinator.SharedWith(node)
	if err != nil {
		return false
	}
	want := proof(shared, node, channel)
	return hmac.Equal(p[:], want[:])
}

func proof(shared [ident.KeySize]byte, node ident.NodeKey, channel Binding) Proof {
	key := sha256.Sum256(append([]byte("warren node key proof v1\x00"), shared[:]...))
	mac := hmac.New(sha256.New, key[:])
	mac.Write(channel[:])
	mac.Write(node[:])
	return Proof(mac.Sum(nil))
}
