package authority

import (
	"fmt"
	"time"

	"github.com/warren-overlay/warren/acl/canonical"
	"github.com/warren-overlay/warren/acl/ident"
)

// RelayToken admits one node key to the relays of one network for a short
// time. It proves membership only; the relay also challenges the node key.
type RelayToken struct {
	NodeKey  ident.NodeKey
	NotAfter time.Time // to the second
}

// RelayTokenValidity is the longest life of a relay token: what a revoked
// device could at most keep on a relay that is cut off from the coordinator.
const RelayTokenValidity = 10 * time.Minute

const relayTokenVersion = 1

// IssueRelayToken signs t. The error wraps ErrSigner.
func IssueRelayToken(g *Genesis, t RelayToken, signer ident.SignerPrivate) ([]byte, error) {
	if !g.may(signer.Public(), SignRelayTokens) {
		return nil, ErrSigner
	}
	b := canonical.AppendArray(nil, 3)
	b = canonical.AppendUint(b, relayTokenVersion)
	b = canonical.AppendBytes(b, t.NodeKey[:])
	b = canonical.AppendUint(b, uint64(t.NotAfter.Unix()))
	return sign(kindRelayToken, g.Fingerprint(), b, signer), nil
}

// VerifyRelayToken checks that token admits node at now. A token that claims
// to hold longer than RelayTokenValidity from now is refused: it was not made
// by a sound coordinator. The error wraps ErrMalformed, ErrSigner,
// ErrSignature, ErrNotOurs or ErrExpired.
func VerifyRelayToken(g *Genesis, token []byte, node ident.NodeKey, now time.Time) error {
	body, err := g.open(kindRelayToken, g.Fingerprint(), token)
	if err != nil {
		return err
	}
	var t RelayToken
	r := canonical.NewReader(body)
	r.Record(3, relayTokenVersion)
	r.Fixed(t.NodeKey[:])
	t.NotAfter = readTime(r)
	if err := r.Close(); err != nil {
		return fmt.Errorf("%w: relay token: %w", ErrMalformed, err)
	}
	switch {
	case t.NodeKey != node:
		return fmt.Errorf("%w: a relay token for %v", ErrNotOurs, t.NodeKey.Short())
	case !now.Before(t.NotAfter) || t.NotAfter.Sub(now) > RelayTokenValidity+clockSkew:
		return fmt.Errorf("%w: relay token until %v", ErrExpired, t.NotAfter)
	}
	return nil
}
