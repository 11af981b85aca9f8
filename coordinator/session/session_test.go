package session

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/wire"
)

var begin = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// source is a view that tests write to.
type source struct {
	m      wire.Map
	tokens int
	err    error
}

func newSource() *source {
	return &source{m: wire.Map{Self: []byte("self"), Rules: []byte("rules"), Peers: map[ident.NodeID]wire.Peer{
		2: {Certificate: []byte("two")}, 3: {Certificate: []byte("three")},
	}}}
}

func (s *source) Map(ident.NodeID) (*wire.Map, error) {
	if s.err != nil {
		return nil, s.err
	}
	m := s.m
	m.Peers = maps.Clone(s.m.Peers)
	return &m, nil
}

func (s *source) Peer(id ident.NodeID) (wire.Peer, bool) {
	p, ok := s.m.Peers[id]
	return p, ok
}

func (s *source) RelayToken(_ ident.NodeID, now time.Time) ([]byte, time.Time, error) {
	s.tokens++
	return fmt.Append(nil, "token", s.tokens), now.Add(4 * time.Minute), s.err
}

// said returns everything that the session has for the node.
func said(t *testing.T, s *Session) []wire.ServerMessage {
	t.Helper()
	var out []wire.ServerMessage
	for f, ok := s.NextFrame(); ok; f, ok = s.NextFrame() {
		m, err := wire.DecodeServer(f)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

// refusal returns the code with which the session ended, after nothing else.
func refusal(t *testing.T, s *Session) wire.Code {
	t.Helper()
	all := said(t, s)
	if len(all) != 1 || !s.Closing() {
		t.Fatalf("it says %v, closing: %v", all, s.Closing())
	}
	e, ok := all[0].(*wire.Error)
	if !ok {
		t.Fatalf("it says %v", all)
	}
	return e.Code
}

func hear(s *Session, now time.Time, m wire.ClientMessage) { s.HandleFrame(wire.EncodeClient(m), now) }

func wanted(t *testing.T, s *Session) Request {
	t.Helper()
	r, ok := s.NextRequest()
	if !ok {
		t.Fatalf("it wants nothing; says %v", said(t, s))
	}
	return r
}

var hello = wire.Hello{Version: wire.Newest, Host: wire.HostInfo{OS: "linux"}}

// listening returns a session whose node listens, and what that holds.
func listening(t *testing.T, src *source) (*Session, *wire.Map) {
	t.Helper()
	s := New(Config{Node: 1}, begin)
	hear(s, begin, hello)
	hear(s, begin, wire.MapRequest{NodeKey: ident.NodeKey{9}})
	wanted(t, s)
	if err := s.Begin(src, begin); err != nil {
		t.Fatal(err)
	}
	return s, said(t, s)[1].(*wire.Map)
}

func TestRegistrationThenStream(t *testing.T) {
	s := New(Config{Overlay: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}}, begin)
	hear(s, begin, hello)
	welcome := said(t, s)[0].(wire.Welcome)
	if welcome.Registered || welcome.Version != wire.Newest || !welcome.Time.Equal(begin) {
		t.Errorf("%+v", welcome)
	}
	hear(s, begin, wire.Register{AuthKey: "k", NodeKey: ident.NodeKey{9}, Hostname: "h"})
	if r := wanted(t, s).(Register); r.AuthKey != "k" || r.Host.OS != "linux" {
		t.Errorf("%+v", r)
	}
	s.Registered(7, "h")
	if got := said(t, s); !reflect.DeepEqual(got, []wire.ServerMessage{wire.Registered{Node: 7, Name: "h"}}) || s.Node() != 7 {
		t.Errorf("%v", got)
	}
	hear(s, begin, wire.MapRequest{NodeKey: ident.NodeKey{9}, Endpoints: []netip.AddrPort{
		netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("100.64.0.1:1"),
	}})
	r := wanted(t, s).(Stream)
	if r.NodeKey != (ident.NodeKey{9}) || !slices.Equal(r.Endpoints, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}) {
		t.Errorf("%+v: an endpoint inside the overlay must not pass", r)
	}
	if s.Streaming() {
		t.Error("streams before it was answered")
	}
	src := newSource()
	if err := s.Begin(src, begin); err != nil {
		t.Fatal(err)
	}
	m := said(t, s)[0].(*wire.Map)
	if m.Sequence != 1 || len(m.Peers) != 2 || string(m.RelayToken) != "token1" || !s.Streaming() {
		t.Errorf("%+v", m)
	}
}

