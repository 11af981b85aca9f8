package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	mrand "math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/admin"
	"github.com/warren-overlay/warren/coordinator/audit"
	"github.com/warren-overlay/warren/coordinator/registry"
	"github.com/warren-overlay/warren/coordinator/session"
	"github.com/warren-overlay/warren/coordinator/wire"
)

const everyone = `{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}`

const alicesOnly = `{"acls": [{"action": "accept", "src": ["alice@example.com"], "dst": ["alice@example.com:*"]}]}`

// bubble runs a test with a coordinator in simulated time.
func bubble(t *testing.T, f func(t *testing.T, o *site)) {
	path := filepath.Join(t.TempDir(), "data")
	synctest.Test(t, func(t *testing.T) {
		o := openSite(t, path)
		defer func() { o.stop() }()
		o.must(registry.CreateUser{Login: "alice@example.com"})
		o.must(registry.CreateUser{Login: "bob@example.com"})
		o.must(registry.SetPolicy{Text: everyone})
		f(t, o)
	})
}

func (o *site) alices() string {
	return o.key(registry.CreateKey{Login: "alice@example.com", Reusable: true})
}

func (o *site) bobs() string {
	return o.key(registry.CreateKey{Login: "bob@example.com", Reusable: true})
}

func names(m map[string]wire.PeerState) string {
	return strings.Join(slices.Sorted(maps.Keys(m)), " ")
}

func TestDevicesMeet(t *testing.T) {
	bubble(t, func(t *testing.T, o *site) {
		key := o.alices()
		a := o.join(key, "a")
		b := newDevice(t)
		b.connect(o)
		b.register(key, "b")
		at := netip.MustParseAddrPort("192.0.2.7:41641")
		b.listen(at, netip.MustParseAddrPort("100.64.0.9:1"))
		synctest.Wait()
		if got := a.sees(o)["b"]; !got.Online || got.OS != "linux" || !slices.Equal(got.Endpoints, []netip.AddrPort{at}) {
			t.Errorf("a sees of b: %+v", got)
		}
		if got := names(b.sees(o)); got != "a" {
			t.Errorf("b sees %q", got)
		}
		moved := netip.MustParseAddrPort("192.0.2.8:41641")
		b.say(wire.Update{Endpoints: []netip.AddrPort{moved}})
		time.Sleep(time.Second)
		if got := a.sees(o)["b"]; !slices.Equal(got.Endpoints, []netip.AddrPort{moved}) {
			t.Errorf("after b moved a sees %+v", got)
		}
		b.close()
		synctest.Wait()
		if got := a.sees(o)["b"]; got.Online {
			t.Errorf("after b left a sees %+v", got)
		}
		a.close()
	})
}

func TestPolicyChangesWhatDevicesSee(t *testing.T) {
	bubble(t, func(t *testing.T, o *site) {
		a1, a2, b := o.join(o.alices(), "a1"), o.join(o.alices(), "a2"), o.join(o.bobs(), "b")
		for _, c := range []struct{ policy, a1, b string }{
			{everyone, "a2 b", "a1 a2"}, {alicesOnly, "a2", ""}, {`{"acls": []}`, "", ""}, {everyone, "a2 b", "a1 a2"},
		} {
			o.must(registry.SetPolicy{Text: c.policy})
			synctest.Wait()
			if got := names(a1.sees(o)); got != c.a1 {
				t.Errorf("a1 sees %q, want %q, under %s", got, c.a1, c.policy)
			}
			if got := names(b.sees(o)); got != c.b {
				t.Errorf("b sees %q, want %q, under %s", got, c.b, c.policy)
			}
		}
		a1.close()
		a2.close()
		b.close()
	})
}

