package authority

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/acl/canonical"
	"github.com/warren-overlay/warren/acl/ident"
)

// Role is what a signing key may sign. Roles combine as bits.
type Role uint64

const (
	// SignDevices allows device certificates.
	SignDevices Role = 1 << iota
	// SignRules allows rules.
	SignRules
	// SignRelayTokens allows admissions to relays.
	SignRelayTokens

	// allRoles is every role that this version knows.
	allRoles = SignDevices | SignRules | SignRelayTokens
)

// Signer is a key and what it may sign.
type Signer struct {
	Key   ident.SignerKey
	Roles Role
}

// Genesis is the first record of a network. Its hash is the network's
// fingerprint, which every device is given when it joins; all trust follows
// from it.
type Genesis struct {
	// Created is when the network was made, to the second.
	Created time.Time
	// Channel is the coordinator's key on the control channel.
	Channel ident.ChannelKey
	// Signers lists the signing keys, 1 to 16, without repeats.
	Signers []Signer
	// Prefix4 and Prefix6 are where the network's addresses lie.
	Prefix4, Prefix6 netip.Prefix
}

const (
	genesisVersion = 1
	maxSigners     = 16
)

// Errors of this package, compared with errors.Is.
var (
	// ErrMalformed means that a record is not one that this version reads.
	ErrMalformed = errors.New("authority: malformed record")
	// ErrUnreadable means that rules are signed, newer than those before, and
	// not ones that this version reads.
	ErrUnreadable = errors.New("authority: newer rules that cannot be read")
	// ErrFingerprint means that a genesis record is not the one that the
	// fingerprint names: another network, or somebody in between.
	ErrFingerprint = errors.New("authority: the network's fingerprint does not match")
	// ErrSigner means that the signing key is not one that the genesis record
	// names for this kind of record.
	ErrSigner = errors.New("authority: signed by a key that may not sign this")
	// ErrSignature means that the signature does not verify: the record was
	// changed, or was made for another network.
	ErrSignature = errors.New("authority: signature does not verify")
	// ErrExpired means that now lies outside the record's validity.
	ErrExpired = errors.New("authority: not valid at this time")
	// ErrRollback means that the record is older than one already seen.
	ErrRollback = errors.New("authority: older than what was already seen")
	// ErrOutOfBounds means that a signed value lies outside what the genesis
	// record or this device allows, such as an address of another network.
	ErrOutOfBounds = errors.New("authority: value outside what the network allows")
	// ErrNotOurs means that the record was made for another device.
	ErrNotOurs = errors.New("authority: made for another device")
)

// AppendBinary appends the canonical encoding of g.
func (g *Genesis) AppendBinary(b []byte) []byte {
	b = canonical.AppendArray(b, 6)
	b = canonical.AppendUint(b, genesisVersion)
	b = canonical.AppendUint(b, uint64(g.Created.Unix()))
	b = canonical.AppendBytes(b, g.Channel[:])
	b = canonical.AppendArray(b, len(g.Signers))
	for _, s := range g.Signers {
		b = canonical.AppendArray(b, 2)
		b = canonical.AppendBytes(b, s.Key[:])
		b = canonical.AppendUint(b, uint64(s.Roles))
	}
	b = appendPrefix(b, g.Prefix4)
	return appendPrefix(b, g.Prefix6)
}

// Fingerprint returns the SHA-256 of the canonical encoding of g.
func (g *Genesis) Fingerprint() ident.Fingerprint { return sha256.Sum256(g.AppendBinary(nil)) }

// DecodeGenesis reads a genesis record and checks that it is the one that want
// names and that its values are sound. The error wraps ErrFingerprint or
// ErrMalformed.
func DecodeGenesis(b []byte, want ident.Fingerprint) (*Genesis, error) {
	if sha256.Sum256(b) != want {
		return nil, ErrFingerprint
	}
	r := canonical.NewReader(b)
	r.Record(6, genesisVersion)
	g := &Genesis{Created: readTime(r)}
	r.Fixed(g.Channel[:])
	for range r.Array(maxSigners) {
		var s Signer
		if r.Array(2) != 2 {
			r.Fail("signer without two fields")
		}
		r.Fixed(s.Key[:])
		s.Roles = Role(r.Uint())
		g.Signers = append(g.Signers, s)
	}
	g.Prefix4, g.Prefix6 = readPrefix(r), readPrefix(r)
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("%w: genesis: %w", ErrMalformed, err)
	}
	if err := g.Validate(); err != nil {
		return nil, err
	}
	return g, nil
}

// Validate reports what is unsound in g. The error wraps ErrMalformed.
func (g *Genesis) Validate() error {
	seen := make(map[ident.SignerKey]bool)
	var roles Role
	for _, s := range g.Signers {
		if s.Key.IsZero() || seen[s.Key] || s.Roles == 0 || s.Roles&^allRoles != 0 {
			return fmt.Errorf("%w: genesis: signer %v is empty, repeated or of an unknown role", ErrMalformed, s.Key)
		}
		seen[s.Key] = true
		roles |= s.Roles
	}
	switch {
	case len(g.Signers) > maxSigners:
		return fmt.Errorf("%w: genesis: more than %d signers", ErrMalformed, maxSigners)
	case roles != allRoles:
		return fmt.Errorf("%w: genesis: a signing role has no key", ErrMalformed)
	case g.Channel.IsZero():
		return fmt.Errorf("%w: genesis: no channel key", ErrMalformed)
	case !g.Prefix4.IsValid() || !g.Prefix4.Addr().Is4() || g.Prefix4 != g.Prefix4.Masked() || g.Prefix4.Bits() < 8 || g.Prefix4.Bits() > 28:
		return fmt.Errorf("%w: genesis: the IPv4 range %v is not a network of 8 to 28 bits", ErrMalformed, g.Prefix4)
	case !g.Prefix6.IsValid() || !g.Prefix6.Addr().Is6() || g.Prefix6.Addr().Is4In6() || g.Prefix6 != g.Prefix6.Masked() || g.Prefix6.Bits() < 32 || g.Prefix6.Bits() > 96:
		return fmt.Errorf("%w: genesis: the IPv6 range %v is not a network of 32 to 96 bits", ErrMalformed, g.Prefix6)
	}
	return nil
}

// inside reports whether a lies in the network's own ranges.
func (g *Genesis) inside(a netip.Addr) bool { return g.Prefix4.Contains(a) || g.Prefix6.Contains(a) }

// may reports whether key may sign what role covers.
func (g *Genesis) may(key ident.SignerKey, role Role) bool {
	for _, s := range g.Signers {
		if s.Key == key {
			return s.Roles&role != 0
		}
	}
	return false
}
