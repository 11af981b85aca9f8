package server

import (
	"crypto/rand"
	"database/sql"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/admin"
	"github.com/warren-overlay/warren/coordinator/audit"
	"github.com/warren-overlay/warren/coordinator/registry"
	"github.com/warren-overlay/warren/coordinator/store"
)

// kept returns the head that a site keeps beside its database.
func (o *site) kept() audit.Head {
	o.t.Helper()
	sealed, err := store.AuditHead(o.path)
	if err != nil {
		o.t.Fatal(err)
	}
	h, err := audit.OpenSealed(sealed, o.Fingerprint(), []ident.SignerKey{o.keys.Signing.Public()})
	if err != nil {
		o.t.Fatal(err)
	}
	return h
}

// TestHeadIsKeptBesideTheDatabase: within a second while it runs, and when it
// ends.
func TestHeadIsKeptBesideTheDatabase(t *testing.T) {
	bubble(t, func(t *testing.T, o *site) {
		for i := range 3 {
			o.must(registry.SetPolicy{Text: []string{alicesOnly, everyone}[i%2]})
			time.Sleep(keepEvery + time.Millisecond)
			synctest.Wait()
			if got := o.kept(); got != o.head {
				t.Errorf("%v is kept of %v", got, o.head)
			}
		}
		o.must(registry.SetPolicy{Text: everyone})
		o.must(registry.SetPolicy{Text: alicesOnly}) // within the second
		o.stop()
		if got := o.kept(); got != o.head {
			t.Errorf("at the end %v is kept of %v", got, o.head)
		}
		o.restart()
	})
}

