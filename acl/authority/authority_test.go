package authority_test

import (
	"bytes"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
)

var start = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func TestAdmit(t *testing.T) {
	n := acltest.NewNetwork(1, start)
	self, other := n.NodeKey().Public(), n.NodeKey().Public()
	a := n.Authority(self)
	c := n.Certificate(7, other, "db", 11, 12)
	c.Owner = 3
	c.Routes = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.1.0.0/16")}
	signed := n.Issue(c)

	p, err := a.Admit(signed, start)
	if err != nil {
		t.Fatal(err)
	}
	want := &ident.Identity{Node: 7, Owner: 3, Labels: c.Labels, Addresses: c.Addresses, Routes: c.Routes}
	if !reflect.DeepEqual(p.Identity(), want) {
		t.Errorf("identity %+v, want %+v", p.Identity(), want)
	}
	if p.Node() != 7 || p.NodeKey() != other || p.Name() != "db" || p.Serial() != c.Serial || !p.NotAfter().Equal(c.NotAfter) || !bytes.Equal(p.Signed(), signed) {
		t.Errorf("peer %+v", p)
	}
	allowed := []netip.Prefix{
		netip.MustParsePrefix("100.64.0.7/32"), netip.MustParsePrefix("fd12:3456:789a::7/128"),
		netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.1.0.0/16"),
	}
	if got := p.AllowedIPs(); !reflect.DeepEqual(got, allowed) {
		t.Errorf("allowed IPs %v, want %v", got, allowed)
	}
	if _, err := a.AdmitSelf(signed, start); !errors.Is(err, authority.ErrNotOurs) {
		t.Errorf("another device's certificate as our own: %v", err)
	}
	own := n.Issue(n.Certificate(1, self, "me"))
	if _, err := a.AdmitSelf(own, start); err != nil {
		t.Errorf("our own certificate: %v", err)
	}
	if _, err := a.Admit(own, start); !errors.Is(err, authority.ErrNotOurs) {
		t.Errorf("our own certificate as a peer: %v", err)
	}
}

// TestRefused is what a lying coordinator, or one in between, can try with
// certificates.
func TestRefused(t *testing.T) {
	n, foreign := acltest.NewNetwork(1, start), acltest.NewNetwork(2, start)
	self, other := n.NodeKey().Public(), n.NodeKey().Public()
	change := func(f func(*authority.Certificate)) []byte {
		c := n.Certificate(7, other, "db", 11)
		f(c)
		return authority.ForgeCertificate(n.Genesis, c, n.Signer)
	}
	sound := n.Issue(n.Certificate(7, other, "db", 11))
	flip := func(old, with string) []byte {
		if !bytes.Contains(sound, []byte(old)) {
			t.Fatalf("the certificate does not contain %q", old)
		}
		return bytes.Replace(sound, []byte(old), []byte(with), 1)
	}
	prefix := netip.MustParsePrefix

	tests := []struct {
		name   string
		signed []byte
		want   error
	}{
		{"M01 nothing", nil, authority.ErrMalformed},
		{"M01 unsigned", bytes.Replace(sound, sound[40:100], make([]byte, 60), 1), authority.ErrSignature},
		{"M02 signed by another network's key", foreign.Issue(foreign.Certificate(7, other, "db", 11)), authority.ErrSigner},
		{"M04 another node key", flip(string(other[:]), string(self[:])), authority.ErrSignature},
		{"M05 another address", flip("\x64\x40\x00\x07", "\x64\x40\x00\x08"), authority.ErrSignature},
		{"M07 another name", flip("\x62db", "\x62da"), authority.ErrSignature},
		{"signed as rules", n.IssueRules(7, &ruleset.RuleSet{}), authority.ErrSignature},
		{"trailing byte", append(bytes.Clone(sound), 0), authority.ErrMalformed},
		{"expired", change(func(c *authority.Certificate) { c.NotBefore, c.NotAfter = start.Add(-time.Hour), start }), authority.ErrExpired},
		{"not yet valid", change(func(c *authority.Certificate) { c.NotBefore = start.Add(time.Hour) }), authority.ErrExpired},
		{"valid for ever", change(func(c *authority.Certificate) { c.NotAfter = start.AddDate(50, 0, 0) }), authority.ErrOutOfBounds},
		{"ends before it begins", change(func(c *authority.Certificate) { c.NotAfter = start.Add(-time.Hour) }), authority.ErrOutOfBounds},
		{"address of another network", change(func(c *authority.Certificate) { c.Addresses[0] = netip.MustParseAddr("10.0.0.1") }), authority.ErrOutOfBounds},
		{"address twice", change(func(c *authority.Certificate) { c.Addresses[1] = c.Addresses[0] }), authority.ErrOutOfBounds},
		{"no address", change(func(c *authority.Certificate) { c.Addresses = nil }), authority.ErrOutOfBounds},
		{"too many addresses", change(func(c *authority.Certificate) { c.Addresses = make([]netip.Addr, 9) }), authority.ErrMalformed},
		{"M06 a peer's address as a route", change(func(c *authority.Certificate) { c.Routes = []netip.Prefix{prefix("100.64.0.9/32")} }), authority.ErrOutOfBounds},
		{"route around the network", change(func(c *authority.Certificate) { c.Routes = []netip.Prefix{prefix("100.0.0.0/8")} }), authority.ErrOutOfBounds},
		{"loopback as a route", change(func(c *authority.Certificate) { c.Routes = []netip.Prefix{prefix("127.0.0.0/8")} }), authority.ErrOutOfBounds},
		{"metadata service as a route", change(func(c *authority.Certificate) { c.Routes = []netip.Prefix{prefix("169.254.169.254/32")} }), authority.ErrOutOfBounds},
		{"link-local IPv6 as a route", change(func(c *authority.Certificate) { c.Routes = []netip.Prefix{prefix("fe80::/64")} }), authority.ErrOutOfBounds},
		{"routes out of order", change(func(c *authority.Certificate) {
			c.Routes = []netip.Prefix{prefix("10.2.0.0/16"), prefix("10.1.0.0/16")}
		}), authority.ErrMalformed},
		{"name that breaks a configuration file", change(func(c *authority.Certificate) { c.Name = "a\" b" }), authority.ErrOutOfBounds},
		{"name with a dot", change(func(c *authority.Certificate) { c.Name = "a.b" }), authority.ErrOutOfBounds},
		{"no name", change(func(c *authority.Certificate) { c.Name = "" }), authority.ErrOutOfBounds},
		{"no device", change(func(c *authority.Certificate) { c.Node = 0 }), authority.ErrMalformed},
		{"no key", change(func(c *authority.Certificate) { c.NodeKey = ident.NodeKey{} }), authority.ErrMalformed},
		{"no serial", change(func(c *authority.Certificate) { c.Serial = 0 }), authority.ErrMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := n.Authority(self)
			before := a.State()
			p, err := a.Admit(tt.signed, start)
			if p != nil || !errors.Is(err, tt.want) {
				t.Errorf("got %v, %v, want %v", p, err, tt.want)
			}
			if !reflect.DeepEqual(before, a.State()) {
				t.Error("a refused certificate changed the state")
			}
		})
	}
}

