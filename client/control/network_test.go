package control_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/client/control"
	"github.com/warren-overlay/warren/coordinator/wire"
)

var start = time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)

const selfID ident.NodeID = 1

// network is a coordinator's signing keys and the keys of its nodes, all made
// from one seed.
type network struct {
	t       testing.TB
	rand    *rand.ChaCha8
	genesis *authority.Genesis
	signer  ident.SignerPrivate
	// rogue is a key that the genesis record does not name.
	rogue ident.SignerPrivate
	keys  map[ident.NodeID]ident.NodePrivate
	// Further keys of the genesis record, each of one role.
	deviceSigner, rulesSigner ident.SignerPrivate
}

func newNetwork(t testing.TB, seed byte) *network {
	t.Helper()
	n := &network{t: t, rand: rand.NewChaCha8([32]byte{seed}), keys: map[ident.NodeID]ident.NodePrivate{}}
	n.signer, n.rogue = n.newSigner(), n.newSigner()
	n.deviceSigner, n.rulesSigner = n.newSigner(), n.newSigner()
	channel, err := ident.NewChannelPrivate(n.rand)
	n.must(err)
	n.genesis = &authority.Genesis{
		Created: start.Add(-time.Hour), Channel: channel.Public(),
		Signers: []authority.Signer{
			{Key: n.signer.Public(), Roles: authority.SignDevices | authority.SignRules | authority.SignRelayTokens},
			{Key: n.deviceSigner.Public(), Roles: authority.SignDevices},
			{Key: n.rulesSigner.Public(), Roles: authority.SignRules},
		},
		Prefix4: netip.MustParsePrefix("100.64.0.0/10"), Prefix6: netip.MustParsePrefix("fd5a:1:2::/48"),
	}
	return n
}

func (n *network) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *network) newSigner() ident.SignerPrivate {
	k, err := ident.NewSignerPrivate(n.rand)
	n.must(err)
	return k
}

func (n *network) key(id ident.NodeID) ident.NodePrivate {
	k, ok := n.keys[id]
	if !ok {
		var err error
		k, err = ident.NewNodePrivate(n.rand)
		n.must(err)
		n.keys[id] = k
	}
	return k
}

// certificate returns what an honest coordinator certifies of a node.
func (n *network) certificate(id ident.NodeID, serial uint64) *authority.Certificate {
	return &authority.Certificate{
		Serial: serial, Node: id, NodeKey: n.key(id).Public(), Name: fmt.Sprintf("node%d", id), Owner: 7,
		Labels: ident.NewLabelSet(ident.Label(id)),
		Addresses: []netip.Addr{
			netip.AddrFrom4([4]byte{100, 64, 0, byte(id)}),
			netip.MustParseAddr(fmt.Sprintf("fd5a:1:2::%d", id)),
		},
		NotBefore: start.Add(-time.Hour), NotAfter: start.Add(30 * 24 * time.Hour),
	}
}

func (n *network) sign(c *authority.Certificate) []byte {
	n.t.Helper()
	signed, err := authority.IssueCertificate(n.genesis, c, n.signer)
	n.must(err)
	return signed
}

// signWith signs c as a coordinator of another genesis record would: with any
// key, whatever this network allows.
func (n *network) signWith(c *authority.Certificate, signer ident.SignerPrivate, widen func(*authority.Genesis)) []byte {
	n.t.Helper()
	g := *n.genesis
	g.Signers = []authority.Signer{{Key: signer.Public(), Roles: authority.SignDevices | authority.SignRules | authority.SignRelayTokens}}
	if widen != nil {
		widen(&g)
	}
	signed, err := authority.IssueCertificate(&g, c, signer)
	n.must(err)
	return signed
}

func (n *network) rules(node ident.NodeID, epoch ruleset.Epoch, signer ident.SignerPrivate) []byte {
	n.t.Helper()
	signed, err := authority.IssueRules(n.genesis, node, uint64(epoch), &ruleset.RuleSet{Epoch: epoch}, signer)
	n.must(err)
	return signed
}

