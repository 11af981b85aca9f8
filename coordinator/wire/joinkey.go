package wire

import (
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/warren-overlay/warren/acl/ident"
)

// JoinKeyPrefix begins every join key, so that scanners for leaked secrets
// find them.
const JoinKeyPrefix = "wkey-auth-"

// JoinKey lets a device join: a secret of the coordinator's, and the
// fingerprint by which the device knows the coordinator. It is written
// wkey-auth-ID-SECRET-FINGERPRINT.
type JoinKey struct {
	// ID names the key in lists. It is not secret.
	ID string
	// Secret is 256 random bits. The coordinator keeps only its hash.
	Secret      string
	Fingerprint ident.Fingerprint
}

// ErrMalformedJoinKey is wrapped by every error of ParseJoinKey.
var ErrMalformedJoinKey = errors.New("wire: not a join key")

const (
	joinKeyIDLength     = 12 // 60 bits in base32: unique, and short enough to read out
	joinKeySecretLength = 52 // 256 bits in base32
)

var joinKeyText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewJoinKey makes a key from 40 bytes of rand, whose error it returns.
func NewJoinKey(rand io.Reader, network ident.Fingerprint) (JoinKey, error) {
	raw := make([]byte, 40)
	if _, err := io.ReadFull(rand, raw); err != nil {
		return JoinKey{}, fmt.Errorf("wire: making a join key: %w", err)
	}
	return JoinKey{
		ID:          joinKeyText.EncodeToString(raw[:8])[:joinKeyIDLength],
		Secret:      joinKeyText.EncodeToString(raw[8:]),
		Fingerprint: network,
	}, nil
}

// String returns "wkey-auth-ID-[redacted]", so that a key that is logged by
// mistake gives nothing away. Text returns the key itself.
func (k JoinKey) String() string { return JoinKeyPrefix + k.ID + "-[redacted]" }

// GoString is String, for %#v.
func (k JoinKey) GoString() string { return k.String() }

// MarshalText refuses, for loggers and encoders: a key is shown by Text, on
// purpose. The error is ident.ErrPrivateKey.
func (k JoinKey) MarshalText() ([]byte, error) { return nil, ident.ErrPrivateKey }

// Text returns the whole key, to be shown once.
func (k JoinKey) Text() string { return k.Credential() + "-" + k.Fingerprint.String() }

// Credential returns the part that is sent to the coordinator: the key without
// the fingerprint.
func (k JoinKey) Credential() string { return JoinKeyPrefix + k.ID + "-" + k.Secret }

// ParseJoinKey reads what Text writes, with white space around it. The error
// wraps ErrMalformedJoinKey and does not repeat the text.
func ParseJoinKey(text string) (JoinKey, error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), JoinKeyPrefix)
	parts := strings.Split(rest, "-")
	if !ok || len(parts) != 3 {
		return JoinKey{}, fmt.Errorf("%w: it begins with %q and has three parts after that; was it copied whole?", ErrMalformedJoinKey, JoinKeyPrefix)
	}
	k, err := parseCredential(parts[:2])
	if err != nil {
		return JoinKey{}, err
	}
	if k.Fingerprint, err = ident.ParseFingerprint(parts[2]); err != nil {
		return JoinKey{}, fmt.Errorf("%w: its last part is not a network fingerprint; was it copied whole?", ErrMalformedJoinKey)
	}
	return k, nil
}

// ParseCredential reads what Credential writes; the fingerprint stays zero.
// The error wraps ErrMalformedJoinKey and does not repeat the text.
func ParseCredential(text string) (JoinKey, error) {
	rest, ok := strings.CutPrefix(text, JoinKeyPrefix)
	if !ok {
		return JoinKey{}, ErrMalformedJoinKey
	}
	return parseCredential(strings.Split(rest, "-"))
}

func parseCredential(parts []string) (JoinKey, error) {
	if len(parts) != 2 || len(parts[0]) != joinKeyIDLength || len(parts[1]) != joinKeySecretLength {
		return JoinKey{}, fmt.Errorf("%w: a part is too short or too long; was it copied whole?", ErrMalformedJoinKey)
	}
	if strings.Trim(parts[0]+parts[1], "abcdefghijklmnopqrstuvwxyz234567") != "" {
		return JoinKey{}, fmt.Errorf("%w: a character that no key has", ErrMalformedJoinKey)
	}
	return JoinKey{ID: parts[0], Secret: parts[1]}, nil
}
