package relayserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/alarm"
)

const (
	// genesisFile is the network's genesis record in the data directory.
	genesisFile = "genesis"
	// genesisRetry is how often a coordinator is asked that does not answer.
	genesisRetry = 5 * time.Second
)

// ReadGenesis reads a genesis record from a file and checks that it is the one
// that the fingerprint names. The error is the file's, or
// authority.DecodeGenesis's.
func ReadGenesis(path string, want ident.Fingerprint) (*authority.Genesis, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("relayserver: reading the genesis record: %w", err)
	}
	g, err := authority.DecodeGenesis(raw, want)
	if err != nil {
		return nil, fmt.Errorf("relayserver: %s: %w", path, err)
	}
	return g, nil
}

// LoadGenesis returns the genesis record that the fingerprint names, from the
// data directory, or from the coordinator (fetch) where it is not there; then it
// is kept there, so that a later start needs nobody. It asks until the
// coordinator answers, or the context ends. The error is the context's, the
// directory's, or wraps authority.ErrFingerprint: it is another network's
// coordinator, or somebody in between.
func LoadGenesis(ctx context.Context, dir string, want ident.Fingerprint, fetch func(context.Context) (*authority.Genesis, error), log *slog.Logger) (*authority.Genesis, error) {
	path := filepath.Join(dir, genesisFile)
	g, err := ReadGenesis(path, want)
	if err == nil {
		return g, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		log.Warn("the genesis record on disk is of no use; asking the coordinator", "error", err)
	}
	again := alarm.New(genesisRetry)
	defer again.Stop()
	for told := false; ; told = true {
		if g, err = fetch(ctx); err == nil {
			break
		}
		if errors.Is(err, authority.ErrFingerprint) {
			return nil, err
		}
		if !told {
			log.Warn("the coordinator does not answer; asking on", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("relayserver: waiting for the coordinator: %w", ctx.Err())
		case <-again.C:
			again.Set(genesisRetry)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("relayserver: keeping the genesis record: %w", err)
	}
	if err := os.WriteFile(path+".new", g.AppendBinary(nil), 0o600); err != nil {
		return nil, fmt.Errorf("relayserver: keeping the genesis record: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return nil, fmt.Errorf("relayserver: keeping the genesis record: %w", err)
	}
	return g, nil
}
