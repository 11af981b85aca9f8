package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/audit"
	"github.com/warren-overlay/warren/coordinator/registry"
)

func isSpace(errno syscall.Errno) bool {
	return errors.Is(errno, syscall.ENOSPC) || errors.Is(errno, syscall.EDQUOT) || errors.Is(errno, syscall.EFBIG)
}

// Commit writes the changes and their audit entry, which follows head, in one
// transaction, and returns the new head. The error wraps ErrSpent, ErrBusy,
// ErrRefused or ErrBroken. Nothing was written then; only after ErrBroken it is
// not known. Empty changes are a mistake of the caller's.
func (db *DB) Commit(ctx context.Context, c *registry.Changes, head audit.Head) (audit.Head, error) {
	if c.Empty() {
		panic("BUG: store: changes without an audit entry")
	}
	record, next := head.Append(c.Audit)
	err := db.transact(ctx, func(tx *sql.Tx) error {
		w := &writer{ctx: ctx, tx: tx}
		if c.Consume != nil {
			w.consume(c.Consume)
		}
		w.users(c.Users)
		w.keys(c.Keys)
		for _, id := range c.Removed {
			w.exec("DELETE FROM devices WHERE id = ?", uint64(id))
		}
		for _, id := range c.RemovedKeys {
			w.exec("DELETE FROM auth_keys WHERE id = ?", id)
		}
		w.devices(c.Devices)
		for _, r := range c.Revocations {
			w.exec("INSERT INTO revocations VALUES (?, ?, ?, ?, ?, ?)",
				uint64(r.Node), r.Machine[:], r.NodeKey[:], r.Name, orNull(r.Owner), millis(r.Revoked))
		}
		for _, k := range c.ForgottenKeys {
			w.exec("DELETE FROM former_keys WHERE node_key = ?", k[:])
		}
		for _, k := range c.FormerKeys {
			w.exec("INSERT OR REPLACE INTO former_keys VALUES (?, ?)", k.NodeKey[:], millis(k.Ended))
		}
		for _, cert := range c.Certificates {
			w.exec("INSERT OR REPLACE INTO certificates VALUES (?, ?, ?, ?, ?)",
				uint64(cert.Node), cert.Serial, millis(cert.NotBefore), millis(cert.NotAfter), cert.Signed)
		}
		if p := c.Policy; p != nil {
			w.exec("INSERT INTO policies VALUES (?, ?, ?)", uint64(p.Epoch), p.Text, millis(p.Set))
		}
		if p := c.Candidate; p != nil {
			w.exec("INSERT INTO candidates VALUES (?, ?, ?)", uint64(p.Epoch), p.Text, millis(p.Set))
		}
		for _, s := range c.Switches {
			w.exec("INSERT OR REPLACE INTO switches VALUES (?, ?)", string(s.Feature), millis(s.Off))
		}
		w.exec("UPDATE counters SET user = ?, node = ?, serial = ?, host = ?",
			uint64(c.Counters.User), uint64(c.Counters.Node), c.Counters.Serial, c.Counters.Host)
		w.exec("INSERT INTO audit VALUES (?, ?, ?)", record.Index, record.Entry, record.Hash[:])
		return w.err
	})
	if err != nil {
		return head, fmt.Errorf("store: writing %s: %w", c.Audit.Action, err)
	}
	return next, nil
}

// SaveLastSeen notes when devices were last connected. Devices that are gone
// are left out.
func (db *DB) SaveLastSeen(ctx context.Context, seen map[ident.NodeID]time.Time) error {
	err := db.transact(ctx, func(tx *sql.Tx) error {
		w := &writer{ctx: ctx, tx: tx}
		for id, at := range seen {
			w.exec("INSERT OR REPLACE INTO last_seen SELECT id, ? FROM devices WHERE id = ?", millis(at), uint64(id))
		}
		return w.err
	})
	if err != nil {
		return fmt.Errorf("store: noting who was seen: %w", err)
	}
	return nil
}

