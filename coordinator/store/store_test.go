package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	sqlite "github.com/mattn/go-sqlite3"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/audit"
	"github.com/warren-overlay/warren/coordinator/registry"
)

var (
	network = registry.Network{Prefix4: netip.MustParsePrefix("100.64.0.0/10"), Prefix6: netip.MustParsePrefix("fd12:3456:789a::/48")}
	begin   = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
)

// book is a state and the database that it follows.
type book struct {
	t     testing.TB
	dir   string
	db    *DB
	state *registry.State
	head  audit.Head
	now   time.Time
}

func openBook(t testing.TB, path string) *book {
	t.Helper()
	dir, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	db, err := dir.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if genesis, err := db.Genesis(t.Context()); err != nil {
		t.Fatal(err)
	} else if genesis == nil {
		if err := db.Create(t.Context(), []byte("genesis"), &audit.Entry{
			Time: begin, Action: CreateAction, Details: []audit.Detail{{Key: FingerprintDetail, Value: ident.Fingerprint(sha256.Sum256([]byte("genesis"))).String()}},
		}); err != nil {
			t.Fatal(err)
		}
	}
	b := &book{t: t, dir: path, db: db, now: begin}
	b.state, b.head, err = db.Load(t.Context(), network)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newBook(t testing.TB) *book { return openBook(t, filepath.Join(t.TempDir(), "data")) }

// run decides, commits and applies, as the server does.
func (b *book) run(cmd registry.Command) (registry.Result, error) {
	changes, result, err := registry.Decide(b.state, "test", cmd, b.now)
	if err != nil || changes.Empty() {
		return result, err
	}
	head, err := b.db.Commit(context.Background(), &changes, b.head)
	if err != nil {
		return registry.Result{}, err
	}
	b.head = head
	b.state.Apply(&changes)
	return result, nil
}

func (b *book) mustRun(cmd registry.Command) registry.Result {
	b.t.Helper()
	result, err := b.run(cmd)
	if err != nil {
		b.t.Fatalf("%T: %v", cmd, err)
	}
	return result
}

// same checks that the disk holds what memory does, and is sound.
func (b *book) same() {
	b.t.Helper()
	state, head, err := b.db.Load(context.Background(), network)
	if err != nil {
		b.t.Fatal(err)
	}
	if got, want := state.Export(), b.state.Export(); !reflect.DeepEqual(got, want) || head != b.head {
		b.t.Fatalf("disk and memory differ:\n%+v %+v\n%+v %+v", got, head, want, b.head)
	}
	if head, err = b.db.VerifyAudit(context.Background()); err != nil || head != b.head {
		b.t.Fatalf("audit chain: %+v, %v", head, err)
	}
	if err := b.db.Check(context.Background()); err != nil {
		b.t.Fatal(err)
	}
}

func secret(text string) registry.KeyHash { return sha256.Sum256([]byte(text)) }

func (b *book) people() {
	b.mustRun(registry.CreateUser{Login: "alice@example.com"})
	b.mustRun(registry.CreateKey{ID: "many", Hash: secret("many"), Login: "alice@example.com", Reusable: true, Expires: b.now.Add(8000 * time.Hour)})
	b.mustRun(registry.CreateKey{ID: "db", Hash: secret("db"), Tags: []ident.Tag{"tag:db", "tag:x"}, Ephemeral: true, Reusable: true, Expires: b.now.Add(8000 * time.Hour)})
}

func register(n uint16, key string) registry.RegisterDevice {
	return registry.RegisterDevice{
		Machine: ident.MachineKey{byte(n), byte(n >> 8), 1}, NodeKey: ident.NodeKey{byte(n), byte(n >> 8), 2},
		Key: key, Secret: secret(key), Hostname: "h", Host: registry.Host{ProgramVersion: "1", OS: "linux", OSVersion: "6", Architecture: "amd64"},
	}
}

// TestDiskFollowsMemory runs random commands and reloads after each.
func TestDiskFollowsMemory(t *testing.T) {
	b := newBook(t)
	b.people()
	pruned := 0
	r := mrand.New(mrand.NewPCG(1, 2))
	for range 150 {
		b.now = b.now.Add(time.Duration(r.IntN(100)) * time.Second)
		n := uint16(r.IntN(12))
		var cmd registry.Command
		switch r.IntN(10) {
		case 0, 1, 2:
			cmd = register(n, []string{"many", "db"}[r.IntN(2)])
		case 3:
			cmd = registry.RotateNodeKey{Node: ident.NodeID(n), NodeKey: ident.NodeKey{byte(r.IntN(12)), 0, 2}}
		case 4:
			cmd = registry.Logout{Node: ident.NodeID(n)}
			if r.IntN(3) == 0 {
				cmd = registry.RevokeDevice{Node: ident.NodeID(n), KeepKey: true}
			}
		case 5:
			if r.IntN(3) == 0 {
				b.now = b.now.Add(registry.KeyGrace / 4) // most keys hold, short ones end
				cmd = registry.PruneKeys{}
				break
			}
			cmd = registry.SetPolicy{Text: fmt.Sprint("{}", r.IntN(3))}
		case 6:
			id := fmt.Sprint("k", r.IntN(20))
			cmd = registry.CreateKey{ID: id, Hash: secret(id), Login: "alice@example.com", Expires: b.now.Add(time.Hour)}
			if r.IntN(2) == 0 {
				cmd = registry.RevokeKey{ID: id}
			}
		case 9:
			cmd = registry.SetTags{Node: ident.NodeID(n), Tags: []ident.Tag{"tag:y"}}
			switch r.IntN(9) {
			case 6:
				cmd = registry.SetCandidate{Text: fmt.Sprint("{}", r.IntN(3))}
			case 7:
				cmd = registry.ClearCandidate{}
			case 8:
				cmd = registry.PromoteCandidate{}
			case 5:
				cmd = registry.SetFeature{Feature: registry.FeaturePortMapping, Off: r.IntN(2) == 0}
			case 0:
				cmd = registry.SuspendUser{Login: "alice@example.com"}
			case 1, 2:
				cmd = registry.ResumeUser{Login: "alice@example.com"}
			}
		case 8:
			routes := []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n)}), 16), netip.MustParsePrefix("::/0")}
			cmd = registry.AdvertiseRoutes{Node: ident.NodeID(n), Routes: routes[:r.IntN(3)]}
			if r.IntN(2) == 0 {
				cmd = registry.ApproveRoutes{Node: ident.NodeID(n), Routes: routes[:1]}
			}
		case 7:
			var certs []registry.Certificate
			for i, d := range b.state.Devices() {
				certs = append(certs, registry.Certificate{
					Node: d.ID, Serial: b.state.Counters().Serial + uint64(i) + 1, NotBefore: b.now, NotAfter: b.now.Add(time.Hour), Signed: []byte{1, byte(i)},
				})
			}
			cmd = registry.RenewCertificates{Certificates: certs}
		}
		_, _, had := b.state.Counts()
		b.run(cmd)
		b.same()
		if _, _, has := b.state.Counts(); has < had {
			pruned++
		}
	}
	if pruned == 0 {
		t.Error("no key was ever pruned")
	}
	seen := map[ident.NodeID]time.Time{9999: begin}
	for _, d := range b.state.Devices() {
		seen[d.ID] = begin.Add(time.Duration(d.ID) * time.Second)
	}
	if err := b.db.SaveLastSeen(t.Context(), seen); err != nil {
		t.Fatal(err)
	}
	delete(seen, 9999)
	if got, err := b.db.LastSeen(t.Context()); err != nil || !reflect.DeepEqual(got, seen) {
		t.Errorf("last seen: %v, %v\nwant %v", got, err, seen)
	}
	b.same()
}

