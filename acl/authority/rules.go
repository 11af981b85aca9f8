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
	set    *ruleset.RuleSet
	node   ident.NodeID
	serial uint64
}

// Set returns the rules. The caller must not write to them.
func (r *Rules) Set() *ruleset.RuleSet { return r.set }

// Node returns the device that the rules were made for.
func (r *Rules) Node() ident.NodeID { return r.node }

// Serial returns the serial of the rules.
func (r *Rules) Serial() uint64 { return r.serial }

// IssueRules signs the rules of one device. A device that has seen rules of a
// higher serial or epoch refuses these. The error wraps ErrSigner.
func IssueRules(g *Genesis, node ident.NodeID, serial uint64, set *ruleset.RuleSet, signer ident.SignerPrivate) ([]byte, error) {
	if !g.may(signer.Public(), SignRules) {
		return nil, ErrSigner
	}
	return sign(kindRules, g.Fingerprint(), appendRules(nil, node, serial, set.Epoch, set.AppendBinary(nil)), signer), nil
}

// rulesFields are version, device, serial, epoch and the encoded set. A version
// to come begins with the same four, so that this one can tell that it is newer.
const rulesFields = 5

func appendRules(b []byte, node ident.NodeID, serial uint64, epoch ruleset.Epoch, set []byte) []byte {
	b = canonical.AppendArray(b, rulesFields)
	b = canonical.AppendUint(b, rulesVersion)
	b = canonical.AppendUint(b, uint64(node))
	b = canonical.AppendUint(b, serial)
	b = canonical.AppendUint(b, uint64(epoch))
	return canonical.AppendBytes(b, set)
}

// rulesRecord is a record of rules whose set was not read yet.
type rulesRecord struct {
	node   ident.NodeID
	serial uint64
	epoch  ruleset.Epoch
	// unknown is the version where it is not this one's; the set is not known
	// then.
	unknown uint64
	set     []byte
}

// maxRulesFields bounds the records of versions to come.
const maxRulesFields = 32

func decodeRules(b []byte) (*rulesRecord, error) {
	r := canonical.NewReader(b)
	fields, version := r.Array(maxRulesFields), r.Uint()
	record := &rulesRecord{node: ident.NodeID(r.Uint()), serial: r.Uint(), epoch: ruleset.Epoch(r.Uint())}
	if r.Err() == nil && version > rulesVersion && fields >= rulesFields {
		record.unknown = version
		return record, nil
	}
	if r.Err() == nil && (fields != rulesFields || version != rulesVersion) {
		r.Fail("record of %d fields and version %d", fields, version)
	}
	record.set = r.Bytes(maxRecord)
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("%w: rules: %w", ErrMalformed, err)
	}
	return record, nil
}

// read decodes the set. The error wraps ErrUnreadable.
func (r *rulesRecord) read() (*ruleset.RuleSet, error) {
	if r.unknown != 0 {
		return nil, fmt.Errorf("%w: of version %d, this program knows %d; update it", ErrUnreadable, r.unknown, rulesVersion)
	}
	set, err := ruleset.Decode(r.set)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	if set.Epoch != r.epoch {
		return nil, fmt.Errorf("%w: of epoch %d in a record of epoch %d", ErrUnreadable, set.Epoch, r.epoch)
	}
	return set, nil
}
