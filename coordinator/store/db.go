package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	sqlite "github.com/mattn/go-sqlite3"
)

// Errors of a DB, compared with errors.Is.
var (
	// ErrNoNetwork means a directory without a database.
	ErrNoNetwork = errors.New("store: there is no network")
	// ErrNewer means a database of a newer version of this program.
	ErrNewer = errors.New("store: the database is of a newer version of this program")
	// ErrSpent means that a join key was used, expired or revoked by the time
	// its transaction came.
	ErrSpent = errors.New("store: the join key cannot be used any more")
	// ErrBusy means that the change could not be written now, for want of
	// space or because the database is in use; nothing of it was.
	ErrBusy = errors.New("store: cannot write at present")
	// ErrRefused means that the database does not take the change, because of a
	// constraint of its schema; nothing of it was written. It is a mistake of
	// this program's, which concerns that one change.
	ErrRefused = errors.New("store: the database refuses the change")
	// ErrBroken means that the disk or the database failed in a way after
	// which nothing that this process holds can be relied on. The process must
	// end; what was acknowledged is read back by the next one.
	ErrBroken = errors.New("store: the database failed")
)

//go:embed migrations/*.sql
var migrations embed.FS

// DB is a network's database.
type DB struct{ sql *sql.DB }

// Open opens the directory's database for writing, making or migrating it
// where needed. The error wraps ErrNewer for a database that this program is
// too old for; that is left as it is.
func (d *Dir) Open(ctx context.Context) (*DB, error) {
	path := filepath.Join(d.path, databaseFile)
	// SQLite gives its other files the mode of this one.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store: opening the database: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("store: opening the database: %w", err)
	}
	db, err := connect(path, "rwc", 4)
	if err != nil {
		return nil, err
	}
	if err := db.migrate(ctx); err != nil {
		db.Close()
		return nil, err
	}
	return db, nil
}

// OpenReadOnly opens the database of a directory that a coordinator may be
// working on. It writes nothing that matters and takes no lock of the
// directory.
func OpenReadOnly(ctx context.Context, dir string) (*DB, error) {
	path := filepath.Join(dir, databaseFile)
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("%w in %s: %w", ErrNoNetwork, dir, err)
	}
	db, err := connect(path, "rw", 1)
	if err != nil {
		return nil, err
	}
	if _, err := db.sql.ExecContext(ctx, "PRAGMA query_only = 1"); err != nil {
		db.Close()
		return nil, fmt.Errorf("store: opening the database: %w", err)
	}
	version, err := db.version(ctx)
	if err == nil && version > newest() {
		err = newer(version)
	}
	if err != nil {
		db.Close()
		return nil, err
	}
	return db, nil
}

func connect(path, mode string, connections int) (*DB, error) {
	options := url.Values{
		"mode":             {mode},
		"_journal_mode":    {"WAL"},
		"_synchronous":     {"FULL"},
		"_foreign_keys":    {"1"},
		"_busy_timeout":    {"5000"},
		"_txlock":          {"immediate"},
		"_cell_size_check": {"1"},
	}
	name := "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + options.Encode()
	pool, err := sql.Open("sqlite3", name)
	if err != nil {
		return nil, fmt.Errorf("store: opening the database: %w", err)
	}
	pool.SetMaxOpenConns(connections)
	pool.SetMaxIdleConns(connections)
	return &DB{sql: pool}, nil
}

// Close closes the database.
func (db *DB) Close() error { return db.sql.Close() }

// migration is one numbered step of the schema.
type migration struct {
	version int
	text    string
}

func steps() []migration {
	names, err := fs.Glob(migrations, "migrations/*.sql") // sorted
	if err != nil {
		panic("BUG: store: " + err.Error())
	}
	var out []migration
	for i, name := range names {
		number, _, _ := strings.Cut(filepath.Base(name), "_")
		version, err := strconv.Atoi(number)
		text, readErr := migrations.ReadFile(name)
		if err != nil || readErr != nil || version != i+1 {
			panic("BUG: store: migration " + name + " is not number " + strconv.Itoa(i+1))
		}
		out = append(out, migration{version, string(text)})
	}
	return out
}

func newest() int { return len(steps()) }

func newer(version int) error {
	return fmt.Errorf("%w: its schema is number %d, this program knows %d; run the newer program, or restore a backup made before the upgrade", ErrNewer, version, newest())
}

func (db *DB) version(ctx context.Context) (int, error) {
	var version int
	if err := db.sql.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return 0, fmt.Errorf("store: reading the schema's version: %w", err)
	}
	return version, nil
}

// migrate brings the schema to the newest version, each step whole or not at
// all.
func (db *DB) migrate(ctx context.Context) error {
	version, err := db.version(ctx)
	if err != nil {
		return err
	}
	if version > newest() {
		return newer(version)
	}
	for _, m := range steps()[version:] {
		err := db.transact(ctx, func(tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, m.text); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, "PRAGMA user_version = "+strconv.Itoa(m.version))
			return err
		})
		if err != nil {
			return fmt.Errorf("store: migrating to schema number %d: %w", m.version, err)
		}
	}
	return nil
}

// transact runs f in one transaction that holds the write lock from its
// beginning. Errors are those of f itself, or wrap ErrBusy, ErrRefused or ErrBroken.
func (db *DB) transact(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := db.sql.BeginTx(ctx, nil)
	if err != nil {
		return sort(err)
	}
	if err := f(tx); err != nil {
		// A rollback that fails leaves the transaction to the connection's
		// end; nothing of it is visible either way.
		tx.Rollback()
		return sort(err)
	}
	if err := tx.Commit(); err != nil {
		return sort(err)
	}
	return nil
}

// sort says what an error of a transaction means for the caller.
func sort(err error) error {
	var failure sqlite.Error
	switch {
	case errors.Is(err, ErrSpent):
		return err
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case !errors.As(err, &failure):
		return fmt.Errorf("%w: %w", ErrBroken, err)
	}
	switch failure.Code {
	case sqlite.ErrFull, sqlite.ErrBusy, sqlite.ErrLocked, sqlite.ErrNomem, sqlite.ErrReadonly, sqlite.ErrInterrupt:
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case sqlite.ErrIoErr:
		// After a failed fsync nobody knows what is on the disk, whatever the
		// reason, and another try tells nothing: the kernel has forgotten the
		// pages (F04).
		if failure.ExtendedCode == sqlite.ErrIoErrFsync || failure.ExtendedCode == sqlite.ErrIoErrDirFsync {
			return fmt.Errorf("%w: %w", ErrBroken, err)
		}
		// A write that found no space says so as an I/O error in places.
		if failure.SystemErrno != 0 && isSpace(failure.SystemErrno) {
			return fmt.Errorf("%w: %w", ErrBusy, err)
		}
		return fmt.Errorf("%w: %w", ErrBroken, err)
	case sqlite.ErrCorrupt, sqlite.ErrNotADB, sqlite.ErrCantOpen:
		return fmt.Errorf("%w: %w", ErrBroken, err)
	}
	return fmt.Errorf("%w: %w", ErrRefused, err)
}