// TestCutAuditChainIsNotServed harms the chain in ways in which it still holds
// in itself (S12).
func TestCutAuditChainIsNotServed(t *testing.T) {
	for _, c := range []struct {
		name string
		harm func(t *testing.T, path string, db *sql.DB)
		want uint64 // the index that is named, 0 for a start that is well
		err  error
	}{
		{name: "nothing", harm: func(*testing.T, string, *sql.DB) {}},
		{name: "the end cut off", want: 3, harm: func(t *testing.T, _ string, db *sql.DB) { harm(t, db, "DELETE FROM audit WHERE idx > 2") }},
		{name: "the last one cut off", want: 4, harm: func(t *testing.T, _ string, db *sql.DB) { harm(t, db, "DELETE FROM audit WHERE idx = 4") }},
		{name: "written anew under another name", want: 1, harm: func(t *testing.T, _ string, db *sql.DB) {
			rewrite(t, db, audit.Entry{Action: store.CreateAction, Details: []audit.Detail{{Key: store.FingerprintDetail, Value: "x"}}}, 9)
		}},
		{name: "written anew from the second entry", want: 4, harm: func(t *testing.T, _ string, db *sql.DB) {
			var first []byte
			if err := db.QueryRow("SELECT entry FROM audit WHERE idx = 1").Scan(&first); err != nil {
				t.Fatal(err)
			}
			e, err := audit.Decode(first)
			if err != nil {
				t.Fatal(err)
			}
			rewrite(t, db, e, 9)
		}},
		{name: "a kept head that is not signed", err: audit.ErrSealed, harm: func(t *testing.T, path string, _ *sql.DB) {
			write(t, store.AuditHeadPath(path), audit.Head{Index: 1}.String())
		}},
		{name: "no kept head", harm: func(t *testing.T, path string, _ *sql.DB) {
			if err := os.Remove(store.AuditHeadPath(path)); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "a damaged index", err: store.ErrBroken, harm: func(t *testing.T, _ string, db *sql.DB) {
			harm(t, db, "PRAGMA writable_schema = 1")
			harm(t, db, "UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_users_1') WHERE name = 'sqlite_autoindex_auth_keys_1'")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := newSite(t)
			o.must(registry.CreateUser{Login: "alice@example.com"})
			o.must(registry.CreateUser{Login: "bob@example.com"})
			if o.head.Index != 4 {
				t.Fatalf("%d entries", o.head.Index)
			}
			o.stop()
			db, err := sql.Open("sqlite3", filepath.Join(o.path, "coordinator.db"))
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			db.SetMaxOpenConns(1)
			c.harm(t, o.path, db)
			s, err := Open(t.Context(), Config{Dir: o.path, Rand: rand.Reader, Logger: slog.New(slog.DiscardHandler)})
			if err == nil {
				s.Close()
			}
			var broken *audit.BrokenError
			switch {
			case c.err != nil && !errors.Is(err, c.err):
				t.Errorf("%v, want %v", err, c.err)
			case c.want != 0 && (!errors.As(err, &broken) || broken.Index != c.want):
				t.Errorf("%v, want index %d", err, c.want)
			case c.err == nil && c.want == 0 && err != nil:
				t.Error(err)
			}
		})
	}
}

func harm(t *testing.T, db *sql.DB, statement string) {
	t.Helper()
	if _, err := db.Exec(statement); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// rewrite replaces the chain by another one that holds in itself.
func rewrite(t *testing.T, db *sql.DB, first audit.Entry, n int) {
	t.Helper()
	harm(t, db, "DELETE FROM audit")
	var head audit.Head
	for i := range n {
		e := first
		if i > 0 {
			e = audit.Entry{Time: time.Unix(1, 0), Action: "user.create"}
		}
		var r audit.Record
		r, head = head.Append(&e)
		if _, err := db.Exec("INSERT INTO audit VALUES (?, ?, ?)", r.Index, r.Entry, r.Hash[:]); err != nil {
			t.Fatal(err)
		}
	}
}

// TestManyExpireAtOnce lets more ephemeral devices leave than one audit entry
// can name: each is named.
func TestManyExpireAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, o *site) {
		const n = 100
		key := o.key(registry.CreateKey{Login: "alice@example.com", Ephemeral: true, Reusable: true})
		for range n {
			d := newDevice(t)
			d.connect(o)
			if _, refused := d.register(key, "guest"); refused != nil {
				t.Fatal(refused)
			}
			d.ch.Close()
		}
		time.Sleep(registry.EphemeralGrace + 2*upkeep)
		synctest.Wait()
		o.Inspect(t.Context(), func(v *admin.View) {
			if _, devices, _ := v.State.Counts(); devices != 0 {
				t.Errorf("%d are still there", devices)
			}
		})
		named := 0
		for _, e := range o.entries() {
			if e.Action == "device.expire" {
				named += len(e.Details)
			}
		}
		if named != n {
			t.Errorf("%d of %d are named in the audit log", named, n)
		}
	})
}

// TestHealthAsksNothingOfTheLoop keeps the loop busy: the answer comes at once,
// and says after a while that nothing is served.
func TestHealthAsksNothingOfTheLoop(t *testing.T) {
	bubble(t, func(t *testing.T, o *site) {
		status := func() int {
			began := time.Now()
			w := httptest.NewRecorder()
			o.healthz(w, httptest.NewRequest("GET", "/healthz", nil))
			if took := time.Since(began); took != 0 {
				t.Errorf("the answer took %v of simulated time", took)
			}
			return w.Code
		}
		if got := status(); got != http.StatusOK {
			t.Errorf("idle: %d", got)
		}
		release, held := make(chan struct{}), make(chan error, 1)
		go func() { held <- o.do(t.Context(), func() { <-release }) }()
		synctest.Wait()
		if got := status(); got != http.StatusOK {
			t.Errorf("busy for a moment: %d", got)
		}
		time.Sleep(stuckAfter)
		if got := status(); got != http.StatusServiceUnavailable {
			t.Errorf("stuck: %d", got)
		}
		close(release)
		if err := <-held; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if got := status(); got != http.StatusOK {
			t.Errorf("idle again: %d", got)
		}
		o.stop()
		if got := status(); got != http.StatusServiceUnavailable {
			t.Errorf("stopped: %d", got)
		}
		o.restart()
	})
}
