package authority

import (
	"fmt"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/canonical"
	"github.com/warren-overlay/warren/acl/ident"
)

// RelayToken admits one node key to relays of one network for a short time. It
// proves membership only; the relay also challenges the node key. Whoever knows
// the network's genesis record can verify one, without asking anybody.
type RelayToken struct {
	NodeKey  ident.NodeKey
	NotAfter time.Time // to the second
	// Relays are the names of the relays that it is for.
	Relays []string
}

// RelayTokenValidity is the longest life of a relay token: what a revoked
// device could at most keep on a relay that is cut off from the coordinator.
const RelayTokenValidity = 10 * time.Minute

const (
	relayTokenVersion = 2
	// MaxTokenRelays and MaxRelayName bound what a token names.
	MaxTokenRelays = 64
	MaxRelayName   = 63
)

// IssueRelayToken signs t. The error wraps ErrSigner, or ErrOutOfBounds for more
// than MaxTokenRelays relays and for a name that is empty or longer than
// MaxRelayName bytes.
func IssueRelayToken(g *Genesis, t RelayToken, signer ident.SignerPrivate) ([]byte, error) {
	if !g.may(signer.Public(), SignRelayTokens) {
		return nil, ErrSigner
	}
	if len(t.Relays) > MaxTokenRelays {
		return nil, fmt.Errorf("%w: a relay token for %d relays", ErrOutOfBounds, len(t.Relays))
	}
	b := canonical.AppendArray(nil, 4)
	b = canonical.AppendUint(b, relayTokenVersion)
	b = canonical.AppendBytes(b, t.NodeKey[:])
	b = canonical.AppendUint(b, uint64(t.NotAfter.Unix()))
	b = canonical.AppendArray(b, len(t.Relays))
	for _, name := range t.Relays {
		if name == "" || len(name) > MaxRelayName {
			return nil, fmt.Errorf("%w: a relay token for a relay %q", ErrOutOfBounds, name)
		}
		b = canonical.AppendText(b, name)
	}
	return sign(kindRelayToken, g.Fingerprint(), b, signer), nil
}

// VerifyRelayToken checks that token admits node to the relay of a name at now. A
// relay without a name admits nobody, since tokens name none. A token that claims to
// hold longer than RelayTokenValidity from now is refused: it was not made by a
// sound coordinator. The error wraps ErrMalformed, ErrSigner, ErrSignature,
// ErrNotOurs, ErrOutOfBounds or ErrExpired. Only with the last one is the token
// returned as well: everything about it is sound but its time.
func VerifyRelayToken(g *Genesis, token []byte, node ident.NodeKey, relay string, now time.Time) (RelayToken, error) {
	body, err := g.open(kindRelayToken, g.Fingerprint(), token)
	if err != nil {
		return RelayToken{}, err
	}
	t, err := decodeRelayToken(body)
	if err != nil {
		return RelayToken{}, err
	}
	switch {
	case t.NodeKey != node:
		return RelayToken{}, fmt.Errorf("%w: a relay token for %v", ErrNotOurs, t.NodeKey.Short())
	case !slices.Contains(t.Relays, relay) || relay == "":
		return RelayToken{}, fmt.Errorf("%w: a relay token for %q, not for %q", ErrNotOurs, t.Relays, relay)
	case t.NotAfter.Sub(now) > RelayTokenValidity+clockSkew:
		return RelayToken{}, fmt.Errorf("%w: a relay token until %v", ErrOutOfBounds, t.NotAfter)
	case !now.Before(t.NotAfter):
		return t, fmt.Errorf("%w: relay token until %v", ErrExpired, t.NotAfter)
	}
	return t, nil
}

func decodeRelayToken(body []byte) (RelayToken, error) {
	var t RelayToken
	r := canonical.NewReader(body)
	r.Record(4, relayTokenVersion)
	r.Fixed(t.NodeKey[:])
	t.NotAfter = readTime(r)
	for range r.Array(MaxTokenRelays) {
		t.Relays = append(t.Relays, r.Text(MaxRelayName))
	}
	if err := r.Close(); err != nil {
		return RelayToken{}, fmt.Errorf("%w: relay token: %w", ErrMalformed, err)
	}
	return t, nil
}

// RelayRevocations says which node keys a relay must not admit any longer
// although it may see tokens for them that have not ended yet.
type RelayRevocations struct {
	// Time is when it was signed, to the second: an old one hides what was revoked
	// since.
	Time time.Time
	Keys []ident.NodeKey
}

const (
	relayRevocationsVersion = 1
	// MaxRelayRevocations bounds the keys of one record, which is 2 MB then: more
	// devices than a network has would have to go within half an hour.
	MaxRelayRevocations = 1 << 16
)

// IssueRelayRevocations signs r, of whose keys only the last MaxRelayRevocations
// are named. The error wraps ErrSigner.
func IssueRelayRevocations(g *Genesis, r RelayRevocations, signer ident.SignerPrivate) ([]byte, error) {
	if !g.may(signer.Public(), SignRelayTokens) {
		return nil, ErrSigner
	}
	keys := r.Keys[max(0, len(r.Keys)-MaxRelayRevocations):]
	b := canonical.AppendArray(nil, 3)
	b = canonical.AppendUint(b, relayRevocationsVersion)
	b = canonical.AppendUint(b, uint64(r.Time.Unix()))
	b = canonical.AppendArray(b, len(keys))
	for _, key := range keys {
		b = canonical.AppendBytes(b, key[:])
	}
	return sign(kindRelayRevocations, g.Fingerprint(), b, signer), nil
}

// VerifyRelayRevocations reads what the network's coordinator signed. How old it
// may be is the caller's to say. The error wraps ErrMalformed, ErrSigner or
// ErrSignature.
func VerifyRelayRevocations(g *Genesis, signed []byte) (RelayRevocations, error) {
	body, err := g.open(kindRelayRevocations, g.Fingerprint(), signed)
	if err != nil {
		return RelayRevocations{}, err
	}
	return decodeRelayRevocations(body)
}

func decodeRelayRevocations(body []byte) (RelayRevocations, error) {
	r := canonical.NewReader(body)
	r.Record(3, relayRevocationsVersion)
	out := RelayRevocations{Time: readTime(r)}
	for range r.Array(MaxRelayRevocations) {
		var key ident.NodeKey
		r.Fixed(key[:])
		out.Keys = append(out.Keys, key)
	}
	if err := r.Close(); err != nil {
		return RelayRevocations{}, fmt.Errorf("%w: revocations: %w", ErrMalformed, err)
	}
	return out, nil
}
