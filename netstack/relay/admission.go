package relay

import (
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/warren-overlay/warren/acl/ident"
)

const (
	// version is of the admission exchange, versionBound of the same where the
	// server binds it to the channel below. A server that speaks another one is
	// refused by the client.
	version       = 1
	versionBound  = 2
	nonceSize     = 32
	proofSize     = sha256.Size
	challengeSize = 1 + ident.KeySize + nonceSize
)

// challenge is what a server asks of one connection.
type challenge struct {
	// bound says that the proof covers what both ends know of their channel. A
	// server behind a proxy that ends TLS knows nothing of the client's.
	bound     bool
	ephemeral [ident.KeySize]byte
	nonce     [nonceSize]byte
}

func (c *challenge) append(dst []byte) []byte {
	v := byte(version)
	if c.bound {
		v = versionBound
	}
	return AppendFrame(dst, FrameChallenge, []byte{v}, c.ephemeral[:], c.nonce[:])
}

func parseChallenge(f Frame) (c challenge, err error) {
	if f.Type != FrameChallenge || len(f.Body) != challengeSize {
		return c, fmt.Errorf("%w: want a challenge first", ErrFrame)
	}
	switch f.Body[0] {
	case version:
	case versionBound:
		c.bound = true
	default:
		return c, fmt.Errorf("%w: relay speaks version %d, this program %d", ErrFrame, f.Body[0], versionBound)
	}
	copy(c.ephemeral[:], f.Body[1:])
	copy(c.nonce[:], f.Body[1+ident.KeySize:])
	return c, nil
}

// newChallenge draws 64 bytes from rand.
func newChallenge(rand io.Reader) (challenge, *ecdh.PrivateKey, error) {
	var c challenge
	var secret [ident.KeySize]byte
	if _, err := io.ReadFull(rand, secret[:]); err != nil {
		return c, nil, fmt.Errorf("relay: drawing an ephemeral key: %w", err)
	}
	if _, err := io.ReadFull(rand, c.nonce[:]); err != nil {
		return c, nil, fmt.Errorf("relay: drawing a nonce: %w", err)
	}
	private, err := ecdh.X25519().NewPrivateKey(secret[:])
	if err != nil {
		panic("BUG: relay: X25519 refused 32 bytes: " + err.Error())
	}
	copy(c.ephemeral[:], private.PublicKey().Bytes())
	return c, private, nil
}

// hello is a client's answer.
type hello struct {
	key   ident.NodeKey
	proof [proofSize]byte
	token []byte // aliases the frame
}

func (h *hello) append(dst []byte) []byte {
	return AppendFrame(dst, FrameHello, h.key[:], h.proof[:], h.token)
}

func parseHello(f Frame) (h hello, err error) {
	const fixed = ident.KeySize + proofSize
	if f.Type != FrameHello || len(f.Body) < fixed || len(f.Body) > fixed+MaxToken {
		return h, fmt.Errorf("%w: want an answer to the challenge", ErrFrame)
	}
	copy(h.key[:], f.Body)
	copy(h.proof[:], f.Body[ident.KeySize:])
	h.token = f.Body[fixed:]
	return h, nil
}

// prove computes the proof from the X25519 product of the node key and the
// ephemeral key. Every part of the transcript has its length in front, so that
// no two transcripts are spelled alike.
func prove(shared []byte, relay string, binding []byte, c *challenge, key ident.NodeKey, token []byte) [proofSize]byte {
	macKey, err := hkdf.Key(sha256.New, shared, c.nonce[:], "warren relay admission v1", sha256.Size)
	if err != nil {
		panic("BUG: relay: HKDF refused its arguments: " + err.Error())
	}
	mac := hmac.New(sha256.New, macKey)
	for _, part := range [][]byte{[]byte(relay), binding, c.ephemeral[:], c.nonce[:], key[:], token} {
		var size [4]byte
		binary.BigEndian.PutUint32(size[:], uint32(len(part)))
		mac.Write(size[:])
		mac.Write(part)
	}
	return [proofSize]byte(mac.Sum(nil))
}

// verify reports whether h answers c, in constant time, and returns the product
// that both ends know.
func verify(private *ecdh.PrivateKey, relay string, binding []byte, c *challenge, h *hello) (shared []byte, ok bool) {
	public, err := ecdh.X25519().NewPublicKey(h.key[:])
	if err != nil {
		panic("BUG: relay: X25519 refused 32 bytes: " + err.Error())
	}
	shared, err = private.ECDH(public)
	if err != nil {
		return nil, false // low order: the product is known to everyone
	}
	want := prove(shared, relay, binding, c, h.key, h.token)
	return shared, hmac.Equal(want[:], h.proof[:])
}
