package wg

import (
	"crypto/ecdh"
	"encoding/binary"
	"testing"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/warren-overlay/warren/acl/ident"
)

// craftInitiation makes what anyone can who knows both public keys: an
// initiation up to the static key, with MAC1, whose time stamp does not
// authenticate. It is written from the WireGuard paper, section 5.4.2.
func craftInitiation(t testing.TB, responder, initiator ident.NodePrivate) []byte {
	t.Helper()
	theirs, err := ecdh.X25519().NewPublicKey(responderKey(responder))
	if err != nil {
		t.Fatal(err)
	}
	seed := fuzzKey(t, 9)
	ephemeral, err := ecdh.X25519().NewPrivateKey(seed.SecretBytes())
	if err != nil {
		t.Fatal(err)
	}
	shared, err := ephemeral.ECDH(theirs)
	if err != nil {
		t.Fatal(err)
	}
	id := newIdentity(responder)
	public := ephemeral.PublicKey().Bytes()
	h := blake2s.Sum256(append(id.hash[:], public...))
	aead, err := chacha20poly1305.New(kdf(kdf(id.chain[:], public, 1), shared, 2))
	if err != nil {
		t.Fatal(err)
	}
	static := initiator.Public()
	m := binary.LittleEndian.AppendUint32(nil, typeInitiation)
	m = binary.LittleEndian.AppendUint32(m, 7)
	m = append(m, public...)
	m = aead.Seal(m, make([]byte, chacha20poly1305.NonceSize), static[:], h[:])
	m = append(m, make([]byte, 12+chacha20poly1305.Overhead)...) // time stamp
	return seal(t, id, m)
}

// renumbered returns an initiation like the given one from another sender index.
func renumbered(t testing.TB, responder ident.NodePrivate, initiation []byte, index uint32) []byte {
	t.Helper()
	m := append([]byte(nil), initiation[:initiationSize-2*blake2s.Size128]...)
	binary.LittleEndian.PutUint32(m[4:], index)
	return seal(t, newIdentity(responder), m)
}

// seal appends the first MAC, and no second one.
func seal(t testing.TB, id *identity, m []byte) []byte {
	t.Helper()
	mac, err := blake2s.New128(id.mac1[:])
	if err != nil {
		t.Fatal(err)
	}
	mac.Write(m)
	return append(mac.Sum(m), make([]byte, blake2s.Size128)...)
}

func responderKey(k ident.NodePrivate) []byte {
	public := k.Public()
	return public[:]
}
