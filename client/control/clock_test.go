package control_test

import (
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

// TestEndedStaysEnded: what ended while the node ran is not on disk any more,
// so that a clock set back before a restart does not revive it.
func TestEndedStaysEnded(t *testing.T) {
	n := newNetwork(t, 1)
	c := newNode(t, n.config(), start)
	c.stream()
	m := n.fullMap(1, 5, bystander, victim)
	short := n.certificate(victim, 30)
	short.NotAfter = start.Add(time.Hour)
	m.Peers[victim] = wire.Peer{Certificate: n.sign(short)}
	c.receive(m)
	c.m.HandleClosed(nil, c.now)
	c.drain()
	restarted := func() *node {
		cfg := n.config()
		cfg.Saved = c.saved
		return newNode(t, cfg, start.Add(time.Minute))
	}
	if got := restarted().peers(); !slices.Equal(got, []ident.NodeID{bystander, victim}) {
		t.Fatalf("before anything ended: peers %v", got)
	}
	c.m.HandleTimeout(start.Add(time.Hour))
	c.drain()
	if got := restarted().peers(); !slices.Equal(got, []ident.NodeID{bystander}) {
		t.Errorf("after one certificate ended: peers %v", got)
	}
	c.m.HandleTimeout(start.Add(30 * 24 * time.Hour))
	c.drain()
	if again := restarted(); again.view != nil {
		t.Errorf("after the own certificate ended: view %+v", again.view)
	}
}

// TestCoordinatorTimeIsKept: a restart with a clock before the coordinator's
// last time does not bring back what had ended by then; but no coordinator's
// clock can lock a device out for longer than its certificate lasts.
func TestCoordinatorTimeIsKept(t *testing.T) {
	n := newNetwork(t, 1)
	short := n.certificate(victim, 30)
	short.NotAfter = start.Add(time.Hour)
	m := n.fullMap(1, 5, bystander, victim)
	m.Peers[victim] = wire.Peer{Certificate: n.sign(short)}
	meet := func(theirs time.Time) control.Saved {
		c := newNode(t, n.config(), start)
		c.m.HandleStart(c.now)
		c.m.HandleConnected(wire.Proof{}, c.now)
		c.receive(wire.Welcome{Version: wire.Newest, Time: theirs, Registered: true})
		c.receive(m)
		return c.saved
	}
	cfg := n.config()
	cfg.Saved = meet(start.Add(2 * time.Hour))
	if !cfg.Saved.Time.Equal(start.Add(2 * time.Hour)) {
		t.Errorf("saved the time %v", cfg.Saved.Time)
	}
	if got := newNode(t, cfg, start).peers(); !slices.Equal(got, []ident.NodeID{bystander}) {
		t.Errorf("peers %v with the clock set back", got)
	}
	if saved := meet(start.AddDate(50, 0, 0)); !saved.Time.Equal(n.certificate(selfID, 0).NotAfter) {
		t.Errorf("of a coordinator that is 50 years ahead the time %v was saved", saved.Time)
	}
}

// TestRefusedForTheClockComesBack: a peer whose certificate had not begun by the
// device's clock is admitted when it begins, and a node that connects again is
// told everything while something is refused.
func TestRefusedForTheClockComesBack(t *testing.T) {
	n := newNetwork(t, 9)
	m := n.fullMap(1, 1, 2, 3)
	late := n.certificate(3, 500)
	late.NotBefore = start.Add(time.Hour)
	m.Peers[3] = wire.Peer{Certificate: n.sign(late)}
	refused := func() *node {
		c := newNode(t, n.config(), start)
		c.stream()
		c.receive(m)
		if got := c.peers(); !slices.Equal(got, []ident.NodeID{2}) || !c.hasFact(health.PeerRefused) {
			t.Fatalf("peers %v", got)
		}
		c.m.HandleClosed(nil, c.now)
		c.drain()
		return c
	}
	again := func(c *node) wire.MapRequest {
		c.sent = nil
		c.m.HandleTimeout(c.now)
		c.m.HandleConnected(wire.Proof{}, c.now)
		c.receive(wire.Welcome{Version: wire.Newest, Time: c.now, Registered: true})
		return c.sent[len(c.sent)-1].(wire.MapRequest)
	}

	c := refused()
	c.now = start.Add(10 * time.Minute)
	if request := again(c); request.HaveSequence != 0 || request.HaveHash == m.Hash() {
		t.Errorf("asked with %+v though a peer is refused", request)
	}

	c = refused()
	c.m.HandleStop(c.now)
	c.drain()
	woken := time.Time{}
	for at, ok := c.m.NextTimeout(); ok && len(c.view.Peers) < 2; at, ok = c.m.NextTimeout() {
		woken = at
		c.m.HandleTimeout(at)
		c.drain()
	}
	if got := c.peers(); !slices.Equal(got, []ident.NodeID{2, 3}) || c.hasFact(health.PeerRefused) {
		t.Errorf("peers %v, facts %v", got, c.m.Snapshot().Facts)
	}
	if woken.After(late.NotBefore) || woken.Before(late.NotBefore.Add(-10*time.Minute)) {
		t.Errorf("admitted at %v, its certificate begins at %v", woken, late.NotBefore)
	}
	if !savedPeer(t, c, 3) {
		t.Error("it is not on disk")
	}
	c.now = woken
	c.m.HandleStart(c.now)
	c.drain()
	if request := again(c); request.HaveHash != m.Hash() {
		t.Errorf("asked with %+v though all is believed", request)
	}
}

// TestUnreadableRulesDenyEverything: what a newer coordinator signed and this
// program cannot read may take access away, so nothing is allowed, and a
// restart does not bring the older rules back.
func TestUnreadableRulesDenyEverything(t *testing.T) {
	n := newNetwork(t, 1)
	tooLong := ruleset.RuleID(make([]byte, ruleset.MaxRuleIDLength+1))
	unreadable, err := authority.IssueRules(n.genesis, selfID, 6, &ruleset.RuleSet{Epoch: 6, In: []ruleset.Rule{{ID: tooLong}}}, n.signer)
	if err != nil {
		t.Fatal(err)
	}
	honest := n.fullMap(1, 5, bystander)
	next := n.fullMap(2, 6, bystander)
	next.Rules = unreadable
	for name, message := range map[string]wire.ServerMessage{"map": next, "delta": diff(next, honest)} {
		c := newNode(t, n.config(), start)
		c.stream()
		c.receive(honest)
		if c.view.Rules == nil {
			t.Fatal("the first rules are not in force")
		}
		c.receive(message)
		facts := c.m.Snapshot().Facts
		alarm := slices.ContainsFunc(facts, func(f health.Fact) bool {
			return f.Code == health.RulesRefused && f.Severity == health.Alarm
		})
		if c.view.Rules != nil || !alarm || len(c.view.Peers) != 1 {
			t.Errorf("%s: rules %v, facts %v", name, c.view.Rules, facts)
		}
		cfg := n.config()
		cfg.Saved = c.saved
		cfg.Saved.Map = wire.EncodeServer(honest)
		if again := newNode(t, cfg, start); again.view.Rules != nil {
			t.Errorf("%s: after a restart the older rules are in force", name)
		}
	}
}

// TestMemoryOutlivesTheMap: with the genesis record lost as well, what was seen
// is not forgotten.
func TestMemoryOutlivesTheMap(t *testing.T) {
	n := newNetwork(t, 1)
	saved := known(t, n).saved
	cfg := n.config()
	cfg.Saved = control.Saved{Authority: saved.Authority, Time: saved.Time}
	c := newNode(t, cfg, start)
	c.m.HandleStart(start)
	c.m.HandleGenesis(n.genesis, start)
	c.drain()
	c.m.HandleConnected(wire.Proof{}, start)
	c.receive(wire.Welcome{Version: wire.Newest, Time: start, Registered: true})
	c.receive(n.fullMap(9, 4, bystander))
	if c.view.Rules != nil || !c.hasFact(health.PolicyRollback) {
		t.Errorf("rules of epoch 4 are in force after those of 5")
	}
}
