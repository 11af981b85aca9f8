package netmap

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/registry"
	"github.com/warren-overlay/warren/coordinator/wire"
)

var begin = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// org is a network as the server drives it: registry, network, and what each
// connected node was told by deltas.
type org struct {
	t       testing.TB
	cfg     Config
	state   *registry.State
	net     *Network
	streams map[ident.NodeID]*wire.Stream
	nodes   map[ident.NodeID]*wire.Map // what the node made of the deltas
	now     time.Time
	deltas  int
	// full means that certificates find no space on the disk.
	full bool
}

type seeded struct{ r *rand.Rand }

func (s seeded) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(s.r.Uint32())
	}
	return len(b), nil
}

func newOrg(t testing.TB) *org {
	random := seeded{rand.New(rand.NewPCG(1, 1))}
	signer, err := ident.NewSignerPrivate(random)
	if err != nil {
		t.Fatal(err)
	}
	channel, err := ident.NewChannelPrivate(random)
	if err != nil {
		t.Fatal(err)
	}
	g := &authority.Genesis{
		Created: begin, Channel: channel.Public(),
		Signers: []authority.Signer{{Key: signer.Public(), Roles: authority.SignDevices | authority.SignRules | authority.SignRelayTokens}},
		Prefix4: netip.MustParsePrefix("100.64.0.0/10"), Prefix6: netip.MustParsePrefix("fd12:3456:789a::/48"),
	}
	o := &org{
		t: t, state: registry.NewState(registry.Network{Fingerprint: g.Fingerprint(), Prefix4: g.Prefix4, Prefix6: g.Prefix6}),
		cfg: Config{
			Genesis: g, Signer: signer, Labels: ident.LabelKey{1},
			Relays: []wire.Relay{{Name: "default", URL: "ws://:8080/warren/v1/relay"}}, STUN: []string{":3478"},
		},
		streams: map[ident.NodeID]*wire.Stream{}, nodes: map[ident.NodeID]*wire.Map{}, now: begin,
	}
	o.restart()
	for _, login := range []string{"alice@example.com", "bob@example.com", "carol@example.com"} {
		o.mustRun(registry.CreateUser{Login: login})
		o.mustRun(registry.CreateKey{ID: login[:3], Hash: hash(login[:3]), Login: login, Reusable: true, Expires: o.now.Add(300 * 24 * time.Hour)})
	}
	o.mustRun(registry.CreateKey{ID: "db", Hash: hash("db"), Tags: []ident.Tag{"tag:db"}, Reusable: true, Expires: o.now.Add(300 * 24 * time.Hour)})
	o.mustRun(registry.CreateKey{ID: "web", Hash: hash("web"), Tags: []ident.Tag{"tag:web"}, Reusable: true, Expires: o.now.Add(300 * 24 * time.Hour)})
	return o
}

func hash(s string) registry.KeyHash { return sha256.Sum256([]byte(s)) }

// restart builds the network anew, as a coordinator that starts does.
func (o *org) restart() {
	o.t.Helper()
	n, err := New(o.cfg, o.state, o.now)
	if err != nil {
		o.t.Fatal(err)
	}
	o.net = n
	o.renew()
}

func (o *org) run(cmd registry.Command) (registry.Result, error) {
	o.t.Helper()
	changes, result, err := registry.Decide(o.state, "test", cmd, o.now)
	if err != nil || changes.Empty() {
		return result, err
	}
	o.state.Apply(&changes)
	touched, err := o.net.HandleChanges(&changes)
	if err != nil {
		o.t.Fatal(err)
	}
	if _, renewal := cmd.(registry.RenewCertificates); !renewal {
		touched = append(touched, o.renew()...)
		o.tell(touched)
		return result, nil
	}
	o.tell(touched)
	return result, nil
}

func (o *org) mustRun(cmd registry.Command) registry.Result {
	o.t.Helper()
	r, err := o.run(cmd)
	if err != nil {
		o.t.Fatalf("%T: %v", cmd, err)
	}
	return r
}

func (o *org) renew() []Touch {
	o.t.Helper()
	out := o.issue()
	return append(out, o.net.Withhold()...)
}

