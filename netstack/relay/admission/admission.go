package admission

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
)

const (
	// Grace is how long a key may come back after a token of its own held, while
	// the coordinator is silent.
	Grace = 10 * time.Minute
	// Silence is after how long without an answer the coordinator counts as
	// silent: ten questions, each with a second to spare, so that one restart of it
	// does not count.
	Silence = 15 * time.Second
	// maxSkew is how far the coordinator's clock may be from the relay's, and so
	// how old an answer somebody on the way may have kept.
	maxSkew = 2 * time.Minute
	// revokedLife is how long a revoked key is remembered after the coordinator
	// last named it: longer than any token of it, and Grace.
	revokedLife = authority.RelayTokenValidity + Grace + maxSkew
	// maxAdmitted bounds the keys that are remembered: more than a relay takes
	// connections. What is over cannot come back without a token that holds.
	maxAdmitted = 1 << 16
)

var (
	// ErrRevoked means that the coordinator has revoked the key.
	ErrRevoked = errors.New("admission: the key is revoked")
	// ErrStale means that an answer of the coordinator is too old, or older than
	// the one before.
	ErrStale = errors.New("admission: revocations that are not of now")
)

// Config is what an Admission needs.
type Config struct {
	Genesis *authority.Genesis
	// Relay is the name of the relay, as tokens name it.
	Relay string
	// Watched says that HandleRevocations is going to be called. Without, the
	// coordinator counts as silent, and connections end with their tokens.
	Watched bool
}

// Admission decides who may use one relay.
type Admission struct {
	cfg     Config
	network string

	mu       sync.Mutex                  // protects all below
	admitted map[ident.NodeKey]time.Time // when a token held
	revoked  map[ident.NodeKey]time.Time // when the coordinator last named it
	// answered is when the coordinator last answered, signed the time of that
	// answer on its own clock.
	answered, signed time.Time
	full             uint64
}

// New returns an Admission that has admitted nobody yet.
func New(cfg Config) *Admission {
	return &Admission{
		cfg: cfg, network: cfg.Genesis.Fingerprint().String(),
		admitted: make(map[ident.NodeKey]time.Time), revoked: make(map[ident.NodeKey]time.Time),
	}
}

// Network returns the name under which the relay knows the network.
func (a *Admission) Network() string { return a.network }

// Admit implements relay.Admitter. The error wraps ErrRevoked, or is
// authority.VerifyRelayToken's.
func (a *Admission) Admit(node ident.NodeKey, token []byte, now time.Time) (network string, until time.Time, err error) {
	t, err := authority.VerifyRelayToken(a.cfg.Genesis, token, node, a.cfg.Relay, now)
	a.mu.Lock()
	defer a.mu.Unlock()
	if named, revoked := a.revoked[node]; revoked {
		if err != nil || t.NotAfter.Sub(named) <= authority.RelayTokenValidity {
			return "", time.Time{}, fmt.Errorf("%w: %s", ErrRevoked, node.Short())
		}
		// The coordinator signed it after it had named the key for the last time: it
		// was only suspended.
		delete(a.revoked, node)
	}
	if err == nil {
		a.rememberLocked(node, now)
		return a.network, t.NotAfter, nil
	}
	// All of the token is sound but its time: is it one that may come back?
	if errors.Is(err, authority.ErrExpired) && a.silentLocked(now) {
		if at, known := a.admitted[node]; known && now.Sub(at) < Grace {
			return a.network, at.Add(Grace), nil
		}
	}
	return "", time.Time{}, err
}

// Extend implements relay.Admitter: connections outlive their token while the
// coordinator, which would give out the next one, is silent.
func (a *Admission) Extend(network string, node ident.NodeKey, now time.Time) (until time.Time, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, revoked := a.revoked[node]; revoked || network != a.network || !a.cfg.Watched || !a.silentLocked(now) {
		return time.Time{}, false
	}
	return now.Add(Silence), true
}

// silentLocked reports whether the coordinator does not answer; a.mu is held.
func (a *Admission) silentLocked(now time.Time) bool {
	return a.answered.IsZero() || now.Sub(a.answered) >= Silence
}

// rememberLocked notes that a token of the key held; a.mu is held.
func (a *Admission) rememberLocked(node ident.NodeKey, now time.Time) {
	if _, known := a.admitted[node]; !known && len(a.admitted) >= maxAdmitted {
		for key, at := range a.admitted {
			if now.Sub(at) >= Grace {
				delete(a.admitted, key)
			}
		}
		if len(a.admitted) >= maxAdmitted {
			a.full++
			return
		}
	}
	a.admitted[node] = now
}

// HandleRevocations takes what the coordinator says, and returns the keys that it
// has not named before: their connections are to be ended. The error is ErrStale,
// and nothing has changed then.
func (a *Admission) HandleRevocations(r authority.RelayRevocations, now time.Time) (fresh []ident.NodeKey, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if age := now.Sub(r.Time); age > maxSkew || age < -maxSkew || r.Time.Before(a.signed) {
		return nil, fmt.Errorf("%w: signed at %v", ErrStale, r.Time)
	}
	a.answered, a.signed = now, r.Time
	for _, key := range r.Keys {
		if _, known := a.revoked[key]; !known {
			fresh = append(fresh, key)
		}
		a.revoked[key] = now
		delete(a.admitted, key)
	}
	for key, at := range a.revoked {
		if now.Sub(at) >= revokedLife {
			delete(a.revoked, key)
		}
	}
	return fresh, nil
}

// Snapshot is the state for people.
type Snapshot struct {
	// Silent says that the coordinator does not answer, or is not asked.
	Silent bool
	// Answered is when it last did, zero for never.
	Answered time.Time
	// Admitted and Revoked are how many keys are remembered as that.
	Admitted, Revoked int
	// Full counts the keys that there was no room to remember.
	Full uint64
}

// Snapshot returns the state for people.
func (a *Admission) Snapshot(now time.Time) Snapshot {
	a.mu.Lock()
	defer a.mu.Unlock()
	return Snapshot{a.silentLocked(now), a.answered, len(a.admitted), len(a.revoked), a.full}
}
