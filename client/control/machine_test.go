package control_test

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/client/control"
	"github.com/warren-overlay/warren/client/health"
	"github.com/warren-overlay/warren/coordinator/wire"
)

func isError(err, want error) bool { return errors.Is(err, want) }

// TestRevokedEmptiesInTheSameCall: view, disk and state are those of a stranger
// when HandleFrame returns.
func TestRevokedEmptiesInTheSameCall(t *testing.T) {
	n := newNetwork(t, 1)
	c := known(t, n)
	c.receive(&wire.Error{Code: wire.CodeRevoked, Message: "revoked by admin"})
	if c.view.Self != nil || len(c.view.Peers) != 0 || c.view.Rules != nil {
		t.Errorf("view %+v after the revocation", c.view)
	}
	if len(c.saved.Map) != 0 || !c.saved.Revoked {
		t.Error("the map stays on disk, or the revocation does not")
	}
	if c.m.Snapshot().State != control.Revoked || !c.hasFact(health.Revoked) {
		t.Errorf("state %v", c.m.Snapshot().State)
	}
	cfg := n.config()
	cfg.Saved = c.saved
	again := newNode(t, cfg, start)
	again.m.HandleStart(start)
	if s := again.m.Snapshot(); s.State != control.Revoked || again.view != nil {
		t.Errorf("after a restart: state %v, view %v", s.State, again.view)
	}
	if _, wakes := again.m.NextTimeout(); wakes {
		again.drain()
		if at, wakes := again.m.NextTimeout(); wakes {
			t.Errorf("a revoked device wakes at %v", at)
		}
	}
}

// TestBootFromCache: with the coordinator down, the same view as before is
// there before anything is dialled, and says that it is from disk.
func TestBootFromCache(t *testing.T) {
	n := newNetwork(t, 1)
	before := known(t, n)
	cfg := n.config()
	cfg.Saved = before.saved
	c := newNode(t, cfg, start.Add(time.Hour))
	if !slices.Equal(c.peers(), before.peers()) || !c.view.Cached || c.view.Rules.Set().Epoch != 5 {
		t.Errorf("peers %v from the cache, want %v", c.peers(), before.peers())
	}
	c.m.HandleStart(c.now)
	c.m.HandleClosed(errors.New("connection refused"), c.now)
	c.drain()
	if !slices.Equal(c.peers(), before.peers()) || !c.hasFact(health.CoordinatorUnreachable) {
		t.Errorf("after the coordinator did not answer: peers %v", c.peers())
	}
	// When it does, the node asks with what it has.
	c.m.HandleTimeout(c.now.Add(time.Minute))
	c.stream()
	request, ok := c.sent[len(c.sent)-1].(wire.MapRequest)
	if !ok || request.HaveSequence != 1 || request.HaveHash != n.fullMap(1, 5, bystander, victim).Hash() {
		t.Errorf("asked with %+v", c.sent[len(c.sent)-1])
	}
	same := n.fullMap(2, 5, bystander, victim)
	c.receive(diff(same, n.fullMap(1, 5, bystander, victim)))
	if c.view.Cached || c.hasFact(health.CoordinatorUnreachable) {
		t.Error("confirmed, but still called cached or unreachable")
	}
}

func TestCorruptSavedIsNotUsed(t *testing.T) {
	n := newNetwork(t, 1)
	good := known(t, n).saved
	for name, damage := range map[string]func(s *control.Saved){
		"map cut off":         func(s *control.Saved) { s.Map = s.Map[:len(s.Map)/2] },
		"map of another hash": func(s *control.Saved) { s.Map = slices.Concat(s.Map, []byte{0x7a, 0}) },
		"another message":     func(s *control.Saved) { s.Map = wire.EncodeServer(wire.Ping{}) },
		"genesis changed":     func(s *control.Saved) { s.Genesis = slices.Concat(s.Genesis, []byte{0}) },
		"genesis of another":  func(s *control.Saved) { s.Genesis = newNetwork(t, 2).genesis.AppendBinary(nil) },
		"noise":               func(s *control.Saved) { s.Map = []byte("not a map at all") },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := n.config()
			cfg.Saved = good
			damage(&cfg.Saved)
			c := newNode(t, cfg, start)
			if name == "map of another hash" { // an unknown field is no damage
				if c.view == nil {
					t.Error("a map with an unknown field is not used")
				}
				return
			}
			if c.view != nil || !c.hasFact(health.CacheUnusable) {
				t.Errorf("view %v, facts %v", c.view, c.m.Snapshot().Facts)
			}
		})
	}
}