func (o *org) issue() []Touch {
	o.t.Helper()
	var out []Touch
	for {
		certs, failures := o.net.Renewals(o.now)
		if len(failures) > 0 {
			o.t.Fatal(failures)
		}
		if len(certs) == 0 || o.full {
			return out
		}
		changes, _, err := registry.Decide(o.state, "coordinator", registry.RenewCertificates{Certificates: certs}, o.now)
		if err != nil {
			o.t.Fatal(err)
		}
		o.state.Apply(&changes)
		touched, err := o.net.HandleChanges(&changes)
		if err != nil {
			o.t.Fatal(err)
		}
		out = append(out, touched...)
	}
}

// tell brings every touched node that is connected up to date by deltas.
func (o *org) tell(touched []Touch) {
	o.t.Helper()
	whole := map[ident.NodeID]bool{}
	peers := map[ident.NodeID]map[ident.NodeID]wire.Peer{}
	for _, t := range touched {
		if t.Gone {
			if s := o.streams[t.Viewer]; s != nil && o.net.member(t.Viewer) != nil {
				if d := s.Remove([]ident.NodeID{t.Subject}); d != nil {
					o.deltas++
					next, err := o.nodes[t.Viewer].Apply(d)
					if err != nil {
						o.t.Fatal(err)
					}
					o.nodes[t.Viewer] = next
				}
			}
			continue
		}
		if t.Subject == 0 {
			whole[t.Viewer] = true
			continue
		}
		if peers[t.Viewer] == nil {
			peers[t.Viewer] = map[ident.NodeID]wire.Peer{}
		}
		if p, ok := o.net.Peer(t.Subject); ok {
			peers[t.Viewer][t.Subject] = p
		}
	}
	for _, id := range slices.Sorted(maps.Keys(o.streams)) {
		if o.net.member(id) == nil {
			delete(o.streams, id)
			delete(o.nodes, id)
			continue
		}
		var d *wire.Delta
		if whole[id] {
			m, err := o.net.Map(id)
			if err != nil {
				o.t.Fatal(err)
			}
			d = o.streams[id].Whole(m)
		} else {
			d = o.streams[id].Peers(peers[id], nil)
		}
		if d == nil {
			continue
		}
		o.deltas++
		next, err := o.nodes[id].Apply(d)
		if err != nil {
			o.t.Fatal(err)
		}
		o.nodes[id] = next
	}
}

func (o *org) connect(id ident.NodeID) {
	m, err := o.net.Map(id)
	if err != nil {
		o.t.Fatal(err)
	}
	c := *m
	c.Peers = maps.Clone(m.Peers)
	o.nodes[id] = &c
	o.streams[id] = wire.Begin(m)
}

func (o *org) register(n byte, key string) *registry.Device {
	o.t.Helper()
	return o.mustRun(registry.RegisterDevice{
		Machine: ident.MachineKey{n, 1}, NodeKey: ident.NodeKey{n, 2}, Key: key, Secret: hash(key), Hostname: fmt.Sprint(key, n),
	}).Device
}

// check compares what every connected node has with the view of a network that
// was built from the state alone, and looks with the eyes of a node.
func (o *org) check() {
	o.t.Helper()
	fresh, err := New(o.cfg, o.state, o.now)
	if err != nil {
		o.t.Fatal(err)
	}
	if certs, _ := fresh.Renewals(o.now); len(certs) > 0 {
		o.t.Fatalf("%d certificates are due that were not made", len(certs))
	}
	fresh.presence = o.net.presence
	for id, have := range o.nodes {
		want, err := fresh.Map(id)
		if err != nil {
			o.t.Fatal(err)
		}
		if have.Hash() != o.streams[id].Hash() {
			o.t.Fatalf("%v has another hash than the coordinator believes", id)
		}
		a, err := authority.New(o.cfg.Genesis, o.state.Device(id).NodeKey, authority.State{})
		if err != nil {
			o.t.Fatal(err)
		}
		self, err := a.AdmitSelf(have.Self, o.now)
		if err != nil {
			o.t.Fatalf("%v: own certificate: %v", id, err)
		}
		haveRules, err := a.AdmitRules(have.Rules, id)
		if err != nil {
			o.t.Fatal(err)
		}
		b, _ := authority.New(o.cfg.Genesis, o.state.Device(id).NodeKey, authority.State{})
		wantRules, err := b.AdmitRules(want.Rules, id)
		if err != nil {
			o.t.Fatal(err)
		}
		// A policy compiled from scratch gives every rule set its own epoch;
		// one that grew keeps the epoch of the last change.
		left, right := *haveRules.Set(), *wantRules.Set()
		left.Epoch, right.Epoch = 0, 0
		if !reflect.DeepEqual(left, right) {
			o.t.Fatalf("%v has rules\n%+v, not\n%+v", id, left, right)
		}
		if (o.state.Candidate() == nil) != (have.Candidate == nil) {
			o.t.Fatalf("%v has the candidate %x", id, have.Candidate)
		}
		if have.Hash() == want.Hash() {
			continue
		}
		if !bytes.Equal(have.Self, want.Self) || !reflect.DeepEqual(have.Peers, want.Peers) || !reflect.DeepEqual(have.Settings, want.Settings) ||
			!bytes.Equal(have.Candidate, want.Candidate) {
			o.t.Fatalf("%v has\n%+v, not\n%+v", id, have, want)
		}
		_ = self
	}
}

