package ident

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// KeySize is the length in bytes of every X25519 and Ed25519 public key and of
// every X25519 private key.
const KeySize = 32

// NodeKey is a device's WireGuard public key (X25519). It is what a peer is
// known by on the wire. The zero value means "no key".
type NodeKey [KeySize]byte

// MachineKey is a device's public key on the control channel (X25519). It is
// the device's identity towards the coordinator and never changes while the
// device is registered. The zero value means "no key".
type MachineKey [KeySize]byte

// ChannelKey is a coordinator's public key on the control channel (X25519),
// pinned through the network fingerprint. The zero value means "no key".
type ChannelKey [KeySize]byte

// SignerKey is a public key (Ed25519) whose signatures make certificates and
// rules valid. The zero value means "no key".
type SignerKey [KeySize]byte

// ErrMalformedKey is wrapped by every error about the text or bytes of a key.
var ErrMalformedKey = errors.New("ident: malformed key")

// ErrPrivateKey is returned by the marshalling methods of private keys, which
// exist only to refuse.
var ErrPrivateKey = errors.New("ident: a private key is not marshalled; ask for its bytes by name")

const (
	nodePrefix    = "nodekey:"
	machinePrefix = "mkey:"
	channelPrefix = "channelkey:"
	signerPrefix  = "signer:"
)

// String returns the key as "nodekey:" and 64 hexadecimal digits.
func (k NodeKey) String() string { return nodePrefix + hex.EncodeToString(k[:]) }

// String returns the key as "mkey:" and 64 hexadecimal digits.
func (k MachineKey) String() string { return machinePrefix + hex.EncodeToString(k[:]) }

// String returns the key as "channelkey:" and 64 hexadecimal digits.
func (k ChannelKey) String() string { return channelPrefix + hex.EncodeToString(k[:]) }

// String returns the key as "signer:" and 64 hexadecimal digits.
func (k SignerKey) String() string { return signerPrefix + hex.EncodeToString(k[:]) }

// Short returns the first eight hexadecimal digits, for people to compare.
func (k NodeKey) Short() string { return hex.EncodeToString(k[:4]) }

// IsZero reports whether k is "no key".
func (k NodeKey) IsZero() bool { return k == NodeKey{} }

// IsZero reports whether k is "no key".
func (k MachineKey) IsZero() bool { return k == MachineKey{} }

// IsZero reports whether k is "no key".
func (k ChannelKey) IsZero() bool { return k == ChannelKey{} }

// IsZero reports whether k is "no key".
func (k SignerKey) IsZero() bool { return k == SignerKey{} }