func TestRollback(t *testing.T) {
	n := acltest.NewNetwork(1, start)
	self, other := n.NodeKey().Public(), n.NodeKey().Public()
	older := n.Issue(n.Certificate(7, other, "db", 11))
	newer := n.Issue(n.Certificate(7, other, "db"))
	a := n.Authority(self)
	for i, signed := range [][]byte{older, newer, newer} {
		if _, err := a.Admit(signed, start); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	if _, err := a.Admit(older, start); !errors.Is(err, authority.ErrRollback) {
		t.Errorf("M11: an older certificate: %v", err)
	}

	set := func(epoch ruleset.Epoch) []byte { return n.IssueRules(1, &ruleset.RuleSet{Epoch: epoch}) }
	if r, err := a.AdmitRules(set(5), 1); err != nil || r.Set().Epoch != 5 || r.Node() != 1 {
		t.Fatalf("rules: %v, %v", r, err)
	}
	if _, err := a.AdmitRules(set(4), 1); !errors.Is(err, authority.ErrRollback) {
		t.Errorf("M08: rules of a lower epoch: %v", err)
	}
	if _, err := a.AdmitRules(set(6), 2); !errors.Is(err, authority.ErrNotOurs) {
		t.Errorf("rules for another device: %v", err)
	}

	// A restart remembers.
	again, err := authority.New(n.Genesis, self, a.State())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Admit(older, start); !errors.Is(err, authority.ErrRollback) {
		t.Errorf("an older certificate after a restart: %v", err)
	}
	if _, err := again.AdmitRules(set(4), 1); !errors.Is(err, authority.ErrRollback) {
		t.Errorf("rules of a lower epoch after a restart: %v", err)
	}
}

func TestSigningRoles(t *testing.T) {
	n := acltest.NewNetwork(1, start)
	devices, err := ident.NewSignerPrivate(bytes.NewReader(bytes.Repeat([]byte{4}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	n.Genesis.Signers[0].Roles = authority.SignRules | authority.SignRelayTokens
	n.Genesis.Signers = append(n.Genesis.Signers, authority.Signer{Key: devices.Public(), Roles: authority.SignDevices})
	self, other := n.NodeKey().Public(), n.NodeKey().Public()
	a := n.Authority(self)
	c := n.Certificate(7, other, "db")
	if _, err := a.Admit(authority.ForgeCertificate(n.Genesis, c, n.Signer), start); !errors.Is(err, authority.ErrSigner) {
		t.Errorf("a certificate by the key for rules: %v", err)
	}
	if _, err := authority.IssueCertificate(n.Genesis, c, n.Signer); !errors.Is(err, authority.ErrSigner) {
		t.Errorf("issuing by the key for rules: %v", err)
	}
	if _, err := authority.IssueRules(n.Genesis, 7, 1, &ruleset.RuleSet{}, devices); !errors.Is(err, authority.ErrSigner) {
		t.Errorf("issuing rules by the key for devices: %v", err)
	}
	if _, err := a.Admit(authority.ForgeCertificate(n.Genesis, c, devices), start); err != nil {
		t.Errorf("a certificate by the key for devices: %v", err)
	}
}

func TestRelayToken(t *testing.T) {
	n, foreign := acltest.NewNetwork(1, start), acltest.NewNetwork(2, start)
	node, other := n.NodeKey().Public(), n.NodeKey().Public()
	issue := func(n *acltest.Network, d time.Duration) []byte {
		token, err := authority.IssueRelayToken(n.Genesis, authority.RelayToken{
			NodeKey: node, NotAfter: start.Add(d), Relays: []string{"fra", "nyc"},
		}, n.Signer)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	sound := issue(n, authority.RelayTokenValidity)
	tests := []struct {
		name  string
		token []byte
		node  ident.NodeKey
		relay string
		at    time.Time
		want  error
	}{
		{"sound", sound, node, "fra", start, nil},
		{"sound at the other relay", sound, node, "nyc", start, nil},
		{"at a relay without a name", sound, node, "", start, authority.ErrNotOurs},
		{"for another relay", sound, node, "sgp", start, authority.ErrNotOurs},
		{"another's", sound, other, "fra", start, authority.ErrNotOurs},
		{"expired", sound, node, "fra", start.Add(authority.RelayTokenValidity), authority.ErrExpired},
		{"expired and for another relay", sound, node, "sgp", start.Add(authority.RelayTokenValidity), authority.ErrNotOurs},
		{"too long", issue(n, time.Hour), node, "fra", start, authority.ErrOutOfBounds},
		{"another network's", issue(foreign, time.Minute), node, "fra", start, authority.ErrSigner},
		{"changed", bytes.Replace(sound, node[:], other[:], 1), other, "fra", start, authority.ErrSignature},
		{"changed relay", bytes.Replace(sound, []byte("nyc"), []byte("sgp"), 1), node, "sgp", start, authority.ErrSignature},
		{"empty", nil, node, "fra", start, authority.ErrMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := authority.VerifyRelayToken(n.Genesis, tt.token, tt.node, tt.relay, tt.at)
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if sound := tt.want == nil || errors.Is(tt.want, authority.ErrExpired); sound != (got.NodeKey == node) {
				t.Errorf("returned %+v with %v", got, err)
			}
		})
	}
	for name, relays := range map[string][]string{
		"no name": {""}, "a long name": {strings.Repeat("x", authority.MaxRelayName+1)},
		"many": strings.Split(strings.Repeat("r,", authority.MaxTokenRelays), ","),
	} {
		if _, err := authority.IssueRelayToken(n.Genesis, authority.RelayToken{NodeKey: node, NotAfter: start, Relays: relays}, n.Signer); !errors.Is(err, authority.ErrOutOfBounds) {
			t.Errorf("%s: %v", name, err)
		}
	}
	largest := authority.RelayToken{NodeKey: node, NotAfter: start}
	for range authority.MaxTokenRelays {
		largest.Relays = append(largest.Relays, strings.Repeat("x", authority.MaxRelayName))
	}
	const maxToken = 5 << 10 // netstack/relay.MaxToken
	if token, err := authority.IssueRelayToken(n.Genesis, largest, n.Signer); err != nil || len(token) > maxToken {
		t.Errorf("the largest token has %d bytes, %v", len(token), err)
	}
}

func TestRelayRevocations(t *testing.T) {
	n, foreign := acltest.NewNetwork(1, start), acltest.NewNetwork(2, start)
	want := authority.RelayRevocations{Time: start, Keys: []ident.NodeKey{n.NodeKey().Public(), n.NodeKey().Public()}}
	signed, err := authority.IssueRelayRevocations(n.Genesis, want, n.Signer)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := authority.VerifyRelayRevocations(n.Genesis, signed); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read back as %+v, %v", got, err)
	}
	if _, err := authority.VerifyRelayRevocations(foreign.Genesis, signed); !errors.Is(err, authority.ErrSigner) {
		t.Errorf("another network's: %v", err)
	}
	if _, err := authority.VerifyRelayRevocations(n.Genesis, bytes.Replace(signed, want.Keys[0][:], want.Keys[1][:], 1)); !errors.Is(err, authority.ErrSignature) {
		t.Errorf("changed: %v", err)
	}
	token, err := authority.IssueRelayToken(n.Genesis, authority.RelayToken{NodeKey: want.Keys[0], NotAfter: start}, n.Signer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := authority.VerifyRelayRevocations(n.Genesis, token); !errors.Is(err, authority.ErrSignature) {
		t.Errorf("a token: %v", err)
	}
}

func TestGenesis(t *testing.T) {
	n := acltest.NewNetwork(1, start)
	b := n.Genesis.AppendBinary(nil)
	g, err := authority.DecodeGenesis(b, n.Genesis.Fingerprint())
	if err != nil || !reflect.DeepEqual(g, n.Genesis) {
		t.Fatalf("read back as %+v, %v", g, err)
	}
	if _, err := authority.DecodeGenesis(b, ident.Fingerprint{1}); !errors.Is(err, authority.ErrFingerprint) {
		t.Errorf("another fingerprint: %v", err)
	}
	for name, damage := range map[string]func(*authority.Genesis){
		"no signer":          func(g *authority.Genesis) { g.Signers = nil },
		"a role without key": func(g *authority.Genesis) { g.Signers[0].Roles = authority.SignDevices },
		"unknown role":       func(g *authority.Genesis) { g.Signers[0].Roles |= 1 << 40 },
		"signer twice":       func(g *authority.Genesis) { g.Signers = append(g.Signers, g.Signers[0]) },
		"no channel":         func(g *authority.Genesis) { g.Channel = ident.ChannelKey{} },
		"IPv4 all":           func(g *authority.Genesis) { g.Prefix4 = netip.MustParsePrefix("0.0.0.0/0") },
		"IPv6 as IPv4":       func(g *authority.Genesis) { g.Prefix4 = g.Prefix6 },
	} {
		g := acltest.NewNetwork(1, start).Genesis
		damage(g)
		if _, err := authority.DecodeGenesis(g.AppendBinary(nil), g.Fingerprint()); !errors.Is(err, authority.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]bool{
		"db": true, "db-1": true, "1db": true, strings.Repeat("a", 63): true,
		"": false, "-db": false, "db-": false, "DB": false, "d.b": false, "d b": false, "dé": false, "a/../b": false, "a\n": false,
		strings.Repeat("a", 64): false,
	} {
		if got := authority.ValidName(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

// FuzzAdmit feeds bytes to every verifier. None of them may panic, and nothing
// may be admitted that was not issued.
func FuzzAdmit(f *testing.F) {
	n := acltest.NewNetwork(1, start)
	self, other := n.NodeKey().Public(), n.NodeKey().Public()
	sound := n.Issue(n.Certificate(7, other, "db", 11))
	rules := n.IssueRules(1, &ruleset.RuleSet{Epoch: 1})
	f.Add(sound)
	f.Add(rules)
	token, err := authority.IssueRelayToken(n.Genesis, authority.RelayToken{NodeKey: other, NotAfter: start.Add(time.Minute), Relays: []string{"fra"}}, n.Signer)
	if err != nil {
		f.Fatal(err)
	}
	revoked, err := authority.IssueRelayRevocations(n.Genesis, authority.RelayRevocations{Time: start, Keys: []ident.NodeKey{other}}, n.Signer)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token)
	f.Add(revoked)
	candidate := n.IssueCandidate(1, &ruleset.RuleSet{Epoch: 1}, authority.Labels{Node: 1}, authority.Labels{Node: 2, Labels: ident.NewLabelSet(3, 4)})
	f.Add(candidate)
	f.Add(n.Genesis.AppendBinary(nil))
	f.Add([]byte("\x83\x58\x20"))
	f.Fuzz(func(t *testing.T, in []byte) {
		a := n.Authority(self)
		if _, err := a.Admit(in, start); err == nil && !bytes.Equal(in, sound) {
			t.Errorf("admitted %x", in)
		}
		if _, err := a.AdmitRules(in, 1); err == nil && !bytes.Equal(in, rules) {
			t.Errorf("admitted rules %x", in)
		}
		if _, err := a.AdmitCandidate(in, 1); err == nil && !bytes.Equal(in, candidate) {
			t.Errorf("admitted a candidate %x", in)
		}
		authority.DecodeForged(n.Genesis, in, start)
		if _, err := authority.VerifyRelayToken(n.Genesis, in, other, "fra", start); err == nil && !bytes.Equal(in, token) {
			t.Errorf("a relay token %x", in)
		}
		if _, err := authority.VerifyRelayRevocations(n.Genesis, in); err == nil && !bytes.Equal(in, revoked) {
			t.Errorf("revocations %x", in)
		}
	})
}
