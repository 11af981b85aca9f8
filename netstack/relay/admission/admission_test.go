package admission

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/relay"
)

var (
	_ relay.Admitter = (*Admission)(nil)

	start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

const life = 9 * time.Minute

type site struct {
	*acltest.Network
	t *testing.T
	a *Admission
}

func newSite(t *testing.T, watched bool) *site {
	n := acltest.NewNetwork(1, start)
	return &site{n, t, New(Config{Genesis: n.Genesis, Relay: "fra", Watched: watched})}
}

func (s *site) token(key ident.NodeKey, at time.Time, relays ...string) []byte {
	s.t.Helper()
	token, err := authority.IssueRelayToken(s.Genesis, authority.RelayToken{NodeKey: key, NotAfter: at.Add(life), Relays: relays}, s.Signer)
	if err != nil {
		s.t.Fatal(err)
	}
	return token
}

// heard is an answer of the coordinator at a time.
func (s *site) heard(at time.Time, revoked ...ident.NodeKey) []ident.NodeKey {
	s.t.Helper()
	fresh, err := s.a.HandleRevocations(authority.RelayRevocations{Time: at, Keys: revoked}, at)
	if err != nil {
		s.t.Fatal(err)
	}
	return fresh
}

// TestComeBack: who may come in, by what the relay knows of the key and of the
// coordinator (S11).
func TestComeBack(t *testing.T) {
	for name, tt := range map[string]struct {
		watched bool
		// heard is when the coordinator last answered, after start; zero is never.
		heard time.Duration
		// admitted is when the key was last admitted, -1 for never.
		admitted time.Duration
		at       time.Duration // when it comes, with a token of start
		want     time.Duration // until when; 0 is not
	}{
		"a token that holds":                      {true, time.Second, -1, time.Second, life},
		"a token that holds, coordinator silent":  {true, 0, -1, time.Minute, life},
		"a token that ended, never admitted":      {true, 0, -1, life, 0},
		"a token that ended, coordinator answers": {true, life, time.Minute, life + time.Second, 0},
		"a token that ended, coordinator silent":  {true, time.Minute, 5 * time.Minute, life + time.Second, 15 * time.Minute},
		"admitted more than ten minutes ago":      {true, time.Minute, 0, Grace, 0},
		"just within ten minutes":                 {true, time.Minute, 0, Grace - 1, Grace},
		"no coordinator to ask":                   {false, 0, time.Minute, life, 11 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, tt.watched)
			key := s.NodeKey().Public()
			token := s.token(key, start, "fra")
			if tt.admitted >= 0 {
				if _, until, err := s.a.Admit(key, token, start.Add(tt.admitted)); err != nil || !until.Equal(start.Add(life)) {
					t.Fatalf("at first: until %v, %v", until, err)
				}
			}
			if tt.heard > 0 {
				s.heard(start.Add(tt.heard))
			}
			network, until, err := s.a.Admit(key, token, start.Add(tt.at))
			if (err == nil) != (tt.want > 0) || err == nil && (!until.Equal(start.Add(tt.want)) || network != s.a.Network()) {
				t.Errorf("%q until %v after the start, %v; want %v", network, until.Sub(start), err, tt.want)
			}
			if err != nil && !errors.Is(err, authority.ErrExpired) {
				t.Errorf("refused by %v", err)
			}
		})
	}
}

// TestRefused: tokens that admit nobody here, whatever the relay remembers.
func TestRefused(t *testing.T) {
	s := newSite(t, true)
	other := acltest.NewNetwork(2, start)
	key, thief := s.NodeKey().Public(), s.NodeKey().Public()
	if _, _, err := s.a.Admit(key, s.token(key, start, "fra"), start); err != nil {
		t.Fatal(err)
	}
	foreign, err := authority.IssueRelayToken(other.Genesis, authority.RelayToken{NodeKey: key, NotAfter: start.Add(life), Relays: []string{"fra"}}, other.Signer)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		key   ident.NodeKey
		token []byte
		want  error
	}{
		"another's token":         {thief, s.token(key, start, "fra"), authority.ErrNotOurs},
		"another relay's token":   {key, s.token(key, start, "nyc"), authority.ErrNotOurs},
		"another network's token": {key, foreign, authority.ErrSigner},
		"an old token of another": {thief, s.token(key, start.Add(-time.Hour), "fra"), authority.ErrNotOurs},
		"no token":                {key, nil, authority.ErrMalformed},
	} {
		if _, _, err := s.a.Admit(tt.key, tt.token, start.Add(time.Minute)); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
}

