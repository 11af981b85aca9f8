package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/coordinator/audit"
	"github.com/warren-overlay/warren/coordinator/registry"
)

// Genesis returns the network's genesis record, nil where there is none yet.
func (db *DB) Genesis(ctx context.Context) ([]byte, error) {
	var genesis []byte
	err := db.sql.QueryRowContext(ctx, "SELECT genesis FROM network").Scan(&genesis)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("store: reading the genesis record: %w", err)
	}
	return genesis, nil
}

// Create writes the genesis record and the first audit entry. A database that
// has a network already refuses.
func (db *DB) Create(ctx context.Context, genesis []byte, entry *audit.Entry) error {
	record, _ := audit.Head{}.Append(entry)
	err := db.transact(ctx, func(tx *sql.Tx) error {
		w := &writer{ctx: ctx, tx: tx}
		w.exec("INSERT INTO network VALUES (1, ?)", genesis)
		w.exec("INSERT INTO audit VALUES (?, ?, ?)", record.Index, record.Entry, record.Hash[:])
		return w.err
	})
	if err != nil {
		return fmt.Errorf("store: creating the network: %w", err)
	}
	return nil
}

// Load returns everything that is registered, and the end of the audit chain.
func (db *DB) Load(ctx context.Context, network registry.Network) (*registry.State, audit.Head, error) {
	tx, err := db.sql.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, audit.Head{}, fmt.Errorf("store: reading: %w", sort(err))
	}
	defer tx.Rollback() // it only reads
	r := &reader{ctx: ctx, tx: tx}
	c := registry.Changes{}
	r.counters(&c.Counters)
	c.Users, c.Keys, c.Devices = r.users(), r.keys(), r.devices()
	c.FormerKeys = r.formerKeys()
	c.Revocations, c.Certificates, c.Policy = r.revocations(), r.certificates(), r.policy("policies")
	c.Candidate, c.Switches = r.policy("candidates"), r.switches()
	head := r.head()
	if r.err != nil {
		return nil, audit.Head{}, fmt.Errorf("store: reading: %w", sort(r.err))
	}
	state := registry.NewState(network)
	state.Apply(&c)
	return state, head, nil
}

