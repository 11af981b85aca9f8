package enginetest

import (
	"cmp"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/netstack/config"
)

// Network is a network and its members.
type Network struct {
	*acltest.Network
	// Epoch is that of the last rules that were issued.
	Epoch   ruleset.Epoch
	t       testing.TB
	members int
}

// NewNetwork returns a network without members that was made at now.
func NewNetwork(t testing.TB, seed byte, now time.Time) *Network {
	return &Network{Network: acltest.NewNetwork(seed, now), t: t}
}

// Member is a device of the network. Its label is its number.
type Member struct {
	Node        ident.NodeID
	Private     ident.NodePrivate
	Key         ident.NodeKey
	Certificate *authority.Certificate

	network   *Network
	authority *authority.Authority
	// Endpoints is where configurations say that the member is.
	Endpoints []netip.AddrPort
}

// Join adds a member. change, if not nil, may change the certificate first.
func (n *Network) Join(name string, change func(*authority.Certificate)) *Member {
	n.members++
	m := &Member{Node: ident.NodeID(n.members), Private: n.NodeKey(), network: n}
	m.Key = m.Private.Public()
	m.Certificate = n.Network.Certificate(m.Node, m.Key, name, ident.Label(m.Node))
	if change != nil {
		change(m.Certificate)
	}
	m.authority = n.Authority(m.Key)
	return m
}

// Addr4 returns the member's IPv4 address.
func (m *Member) Addr4() netip.Addr { return m.Certificate.Addresses[0] }

// Addr6 returns the member's IPv6 address.
func (m *Member) Addr6() netip.Addr { return m.Certificate.Addresses[1] }

// Config returns the configuration of m with the given peers and rules, nil
// rules denying everything, as m's own Authority admits them at now.
func (m *Member) Config(now time.Time, set *ruleset.RuleSet, peers ...*Member) *config.Config {
	t := m.network.t
	t.Helper()
	self, err := m.authority.AdmitSelf(m.network.Issue(m.Certificate), now)
	if err != nil {
		t.Fatal(err)
	}
	c := &config.Config{PrivateKey: m.Private, Self: self}
	if set != nil {
		m.network.Epoch++
		issued := *set
		issued.Epoch = m.network.Epoch
		if c.Rules, err = m.authority.AdmitRules(m.network.IssueRules(m.Node, &issued), m.Node); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range peers {
		member, err := m.authority.Admit(m.network.Issue(p.Certificate), now)
		if err != nil {
			t.Fatal(err)
		}
		c.Peers = append(c.Peers, config.Peer{
			Member: member, Endpoints: p.Endpoints,
			Routes: slices.DeleteFunc(slices.Clone(member.Identity().Routes), func(r netip.Prefix) bool { return r.Bits() == 0 }),
		})
	}
	return c
}

// Candidate returns a candidate of m with the rules, that gives m and the peers
// the labels of their certificates, as m's own Authority admits it.
func (m *Member) Candidate(set *ruleset.RuleSet, peers ...*Member) *authority.Candidate {
	m.network.t.Helper()
	labels := []authority.Labels{{Node: m.Node, Labels: m.Certificate.Labels}}
	for _, p := range peers {
		labels = append(labels, authority.Labels{Node: p.Node, Labels: p.Certificate.Labels})
	}
	slices.SortFunc(labels, func(a, b authority.Labels) int { return cmp.Compare(a.Node, b.Node) })
	m.network.Epoch++
	issued := *set
	issued.Epoch = m.network.Epoch
	c, err := m.authority.AdmitCandidate(m.network.IssueCandidate(m.Node, &issued, labels...), m.Node)
	if err != nil {
		m.network.t.Fatal(err)
	}
	return c
}

// Allow returns a rule that admits flows between this device and the peer: to
// the given port of the protocol, or to all where port is 0.
func Allow(id ruleset.RuleID, peer *Member, protocol uint8, port uint16) ruleset.Rule {
	service := ruleset.Service{Protocol: protocol, First: port, Last: port}
	if port == 0 {
		service.Last = 1<<16 - 1
	}
	return ruleset.Rule{
		ID:       id,
		Peers:    []ruleset.Selector{{Labels: ident.NewLabelSet(ident.Label(peer.Node))}},
		Services: []ruleset.Service{service},
	}
}

// AllowAll returns rules that admit everything with the peers, both ways.
func AllowAll(peers ...*Member) *ruleset.RuleSet {
	s := &ruleset.RuleSet{}
	for _, p := range peers {
		s.In = append(s.In, Allow("all", p, ruleset.AnyProtocol, 0))
		s.Out = append(s.Out, Allow("all", p, ruleset.AnyProtocol, 0))
	}
	return s
}

// Rotate gives the member another key and a newer certificate for it.
func (m *Member) Rotate() {
	m.Private = m.network.NodeKey()
	m.Key = m.Private.Public()
	m.network.Serial++
	m.Certificate.Serial, m.Certificate.NodeKey = m.network.Serial, m.Key
	m.authority.SetSelf(m.Key)
}