func TestRevokedDeviceIsCutAndStaysOut(t *testing.T) {
	bubble(t, func(t *testing.T, o *site) {
		key := o.alices()
		a, b := o.join(key, "a"), o.join(key, "b")
		synctest.Wait()
		token := b.held().RelayToken
		if _, _, err := o.Members().Admit(b.node, token, time.Now()); err != nil {
			t.Fatalf("the relay refuses a member: %v", err)
		}
		before := time.Now()
		o.must(registry.RevokeDevice{Node: 2})
		synctest.Wait()
		if got := names(a.sees(o)); got != "" || b.why() != wire.CodeRevoked {
			t.Errorf("a still sees %q; b was told code %d", got, b.why())
		}
		if took := time.Since(before); took != 0 {
			t.Errorf("it took %v of simulated time", took)
		}
		if _, _, err := o.Members().Admit(b.node, token, time.Now()); !errors.Is(err, ErrNotMember) {
			t.Errorf("the relay admits it: %v", err)
		}
		if !slices.Equal(o.revoked, []ident.NodeKey{b.node}) {
			t.Errorf("the relay was told of %v", o.revoked)
		}
		told, err := o.Members().Revocations(o.keys.Signing, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if r, err := authority.VerifyRelayRevocations(o.Genesis(), told); err != nil || !slices.Equal(r.Keys, []ident.NodeKey{b.node}) || !r.Time.Equal(time.Now().Truncate(time.Second)) {
			t.Errorf("relays elsewhere are told %+v, %v", r, err)
		}
		if _, refused := b.connect(o); refused == nil || refused.Code != wire.CodeRevoked {
			t.Errorf("it comes back: %+v", refused)
		}
		b.ch.Close()
		thief := newDevice(t)
		thief.take(b)
		thief.connect(o)
		if _, refused := thief.register(o.alices(), "thief"); refused == nil || refused.Code != wire.CodeRevoked {
			t.Errorf("its node key comes back: %+v", refused)
		}
		anew := newDevice(t)
		anew.connect(o)
		if _, refused := anew.register(key, "b"); refused == nil || refused.Code != wire.CodeAuthKey {
			t.Errorf("it comes back by its join key with new keys: %+v", refused)
		}
		a.close()
	})
}

// TestSuspendedUserIsCutUntilResumed suspends a user with two devices, one of
// them away.
func TestSuspendedUserIsCutUntilResumed(t *testing.T) {
	bubble(t, func(t *testing.T, o *site) {
		key := o.alices()
		a, away, b := o.join(key, "a"), o.join(key, "away"), o.join(o.bobs(), "b")
		away.close()
		synctest.Wait()
		token := a.held().RelayToken
		before := time.Now()
		o.must(registry.SuspendUser{Login: "alice@example.com"})
		synctest.Wait()
		if got := names(b.sees(o)); got != "" || a.why() != wire.CodeSuspended {
			t.Errorf("b still sees %q; a was told code %d", got, a.why())
		}
		if took := time.Since(before); took != 0 {
			t.Errorf("it took %v of simulated time", took)
		}
		if _, _, err := o.Members().Admit(a.node, token, time.Now()); !errors.Is(err, ErrNotMember) {
			t.Errorf("the relay admits it: %v", err)
		}
		if !slices.Equal(o.revoked, []ident.NodeKey{a.node, away.node}) {
			t.Errorf("the relay was told of %v", o.revoked)
		}
		// A restart does not forget it.
		b.close()
		o.stop()
		o.restart()
		if _, _, err := o.Members().Admit(a.node, token, time.Now()); !errors.Is(err, ErrNotMember) {
			t.Errorf("the relay admits it after a restart: %v", err)
		}
		for _, d := range []*device{a, away} {
			_, refused := d.connect(o)
			if refused == nil || refused.Code != wire.CodeSuspended || refused.RetryAfter != suspensionRetry {
				t.Errorf("it comes back: %+v", refused)
			}
			d.ch.Close()
		}
		anew := newDevice(t)
		anew.connect(o)
		if _, refused := anew.register(key, "anew"); refused == nil || refused.Code != wire.CodeAuthKey {
			t.Errorf("another joins by the user's key: %+v", refused)
		}
		o.must(registry.ResumeUser{Login: "alice@example.com"})
		for _, d := range []*device{a, b} {
			if registered, refused := d.connect(o); !registered || refused != nil {
				t.Fatalf("after it was resumed: %+v", refused)
			}
			if refused := d.listen(); refused != nil {
				t.Fatal(refused)
			}
		}
		synctest.Wait()
		if got := names(b.sees(o)); got != "a away" {
			t.Errorf("after it was resumed b sees %q", got)
		}
		if _, _, err := o.Members().Admit(a.node, a.held().RelayToken, time.Now()); err != nil {
			t.Errorf("the relay refuses it after it was resumed: %v", err)
		}
		a.close()
		b.close()
	})
}

// TestNodeKeyOfAnotherIsRefused claims a victim's key on every path (X-20,
//
func TestNodeKeyOfAnotherIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T, o *site) {
		key := o.alices()
		victim := o.join(key, "victim")
		before := victim.held()

		fresh := newDevice(t)
		fresh.take(victim)
		fresh.connect(o)
		if _, refused := fresh.register(key, "thief"); refused == nil || refused.Code != wire.CodeKeyInUse {
			t.Errorf("at registration: %+v", refused)
		}
		member := o.join(key, "member")
		member.close()
		own := &device{private: member.private, node: member.node}
		member.take(victim)
		member.m = nil
		member.connect(o)
		if refused := member.listen(); refused == nil || refused.Code != wire.CodeKeyInUse {
			t.Errorf("at the map request: %+v", refused)
		}
		member.connect(o)
		if _, refused := member.register(key, "thief"); refused == nil || refused.Code != wire.CodeKeyInUse {
			t.Errorf("at another registration: %+v", refused)
		}
		synctest.Wait()
		if victim.why() != 0 || !slices.Equal(victim.held().Self, before.Self) {
			t.Errorf("the victim noticed: code %d", victim.why())
		}
		member.take(own)
		member.connect(o)
		if refused := member.listen(); refused != nil {
			t.Errorf("the member's own key: %v", refused)
		}
		member.close()
		victim.close()
	})
}