// TestRevoked: nothing admits a revoked key, neither a token that holds nor what
// was admitted before, and a connection of it is not extended.
func TestRevoked(t *testing.T) {
	s := newSite(t, true)
	key := s.NodeKey().Public()
	token := s.token(key, start, "fra")
	if _, _, err := s.a.Admit(key, token, start); err != nil {
		t.Fatal(err)
	}
	if fresh := s.heard(start.Add(time.Second), key); !slices.Equal(fresh, []ident.NodeKey{key}) {
		t.Errorf("connections to end: %v", fresh)
	}
	if fresh := s.heard(start.Add(2*time.Second), key); len(fresh) != 0 {
		t.Errorf("told twice: %v", fresh)
	}
	for _, at := range []time.Duration{3 * time.Second, life + time.Second} {
		if _, _, err := s.a.Admit(key, token, start.Add(at)); !errors.Is(err, ErrRevoked) {
			t.Errorf("after %v: %v", at, err)
		}
	}
	if _, ok := s.a.Extend(s.a.Network(), key, start.Add(time.Hour)); ok {
		t.Error("extended")
	}
	resumed := start.Add(2 * time.Minute)
	if _, _, err := s.a.Admit(key, s.token(key, start.Add(30*time.Second), "fra"), resumed); !errors.Is(err, ErrRevoked) {
		t.Errorf("a token that may be from before: %v", err)
	}
	if _, _, err := s.a.Admit(key, s.token(key, resumed, "fra"), resumed); err != nil {
		t.Errorf("a token from after the suspension: %v", err)
	}
	s.heard(start.Add(3*time.Minute), key)
	s.heard(start.Add(2 * revokedLife))
	if n := s.a.Snapshot(start.Add(2 * revokedLife)).Revoked; n != 0 {
		t.Errorf("%d revocations are remembered for ever", n)
	}
}

func TestExtend(t *testing.T) {
	s := newSite(t, true)
	key := s.NodeKey().Public()
	s.heard(start)
	if _, ok := s.a.Extend(s.a.Network(), key, start.Add(Silence-1)); ok {
		t.Error("extended although the coordinator answers and gave no new token")
	}
	if until, ok := s.a.Extend(s.a.Network(), key, start.Add(Silence)); !ok || !until.Equal(start.Add(2*Silence)) {
		t.Errorf("not extended while the coordinator is silent: %v, %v", until, ok)
	}
	if _, ok := s.a.Extend("another", key, start.Add(Silence)); ok {
		t.Error("extended in another network")
	}
	if _, ok := newSite(t, false).a.Extend(s.a.Network(), key, start); ok {
		t.Error("extended by a relay that is never told of revocations")
	}
}

// TestStaleRevocations: an answer that somebody kept does not hide revocations,
// and does not count as one.
func TestStaleRevocations(t *testing.T) {
	s := newSite(t, true)
	s.heard(start.Add(time.Minute))
	for _, age := range []time.Duration{-2 * maxSkew, 2 * maxSkew, -time.Second} {
		r := authority.RelayRevocations{Time: start.Add(time.Minute + age)}
		if _, err := s.a.HandleRevocations(r, start.Add(time.Minute+Silence)); !errors.Is(err, ErrStale) {
			t.Errorf("%v: %v", age, err)
		}
	}
	if snap := s.a.Snapshot(start.Add(time.Minute + Silence)); !snap.Silent {
		t.Errorf("%+v", snap)
	}
}

// TestWatch: a revocation is carried out within two seconds, once, and the
// coordinator's silence is told once.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, true)
		key := s.NodeKey().Public()
		var mu sync.Mutex // protects the three below
		var keys []ident.NodeKey
		down := false
		var cut []time.Time
		locked := func(f func()) {
			mu.Lock()
			defer mu.Unlock()
			f()
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go s.a.Watch(ctx, WatchConfig{
			Fetch: func(context.Context) (authority.RelayRevocations, error) {
				mu.Lock()
				defer mu.Unlock()
				if down {
					return authority.RelayRevocations{}, errors.New("down")
				}
				return authority.RelayRevocations{Time: time.Now(), Keys: keys}, nil
			},
			Revoke: func(network string, got ident.NodeKey) {
				if network != s.a.Network() || got != key {
					t.Errorf("revoked %v of %q", got, network)
				}
				locked(func() { cut = append(cut, time.Now()) })
			},
			Logger: slog.New(slog.DiscardHandler),
		})
		time.Sleep(10*time.Second + time.Millisecond)
		began := time.Now()
		locked(func() { keys = []ident.NodeKey{key} })
		time.Sleep(10 * time.Second)
		locked(func() {
			if len(cut) != 1 || cut[0].Sub(began) > 2*time.Second {
				t.Errorf("cut at %v, revoked at %v", cut, began)
			}
			down = true
		})
		time.Sleep(2 * Silence)
		if !s.a.Snapshot(time.Now()).Silent {
			t.Error("the coordinator is not missed")
		}
		locked(func() { down = false })
		time.Sleep(2 * askInterval)
		if s.a.Snapshot(time.Now()).Silent {
			t.Error("the coordinator's return went unnoticed")
		}
		cancel()
		synctest.Wait()
	})
}
