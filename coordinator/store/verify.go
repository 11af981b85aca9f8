package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/audit"
)

// CreateAction is the action of the first audit entry, and FingerprintDetail
// the detail of it that says of which network it is.
const (
	CreateAction      = "network.create"
	FingerprintDetail = "fingerprint"
)

// VerifyAudit checks the whole chain, which must begin with the creation of the
// network that the genesis record is of, and returns its head. The error is an
// *audit.BrokenError where it does not hold.
func (db *DB) VerifyAudit(ctx context.Context) (audit.Head, error) {
	genesis, err := db.Genesis(ctx)
	if err != nil {
		return audit.Head{}, err
	}
	var head audit.Head
	err = db.Audit(ctx, 0, func(r *audit.Record) (err error) {
		if head, err = head.Verify(r); err != nil || r.Index > 1 {
			return err
		}
		return begins(r, sha256.Sum256(genesis))
	})
	if err == nil && head.Index == 0 {
		err = &audit.BrokenError{Index: 1, Reason: "there is no entry at all, not even that the network was created"}
	}
	return head, err
}

// begins checks that the first record of a chain is that of the network: a
// chain that was written anew from the start holds in itself.
func begins(r *audit.Record, network ident.Fingerprint) error {
	e, err := audit.Decode(r.Entry)
	if err != nil {
		return &audit.BrokenError{Index: r.Index, Reason: err.Error()}
	}
	if e.Action != CreateAction || !slices.Contains(e.Details, audit.Detail{Key: FingerprintDetail, Value: network.String()}) {
		return &audit.BrokenError{Index: r.Index, Reason: "it is not the creation of this network"}
	}
	return nil
}

// Covers checks that the chain, which ends at head, still has known, a head of
// before. The error is an *audit.BrokenError where it does not.
func (db *DB) Covers(ctx context.Context, head, known audit.Head) error {
	found := errors.New("found")
	var at *audit.Hash
	err := db.Audit(ctx, known.Index, func(r *audit.Record) error {
		if r.Index == known.Index {
			at = &r.Hash
		}
		return found
	})
	if err != nil && !errors.Is(err, found) {
		return err
	}
	return head.Covers(known, func(uint64) (audit.Hash, bool) {
		if at == nil {
			return audit.Hash{}, false
		}
		return *at, true
	})
}

// AuditHeadPath returns where a directory keeps the signed head of its audit
// chain: beside the database, so that a chain that was cut off there shows.
func AuditHeadPath(dir string) string { return filepath.Join(dir, headFile) }

// SaveAuditHead replaces the kept head by the result of audit.Head.Seal.
func (d *Dir) SaveAuditHead(sealed []byte) error {
	if err := writeFile(AuditHeadPath(d.path), sealed); err != nil {
		return fmt.Errorf("store: keeping the head of the audit chain: %w", err)
	}
	return nil
}

// AuditHead returns what SaveAuditHead kept in the directory, nil for nothing.
func AuditHead(dir string) ([]byte, error) {
	f, err := os.Open(AuditHeadPath(dir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("store: reading the kept head of the audit chain: %w", err)
	}
	defer f.Close()
	sealed, err := io.ReadAll(io.LimitReader(f, 4<<10))
	if err != nil {
		return nil, fmt.Errorf("store: reading the kept head of the audit chain: %w", err)
	}
	return sealed, nil
}

// Check asks SQLite whether the database is sound in itself.
func (db *DB) Check(ctx context.Context) error {
	var answer string
	if err := db.sql.QueryRowContext(ctx, "PRAGMA integrity_check").Scan(&answer); err != nil {
		return fmt.Errorf("store: checking the database: %w", err)
	}
	if answer != "ok" {
		return fmt.Errorf("%w: integrity check: %s", ErrBroken, answer)
	}
	rows, err := db.sql.QueryContext(ctx, "PRAGMA foreign_key_check")
	if err != nil {
		return fmt.Errorf("store: checking the database: %w", err)
	}
	defer rows.Close()
	if rows.Next() {
		return fmt.Errorf("%w: a row refers to one that is not there", ErrBroken)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("store: checking the database: %w", err)
	}
	return nil
}