// TestNodeKeyMustBeProven claims keys that the device does not hold, which
// nobody else has either: at registration and as a rotation, with no proof and
// with one of another key or another channel.
func TestNodeKeyMustBeProven(t *testing.T) {
	bubble(t, func(t *testing.T, o *site) {
		key := o.alices()
		held, foreign := newDevice(t), newDevice(t)
		held.connect(o)
		elsewhere := held.proof() // of the right key on another channel
		held.ch.Close()
		refusedAs := func(d *device, m wire.ClientMessage) wire.Code {
			t.Helper()
			d.say(m)
			refused, ok := d.hear().(*wire.Error)
			if !ok {
				return 0
			}
			d.ch.Close()
			return refused.Code
		}
		for name, claim := range map[string]struct {
			node  ident.NodeKey
			proof func() wire.Proof
		}{
			"no proof":                {held.node, func() wire.Proof { return wire.Proof{} }},
			"a proof of another key":  {foreign.node, held.proof},
			"a proof made elsewhere":  {held.node, func() wire.Proof { return elsewhere }},
			"no key, proof of one":    {ident.NodeKey{}, held.proof},
			"a key that nobody holds": {ident.NodeKey{1}, held.proof},
		} {
			held.connect(o)
			before := len(o.entries())
			if got := refusedAs(held, wire.Register{AuthKey: key, NodeKey: claim.node, Hostname: "d", Proof: claim.proof()}); got != wire.CodeMalformed {
				t.Errorf("%s at registration: code %d", name, got)
			}
			if got := len(o.entries()) - before; got != 1 {
				t.Errorf("%s at registration: %d audit entries", name, got)
			}
			member := o.join(key, "member")
			member.close()
			member.connect(o)
			held.ch = member.ch // the proof is for the channel at hand
			if got := refusedAs(member, wire.MapRequest{NodeKey: claim.node, Proof: claim.proof()}); got != wire.CodeMalformed {
				t.Errorf("%s as a rotation: code %d", name, got)
			}
			member.connect(o)
			if refused := member.listen(); refused != nil {
				t.Errorf("%s: the member's own key is refused then: %v", name, refused)
			}
			member.close()
			// One that it holds is another matter.
			next := newDevice(t)
			member.take(next)
			member.connect(o)
			if refused := member.listen(); refused != nil {
				t.Errorf("a rotation to a key that is held: %v", refused)
			}
			member.close()
		}
	})
}

