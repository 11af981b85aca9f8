package authority

import (
	"fmt"

	"github.com/warren-overlay/warren/acl/canonical"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
)

const rulesVersion = 1

// Rules are verified rules of one device. Only Authority.AdmitRules makes one.
type Rules struct {
	set  *ruleset.RuleSet
	node ident.NodeID
}

// Set returns the rules. The caller must not write to them.
func (r *Rules) Set() *ruleset.RuleSet { return r.set }

// Node returns the device that the rules were made for.
func (r *Rules) Node() ident.NodeID { return r.node }

// IssueRules signs the rules of one device. The error wraps ErrSigner.
func IssueRules(g *Genesis, node ident.NodeID, set *ruleset.RuleSet, signer ident.SignerPrivate) ([]byte, error) {
	if !g.may(signer.Public(), SignRules) {
		return nil, ErrSigner
	}
	b := canonical.AppendArray(nil, 4)
	b = canonical.AppendUint(b, rulesVersion)
	b = canonical.AppendUint(b, uint64(node))
	b = canonical.AppendUint(b, uint64(set.Epoch))
	b = canonical.AppendBytes(b, set.AppendBinary(nil))
	return sign(kindRules, g.Fingerprint(), b, signer), nil
}

func decodeRules(b []byte) (*Rules, error) {
	r := canonical.NewReader(b)
	r.Record(4, rulesVersion)
	node, epoch, raw := ident.NodeID(r.Uint()), ruleset.Epoch(r.Uint()), r.Bytes(maxRecord)
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("%w: rules: %w", ErrMalformed, err)
	}
	set, err := ruleset.Decode(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if set.Epoch != epoch {
		return nil, fmt.Errorf("%w: rules of epoch %d in a record of epoch %d", ErrMalformed, set.Epoch, epoch)
	}
	return &Rules{set: set, node: node}, nil
}