// writer keeps the first error, so that a transaction reads in one piece.
type writer struct {
	ctx context.Context
	tx  *sql.Tx
	err error
}

func (w *writer) exec(query string, args ...any) (rows int64) {
	if w.err != nil {
		return 0
	}
	result, err := w.tx.ExecContext(w.ctx, query, args...)
	if err != nil {
		w.err = err
		return 0
	}
	rows, w.err = result.RowsAffected()
	return rows
}

// consume is the one place where a join key is spent: of two transactions the
// second finds no row.
func (w *writer) consume(c *registry.Consume) {
	rows := w.exec(`UPDATE auth_keys SET uses = uses + 1
		WHERE id = ? AND (reusable = 1 OR uses = 0) AND expires > ? AND revoked = 0`, c.Key, millis(c.Now))
	if w.err == nil && rows != 1 {
		w.err = ErrSpent
	}
}

func (w *writer) users(users []registry.User) {
	for _, u := range users {
		w.exec(`INSERT INTO users VALUES (?, ?, ?, ?)
			ON CONFLICT (id) DO UPDATE SET login = excluded.login, suspended = excluded.suspended`,
			uint64(u.ID), u.Login, millis(u.Created), millis(u.Suspended))
	}
}

func (w *writer) keys(keys []registry.Key) {
	for _, k := range keys {
		w.exec(`INSERT INTO auth_keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (id) DO UPDATE SET revoked = excluded.revoked`,
			k.ID, k.Hash[:], orNull(k.User), joinTags(k.Tags), k.Reusable, k.Ephemeral,
			millis(k.Created), millis(k.Expires), millis(k.Revoked), k.Uses)
	}
}

func (w *writer) devices(devices []registry.Device) {
	for _, d := range devices {
		w.exec(`INSERT INTO devices VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (id) DO UPDATE SET machine_key = excluded.machine_key, node_key = excluded.node_key,
			name = excluded.name, owner = excluded.owner, tags = excluded.tags, ipv4 = excluded.ipv4,
			ipv6 = excluded.ipv6, ephemeral = excluded.ephemeral, auth_key = excluded.auth_key,
			program_version = excluded.program_version, os = excluded.os, os_version = excluded.os_version,
			architecture = excluded.architecture, advertised = excluded.advertised, approved = excluded.approved`,
			uint64(d.ID), d.Machine[:], d.NodeKey[:], d.Name, orNull(d.Owner), joinTags(d.Tags), d.IPv4.AsSlice(), d.IPv6.AsSlice(),
			d.Ephemeral, d.Key, d.Host.ProgramVersion, d.Host.OS, d.Host.OSVersion, d.Host.Architecture, millis(d.Created),
			joinPrefixes(d.Advertised), joinPrefixes(d.Approved))
	}
}

// orNull makes the zero id NULL, so that foreign keys hold.
func orNull(id ident.UserID) any {
	if id == 0 {
		return nil
	}
	return uint64(id)
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func instant(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// Tags have no comma.
func joinTags(tags []ident.Tag) string {
	var b strings.Builder
	for i, t := range tags {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(string(t))
	}
	return b.String()
}

func splitTags(text string) []ident.Tag {
	var out []ident.Tag
	for part := range strings.SplitSeq(text, ",") {
		if part != "" {
			out = append(out, ident.Tag(part))
		}
	}
	return out
}

func joinPrefixes(prefixes []netip.Prefix) string {
	texts := make([]string, 0, len(prefixes))
	for _, p := range prefixes {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ",")
}

func splitPrefixes(text string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for part := range strings.SplitSeq(text, ",") {
		if part == "" {
			continue
		}
		p, err := netip.ParsePrefix(part)
		if err != nil {
			return nil, fmt.Errorf("store: a route: %w", err)
		}
		out = append(out, p)
	}
	return out, nil
}

func address(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}