func (n *network) peer(id ident.NodeID, serial uint64) wire.Peer {
	return wire.Peer{
		Certificate: n.sign(n.certificate(id, serial)),
		State:       wire.PeerState{Online: true, OS: "linux", Endpoints: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(id)}), 41641)}},
	}
}

// fullMap returns an honest map with the given peers, whose serials are their
// ids times ten.
func (n *network) fullMap(sequence uint64, epoch ruleset.Epoch, peers ...ident.NodeID) *wire.Map {
	n.t.Helper()
	m := &wire.Map{
		Sequence: sequence, Self: n.sign(n.certificate(selfID, 10)), Rules: n.rules(selfID, epoch, n.signer),
		Peers:      map[ident.NodeID]wire.Peer{},
		Settings:   wire.Settings{STUN: []string{":3478"}, Users: []wire.User{{ID: 7, Login: "alice@example.com"}}},
		RelayToken: []byte("token"),
	}
	for _, id := range peers {
		m.Peers[id] = n.peer(id, uint64(id)*10)
	}
	return m
}

func (n *network) config() control.Config {
	return control.Config{
		Rand: n.rand, URL: "http://coordinator:8080", Network: n.genesis.Fingerprint(),
		NodeKey: n.key(selfID).Public(), Host: wire.HostInfo{OS: "linux"},
		Saved: control.Saved{Genesis: n.genesis.AppendBinary(nil)},
	}
}

// node is a machine, and what it last told of.
type node struct {
	t     testing.TB
	m     *control.Machine
	now   time.Time
	view  *control.View
	saved control.Saved
	sent  []wire.ClientMessage
	told  int // TimeTold events
}

func newNode(t testing.TB, cfg control.Config, now time.Time) *node {
	t.Helper()
	m, err := control.New(cfg, now)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, m: m, now: now, saved: cfg.Saved}
	n.drain()
	return n
}

func (n *node) drain() {
	n.t.Helper()
	for {
		o, ok := n.m.NextOutput()
		if !ok {
			break
		}
		if s, ok := o.(control.Send); ok {
			message, err := wire.DecodeClient(s.Frame)
			if err != nil {
				n.t.Fatalf("the machine sends what no coordinator reads: %v", err)
			}
			n.sent = append(n.sent, message)
		}
	}
	for {
		e, ok := n.m.NextEvent()
		if !ok {
			return
		}
		switch e := e.(type) {
		case control.NetMap:
			n.view = e.View
		case control.Persist:
			n.saved = e.Saved
		case control.TimeTold:
			n.told++
		case control.StateChanged, control.HealthChanged:
		}
	}
}

func (n *node) receive(message wire.ServerMessage) {
	n.t.Helper()
	if err := n.m.HandleFrame(wire.EncodeServer(message), n.now); err != nil {
		n.t.Fatalf("receiving %T: %v", message, err)
	}
	n.drain()
}

// stream brings the machine to Streaming.
func (n *node) stream() {
	n.t.Helper()
	n.m.HandleStart(n.now)
	n.m.HandleConnected(wire.Proof{}, n.now)
	n.receive(wire.Welcome{Version: wire.Newest, Time: n.now, Registered: true})
	if s := n.m.Snapshot().State; s != control.Streaming {
		n.t.Fatalf("state %v, want streaming", s)
	}
}

func (n *node) peers() []ident.NodeID {
	var ids []ident.NodeID
	for _, p := range n.view.Peers {
		ids = append(ids, p.Member.Node())
	}
	return ids
}

// diff returns the delta that turns old into next, as a coordinator makes it.
func diff(next, old *wire.Map) *wire.Delta {
	clone := func(m *wire.Map) *wire.Map {
		c := *m
		c.Peers = maps.Clone(m.Peers)
		return &c
	}
	d := wire.Begin(clone(old)).Whole(clone(next))
	if d == nil {
		d = &wire.Delta{BaseSequence: old.Sequence, BaseHash: old.Hash(), Hash: old.Hash()}
	}
	d.Sequence = next.Sequence
	return d
}