// TestOlderNode gives a node of Version1 nothing that it does not know: its
// hashes would be others.
func TestOlderNode(t *testing.T) {
	src := newSource()
	src.m.Settings.Relays = []wire.Relay{{Name: "default", URL: "ws://:80/", Region: "eu", STUN: ":1"}}
	home := func(id ident.NodeID, relay string) {
		src.m.Peers[id] = wire.Peer{Certificate: src.m.Peers[id].Certificate, State: wire.PeerState{Online: true, HomeRelay: relay}}
	}
	home(2, "default")
	s := New(Config{Node: 1}, begin)
	hear(s, begin, wire.Hello{Version: wire.Version1})
	hear(s, begin, wire.MapRequest{NodeKey: ident.NodeKey{9}})
	wanted(t, s)
	if err := s.Begin(src, begin); err != nil {
		t.Fatal(err)
	}
	all := said(t, s)
	if w := all[0].(wire.Welcome); w.Version != wire.Version1 {
		t.Errorf("it answers with version %d", w.Version)
	}
	held := all[1].(*wire.Map)
	if held.Settings.Relays[0] != (wire.Relay{Name: "default", URL: "ws://:80/"}) || held.Peers[2].State.HomeRelay != "" {
		t.Errorf("it is told %+v", held)
	}
	flush := func() []wire.ServerMessage {
		if err := s.Flush(src, begin); err != nil {
			t.Fatal(err)
		}
		return said(t, s)
	}
	home(2, "other")
	s.Touch(2)
	if all := flush(); len(all) > 0 {
		t.Errorf("a relay that it does not know of is told: %+v", all)
	}
	delete(src.m.Peers, 3)
	s.Touch(0)
	all = flush()
	if len(all) != 1 {
		t.Fatalf("it says %v", all)
	}
	if next, err := held.Apply(all[0].(*wire.Delta)); err != nil || next.Peers[2].State.HomeRelay != "" || len(next.Peers) != 1 {
		t.Errorf("%+v, %v", next, err)
	}
}

// TestHomeRelay passes a node's home on, and that of its peers to it.
func TestHomeRelay(t *testing.T) {
	src := newSource()
	s, held := listening(t, src)
	hear(s, begin, wire.Update{HomeRelay: "fra-1"})
	if u := wanted(t, s).(Update); u.HomeRelay != "fra-1" {
		t.Errorf("%+v", u)
	}
	src.m.Peers[2] = wire.Peer{Certificate: []byte("two"), State: wire.PeerState{HomeRelay: "ams-1"}}
	s.Touch(2)
	if err := s.Flush(src, begin); err != nil {
		t.Fatal(err)
	}
	all := said(t, s)
	if len(all) != 1 {
		t.Fatalf("it says %v", all)
	}
	if next, err := held.Apply(all[0].(*wire.Delta)); err != nil || next.Peers[2].State.HomeRelay != "ams-1" {
		t.Errorf("%+v, %v", next, err)
	}
}

