package netmap

import (
	"slices"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/compile"
	"github.com/warren-overlay/warren/acl/ident"
)

// setCandidate compiles the state's candidate for the devices that there are,
// with the routes that they have by the policy.
func (n *Network) setCandidate() error {
	n.candidate = nil
	clear(n.candidates)
	candidate := n.state.Candidate()
	if candidate == nil {
		return nil
	}
	doc, err := parse(candidate.Text)
	if err != nil {
		return err
	}
	p, err := n.compile(doc, candidate.Epoch, n.members())
	if err != nil {
		return err
	}
	for _, d := range n.members() {
		if routes := n.routes(d); len(routes) > 0 {
			described := node(d)
			described.Routes = routes
			p.SetNode(described)
		}
	}
	n.candidate = p
	return nil
}

// CandidateError returns why the state's candidate does not compile for the users
// and devices that there are, nil where it does or where there is none. Nobody
// is told of it then; everything else is as without a candidate. The error wraps
// ErrPolicy.
func (n *Network) CandidateError() error { return n.candidateError }

// describeToCandidate tells the candidate what a device is by now.
func (n *Network) describeToCandidate(described compile.Node, t *toucher) {
	if n.candidate != nil {
		t.outlook(n.candidate.SetNode(described))
	}
}

// outlook marks devices of which the candidate says something else than before:
// they and those that see them are told.
func (t *toucher) outlook(ids []ident.NodeID) {
	for _, id := range ids {
		t.whole(append(t.n.policy.Peers(id), id))
	}
}

// signedCandidate returns the candidate rules of a device, with the labels that
// the candidate gives it and those that it sees; nil for none. A device for which
// they cannot be made has none: nothing depends on them.
func (n *Network) signedCandidate(id ident.NodeID) []byte {
	if n.candidate == nil {
		return nil
	}
	if signed := n.candidates[id]; signed != nil {
		return signed
	}
	set := n.candidate.RuleSet(id)
	if set == nil {
		return nil
	}
	set.Epoch = n.candidate.Epoch()
	concerned := append(n.policy.Peers(id), id)
	slices.Sort(concerned)
	var labels []authority.Labels
	for _, other := range concerned {
		if identity, ok := n.candidate.Identity(other); ok {
			labels = append(labels, authority.Labels{Node: other, Labels: identity.Labels})
		}
	}
	signed, err := authority.IssueCandidate(n.cfg.Genesis, id, set, labels, n.cfg.Signer)
	if err != nil {
		return nil
	}
	n.candidates[id] = signed
	return signed
}
