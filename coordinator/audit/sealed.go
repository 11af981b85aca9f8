package audit

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/warren-overlay/warren/acl/canonical"
	"github.com/warren-overlay/warren/acl/ident"
)

// ErrSealed is wrapped by the errors of OpenSealed.
var ErrSealed = errors.New("audit: not a signed head")

// sealContext begins what is signed, so that the signature is of use for
// nothing else.
const sealContext = "warren audit head v1\x00"

// String returns the head as INDEX:HASH, in hexadecimal digits.
func (h Head) String() string {
	return strconv.FormatUint(h.Index, 10) + ":" + hex.EncodeToString(h.Hash[:])
}

// ParseHead reads what String writes.
func ParseHead(text string) (Head, error) {
	var h Head
	index, hash, _ := strings.Cut(text, ":")
	n, err := strconv.ParseUint(index, 10, 64)
	raw, hexErr := hex.DecodeString(hash)
	if err != nil || hexErr != nil || len(raw) != len(h.Hash) {
		return Head{}, fmt.Errorf("%w: %.80q is not INDEX:HASH", ErrMalformed, text)
	}
	h.Index = n
	copy(h.Hash[:], raw)
	return h, nil
}

// Seal returns the head with a signature, as a line of text to be kept where
// the chain is not: it shows later that the chain once reached so far.
func (h Head) Seal(network ident.Fingerprint, signer ident.SignerPrivate) []byte {
	signature := signer.Sign(h.signed(network))
	return fmt.Appendf(nil, "%v %v %x\n", h, signer.Public(), signature)
}

func (h Head) signed(network ident.Fingerprint) []byte {
	b := append([]byte(sealContext), network[:]...)
	return canonical.AppendBytes(canonical.AppendUint(b, h.Index), h.Hash[:])
}

// OpenSealed reads what Seal wrote for the network with one of the signers'
// keys. The error wraps ErrSealed.
func OpenSealed(text []byte, network ident.Fingerprint, signers []ident.SignerKey) (Head, error) {
	fields := strings.Fields(string(text))
	if len(fields) != 3 {
		return Head{}, fmt.Errorf("%w: it has %d parts", ErrSealed, len(fields))
	}
	h, err := ParseHead(fields[0])
	if err != nil {
		return Head{}, fmt.Errorf("%w: %w", ErrSealed, err)
	}
	signature, err := hex.DecodeString(fields[2])
	if err != nil {
		return Head{}, fmt.Errorf("%w: the signature is not hexadecimal", ErrSealed)
	}
	for _, key := range signers {
		if key.String() == fields[1] && key.Verify(h.signed(network), signature) {
			return h, nil
		}
	}
	return Head{}, fmt.Errorf("%w of this network", ErrSealed)
}