// TestSingleUseKey commits 64 registrations by one single-use key at a time,
// each decided on a state that did not see the others: exactly one may be
// written.
func TestSingleUseKey(t *testing.T) {
	rounds := 20
	if testing.Short() {
		rounds = 3
	}
	b := newBook(t)
	b.mustRun(registry.CreateUser{Login: "alice@example.com"})
	for round := range rounds {
		id := fmt.Sprint("once", round)
		b.mustRun(registry.CreateKey{ID: id, Hash: secret(id), Login: "alice@example.com", Expires: b.now.Add(time.Hour)})
		var wg sync.WaitGroup
		var mu sync.Mutex
		var won []registry.Changes
		var heads []audit.Head
		for n := range uint16(64) {
			changes, _, err := registry.Decide(b.state, "test", register(uint16(round)*64+n, id), b.now)
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				head, err := b.db.Commit(context.Background(), &changes, b.head)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					won, heads = append(won, changes), append(heads, head)
				case !errors.Is(err, ErrSpent):
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("round %d: %d registrations by one single-use key", round, len(won))
		}
		b.head = heads[0]
		b.state.Apply(&won[0])
		b.same()
	}
}

// TestConsumeAsksTheDatabase takes each reason away from memory and leaves it
// to the statement.
func TestConsumeAsksTheDatabase(t *testing.T) {
	for _, column := range []string{"revoked = 5", "expires = 5", "reusable = 0, uses = 1"} {
		b := newBook(t)
		b.people()
		if _, err := b.db.sql.Exec("UPDATE auth_keys SET " + column); err != nil {
			t.Fatal(err)
		}
		if _, err := b.run(register(1, "many")); !errors.Is(err, ErrSpent) {
			t.Errorf("%s: %v", column, err)
		}
		if state, head, err := b.db.Load(t.Context(), network); err != nil || len(state.Devices()) != 0 || head != b.head {
			t.Errorf("%s: half a registration: %v %v", column, state.Devices(), err)
		}
	}
}