// TestRefusedKeysLookAlike presents every kind of useless key (S04).
func TestRefusedKeysLookAlike(t *testing.T) {
	bubble(t, func(t *testing.T, o *site) {
		spent := o.key(registry.CreateKey{Login: "alice@example.com"})
		first := o.join(spent, "first")
		expired := o.key(registry.CreateKey{Login: "alice@example.com", Expires: time.Now().Add(time.Second)})
		revoked := o.key(registry.CreateKey{Login: "alice@example.com"})
		id, _ := wire.ParseCredential(revoked)
		o.must(registry.RevokeKey{ID: id.ID})
		time.Sleep(time.Second)
		good := o.alices()
		wrong := good[:len(good)-4] + "aaaa"
		entries := o.entries()
		var said []string
		for _, key := range []string{spent, expired, revoked, wrong, "", "wkey-auth-", strings.Repeat("x", 900)} {
			d := newDevice(t)
			d.connect(o)
			_, refused := d.register(key, "d")
			if refused == nil || refused.Code != wire.CodeAuthKey {
				t.Fatalf("%.20q: %+v", key, refused)
			}
			said = append(said, refused.Message)
		}
		if len(slices.Compact(said)) != 1 {
			t.Errorf("the answers tell the keys apart: %q", said)
		}
		if got := len(o.entries()) - len(entries); got != 7 {
			t.Errorf("%d audit entries of 7 attempts", got)
		}
		o.Inspect(t.Context(), func(v *admin.View) {
			if _, devices, _ := v.State.Counts(); devices != 1 {
				t.Errorf("%d devices", devices)
			}
		})
		first.close()
	})
}

// TestRefusalsAreRecordedAtABoundedRate makes more refused registrations than
// the audit log takes, of every kind that a stranger can make: those over the
// rate are counted in it, and a good join key is good all the while.
func TestRefusalsAreRecordedAtABoundedRate(t *testing.T) {
	bubble(t, func(t *testing.T, o *site) {
		key := o.alices()
		victim := o.join(key, "victim")
		before := len(o.entries())
		const attempts = 100
		for i := range attempts {
			d := newDevice(t)
			d.connect(o)
			m := wire.Register{AuthKey: key, NodeKey: d.node, Hostname: "d", Proof: d.proof()}
			want := wire.CodeAuthKey
			switch i % 4 {
			case 0:
				m.AuthKey = "wkey-auth-"
			case 1:
				m.Tags, want = []ident.Tag{"tag:db"}, wire.CodeDenied
			case 2:
				d.take(victim)
				m.NodeKey, m.Proof, want = d.node, d.proof(), wire.CodeKeyInUse
			case 3:
				m.NodeKey, want = ident.NodeKey{}, wire.CodeMalformed
			}
			d.say(m)
			if refused, ok := d.hear().(*wire.Error); !ok || refused.Code != want {
				t.Fatalf("attempt %d: %+v, want code %d", i, refused, want)
			}
			d.ch.Close()
		}
		if got := len(o.entries()) - before; got != refusalsPerMinute {
			t.Errorf("%d audit entries of %d attempts in one moment", got, attempts)
		}
		neighbour := o.join(key, "neighbour")
		time.Sleep(2 * upkeep)
		all := o.entries()
		counted := slices.IndexFunc(all, func(e audit.Entry) bool {
			return e.Action == "device.register.refused" && slices.Contains(e.Details, audit.Detail{Key: "count", Value: fmt.Sprint(attempts - refusalsPerMinute)})
		})
		if counted < 0 {
			t.Errorf("the others are not counted: %+v", all)
		}
		neighbour.close()
		victim.close()
	})
}