func TestRefusals(t *testing.T) {
	old := hello
	old.Version = 0
	for _, c := range []struct {
		name string
		node ident.NodeID
		say  []wire.ClientMessage
		want wire.Code
	}{
		{"no hello", 1, []wire.ClientMessage{wire.MapRequest{}}, wire.CodeMalformed},
		{"two hellos", 1, []wire.ClientMessage{hello, hello}, wire.CodeMalformed},
		{"an old version", 1, []wire.ClientMessage{old}, wire.CodeVersion},
		{"a map for a stranger", 0, []wire.ClientMessage{hello, wire.MapRequest{}}, wire.CodeNotRegistered},
		{"a stranger's logout", 0, []wire.ClientMessage{hello, wire.Logout{}}, wire.CodeNotRegistered},
		{"an update before the map", 1, []wire.ClientMessage{hello, wire.Update{}}, wire.CodeMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := New(Config{Node: c.node}, begin)
			for i, m := range c.say {
				if i == len(c.say)-1 {
					said(t, s)
				}
				hear(s, begin, m)
			}
			if got := refusal(t, s); got != c.want {
				t.Errorf("code %d, want %d", got, c.want)
			}
			if r, ok := s.NextRequest(); ok {
				t.Errorf("it still wants %+v", r)
			}
			hear(s, begin, hello)
			if len(said(t, s)) > 0 {
				t.Error("it speaks after its end")
			}
		})
	}
	s := New(Config{}, begin)
	s.HandleFrame([]byte{0xff, 0xff}, begin)
	if got := refusal(t, s); got != wire.CodeMalformed {
		t.Errorf("bytes that are no message: code %d", got)
	}
}

// TestRegisterComesOnce repeats Register, each of which costs the coordinator a
// commit, an audit entry and a certificate, before it was answered and after.
func TestRegisterComesOnce(t *testing.T) {
	for _, node := range []ident.NodeID{0, 7} { // 7: a member that takes another identity
		for _, answered := range []bool{false, true} {
			s := New(Config{Node: node}, begin)
			hear(s, begin, hello)
			said(t, s)
			hear(s, begin, wire.Register{AuthKey: "x"})
			if _, ok := wanted(t, s).(Register); !ok {
				t.Fatal("the first is not passed on")
			}
			if answered {
				s.Registered(7, "a")
				said(t, s)
			}
			hear(s, begin, wire.Register{AuthKey: "x"})
			if r, ok := s.NextRequest(); ok {
				t.Errorf("node %v, answered %v: the second is passed on: %+v", node, answered, r)
			}
			if got := refusal(t, s); got != wire.CodeMalformed {
				t.Errorf("node %v, answered %v: code %v", node, answered, got)
			}
		}
	}
}

// TestNodeThatReadsNothingCostsOneMap asks for everything anew, again and
// again, and takes none of it; when it does, it has what there is then.
func TestNodeThatReadsNothingCostsOneMap(t *testing.T) {
	src := newSource()
	s, _ := listening(t, src)
	src.m.Self = make([]byte, 1<<20)
	now := begin
	for i := range 15 {
		now = now.Add(mapInterval)
		src.m.Self[0] = byte(i)
		hear(s, now, wire.MapRequest{})
		wanted(t, s)
		if err := s.Begin(src, now); err != nil {
			t.Fatal(err)
		}
		if err := s.Flush(src, now); err != nil {
			t.Fatal(err)
		}
	}
	if got := said(t, s); len(got) != 1 {
		t.Fatalf("%d messages wait", len(got))
	}
	if err := s.Flush(src, now); err != nil {
		t.Fatal(err)
	}
	got := said(t, s)
	if len(got) != 1 {
		t.Fatalf("once it reads it is told %v", got)
	}
	if m, ok := got[0].(*wire.Map); !ok || m.Self[0] != 14 {
		t.Errorf("once it reads it is told %T", got[0])
	}
	if err := s.Flush(src, now); err != nil || len(said(t, s)) != 0 {
		t.Errorf("it is told again: %v", err)
	}
}

func TestRegisterWhileStreamingIsRefused(t *testing.T) {
	s, _ := listening(t, newSource())
	hear(s, begin, wire.Register{})
	if got := refusal(t, s); got != wire.CodeMalformed {
		t.Errorf("code %d", got)
	}
}

func TestSetupTakesNoLongerThanAllowed(t *testing.T) {
	for _, say := range [][]wire.ClientMessage{nil, {hello}} {
		s := New(Config{}, begin)
		for _, m := range say {
			hear(s, begin, m)
		}
		said(t, s)
		at, ok := s.NextTimeout()
		if !ok || at != begin.Add(SetupTimeout) {
			t.Fatalf("due at %v", at)
		}
		s.HandleTimeout(at.Add(-time.Millisecond))
		if s.Closing() {
			t.Fatal("ends too early")
		}
		s.HandleTimeout(at)
		if got := refusal(t, s); got != wire.CodeUnavailable {
			t.Errorf("code %d", got)
		}
	}
}

