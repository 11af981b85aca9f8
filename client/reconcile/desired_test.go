package reconcile_test

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/client/control"
	"github.com/warren-overlay/warren/client/health"
	"github.com/warren-overlay/warren/client/reconcile"
	"github.com/warren-overlay/warren/coordinator/wire"
	"github.com/warren-overlay/warren/netstack/config"
)

func TestRelayURL(t *testing.T) {
	for _, c := range []struct{ login, relay, want string }{
		{"http://10.0.0.1:8080", "ws:///warren/v1/relay", "ws://10.0.0.1:8080/warren/v1/relay"},
		{"http://10.0.0.1:8080", "/warren/v1/relay", "ws://10.0.0.1:8080/warren/v1/relay"},
		{"http://10.0.0.1:8080/", "/relay", "ws://10.0.0.1:8080/relay"},
		{"https://c.example.com", "ws:///relay", "wss://c.example.com/relay"},
		{"https://c.example.com/base/", "/relay", "wss://c.example.com/base/relay"},
		{"https://c.example.com", "ws://:3340/relay", "ws://c.example.com:3340/relay"},
		{"http://[fd00::1]:8080", "ws://:3340/relay", "ws://[fd00::1]:3340/relay"},
		{"http://[fd00::1]:8080", "/relay", "ws://[fd00::1]:8080/relay"},
		{"http://c:8080", "wss://relay.example.com/relay", "wss://relay.example.com/relay"},
		{"http://c:8080", "https://relay.example.com:444/relay", "wss://relay.example.com:444/relay"},
		{"https://c:8080", "//relay.example.com/relay", "wss://relay.example.com/relay"},
		{"http://c:8080", "ftp://relay.example.com/", ""},
		{"http://c:8080", "file:///etc/passwd", "ws://c:8080/etc/passwd"}, // a path on the coordinator, no file
		{"http://c:8080", "javascript:alert(1)", ""},
		{"http://c:8080", "wss://user:pass@relay.example.com/", ""},
		{"http://c:8080", "wss://relay.example.com:70000/", ""},
		{"http://c:8080", "wss://relay.example.com:0/", ""},
		{"http://c:8080", "ws://%zz/", ""},
		{"c:8080", "/relay", ""},
		{"", "/relay", ""},
	} {
		got, err := reconcile.RelayURL(c.login, c.relay)
		if got != c.want || (err == nil) != (c.want != "") || err != nil && !errors.Is(err, reconcile.ErrSetting) {
			t.Errorf("RelayURL(%q, %q) = %q, %v; want %q", c.login, c.relay, got, err, c.want)
		}
	}
}

func TestSTUNServer(t *testing.T) {
	for _, c := range []struct{ login, server, want string }{
		{"http://10.0.0.1:8080", ":3478", "10.0.0.1:3478"},
		{"http://[fd00::1]:8080", ":3478", "[fd00::1]:3478"},
		{"https://c.example.com", "stun.example.com:19302", "stun.example.com:19302"},
		{"https://c.example.com", "stun.example.com", ""},
		{"https://c.example.com", "stun.example.com:", ""},
		{"https://c.example.com", ":0", ""},
		{"https://c.example.com", ":65536", ""},
		{"nonsense", ":3478", ""},
		{"http://c", "[fd00::9]:3478", "[fd00::9]:3478"},
		{"http://c", "a/b:3478", ""},
		{"http://c", "user@host:3478", ""},
		{"http://c", "", ""},
	} {
		got, err := reconcile.STUNServer(c.login, c.server)
		if got != c.want || (err == nil) != (c.want != "") || err != nil && !errors.Is(err, reconcile.ErrSetting) {
			t.Errorf("STUNServer(%q, %q) = %q, %v; want %q", c.login, c.server, got, err, c.want)
		}
	}
}

var now = time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)

// view returns a verified view of node 1 with one peer, and node 1's key.
func view(t *testing.T) (*control.View, ident.NodePrivate) {
	t.Helper()
	return routedView(t, nil, nil)
}

