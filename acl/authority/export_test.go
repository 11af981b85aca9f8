package authority

import (
	"crypto/sha256"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// ForgeCertificate signs c without looking at it, as a coordinator that was
// broken into could.
func ForgeCertificate(g *Genesis, c *Certificate, signer ident.SignerPrivate) []byte {
	return sign(kindDevice, g.Fingerprint(), c.appendBinary(nil), signer)
}

// ForgeRules signs a set that need not be one, or a record of another version.
func ForgeRules(g *Genesis, node ident.NodeID, serial uint64, epoch ruleset.Epoch, set []byte, version byte, signer ident.SignerPrivate) []byte {
	b := appendRules(nil, node, serial, epoch, set)
	b[1] = version // after the head of the array
	return sign(kindRules, g.Fingerprint(), b, signer)
}

// ForgeCandidate signs bytes as a candidate, whatever they are.
func ForgeCandidate(g *Genesis, body []byte, signer ident.SignerPrivate) []byte {
	return sign(kindCandidate, g.Fingerprint(), body, signer)
}

// MaxLabels is how many labels a device may have.
const MaxLabels = maxLabels

// MaxDevices and ForgetAfter are the bounds of State.Devices.
const (
	MaxDevices  = maxDevices
	ForgetAfter = forgetAfter
)

// DecodeForged runs the decoders behind the signatures on b.
func DecodeForged(g *Genesis, b []byte, now time.Time) {
	if c, err := decodeCertificate(b); err == nil {
		_ = c.check(g)
	}
	if r, err := decodeRules(b); err == nil {
		_, _ = r.read()
	}
	_, _ = decodeRelayToken(b)
	_, _ = decodeRelayRevocations(b)
	_, _, _ = decodeCandidate(b)
	_, _ = DecodeGenesis(b, sha256.Sum256(b))
}