// TestDeadNodeIsFound steps a silent node through its timeouts, once step by
// step and once with a jump.
func TestDeadNodeIsFound(t *testing.T) {
	s, _ := listening(t, newSource())
	pings := 0
	for !s.Closing() {
		at, ok := s.NextTimeout()
		if !ok || at.Sub(begin) > DeadAfter {
			t.Fatalf("due at %v", at.Sub(begin))
		}
		s.HandleTimeout(at)
		for _, m := range said(t, s) {
			if _, ok := m.(wire.Ping); ok {
				pings++
			}
		}
	}
	if pings != 2 {
		t.Errorf("%d pings before it counted as gone", pings)
	}
	s, _ = listening(t, newSource())
	s.HandleTimeout(begin.Add(time.Hour))
	if got := refusal(t, s); got != wire.CodeUnavailable {
		t.Errorf("code %d", got)
	}
}

func TestPongKeepsANodeAlive(t *testing.T) {
	s, _ := listening(t, newSource())
	src := newSource()
	for now := begin; now.Before(begin.Add(10 * time.Minute)); {
		at, _ := s.NextTimeout()
		if at.Before(now) {
			t.Fatalf("due at %v, it is %v", at, now)
		}
		now = at
		s.HandleTimeout(now)
		if err := s.Flush(src, now); err != nil {
			t.Fatal(err)
		}
		for _, m := range said(t, s) {
			if p, ok := m.(wire.Ping); ok {
				hear(s, now, wire.Pong(p))
			}
		}
		if s.Closing() {
			t.Fatal("ends though it answers")
		}
	}
}

func TestSlowNodeIsSentOneDelta(t *testing.T) {
	src := newSource()
	s, held := listening(t, src)
	s.send(wire.Ping{}) // still being written
	for i := range 100 {
		src.m.Peers[2] = wire.Peer{Certificate: []byte("two"), State: wire.PeerState{OS: fmt.Sprint(i)}}
		s.Touch(2)
		if err := s.Flush(src, begin); err != nil {
			t.Fatal(err)
		}
	}
	if all := said(t, s); len(all) != 1 {
		t.Fatalf("%d messages pile up", len(all))
	}
	if err := s.Flush(src, begin); err != nil {
		t.Fatal(err)
	}
	all := said(t, s)
	if len(all) != 1 {
		t.Fatalf("%d messages for what changed", len(all))
	}
	next, err := held.Apply(all[0].(*wire.Delta))
	if err != nil || next.Peers[2].State.OS != "99" {
		t.Errorf("%+v, %v", next, err)
	}
	if err := s.Flush(src, begin); err != nil || len(said(t, s)) > 0 {
		t.Errorf("it says more: %v", err)
	}
}

func TestATouchedPeerThatTheNodeCannotSeeStaysHidden(t *testing.T) {
	src := newSource()
	s, _ := listening(t, src)
	src.m.Peers[8] = wire.Peer{Certificate: []byte("eight")}
	s.Touch(8)
	if err := s.Flush(src, begin); err != nil || len(said(t, s)) > 0 {
		t.Errorf("told of a peer outside its view: %v", err)
	}
}

func TestTokenIsRenewed(t *testing.T) {
	src := newSource()
	s, held := listening(t, src)
	due := begin.Add(4 * time.Minute)
	for now := begin; now.Before(due); now = now.Add(10 * time.Second) {
		hear(s, now, wire.Pong{})
		s.HandleTimeout(now)
		s.Flush(src, now)
	}
	if src.tokens != 1 {
		t.Fatalf("%d tokens before the time", src.tokens)
	}
	said(t, s)
	hear(s, due, wire.Pong{})
	s.Flush(src, due)
	all := said(t, s)
	if len(all) != 1 {
		t.Fatalf("%v", all)
	}
	next, err := held.Apply(all[0].(*wire.Delta))
	if err != nil || string(next.RelayToken) != "token2" {
		t.Errorf("%+v, %v", next, err)
	}
	src.m.Self = []byte("another certificate")
	s.Touch(0)
	s.Flush(src, due)
	if next, err = next.Apply(said(t, s)[0].(*wire.Delta)); err != nil || string(next.RelayToken) != "token3" {
		t.Errorf("token after a new certificate: %+v, %v", next, err)
	}
	src.m.Rules = []byte("other rules")
	s.Touch(0)
	s.Flush(src, due)
	if d := said(t, s)[0].(*wire.Delta); d.RelayToken != nil {
		t.Error("a token that nobody needs")
	}
}

