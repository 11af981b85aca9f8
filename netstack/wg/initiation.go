package wg

import (
	"crypto/ecdh"
	"crypto/hmac"
	"encoding/binary"
	"hash"
	"sync"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/warren-overlay/warren/acl/ident"
)

// Message types and sizes, from the WireGuard paper, section 5.4.
const (
	typeInitiation = 1
	typeResponse   = 2
	typeCookie     = 3
	typeTransport  = 4

	initiationSize = 148
	responseSize   = 92
	cookieSize     = 64
	transportSize  = 32 // of an empty packet, the least
)

// messageType returns the type of a WireGuard message, 0 for anything else.
func messageType(b []byte) uint32 {
	if len(b) < transportSize {
		return 0
	}
	kind := binary.LittleEndian.Uint32(b)
	switch {
	case kind == typeTransport,
		kind == typeInitiation && len(b) == initiationSize,
		kind == typeResponse && len(b) == responseSize,
		kind == typeCookie && len(b) == cookieSize:
		return kind
	}
	return 0
}

// identity is what this device needs to see who begins a handshake with it.
type identity struct {
	private *ecdh.PrivateKey
	public  ident.NodeKey
	mac1    [blake2s.Size]byte // key of the first MAC
	chain   [blake2s.Size]byte // chaining key before the ephemeral
	hash    [blake2s.Size]byte // hash after the responder's static key
}

func newIdentity(key ident.NodePrivate) *identity {
	private, err := ecdh.X25519().NewPrivateKey(key.SecretBytes())
	if err != nil {
		panic("BUG: wg: X25519 refused 32 bytes: " + err.Error())
	}
	id := &identity{private: private, public: key.Public()}
	id.mac1 = blake2s.Sum256(append([]byte("mac1----"), id.public[:]...))
	id.chain = blake2s.Sum256([]byte("Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"))
	id.hash = blake2s.Sum256(append(id.chain[:], "WireGuard v1 zx2c4 Jason@zx2c4.com"...))
	id.hash = blake2s.Sum256(append(id.hash[:], id.public[:]...))
	return id
}

// checkMAC1 reports whether the sender of an initiation knew our public key.
func (id *identity) checkMAC1(message []byte) bool {
	const at = initiationSize - 2*blake2s.Size128
	mac, err := blake2s.New128(id.mac1[:])
	if err != nil {
		panic("BUG: wg: BLAKE2s refused a key of its own size: " + err.Error())
	}
	mac.Write(message[:at])
	return hmac.Equal(mac.Sum(nil), message[at:at+blake2s.Size128])
}

// initiator opens the static key of an initiation: the first half of Noise IK's
// first message. The key is what the sender says: only the second half, which
// the device checks, proves it. It costs one X25519 product.
func (id *identity) initiator(message []byte) (ident.NodeKey, bool) {
	var key ident.NodeKey
	ephemeral := message[8 : 8+ident.KeySize]
	sealed := message[8+ident.KeySize : 8+2*ident.KeySize+chacha20poly1305.Overhead]

	public, err := ecdh.X25519().NewPublicKey(ephemeral)
	if err != nil {
		return key, false
	}
	shared, err := id.private.ECDH(public)
	if err != nil {
		return key, false // low order
	}
	h := blake2s.Sum256(append(id.hash[:], ephemeral...))
	chain := kdf(id.chain[:], ephemeral, 1)
	boxKey := kdf(chain, shared, 2)
	aead, err := chacha20poly1305.New(boxKey)
	if err != nil {
		panic("BUG: wg: cipher refused a key of its own size: " + err.Error())
	}
	var nonce [chacha20poly1305.NonceSize]byte
	plain, err := aead.Open(key[:0], nonce[:], sealed, h[:])
	return key, err == nil && len(plain) == ident.KeySize
}

// kdf returns the n-th output of WireGuard's HKDF (paper, section 5.4).
func kdf(key, input []byte, n byte) []byte {
	secret := hmacBlake(key, input)
	var out []byte
	for i := byte(1); i <= n; i++ {
		out = hmacBlake(secret, append(out, i))
	}
	return out
}

func hmacBlake(key, input []byte) []byte {
	mac := hmac.New(func() hash.Hash {
		h, err := blake2s.New256(nil)
		if err != nil {
			panic("BUG: wg: BLAKE2s without a key: " + err.Error())
		}
		return h
	}, key)
	mac.Write(input)
	return mac.Sum(nil)
}

const (
	// strangerRate bounds the products that strangers can make us compute to a
	// tenth of a core, at 0.1 ms each. It needs knowledge of our public key to
	// use it up at all.
	strangerRate  = 1000 // per second
	strangerBurst = 200
	// pathRate bounds them for what comes over a relay or from an address that
	// is some peer's path, so that a flood of strangers keeps nobody out with
	// whom there is a way already.
	pathRate  = 3000 // per second
	pathBurst = 600
	// peerRate is the share of one peer of pathRate, so that no member keeps
	// out the others. An honest one begins a handshake every 5 seconds at most.
	peerRate  = 10 // per second
	peerBurst = 20
)

// limiter is a token bucket. It begins full.
type limiter struct {
	rate, burst float64

	mu    sync.Mutex
	spent float64   // protected by mu
	at    time.Time // protected by mu
}

func newLimiter(rate, burst float64) limiter { return limiter{rate: rate, burst: burst} }

func (l *limiter) allow(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if elapsed := now.Sub(l.at); elapsed > 0 {
		l.spent = max(0, l.spent-elapsed.Seconds()*l.rate)
		l.at = now
	}
	if l.spent+1 > l.burst {
		return false
	}
	l.spent++
	return true
}