const policyA = `{
  "groups": {"group:eng": ["alice@example.com", "bob@example.com"]},
  "tagOwners": {"tag:db": ["group:eng"], "tag:web": ["alice@example.com"]},
  "acls": [
    {"action": "accept", "src": ["group:eng"], "dst": ["tag:db:5432"]},
    {"action": "accept", "src": ["tag:web"], "dst": ["tag:db:*"]},
  ],
}`

const policyB = `{
  "groups": {"group:eng": ["carol@example.com"]},
  "tagOwners": {"tag:db": ["group:eng"], "tag:web": ["alice@example.com"]},
  "acls": [
    {"action": "accept", "src": ["group:eng"], "dst": ["tag:db:5432"]},
    {"action": "accept", "src": ["alice@example.com"], "dst": ["tag:web:443", "bob@example.com:22"]},
  ],
}`

const policyC = `{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}`

func TestANodeSeesOnlyWhomARuleLinksItWith(t *testing.T) {
	o := newOrg(t)
	alice, bob, carol, db, web := o.register(1, "ali"), o.register(2, "bob"), o.register(3, "car"), o.register(4, "db"), o.register(5, "web")
	ids := func(ds ...*registry.Device) (out []ident.NodeID) {
		for _, d := range ds {
			out = append(out, d.ID)
		}
		return out
	}
	for _, c := range []struct {
		policy string
		of     *registry.Device
		want   []ident.NodeID
		users  []string
	}{
		{"{}", alice, nil, []string{"alice@example.com"}},
		{"{}", db, nil, nil},
		{policyA, alice, ids(db), []string{"alice@example.com"}},
		{policyA, carol, nil, []string{"carol@example.com"}},
		{policyA, db, ids(alice, bob, web), []string{"alice@example.com", "bob@example.com"}},
		{policyA, web, ids(db), nil},
		{policyB, alice, ids(bob, web), []string{"alice@example.com", "bob@example.com"}},
		{policyB, db, ids(carol), []string{"carol@example.com"}},
		{policyC, carol, ids(alice, bob, db, web), []string{"alice@example.com", "bob@example.com", "carol@example.com"}},
	} {
		o.mustRun(registry.SetPolicy{Text: c.policy})
		m, err := o.net.Map(c.of.ID)
		if err != nil {
			t.Fatal(err)
		}
		if got := slices.Sorted(maps.Keys(m.Peers)); !slices.Equal(got, c.want) {
			t.Errorf("%s sees %v, want %v, under %s", c.of.Name, got, c.want, c.policy)
		}
		var users []string
		for _, u := range m.Settings.Users {
			users = append(users, u.Login)
		}
		if !slices.Equal(users, c.users) {
			t.Errorf("%s is told of the users %v, want %v, under %s", c.of.Name, users, c.users, c.policy)
		}
	}
}

