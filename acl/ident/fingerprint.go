package ident

import (
	"encoding/base32"
	"errors"
	"fmt"
)

// Fingerprint is the SHA-256 of a network's genesis record: the one value from
// which a device can check everything that the network's coordinator tells it.
// Every join secret carries it. The zero value means "none known".
type Fingerprint [32]byte

// ErrMalformedFingerprint is wrapped by every error about the text of a
// fingerprint.
var ErrMalformedFingerprint = errors.New("ident: malformed network fingerprint")

// fingerprintText is the alphabet of RFC 4648, section 6, in lower case: no
// character that a person would mix up, and safe in URLs and file names.
var fingerprintText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// String returns the fingerprint as 52 letters and digits.
func (f Fingerprint) String() string { return fingerprintText.EncodeToString(f[:]) }

// IsZero reports whether f is "none known".
func (f Fingerprint) IsZero() bool { return f == Fingerprint{} }

// MarshalText implements encoding.TextMarshaler with the form of String.
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; see ParseFingerprint.
func (f *Fingerprint) UnmarshalText(b []byte) error {
	parsed, err := ParseFingerprint(string(b))
	if err == nil {
		*f = parsed
	}
	return err
}

// ParseFingerprint reads the text that String writes, and no other spelling of
// it. The error wraps ErrMalformedFingerprint.
func ParseFingerprint(s string) (Fingerprint, error) {
	var f Fingerprint
	raw, err := fingerprintText.DecodeString(s)
	if err != nil || len(raw) != len(f) {
		return f, fmt.Errorf("%w: want 52 letters a-z and digits 2-7", ErrMalformedFingerprint)
	}
	copy(f[:], raw)
	if f.String() != s {
		return Fingerprint{}, fmt.Errorf("%w: not in its one canonical spelling", ErrMalformedFingerprint)
	}
	return f, nil
}