// MarshalText implements encoding.TextMarshaler with the form of String.
func (k NodeKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// MarshalText implements encoding.TextMarshaler with the form of String.
func (k MachineKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// MarshalText implements encoding.TextMarshaler with the form of String.
func (k ChannelKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// MarshalText implements encoding.TextMarshaler with the form of String.
func (k SignerKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. The error wraps
// ErrMalformedKey.
func (k *NodeKey) UnmarshalText(b []byte) error { return parseKey((*[KeySize]byte)(k), nodePrefix, b) }

// UnmarshalText implements encoding.TextUnmarshaler. The error wraps
// ErrMalformedKey.
func (k *MachineKey) UnmarshalText(b []byte) error {
	return parseKey((*[KeySize]byte)(k), machinePrefix, b)
}

// UnmarshalText implements encoding.TextUnmarshaler. The error wraps
// ErrMalformedKey.
func (k *ChannelKey) UnmarshalText(b []byte) error {
	return parseKey((*[KeySize]byte)(k), channelPrefix, b)
}

// UnmarshalText implements encoding.TextUnmarshaler. The error wraps
// ErrMalformedKey.
func (k *SignerKey) UnmarshalText(b []byte) error {
	return parseKey((*[KeySize]byte)(k), signerPrefix, b)
}

// parseKey writes to dst only when text is prefix and exactly 64 lower-case
// hexadecimal digits, so that one key has one spelling.
func parseKey(dst *[KeySize]byte, prefix string, text []byte) error {
	digits, ok := strings.CutPrefix(string(text), prefix)
	if !ok {
		return fmt.Errorf("%w: want %q and %d hexadecimal digits", ErrMalformedKey, prefix, 2*KeySize)
	}
	raw, err := hex.DecodeString(digits)
	if err != nil || len(raw) != KeySize || digits != strings.ToLower(digits) {
		return fmt.Errorf("%w: want %q and %d lower-case hexadecimal digits", ErrMalformedKey, prefix, 2*KeySize)
	}
	copy(dst[:], raw)
	return nil
}

// secret is the part that all private keys share: bytes that do not compare,
// print or marshal. They lie behind a function, because package fmt shows the
// unexported fields of a caller's struct, and what pointers in them point at,
// without asking the methods below; of a function it shows an address. And a
// function makes == a compile error. Nil is "no key".
type secret struct{ reveal func() *[KeySize]byte }

func newSecret(bytes *[KeySize]byte) secret {
	return secret{reveal: func() *[KeySize]byte { return bytes }}
}

// slice returns the bytes, which the caller must not write to: 32 zero bytes
// for "no key".
func (s *secret) slice() []byte {
	if s.reveal == nil {
		return make([]byte, KeySize)
	}
	return s.reveal()[:]
}

func (secret) redacted() string { return "[redacted]" }

// NodePrivate is the private half of a NodeKey. The zero value means "no key".
// It never leaves the device that made it.
type NodePrivate struct{ s secret }

// MachinePrivate is the private half of a MachineKey. The zero value means "no
// key". It never leaves the device that made it.
type MachinePrivate struct{ s secret }

// ChannelPrivate is the private half of a ChannelKey. The zero value means "no
// key". It never leaves the coordinator.
type ChannelPrivate struct{ s secret }

// SignerPrivate is the private half of a SignerKey, kept as its Ed25519 seed
// (RFC 8032, section 5.1.5). The zero value means "no key".
type SignerPrivate struct{ s secret }

// NewNodePrivate makes a key from 32 bytes of rand. The error is rand's.
func NewNodePrivate(rand io.Reader) (NodePrivate, error) {
	s, err := newX25519(rand)
	return NodePrivate{s}, err
}

// NewMachinePrivate makes a key from 32 bytes of rand. The error is rand's.
func NewMachinePrivate(rand io.Reader) (MachinePrivate, error) {
	s, err := newX25519(rand)
	return MachinePrivate{s}, err
}

// NewChannelPrivate makes a key from 32 bytes of rand. The error is rand's.
func NewChannelPrivate(rand io.Reader) (ChannelPrivate, error) {
	s, err := newX25519(rand)
	return ChannelPrivate{s}, err
}

// NewSignerPrivate makes a key from 32 bytes of rand. The error is rand's.
func NewSignerPrivate(rand io.Reader) (SignerPrivate, error) {
	seed := new([KeySize]byte)
	if _, err := io.ReadFull(rand, seed[:]); err != nil {
		return SignerPrivate{}, fmt.Errorf("ident: making a signer key: %w", err)
	}
	return SignerPrivate{newSecret(seed)}, nil
}

// newX25519 clamps the key (RFC 7748, section 5), so that its bytes are the
// same in every program that reads them back, wg(8) among them.
func newX25519(rand io.Reader) (secret, error) {
	key := new([KeySize]byte)
	if _, err := io.ReadFull(rand, key[:]); err != nil {
		return secret{}, fmt.Errorf("ident: making a private key: %w", err)
	}
	key[0] &= 248
	key[31] = key[31]&127 | 64
	return newSecret(key), nil
}

// NodePrivateFromBytes takes the 32 bytes that SecretBytes gave. It returns
// ErrMalformedKey for another length or for all zeros.
func NodePrivateFromBytes(b []byte) (NodePrivate, error) {
	s, err := secretFromBytes(b)
	return NodePrivate{s}, err
}

// MachinePrivateFromBytes takes the 32 bytes that SecretBytes gave. It returns
// ErrMalformedKey for another length or for all zeros.
func MachinePrivateFromBytes(b []byte) (MachinePrivate, error) {
	s, err := secretFromBytes(b)
	return MachinePrivate{s}, err
}

// ChannelPrivateFromBytes takes the 32 bytes that SecretBytes gave. It returns
// ErrMalformedKey for another length or for all zeros.
func ChannelPrivateFromBytes(b []byte) (ChannelPrivate, error) {
	s, err := secretFromBytes(b)
	return ChannelPrivate{s}, err
}

// SignerPrivateFromBytes takes the 32 bytes that SecretBytes gave. It returns
// ErrMalformedKey for another length or for all zeros.
func SignerPrivateFromBytes(b []byte) (SignerPrivate, error) {
	s, err := secretFromBytes(b)
	return SignerPrivate{s}, err
}

func secretFromBytes(b []byte) (secret, error) {
	if len(b) != KeySize || subtle.ConstantTimeCompare(b, make([]byte, KeySize)) == 1 {
		return secret{}, fmt.Errorf("%w: a private key has %d bytes, not all zero", ErrMalformedKey, KeySize)
	}
	return newSecret((*[KeySize]byte)(slices.Clone(b))), nil
}

// Public returns the key's public half, the zero key for the zero value.
func (k NodePrivate) Public() NodeKey { return NodeKey(k.s.public()) }

// Public returns the key's public half, the zero key for the zero value.
func (k MachinePrivate) Public() MachineKey { return MachineKey(k.s.public()) }

// Public returns the key's public half, the zero key for the zero value.
func (k ChannelPrivate) Public() ChannelKey { return ChannelKey(k.s.public()) }

// Public returns the key's public half, the zero key for the zero value.
func (k SignerPrivate) Public() SignerKey {
	if k.IsZero() {
		return SignerKey{}
	}
	return SignerKey(ed25519.NewKeyFromSeed(k.s.slice())[ed25519.SeedSize:])
}

func (s *secret) public() [KeySize]byte {
	if s.isZero() {
		return [KeySize]byte{}
	}
	private, err := ecdh.X25519().NewPrivateKey(s.slice())
	if err != nil {
		panic("BUG: ident: X25519 refused 32 bytes: " + err.Error())
	}
	return [KeySize]byte(private.PublicKey().Bytes())
}

func (s *secret) isZero() bool {
	return subtle.ConstantTimeCompare(s.slice(), make([]byte, KeySize)) == 1
}

// IsZero reports whether k is "no key".
func (k NodePrivate) IsZero() bool { return k.s.isZero() }

// IsZero reports whether k is "no key".
func (k MachinePrivate) IsZero() bool { return k.s.isZero() }

// IsZero reports whether k is "no key".
func (k ChannelPrivate) IsZero() bool { return k.s.isZero() }

// IsZero reports whether k is "no key".
func (k SignerPrivate) IsZero() bool { return k.s.isZero() }

// SecretBytes returns a copy of the private key, to seal or to hand to the
// cipher that needs it. The caller must not log or compare it.
func (k NodePrivate) SecretBytes() []byte { return append([]byte(nil), k.s.slice()...) }

// SecretBytes returns a copy of the private key, to seal or to hand to the
// cipher that needs it. The caller must not log or compare it.
func (k MachinePrivate) SecretBytes() []byte { return append([]byte(nil), k.s.slice()...) }

// SecretBytes returns a copy of the private key, to seal or to hand to the
// cipher that needs it. The caller must not log or compare it.
func (k ChannelPrivate) SecretBytes() []byte { return append([]byte(nil), k.s.slice()...) }

// SecretBytes returns a copy of the seed, to seal it. The caller must not log
// or compare it.
func (k SignerPrivate) SecretBytes() []byte { return append([]byte(nil), k.s.slice()...) }

// SharedWith returns the X25519 product of k and a peer's public key (RFC
// 7748). It is input for a key derivation, never a key itself. It returns
// ErrMalformedKey where the peer's key is of low order.
func (k NodePrivate) SharedWith(peer NodeKey) ([KeySize]byte, error) { return k.s.sharedWith(peer) }

// SharedWith is NodePrivate.SharedWith from the coordinator's side.
func (k ChannelPrivate) SharedWith(peer NodeKey) ([KeySize]byte, error) { return k.s.sharedWith(peer) }

func (s *secret) sharedWith(peer NodeKey) ([KeySize]byte, error) {
	var out [KeySize]byte
	private, err := ecdh.X25519().NewPrivateKey(s.slice())
	if err != nil {
		panic("BUG: ident: X25519 refused 32 bytes: " + err.Error())
	}
	public, err := ecdh.X25519().NewPublicKey(peer[:])
	if err != nil {
		panic("BUG: ident: X25519 refused 32 bytes: " + err.Error())
	}
	shared, err := private.ECDH(public)
	if err != nil {
		return out, fmt.Errorf("%w: low-order public key", ErrMalformedKey)
	}
	copy(out[:], shared)
	return out, nil
}

// Sign returns the Ed25519 signature (RFC 8032) of message, which the caller
// has prefixed with its context. It panics for the zero key.
func (k SignerPrivate) Sign(message []byte) [ed25519.SignatureSize]byte {
	if k.IsZero() {
		panic("BUG: ident: signing with no key")
	}
	return [ed25519.SignatureSize]byte(ed25519.Sign(ed25519.NewKeyFromSeed(k.s.slice()), message))
}

// Verify reports whether signature is k's signature of message. The zero key
// verifies nothing; a non-canonical S is refused (RFC 8032, section 5.1.7).
func (k SignerKey) Verify(message, signature []byte) bool {
	return !k.IsZero() && len(signature) == ed25519.SignatureSize &&
		ed25519.Verify(ed25519.PublicKey(k[:]), message, signature)
}

// String returns "[redacted]".
func (k NodePrivate) String() string { return k.s.redacted() }

// String returns "[redacted]".
func (k MachinePrivate) String() string { return k.s.redacted() }

// String returns "[redacted]".
func (k ChannelPrivate) String() string { return k.s.redacted() }

// String returns "[redacted]".
func (k SignerPrivate) String() string { return k.s.redacted() }

// GoString returns "[redacted]".
func (k NodePrivate) GoString() string { return k.s.redacted() }

// GoString returns "[redacted]".
func (k MachinePrivate) GoString() string { return k.s.redacted() }

// GoString returns "[redacted]".
func (k ChannelPrivate) GoString() string { return k.s.redacted() }

// GoString returns "[redacted]".
func (k SignerPrivate) GoString() string { return k.s.redacted() }

// Format writes "[redacted]" whatever the verb.
func (k NodePrivate) Format(f fmt.State, _ rune) { io.WriteString(f, k.s.redacted()) }

// Format writes "[redacted]" whatever the verb.
func (k MachinePrivate) Format(f fmt.State, _ rune) { io.WriteString(f, k.s.redacted()) }

// Format writes "[redacted]" whatever the verb.
func (k ChannelPrivate) Format(f fmt.State, _ rune) { io.WriteString(f, k.s.redacted()) }

// Format writes "[redacted]" whatever the verb.
func (k SignerPrivate) Format(f fmt.State, _ rune) { io.WriteString(f, k.s.redacted()) }

// MarshalText returns ErrPrivateKey.
func (k NodePrivate) MarshalText() ([]byte, error) { return nil, ErrPrivateKey }

// MarshalText returns ErrPrivateKey.
func (k MachinePrivate) MarshalText() ([]byte, error) { return nil, ErrPrivateKey }

// MarshalText returns ErrPrivateKey.
func (k ChannelPrivate) MarshalText() ([]byte, error) { return nil, ErrPrivateKey }

// MarshalText returns ErrPrivateKey.
func (k SignerPrivate) MarshalText() ([]byte, error) { return nil, ErrPrivateKey }