func TestPresenceGoesToThoseWhoMaySee(t *testing.T) {
	o := newOrg(t)
	alice, _, carol, db := o.register(1, "ali"), o.register(2, "bob"), o.register(3, "car"), o.register(4, "db")
	o.mustRun(registry.SetPolicy{Text: policyA})
	at := Presence{Online: true, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}}
	if got := o.net.SetPresence(alice.ID, at); !slices.Equal(got, []Touch{{Viewer: db.ID, Subject: alice.ID}}) {
		t.Errorf("alice's address goes to %v", got)
	}
	if got := o.net.SetPresence(alice.ID, at); got != nil {
		t.Errorf("the same again goes to %v", got)
	}
	if got := o.net.SetPresence(carol.ID, at); got != nil {
		t.Errorf("carol's address goes to %v", got)
	}
	if got := o.net.SetPresence(99, at); got != nil || len(o.net.presence) != 2 {
		t.Errorf("nobody's address goes to %v", got)
	}
}

// TestDeltasEqualFreshMaps runs random commands with nodes that come and go,
// and compares after each what deltas built with what a fresh map says.
func TestDeltasEqualFreshMaps(t *testing.T) {
	deltas := 0
	seeds := uint64(5)
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 3))
		o := newOrg(t)
		for step := range 180 {
			o.now = o.now.Add(time.Duration(r.IntN(6*3600)) * time.Second)
			n := byte(r.IntN(10))
			id := ident.NodeID(n)
			switch r.IntN(18) {
			case 0, 1, 2:
				o.run(registry.RegisterDevice{
					Machine: ident.MachineKey{n, 1}, NodeKey: ident.NodeKey{byte(r.IntN(12)), 2}, Hostname: fmt.Sprint("h", r.IntN(3)),
					Key: []string{"ali", "bob", "car", "db", "web"}[r.IntN(5)], Secret: hash("x"),
				})
				key := []string{"ali", "bob", "car", "db", "web"}[r.IntN(5)]
				o.run(registry.RegisterDevice{
					Machine: ident.MachineKey{n, 1}, NodeKey: ident.NodeKey{n, byte(r.IntN(2))}, Hostname: fmt.Sprint("h", r.IntN(3)), Key: key, Secret: hash(key),
				})
			case 3:
				o.run(registry.RotateNodeKey{Node: id, NodeKey: ident.NodeKey{n, 9, byte(r.IntN(3))}})
			case 4:
				if r.IntN(3) == 0 {
					o.run(registry.Logout{Node: id})
				} else if r.IntN(4) == 0 {
					o.run(registry.RevokeDevice{Node: id, KeepKey: true})
				}
			case 5:
				o.mustRun(registry.SetPolicy{Text: []string{policyA, policyB, policyC, "{}", policyRoutes}[r.IntN(5)]})
			case 6:
				o.run(registry.CreateUser{Login: fmt.Sprint("u", r.IntN(9), "@example.com")})
			case 7, 8:
				if o.net.member(id) != nil {
					o.connect(id)
				}
			case 9:
				delete(o.streams, id)
				delete(o.nodes, id)
			case 10:
				p := Presence{Online: r.IntN(2) == 0, OS: []string{"linux", ""}[r.IntN(2)]}
				for range r.IntN(3) {
					p.Endpoints = append(p.Endpoints, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(5))}), 7))
				}
				o.tell(o.net.SetPresence(id, p))
			case 14:
				login := []string{"alice@example.com", "bob@example.com"}[r.IntN(2)]
				if o.state.Suspended(o.state.UserByLogin(login).ID) {
					o.mustRun(registry.ResumeUser{Login: login})
				} else if r.IntN(5) == 0 {
					o.mustRun(registry.SuspendUser{Login: login})
				}
			case 15:
				o.run(registry.SetTags{Node: id, Tags: []ident.Tag{"tag:db", "tag:web", "tag:x"}[r.IntN(2):][:1+r.IntN(2)]})
			case 16:
				switch r.IntN(6) {
				case 0:
					o.mustRun(registry.ClearCandidate{})
				case 1:
					o.run(registry.PromoteCandidate{})
				default:
					o.mustRun(registry.SetCandidate{Text: []string{policyA, policyB, policyC, "{}", policyRoutes}[r.IntN(5)]})
				}
			case 17:
				if r.IntN(3) == 0 {
					o.mustRun(registry.SetFeature{Feature: registry.FeaturePortMapping, Off: r.IntN(2) == 0})
				}
			case 12:
				o.run(registry.AdvertiseRoutes{Node: id, Routes: someRoutes(r)})
			case 13:
				if r.IntN(3) == 0 {
					o.run(registry.RemoveRoutes{Node: id, Routes: someRoutes(r)})
				} else {
					o.run(registry.ApproveRoutes{Node: id, Routes: someRoutes(r)})
				}
			case 11:
				if r.IntN(4) == 0 {
					o.streams, o.nodes = map[ident.NodeID]*wire.Stream{}, map[ident.NodeID]*wire.Map{}
					presence := o.net.presence
					o.restart()
					o.net.presence = presence
				}
			}
			o.net.HandleTimeout(o.now)
			o.tell(o.renew())
			o.check()
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, step)
			}
		}
		deltas += o.deltas
	}
	if deltas < 100 {
		t.Errorf("only %d deltas: nothing was tried", deltas)
	}
}