// TestFullDisk proves that a change that finds no space is refused whole, that
// reading goes on, and that writing does once there is space.
func TestFullDisk(t *testing.T) {
	b := newBook(t)
	b.people()
	var pages int
	if err := b.db.sql.QueryRow("PRAGMA page_count").Scan(&pages); err != nil {
		t.Fatal(err)
	}
	b.db.sql.SetMaxOpenConns(1) // the limit belongs to a connection
	limit := func(pages int) {
		if _, err := b.db.sql.Exec(fmt.Sprint("PRAGMA max_page_count = ", pages)); err != nil {
			t.Fatal(err)
		}
	}
	limit(pages)
	if _, err := b.run(registry.SetPolicy{Text: strings.Repeat("x", 1<<18)}); !errors.Is(err, ErrBusy) {
		t.Fatalf("a full disk: %v", err)
	}
	b.same()
	limit(1 << 30)
	b.mustRun(registry.SetPolicy{Text: strings.Repeat("x", 1<<18)})
	b.same()
}

// TestErrorsAreSorted says of each failure whether to go on after it (F04).
func TestErrorsAreSorted(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want error
	}{
		{"fsync without space", sqlite.Error{Code: sqlite.ErrIoErr, ExtendedCode: sqlite.ErrIoErrFsync, SystemErrno: syscall.ENOSPC}, ErrBroken},
		{"fsync over quota", sqlite.Error{Code: sqlite.ErrIoErr, ExtendedCode: sqlite.ErrIoErrFsync, SystemErrno: syscall.EDQUOT}, ErrBroken},
		{"fsync of the directory", sqlite.Error{Code: sqlite.ErrIoErr, ExtendedCode: sqlite.ErrIoErrDirFsync, SystemErrno: syscall.ENOSPC}, ErrBroken},
		{"fsync", sqlite.Error{Code: sqlite.ErrIoErr, ExtendedCode: sqlite.ErrIoErrFsync, SystemErrno: syscall.EIO}, ErrBroken},
		{"write without space", sqlite.Error{Code: sqlite.ErrIoErr, ExtendedCode: sqlite.ErrIoErrWrite, SystemErrno: syscall.ENOSPC}, ErrBusy},
		{"write", sqlite.Error{Code: sqlite.ErrIoErr, ExtendedCode: sqlite.ErrIoErrWrite, SystemErrno: syscall.EIO}, ErrBroken},
		{"full", sqlite.Error{Code: sqlite.ErrFull}, ErrBusy},
		{"busy", sqlite.Error{Code: sqlite.ErrBusy}, ErrBusy},
		{"corrupt", sqlite.Error{Code: sqlite.ErrCorrupt}, ErrBroken},
		{"constraint", sqlite.Error{Code: sqlite.ErrConstraint}, ErrRefused},
		{"anything else of SQLite's", sqlite.Error{Code: sqlite.ErrMisuse}, ErrRefused},
		{"cancelled", context.Canceled, ErrBusy},
		{"anything else", errors.New("sql: database is closed"), ErrBroken},
		{"spent", ErrSpent, ErrSpent},
	} {
		err := sort(fmt.Errorf("wrapped: %w", c.err))
		for _, kind := range []error{ErrBusy, ErrBroken, ErrRefused, ErrSpent} {
			if errors.Is(err, kind) != errors.Is(c.want, kind) {
				t.Errorf("%s: %v, want %v alone", c.name, err, c.want)
			}
		}
	}
}

// TestViolatedConstraintIsRefused commits a record that memory should never
// have let through: it is refused whole and named, and the next one is taken.
func TestViolatedConstraintIsRefused(t *testing.T) {
	b := newBook(t)
	b.people()
	b.mustRun(register(1, "many"))
	changes, _, err := registry.Decide(b.state, "test", register(2, "many"), b.now)
	if err != nil {
		t.Fatal(err)
	}
	changes.Devices[0].Name = b.state.Device(1).Name
	if _, err := b.db.Commit(t.Context(), &changes, b.head); !errors.Is(err, ErrRefused) || errors.Is(err, ErrBroken) {
		t.Errorf("two devices of one name: %v", err)
	}
	b.same()
	b.mustRun(register(2, "many"))
	b.same()
}