// TestCertificatesEnd: without a coordinator, peers leave when their
// certificates end, and all leave when one's own does.
func TestCertificatesEnd(t *testing.T) {
	n := newNetwork(t, 1)
	c := newNode(t, n.config(), start)
	c.stream()
	m := n.fullMap(1, 5, bystander, victim)
	short := n.certificate(victim, 30)
	short.NotAfter = start.Add(time.Hour)
	m.Peers[victim] = wire.Peer{Certificate: n.sign(short)}
	own := n.certificate(selfID, 11)
	own.NotAfter = start.Add(48 * time.Hour)
	m.Self = n.sign(own)
	c.receive(m)
	c.m.HandleStop(c.now)
	c.drain()

	want := map[time.Duration][]ident.NodeID{
		time.Hour - time.Second:    {bystander, victim},
		time.Hour:                  {bystander},
		48*time.Hour - time.Second: {bystander},
		48 * time.Hour:             nil,
	}
	for _, after := range []time.Duration{time.Hour - time.Second, time.Hour, 48*time.Hour - time.Second, 48 * time.Hour} {
		for at, ok := c.m.NextTimeout(); ok && !at.After(start.Add(after)); at, ok = c.m.NextTimeout() {
			c.m.HandleTimeout(at)
			c.drain()
		}
		if got := c.peers(); !slices.Equal(got, want[after]) {
			t.Errorf("after %v: peers %v, want %v", after, got, want[after])
		}
	}
	if !c.hasFact(health.CertificateExpired) || c.view.Self != nil {
		t.Errorf("facts %v", c.m.Snapshot().Facts)
	}
	// A jump gives the same as each deadline in turn.
	cfg := n.config()
	cfg.Saved = c.saved
	cfg.Saved.Map = wire.EncodeServer(m)
	jump := newNode(t, cfg, start)
	jump.m.HandleTimeout(start.Add(72 * time.Hour))
	jump.drain()
	if len(jump.view.Peers) != 0 || jump.view.Self != nil {
		t.Errorf("after a jump: peers %v", jump.peers())
	}
}

// TestConflictsGoToTheNewerCertificate: two valid certificates with one address
// or key never reach the data plane together.
func TestConflictsGoToTheNewerCertificate(t *testing.T) {
	n := newNetwork(t, 1)
	for name, claim := range map[string]func(){
		"address": func() {},
		"key":     func() { n.keys[victim] = n.key(bystander) },
	} {
		t.Run(name, func(t *testing.T) {
			delete(n.keys, victim)
			claim()
			m := n.fullMap(1, 5, bystander, victim)
			if name == "address" {
				thief := n.certificate(victim, 30)
				thief.Addresses = n.certificate(bystander, 0).Addresses
				m.Peers[victim] = wire.Peer{Certificate: n.sign(thief)}
			}
			c := newNode(t, n.config(), start)
			c.stream()
			c.receive(m)
			if got := c.peers(); !slices.Equal(got, []ident.NodeID{victim}) {
				t.Errorf("peers %v, want the one with the higher serial", got)
			}
		})
	}
	t.Run("own address", func(t *testing.T) {
		m := n.fullMap(1, 5, bystander)
		thief := n.certificate(bystander, 99)
		thief.Addresses = n.certificate(selfID, 0).Addresses
		m.Peers[bystander] = wire.Peer{Certificate: n.sign(thief)}
		c := newNode(t, n.config(), start)
		c.stream()
		c.receive(m)
		if got := c.peers(); len(got) != 0 || !c.hasFact(health.PeerRefused) {
			t.Errorf("peers %v: somebody has this device's address", got)
		}
	})
}

// TestSnapshotReplaces is X-44: who is not in a full map is gone.
func TestSnapshotReplaces(t *testing.T) {
	n := newNetwork(t, 1)
	c := known(t, n)
	c.receive(n.fullMap(2, 5, victim))
	if got := c.peers(); !slices.Equal(got, []ident.NodeID{victim}) {
		t.Errorf("peers %v, want the map's only", got)
	}
}

// TestDeltasEqualFullMaps: after any history of deltas a node believes what a
// fresh node believes of the last full map.
func TestDeltasEqualFullMaps(t *testing.T) {
	n := newNetwork(t, 1)
	c := newNode(t, n.config(), start)
	c.stream()
	last := n.fullMap(1, 1, 2, 3, 4, 5)
	c.receive(last)
	for step := range 200 {
		var ids []ident.NodeID
		for id := ident.NodeID(2); id < 12; id++ {
			if n.rand.Uint64()%2 == 0 {
				ids = append(ids, id)
			}
		}
		next := n.fullMap(last.Sequence+1+n.rand.Uint64()%3, epochAt(step), ids...)
		for _, id := range ids {
			p := next.Peers[id]
			if n.rand.Uint64()%2 == 0 {
				p.Certificate = n.sign(n.certificate(id, uint64(id)*10+uint64(step)))
			}
			p.State.Online = n.rand.Uint64()%2 == 0
			next.Peers[id] = p
		}
		c.receive(diff(next, last))
		fresh := newNode(t, withState(n.config(), c.saved), start)
		fresh.stream()
		fresh.receive(next)
		if !sameView(c.view, fresh.view) {
			t.Fatalf("step %d: deltas give %v, the full map gives %v", step, c.peers(), fresh.peers())
		}
		last = next
	}
	if c.m.Snapshot().Counters.Deltas != 200 {
		t.Errorf("%d deltas were applied", c.m.Snapshot().Counters.Deltas)
	}
}