func TestSameMapIsNotSentAgain(t *testing.T) {
	src := newSource()
	_, held := listening(t, src)
	for _, c := range []struct {
		name string
		have wire.MapRequest
		full bool
	}{
		{"the same", wire.MapRequest{HaveSequence: 41, HaveHash: held.Hash()}, false},
		{"another", wire.MapRequest{HaveSequence: 41, HaveHash: wire.Hash{1}}, true},
		{"none", wire.MapRequest{HaveHash: held.Hash()}, true},
		{"a sequence that overflows", wire.MapRequest{HaveSequence: 1<<64 - 1, HaveHash: held.Hash()}, true},
	} {
		s := New(Config{Node: 1}, begin)
		hear(s, begin, hello)
		hear(s, begin, c.have)
		wanted(t, s)
		if err := s.Begin(src, begin); err != nil {
			t.Fatal(err)
		}
		switch m := said(t, s)[1].(type) {
		case *wire.Map:
			if !c.full || m.Sequence == 0 {
				t.Errorf("%s: a map %d", c.name, m.Sequence)
			}
		case *wire.Delta:
			mine := *held
			mine.Sequence = 41
			next, err := mine.Apply(m)
			if c.full || err != nil || next.Sequence != 42 {
				t.Errorf("%s: a delta %+v, %v", c.name, m, err)
			}
		}
	}
}

// TestResync asks for everything anew on the same connection.
func TestResync(t *testing.T) {
	src := newSource()
	s, held := listening(t, src)
	hear(s, begin, wire.MapRequest{NodeKey: ident.NodeKey{9}})
	wanted(t, s)
	if err := s.Begin(src, begin); err != nil {
		t.Fatal(err)
	}
	m := said(t, s)[0].(*wire.Map)
	if m.Sequence <= held.Sequence || m.Hash() != held.Hash() {
		t.Errorf("sequence %d after %d", m.Sequence, held.Sequence)
	}
	for range 20 {
		hear(s, begin, wire.MapRequest{NodeKey: ident.NodeKey{9}})
		for _, ok := s.NextRequest(); ok; _, ok = s.NextRequest() {
		}
	}
	if got := refusal(t, s); got != wire.CodeUnavailable {
		t.Errorf("20 map requests at once: code %d", got)
	}
}

func TestUpdatesAreJoined(t *testing.T) {
	s, _ := listening(t, newSource())
	at := func(i int) []netip.AddrPort {
		return []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(i+1))}
	}
	passed := 0
	var last []netip.AddrPort
	var now time.Time
	for i := range 1000 {
		now = begin.Add(time.Duration(i) * time.Millisecond)
		hear(s, now, wire.Update{Endpoints: at(i)})
		for r, ok := s.NextRequest(); ok; r, ok = s.NextRequest() {
			passed, last = passed+1, r.(Update).Endpoints
		}
	}
	due, _ := s.NextTimeout()
	s.HandleTimeout(due)
	for r, ok := s.NextRequest(); ok; r, ok = s.NextRequest() {
		passed, last = passed+1, r.(Update).Endpoints
	}
	if passed > 6 || !slices.Equal(last, at(999)) {
		t.Errorf("%d of 1000 in a second were passed on, the last %v", passed, last)
	}
}