func (o *site) entries() (out []audit.Entry) {
	o.t.Helper()
	err := o.db.Audit(context.Background(), 0, func(r *audit.Record) error {
		e, err := audit.Decode(r.Entry)
		out = append(out, e)
		return err
	})
	if err != nil {
		o.t.Fatal(err)
	}
	return out
}

// TestParallelRegistrations races 64 devices for one single-use key, and 32
// connections of one device.
func TestParallelRegistrations(t *testing.T) {
	bubble(t, func(t *testing.T, o *site) {
		once := o.key(registry.CreateKey{Login: "alice@example.com"})
		var wg sync.WaitGroup
		var mu sync.Mutex
		joined, refusals := 0, 0
		for i := range 64 {
			wg.Go(func() {
				d := newDevice(t)
				d.connect(o)
				_, refused := d.register(once, fmt.Sprint("d", i))
				mu.Lock()
				defer mu.Unlock()
				if refused == nil {
					joined++
				} else if refused.Code == wire.CodeAuthKey || refused.Code == wire.CodeUnavailable {
					refusals++
				}
				d.ch.Close()
			})
		}
		wg.Wait()
		if joined != 1 || refusals != 63 {
			t.Errorf("%d joined by one single-use key, %d were refused", joined, refusals)
		}
		many := o.alices()
		machine := newDevice(t)
		ids := map[ident.NodeID]bool{}
		for range 32 {
			wg.Go(func() {
				d := &device{t: t, machine: machine.machine, private: machine.private, node: machine.node}
				d.connect(o)
				r, refused := d.register(many, "same")
				mu.Lock()
				defer mu.Unlock()
				if refused != nil {
					t.Errorf("%+v", refused)
				}
				ids[r.Node] = true
				d.ch.Close()
			})
		}
		wg.Wait()
		if len(ids) != 1 {
			t.Errorf("one device became %v", ids)
		}
	})
}

