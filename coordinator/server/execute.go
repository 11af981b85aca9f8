package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/netmap"
	"github.com/warren-overlay/warren/coordinator/registry"
	"github.com/warren-overlay/warren/coordinator/store"
	"github.com/warren-overlay/warren/coordinator/wire"
)

func fingerprintOf(raw []byte) ident.Fingerprint { return sha256.Sum256(raw) }

// execute runs a command: decide, commit, apply, tell. In the loop.
func (s *Server) execute(ctx context.Context, actor string, cmd registry.Command) (registry.Result, error) {
	if s.broken != nil {
		return registry.Result{}, s.broken
	}
	now := s.cfg.Now()
	changes, result, err := registry.Decide(s.state, actor, cmd, now)
	if err != nil {
		if _, registration := cmd.(registry.RegisterDevice); !registration { // anyone can make those
			s.cfg.Logger.Info("refused", "actor", actor, "command", fmt.Sprintf("%T", cmd), "error", err)
		}
		return registry.Result{}, err
	}
	if changes.Empty() {
		return result, nil
	}
	if err := s.commit(ctx, &changes); err != nil {
		return registry.Result{}, err
	}
	s.apply(&changes)
	s.cfg.Logger.Info("done", "action", changes.Audit.Action, "target", changes.Audit.Target, "actor", actor)
	for _, key := range result.Revoked {
		if s.cfg.OnRevoke != nil {
			s.cfg.OnRevoke(key)
		}
	}
	s.endSessions(&changes)
	if _, renewal := cmd.(registry.RenewCertificates); !renewal {
		s.renew(ctx)
	}
	return result, nil
}

// commit writes changes. After ErrBroken the loop ends.
func (s *Server) commit(ctx context.Context, changes *registry.Changes) error {
	began := s.cfg.Now()
	head, err := s.db.Commit(ctx, changes, s.head)
	if err != nil {
		s.metrics.commitErrors.Inc()
		s.cfg.Logger.Error("a change was not written", "action", changes.Audit.Action, "error", err)
		if errors.Is(err, store.ErrBroken) {
			s.broken = err
		}
		return err
	}
	s.metrics.commitSeconds.Observe(s.cfg.Now().Sub(began).Seconds())
	s.head = head
	return nil
}

// apply makes memory follow what was committed.
func (s *Server) apply(changes *registry.Changes) {
	s.state.Apply(changes)
	s.members.follow(s.state, changes, s.cfg.Now())
	touched, err := s.network.HandleChanges(changes)
	if err != nil {
		// What was committed cannot be served: a mistake of this program. The
		// next start refuses to serve anything else.
		s.broken = fmt.Errorf("server: following a committed change: %w", err)
		s.cfg.Logger.Error("a committed change cannot be followed", "error", err)
		return
	}
	s.touch(touched)
}

// renew signs and records the certificates that are due, and withholds those
// that say too much and could not be replaced.
func (s *Server) renew(ctx context.Context) {
	s.issue(ctx)
	s.touch(s.network.Withhold())
}

func (s *Server) issue(ctx context.Context) {
	for s.broken == nil {
		certs, failures := s.network.Renewals(s.cfg.Now())
		for _, f := range failures {
			s.metrics.viewErrors.Inc()
			s.cfg.Logger.Error("a device cannot be given a certificate; others are not affected", "device", f.Node, "error", f.Err)
		}
		if len(certs) == 0 {
			return
		}
		if _, err := s.execute(ctx, "coordinator", registry.RenewCertificates{Certificates: certs}); err != nil {
			return // the next tick tries again
		}
		s.metrics.certificates.Add(float64(len(certs)))
	}
}

// touch marks the sessions whose view changed.
func (s *Server) touch(touched []netmap.Touch) {
	for _, t := range touched {
		c := s.byNode[t.Viewer]
		switch {
		case c == nil:
		case t.Gone:
			c.session.Gone(t.Subject)
			s.narrowed[c] = struct{}{}
		default:
			c.session.Touch(t.Subject)
			if t.Subject == 0 {
				s.foremost[c] = struct{}{}
			} else {
				s.dirty[c] = struct{}{}
			}
		}
	}
}

// endSessions ends the sessions of devices that are members no more, or whose
// user is suspended.
func (s *Server) endSessions(changes *registry.Changes) {
	for _, u := range changes.Users {
		if u.Suspended.IsZero() {
			continue
		}
		for _, d := range s.state.DevicesOf(u.ID) {
			if c := s.byNode[d.ID]; c != nil {
				s.endSession(c, suspended())
			}
		}
	}
	revoked := make(map[ident.NodeID]bool)
	for _, r := range changes.Revocations {
		revoked[r.Node] = true
	}
	for _, id := range changes.Removed {
		delete(s.seen, id)
		delete(s.unsaved, id)
		c := s.byNode[id]
		if c == nil {
			continue
		}
		why := &wire.Error{Code: wire.CodeNotRegistered, Message: "this device is no longer registered"}
		if revoked[id] {
			why = &wire.Error{Code: wire.CodeRevoked, Message: revokedMessage}
		}
		s.endSession(c, why)
	}
}

const revokedMessage = "this device was revoked by an administrator"

// suspensionRetry is how soon a suspended user's device asks again: a handshake
// every now and then, and it is back soon after the user is resumed.
const suspensionRetry = 10 * time.Second

func suspended() *wire.Error {
	return &wire.Error{Code: wire.CodeSuspended, Message: "the user of this device is suspended", RetryAfter: suspensionRetry}
}

func (s *Server) endSession(c *conn, why *wire.Error) {
	c.session.Close(why)
	s.dirty[c], s.narrowed[c] = struct{}{}, struct{}{}
}

// plain is an error's text for people: without the package's name.
func plain(err error) string { return strings.TrimPrefix(err.Error(), "registry: ") }

// refusal says why a command was refused to the device that wanted it. It says
// no more than the device may know: what is wrong with a join key is for the
// audit log.
func refusal(err error) *wire.Error {
	switch {
	case errors.Is(err, registry.ErrAuthKey), errors.Is(err, store.ErrSpent):
		return &wire.Error{Code: wire.CodeAuthKey, Message: "the join key is unknown, spent, expired or revoked; ask an administrator for another"}
	case errors.Is(err, registry.ErrRevoked):
		return &wire.Error{Code: wire.CodeRevoked, Message: revokedMessage}
	case errors.Is(err, registry.ErrSuspended):
		return suspended()
	case errors.Is(err, registry.ErrDenied):
		return &wire.Error{Code: wire.CodeDenied, Message: plain(err)}
	case errors.Is(err, registry.ErrKeyInUse):
		return &wire.Error{Code: wire.CodeKeyInUse, Message: "the node key belongs to another device"}
	case errors.Is(err, registry.ErrInvalid):
		return &wire.Error{Code: wire.CodeMalformed, Message: plain(err)}
	case errors.Is(err, registry.ErrNotFound):
		return &wire.Error{Code: wire.CodeNotRegistered, Message: "this device is no longer registered"}
	case errors.Is(err, registry.ErrFull):
		return &wire.Error{Code: wire.CodeUnavailable, Message: "the network is full", RetryAfter: 10 * time.Minute}
	}
	return &wire.Error{Code: wire.CodeUnavailable, Message: "the coordinator cannot do this at present", RetryAfter: 5 * time.Second}
}