func sameView(a, b *control.View) bool {
	if a.Sequence != b.Sequence || a.Rules.Set().Epoch != b.Rules.Set().Epoch || len(a.Peers) != len(b.Peers) {
		return false
	}
	for i, p := range a.Peers {
		q := b.Peers[i]
		if p.Member.Node() != q.Member.Node() || p.Member.Serial() != q.Member.Serial() || p.State.Online != q.State.Online {
			return false
		}
	}
	return true
}

func TestEndpointsAreCleaned(t *testing.T) {
	n := newNetwork(t, 1)
	c := known(t, n)
	c.sent = nil
	c.now = start.Add(time.Minute)
	var many []netip.AddrPort
	for _, s := range []string{"0.0.0.0:1", "224.0.0.1:1", "192.0.2.1:0", "[::ffff:192.0.2.1]:5", "192.0.2.1:5", "[fe80::1%eth0]:6"} {
		many = append(many, netip.MustParseAddrPort(s))
	}
	for port := range uint16(100) {
		many = append(many, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), 1000+port))
	}
	c.m.HandleReach(many, "", c.now)
	c.drain() // decodes what was sent, as the coordinator does
	update, ok := c.sent[0].(wire.Update)
	if !ok || len(update.Endpoints) != wire.MaxEndpoints || update.Endpoints[0].String() != "192.0.2.1:5" || update.Endpoints[1].String() != "[fe80::1]:6" {
		t.Errorf("sent %+v", c.sent)
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	r := control.Registration{AuthKey: "wkey-auth-canary", Hostname: "h"}
	for _, text := range []string{r.String(), r.GoString()} {
		if text != "registration of h" {
			t.Errorf("prints %q", text)
		}
	}
}

func epochAt(step int) ruleset.Epoch { return ruleset.Epoch(1 + step/7) }

func withState(cfg control.Config, saved control.Saved) control.Config {
	cfg.Saved.Authority = saved.Authority
	return cfg
}

// TestCandidate gives a device a candidate, another, a forged one and none: it is
// in the view where it verifies, on disk with the map, and never in the place of
// the rules.
func TestCandidate(t *testing.T) {
	n := newNetwork(t, 1)
	c := known(t, n)
	issue := func(node ident.NodeID, epoch ruleset.Epoch, signer ident.SignerPrivate) []byte {
		t.Helper()
		g := *n.genesis
		g.Signers = []authority.Signer{{Key: signer.Public(), Roles: authority.SignRules}}
		signed, err := authority.IssueCandidate(n.genesis, node, &ruleset.RuleSet{Epoch: epoch}, []authority.Labels{{Node: node}}, signer)
		if err != nil {
			if signed, err = authority.IssueCandidate(&g, node, &ruleset.RuleSet{Epoch: epoch}, []authority.Labels{{Node: node}}, signer); err != nil {
				t.Fatal(err)
			}
		}
		return signed
	}
	sequence, held := uint64(1), n.fullMap(1, 5, bystander, victim)
	tell := func(candidate []byte) {
		t.Helper()
		sequence++
		next := n.fullMap(sequence, 5, bystander, victim)
		next.Candidate = candidate
		c.receive(diff(next, held))
		held = next
	}
	look := func(when string, epoch ruleset.Epoch, refused bool) {
		t.Helper()
		got := ruleset.Epoch(0)
		if c.view.Candidate != nil {
			got = c.view.Candidate.Epoch()
		}
		if got != epoch || c.hasFact(health.CandidateRefused) != refused || c.view.Rules.Set().Epoch != 5 || len(c.view.Peers) != 2 {
			t.Errorf("%s: candidate %d, refused %v, rules %d, %d peers; want candidate %d, refused %v",
				when, got, c.hasFact(health.CandidateRefused), c.view.Rules.Set().Epoch, len(c.view.Peers), epoch, refused)
		}
	}
	look("before any", 0, false)
	tell(issue(selfID, 2, n.signer))
	look("the first", 2, false)
	tell(issue(selfID, 9, n.rogue))
	look("one of an unknown signer", 0, true)
	tell(issue(bystander, 3, n.signer))
	look("one for another device", 0, true)
	tell(held.Rules)
	look("rules as a candidate", 0, true)
	tell(issue(selfID, 1, n.signer))
	look("an earlier one", 0, true)
	tell(issue(selfID, 3, n.signer))
	look("a sound one", 3, false)

	cfg := n.config()
	cfg.Saved = c.saved
	again := newNode(t, cfg, c.now)
	if again.view.Candidate == nil || again.view.Candidate.Epoch() != 3 {
		t.Errorf("from the disk: %+v", again.view.Candidate)
	}
	tell(nil)
	look("none any more", 0, false)
	// In the place of the rules it is refused, and those before stay.
	sequence++
	next := n.fullMap(sequence, 5, bystander, victim)
	next.Rules = issue(selfID, 7, n.signer)
	c.receive(diff(next, held))
	if !c.hasFact(health.RulesRefused) || c.view.Rules.Set().Epoch != 5 {
		t.Errorf("a candidate in the place of the rules: epoch %d", c.view.Rules.Set().Epoch)
	}
}