// TestConvergence changes everything at once from many sides while devices
// come and go: each ends with exactly the map that a fresh one would be.
func TestConvergence(t *testing.T) {
	seeds := uint64(3)
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		bubble(t, func(t *testing.T, o *site) {
			keys := []string{o.alices(), o.bobs(), o.key(registry.CreateKey{Tags: []ident.Tag{"tag:db"}, Reusable: true})}
			devices := make([]*device, 12)
			for i := range devices {
				devices[i] = o.join(keys[i%3], fmt.Sprint("d", i))
			}
			var wg sync.WaitGroup
			for i, d := range devices {
				wg.Go(func() {
					r := mrand.New(mrand.NewPCG(seed, uint64(i)))
					for range 25 {
						time.Sleep(time.Duration(r.IntN(400)) * time.Millisecond)
						switch r.IntN(3) {
						case 0:
							d.ch.Send(wire.EncodeClient(wire.Update{Endpoints: []netip.AddrPort{
								netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(1+r.IntN(60000))),
							}}))
						case 1:
							d.close()
							if d.why() == wire.CodeRevoked {
								return
							}
							if _, refused := d.connect(o); refused != nil {
								return // revoked in the meantime
							}
							if r.IntN(2) == 0 {
								d.register(keys[r.IntN(3)], fmt.Sprint("n", r.IntN(4)))
							}
							if d.listen() != nil {
								return
							}
						}
					}
				})
			}
			wg.Go(func() {
				r := mrand.New(mrand.NewPCG(seed, 99))
				for range 30 {
					time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond)
					switch r.IntN(8) {
					case 0:
						o.Execute(context.Background(), "test", registry.RevokeDevice{Node: ident.NodeID(1 + r.IntN(12)), KeepKey: true})
					case 1:
						o.must(registry.CreateUser{Login: fmt.Sprint("u", r.Uint32(), "@example.com")})
					default:
						text := []string{everyone, alicesOnly, `{"acls": []}`, `{
							"groups": {"group:x": ["bob@example.com"]}, "tagOwners": {"tag:db": ["group:x"]},
							"acls": [{"action": "accept", "src": ["group:x"], "dst": ["tag:db:1"]}]}`}[r.IntN(4)]
						o.must(registry.SetPolicy{Text: text})
					}
				}
			})
			wg.Wait()
			time.Sleep(2 * time.Second)
			synctest.Wait()
			checked := 0
			o.Inspect(context.Background(), func(v *admin.View) {
				for id, c := range o.byNode {
					i := slices.IndexFunc(devices, func(d *device) bool { return d.machine.Public() == c.machine })
					want, err := v.Network.Map(id)
					if err != nil {
						t.Error(err)
						continue
					}
					checked++
					if got := devices[i].held(); got.Hash() != want.Hash() {
						t.Errorf("seed %d: %v has\n%+v\nnot\n%+v", seed, id, got, want)
					}
				}
			})
			if checked == 0 {
				t.Errorf("seed %d: no device is left to look at", seed)
			}
			for _, d := range devices {
				d.ch.Close()
			}
		})
	}
}

func TestSecondConnectionReplacesTheFirst(t *testing.T) {
	bubble(t, func(t *testing.T, o *site) {
		key := o.alices()
		watcher, first := o.join(key, "watcher"), o.join(key, "d")
		second := &device{t: t, machine: first.machine, private: first.private, node: first.node}
		if registered, _ := second.connect(o); !registered {
			t.Error("the second connection is a stranger's")
		}
		synctest.Wait()
		if first.why() != 0 {
			t.Error("the first connection ends before the second listens")
		}
		second.listen()
		synctest.Wait()
		if first.why() != wire.CodeReplaced {
			t.Errorf("the first connection was told %d", first.why())
		}
		if got := watcher.sees(o)["d"]; !got.Online {
			t.Error("the device counts as gone after the first connection ended")
		}
		second.close()
		watcher.close()
	})
}

func TestSilentDeviceCountsAsGone(t *testing.T) {
	bubble(t, func(t *testing.T, o *site) {
		key := o.alices()
		a, b := o.join(key, "a"), o.join(key, "b")
		b.mu.Lock()
		b.mute = true
		b.mu.Unlock()
		time.Sleep(session.DeadAfter - 2*time.Second)
		if !a.sees(o)["b"].Online {
			t.Error("gone too early")
		}
		time.Sleep(5 * time.Second)
		if a.sees(o)["b"].Online {
			t.Error("still there")
		}
		a.close()
		<-b.gone
	})
}

// TestDaysPass keeps a device connected for as long as it takes to renew its
// certificate, and lets an ephemeral one leave.
func TestDaysPass(t *testing.T) {
	bubble(t, func(t *testing.T, o *site) {
		a := o.join(o.alices(), "a")
		guest := o.join(o.key(registry.CreateKey{Login: "bob@example.com", Ephemeral: true}), "guest")
		time.Sleep(time.Hour)
		if got := names(a.sees(o)); got != "guest" {
			t.Fatalf("a sees %q", got)
		}
		guest.close()
		time.Sleep(registry.EphemeralGrace - time.Minute)
		if got := names(a.sees(o)); got != "guest" {
			t.Fatalf("a sees %q before the time", got)
		}
		time.Sleep(3 * time.Minute)
		if got := names(a.sees(o)); got != "" {
			t.Fatalf("a sees %q after the time", got)
		}
		before := a.held().Self
		time.Sleep(4 * 24 * time.Hour)
		a.sees(o) // everything still verifies, the relay token among it
		if slices.Equal(before, a.held().Self) {
			t.Error("the certificate was not renewed")
		}
		a.close()
	})
}

