package control_test

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/client/control"
	"github.com/warren-overlay/warren/client/health"
	"github.com/warren-overlay/warren/coordinator/wire"
)

// victim is the peer that the coordinator lies about, bystander one that it
// does not; both are peers in the base map of every path.
const (
	bystander ident.NodeID = 2
	victim    ident.NodeID = 3
	added     ident.NodeID = 4
)

// lies are what a coordinator without the signing keys may try with the peer
// id, whose honest certificate has the serial id*10.
var lies = []struct {
	name string
	lie  func(n *network, id ident.NodeID) []byte
	want error // nil: the name under which it is sent is the lie
}{
	{"M01 not signed", func(n *network, id ident.NodeID) []byte {
		signed := bytes.Clone(n.sign(n.certificate(id, 90)))
		copy(signed[40:], make([]byte, 32))
		return signed
	}, nil},
	{"M01 no certificate at all", func(*network, ident.NodeID) []byte { return []byte{0x80} }, authority.ErrMalformed},
	{"M02 unknown signer", func(n *network, id ident.NodeID) []byte {
		return n.signWith(n.certificate(id, 90), n.rogue, nil)
	}, authority.ErrSigner},
	{"M03 signer without the role", func(n *network, id ident.NodeID) []byte {
		return n.signWith(n.certificate(id, 90), n.rulesSigner, nil)
	}, authority.ErrSigner},
	{"M04 another node key", func(n *network, id ident.NodeID) []byte {
		return swap(n, id, func(c *authority.Certificate) { c.NodeKey = n.key(99).Public() })
	}, authority.ErrSignature},
	{"M05 another address", func(n *network, id ident.NodeID) []byte {
		return swap(n, id, func(c *authority.Certificate) { c.Addresses = []netip.Addr{netip.MustParseAddr("100.64.9.9")} })
	}, authority.ErrSignature},
	{"M06 a default route more", func(n *network, id ident.NodeID) []byte {
		return swap(n, id, func(c *authority.Certificate) { c.Routes = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")} })
	}, authority.ErrSignature},
	{"M07 another owner", func(n *network, id ident.NodeID) []byte {
		return swap(n, id, func(c *authority.Certificate) { c.Owner = 1 })
	}, authority.ErrSignature},
	{"M07 more labels", func(n *network, id ident.NodeID) []byte {
		return swap(n, id, func(c *authority.Certificate) { c.Labels = ident.NewLabelSet(1, 2, 3) })
	}, authority.ErrSignature},
	{"M11 an older certificate", func(n *network, id ident.NodeID) []byte {
		return n.sign(n.certificate(id, uint64(id)*10-1))
	}, authority.ErrRollback},
	{"a certificate of another device", func(n *network, _ ident.NodeID) []byte {
		return n.sign(n.certificate(50, 500))
	}, nil},
	{"a certificate of this device", func(n *network, _ ident.NodeID) []byte {
		return n.sign(n.certificate(selfID, 10))
	}, authority.ErrNotOurs},
	{"a certificate that ended", func(n *network, id ident.NodeID) []byte {
		c := n.certificate(id, 90)
		c.NotBefore, c.NotAfter = start.Add(-2*time.Hour), start.Add(-time.Second)
		return n.sign(c)
	}, authority.ErrExpired},
	{"rules in place of a certificate", func(n *network, _ ident.NodeID) []byte {
		return n.rules(selfID, 9, n.signer)
	}, authority.ErrSignature},
}

// swap puts a changed certificate under the signature of the honest one.
func swap(n *network, id ident.NodeID, change func(*authority.Certificate)) []byte {
	c := n.certificate(id, 90)
	honest := n.sign(c)
	change(c)
	forged := n.signWith(c, n.signer, nil)
	// Both envelopes begin with the array, the signer and the signature.
	const header = 1 + 2 + 32 + 2 + 64
	return append(bytes.Clone(honest[:header]), forged[header:]...)
}

// paths are the ways by which a peer can come to be in a view. Each gets the
// lie to the machine and returns the node after that.
var paths = []struct {
	name string
	// target is the peer that the lie is told of.
	target ident.NodeID
	send   func(t *testing.T, n *network, lie []byte) *node
}{
	{"full map", victim, func(t *testing.T, n *network, lie []byte) *node {
		c := known(t, n)
		c.receive(lyingMap(n, lie))
		return c
	}},
	{"first full map", victim, func(t *testing.T, n *network, lie []byte) *node {
		cfg := n.config()
		cfg.Saved.Authority.Devices = map[ident.NodeID]authority.Seen{victim: {Serial: 30, NotAfter: start.Add(time.Hour)}}
		c := newNode(t, cfg, start)
		c.stream()
		c.receive(lyingMap(n, lie))
		return c
	}},
	{"add", added, func(t *testing.T, n *network, lie []byte) *node {
		c := known(t, n)
		next := n.fullMap(2, 5, bystander, victim, added) // shows the serial once
		c.receive(diff(next, n.fullMap(1, 5, bystander, victim)))
		gone := n.fullMap(3, 5, bystander, victim)
		c.receive(diff(gone, next))
		lying := n.fullMap(4, 5, bystander, victim, added)
		lying.Peers[added] = wire.Peer{Certificate: lie, State: lying.Peers[added].State}
		c.receive(diff(lying, gone))
		return c
	}},
	{"replace", victim, func(t *testing.T, n *network, lie []byte) *node {
		c := known(t, n)
		c.receive(diff(lyingMap(n, lie), n.fullMap(1, 5, bystander, victim)))
		return c
	}},
	{"patch after replace", victim, func(t *testing.T, n *network, lie []byte) *node {
		c := known(t, n)
		lying := lyingMap(n, lie)
		c.receive(diff(lying, n.fullMap(1, 5, bystander, victim)))
		patched := lyingMap(n, lie)
		patched.Sequence = 3
		patched.Peers[victim] = wire.Peer{Certificate: lie, State: wire.PeerState{OS: "other"}}
		c.receive(diff(patched, lying))
		return c
	}},
	{"boot cache", victim, func(t *testing.T, n *network, lie []byte) *node {
		before := known(t, n)
		cfg := n.config()
		cfg.Saved = before.saved
		cfg.Saved.Map = wire.EncodeServer(lyingMap(n, lie))
		return newNode(t, cfg, start)
	}},
}

// known returns a node that streams and has seen the honest map.
func known(t *testing.T, n *network) *node {
	t.Helper()
	c := newNode(t, n.config(), start)
	c.stream()
	c.receive(n.fullMap(1, 5, bystander, victim))
	if got := c.peers(); !slices.Equal(got, []ident.NodeID{bystander, victim}) {
		t.Fatalf("the honest map gives the peers %v", got)
	}
	return c
}

func lyingMap(n *network, lie []byte) *wire.Map {
	m := n.fullMap(2, 5, bystander, victim)
	m.Peers[victim] = wire.Peer{Certificate: lie, State: m.Peers[victim].State}
	return m
}

// TestMaliciousCoordinator runs the matrix of lies over all paths: the peer
// lied about is absent, a health fact names it, the others are as they were,
// and nothing of the lie is saved.
func TestMaliciousCoordinator(t *testing.T) {
	for _, path := range paths {
		for _, lie := range lies {
			t.Run(path.name+"/"+lie.name, func(t *testing.T) {
				n := newNetwork(t, 1)
				forged := lie.lie(n, path.target)
				if lie.want != nil {
					checkLie(t, n, path.target, forged, lie.want)
				}
				c := path.send(t, n, forged)
				if got := c.peers(); slices.Contains(got, path.target) || !slices.Contains(got, bystander) {
					t.Errorf("peers %v: want the bystander without %v", got, path.target)
				}
				facts := c.m.Snapshot().Facts
				if !slices.ContainsFunc(facts, func(f health.Fact) bool {
					return f.Code == health.PeerRefused && f.Subject == path.target.String()
				}) {
					t.Errorf("no fact says that %v was refused: %v", path.target, facts)
				}
				if path.name != "boot cache" && savedPeer(t, c, path.target) {
					t.Error("what was refused is saved all the same")
				}
				// The machine recovers as soon as the coordinator tells the truth.
				if path.name == "full map" {
					truth := n.fullMap(9, 5, bystander, victim)
					truth.Peers[victim] = n.peer(victim, 95)
					c.receive(truth)
					if got := c.peers(); !slices.Equal(got, []ident.NodeID{bystander, victim}) {
						t.Errorf("after the truth: peers %v", got)
					}
					if c.hasFact(health.PeerRefused) {
						t.Error("the fact stays after the truth")
					}
				}
			})
		}
	}
}

// savedPeer reports whether the map that was saved last has the peer.
func savedPeer(t *testing.T, c *node, id ident.NodeID) bool {
	t.Helper()
	message, err := wire.DecodeServer(c.saved.Map)
	if err != nil {
		t.Fatal(err)
	}
	_, ok := message.(*wire.Map).Peers[id]
	return ok
}

func (n *node) hasFact(code health.Code) bool {
	return slices.ContainsFunc(n.m.Snapshot().Facts, func(f health.Fact) bool { return f.Code == code })
}

// checkLie makes sure that a lie is refused for the reason that it is told
// for, not for a mistake in the test.
func checkLie(t *testing.T, n *network, id ident.NodeID, forged []byte, want error) {
	t.Helper()
	a, err := authority.New(n.genesis, n.key(selfID).Public(), authority.State{Devices: map[ident.NodeID]authority.Seen{id: {Serial: uint64(id) * 10, NotAfter: start.Add(time.Hour)}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Admit(forged, start); !isError(err, want) {
		t.Fatalf("the lie is refused with %v, want %v", err, want)
	}
}

// TestMaliciousRules is M08 and M09 on every path by which rules come.
func TestMaliciousRules(t *testing.T) {
	type lie struct {
		name string
		lie  func(n *network) []byte
		code health.Code
	}
	for _, l := range []lie{
		{"M08 lower epoch", func(n *network) []byte { return n.rules(selfID, 4, n.signer) }, health.PolicyRollback},
		{"M09 signer without the role", func(n *network) []byte {
			good := bytes.Clone(n.rules(selfID, 6, n.signer))
			key := n.deviceSigner.Public()
			copy(good[3:], key[:]) // after the array's and the signer's headers
			return good
		}, health.RulesRefused},
		{"made for another device", func(n *network) []byte { return n.rules(victim, 6, n.signer) }, health.RulesRefused},
		{"none", func(*network) []byte { return []byte{} }, health.RulesRefused},
	} {
		t.Run(l.name, func(t *testing.T) {
			n := newNetwork(t, 1)
			honest := n.fullMap(1, 5, bystander, victim)
			lying := n.fullMap(2, 5, bystander, victim)
			lying.Rules = l.lie(n)

			full := known(t, n)
			full.receive(lying)
			checkRulesKept(t, full, l.code)

			if len(lying.Rules) > 0 { // a delta cannot say "no rules"
				delta := known(t, n)
				delta.receive(diff(lying, honest))
				checkRulesKept(t, delta, l.code)
				// The refused rules are not taken by the next delta either.
				later := n.fullMap(3, 5, bystander)
				later.Rules = lying.Rules
				delta.receive(diff(later, lying))
				checkRulesKept(t, delta, l.code)
				// What was saved is what was in force.
				cfg := n.config()
				cfg.Saved = delta.saved
				again := newNode(t, cfg, start)
				if again.view.Rules == nil || again.view.Rules.Set().Epoch != 5 {
					t.Errorf("after a restart the rules are %v", again.view.Rules)
				}
			}

			cfg := n.config()
			cfg.Saved = known(t, n).saved
			cfg.Saved.Map = wire.EncodeServer(lying)
			boot := newNode(t, cfg, start)
			if boot.view.Rules != nil {
				t.Error("rules that do not verify are in force from the cache")
			}
			if !boot.hasFact(l.code) {
				t.Errorf("no fact %s at boot", l.code)
			}
		})
	}
}

func checkRulesKept(t *testing.T, c *node, code health.Code) {
	t.Helper()
	if c.view.Rules == nil || c.view.Rules.Set().Epoch != 5 {
		t.Errorf("rules %v: want those of epoch 5 kept", c.view.Rules)
	}
	if !c.hasFact(code) {
		t.Errorf("no fact %s: %v", code, c.m.Snapshot().Facts)
	}
}

// TestMaliciousSelf: a map without a valid certificate of this device changes
// nothing and ends the connection.
func TestMaliciousSelf(t *testing.T) {
	n := newNetwork(t, 1)
	stolen := n.certificate(selfID, 20)
	stolen.NodeKey = n.key(77).Public()
	for name, self := range map[string][]byte{
		"none":             {},
		"of another key":   n.sign(stolen),
		"of another node":  n.sign(n.certificate(victim, 30)),
		"unknown signer":   n.signWith(n.certificate(selfID, 20), n.rogue, nil),
		"an older one":     n.sign(n.certificate(selfID, 9)),
		"another address":  swap(n, selfID, func(c *authority.Certificate) { c.Addresses = []netip.Addr{netip.MustParseAddr("100.64.9.9")} }),
		"outside the nets": n.signWith(outside(n), n.signer, func(g *authority.Genesis) { g.Prefix4 = netip.MustParsePrefix("10.0.0.0/8") }),
	} {
		t.Run(name, func(t *testing.T) {
			lying := n.fullMap(2, 6, added)
			lying.Self = self
			for path, send := range map[string]func(c *node){
				"full": func(c *node) { c.receive(lying) },
				"delta": func(c *node) {
					if len(self) > 0 {
						c.receive(diff(lying, n.fullMap(1, 5, bystander, victim)))
					}
				},
			} {
				c := known(t, n)
				send(c)
				if got := c.peers(); !slices.Equal(got, []ident.NodeID{bystander, victim}) || c.view.Rules.Set().Epoch != 5 {
					t.Errorf("%s: peers %v, epoch %d: want nothing changed", path, got, c.view.Rules.Set().Epoch)
				}
				if path == "delta" && len(self) == 0 {
					continue
				}
				if s := c.m.Snapshot().State; s != control.Backoff || !c.hasFact(health.SelfRefused) {
					t.Errorf("%s: state %v, facts %v", path, s, c.m.Snapshot().Facts)
				}
			}
		})
	}
}

func outside(n *network) *authority.Certificate {
	c := n.certificate(selfID, 20)
	c.Addresses = []netip.Addr{netip.MustParseAddr("10.1.1.1")}
	return c
}
