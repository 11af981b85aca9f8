package relay

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/warren-overlay/warren/acl/ident"
)

// challengeOf returns what the server asked of a client that is played by hand.
func challengeOf(t *testing.T, c *client) challenge {
	t.Helper()
	f, _, err := Next(c.raw[0])
	if err != nil {
		t.Fatal(err)
	}
	ask, err := parseChallenge(f)
	if err != nil {
		t.Fatal(err)
	}
	return ask
}

func answer(t *testing.T, key ident.NodePrivate, ask challenge, relay, binding, token string) hello {
	t.Helper()
	shared, err := key.SharedWith(ident.NodeKey(ask.ephemeral))
	if err != nil {
		t.Fatal(err)
	}
	h := hello{key: key.Public(), token: []byte(token)}
	h.proof = prove(shared[:], relay, []byte(binding), &ask, h.key, h.token)
	return h
}

// TestAdmissionAttacks: what a stranger and an enrolled node can try (S11). In
// every case the one attacked stays connected and nobody is admitted.
func TestAdmissionAttacks(t *testing.T) {
	victim, mallory := nodeKey(1), nodeKey(66)
	for name, c := range map[string]struct {
		attack func(t *testing.T, r *rig, ask challenge) []byte
		reason Reason
	}{
		"another's id with an own proof": {func(t *testing.T, _ *rig, ask challenge) []byte {
			h := answer(t, mallory, ask, "relay-1", "bind", "net1")
			h.key = victim.Public()
			return h.append(nil)
		}, ReasonProof},
		"no proof": {func(_ *testing.T, _ *rig, _ challenge) []byte {
			return (&hello{key: victim.Public(), token: []byte("net1")}).append(nil)
		}, ReasonProof},
		"low-order id": {func(_ *testing.T, _ *rig, ask challenge) []byte {
			h := hello{token: []byte("net1")}
			h.proof = prove(make([]byte, 32), "relay-1", []byte("bind"), &ask, h.key, h.token)
			return h.append(nil)
		}, ReasonProof},
		"answer of another connection": {func(t *testing.T, r *rig, _ challenge) []byte {
			other := r.connect(ident.NodePrivate{}, nil, "bind")
			h := answer(t, victim, challengeOf(t, other), "relay-1", "bind", "net1")
			return h.append(nil)
		}, ReasonProof},
		"answer meant for another relay": {func(t *testing.T, _ *rig, ask challenge) []byte {
			h := answer(t, victim, ask, "relay-of-mallory", "bind", "net1")
			return h.append(nil)
		}, ReasonProof},
		"answer from another channel": {func(t *testing.T, _ *rig, ask challenge) []byte {
			h := answer(t, victim, ask, "relay-1", "other", "net1")
			return h.append(nil)
		}, ReasonProof},
		"challenge made an unbound one on the way": {func(t *testing.T, _ *rig, ask challenge) []byte {
			ask.bound = false
			s, err := NewSession(SessionConfig{Key: victim, Relay: "relay-1", Binding: []byte("bind"), Token: []byte("net1")}, epoch)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.HandleMessage(ask.append(nil), epoch); err != nil {
				t.Fatal(err) // a relay behind a proxy asks so
			}
			m, _ := s.NextTransmit()
			return m
		}, ReasonProof},
		"token changed on the way": {func(t *testing.T, _ *rig, ask challenge) []byte {
			h := answer(t, victim, ask, "relay-1", "bind", "net2")
			h.token = []byte("net1")
			return h.append(nil)
		}, ReasonProof},
		"bad token": {func(t *testing.T, _ *rig, ask challenge) []byte {
			h := answer(t, victim, ask, "relay-1", "bind", "expired")
			return h.append(nil)
		}, ReasonToken},
		"packet before the answer": {func(_ *testing.T, _ *rig, _ challenge) []byte {
			m, _ := AppendSendPacket(nil, victim.Public(), []byte("x"))
			return m
		}, ReasonProtocol},
		"oversize answer": {func(_ *testing.T, _ *rig, _ challenge) []byte {
			return AppendFrame(nil, FrameHello, make([]byte, MaxHelloMessage))
		}, ReasonProtocol},
		"empty message": {func(_ *testing.T, _ *rig, _ challenge) []byte { return nil }, ReasonProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 0)
			v := r.join(1, "net1")
			bad := r.connect(ident.NodePrivate{}, nil, "bind")
			m := c.attack(t, r, challengeOf(t, bad))
			asked := r.admitter.asked
			if err := r.server.HandleMessage(bad.id, m, r.now); err == nil {
				t.Error("no error")
			}
			r.pump()
			if !bad.gone || bad.closed != c.reason {
				t.Errorf("closed %v for %v, want %v", bad.gone, bad.closed, c.reason)
			}
			if c.reason != ReasonToken && r.admitter.asked != asked {
				t.Error("the admitter was asked about a key that was not proved")
			}
			if v.gone || !v.session.Ready() || r.server.Snapshot().Admitted != 1 {
				t.Error("the victim lost its place")
			}
			other := r.join(2, "net1")
			r.send(other, v.key.Public(), "still here")
			if len(v.packets()) != 1 {
				t.Error("the victim's packets do not arrive")
			}
		})
	}
}

// TestRightAnswerByHand: the attacks fail for their one fault, not because the
// hand-made answer is wrong anyway.
func TestRightAnswerByHand(t *testing.T) {
	r := newRig(t, 0)
	c := r.connect(ident.NodePrivate{}, nil, "bind")
	h := answer(t, nodeKey(1), challengeOf(t, c), "relay-1", "bind", "net1")
	if err := r.server.HandleMessage(c.id, h.append(nil), r.now); err != nil {
		t.Fatal(err)
	}
	if r.server.Snapshot().Admitted != 1 {
		t.Error("not admitted")
	}
}

// TestHostileRelay: a relay that says what it should not ends the session, and
// nothing it says before the welcome is taken for a packet.
func TestHostileRelay(t *testing.T) {
	key := nodeKey(1)
	ask, _, err := newChallenge(rand.NewChaCha8([32]byte{5}))
	if err != nil {
		t.Fatal(err)
	}
	welcome := AppendFrame(nil, FrameWelcome)
	packet := AppendFrame(nil, FrameRecv, make([]byte, 40))
	lowOrder := challenge{nonce: ask.nonce}
	for name, messages := range map[string][][]byte{
		"packet first":     {packet},
		"welcome first":    {welcome},
		"second challenge": {ask.append(nil), ask.append(nil)},
		"low-order key":    {lowOrder.append(nil)},
		"empty":            {nil},
		"late challenge":   {ask.append(nil), welcome, ask.append(nil)},
		"send frame":       {ask.append(nil), welcome, AppendFrame(nil, FrameSend, make([]byte, 40))},
	} {
		s, err := NewSession(SessionConfig{Key: key, Relay: "r"}, epoch)
		if err != nil {
			t.Fatal(err)
		}
		var last error
		for _, m := range messages {
			last = s.HandleMessage(m, epoch)
		}
		if !errors.Is(last, ErrFrame) || !s.Failed() {
			t.Errorf("%s: %v, failed %v", name, last, s.Failed())
		}
		for e, ok := s.NextEvent(); ok; e, ok = s.NextEvent() {
			if e.Kind == EventPacket {
				t.Errorf("%s: a packet came through", name)
			}
		}
		if err := s.HandleMessage(welcome, epoch); !errors.Is(err, ErrDead) {
			t.Errorf("%s: afterwards %v", name, err)
		}
	}
}
