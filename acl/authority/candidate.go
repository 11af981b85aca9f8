package authority

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/warren-overlay/warren/acl/canonical"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
)

const candidateVersion = 1

// Labels are what a candidate document makes of one device.
type Labels struct {
	Node   ident.NodeID
	Labels ident.LabelSet
}

// Candidate is what one device knows of a candidate document: the rules that it
// would have, and the labels that this device and its peers would have. Only
// Authority.AdmitCandidate makes one. It is for reports alone: it has another
// type, another signature and other epochs than Rules, so that neither is ever
// taken for the other. A Candidate is immutable.
type Candidate struct {
	set    *ruleset.RuleSet
	node   ident.NodeID
	labels []Labels // ascending
}

// Epoch returns the epoch, which candidates count apart from policies.
func (c *Candidate) Epoch() ruleset.Epoch { return c.set.Epoch }

// Node returns the device that the candidate was made for.
func (c *Candidate) Node() ident.NodeID { return c.node }

// ForPeer narrows the candidate's rules to the flows between this device and a
// peer, with the labels that the candidate gives them. It returns nil where the
// candidate says nothing of one of the two. The identities are not kept.
func (c *Candidate) ForPeer(self, peer *ident.Identity) *ruleset.PeerRules {
	own, known := c.relabelled(self)
	other, knowsPeer := c.relabelled(peer)
	if !known || !knowsPeer {
		return nil
	}
	return c.set.ForPeer(own, other)
}

func (c *Candidate) relabelled(id *ident.Identity) (*ident.Identity, bool) {
	at, ok := slices.BinarySearchFunc(c.labels, id.Node, func(l Labels, node ident.NodeID) int { return cmp.Compare(l.Node, node) })
	if !ok {
		return nil, false
	}
	other := *id
	other.Labels = c.labels[at].Labels
	return &other, true
}

// maxCandidateLabels bounds the devices that a candidate names: all peers that
// a WireGuard device can have, and this one.
const maxCandidateLabels = 1<<16 + 1

// IssueCandidate signs the candidate of one device. The labels are in ascending
// order of their devices. The error wraps ErrSigner or ErrOutOfBounds.
func IssueCandidate(g *Genesis, node ident.NodeID, set *ruleset.RuleSet, labels []Labels, signer ident.SignerPrivate) ([]byte, error) {
	if !g.may(signer.Public(), SignRules) {
		return nil, ErrSigner
	}
	b := canonical.AppendArray(nil, 5)
	b = canonical.AppendUint(b, candidateVersion)
	b = canonical.AppendUint(b, uint64(node))
	b = canonical.AppendUint(b, uint64(set.Epoch))
	b = canonical.AppendBytes(b, set.AppendBinary(nil))
	b = canonical.AppendArray(b, len(labels))
	for i, l := range labels {
		if i > 0 && labels[i-1].Node >= l.Node || l.Labels.Len() > maxLabels || i >= maxCandidateLabels {
			return nil, fmt.Errorf("%w: labels of %v in a candidate", ErrOutOfBounds, l.Node)
		}
		b = canonical.AppendArray(b, 2)
		b = canonical.AppendUint(b, uint64(l.Node))
		b = canonical.AppendArray(b, l.Labels.Len())
		for _, label := range l.Labels.Slice() {
			b = canonical.AppendUint(b, uint64(label))
		}
	}
	return sign(kindCandidate, g.Fingerprint(), b, signer), nil
}

// AdmitCandidate verifies a candidate that was made for the device named node.
// One of a lower epoch than was ever admitted is a rollback. Nothing changes
// where it returns an error, which wraps ErrMalformed, ErrSigner, ErrSignature,
// ErrNotOurs or ErrRollback. Nothing depends on a candidate, so one that cannot
// be read is refused like any other, and there is none then.
func (a *Authority) AdmitCandidate(signed []byte, node ident.NodeID) (*Candidate, error) {
	body, err := a.genesis.open(kindCandidate, a.network, signed)
	if err != nil {
		return nil, err
	}
	c, epoch, err := decodeCandidate(body)
	if err != nil {
		return nil, err
	}
	switch {
	case c.node != node:
		return nil, fmt.Errorf("%w: a candidate for %v", ErrNotOurs, c.node)
	case c.set.Epoch != epoch || epoch == 0:
		return nil, fmt.Errorf("%w: a candidate's rules of epoch %d in a record of epoch %d", ErrMalformed, c.set.Epoch, epoch)
	case epoch < a.state.Candidate:
		return nil, fmt.Errorf("%w: candidate epoch %d, after %d", ErrRollback, epoch, a.state.Candidate)
	}
	a.state.Candidate = epoch
	return c, nil
}

func decodeCandidate(b []byte) (*Candidate, ruleset.Epoch, error) {
	r := canonical.NewReader(b)
	r.Record(5, candidateVersion)
	c := &Candidate{node: ident.NodeID(r.Uint())}
	epoch := ruleset.Epoch(r.Uint())
	encoded := r.Bytes(maxRecord)
	for range r.Array(maxCandidateLabels) {
		if n := r.Array(2); n != 2 {
			r.Fail("labels of a device without two fields")
			break
		}
		l := Labels{Node: ident.NodeID(r.Uint())}
		var labels []ident.Label
		for range r.Array(maxLabels) {
			labels = append(labels, ident.Label(r.Uint()))
		}
		l.Labels = ident.NewLabelSet(labels...)
		if !slices.Equal(labels, l.Labels.Slice()) || len(labels) > 0 && labels[0] == 0 {
			r.Fail("labels not in ascending order, or one that is none")
		}
		if n := len(c.labels); l.Node == 0 || n > 0 && c.labels[n-1].Node >= l.Node {
			r.Fail("devices not in ascending order, or one that is none")
		}
		if r.Err() != nil {
			break
		}
		c.labels = append(c.labels, l)
	}
	if err := r.Close(); err != nil {
		return nil, 0, fmt.Errorf("%w: candidate: %w", ErrMalformed, err)
	}
	var err error
	if c.set, err = ruleset.Decode(encoded); err != nil {
		return nil, 0, fmt.Errorf("%w: candidate: %w", ErrMalformed, err)
	}
	return c, epoch, nil
}
