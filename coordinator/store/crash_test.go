package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/audit"
	"github.com/warren-overlay/warren/coordinator/registry"
)

// crashDir, where it is set, makes the test binary the process that is killed.
const crashDir = "WARREN_STORE_TEST_CRASH_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		mutate(dir)
		return
	}
	os.Exit(m.Run())
}

// mutate changes the database as fast as it can until it is killed, and says
// each change on standard output once it is acknowledged. Several devices race
// for each join key.
func mutate(path string) {
	t := &plain{}
	b := openBook(t, path)
	b.now = time.Now()
	if b.state.UserByLogin("alice@example.com") == nil {
		b.mustRun(registry.CreateUser{Login: "alice@example.com"})
	}
	for {
		n := uint16(b.state.Counters().Node)
		key := fmt.Sprint("key", b.head.Index)
		b.mustRun(registry.CreateKey{ID: key, Hash: secret(key), Login: "alice@example.com", Expires: b.now.Add(time.Hour)})
		fmt.Println("key", key)
		d, machine := b.race(n, key)
		fmt.Println("device", uint64(d.ID), key, machine)
		p := b.mustRun(registry.SetPolicy{Text: key}).Policy
		fmt.Println("policy", uint64(p.Epoch), key)
		if n%3 == 2 {
			b.mustRun(registry.RevokeDevice{Node: d.ID})
			fmt.Println("revoke", uint64(d.ID))
		}
	}
}

// racers is how many devices present each single-use key at the same time.
const racers = 4

// race registers devices by one single-use key, each decided on a state that
// did not see the others, and returns the one that is a member now, and the
// number of its machine.
func (b *book) race(n uint16, key string) (*registry.Device, uint16) {
	type outcome struct {
		changes registry.Changes
		device  *registry.Device
		head    audit.Head
		machine uint16
		err     error
	}
	outcomes := make(chan outcome, racers)
	for i := range uint16(racers) {
		machine := n*racers + i
		changes, result, err := registry.Decide(b.state, "test", register(machine, key), b.now)
		if err != nil {
			b.t.Fatal(err)
		}
		go func() {
			head, err := b.db.Commit(context.Background(), &changes, b.head)
			outcomes <- outcome{changes, result.Device, head, machine, err}
		}()
	}
	var won *outcome
	for range racers {
		switch o := <-outcomes; {
		case o.err == nil && won == nil:
			won = &o
		case !errors.Is(o.err, ErrSpent):
			b.t.Fatalf("a key for one device: %v", o.err)
		}
	}
	if won == nil {
		b.t.Fatal("nobody joined")
	}
	b.head = won.head
	b.state.Apply(&won.changes)
	return won.device, won.machine
}

// plain is what openBook needs of a test in a process that is none.
type plain struct{ testing.TB }

func (*plain) Helper()                      {}
func (*plain) Cleanup(func())               {}
func (*plain) Fatal(args ...any)            { panic(fmt.Sprint(args...)) }
func (*plain) Fatalf(f string, args ...any) { panic(fmt.Sprintf(f, args...)) }
func (*plain) Context() context.Context     { return context.Background() }

// TestKill kills a process that changes the database at random times, and
// checks each time that everything acknowledged is there and nothing is there
// by half (F01). WARREN_SOAK=1 runs the long form.
func TestKill(t *testing.T) {
	if testing.Short() {
		t.Skip("kills processes for seconds")
	}
	iterations := 8
	if os.Getenv("WARREN_SOAK") != "" {
		iterations = 200
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := mrand.New(mrand.NewPCG(seed, 0))
	path := filepath.Join(t.TempDir(), "data")
	acknowledged := 0
	type joined struct {
		key     string
		machine uint16
	}
	devices, policies := map[ident.NodeID]joined{}, map[uint64]string{}
	revoked := map[ident.NodeID]bool{}
	var epoch uint64
	for range iterations {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), crashDir+"="+path)
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		// The first line says that it is at work; then it has up to 50 ms.
		for kill := false; lines.Scan(); {
			if !kill {
				kill = true
				time.AfterFunc(time.Duration(r.IntN(50_000))*time.Microsecond, func() { child.Process.Signal(syscall.SIGKILL) })
			}
			acknowledged++
			f := strings.Fields(lines.Text())
			n, _ := strconv.ParseUint(f[1], 10, 64)
			switch f[0] {
			case "device":
				machine, _ := strconv.ParseUint(f[3], 10, 16)
				devices[ident.NodeID(n)] = joined{f[2], uint16(machine)}
			case "policy":
				policies[n] = f[2]
				if n <= epoch {
					t.Fatalf("epoch %d after %d", n, epoch)
				}
				epoch = n
			case "revoke":
				revoked[ident.NodeID(n)] = true
			}
		}
		child.Wait()

		started := time.Now()
		dir, err := OpenDir(path)
		if err != nil {
			t.Fatal(err)
		}
		db, err := dir.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		state, head, err := db.Load(t.Context(), network)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(started); took > 3*time.Second {
			t.Errorf("%v until it could serve", took)
		}
		b := &book{t: t, db: db, state: state, head: head}
		b.same()
		for id, j := range devices {
			k := state.Key(j.key)
			if k == nil || k.Uses != 1 {
				t.Fatalf("device %v joined by key %s, which is %+v", id, j.key, k)
			}
			machine := register(j.machine, j.key).Machine
			d := state.Device(id)
			if d == nil && !revoked[id] && !state.RevokedMachine(machine) {
				t.Fatalf("device %v was acknowledged and is gone", id)
			}
			if d != nil && (d.Machine != machine || d.Key != j.key || !d.IPv4.IsValid()) {
				t.Fatalf("device %v was acknowledged as %+v and is %+v", id, j, d)
			}
		}
		// Nobody but one joined by each key, whether or not that was
		// acknowledged.
		by := map[string]ident.NodeID{}
		for _, d := range state.Devices() {
			if other, twice := by[d.Key]; twice {
				t.Fatalf("%v and %v joined by the single-use key %s", other, d.ID, d.Key)
			}
			by[d.Key] = d.ID
		}
		for id := range revoked {
			if state.Device(id) != nil {
				t.Fatalf("device %v was revoked and is back", id)
			}
		}
		used := 0
		for _, k := range state.Keys() {
			used += int(k.Uses)
		}
		if members := len(state.Devices()) + len(state.Revocations()); members != used {
			t.Fatalf("%d devices by %d uses of keys", members, used)
		}
		if uint64(state.Policy().Epoch) < epoch || policies[epoch] != "" && uint64(state.Policy().Epoch) == epoch && state.Policy().Text != policies[epoch] {
			t.Fatalf("policy %+v, acknowledged %d %s", state.Policy(), epoch, policies[epoch])
		}
		db.Close()
		dir.Close()
	}
	if acknowledged < iterations {
		t.Fatalf("only %d changes in %d runs: nothing was tried", acknowledged, iterations)
	}
	t.Logf("%d acknowledged changes over %d kills", acknowledged, iterations)
}
