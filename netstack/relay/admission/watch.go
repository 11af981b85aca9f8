package admission

import (
	"context"
	"log/slog"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/alarm"
)

const (
	// askInterval is how often the coordinator is asked: half of the two seconds
	// within which a revoked key's connection is to be closed.
	askInterval = time.Second
	// askTimeout bounds one question.
	askTimeout = 5 * time.Second
)

// WatchConfig is what Watch needs.
type WatchConfig struct {
	// Fetch asks the coordinator, and verifies what it says.
	Fetch func(ctx context.Context) (authority.RelayRevocations, error)
	// Revoke ends the connection of a key, where it has one.
	Revoke func(network string, key ident.NodeKey)
	Logger *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Watch asks the coordinator for revocations every second and carries them out,
// until the context ends.
func (a *Admission) Watch(ctx context.Context, cfg WatchConfig) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	again := alarm.New(askInterval)
	defer again.Stop()
	reachable := true // so that the first failure is told
	for {
		err := a.ask(ctx, cfg)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && !reachable:
			reachable = true
			cfg.Logger.Info("the coordinator answers again")
		case err != nil && reachable && a.Snapshot(cfg.Now()).Silent:
			reachable = false
			cfg.Logger.Warn("the coordinator does not answer: only keys that were admitted before may come back without a new token", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-again.C:
			again.Set(askInterval)
		}
	}
}

func (a *Admission) ask(ctx context.Context, cfg WatchConfig) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	r, err := cfg.Fetch(ctx)
	if err != nil {
		return err
	}
	fresh, err := a.HandleRevocations(r, cfg.Now())
	for _, key := range fresh {
		cfg.Revoke(a.network, key)
	}
	return err
}