// LastSeen returns when devices were last connected.
func (db *DB) LastSeen(ctx context.Context) (map[ident.NodeID]time.Time, error) {
	out := make(map[ident.NodeID]time.Time)
	rows, err := db.sql.QueryContext(ctx, "SELECT device, time FROM last_seen")
	if err != nil {
		return nil, fmt.Errorf("store: reading who was seen: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var id, at int64
		if err := rows.Scan(&id, &at); err != nil {
			return nil, fmt.Errorf("store: reading who was seen: %w", err)
		}
		out[ident.NodeID(id)] = instant(at)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("store: reading who was seen: %w", err)
	}
	return out, nil
}

// Audit calls f with each record of the chain from the index first on, in
// order, until f returns an error, which it passes on.
func (db *DB) Audit(ctx context.Context, first uint64, f func(*audit.Record) error) error {
	rows, err := db.sql.QueryContext(ctx, "SELECT idx, entry, hash FROM audit WHERE idx >= ? ORDER BY idx", first)
	if err != nil {
		return fmt.Errorf("store: reading the audit chain: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var record audit.Record
		var hash []byte
		if err := rows.Scan(&record.Index, &record.Entry, &hash); err != nil {
			return fmt.Errorf("store: reading the audit chain: %w", err)
		}
		copy(record.Hash[:], hash)
		if err := f(&record); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("store: reading the audit chain: %w", err)
	}
	return nil
}

// reader keeps the first error, as writer does.
type reader struct {
	ctx context.Context
	tx  *sql.Tx
	err error
}

// each calls scan for each row of the query.
func (r *reader) each(query string, scan func(*sql.Rows) error) {
	if r.err != nil {
		return
	}
	rows, err := r.tx.QueryContext(r.ctx, query)
	if err != nil {
		r.err = err
		return
	}
	defer rows.Close()
	for rows.Next() {
		if r.err = scan(rows); r.err != nil {
			return
		}
	}
	r.err = rows.Err()
}

func (r *reader) counters(c *registry.Counters) {
	r.each("SELECT user, node, serial, host FROM counters", func(rows *sql.Rows) error {
		return rows.Scan(&c.User, &c.Node, &c.Serial, &c.Host)
	})
}

func (r *reader) users() (out []registry.User) {
	r.each("SELECT id, login, created, suspended FROM users", func(rows *sql.Rows) error {
		var u registry.User
		var created, suspended int64
		err := rows.Scan(&u.ID, &u.Login, &created, &suspended)
		u.Created, u.Suspended = instant(created), instant(suspended)
		out = append(out, u)
		return err
	})
	return out
}

func (r *reader) keys() (out []registry.Key) {
	r.each("SELECT id, hash, coalesce(user, 0), tags, reusable, ephemeral, created, expires, revoked, uses FROM auth_keys", func(rows *sql.Rows) error {
		var k registry.Key
		var hash []byte
		var tags string
		var created, expires, revoked int64
		err := rows.Scan(&k.ID, &hash, &k.User, &tags, &k.Reusable, &k.Ephemeral, &created, &expires, &revoked, &k.Uses)
		copy(k.Hash[:], hash)
		k.Tags, k.Created, k.Expires, k.Revoked = splitTags(tags), instant(created), instant(expires), instant(revoked)
		out = append(out, k)
		return err
	})
	return out
}

func (r *reader) devices() (out []registry.Device) {
	r.each(`SELECT id, machine_key, node_key, name, coalesce(owner, 0), tags, ipv4, ipv6, ephemeral, auth_key,
		program_version, os, os_version, architecture, created, advertised, approved FROM devices`, func(rows *sql.Rows) error {
		var d registry.Device
		var machine, node, v4, v6 []byte
		var tags, advertised, approved string
		var created int64
		err := rows.Scan(&d.ID, &machine, &node, &d.Name, &d.Owner, &tags, &v4, &v6, &d.Ephemeral, &d.Key,
			&d.Host.ProgramVersion, &d.Host.OS, &d.Host.OSVersion, &d.Host.Architecture, &created, &advertised, &approved)
		if err == nil {
			d.Advertised, err = splitPrefixes(advertised)
		}
		if err == nil {
			d.Approved, err = splitPrefixes(approved)
		}
		copy(d.Machine[:], machine)
		copy(d.NodeKey[:], node)
		d.Tags, d.IPv4, d.IPv6, d.Created = splitTags(tags), address(v4), address(v6), instant(created)
		out = append(out, d)
		return err
	})
	return out
}

func (r *reader) revocations() (out []registry.Revocation) {
	r.each("SELECT device, machine_key, node_key, name, coalesce(owner, 0), revoked FROM revocations", func(rows *sql.Rows) error {
		var v registry.Revocation
		var machine, node []byte
		var revoked int64
		err := rows.Scan(&v.Node, &machine, &node, &v.Name, &v.Owner, &revoked)
		copy(v.Machine[:], machine)
		copy(v.NodeKey[:], node)
		v.Revoked = instant(revoked)
		out = append(out, v)
		return err
	})
	return out
}

func (r *reader) certificates() (out []registry.Certificate) {
	r.each("SELECT device, serial, not_before, not_after, signed FROM certificates", func(rows *sql.Rows) error {
		var c registry.Certificate
		var from, until int64
		err := rows.Scan(&c.Node, &c.Serial, &from, &until, &c.Signed)
		c.NotBefore, c.NotAfter = instant(from), instant(until)
		out = append(out, c)
		return err
	})
	return out
}

func (r *reader) formerKeys() (out []registry.FormerKey) {
	r.each("SELECT node_key, ended FROM former_keys", func(rows *sql.Rows) error {
		var k registry.FormerKey
		var key []byte
		var ended int64
		err := rows.Scan(&key, &ended)
		copy(k.NodeKey[:], key)
		k.Ended = instant(ended)
		out = append(out, k)
		return err
	})
	return out
}

func (r *reader) switches() (out []registry.Switch) {
	r.each("SELECT feature, off FROM switches", func(rows *sql.Rows) error {
		var s registry.Switch
		var off int64
		err := rows.Scan(&s.Feature, &off)
		s.Off = instant(off)
		out = append(out, s)
		return err
	})
	return out
}

// policy returns the newest text of a table of policies or candidates.
func (r *reader) policy(table string) (out *registry.Policy) {
	r.each("SELECT epoch, text, set_at FROM "+table+" ORDER BY epoch DESC LIMIT 1", func(rows *sql.Rows) error {
		var epoch uint64
		var set int64
		out = &registry.Policy{}
		err := rows.Scan(&epoch, &out.Text, &set)
		out.Epoch, out.Set = ruleset.Epoch(epoch), instant(set)
		return err
	})
	return out
}

func (r *reader) head() (out audit.Head) {
	r.each("SELECT idx, hash FROM audit ORDER BY idx DESC LIMIT 1", func(rows *sql.Rows) error {
		var hash []byte
		err := rows.Scan(&out.Index, &hash)
		copy(out.Hash[:], hash)
		return err
	})
	return out
}
