package authority

import (
	"crypto/ed25519"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/acl/canonical"
	"github.com/warren-overlay/warren/acl/ident"
)

// kind separates signatures of one kind of record from those of another. The
// text is part of what is signed and never changes.
type kind string

const (
	kindDevice     kind = "warren device certificate v1\x00"
	kindRules      kind = "warren rules v1\x00"
	kindRelayToken kind = "warren relay token v1\x00"
	kindCandidate  kind = "warren candidate rules v1\x00"

	kindRelayRevocations kind = "warren relay revocations v1\x00"
)

func (k kind) role() Role {
	switch k {
	case kindDevice:
		return SignDevices
	case kindRules, kindCandidate:
		// Whoever may sign what is enforced may sign what would be. Which of the
		// two a record is, is said by the kind alone.
		return SignRules
	case kindRelayToken, kindRelayRevocations:
		return SignRelayTokens
	}
	panic("BUG: authority: kind without a role")
}

// maxRecord bounds a signed record in bytes: the largest rule set that the
// compiler makes fits eight times over.
const maxRecord = 16 << 20

func signedText(k kind, network ident.Fingerprint, body []byte) []byte {
	text := make([]byte, 0, len(k)+len(network)+len(body))
	text = append(text, k...)
	text = append(text, network[:]...)
	return append(text, body...)
}

// sign wraps body into the envelope [signer, signature, body].
func sign(k kind, network ident.Fingerprint, body []byte, signer ident.SignerPrivate) []byte {
	signature := signer.Sign(signedText(k, network, body))
	public := signer.Public()
	b := make([]byte, 0, len(body)+112)
	b = canonical.AppendArray(b, 3)
	b = canonical.AppendBytes(b, public[:])
	b = canonical.AppendBytes(b, signature[:])
	return canonical.AppendBytes(b, body)
}

// open verifies an envelope and returns its body, which shares its storage.
func (g *Genesis) open(k kind, network ident.Fingerprint, envelope []byte) ([]byte, error) {
	var key ident.SignerKey
	var signature [ed25519.SignatureSize]byte
	r := canonical.NewReader(envelope)
	if n := r.Array(3); n != 3 {
		r.Fail("envelope without three fields")
	}
	r.Fixed(key[:])
	r.Fixed(signature[:])
	body := r.Bytes(maxRecord)
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if !g.may(key, k.role()) {
		return nil, fmt.Errorf("%w: %v", ErrSigner, key)
	}
	if !key.Verify(signedText(k, network, body), signature[:]) {
		return nil, ErrSignature
	}
	return body, nil
}

func appendAddr(b []byte, a netip.Addr) []byte { return canonical.AppendBytes(b, a.AsSlice()) }

// readAddr refuses zones (they cannot be encoded) and IPv4 in IPv6, which
// would be a second spelling of an IPv4 address.
func readAddr(r *canonical.Reader) netip.Addr {
	raw := r.Bytes(16)
	if r.Err() != nil {
		return netip.Addr{}
	}
	a, ok := netip.AddrFromSlice(raw)
	if !ok || a.Is4In6() {
		r.Fail("address of %d bytes", len(raw))
		return netip.Addr{}
	}
	return a
}

func appendPrefix(b []byte, p netip.Prefix) []byte {
	b = canonical.AppendArray(b, 2)
	b = appendAddr(b, p.Addr())
	return canonical.AppendUint(b, uint64(p.Bits()))
}

func readPrefix(r *canonical.Reader) netip.Prefix {
	if n := r.Array(2); n != 2 {
		r.Fail("prefix without two fields")
	}
	a, bits := readAddr(r), r.Uint()
	if r.Err() != nil {
		return netip.Prefix{}
	}
	if bits > uint64(a.BitLen()) {
		r.Fail("prefix of %d bits", bits)
		return netip.Prefix{}
	}
	p := netip.PrefixFrom(a, int(bits))
	if p != p.Masked() {
		r.Fail("prefix %v has bits set beyond its length", p)
	}
	return p
}

// maxTime is the latest time of a record in seconds since 1970, in the year
// 2514: far beyond any validity, and well within time.Time.
const maxTime = math.MaxInt32 * 8

func readTime(r *canonical.Reader) time.Time {
	n := r.Uint()
	if n > maxTime {
		r.Fail("time %d out of range", n)
		return time.Time{}
	}
	return time.Unix(int64(n), 0).UTC()
}