func TestSourceWithoutAViewEndsTheSession(t *testing.T) {
	src := newSource()
	s, _ := listening(t, src)
	src.err = errors.New("no certificate")
	s.Touch(0)
	if err := s.Flush(src, begin); !errors.Is(err, src.err) {
		t.Error(err)
	}
	if got := refusal(t, s); got != wire.CodeUnavailable {
		t.Errorf("code %d", got)
	}
}

// FuzzSession feeds a session any sequence of messages and times: it never
// panics, never says anything after its end, and never asks for two things of
// a node that is not registered.
func FuzzSession(f *testing.F) {
	f.Add(uint64(1), []byte{0, 2, 3})
	f.Add(uint64(0), []byte{0, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Fuzz(func(t *testing.T, seed uint64, steps []byte) {
		r := rand.New(rand.NewPCG(seed, 0))
		s := New(Config{Node: ident.NodeID(seed % 2)}, begin)
		src := newSource()
		now := begin
		messages := []wire.ClientMessage{
			hello, wire.Register{NodeKey: ident.NodeKey{1}}, wire.MapRequest{HaveSequence: seed}, wire.Update{}, wire.Pong{}, wire.Logout{},
		}
		for _, step := range steps {
			now = now.Add(time.Duration(r.IntN(int(30 * time.Second))))
			closed := s.Closing()
			switch step %= 10; step {
			case 6:
				s.HandleTimeout(now)
			case 7:
				s.Touch(ident.NodeID(r.IntN(4)))
			case 8:
				s.Flush(src, now)
			case 9:
				s.HandleFrame([]byte{byte(seed), 1, 2}, now)
			default:
				hear(s, now, messages[step])
			}
			for q, ok := s.NextRequest(); ok; q, ok = s.NextRequest() {
				if s.Node() == 0 {
					if _, register := q.(Register); !register {
						t.Fatalf("a stranger gets %T through", q)
					}
					s.Registered(1, "h")
				}
				if _, stream := q.(Stream); stream {
					s.Begin(src, now)
				}
			}
			if all := said(t, s); closed && len(all) > 0 {
				t.Fatalf("it says %v after its end", all)
			}
		}
	})
}

// TestGoneIsToldBeforeTheMap takes a peer away while the view changes as a whole:
// the node is told of the first without a map being made.
func TestGoneIsToldBeforeTheMap(t *testing.T) {
	src := newSource()
	s, held := listening(t, src)
	delete(src.m.Peers, 2)
	src.m.Rules = []byte("others")
	s.Gone(2)
	s.Gone(7) // which it never had
	s.Touch(0)
	src.err = errors.New("no map now")
	s.FlushGone(begin)
	all := said(t, s)
	if len(all) != 1 {
		t.Fatalf("it says %v", all)
	}
	d := all[0].(*wire.Delta)
	if !slices.Equal(d.Removed, []ident.NodeID{2}) || d.Rules != nil || len(d.Upserts) > 0 {
		t.Errorf("%+v", d)
	}
	held, err := held.Apply(d)
	if err != nil {
		t.Fatal(err)
	}
	s.FlushGone(begin)
	if all := said(t, s); len(all) > 0 {
		t.Errorf("it says %v again", all)
	}
	src.err = nil
	if err := s.Flush(src, begin); err != nil {
		t.Fatal(err)
	}
	if held, err = held.Apply(said(t, s)[0].(*wire.Delta)); err != nil || string(held.Rules) != "others" || len(held.Peers) != 1 {
		t.Errorf("%+v, %v", held, err)
	}
	// While something is on its way it waits, and then Flush tells of it first.
	s.Touch(0)
	src.m.Rules = []byte("more")
	if err := s.Flush(src, begin); err != nil {
		t.Fatal(err)
	}
	s.Gone(3)
	s.FlushGone(begin)
	all = said(t, s)
	if len(all) != 1 || len(all[0].(*wire.Delta).Removed) > 0 {
		t.Fatalf("it says %v", all)
	}
	if err := s.Flush(src, begin); err != nil {
		t.Fatal(err)
	}
	if all = said(t, s); len(all) != 1 || !slices.Equal(all[0].(*wire.Delta).Removed, []ident.NodeID{3}) {
		t.Errorf("it says %v", all)
	}
}