// routedView is view with approved routes of node 1 and of its peer.
func routedView(t *testing.T, own, peers []netip.Prefix) (*control.View, ident.NodePrivate) {
	t.Helper()
	random := rand.NewChaCha8([32]byte{1})
	signer, err1 := ident.NewSignerPrivate(random)
	channel, err2 := ident.NewChannelPrivate(random)
	g := &authority.Genesis{
		Created: now, Channel: channel.Public(),
		Signers: []authority.Signer{{Key: signer.Public(), Roles: authority.SignDevices | authority.SignRules | authority.SignRelayTokens}},
		Prefix4: netip.MustParsePrefix("100.64.0.0/10"), Prefix6: netip.MustParsePrefix("fd5a:1:2::/48"),
	}
	var keys [3]ident.NodePrivate
	var members [3]*authority.Peer
	var err3 error
	if keys[1], err3 = ident.NewNodePrivate(random); err3 != nil {
		t.Fatal(err3)
	}
	if keys[2], err3 = ident.NewNodePrivate(random); err3 != nil {
		t.Fatal(err3)
	}
	a, err4 := authority.New(g, keys[1].Public(), authority.State{})
	if err := errors.Join(err1, err2, err4); err != nil {
		t.Fatal(err)
	}
	for i := byte(1); i <= 2; i++ {
		signed, err := authority.IssueCertificate(g, &authority.Certificate{
			Serial: uint64(i), Node: ident.NodeID(i), NodeKey: keys[i].Public(), Name: "node",
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{100, 64, 0, i})},
			NotBefore: now, NotAfter: now.Add(time.Hour), Routes: [3][]netip.Prefix{1: own, 2: peers}[i],
		}, signer)
		if err != nil {
			t.Fatal(err)
		}
		admit := a.Admit
		if i == 1 {
			admit = a.AdmitSelf
		}
		if members[i], err = admit(signed, now); err != nil {
			t.Fatal(err)
		}
	}
	signed, err := authority.IssueRules(g, 1, 1, &ruleset.RuleSet{Epoch: 3}, signer)
	if err != nil {
		t.Fatal(err)
	}
	rules, err := a.AdmitRules(signed, 1)
	if err != nil {
		t.Fatal(err)
	}
	endpoints := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.2:41641")}
	return &control.View{
		Self: members[1], Rules: rules, RelayToken: []byte("token"), Overlay: []netip.Prefix{g.Prefix4, g.Prefix6},
		Peers: []control.Peer{{Member: members[2], State: wire.PeerState{Endpoints: endpoints, HomeRelay: "fra-1"}}},
		Settings: wire.Settings{
			Relays: []wire.Relay{
				{Name: "default", URL: "ws:///relay", STUN: ":3478"},
				{Name: "bad", URL: "gopher://x"},
				{Name: "fra-1", Region: "eu", URL: "wss://fra/relay", UDP: "fra:3479", STUN: "fra:3478"},
				{Name: "fra-1", URL: "wss://other/relay"},
			},
			STUN: []string{":3478", "bad"},
		},
	}, keys[1]
}

func TestDesired(t *testing.T) {
	v, key := view(t)
	c, facts := reconcile.Desired(v, key, "http://10.0.0.1:8080", reconcile.Preferences{WantRunning: true, ShieldsUp: true}, now)
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if c.Self != v.Self || c.Rules != v.Rules || !c.ShieldsUp || string(c.RelayToken) != "token" {
		t.Errorf("configuration %+v", c)
	}
	if len(c.Peers) != 1 || c.Peers[0].Member != v.Peers[0].Member || !slices.Equal(c.Peers[0].Endpoints, v.Peers[0].State.Endpoints) || c.Peers[0].HomeRelay != "fra-1" {
		t.Errorf("peers %+v", c.Peers)
	}
	if want := []config.Relay{
		{Name: "default", URL: "ws://10.0.0.1:8080/relay", STUN: "10.0.0.1:3478"},
		{Name: "fra-1", Region: "eu", URL: "wss://fra/relay", UDP: "fra:3479", STUN: "fra:3478"},
	}; !slices.Equal(c.Relays, want) {
		t.Errorf("relays %v, want %v", c.Relays, want)
	}
	if want := []string{"10.0.0.1:3478", "fra:3478"}; !slices.Equal(c.STUN, want) {
		t.Errorf("STUN %v, want %v", c.STUN, want)
	}
	if want := []string{"10.0.0.1:8080", "fra:443", "fra:3479"}; !slices.Equal(c.Underlay, want) {
		t.Errorf("underlay %v, want %v", c.Underlay, want)
	}
	if len(facts) != 3 || facts[0].Code != health.SettingIgnored || facts[0].Subject != "STUN server bad" ||
		facts[1].Subject != "relay gopher://x" || facts[2].Subject != "relay wss://other/relay" {
		t.Errorf("facts %+v", facts)
	}
}

// TestDesiredPortMapping: only where both the user and the administrator leave it
// on.
func TestDesiredPortMapping(t *testing.T) {
	v, key := view(t)
	for _, off := range [][]wire.Feature{nil, {77}, {wire.FeaturePortMapping}, {wire.FeaturePortMapping, 77}} {
		for _, wanted := range []bool{false, true} {
			v.Settings.Off = off
			c, _ := reconcile.Desired(v, key, "http://10.0.0.1:8080", reconcile.Preferences{WantRunning: true, PortMapping: wanted}, now)
			if want := wanted && !slices.Contains(off, wire.FeaturePortMapping); c.PortMapping != want {
				t.Errorf("off %v, wanted %v: %v", off, wanted, c.PortMapping)
			}
		}
	}
}

func TestDesiredIsNothing(t *testing.T) {
	v, key := view(t)
	for name, c := range map[string]struct {
		view *control.View
		want bool
	}{
		"not wanted": {v, false}, "no view": {nil, true}, "no member": {&control.View{}, true},
	} {
		if got, _ := reconcile.Desired(c.view, key, "http://c", reconcile.Preferences{WantRunning: c.want}, now); got != nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
