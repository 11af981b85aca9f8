package acltest

import (
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// Network is a network in managed mode for tests: real keys and signatures,
// made from a seed.
type Network struct {
	Genesis *authority.Genesis
	Signer  ident.SignerPrivate
	Channel ident.ChannelPrivate
	// Serial is the serial of the last certificate or rules that were made.
	Serial uint64

	random *rand.ChaCha8
	now    time.Time
}

// NewNetwork returns a network created at now. The same seed gives the same
// keys.
func NewNetwork(seed byte, now time.Time) *Network {
	n := &Network{random: rand.NewChaCha8([32]byte{seed}), now: now}
	var err error
	if n.Signer, err = ident.NewSignerPrivate(n.random); err != nil {
		panic(err)
	}
	if n.Channel, err = ident.NewChannelPrivate(n.random); err != nil {
		panic(err)
	}
	n.Genesis = &authority.Genesis{
		Created: now.Truncate(time.Second).UTC(),
		Channel: n.Channel.Public(),
		Signers: []authority.Signer{{
			Key: n.Signer.Public(), Roles: authority.SignDevices | authority.SignRules | authority.SignRelayTokens,
		}},
		Prefix4: netip.MustParsePrefix("100.64.0.0/10"),
		Prefix6: netip.MustParsePrefix("fd12:3456:789a::/48"),
	}
	return n
}

// NodeKey makes a private node key.
func (n *Network) NodeKey() ident.NodePrivate {
	key, err := ident.NewNodePrivate(n.random)
	if err != nil {
		panic(err)
	}
	return key
}

// Certificate returns a sound certificate, with the next serial, valid for a
// week from the network's creation, whose addresses end in the node's number.
// The caller may change it before it is issued.
func (n *Network) Certificate(node ident.NodeID, key ident.NodeKey, name string, labels ...ident.Label) *authority.Certificate {
	n.Serial++
	low := [2]byte{byte(node >> 8), byte(node)}
	return &authority.Certificate{
		Serial: n.Serial, Node: node, NodeKey: key, Name: name, Labels: ident.NewLabelSet(labels...),
		Addresses: []netip.Addr{
			netip.AddrFrom4([4]byte{100, 64, low[0], low[1]}),
			netip.AddrFrom16([16]byte{0xfd, 0x12, 0x34, 0x56, 0x78, 0x9a, 14: low[0], 15: low[1]}),
		},
		NotBefore: n.now.Truncate(time.Second).UTC(),
		NotAfter:  n.now.Truncate(time.Second).UTC().Add(7 * 24 * time.Hour),
	}
}

// Issue signs c. It panics where c is not sound.
func (n *Network) Issue(c *authority.Certificate) []byte {
	signed, err := authority.IssueCertificate(n.Genesis, c, n.Signer)
	if err != nil {
		panic(err)
	}
	return signed
}

// IssueRules signs the rules of a node, with the next serial.
func (n *Network) IssueRules(node ident.NodeID, set *ruleset.RuleSet) []byte {
	n.Serial++
	signed, err := authority.IssueRules(n.Genesis, node, n.Serial, set, n.Signer)
	if err != nil {
		panic(err)
	}
	return signed
}

// IssueCandidate signs the candidate of a node; the labels are in ascending order
// of their devices.
func (n *Network) IssueCandidate(node ident.NodeID, set *ruleset.RuleSet, labels ...authority.Labels) []byte {
	signed, err := authority.IssueCandidate(n.Genesis, node, set, labels, n.Signer)
	if err != nil {
		panic(err)
	}
	return signed
}

// Authority returns a new device's Authority for the given key.
func (n *Network) Authority(self ident.NodeKey) *authority.Authority {
	a, err := authority.New(n.Genesis, self, authority.State{})
	if err != nil {
		panic(err)
	}
	return a
}
