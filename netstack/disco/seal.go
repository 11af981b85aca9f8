package disco

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/warren-overlay/warren/acl/ident"
)

// Tag tells the receiver which pair a packet belongs to.
type Tag [8]byte

// ErrNotDisco means that a packet is not of this protocol and version.
var ErrNotDisco = errors.New("disco: not a disco packet")

// ErrForged means that a packet was not sealed by the peer for us, or was
// changed on its way.
var ErrForged = errors.New("disco: packet does not authenticate")

// magic begins every packet; its last byte is the version of the format.
var magic = [4]byte{0xf7, 'w', 'd', 1}

const (
	headerSize = len(magic) + len(Tag{}) + chacha20poly1305.NonceSizeX
	overhead   = headerSize + chacha20poly1305.Overhead

	// PingSize is the length of a sealed Ping without padding and of a sealed
	// Pong.
	PingSize = overhead + plainSize
	// MaxSize is the length of the longest sealed message: a Ping with the most
	// padding.
	MaxSize = PingSize + MaxPadding

	// usualSize is the length of the longest plain message without padding.
	usualSize = 2 + MaxEndpoints*addrPortSize
)

// Sealer seals messages of this node for one peer.
type Sealer struct {
	tag  Tag
	aead cipher.AEAD
}

// Opener opens messages of one peer for this node.
type Opener struct {
	tag  Tag
	aead cipher.AEAD
}

// NewPair returns both directions between this node and a peer. It costs one
// X25519 product. The error wraps ident.ErrMalformedKey where the peer's key is
// of low order.
func NewPair(self ident.NodePrivate, peer ident.NodeKey) (*Sealer, *Opener, error) {
	shared, err := self.SharedWith(peer)
	if err != nil {
		return nil, nil, fmt.Errorf("disco: deriving the keys of a pair: %w", err)
	}
	outTag, out := direction(shared, self.Public(), peer)
	inTag, in := direction(shared, peer, self.Public())
	return &Sealer{outTag, out}, &Opener{inTag, in}, nil
}

func direction(shared [ident.KeySize]byte, from, to ident.NodeKey) (Tag, cipher.AEAD) {
	info := make([]byte, 0, 2*ident.KeySize)
	info = append(append(info, from[:]...), to[:]...)
	okm, err := hkdf.Key(sha256.New, shared[:], []byte("warren disco v1"), string(info), chacha20poly1305.KeySize+len(Tag{}))
	if err != nil {
		panic("BUG: disco: HKDF refused its arguments: " + err.Error())
	}
	aead, err := chacha20poly1305.NewX(okm[:chacha20poly1305.KeySize])
	if err != nil {
		panic("BUG: disco: cipher refused a key of its own size: " + err.Error())
	}
	return Tag(okm[chacha20poly1305.KeySize:]), aead
}

// Seal appends the sealed message to dst. It draws 24 bytes from rand. The
// error wraps ErrMalformed where m has addresses that can not be sent, or is
// rand's; dst's contents are then unspecified behind its length.
func (s *Sealer) Seal(dst []byte, m Message, rand io.Reader) ([]byte, error) {
	var header [headerSize]byte
	copy(header[:], magic[:])
	copy(header[len(magic):], s.tag[:])
	nonce := header[len(magic)+len(Tag{}):]
	if _, err := io.ReadFull(rand, nonce); err != nil {
		return nil, fmt.Errorf("disco: drawing a nonce: %w", err)
	}
	plain, err := m.appendTo(make([]byte, 0, usualSize))
	if err != nil {
		return nil, err
	}
	dst = append(dst, header[:]...)
	return s.aead.Seal(dst, nonce, plain, header[:len(magic)+len(Tag{})]), nil
}

// Tag returns the tag that the peer's packets for us carry.
func (o *Opener) Tag() Tag { return o.tag }

// Open returns the message in a packet. It returns ErrNotDisco, ErrForged, or
// an error that wraps ErrMalformed. The packet is not changed and not kept.
func (o *Opener) Open(packet []byte) (Message, error) {
	tag, ok := PeekTag(packet)
	if !ok {
		return nil, ErrNotDisco
	}
	if tag != o.tag {
		return nil, ErrForged
	}
	nonce := packet[len(magic)+len(Tag{}) : headerSize]
	var buf [usualSize]byte
	plain, err := o.aead.Open(buf[:0], nonce, packet[headerSize:], packet[:len(magic)+len(Tag{})])
	if err != nil {
		return nil, ErrForged
	}
	return parseMessage(plain)
}

// Is reports whether a packet looks like one of this protocol: right magic and
// a possible length. It is cheap and allocates nothing.
func Is(packet []byte) bool {
	return len(packet) > overhead && len(packet) <= MaxSize && [4]byte(packet) == magic
}

// PeekTag returns the tag of a packet for which Is holds.
func PeekTag(packet []byte) (Tag, bool) {
	if !Is(packet) {
		return Tag{}, false
	}
	return Tag(packet[len(magic):]), true
}