// TestRestart takes the coordinator down and up again: members come back with
// what they hold, and are told only what changed.
func TestRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	synctest.Test(t, func(t *testing.T) {
		o := openSite(t, path)
		if !o.Created() {
			t.Error("the first start made no network")
		}
		o.must(registry.CreateUser{Login: "alice@example.com"})
		o.must(registry.SetPolicy{Text: everyone})
		key := o.alices()
		a, b := o.join(key, "a"), o.join(key, "b")
		b.close()
		synctest.Wait()
		fingerprint := o.Fingerprint()
		o.stop()
		<-a.gone
		if a.why() != wire.CodeUnavailable {
			t.Errorf("a was told %d", a.why())
		}
		held := a.held()

		o = openSite(t, path)
		defer func() { o.stop() }()
		if o.Created() || o.Fingerprint() != fingerprint {
			t.Error("another network")
		}
		if registered, refused := a.connect(o); !registered {
			t.Fatalf("a is a stranger: %v", refused)
		}
		if refused := a.listen(); refused != nil {
			t.Fatal(refused)
		}
		if a.deltas == 0 || a.held().Sequence <= held.Sequence {
			t.Error("a was told everything anew")
		}
		if got := names(a.sees(o)); got != "b" {
			t.Errorf("a sees %q", got)
		}
		a.close()
	})
}

// TestMalformedFramesEndOneConnection mutates messages (F24).
func TestMalformedFramesEndOneConnection(t *testing.T) {
	bubble(t, func(t *testing.T, o *site) {
		key := o.alices()
		bystander := o.join(key, "bystander")
		r := mrand.New(mrand.NewPCG(1, 1))
		base := [][]byte{
			wire.EncodeClient(wire.Hello{Version: 1}), wire.EncodeClient(wire.Register{AuthKey: key, Hostname: "x"}),
			wire.EncodeClient(wire.MapRequest{}), wire.EncodeClient(wire.Update{}), wire.EncodeClient(wire.Logout{}),
			{0xff},
		}
		for range 300 {
			d := newDevice(t)
			if r.IntN(2) == 0 {
				d.connect(o)
				if r.IntN(2) == 0 {
					if _, refused := d.register(key, "y"); refused != nil {
						continue
					}
				}
			} else {
				d.connect(o)
			}
			for range 4 {
				b := slices.Clone(base[r.IntN(len(base))])
				for range r.IntN(3) {
					b[r.IntN(len(b))] ^= 1 << r.IntN(8)
				}
				if d.ch.Send(b) != nil {
					break
				}
			}
			d.ch.Close()
		}
		time.Sleep(5 * time.Second)
		if bystander.why() != 0 {
			t.Errorf("the bystander was sent away with %d", bystander.why())
		}
		bystander.sees(o)
		bystander.close()
	})
}

func TestLogout(t *testing.T) {
	bubble(t, func(t *testing.T, o *site) {
		key := o.alices()
		a, b := o.join(key, "a"), o.join(key, "b")
		b.say(wire.Logout{})
		synctest.Wait()
		if b.why() != wire.CodeNotRegistered || names(a.sees(o)) != "" {
			t.Errorf("b was told %d, a sees %q", b.why(), names(a.sees(o)))
		}
		b.m = nil
		if registered, refused := b.connect(o); registered || refused != nil {
			t.Errorf("b is still a member: %v", refused)
		}
		if r, refused := b.register(key, "b"); refused != nil || r.Node != 3 {
			t.Errorf("b joins again: %+v %v", r, refused)
		}
		b.ch.Close()
		a.close()
	})
}
