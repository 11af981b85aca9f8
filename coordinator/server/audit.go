package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/audit"
	"github.com/warren-overlay/warren/coordinator/registry"
	"github.com/warren-overlay/warren/coordinator/store"
)

// keepEvery is the least time between two writings of the kept head: what was
// recorded in that time before a crash could be cut off unnoticed.
const keepEvery = time.Second

// verify checks that the database is sound, that the record of what was done
// holds, and that it still reaches as far as the head that was kept.
func (s *Server) verify(ctx context.Context) error {
	if err := s.db.Check(ctx); err != nil {
		return fmt.Errorf("server: the database is damaged; restore a backup: %w", err)
	}
	head, err := s.db.VerifyAudit(ctx)
	if err != nil {
		return fmt.Errorf("server: the record of what was done was tampered with or damaged; restore a backup, or look with `warren-coordinator --data %s audit list`: %w", s.cfg.Dir, err)
	}
	kept, err := s.keptHead()
	if err != nil {
		return err
	}
	if kept == (audit.Head{}) && !s.created {
		s.cfg.Logger.Warn("there is no kept head of the audit chain: whether its end was cut off cannot be told", "file", store.AuditHeadPath(s.cfg.Dir))
	}
	err = s.db.Covers(ctx, head, kept)
	var broken *audit.BrokenError
	if errors.As(err, &broken) {
		return fmt.Errorf("server: the record of what was done was cut off or written anew; restore a backup; where this is an old one that was restored on purpose, remove %s: %w", store.AuditHeadPath(s.cfg.Dir), err)
	}
	s.kept = kept
	return err
}

// keptHead reads the head beside the database, the zero one where there is
// none.
func (s *Server) keptHead() (audit.Head, error) {
	sealed, err := store.AuditHead(s.cfg.Dir)
	if err != nil || sealed == nil {
		return audit.Head{}, err
	}
	kept, err := audit.OpenSealed(sealed, s.genesis.Fingerprint(), []ident.SignerKey{s.keys.Signing.Public()})
	if err != nil {
		path := store.AuditHeadPath(s.cfg.Dir)
		return audit.Head{}, fmt.Errorf("server: %s was tampered with or damaged; compare `warren-coordinator --data %s audit verify` with a head kept elsewhere, then remove it: %w", path, s.cfg.Dir, err)
	}
	return kept, nil
}

// keepHead writes the head beside the database where it is time, or sees to it
// that it will be. In the loop, after each call.
func (s *Server) keepHead(now time.Time) {
	if s.head == s.kept || s.broken != nil {
		return
	}
	if at := s.keptAt.Add(keepEvery); now.Before(at) {
		if at.Before(s.due) {
			s.due = at
		}
		return
	}
	s.saveHead(now)
}

func (s *Server) saveHead(now time.Time) {
	s.keptAt = now
	err := s.dir.SaveAuditHead(s.head.Seal(s.genesis.Fingerprint(), s.keys.Signing))
	if err != nil {
		if !s.keepFailed {
			s.cfg.Logger.Error("the head of the audit chain is not kept for now", "error", err)
		}
		s.keepFailed = true
		return
	}
	s.kept, s.keepFailed = s.head, false
}

// recordUnrecorded writes down how many refusals have no entry of their own.
func (s *Server) recordUnrecorded(ctx context.Context) {
	if s.unrecorded == 0 || s.broken != nil {
		return
	}
	changes := registry.RefusedMany(s.state, s.unrecorded, s.cfg.Now())
	if s.commit(ctx, &changes) == nil {
		s.unrecorded = 0
	}
}