func TestBrokenFileIsNamed(t *testing.T) {
	b := newBook(t)
	b.people()
	b.db.Close()
	if err := os.WriteFile(filepath.Join(b.dir, databaseFile), bytes.Repeat([]byte("not a database "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(b.dir, databaseFile+"-wal"))
	db, err := OpenReadOnly(t.Context(), b.dir)
	if err == nil {
		db.Close()
		t.Fatal("a file that is no database was opened")
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	dir, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	db, err := dir.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.sql.Exec("PRAGMA user_version = 99"); err != nil {
		t.Fatal(err)
	}
	db.Close()
	for name, open := range map[string]func() (*DB, error){
		"write": func() (*DB, error) { return dir.Open(t.Context()) },
		"read":  func() (*DB, error) { return OpenReadOnly(t.Context(), path) },
	} {
		if _, err := open(); !errors.Is(err, ErrNewer) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVerifyAuditNamesTheBadRow(t *testing.T) {
	for _, c := range []struct {
		harm string
		want uint64
	}{
		{"UPDATE audit SET entry = (SELECT entry FROM audit WHERE idx = 2) WHERE idx = 3", 3},
		{"DELETE FROM audit WHERE idx = 2", 2},
		{"DELETE FROM audit", 1},
		{"UPDATE audit SET hash = zeroblob(32) WHERE idx = 4", 4},
		{"UPDATE network SET genesis = x'00'", 1},
	} {
		b := newBook(t)
		b.people()
		if _, err := b.db.sql.Exec(c.harm); err != nil {
			t.Fatal(err)
		}
		var broken *audit.BrokenError
		if _, err := b.db.VerifyAudit(t.Context()); !errors.As(err, &broken) || broken.Index != c.want {
			t.Errorf("%s: %v, want index %d", c.harm, err, c.want)
		}
	}
}

func TestDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	dir, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDir(path); !errors.Is(err, ErrLocked) {
		t.Errorf("a second coordinator: %v", err)
	}
	if err := dir.MakeKeys(rand.Reader); err != nil {
		t.Fatal(err)
	}
	keys, err := dir.LoadKeys()
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.MakeKeys(rand.Reader); err != nil { // keeps those that there are
		t.Fatal(err)
	}
	again, err := dir.LoadKeys()
	if err != nil || again.Channel.Public() != keys.Channel.Public() || again.Signing.Public() != keys.Signing.Public() || again.Label != keys.Label {
		t.Fatalf("other keys after a second time: %v", err)
	}
	for _, name := range []string{channelFile, signingFile, labelFile} {
		info, err := os.Stat(filepath.Join(path, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info.Mode(), err)
		}
	}
	os.Chmod(filepath.Join(path, signingFile), 0o640)
	if _, err := dir.LoadKeys(); !errors.Is(err, ErrPermissions) {
		t.Errorf("a key that the group may read: %v", err)
	}
	os.Remove(filepath.Join(path, signingFile))
	if _, err := dir.LoadKeys(); !errors.Is(err, ErrKeyFile) {
		t.Errorf("no key: %v", err)
	}
	os.WriteFile(filepath.Join(path, signingFile), []byte("abcd\n"), 0o600)
	if _, err := dir.LoadKeys(); !errors.Is(err, ErrKeyFile) {
		t.Errorf("half a key: %v", err)
	}
	dir.Close()
	os.Chmod(path, 0o750)
	if _, err := OpenDir(path); !errors.Is(err, ErrPermissions) {
		t.Errorf("a directory that the group may enter: %v", err)
	}
}

// TestNoSecretInTheDatabase looks for the private keys and for a join key's
// secret in every byte of the database files (S10).
func TestNoSecretInTheDatabase(t *testing.T) {
	b := newBook(t)
	dir := &Dir{path: b.dir}
	if err := dir.MakeKeys(rand.Reader); err != nil {
		t.Fatal(err)
	}
	keys, err := dir.LoadKeys()
	if err != nil {
		t.Fatal(err)
	}
	b.people()
	b.mustRun(register(1, "many"))
	canaries := [][]byte{keys.Channel.SecretBytes(), keys.Signing.SecretBytes(), keys.Label[:]}
	hash := secret("many")
	found := false
	for _, name := range []string{databaseFile, databaseFile + "-wal", databaseFile + "-shm"} {
		path := filepath.Join(b.dir, name)
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
		for i, c := range canaries {
			if bytes.Contains(content, c) || bytes.Contains(content, []byte(hex.EncodeToString(c))) {
				t.Errorf("%s holds secret %d", name, i)
			}
		}
		found = found || bytes.Contains(content, hash[:])
	}
	if !found {
		t.Error("the key's hash is nowhere either: the search finds nothing")
	}
}