func TestCertificatesAreRenewedAtHalfLife(t *testing.T) {
	o := newOrg(t)
	d := o.register(1, "ali")
	first := o.state.Certificate(d.ID)
	o.now = begin.Add(DefaultValidity/2 - time.Second)
	o.net.HandleTimeout(o.now)
	if certs, _ := o.net.Renewals(o.now); len(certs) > 0 {
		t.Fatal("renewed before half of its life")
	}
	o.now = begin.Add(DefaultValidity / 2)
	o.net.HandleTimeout(o.now)
	o.renew()
	second := o.state.Certificate(d.ID)
	if second.Serial <= first.Serial || !second.NotAfter.Equal(o.now.Add(DefaultValidity)) {
		t.Errorf("%+v after %+v", second, first)
	}
}

// TestExpiredCertificatesAreReplacedAtStart starts a coordinator that was away
// for longer than any certificate holds.
func TestExpiredCertificatesAreReplacedAtStart(t *testing.T) {
	o := newOrg(t)
	d := o.register(1, "ali")
	before := o.state.Certificate(d.ID).Serial
	o.now = begin.Add(30 * 24 * time.Hour)
	o.restart()
	if o.state.Certificate(d.ID).Serial <= before {
		t.Error("the expired certificate is still the newest")
	}
	o.connect(d.ID)
	o.check()
	serial := o.state.Certificate(d.ID).Serial
	o.restart()
	if o.state.Certificate(d.ID).Serial != serial {
		t.Error("a restart makes certificates that nobody needs")
	}
}

func TestRelayTokenAdmitsAndIsRenewedInTime(t *testing.T) {
	o := newOrg(t)
	d := o.register(1, "ali")
	token, renew, err := o.net.RelayToken(d.ID, o.now)
	if err != nil {
		t.Fatal(err)
	}
	for after, ok := range map[time.Duration]bool{0: true, renew.Sub(o.now) * 2: true, tokenValidity: false} {
		if _, err := authority.VerifyRelayToken(o.cfg.Genesis, token, d.NodeKey, "default", o.now.Add(after)); (err == nil) != ok {
			t.Errorf("after %v: %v", after, err)
		}
	}
	if _, _, err := o.net.RelayToken(77, o.now); !errors.Is(err, ErrNoView) {
		t.Errorf("a token for nobody: %v", err)
	}
}

func TestCheckPolicy(t *testing.T) {
	o := newOrg(t)
	o.register(4, "db")
	for _, c := range []struct{ text, want string }{
		{policyA, ""},
		{"{}", ""},
		{"{", "line 1"},
		{`{"acls": [{"action": "accept", "src": ["group:none"], "dst": ["*:*"]}]}`, "group:none"},
		{`{"ssh": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"]}]}`, "not supported"},
		{
			`{"acls": [{"action": "accept", "src": ["alice@example.com"], "dst": ["*:22"]}],
			  "tests": [{"src": "alice@example.com", "deny": ["100.64.0.1:22"]}]}`, "tests",
		},
		{
			`{"acls": [{"action": "accept", "src": ["alice@example.com"], "dst": ["*:22"]}],
			  "tests": [{"src": "alice@example.com", "accept": ["100.64.0.1:22"], "deny": ["100.64.0.1:23"]}]}`, "",
		},
	} {
		_, err := o.net.CheckPolicy(c.text)
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || !errors.Is(err, ErrPolicy)) {
			t.Errorf("%s: %v, want %q", c.text, err, c.want)
		}
	}
}
